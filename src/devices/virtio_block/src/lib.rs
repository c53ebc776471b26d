//! The virtio-block device component.
