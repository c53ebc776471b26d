//! The virtio-console device component.
