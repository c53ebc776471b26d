//! The headers of frames for the guest.

use std::net::{IpAddr, Ipv4Addr};

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol,
    EthernetRepr, IpProtocol, IpRepr, TcpPacket, TcpRepr, UdpPacket, checksum,
};

use super::address::GATEWAY_MAC;
use super::frame::{Capabilities, Offload, PartialChecksum, Segmentation};

/// Bytes of an Ethernet header.
pub(super) const ETHERNET: usize = 14;
/// Bytes of an IPv4 header without options.
pub(super) const IPV4: usize = 20;
/// Bytes of an IPv6 header without extensions.
pub(super) const IPV6: usize = 40;
/// Bytes of a UDP header.
pub(super) const UDP: usize = 8;
/// Bytes of a TCP header without options.
pub(super) const TCP: usize = 20;
/// Room for any headers that are made here: TCP with all options over IPv6.
pub(super) const MAX_HEADER: usize = ETHERNET + IPV6 + 60;
/// Time to live of what the network sends.
const HOP_LIMIT: u8 = 64;
/// Where the checksum is in a TCP header, in bytes.
const TCP_CHECKSUM: u16 = 16;
/// Where the checksum is in a UDP header, in bytes.
const UDP_CHECKSUM: u16 = 6;

/// A place for headers.
pub(super) type HeaderBuffer = [u8; MAX_HEADER];

/// The addresses of a packet: both IPv4 or both IPv6.
#[derive(Debug, Clone, Copy)]
pub(super) struct Path {
    pub(super) mac: EthernetAddress,
    pub(super) from: IpAddr,
    pub(super) to: IpAddr,
    pub(super) hop_limit: u8,
}

impl Path {
    pub(super) fn new(mac: EthernetAddress, from: IpAddr, to: IpAddr) -> Self {
        Self { mac, from, to, hop_limit: HOP_LIMIT }
    }

    /// Bytes before the transport's header.
    pub(super) fn overhead(self) -> usize {
        ETHERNET + if self.from.is_ipv4() { IPV4 } else { IPV6 }
    }

    /// Writes the headers of Ethernet and IP for `len` bytes after them; their length.
    fn network(self, protocol: IpProtocol, len: usize, out: &mut HeaderBuffer) -> usize {
        let (ethernet, packet) = out.split_at_mut(ETHERNET);
        IpRepr::new(self.from.into(), self.to.into(), protocol, len, self.hop_limit)
            .emit(packet, &ChecksumCapabilities::default());
        let is_v4 = self.from.is_ipv4();
        let ethertype = if is_v4 { EthernetProtocol::Ipv4 } else { EthernetProtocol::Ipv6 };
        EthernetRepr { src_addr: GATEWAY_MAC, dst_addr: self.mac, ethertype }
            .emit(&mut EthernetFrame::new_unchecked(ethernet));
        self.overhead()
    }

    /// The sum over the pseudo header (RFC 9293 §3.1, RFC 8200 §8.1).
    fn pseudo_header(self, protocol: IpProtocol, len: usize) -> u16 {
        checksum::pseudo_header(&self.from.into(), &self.to.into(), protocol, len as u32)
    }

    /// Writes the headers of a segment with `payload`, in parts of `segment_size` bytes if it is longer; their length.
    pub(super) fn tcp(
        self,
        repr: &TcpRepr<'_>,
        payload: [&[u8]; 2],
        segment_size: usize,
        capabilities: Capabilities,
        out: &mut HeaderBuffer,
    ) -> (usize, Offload) {
        let payload_len = payload[0].len() + payload[1].len();
        let len = repr.header_len() + payload_len;
        let start = self.network(IpProtocol::Tcp, len, out);
        let end = start + repr.header_len();
        let Some(header) = out.get_mut(start..end) else { return (0, Offload::default()) };
        let (from, to) = (self.from.into(), self.to.into());
        let mut packet = TcpPacket::new_unchecked(&mut *header);
        repr.emit(&mut packet, &from, &to, &ChecksumCapabilities::ignored());
        let place = PartialChecksum { start: start as u16, offset: TCP_CHECKSUM };
        let checksum =
            self.transport_checksum(IpProtocol::Tcp, place, header, payload, capabilities);
        let segmentation = (payload_len > segment_size).then(|| Segmentation {
            is_v6: self.from.is_ipv6(),
            size: segment_size as u16,
            header_len: end as u16,
        });
        (end, Offload { checksum, segmentation })
    }

    /// Writes the headers of a datagram with `payload`; their length.
    pub(super) fn udp(
        self,
        src_port: u16,
        dst_port: u16,
        payload: &[u8],
        capabilities: Capabilities,
        out: &mut HeaderBuffer,
    ) -> (usize, Offload) {
        let len = UDP + payload.len();
        let start = self.network(IpProtocol::Udp, len, out);
        let end = start + UDP;
        let Some(header) = out.get_mut(start..end) else { return (0, Offload::default()) };
        let mut packet = UdpPacket::new_unchecked(&mut *header);
        packet.set_src_port(src_port);
        packet.set_dst_port(dst_port);
        packet.set_len(len as u16);
        packet.set_checksum(0);
        let place = PartialChecksum { start: start as u16, offset: UDP_CHECKSUM };
        let payload = [payload, &[]];
        let checksum =
            self.transport_checksum(IpProtocol::Udp, place, header, payload, capabilities);
        (end, Offload { checksum, segmentation: None })
    }

    /// Fills in the checksum of a transport's `header`, in which it is zero, at the offset of `place`: or only what the
    /// guest goes on from, if it takes that.
    fn transport_checksum(
        self,
        protocol: IpProtocol,
        place: PartialChecksum,
        header: &mut [u8],
        payload: [&[u8]; 2],
        capabilities: Capabilities,
    ) -> Option<PartialChecksum> {
        let len = header.len() + payload[0].len() + payload[1].len();
        let pseudo = self.pseudo_header(protocol, len);
        let sum = if capabilities.checksum {
            pseudo
        } else {
            match !checksum::combine(&[pseudo, checksum::data(header), sum_of(payload)]) {
                // RFC 768: a sum of zero is sent as its complement.
                0 if protocol == IpProtocol::Udp => u16::MAX,
                sum => sum,
            }
        };
        put_u16(header, place.offset.into(), sum);
        capabilities.checksum.then_some(place)
    }

    /// Writes the headers in front of the ICMP message `message`, whose checksum is computed in place; their length.
    pub(super) fn icmp(self, message: &mut [u8], out: &mut HeaderBuffer) -> usize {
        const CHECKSUM: usize = 2;
        put_u16(message, CHECKSUM, 0);
        let sum = checksum::data(message);
        let (protocol, sum) = if self.from.is_ipv4() {
            (IpProtocol::Icmp, sum)
        } else {
            let pseudo = self.pseudo_header(IpProtocol::Icmpv6, message.len());
            (IpProtocol::Icmpv6, checksum::combine(&[pseudo, sum]))
        };
        put_u16(message, CHECKSUM, !sum);
        self.network(protocol, message.len(), out)
    }
}

/// The one's complement sum over both parts.
fn sum_of([first, second]: [&[u8]; 2]) -> u16 {
    let sum = checksum::data(second);
    // RFC 1071 §2.(B): what starts at an odd place is summed with its bytes swapped.
    let sum = if first.len().is_multiple_of(2) { sum } else { sum.swap_bytes() };
    checksum::combine(&[checksum::data(first), sum])
}

pub(super) fn put_u16(bytes: &mut [u8], at: usize, value: u16) {
    if let Some(to) = bytes.get_mut(at..at + 2) {
        to.copy_from_slice(&value.to_be_bytes());
    }
}

/// Appends the answer to an ARP request for `ip`, which `mac` has.
pub(super) fn arp_reply(
    mac: EthernetAddress,
    ip: Ipv4Addr,
    to_mac: EthernetAddress,
    to_ip: Ipv4Addr,
    frame: &mut Vec<u8>,
) {
    let repr = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Reply,
        source_hardware_addr: mac,
        source_protocol_addr: ip,
        target_hardware_addr: to_mac,
        target_protocol_addr: to_ip,
    };
    frame.resize(ETHERNET + repr.buffer_len(), 0);
    let (ethernet, packet) = frame.split_at_mut(ETHERNET);
    EthernetRepr { src_addr: mac, dst_addr: to_mac, ethertype: EthernetProtocol::Arp }
        .emit(&mut EthernetFrame::new_unchecked(ethernet));
    repr.emit(&mut ArpPacket::new_unchecked(packet));
}

/// What is checked of what the guest sends: all, but for TCP and UDP if `is_trusted` says that there is nothing yet.
pub(super) fn checksums(is_trusted: bool) -> ChecksumCapabilities {
    let mut checksums = ChecksumCapabilities::default();
    if is_trusted {
        checksums.tcp = smoltcp::phy::Checksum::None;
        checksums.udp = smoltcp::phy::Checksum::None;
    }
    checksums
}

#[cfg(test)]
mod tests {
    use super::super::tcp::bare_segment;
    use super::*;
    use smoltcp::wire::{TcpControl, TcpSeqNumber, UdpRepr};

    #[test]
    fn a_sum_over_two_parts_is_the_sum_over_the_whole() {
        let bytes: Vec<u8> = (0..=255).cycle().take(1001).collect();
        for at in [0, 1, 2, 333, 1000, 1001] {
            let (first, second) = bytes.split_at(at);
            // Zero has two forms.
            let normal = |sum: u16| sum % u16::MAX;
            assert_eq!(normal(sum_of([first, second])), normal(checksum::data(&bytes)), "{at}");
        }
    }

    #[test]
    fn headers_of_both_versions_can_be_read_back() {
        let repr = TcpRepr {
            seq_number: TcpSeqNumber(7),
            ack_number: Some(TcpSeqNumber(9)),
            window_len: 100,
            ..bare_segment(80, 4000, TcpControl::Psh)
        };
        for (from, to) in [("10.0.2.2", "10.0.2.15"), ("fec0::2", "fec0::15")] {
            let path = Path::new(GATEWAY_MAC, from.parse().unwrap(), to.parse().unwrap());
            let mut header = [0; MAX_HEADER];
            let payload: [&[u8]; 2] = [b"hello", b" world"];
            let none = Capabilities::default();
            let (len, offload) = path.tcp(&repr, payload, 1460, none, &mut header);
            assert_eq!(offload, Offload::default());
            let frame = [&header[..len], payload[0], payload[1]].concat();
            let packet = TcpPacket::new_checked(&frame[path.overhead()..]).unwrap();
            let (from, to) = (path.from.into(), path.to.into());
            let parsed = TcpRepr::parse(&packet, &from, &to, &checksums(false)).unwrap();
            assert_eq!(parsed, TcpRepr { payload: b"hello world", ..repr });

            let (len, _) = path.udp(53, 4000, b"answer", none, &mut header);
            let frame = [&header[..len], b"answer"].concat();
            let packet = UdpPacket::new_checked(&frame[path.overhead()..]).unwrap();
            let parsed = UdpRepr::parse(&packet, &from, &to, &checksums(false)).unwrap();
            assert_eq!(parsed, UdpRepr { src_port: 53, dst_port: 4000 });
        }
    }

    #[test]
    fn a_long_segment_is_left_to_the_guest_to_cut() {
        let path = Path::new(GATEWAY_MAC, [10, 0, 2, 2].into(), [10, 0, 2, 15].into());
        let repr = bare_segment(1, 2, TcpControl::None);
        let all = Capabilities { checksum: true, tso4: true, tso6: true };
        let payload = [0; 60_000];
        let (len, offload) = path.tcp(&repr, [&payload, &[]], 1460, all, &mut [0; MAX_HEADER]);
        assert_eq!(len, ETHERNET + IPV4 + TCP);
        assert_eq!(offload.checksum, Some(PartialChecksum { start: 34, offset: 16 }));
        let segmentation = Segmentation { is_v6: false, size: 1460, header_len: 54 };
        assert_eq!(offload.segmentation, Some(segmentation));
    }
}
