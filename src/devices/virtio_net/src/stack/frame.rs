//! What a frame for the guest is: bytes in up to three places, and the work on them that is left to the guest.

/// The 16-bit one's complement sum that is left to compute (virtio 1.2 §5.1.6.2, `VIRTIO_NET_HDR_F_NEEDS_CSUM`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartialChecksum {
    /// Where in the frame the summed bytes start.
    pub start: u16,
    /// Where after `start` the sum goes; the sum over the pseudo header is there already.
    pub offset: u16,
}

/// A frame that stands for several, of one TCP connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segmentation {
    /// Whether it is over IPv6.
    pub is_v6: bool,
    /// Bytes of payload in each segment but the last.
    pub size: u16,
    /// Bytes of the headers, which each segment gets.
    pub header_len: u16,
}

/// The work that is left to the receiver.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Offload {
    /// The checksum, if it is not computed.
    pub checksum: Option<PartialChecksum>,
    /// The segments, if it is not segmented.
    pub segmentation: Option<Segmentation>,
}

/// What the guest takes unfinished: what its driver has negotiated.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// Frames whose TCP or UDP checksum is not computed.
    pub checksum: bool,
    /// TCP over IPv4 in frames longer than the MTU.
    pub tso4: bool,
    /// TCP over IPv6 in frames longer than the MTU.
    pub tso6: bool,
}

/// A frame for the guest.
#[derive(Debug, Clone, Copy)]
pub struct Frame<'a> {
    /// The headers, or the whole frame.
    pub header: &'a [u8],
    /// What follows, which is in a ring.
    pub payload: [&'a [u8]; 2],
    /// What the guest has to do.
    pub offload: Offload,
}

impl<'a> Frame<'a> {
    /// A frame that is in one piece, and complete.
    pub(super) fn whole(bytes: &'a [u8]) -> Self {
        Self { header: bytes, payload: [&[], &[]], offload: Offload::default() }
    }

    /// Length in bytes.
    #[expect(clippy::len_without_is_empty, reason = "a frame has a header")]
    pub fn len(&self) -> usize {
        self.header.len() + self.payload.iter().map(|part| part.len()).sum::<usize>()
    }

    /// The bytes, in order.
    pub fn parts(&self) -> [&'a [u8]; 3] {
        let [first, second] = self.payload;
        [self.header, first, second]
    }
}
