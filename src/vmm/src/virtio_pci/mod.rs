//! Virtio over PCI, the transport's half of a device (virtio 1.2 §4.1): configuration structures, feature negotiation,
//! queue set-up, interrupts and reset. The other half, which serves the queues, is a [`VirtioBackend`] in some other
//! process. Notifications do not pass through here: the backend traps them itself.

mod common_config;
mod device;
mod device_config;
mod events;
mod interrupts;

pub use device::{NOTIFY_BAR_SIZE, REGISTERS_BAR_SIZE, VirtioPciDevice};
pub use device_config::DeviceConfig;
pub use events::DeviceEvents;

/// `VIRTIO_F_INDIRECT_DESC`: descriptors may point to tables of descriptors (virtio 1.2 §6).
pub const F_INDIRECT_DESC: u64 = 1 << 28;
/// `VIRTIO_F_EVENT_IDX`: notifications are suppressed by index (virtio 1.2 §6).
pub const F_EVENT_IDX: u64 = 1 << 29;
/// `VIRTIO_F_VERSION_1`: not a legacy device (virtio 1.2 §6).
pub const F_VERSION_1: u64 = 1 << 32;

/// Where the driver put a queue. Addresses are guest-physical.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueConfig {
    /// Descriptors; a power of two.
    pub size: u16,
    /// Descriptor table, a multiple of 16.
    pub descriptors: u64,
    /// Available ring, a multiple of 2.
    pub available: u64,
    /// Used ring, a multiple of 4.
    pub used: u64,
}

/// The device did not do as it was told: its process died, or closed its channel.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("The device does not answer: {0}")]
pub struct BackendError(
    /// What happened.
    pub String,
);

/// The part of a device that serves its queues. Calls come from a vCPU thread, one at a time, and block it.
pub trait VirtioBackend: Send {
    /// The driver enabled queue `index`, which it had not since the last reset.
    fn configure_queue(&mut self, index: u16, queue: &QueueConfig) -> Result<(), BackendError>;

    /// The driver is ready; `features` are the low 32 of those negotiated.
    fn ready(&mut self, features: u32) -> Result<(), BackendError>;

    /// The driver reset the device: when this returns the device has let go of all queues.
    fn reset(&mut self) -> Result<(), BackendError>;
}

/// What a device is, as far as the transport shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VirtioIdentity {
    /// For logs.
    pub name: String,
    /// Virtio device ID (virtio 1.2 §5).
    pub device_id: u16,
    /// PCI class code, subclass and programming interface, in the lower 24 bits.
    pub class: u32,
    /// Features of the device type; ring features and `VERSION_1` are added.
    pub features: u64,
    /// Largest size of each queue, powers of two.
    pub queue_sizes: Vec<u16>,
    /// Whether the queues are made to look broken when the device's process has died, see
    /// [`VirtioPciDevice::set_dead`].
    pub breaks_queues: bool,
}
