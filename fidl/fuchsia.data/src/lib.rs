//! Bindings of the FIDL library fuchsia.data.
