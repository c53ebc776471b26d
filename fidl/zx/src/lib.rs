//! Bindings of the FIDL library zx.
