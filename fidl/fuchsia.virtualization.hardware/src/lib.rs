//! Bindings of the FIDL library fuchsia.virtualization.hardware.
