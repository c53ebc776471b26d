//! Bindings of the FIDL library fuchsia.memorypressure.
