//! Bindings of the FIDL library fuchsia.process.
