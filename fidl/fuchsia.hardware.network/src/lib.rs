//! Bindings of the FIDL library fuchsia.hardware.network.
