//! Bindings of the FIDL library fuchsia.diagnostics.types.
