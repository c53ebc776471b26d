//! Bindings of the FIDL library fuchsia.mem.
