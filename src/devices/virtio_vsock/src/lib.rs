//! The virtio-vsock device component: sockets between guest and host (virtio 1.2 §5.10). What may enter is the packet
//! format, the connections' state machine and ports, and the serving of `fuchsia.virtualization.hardware.VirtioVsock`
//! and `fuchsia.virtualization.HostVsockEndpoint`.

#![forbid(unsafe_code)]

mod component;
mod connection;
mod credit;
mod device;
mod ports;
mod wire;

pub use component::run;
pub use device::{AcceptRequest, ConnectionId, EVENT, QUEUES, RX, TX, VsockDevice};
pub use wire::{Header, Operation, Shutdown};

#[cfg(test)]
mod component_test;
#[cfg(test)]
mod device_test;
