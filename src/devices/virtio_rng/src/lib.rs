//! The virtio-rng device component: entropy for the guest (virtio 1.2 §5.4). What may enter is what fills buffers
//! with random bytes, and the serving of `fuchsia.virtualization.hardware.VirtioRng`.

#![forbid(unsafe_code)]

mod component;
mod device;

pub use component::run;
pub use device::{QUEUES, RngDevice};

#[cfg(test)]
mod component_test;
#[cfg(test)]
mod device_test;
