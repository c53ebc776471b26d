//! Bindings of the FIDL library fuchsia.kernel.
