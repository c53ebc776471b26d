//! Bindings of the FIDL library fuchsia.ui.pointer.
