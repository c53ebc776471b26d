//! The request format of virtio 1.2 §5.2.6 and the feature bits of §5.2.3.

use virtio_device::Features;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bytes of a sector: the unit of all positions and lengths on the wire, whatever the device's block size is.
pub const SECTOR_SIZE: u64 = 512;

/// Bytes of the answer to [`RequestType::GET_ID`], zero padded.
pub const ID_SIZE: usize = 20;

/// `VIRTIO_BLK_F_SEG_MAX`: the configuration has the most segments of a request.
pub const F_SEG_MAX: Features = Features::from_bits_retain(1 << 2);
/// `VIRTIO_BLK_F_RO`: the disk cannot be written.
pub const F_RO: Features = Features::from_bits_retain(1 << 5);
/// `VIRTIO_BLK_F_BLK_SIZE`: the configuration has the block size.
pub const F_BLK_SIZE: Features = Features::from_bits_retain(1 << 6);
/// `VIRTIO_BLK_F_FLUSH`: the device has a volatile cache, and the driver flushes it.
pub const F_FLUSH: Features = Features::from_bits_retain(1 << 9);
/// `VIRTIO_BLK_F_MQ`: several queues.
pub const F_MQ: Features = Features::from_bits_retain(1 << 12);
/// `VIRTIO_BLK_F_DISCARD`.
pub const F_DISCARD: Features = Features::from_bits_retain(1 << 13);
/// `VIRTIO_BLK_F_WRITE_ZEROES`.
pub const F_WRITE_ZEROES: Features = Features::from_bits_retain(1 << 14);

/// Most ranges that a discard or write-zeroes request may have: `max_discard_seg` and `max_write_zeroes_seg`.
pub const MAX_RANGES: u32 = 32;
/// Most sectors in each of them: `max_discard_sectors` and `max_write_zeroes_sectors`, 1 GiB.
pub const MAX_RANGE_SECTORS: u32 = 1 << 21;

/// `type` of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestType(pub u32);

impl RequestType {
    /// `VIRTIO_BLK_T_IN`: read.
    pub const IN: Self = Self(0);
    /// `VIRTIO_BLK_T_OUT`: write.
    pub const OUT: Self = Self(1);
    /// `VIRTIO_BLK_T_FLUSH`.
    pub const FLUSH: Self = Self(4);
    /// `VIRTIO_BLK_T_GET_ID`.
    pub const GET_ID: Self = Self(8);
    /// `VIRTIO_BLK_T_DISCARD`.
    pub const DISCARD: Self = Self(11);
    /// `VIRTIO_BLK_T_WRITE_ZEROES`.
    pub const WRITE_ZEROES: Self = Self(13);
}

/// The front of every request, `struct virtio_blk_req`.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RequestHeader {
    /// [`RequestType`].
    pub request_type: U32,
    /// Ignored.
    pub reserved: U32,
    /// First sector of a read or write; otherwise 0.
    pub sector: U64,
}

/// A range to discard or zero, `struct virtio_blk_discard_write_zeroes`.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SectorRange {
    /// First sector.
    pub sector: U64,
    /// Number of sectors.
    pub num_sectors: U32,
    /// Bit 0, for write-zeroes only: the sectors may be freed.
    pub flags: U32,
}

/// Bit 0 of [`SectorRange::flags`].
pub const RANGE_F_UNMAP: u32 = 1;

/// The byte at the end of every request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// Done.
    Ok = 0,
    /// Not done: the device or the request failed.
    IoError = 1,
    /// Not a request that the device knows.
    Unsupported = 2,
}

#[cfg(test)]
mod tests {
    use super::*;
    use virtio_bindings::virtio_blk as header;

    #[test]
    fn constants_match_the_headers() {
        for (ours, theirs) in [
            (F_SEG_MAX, header::VIRTIO_BLK_F_SEG_MAX),
            (F_RO, header::VIRTIO_BLK_F_RO),
            (F_BLK_SIZE, header::VIRTIO_BLK_F_BLK_SIZE),
            (F_FLUSH, header::VIRTIO_BLK_F_FLUSH),
            (F_MQ, header::VIRTIO_BLK_F_MQ),
            (F_DISCARD, header::VIRTIO_BLK_F_DISCARD),
            (F_WRITE_ZEROES, header::VIRTIO_BLK_F_WRITE_ZEROES),
        ] {
            assert_eq!(ours.bits(), 1 << theirs);
        }
        for (ours, theirs) in [
            (RequestType::IN, header::VIRTIO_BLK_T_IN),
            (RequestType::OUT, header::VIRTIO_BLK_T_OUT),
            (RequestType::FLUSH, header::VIRTIO_BLK_T_FLUSH),
            (RequestType::GET_ID, header::VIRTIO_BLK_T_GET_ID),
            (RequestType::DISCARD, header::VIRTIO_BLK_T_DISCARD),
            (RequestType::WRITE_ZEROES, header::VIRTIO_BLK_T_WRITE_ZEROES),
        ] {
            assert_eq!(ours.0, theirs);
        }
        for (ours, theirs) in [
            (Status::Ok, header::VIRTIO_BLK_S_OK),
            (Status::IoError, header::VIRTIO_BLK_S_IOERR),
            (Status::Unsupported, header::VIRTIO_BLK_S_UNSUPP),
        ] {
            assert_eq!(u32::from(ours as u8), theirs);
        }
    }
}
