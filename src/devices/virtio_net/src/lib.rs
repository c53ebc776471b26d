//! The virtio-net device component: a network interface (virtio 1.2 §5.1) on a network that exists in this process
//! only. What may enter is what moves frames between two queues and that network, the network itself ([`stack`]), and
//! the serving of `fuchsia.virtualization.hardware.VirtioNet`.
//!
//! The network needs no privilege: what the guest sends ends in sockets of this process, as with QEMU's user network,
//! whose addresses it has too. Nothing outside can open a connection to the guest but through the host's ports that are
//! forwarded. Its limits: no IP fragments, so no datagrams beyond the MTU; of ICMP, only echo; forwards lead to the
//! guest's IPv4 address.

#![forbid(unsafe_code)]

mod component;
mod device;
pub mod offload;
pub mod stack;

pub use component::run;
pub use device::{NetDevice, QUEUES, RX, TX};

#[cfg(test)]
mod component_test;
#[cfg(test)]
mod device_test;
