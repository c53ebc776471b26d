//! The network that the guest is on: a router with address translation whose outside is this process's sockets.
//!
//! Its addresses are those of QEMU's user network: 10.0.2.0/24, the router and DHCP server at .2, a name server at .3,
//! and .15 for the guest. The router's address also stands for the host's own loopback. Each TCP connection and UDP
//! flow of the guest has a host socket; what the guest and its peers say to each other never meets on one TCP
//! connection, so neither side's segments, windows or losses are the other's.

mod dhcp;
mod reactor;
mod tcp;
mod udp;
mod wire;

#[cfg(test)]
mod stack_test;

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Instant;

use mio::net::TcpStream;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol,
    Icmpv4Packet, Icmpv4Repr, IpProtocol, Ipv4Packet, Ipv4Repr, TcpControl, TcpPacket, TcpRepr,
    UdpPacket, UdpRepr,
};

use reactor::Reactor;
use tcp::{Connection, Fate};
use udp::Flow;
use wire::Path;

/// The router, and the host's loopback.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
/// The name server.
pub const DNS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);
/// The guest.
pub const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
/// Mask of the guest's network.
pub const NETMASK: Ipv4Addr = Ipv4Addr::new(255, 255, 255, 0);
/// Longest frame in bytes: an Ethernet header and [`MTU`].
pub const MAX_FRAME: usize = 14 + MTU;
/// Longest IP packet in bytes.
pub const MTU: usize = 1500;

/// The router's hardware address.
const GATEWAY_MAC: EthernetAddress = EthernetAddress([0x52, 0x55, 10, 0, 2, 2]);
/// The name server's hardware address.
const DNS_MAC: EthernetAddress = EthernetAddress([0x52, 0x55, 10, 0, 2, 3]);

/// UDP and TCP port of name servers.
const DNS_PORT: u16 = 53;
/// Most TCP connections at a time, and most UDP flows.
const MAX_FLOWS: usize = 1024;
/// Most answers of the router itself that wait for a buffer of the guest's; further ones are lost.
const MAX_ANSWERS: usize = 256;

/// A flow of the guest's, as the guest names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct FlowKey {
    guest_port: u16,
    ip: Ipv4Addr,
    port: u16,
}

/// What a token stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum FlowId {
    Tcp(FlowKey),
    Udp(FlowKey),
}

/// The network, with one guest on it.
///
/// Time is an argument; calls with an earlier time than before do no harm.
#[derive(Debug)]
pub struct Stack {
    guest_mac: EthernetAddress,
    reactor: Reactor,
    name_server: Option<IpAddr>,
    tcp: HashMap<FlowKey, Connection>,
    udp: HashMap<FlowKey, Flow>,
    tokens: HashMap<usize, FlowId>,
    next_token: usize,
    /// Of the router itself.
    answers: VecDeque<Vec<u8>>,
    /// Flows that may have something for the guest, each once.
    pending: VecDeque<FlowId>,
    /// Not after the first timer of any flow.
    deadline: Option<Instant>,
    /// For initial sequence numbers.
    secret: RandomState,
}

impl Stack {
    /// A network whose guest has the hardware address `guest_mac`, and this machine's name server.
    ///
    /// # Errors
    /// When the host has no poll object or thread left.
    pub fn new(guest_mac: [u8; 6]) -> io::Result<Self> {
        Ok(Self {
            guest_mac: EthernetAddress(guest_mac),
            reactor: Reactor::new()?,
            name_server: host_name_server(),
            tcp: HashMap::new(),
            udp: HashMap::new(),
            tokens: HashMap::new(),
            next_token: 0,
            answers: VecDeque::new(),
            pending: VecDeque::new(),
            deadline: None,
            secret: RandomState::new(),
        })
    }

    /// Has `waker` called, from another thread, whenever [`Stack::handle_events`] is to be.
    pub fn set_waker(&self, waker: impl Fn() + Send + 'static) {
        self.reactor.set_waker(waker);
    }

    /// Forgets everything about the guest and closes its connections.
    pub fn reset(&mut self) {
        for (_, mut connection) in self.tcp.drain() {
            self.reactor.remove(&mut connection.stream);
        }
        for (_, mut flow) in self.udp.drain() {
            self.reactor.remove(&mut flow.socket);
        }
        self.tokens.clear();
        self.answers.clear();
        self.pending.clear();
        self.deadline = None;
    }

    /// When [`Stack::expire`] is to be called, if ever.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Whether [`Stack::next_frame`] may have one.
    pub fn has_frames(&self) -> bool {
        !self.answers.is_empty() || !self.pending.is_empty()
    }

    /// Takes a frame of the guest's, without preamble and checksum. One that makes no sense is dropped.
    pub fn receive(&mut self, frame: &[u8], now: Instant) {
        // What is malformed has no answer, so nobody needs to know.
        let _ = self.try_receive(frame, now);
    }

    fn try_receive(&mut self, frame: &[u8], now: Instant) -> Option<()> {
        let frame = EthernetFrame::new_checked(frame).ok()?;
        match frame.ethertype() {
            EthernetProtocol::Arp => self.receive_arp(frame.payload()),
            EthernetProtocol::Ipv4 => self.receive_ipv4(frame.payload(), now),
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
        let mac = match target_protocol_addr {
            GATEWAY => GATEWAY_MAC,
            DNS => DNS_MAC,
            _ => return None,
        };
        self.answer(wire::arp_reply(
            mac,
            target_protocol_addr,
            source_hardware_addr,
            source_protocol_addr,
        ));
        Some(())
    }

    fn receive_ipv4(&mut self, packet: &[u8], now: Instant) -> Option<()> {
        let packet = Ipv4Packet::new_checked(packet).ok()?;
        let ip = Ipv4Repr::parse(&packet, &ChecksumCapabilities::default()).ok()?;
        if packet.more_frags() || packet.frag_offset() != 0 {
            return None;
        }
        match ip.next_header {
            IpProtocol::Udp => self.receive_udp(ip, packet.payload(), now),
            _ if ip.src_addr != GUEST => None,
            IpProtocol::Tcp => self.receive_tcp(ip, packet.payload(), now),
            IpProtocol::Icmp => self.receive_icmp(ip, packet.payload()),
            _ => None,
        }
    }

    fn receive_icmp(&mut self, ip: Ipv4Repr, packet: &[u8]) -> Option<()> {
        let packet = Icmpv4Packet::new_checked(packet).ok()?;
        let request = Icmpv4Repr::parse(&packet, &ChecksumCapabilities::default()).ok()?;
        let Icmpv4Repr::EchoRequest { ident, seq_no, data } = request else { return None };
        if !matches!(ip.dst_addr, GATEWAY | DNS) {
            return None;
        }
        let reply = Icmpv4Repr::EchoReply { ident, seq_no, data };
        self.answer(self.path(ip.dst_addr).icmp(&reply));
        Some(())
    }

    fn receive_udp(&mut self, ip: Ipv4Repr, packet: &[u8], now: Instant) -> Option<()> {
        let packet = UdpPacket::new_checked(packet).ok()?;
        let caps = ChecksumCapabilities::default();
        let (from, to) = (ip.src_addr.into(), ip.dst_addr.into());
        let udp = UdpRepr::parse(&packet, &from, &to, &caps).ok()?;
        if udp.dst_port == dhcp::SERVER_PORT && matches!(ip.dst_addr, GATEWAY | Ipv4Addr::BROADCAST)
        {
            let reply = dhcp::answer(packet.payload())?;
            let path = Path { mac: self.guest_mac, from: GATEWAY, to: Ipv4Addr::BROADCAST };
            self.answer(path.udp(dhcp::SERVER_PORT, dhcp::CLIENT_PORT, &reply));
            return Some(());
        }
        if ip.src_addr != GUEST {
            return None;
        }
        let key = FlowKey { guest_port: udp.src_port, ip: ip.dst_addr, port: udp.dst_port };
        let Some(peer) = self.translate(key.ip, key.port) else {
            if key.ip == DNS && key.port == DNS_PORT {
                let reply = udp::server_failure(packet.payload())?;
                self.answer(self.path(DNS).udp(DNS_PORT, key.guest_port, &reply));
            }
            return None;
        };
        if !self.udp.contains_key(&key) {
            self.open_flow(key, peer)?;
        }
        let flow = self.udp.get_mut(&key)?;
        flow.send(packet.payload(), now);
        arm(&mut self.deadline, Some(flow.expiry()));
        Some(())
    }

    fn open_flow(&mut self, key: FlowKey, peer: SocketAddr) -> Option<()> {
        if self.udp.len() >= MAX_FLOWS {
            // The one that was used least recently makes room.
            let (&oldest, _) = self.udp.iter().min_by_key(|(_, flow)| flow.expiry())?;
            self.close(FlowId::Udp(oldest));
        }
        let mut socket = udp::connect(peer)
            .inspect_err(|e| tracing::debug!(%peer, error = e as &dyn std::error::Error, "No flow"))
            .ok()?;
        let token = self.register(&mut socket, FlowId::Udp(key))?;
        self.udp.insert(key, Flow::new(socket, token));
        Some(())
    }

    fn receive_tcp(&mut self, ip: Ipv4Repr, packet: &[u8], now: Instant) -> Option<()> {
        let packet = TcpPacket::new_checked(packet).ok()?;
        let caps = ChecksumCapabilities::default();
        let (from, to) = (ip.src_addr.into(), ip.dst_addr.into());
        let segment = TcpRepr::parse(&packet, &from, &to, &caps).ok()?;
        let key = FlowKey { guest_port: segment.src_port, ip: ip.dst_addr, port: segment.dst_port };
        if let Some(connection) = self.tcp.get_mut(&key) {
            let fate = connection.receive(&segment, now);
            self.settle(key, fate);
        } else if segment.control == TcpControl::Syn && segment.ack_number.is_none() {
            if self.open_connection(key, &segment).is_none() {
                self.refuse(key, &segment);
            }
        } else {
            self.refuse(key, &segment);
        }
        Some(())
    }

    fn open_connection(&mut self, key: FlowKey, syn: &TcpRepr<'_>) -> Option<()> {
        let peer = self.translate(key.ip, key.port)?;
        if self.tcp.len() >= MAX_FLOWS {
            return None;
        }
        let mut stream = TcpStream::connect(peer).ok()?;
        let token = self.register(&mut stream, FlowId::Tcp(key))?;
        let initial = self.secret.hash_one((key, token)) as u32;
        self.tcp.insert(key, Connection::new(stream, token, syn, initial));
        Some(())
    }

    /// Answers a segment of no connection (RFC 9293 §3.10.7.1).
    fn refuse(&mut self, key: FlowKey, segment: &TcpRepr<'_>) {
        if let Some(reset) = tcp::refusal(segment) {
            self.answer(self.path(key.ip).tcp(&reset));
        }
    }

    /// Acts on what a call of a connection has led to.
    fn settle(&mut self, key: FlowKey, fate: Fate) {
        match fate {
            Fate::Open => {
                self.schedule(FlowId::Tcp(key));
                let timer = self.tcp.get(&key).and_then(Connection::timer);
                arm(&mut self.deadline, timer);
            }
            Fate::Closed => self.close(FlowId::Tcp(key)),
            Fate::Reset => {
                if let Some(connection) = self.tcp.get(&key) {
                    let reset = connection.reset(key.port, key.guest_port);
                    self.answer(self.path(key.ip).tcp(&reset));
                }
                self.close(FlowId::Tcp(key));
            }
        }
    }

    /// Looks at the sockets that became ready.
    pub fn handle_events(&mut self, now: Instant) {
        for (token, ready) in self.reactor.take_ready() {
            match self.tokens.get(&token) {
                Some(&FlowId::Tcp(key)) => {
                    let Some(connection) = self.tcp.get_mut(&key) else { continue };
                    let fate = connection.ready(ready, now);
                    self.settle(key, fate);
                }
                Some(&id @ FlowId::Udp(key)) => {
                    let Some(flow) = self.udp.get_mut(&key) else { continue };
                    flow.ready(ready);
                    self.schedule(id);
                }
                // It was closed in the meantime.
                None => {}
            }
        }
    }

    /// Acts on the timers that have run out.
    pub fn expire(&mut self, now: Instant) {
        let idle: Vec<_> =
            self.udp.iter().filter(|(_, flow)| flow.expiry() <= now).map(|(key, _)| *key).collect();
        for key in idle {
            self.close(FlowId::Udp(key));
        }
        let due = |connection: &Connection| connection.timer().is_some_and(|timer| timer <= now);
        let late: Vec<_> = self.tcp.iter().filter(|(_, c)| due(c)).map(|(key, _)| *key).collect();
        for key in late {
            if let Some(connection) = self.tcp.get_mut(&key) {
                let fate = connection.timed_out(now);
                self.settle(key, fate);
            }
        }
        let flows = self.udp.values().map(Flow::expiry);
        self.deadline = flows.chain(self.tcp.values().filter_map(Connection::timer)).min();
    }

    /// The next frame for the guest, if there is one. Flows take turns.
    pub fn next_frame(&mut self, now: Instant) -> Option<Vec<u8>> {
        if let Some(answer) = self.answers.pop_front() {
            return Some(answer);
        }
        while let Some(id) = self.pending.pop_front() {
            let frame = match id {
                FlowId::Tcp(key) => self.next_segment(key, now),
                FlowId::Udp(key) => self.next_datagram(key, now),
            };
            if frame.is_some() {
                return frame;
            }
            if let Some(answer) = self.answers.pop_front() {
                return Some(answer);
            }
        }
        None
    }

    fn next_segment(&mut self, key: FlowKey, now: Instant) -> Option<Vec<u8>> {
        let path = self.path(key.ip);
        let connection = self.tcp.get_mut(&key)?;
        connection.is_pending = false;
        let mut payload = Vec::new();
        let frame = match connection.next_segment(key.port, key.guest_port, &mut payload, now) {
            Ok(None) => None,
            Ok(Some(segment)) => Some(path.tcp(&TcpRepr { payload: &payload, ..segment })),
            Err(fate) => {
                self.settle(key, fate);
                return None;
            }
        };
        arm(&mut self.deadline, connection.timer());
        if frame.is_some() {
            self.schedule(FlowId::Tcp(key));
        } else if connection.is_over() {
            self.close(FlowId::Tcp(key));
        }
        frame
    }

    fn next_datagram(&mut self, key: FlowKey, now: Instant) -> Option<Vec<u8>> {
        let path = self.path(key.ip);
        let flow = self.udp.get_mut(&key)?;
        flow.is_pending = false;
        let datagram = flow.receive(now)?;
        self.schedule(FlowId::Udp(key));
        Some(path.udp(key.port, key.guest_port, &datagram))
    }

    fn schedule(&mut self, id: FlowId) {
        let is_pending = match id {
            FlowId::Tcp(key) => self.tcp.get_mut(&key).map(|flow| &mut flow.is_pending),
            FlowId::Udp(key) => self.udp.get_mut(&key).map(|flow| &mut flow.is_pending),
        };
        if let Some(is_pending) = is_pending
            && !std::mem::replace(is_pending, true)
        {
            self.pending.push_back(id);
        }
    }

    fn close(&mut self, id: FlowId) {
        let token = match id {
            FlowId::Tcp(key) => self.tcp.remove(&key).map(|mut connection| {
                self.reactor.remove(&mut connection.stream);
                connection.token
            }),
            FlowId::Udp(key) => self.udp.remove(&key).map(|mut flow| {
                self.reactor.remove(&mut flow.socket);
                flow.token
            }),
        };
        if let Some(token) = token {
            self.tokens.remove(&token);
            // So that a flow of the same name later is there once.
            self.pending.retain(|pending| *pending != id);
        }
    }

    fn register(&mut self, socket: &mut impl mio::event::Source, id: FlowId) -> Option<usize> {
        let token = self.next_token;
        self.reactor.add(socket, token).ok()?;
        self.next_token += 1;
        self.tokens.insert(token, id);
        Some(token)
    }

    /// Where on the host's networks an address of the guest's is; none if nowhere.
    fn translate(&self, ip: Ipv4Addr, port: u16) -> Option<SocketAddr> {
        let is_local = ip & NETMASK == GATEWAY & NETMASK;
        let ip = match ip {
            GATEWAY => Ipv4Addr::LOCALHOST.into(),
            DNS if port == DNS_PORT => self.name_server?,
            _ if is_local || ip.is_loopback() || ip.is_multicast() => return None,
            _ if ip.is_broadcast() || ip.is_unspecified() => return None,
            _ => ip.into(),
        };
        Some((ip, port).into())
    }

    fn path(&self, from: Ipv4Addr) -> Path {
        Path { mac: self.guest_mac, from, to: GUEST }
    }

    fn answer(&mut self, frame: Vec<u8>) {
        if self.answers.len() < MAX_ANSWERS {
            self.answers.push_back(frame);
        }
    }
}

/// Makes `deadline` no later than `timer`.
fn arm(deadline: &mut Option<Instant>, timer: Option<Instant>) {
    *deadline = [*deadline, timer].into_iter().flatten().min();
}

/// The first name server of this machine's resolver configuration.
fn host_name_server() -> Option<IpAddr> {
    let text = std::fs::read_to_string("/etc/resolv.conf").ok()?;
    text.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some("nameserver")).then(|| words.next()?.parse().ok()).flatten()
    })
}
