//! What can be wrong with a queue, and whose fault it is.

use crate::memory::OutOfRange;

/// A queue configuration that no driver may ask for. The fault is the driver's; the queue does not come into being.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum QueueConfigError {
    /// virtio 1.2 §2.7: queue size is a power of two, at most 32768.
    #[error("Queue size {0} is not a power of two of at most 32768")]
    Size(u16),
    /// virtio 1.2 §2.7: alignment of the three parts is 16, 2 and 4.
    #[error("The {part} at {addr:#x} is not aligned to {align} bytes")]
    Misaligned {
        /// Which of the three parts.
        part: RingPart,
        /// Guest-physical address that the driver gave.
        addr: u64,
        /// Alignment that it must have, in bytes.
        align: u64,
    },
    /// A part does not lie in guest memory.
    #[error("The {part} is not in guest memory")]
    OutOfRange {
        /// Which of the three parts.
        part: RingPart,
        /// The range it would take.
        source: OutOfRange,
    },
}

/// The three parts of a split virtqueue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RingPart {
    /// Descriptor table, virtio 1.2 §2.7.5.
    DescriptorTable,
    /// Available ring (driver area), virtio 1.2 §2.7.6.
    AvailableRing,
    /// Used ring (device area), virtio 1.2 §2.7.8.
    UsedRing,
}

impl std::fmt::Display for RingPart {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::DescriptorTable => "descriptor table",
            Self::AvailableRing => "available ring",
            Self::UsedRing => "used ring",
        })
    }
}

/// A way in which the guest's driver broke the queue protocol.
///
/// The queue yields nothing more until it is configured anew, and its device reports `DEVICE_NEEDS_RESET`
/// (virtio 1.2 §2.1.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum QueueError {
    /// The available index ran ahead by more than the queue has room for.
    #[error("The driver made {ahead} buffers available in a queue of {size}")]
    AvailableIndex {
        /// How far the index is ahead of the device's.
        ahead: u16,
        /// Queue size.
        size: u16,
    },
    /// More chains are in the device's hands than the queue has descriptors, so some were made available twice.
    #[error("The driver made buffers available that the device still holds")]
    TooManyInFlight,
    /// A descriptor index outside its table.
    #[error("Descriptor index {index} is outside a table of {size}")]
    DescriptorIndex {
        /// The index.
        index: u16,
        /// Number of descriptors in the table it is for.
        size: u16,
    },
    /// virtio 1.2 §2.7.5.3.1: a chain longer than allowed, of which a loop is the usual form.
    #[error("A descriptor chain has a loop or more than {limit} descriptors")]
    ChainTooLong {
        /// Most descriptors that are accepted.
        limit: u16,
    },
    /// A buffer outside guest memory.
    #[error("A buffer is not in guest memory")]
    OutOfRange(#[from] OutOfRange),
    /// A buffer of no bytes.
    #[error("A buffer has no bytes")]
    ZeroLength,
    /// virtio 1.2 §2.7.4.2: writable descriptors come after all readable ones.
    #[error("A device-readable buffer follows a device-writable one")]
    ReadableAfterWritable,
    /// virtio 1.2 §2.7.5.3.1: an indirect descriptor although the feature was not negotiated.
    #[error("An indirect descriptor without VIRTIO_F_INDIRECT_DESC")]
    IndirectNotNegotiated,
    /// virtio 1.2 §2.7.5.3.1: no indirect descriptor within an indirect table.
    #[error("An indirect descriptor inside an indirect table")]
    NestedIndirect,
    /// virtio 1.2 §2.7.5.3.1: INDIRECT and NEXT exclude each other.
    #[error("An indirect descriptor with a next one")]
    IndirectWithNext,
    /// virtio 1.2 §2.7.5.3.2: the table's size is a multiple of 16 bytes and not zero.
    #[error("An indirect table of {0} bytes")]
    IndirectTableSize(u32),
    /// virtio 1.2 §2.7.5: a chain holds at most 2^32 bytes.
    #[error("A descriptor chain has 4 GiB or more")]
    ChainTooLarge,
}

/// The guest's chain holds fewer bytes than the request it should carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("The chain has {remaining} bytes where {wanted} are needed")]
pub struct ChainTooShort {
    /// Bytes that were needed.
    pub wanted: usize,
    /// Bytes that were left.
    pub remaining: usize,
}

impl From<ChainTooShort> for std::io::Error {
    fn from(error: ChainTooShort) -> Self {
        Self::new(std::io::ErrorKind::UnexpectedEof, error)
    }
}
