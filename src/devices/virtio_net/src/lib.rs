//! The virtio-net device component.
