//! Frames for the guest.

use std::net::Ipv4Addr;

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol,
    EthernetRepr, Icmpv4Packet, Icmpv4Repr, IpProtocol, Ipv4Packet, Ipv4Repr, TcpPacket, TcpRepr,
    UdpPacket, UdpRepr,
};

use super::GATEWAY_MAC;

/// Bytes of an Ethernet header.
const ETHERNET: usize = 14;
/// Bytes of an IPv4 header without options.
const IPV4: usize = 20;
/// Bytes of a UDP header.
const UDP: usize = 8;
/// Time to live of what the network sends.
const HOP_LIMIT: u8 = 64;

/// The addresses of a packet.
#[derive(Debug, Clone, Copy)]
pub(super) struct Path {
    pub(super) mac: EthernetAddress,
    pub(super) from: Ipv4Addr,
    pub(super) to: Ipv4Addr,
}

impl Path {
    fn frame(self, next_header: IpProtocol, len: usize, emit: impl FnOnce(&mut [u8])) -> Vec<u8> {
        let mut frame = ethernet(self.mac, GATEWAY_MAC, EthernetProtocol::Ipv4, IPV4 + len);
        let (_, packet) = frame.split_at_mut(ETHERNET);
        let (src_addr, dst_addr) = (self.from, self.to);
        Ipv4Repr { src_addr, dst_addr, next_header, payload_len: len, hop_limit: HOP_LIMIT }
            .emit(&mut Ipv4Packet::new_unchecked(&mut *packet), &ChecksumCapabilities::default());
        let (_, payload) = packet.split_at_mut(IPV4);
        emit(payload);
        frame
    }

    pub(super) fn tcp(self, repr: &TcpRepr<'_>) -> Vec<u8> {
        self.frame(IpProtocol::Tcp, repr.buffer_len(), |buffer| {
            repr.emit(
                &mut TcpPacket::new_unchecked(buffer),
                &self.from.into(),
                &self.to.into(),
                &ChecksumCapabilities::default(),
            );
        })
    }

    pub(super) fn udp(self, src_port: u16, dst_port: u16, payload: &[u8]) -> Vec<u8> {
        self.frame(IpProtocol::Udp, UDP + payload.len(), |buffer| {
            UdpRepr { src_port, dst_port }.emit(
                &mut UdpPacket::new_unchecked(buffer),
                &self.from.into(),
                &self.to.into(),
                payload.len(),
                |to| to.copy_from_slice(payload),
                &ChecksumCapabilities::default(),
            );
        })
    }

    pub(super) fn icmp(self, repr: &Icmpv4Repr<'_>) -> Vec<u8> {
        self.frame(IpProtocol::Icmp, repr.buffer_len(), |buffer| {
            repr.emit(&mut Icmpv4Packet::new_unchecked(buffer), &ChecksumCapabilities::default());
        })
    }
}

/// The answer to an ARP request for `ip`, which `mac` has.
pub(super) fn arp_reply(
    mac: EthernetAddress,
    ip: Ipv4Addr,
    to_mac: EthernetAddress,
    to_ip: Ipv4Addr,
) -> Vec<u8> {
    let repr = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Reply,
        source_hardware_addr: mac,
        source_protocol_addr: ip,
        target_hardware_addr: to_mac,
        target_protocol_addr: to_ip,
    };
    let mut frame = ethernet(to_mac, mac, EthernetProtocol::Arp, repr.buffer_len());
    let (_, packet) = frame.split_at_mut(ETHERNET);
    repr.emit(&mut ArpPacket::new_unchecked(packet));
    frame
}

fn ethernet(
    dst_addr: EthernetAddress,
    src_addr: EthernetAddress,
    ethertype: EthernetProtocol,
    len: usize,
) -> Vec<u8> {
    let mut frame = vec![0; ETHERNET + len];
    EthernetRepr { src_addr, dst_addr, ethertype }
        .emit(&mut EthernetFrame::new_unchecked(&mut frame));
    frame
}
