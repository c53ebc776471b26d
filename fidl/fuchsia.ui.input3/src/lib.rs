//! Bindings of the FIDL library fuchsia.ui.input3.
