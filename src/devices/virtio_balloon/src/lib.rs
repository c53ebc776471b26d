//! The virtio-balloon device component.
