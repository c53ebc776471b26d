//! Bindings of the FIDL library fuchsia.url.
