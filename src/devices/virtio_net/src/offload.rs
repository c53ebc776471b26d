//! The header of each frame in a queue (virtio 1.2 §5.1.6, `struct virtio_net_hdr`): what is left of the work on the
//! frame to whoever gets it.

use virtio_device::Features;

use crate::stack::{Capabilities, Offload};

/// Feature bits of the network device (§5.1.3).
pub mod feature {
    use virtio_device::Features;

    /// `VIRTIO_NET_F_CSUM`: the driver may leave checksums to the device.
    pub const CSUM: Features = Features::from_bits_retain(1 << 0);
    /// `VIRTIO_NET_F_GUEST_CSUM`: the device may leave checksums to the driver.
    pub const GUEST_CSUM: Features = Features::from_bits_retain(1 << 1);
    /// `VIRTIO_NET_F_GUEST_TSO4`: the device may leave the segmentation of TCP over IPv4 to the driver.
    pub const GUEST_TSO4: Features = Features::from_bits_retain(1 << 7);
    /// `VIRTIO_NET_F_GUEST_TSO6`: the device may leave the segmentation of TCP over IPv6 to the driver.
    pub const GUEST_TSO6: Features = Features::from_bits_retain(1 << 8);
    /// `VIRTIO_NET_F_HOST_TSO4`: the driver may leave the segmentation of TCP over IPv4 to the device.
    pub const HOST_TSO4: Features = Features::from_bits_retain(1 << 11);
    /// `VIRTIO_NET_F_HOST_TSO6`: the driver may leave the segmentation of TCP over IPv6 to the device.
    pub const HOST_TSO6: Features = Features::from_bits_retain(1 << 12);
    /// `VIRTIO_NET_F_MRG_RXBUF`: a frame for the driver may take several buffers.
    pub const MRG_RXBUF: Features = Features::from_bits_retain(1 << 15);
}

/// Size of the header in bytes, which ends with `num_buffers` for all modern drivers.
pub const HEADER: usize = 12;

/// `flags`: the checksum is left to the receiver.
const NEEDS_CSUM: u8 = 1;
/// `gso_type`: the frame is not to be segmented.
const GSO_NONE: u8 = 0;
/// `gso_type`: TCP over IPv4.
const GSO_TCPV4: u8 = 1;
/// `gso_type`: TCP over IPv6.
const GSO_TCPV6: u8 = 4;

/// What the guest's driver leaves to this device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transmitted {
    /// The checksum is not computed.
    pub needs_checksum: bool,
    /// The frame stands for several.
    pub is_large: bool,
}

impl Transmitted {
    /// Reads the header in front of a frame of `len` bytes; none if it asks for what was not negotiated or cannot be.
    ///
    /// `hdr_len` is a hint that a device must not rely on (§5.1.6.2.2), and is not looked at.
    pub fn parse(header: &[u8; HEADER], len: usize, negotiated: Features) -> Option<Self> {
        let word = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
        let [flags, gso_type, ..] = *header;
        let needs_checksum = flags & NEEDS_CSUM != 0;
        if needs_checksum {
            let (start, offset) = (usize::from(word(6)), usize::from(word(8)));
            if !negotiated.contains(feature::CSUM) || start + offset + 2 > len {
                return None;
            }
        }
        let wanted = match gso_type {
            GSO_NONE => return Some(Self { needs_checksum, is_large: false }),
            GSO_TCPV4 => feature::HOST_TSO4,
            GSO_TCPV6 => feature::HOST_TSO6,
            _ => return None,
        };
        let gso_size = word(4);
        (negotiated.contains(wanted) && needs_checksum && gso_size != 0)
            .then_some(Self { needs_checksum, is_large: true })
    }
}

/// The header of a frame for the guest that takes `buffers` buffers (§5.1.6.4.1).
pub fn received(offload: &Offload, buffers: u16) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    let mut put = |at: usize, value: u16| header[at..at + 2].copy_from_slice(&value.to_le_bytes());
    put(10, buffers);
    if let Some(checksum) = offload.checksum {
        put(6, checksum.start);
        put(8, checksum.offset);
    }
    if let Some(segmentation) = offload.segmentation {
        put(2, segmentation.header_len);
        put(4, segmentation.size);
        header[1] = if segmentation.is_v6 { GSO_TCPV6 } else { GSO_TCPV4 };
    }
    header[0] = if offload.checksum.is_some() { NEEDS_CSUM } else { 0 };
    header
}

/// What a driver with these features takes unfinished. Segmentation needs checksums (§5.1.3.1).
pub fn capabilities(negotiated: Features) -> Capabilities {
    let checksum = negotiated.contains(feature::GUEST_CSUM);
    Capabilities {
        checksum,
        tso4: checksum && negotiated.contains(feature::GUEST_TSO4),
        tso6: checksum && negotiated.contains(feature::GUEST_TSO6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stack::{PartialChecksum, Segmentation};

    fn all() -> Features {
        feature::CSUM | feature::HOST_TSO4 | feature::HOST_TSO6
    }

    #[test]
    fn a_header_that_asks_for_nothing_is_fine() {
        let parsed = Transmitted::parse(&[0; HEADER], 60, Features::empty());
        assert_eq!(parsed, Some(Transmitted { needs_checksum: false, is_large: false }));
    }

    #[test]
    fn checksums_beyond_the_frame_are_refused() {
        // start 34, offset 16: the sum ends at byte 52.
        let header = [1, 0, 0, 0, 0, 0, 34, 0, 16, 0, 0, 0];
        assert!(Transmitted::parse(&header, 52, all()).is_some());
        assert_eq!(Transmitted::parse(&header, 51, all()), None);
        assert_eq!(Transmitted::parse(&header, 60, Features::empty()), None, "not negotiated");
        let header = [1, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0];
        assert_eq!(Transmitted::parse(&header, 1514, all()), None);
    }

    #[test]
    fn only_negotiated_segmentation_with_a_size_and_a_checksum() {
        let header = |flags, kind, size: u8| [flags, kind, 0xff, 0xff, size, 0, 34, 0, 16, 0, 0, 0];
        assert!(Transmitted::parse(&header(1, 1, 200), 9000, all()).unwrap().is_large);
        assert!(Transmitted::parse(&header(1, 4, 200), 9000, all()).unwrap().is_large);
        for (flags, kind, size) in [(0, 1, 200), (1, 1, 0), (1, 3, 200), (1, 2, 200), (1, 0x81, 9)]
        {
            assert_eq!(Transmitted::parse(&header(flags, kind, size), 9000, all()), None, "{kind}");
        }
        assert_eq!(Transmitted::parse(&header(1, 1, 200), 9000, feature::CSUM), None);
        let only_v6 = feature::CSUM | feature::HOST_TSO6;
        assert_eq!(Transmitted::parse(&header(1, 1, 200), 9000, only_v6), None);
    }

    #[test]
    fn headers_for_the_guest_follow_the_specification() {
        assert_eq!(received(&Offload::default(), 1), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
        let offload = Offload {
            checksum: Some(PartialChecksum { start: 54, offset: 16 }),
            segmentation: Some(Segmentation { is_v6: true, size: 1440, header_len: 74 }),
        };
        assert_eq!(received(&offload, 18), [1, 4, 74, 0, 0xa0, 5, 54, 0, 16, 0, 18, 0]);
    }

    #[test]
    fn segmentation_without_checksums_is_none() {
        let tso = feature::GUEST_TSO4 | feature::GUEST_TSO6;
        assert_eq!(capabilities(tso), Capabilities::default());
        let all = capabilities(tso | feature::GUEST_CSUM);
        assert_eq!(all, Capabilities { checksum: true, tso4: true, tso6: true });
    }
}
