//! The virtio-rng device component.
