//! The network that the guest is on: a router with address translation whose outside is this process's sockets.
//!
//! Each TCP connection, UDP flow and ICMP echo flow of the guest has a host socket; what the guest and its peers say to
//! each other never meets on one TCP connection, so neither side's segments, windows or losses are the other's. In the
//! other direction, the host listens on ports that are forwarded to the guest's.

mod address;
mod answers;
mod dhcp;
mod dns;
mod flows;
mod forward;
mod frame;
mod ndp;
mod reactor;
mod receive;
mod tcp;
mod tcp_buffer;
mod udp;
mod wire;

#[cfg(test)]
mod forward_test;
#[cfg(test)]
mod ipv6_test;
#[cfg(test)]
mod segment_test;
#[cfg(test)]
mod stack_test;
#[cfg(test)]
mod test_guest;

use std::collections::{HashMap, VecDeque};
use std::hash::RandomState;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use smoltcp::wire::EthernetAddress;

pub use address::{
    DNS, DNS_V6, GATEWAY, GATEWAY_V6, GUEST, NETMASK, PREFIX_LEN, PREFIX_V6, ROUTER_LINK_LOCAL,
};
pub use forward::{Forward, Transport};
pub use frame::{Capabilities, Frame, Offload, PartialChecksum, Segmentation};

use answers::Answers;
use dns::Resolver;
use forward::Listener;
use reactor::{Reactor, Readiness};
use tcp::{Connection, SegmentLimits};
use udp::Flow;
use wire::{ETHERNET, HeaderBuffer, MAX_HEADER, Path, TCP, UDP};

/// Longest frame in bytes that is not to be segmented: an Ethernet header and [`MTU`].
pub const MAX_FRAME: usize = ETHERNET + MTU;
/// Longest frame in bytes that is to be segmented: an Ethernet header and the largest IP packet.
pub const MAX_LARGE_FRAME: usize = ETHERNET + wire::IPV6 + MAX_PACKET;
/// Longest IP packet in bytes.
pub const MTU: usize = 1500;

/// Longest IPv4 packet, and longest payload of an IPv6 packet, in bytes.
const MAX_PACKET: usize = u16::MAX as usize;
/// Most TCP connections at a time. With [`MAX_FLOWS`], below the open files that most systems allow a process.
const MAX_CONNECTIONS: usize = 512;
/// Most UDP and echo flows at a time.
const MAX_FLOWS: usize = 256;
/// How often the router advertises itself unasked (RFC 4861 §6.2.1, MaxRtrAdvInterval).
const ADVERTISEMENTS: Duration = Duration::from_secs(600);

/// A flow, as the guest names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct FlowKey {
    guest: IpAddr,
    /// Of an echo flow: the identifier.
    guest_port: u16,
    ip: IpAddr,
    port: u16,
}

/// What sockets are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum FlowId {
    Tcp(FlowKey),
    Udp(FlowKey),
    Echo(FlowKey),
    /// A forward, by index.
    Listener(usize),
}

/// The network, with one guest on it.
///
/// Time is an argument; calls with an earlier time than before do no harm.
#[derive(Debug)]
pub struct Stack {
    guest_mac: EthernetAddress,
    capabilities: Capabilities,
    reactor: Reactor,
    resolver: Resolver,
    tcp: HashMap<FlowKey, Connection>,
    /// UDP and echo flows.
    flows: HashMap<FlowId, Flow>,
    listeners: Vec<Listener>,
    /// The flows of datagrams that came through a forward, by its index and their sender.
    peers: HashMap<(usize, SocketAddr), FlowKey>,
    tokens: HashMap<usize, FlowId>,
    next_token: usize,
    answers: Answers,
    /// Flows that may have something for the guest, each once.
    pending: VecDeque<FlowId>,
    /// Not after the first timer of any flow.
    deadline: Option<Instant>,
    /// When the router advertises itself; none without a guest.
    next_advertisement: Option<Instant>,
    /// For initial sequence numbers.
    secret: RandomState,
    /// Space for the headers of one frame.
    header: Box<HeaderBuffer>,
    /// Space for the payload of one datagram, and a byte that tells when it is too long.
    datagram: Box<[u8]>,
    /// Space for an ICMP message of the router's own.
    message: Vec<u8>,
    /// Space for what became ready.
    ready: Vec<(usize, Readiness)>,
}

impl Stack {
    /// A network whose guest has the hardware address `guest_mac`, and this machine's name server.
    ///
    /// # Errors
    /// When the host has no poll object or thread left.
    pub fn new(guest_mac: [u8; 6]) -> io::Result<Self> {
        Ok(Self {
            guest_mac: EthernetAddress(guest_mac),
            capabilities: Capabilities::default(),
            reactor: Reactor::new()?,
            resolver: Resolver::of_host(),
            tcp: HashMap::new(),
            flows: HashMap::new(),
            listeners: Vec::new(),
            peers: HashMap::new(),
            tokens: HashMap::new(),
            next_token: 0,
            answers: Answers::default(),
            pending: VecDeque::new(),
            deadline: None,
            next_advertisement: None,
            secret: RandomState::new(),
            header: Box::new([0; MAX_HEADER]),
            datagram: vec![0; MTU + 1].into(),
            message: Vec::new(),
            ready: Vec::new(),
        })
    }

    /// Listens on a port of the host for the guest, from now on and across resets; where, as the port may have been
    /// left open.
    ///
    /// # Errors
    /// When the host's port is taken, or not for this user.
    pub fn forward(&mut self, forward: &Forward) -> io::Result<SocketAddr> {
        let mut listener = Listener::bind(forward)?;
        let address = listener.local_addr()?;
        let id = FlowId::Listener(self.listeners.len());
        match &mut listener.socket {
            forward::Socket::Tcp(socket) => self.register(socket, id)?,
            forward::Socket::Udp(socket) => self.register(socket, id)?,
        };
        self.listeners.push(listener);
        Ok(address)
    }

    /// Has `waker` called, from another thread, whenever [`Stack::handle_events`] is to be.
    pub fn set_waker(&self, waker: impl Fn() + Send + 'static) {
        self.reactor.set_waker(waker);
    }

    /// The guest's driver is there, and takes frames of these kinds.
    pub fn start(&mut self, capabilities: Capabilities, now: Instant) {
        self.capabilities = capabilities;
        self.next_advertisement = Some(now);
        for index in 0..self.listeners.len() {
            self.schedule(FlowId::Listener(index));
        }
        self.expire(now);
    }

    /// Forgets everything about the guest and closes its connections. Forwards stay.
    pub fn reset(&mut self) {
        while let Some(&key) = self.tcp.keys().next() {
            self.close(FlowId::Tcp(key));
        }
        while let Some(&id) = self.flows.keys().next() {
            self.close(id);
        }
        for listener in &mut self.listeners {
            listener.is_pending = false;
            listener.retry = None;
        }
        self.answers.clear();
        self.pending.clear();
        self.deadline = None;
        self.next_advertisement = None;
        self.capabilities = Capabilities::default();
    }

    /// When [`Stack::expire`] is to be called, if ever.
    pub fn deadline(&self) -> Option<Instant> {
        [self.deadline, self.next_advertisement].into_iter().flatten().min()
    }

    /// Looks at the sockets that became ready.
    pub fn handle_events(&mut self, now: Instant) {
        let mut ready = std::mem::take(&mut self.ready);
        self.reactor.take_ready(&mut ready);
        for (token, readiness) in ready.drain(..) {
            match self.tokens.get(&token) {
                Some(&FlowId::Tcp(key)) => {
                    let Some(connection) = self.tcp.get_mut(&key) else { continue };
                    let fate = connection.ready(readiness, now);
                    self.settle(key, fate);
                }
                Some(&id @ (FlowId::Udp(_) | FlowId::Echo(_))) => {
                    let Some(flow) = self.flows.get_mut(&id) else { continue };
                    flow.ready(readiness);
                    self.schedule(id);
                }
                Some(&id @ FlowId::Listener(index)) => {
                    let Some(listener) = self.listeners.get_mut(index) else { continue };
                    listener.readable |= readiness.readable;
                    self.schedule(id);
                }
                // It was closed in the meantime.
                None => {}
            }
        }
        self.ready = ready;
    }

    /// Acts on the timers that have run out.
    pub fn expire(&mut self, now: Instant) {
        if self.next_advertisement.is_some_and(|time| time <= now) {
            self.next_advertisement = Some(now + ADVERTISEMENTS);
            self.advertise();
        }
        let idle: Vec<_> =
            self.flows.iter().filter(|(_, flow)| flow.expiry() <= now).map(|(id, _)| *id).collect();
        for id in idle {
            self.close(id);
        }
        let due = |connection: &Connection| connection.timer().is_some_and(|timer| timer <= now);
        let late: Vec<_> = self.tcp.iter().filter(|(_, c)| due(c)).map(|(key, _)| *key).collect();
        for key in late {
            if let Some(connection) = self.tcp.get_mut(&key) {
                let fate = connection.timed_out(now);
                self.settle(key, fate);
            }
        }
        for index in 0..self.listeners.len() {
            let Some(listener) = self.listeners.get_mut(index) else { continue };
            if listener.retry.is_some_and(|retry| retry <= now) {
                listener.retry = None;
                self.schedule(FlowId::Listener(index));
            }
        }
        let flows = self.flows.values().map(Flow::expiry);
        let connections = self.tcp.values().filter_map(Connection::timer);
        let listeners = self.listeners.iter().filter_map(|listener| listener.retry);
        self.deadline = flows.chain(connections).chain(listeners).min();
    }

    /// Gives the next frame for the guest to `deliver`, if there is one; whether there was. Flows take turns.
    ///
    /// The frame has at most `room` bytes, of which there are at least [`MAX_FRAME`].
    pub fn next_frame(
        &mut self,
        room: usize,
        now: Instant,
        deliver: &mut dyn FnMut(&Frame<'_>),
    ) -> bool {
        loop {
            if let Some(answer) = self.answers.pop() {
                deliver(&Frame::whole(&answer));
                self.answers.recycle(answer);
                return true;
            }
            let Some(id) = self.pending.pop_front() else { return false };
            let is_delivered = match id {
                FlowId::Tcp(key) => self.next_segment(key, room, now, deliver),
                FlowId::Udp(key) => self.next_datagram(id, key, now, deliver),
                FlowId::Echo(key) => self.next_echo(id, key, now, deliver),
                FlowId::Listener(index) => self.next_from_host(index, now, deliver),
            };
            if is_delivered {
                return true;
            }
        }
    }

    fn next_segment(
        &mut self,
        key: FlowKey,
        room: usize,
        now: Instant,
        deliver: &mut dyn FnMut(&Frame<'_>),
    ) -> bool {
        let path = self.path(key);
        let Some(connection) = self.tcp.get_mut(&key) else { return false };
        connection.is_pending = false;
        let limits = self.capabilities.segment_limits(path, room);
        let segment = match connection.next_segment(key.port, key.guest_port, limits, now) {
            Ok(segment) => segment,
            Err(fate) => {
                self.settle(key, fate);
                return false;
            }
        };
        arm(&mut self.deadline, connection.timer());
        let is_over = connection.is_over();
        if let Some(segment) = &segment {
            let payload = connection.payload(segment);
            let size = connection.segment_size(limits);
            let (len, offload) =
                path.tcp(&segment.repr, payload, size, self.capabilities, &mut self.header);
            let Some(header) = self.header.get(..len) else { return false };
            deliver(&Frame { header, payload, offload });
            self.schedule(FlowId::Tcp(key));
        } else if is_over {
            self.close(FlowId::Tcp(key));
        }
        segment.is_some()
    }

    fn next_datagram(
        &mut self,
        id: FlowId,
        key: FlowKey,
        now: Instant,
        deliver: &mut dyn FnMut(&Frame<'_>),
    ) -> bool {
        let most = MAX_FRAME - self.path(key).overhead() - UDP;
        let received = self.receive_from_host(id, most, now);
        self.report_refusal(id);
        let Some(len) = received else { return false };
        self.deliver_datagram(key, len, deliver);
        true
    }

    /// Receives what a flow has next, of at most `most` bytes, into the space for datagrams; its length.
    fn receive_from_host(&mut self, id: FlowId, most: usize, now: Instant) -> Option<usize> {
        let flow = self.flows.get_mut(&id)?;
        flow.is_pending = false;
        let len = flow.receive(self.datagram.get_mut(..=most)?, now)?;
        self.schedule(id);
        Some(len)
    }

    /// Delivers the first `len` bytes of the space for datagrams.
    fn deliver_datagram(&mut self, key: FlowKey, len: usize, deliver: &mut dyn FnMut(&Frame<'_>)) {
        let path = self.path(key);
        let Some(payload) = self.datagram.get(..len) else { return };
        let (capabilities, header) = (self.capabilities, &mut self.header);
        let (len, offload) = path.udp(key.port, key.guest_port, payload, capabilities, header);
        let Some(header) = self.header.get(..len) else { return };
        deliver(&Frame { header, payload: [payload, &[]], offload });
    }

    fn next_echo(
        &mut self,
        id: FlowId,
        key: FlowKey,
        now: Instant,
        deliver: &mut dyn FnMut(&Frame<'_>),
    ) -> bool {
        const IDENTIFIER: usize = 4;
        let path = self.path(key);
        let most = MAX_FRAME - path.overhead();
        let Some(len) = self.receive_from_host(id, most, now) else { return false };
        let reply = if key.ip.is_ipv4() { receive::ECHO_REPLY } else { receive::ECHO_REPLY_V6 };
        let Some(message) = self.datagram.get_mut(..len) else { return false };
        // An error, such as of an unreachable host, is not passed on.
        if message.first() != Some(&reply) || message.len() < receive::ECHO_HEADER {
            return false;
        }
        wire::put_u16(message, IDENTIFIER, key.guest_port);
        let len = path.icmp(message, &mut self.header);
        let Some(header) = self.header.get(..len) else { return false };
        deliver(&Frame { header, payload: [message, &[]], offload: Offload::default() });
        true
    }

    /// From a flow's peer to the guest.
    fn path(&self, key: FlowKey) -> Path {
        Path::new(self.guest_mac, key.ip, key.guest)
    }
}

impl Capabilities {
    fn segment_limits(self, path: Path, room: usize) -> SegmentLimits {
        let overhead = path.overhead() + TCP;
        let offload = if path.from.is_ipv4() { self.tso4 } else { self.tso6 };
        SegmentLimits {
            mss: (MAX_FRAME - overhead) as u16,
            offload: offload.then_some(ETHERNET + MAX_PACKET - overhead),
            room: room.saturating_sub(overhead),
        }
    }
}

/// Makes `deadline` no later than `timer`.
fn arm(deadline: &mut Option<Instant>, timer: Option<Instant>) {
    *deadline = [*deadline, timer].into_iter().flatten().min();
}
