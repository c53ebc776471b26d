//! Bindings of the FIDL library fuchsia.net.
