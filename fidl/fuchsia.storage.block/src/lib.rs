//! Bindings of the FIDL library fuchsia.storage.block.
