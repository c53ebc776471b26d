//! What every virtio device component shares: guest memory, split queues, descriptor chains, and the worker that a
//! device runs on. What may enter is what does not depend on the kind of device: the ring protocol of virtio 1.2 §2,
//! and the device's side of `fuchsia.virtualization.hardware`.
//!
//! A device crate implements [`Device`] over [`Queue`]s and leaves threads, bells, interrupts and reset to
//! [`Worker`]. Its tests play the driver with [`fake_queue`] and the VMM with [`fake_transport`].

#![deny(unsafe_code)]

mod chain;
mod component;
mod error;
pub mod fake_queue;
pub mod fake_transport;
mod features;
#[expect(
    unsafe_code,
    reason = "the mapping of guest memory; the module's head says what keeps it sound"
)]
mod memory;
mod queue;
mod ring;
mod worker;

pub use chain::{HeldChain, ReadableChain, WritableChain};
pub use component::{Attachment, StartError, serve_one};
pub use error::{ChainTooShort, QueueConfigError, QueueError, RingPart};
pub use features::{Features, RING_FEATURES};
pub use memory::{GuestMemory, GuestSlice, OutOfRange};
pub use queue::{Queue, UsedHold};
pub use ring::{
    AVAIL_F_NO_INTERRUPT, Descriptor, DescriptorFlags, MAX_QUEUE_SIZE, QueueConfig,
    USED_F_NO_NOTIFY, UsedElement,
};
pub use worker::{Device, Io, Progress, QueueSet, Waker, Worker};

#[cfg(test)]
mod oracle_test;
#[cfg(test)]
mod queue_test;
#[cfg(test)]
mod worker_test;
