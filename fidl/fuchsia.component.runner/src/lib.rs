//! Bindings of the FIDL library fuchsia.component.runner.
