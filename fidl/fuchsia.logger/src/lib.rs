//! Bindings of the FIDL library fuchsia.logger.
