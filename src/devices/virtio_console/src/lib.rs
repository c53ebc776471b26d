//! The virtio-console device component: a terminal for the guest (virtio 1.2 §5.3). What may enter is what moves bytes
//! between two queues and a socket, and the serving of `fuchsia.virtualization.hardware.VirtioConsole`.

#![forbid(unsafe_code)]

mod component;
mod device;

pub use component::run;
pub use device::{ConsoleDevice, QUEUES, RX, TX};

#[cfg(test)]
mod component_test;
#[cfg(test)]
mod device_test;
