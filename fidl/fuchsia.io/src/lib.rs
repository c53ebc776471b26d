//! Bindings of the FIDL library fuchsia.io.
