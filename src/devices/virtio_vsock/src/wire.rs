//! The packet format of virtio 1.2 §5.10.6.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Context identifier of the host (virtio 1.2 §5.10.4).
pub(crate) const HOST_CID: u64 = 2;

/// `VIRTIO_VSOCK_TYPE_STREAM`.
pub(crate) const TYPE_STREAM: u16 = 1;

/// What every packet starts with, `struct virtio_vsock_hdr`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Header {
    /// Context identifier of the sender.
    pub src_cid: U64,
    /// Context identifier of the receiver.
    pub dst_cid: U64,
    /// Port of the sender.
    pub src_port: U32,
    /// Port of the receiver.
    pub dst_port: U32,
    /// Bytes of payload after the header.
    pub len: U32,
    /// Kind of socket; 1 is a stream.
    pub socket_type: U16,
    /// [`Operation`].
    pub op: U16,
    /// [`Shutdown`] for [`Operation::SHUTDOWN`], otherwise 0.
    pub flags: U32,
    /// Bytes of receive buffer that the sender has for this connection.
    pub buf_alloc: U32,
    /// Bytes that the sender's side has taken out of that buffer so far, modulo 2^32.
    pub fwd_cnt: U32,
}

/// Bytes of a [`Header`].
pub(crate) const HEADER_SIZE: usize = size_of::<Header>();
const _: () = assert!(HEADER_SIZE == 44);

/// `op` of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Operation(pub u16);

impl Operation {
    /// Asks for a connection.
    pub const REQUEST: Self = Self(1);
    /// Agrees to a connection.
    pub const RESPONSE: Self = Self(2);
    /// Ends a connection, or refuses it.
    pub const RST: Self = Self(3);
    /// The sender will not receive, or not send, any more.
    pub const SHUTDOWN: Self = Self(4);
    /// Payload.
    pub const RW: Self = Self(5);
    /// Tells the sender's credit.
    pub const CREDIT_UPDATE: Self = Self(6);
    /// Asks for a [`Operation::CREDIT_UPDATE`].
    pub const CREDIT_REQUEST: Self = Self(7);
}

bitflags::bitflags! {
    /// `flags` of [`Operation::SHUTDOWN`].
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub struct Shutdown: u32 {
        /// The sender will not receive any more.
        const RECEIVE = 1;
        /// The sender will not send any more.
        const SEND = 2;
    }
}
