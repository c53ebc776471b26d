//! The layout of a split virtqueue in guest memory (virtio 1.2 §2.7), and nothing that acts on it.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::error::{QueueConfigError, RingPart};
use crate::memory::GuestMemory;

/// Largest queue size, virtio 1.2 §2.7.
pub const MAX_QUEUE_SIZE: u16 = 32768;

/// One entry of a descriptor table, virtio 1.2 §2.7.5 `struct virtq_desc`.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Descriptor {
    /// Guest-physical address of the buffer.
    pub addr: U64,
    /// Length of the buffer in bytes.
    pub len: U32,
    /// [`DescriptorFlags`].
    pub flags: U16,
    /// Index of the next descriptor, if [`DescriptorFlags::NEXT`] is set.
    pub next: U16,
}

bitflags::bitflags! {
    /// `virtq_desc.flags`, virtio 1.2 §2.7.5.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct DescriptorFlags: u16 {
        /// The chain continues at `next`.
        const NEXT = 1;
        /// The buffer is for the device to write; otherwise for it to read.
        const WRITE = 2;
        /// The buffer holds a table of descriptors.
        const INDIRECT = 4;
    }
}

/// `virtq_avail.flags` bit by which a driver without event index asks for no interrupts, virtio 1.2 §2.7.6.
pub const AVAIL_F_NO_INTERRUPT: u16 = 1;
/// `virtq_used.flags` bit by which a device without event index asks for no notifications, virtio 1.2 §2.7.8.
pub const USED_F_NO_NOTIFY: u16 = 1;

/// One entry of the used ring, virtio 1.2 §2.7.8 `struct virtq_used_elem`.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct UsedElement {
    /// Index of the head of the chain that is returned.
    pub id: U32,
    /// Number of bytes that the device wrote to the front of the chain's writable part.
    pub len: U32,
}

/// Offset of `flags` in both rings.
pub(crate) const RING_FLAGS: usize = 0;
/// Offset of `idx` in both rings.
pub(crate) const RING_INDEX: usize = 2;
/// Offset of the entries in both rings.
pub(crate) const RING_ENTRIES: usize = 4;

/// Where the driver put a queue: what `ConfigureQueue` carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueConfig {
    /// Number of descriptors: a power of two up to [`MAX_QUEUE_SIZE`].
    pub size: u16,
    /// Guest-physical address of the descriptor table.
    pub desc: u64,
    /// Guest-physical address of the available ring.
    pub avail: u64,
    /// Guest-physical address of the used ring.
    pub used: u64,
}

impl QueueConfig {
    /// Bytes of the descriptor table.
    pub fn desc_len(&self) -> u64 {
        u64::from(self.size) * size_of::<Descriptor>() as u64
    }

    /// Bytes of the available ring, with `used_event`.
    pub fn avail_len(&self) -> u64 {
        6 + 2 * u64::from(self.size)
    }

    /// Bytes of the used ring, with `avail_event`.
    pub fn used_len(&self) -> u64 {
        6 + 8 * u64::from(self.size)
    }

    /// Checks the configuration against the specification and against `memory`.
    ///
    /// # Errors
    /// The first rule that it breaks.
    pub fn validate(&self, memory: &GuestMemory) -> Result<(), QueueConfigError> {
        if !self.size.is_power_of_two() || self.size > MAX_QUEUE_SIZE {
            return Err(QueueConfigError::Size(self.size));
        }
        for (part, addr, len, align) in [
            (RingPart::DescriptorTable, self.desc, self.desc_len(), 16),
            (RingPart::AvailableRing, self.avail, self.avail_len(), 2),
            (RingPart::UsedRing, self.used, self.used_len(), 4),
        ] {
            if !addr.is_multiple_of(align) {
                return Err(QueueConfigError::Misaligned { part, addr, align });
            }
            memory
                .slice(addr, len)
                .map_err(|source| QueueConfigError::OutOfRange { part, source })?;
        }
        Ok(())
    }
}
