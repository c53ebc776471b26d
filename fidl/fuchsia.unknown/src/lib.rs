//! Bindings of the FIDL library fuchsia.unknown.
