//! The virtio-vsock device component.
