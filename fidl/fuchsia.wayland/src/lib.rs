//! Bindings of the FIDL library fuchsia.wayland.
