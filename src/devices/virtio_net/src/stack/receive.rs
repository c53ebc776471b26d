//! Frames of the guest's: what they are, and what becomes of them.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Instant;

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetFrame, EthernetProtocol, Icmpv4Packet, Icmpv4Repr,
    Icmpv6Packet, Icmpv6Repr, IpProtocol, IpRepr, Ipv4Packet, Ipv4Repr, Ipv6Packet, Ipv6Repr,
    NdiscRepr, TcpControl, TcpPacket, TcpRepr, UdpPacket, UdpRepr,
};

use super::address::{
    ALL_NODES, ALL_NODES_MAC, DNS_PORT, GATEWAY, GATEWAY_MAC, ROUTER_LINK_LOCAL, is_dns,
    is_gateway, is_guest, mac_of, translate,
};
use super::wire::{self, ETHERNET, MAX_HEADER, Path};
use super::{Capabilities, FlowId, FlowKey, MAX_FRAME, Stack, dhcp, dns, ndp};

/// ICMP type of echo replies (RFC 792).
pub(super) const ECHO_REPLY: u8 = 0;
/// ICMPv6 type of echo replies (RFC 4443 §4.2).
pub(super) const ECHO_REPLY_V6: u8 = 129;
/// Bytes of an echo message before its data, in both versions.
pub(super) const ECHO_HEADER: usize = 8;

/// What the IP header of a packet says, of either version.
#[derive(Debug, Clone, Copy)]
struct Packet<'a> {
    from: IpAddr,
    to: IpAddr,
    hop_limit: u8,
    protocol: IpProtocol,
    payload: &'a [u8],
}

impl<'a> Packet<'a> {
    /// Parses IPv4; a fragment is not taken.
    fn parse_v4(bytes: &'a [u8]) -> Option<Self> {
        let packet = Ipv4Packet::new_checked(bytes).ok()?;
        let ip = Ipv4Repr::parse(&packet, &ChecksumCapabilities::default()).ok()?;
        let is_fragment = packet.more_frags() || packet.frag_offset() != 0;
        (!is_fragment).then(|| Self::new(&ip.into(), packet.payload()))
    }

    /// Parses IPv6; one with extension headers has their protocol.
    fn parse_v6(bytes: &'a [u8]) -> Option<Self> {
        let packet = Ipv6Packet::new_checked(bytes).ok()?;
        let ip = Ipv6Repr::parse(&packet).ok()?;
        Some(Self::new(&ip.into(), packet.payload()))
    }

    fn new(ip: &IpRepr, payload: &'a [u8]) -> Self {
        let (from, to) = (ip.src_addr().into(), ip.dst_addr().into());
        Self { from, to, hop_limit: ip.hop_limit(), protocol: ip.next_header(), payload }
    }

    /// The flow that it belongs to, by the ports in its payload.
    fn flow(&self, from: u16, to: u16) -> FlowKey {
        FlowKey { guest: self.from, guest_port: from, ip: self.to, port: to }
    }
}

impl Stack {
    /// Takes a frame of the guest's, without preamble and checksum. One that makes no sense is dropped.
    ///
    /// A TCP segment may be longer than the MTU: it is as good as the several that it stands for. `is_trusted` says
    /// that the guest has not computed the TCP or UDP checksum, because this network loses no bits.
    pub fn receive(&mut self, frame: &[u8], is_trusted: bool, now: Instant) {
        // What is malformed has no answer, so nobody needs to know.
        let _ = self.try_receive(frame, is_trusted, now);
    }

    fn try_receive(&mut self, frame: &[u8], is_trusted: bool, now: Instant) -> Option<()> {
        let is_large = frame.len() > MAX_FRAME;
        let frame = EthernetFrame::new_checked(frame).ok()?;
        let packet = match frame.ethertype() {
            EthernetProtocol::Arp => return self.receive_arp(frame.payload()),
            EthernetProtocol::Ipv4 => Packet::parse_v4(frame.payload())?,
            EthernetProtocol::Ipv6 => Packet::parse_v6(frame.payload())?,
            _ => return None,
        };
        // TCP and UDP checksums need not be checked where the guest has left them to us.
        let checksums = wire::checksums(is_trusted);
        match packet.protocol {
            IpProtocol::Tcp => self.receive_tcp(packet, &checksums, now),
            _ if is_large => None,
            IpProtocol::Udp => self.receive_udp(packet, &checksums, now),
            IpProtocol::Icmp => self.receive_icmp(packet, now),
            IpProtocol::Icmpv6 => self.receive_icmpv6(packet, now),
            _ => None,
        }
    }

    fn receive_arp(&mut self, packet: &[u8]) -> Option<()> {
        let packet = ArpPacket::new_checked(packet).ok()?;
        let ArpRepr::EthernetIpv4 {
            operation: ArpOperation::Request,
            source_hardware_addr,
            source_protocol_addr,
            target_protocol_addr,
            ..
        } = ArpRepr::parse(&packet).ok()?
        else {
            return None;
        };
        let mac = mac_of(target_protocol_addr.into())?;
        self.answers.push(|frame| {
            let (to_mac, to) = (source_hardware_addr, source_protocol_addr);
            wire::arp_reply(mac, target_protocol_addr, to_mac, to, frame);
        });
        Some(())
    }

    fn receive_tcp(
        &mut self,
        packet: Packet<'_>,
        checksums: &ChecksumCapabilities,
        now: Instant,
    ) -> Option<()> {
        if !is_guest(packet.from) {
            return None;
        }
        let segment = TcpPacket::new_checked(packet.payload).ok()?;
        let (from, to) = (packet.from.into(), packet.to.into());
        let segment = TcpRepr::parse(&segment, &from, &to, checksums).ok()?;
        let key = packet.flow(segment.src_port, segment.dst_port);
        if let Some(connection) = self.tcp.get_mut(&key) {
            let fate = connection.receive(&segment, now);
            self.settle(key, fate);
        } else if segment.control == TcpControl::Syn && segment.ack_number.is_none() {
            let peer = translate(key.ip, key.port, self.resolver.server(now));
            if peer.and_then(|peer| self.open_connection(key, peer, &segment, now)).is_none() {
                self.refuse(key, &segment);
            }
        } else {
            self.refuse(key, &segment);
        }
        Some(())
    }

    fn receive_udp(
        &mut self,
        packet: Packet<'_>,
        checksums: &ChecksumCapabilities,
        now: Instant,
    ) -> Option<()> {
        let datagram = UdpPacket::new_checked(packet.payload).ok()?;
        let (from, to) = (packet.from.into(), packet.to.into());
        let udp = UdpRepr::parse(&datagram, &from, &to, checksums).ok()?;
        let payload = datagram.payload();
        if udp.dst_port == dhcp::SERVER_PORT
            && (packet.to == GATEWAY || packet.to == Ipv4Addr::BROADCAST)
        {
            let reply = dhcp::answer(payload)?;
            let path = Path::new(self.guest_mac, GATEWAY.into(), Ipv4Addr::BROADCAST.into());
            self.answer_udp(path, dhcp::SERVER_PORT, dhcp::CLIENT_PORT, &reply);
            return Some(());
        }
        if !is_guest(packet.from) {
            return None;
        }
        let key = packet.flow(udp.src_port, udp.dst_port);
        let id = FlowId::Udp(key);
        if !self.flows.contains_key(&id) {
            let Some(peer) = translate(key.ip, key.port, self.resolver.server(now)) else {
                if is_dns(key.ip) && key.port == DNS_PORT {
                    let reply = dns::server_failure(payload)?;
                    self.answer_udp(self.path(key), DNS_PORT, key.guest_port, &reply);
                }
                return None;
            };
            self.open_flow(id, peer, now)?;
        }
        self.send(id, payload, now);
        Some(())
    }

    fn receive_icmp(&mut self, packet: Packet<'_>, now: Instant) -> Option<()> {
        if !packet.from.is_ipv4() || !is_guest(packet.from) {
            return None;
        }
        let message = Icmpv4Packet::new_checked(packet.payload).ok()?;
        let request = Icmpv4Repr::parse(&message, &ChecksumCapabilities::default()).ok()?;
        let Icmpv4Repr::EchoRequest { ident, .. } = request else { return None };
        self.receive_echo(packet, ident, ECHO_REPLY, now)
    }

    fn receive_icmpv6(&mut self, packet: Packet<'_>, now: Instant) -> Option<()> {
        let (IpAddr::V6(from), IpAddr::V6(to)) = (packet.from, packet.to) else { return None };
        let message = Icmpv6Packet::new_checked(packet.payload).ok()?;
        let message =
            Icmpv6Repr::parse(&from, &to, &message, &ChecksumCapabilities::default()).ok()?;
        match message {
            Icmpv6Repr::EchoRequest { ident, .. } => {
                self.receive_echo(packet, ident, ECHO_REPLY_V6, now)
            }
            Icmpv6Repr::Ndisc(_) if packet.hop_limit != ndp::HOP_LIMIT => None,
            Icmpv6Repr::Ndisc(NdiscRepr::RouterSolicit { .. }) => {
                self.advertise();
                Some(())
            }
            Icmpv6Repr::Ndisc(NdiscRepr::NeighborSolicit { target_addr, .. }) => {
                let mac = mac_of(target_addr.into())?;
                // Who asks without an address wants to know whether it may have this one (RFC 4862 §5.4).
                let is_solicited = !from.is_unspecified();
                let (to, to_mac) =
                    if is_solicited { (from, self.guest_mac) } else { (ALL_NODES, ALL_NODES_MAC) };
                let hop_limit = ndp::HOP_LIMIT;
                let path = Path { mac: to_mac, from: target_addr.into(), to: to.into(), hop_limit };
                self.answer_icmp(path, |message| {
                    ndp::neighbor_advertisement(target_addr, mac, is_solicited, message);
                });
                Some(())
            }
            _ => None,
        }
    }

    /// An echo request, which `packet` has whole: the router answers for itself, others are asked.
    fn receive_echo(
        &mut self,
        packet: Packet<'_>,
        ident: u16,
        reply: u8,
        now: Instant,
    ) -> Option<()> {
        if is_gateway(packet.to) || is_dns(packet.to) {
            let path = Path::new(self.guest_mac, packet.to, packet.from);
            self.answer_icmp(path, |message| {
                message.extend_from_slice(packet.payload);
                if let Some(kind) = message.first_mut() {
                    *kind = reply;
                }
            });
            return Some(());
        }
        if !is_guest(packet.from) {
            return None;
        }
        let key = packet.flow(ident, 0);
        let id = FlowId::Echo(key);
        if !self.flows.contains_key(&id) {
            let peer = translate(key.ip, 0, None)?;
            self.open_flow(id, peer, now)?;
        }
        self.send(id, packet.payload, now);
        Some(())
    }

    /// The router tells everybody about itself.
    pub(super) fn advertise(&mut self) {
        let path = Path {
            mac: ALL_NODES_MAC,
            from: ROUTER_LINK_LOCAL.into(),
            to: ALL_NODES.into(),
            hop_limit: ndp::HOP_LIMIT,
        };
        self.answer_icmp(path, ndp::router_advertisement);
    }

    pub(super) fn answer_tcp(&mut self, key: FlowKey, repr: &TcpRepr<'_>) {
        let path = self.path(key);
        let none = Capabilities::default();
        let (len, _) = path.tcp(repr, [&[], &[]], usize::MAX, none, &mut self.header);
        let header = self.header.get(..len).unwrap_or_default();
        self.answers.push(|frame| frame.extend_from_slice(header));
    }

    fn answer_udp(&mut self, path: Path, from: u16, to: u16, payload: &[u8]) {
        let (len, _) = path.udp(from, to, payload, Capabilities::default(), &mut self.header);
        let header = self.header.get(..len).unwrap_or_default();
        self.answers.push(|frame| {
            frame.extend_from_slice(header);
            frame.extend_from_slice(payload);
        });
    }

    /// Tells the guest that the peer of its datagrams does not take them on that port (RFC 792, RFC 4443 §3.1).
    pub(super) fn refuse_datagram(&mut self, key: FlowKey) {
        let (kind, code) = if key.ip.is_ipv4() { (3, 3) } else { (1, 4) };
        // What the guest sent, as far as a flow remembers it: the headers, by which the sender is found.
        let mut sent = [0; MAX_HEADER];
        let path = Path::new(GATEWAY_MAC, key.guest, key.ip);
        let none = Capabilities::default();
        let (len, _) = path.udp(key.guest_port, key.port, &[], none, &mut sent);
        let Some(sent) = sent.get(ETHERNET..len) else { return };
        self.answer_icmp(self.path(key), |message| {
            message.extend_from_slice(&[kind, code, 0, 0, 0, 0, 0, 0]);
            message.extend_from_slice(sent);
        });
    }

    /// Answers with the ICMP message that `fill` appends, but for its checksum.
    fn answer_icmp(&mut self, path: Path, fill: impl FnOnce(&mut Vec<u8>)) {
        self.message.clear();
        fill(&mut self.message);
        let len = path.icmp(&mut self.message, &mut self.header);
        let header = self.header.get(..len).unwrap_or_default();
        self.answers.push(|frame| {
            frame.extend_from_slice(header);
            frame.extend_from_slice(&self.message);
        });
    }
}
