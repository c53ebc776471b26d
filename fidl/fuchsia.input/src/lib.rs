//! Bindings of the FIDL library fuchsia.input.
