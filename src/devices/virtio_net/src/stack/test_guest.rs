//! A guest for tests: smoltcp's implementation of TCP/IP on a wire to the network, and hand-made frames.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::{tcp, udp};
use smoltcp::wire::{EthernetAddress, IpCidr, TcpRepr};

use super::address::{GATEWAY_MAC, ROUTER_LINK_LOCAL};
use super::frame::Capabilities;
use super::wire::{MAX_HEADER, Path, arp_reply};
use super::{Frame, GATEWAY, GUEST, MAX_FRAME, MTU, Stack};

/// The guest's hardware address.
pub(super) const MAC: EthernetAddress = EthernetAddress([2, 0x1a, 0x11, 0, 0, 1]);
/// An address that the guest may make itself.
pub(super) const GUEST_V6: Ipv6Addr = Ipv6Addr::new(0xfec0, 0, 0, 0, 0x1a, 0x11ff, 0xfe00, 1);

/// The guest's network card.
#[derive(Default)]
struct Wire {
    to_guest: VecDeque<Vec<u8>>,
    from_guest: VecDeque<Vec<u8>>,
}

struct Arrived(Vec<u8>);
struct Sender<'a>(&'a mut VecDeque<Vec<u8>>);

impl RxToken for Arrived {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl TxToken for Sender<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0; len];
        let result = f(&mut frame);
        self.0.push_back(frame);
        result
    }
}

impl Device for Wire {
    type RxToken<'a> = Arrived;
    type TxToken<'a> = Sender<'a>;

    fn receive(&mut self, _: smoltcp::time::Instant) -> Option<(Arrived, Sender<'_>)> {
        Some((Arrived(self.to_guest.pop_front()?), Sender(&mut self.from_guest)))
    }

    fn transmit(&mut self, _: smoltcp::time::Instant) -> Option<Sender<'_>> {
        Some(Sender(&mut self.from_guest))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut caps = DeviceCapabilities::default();
        caps.medium = Medium::Ethernet;
        caps.max_transmission_unit = 14 + MTU;
        caps
    }
}

/// A machine on the network.
pub(super) struct Guest {
    pub(super) stack: Stack,
    pub(super) ready: Receiver<()>,
    wire: Wire,
    pub(super) interface: Interface,
    pub(super) sockets: SocketSet<'static>,
    /// Every so many frames to the guest are lost.
    pub(super) lose_each: Option<usize>,
    delivered: usize,
}

impl Guest {
    pub(super) fn new() -> Self {
        let stack = Stack::new(MAC.0).unwrap();
        let (sender, ready) = channel();
        stack.set_waker(move || {
            // The test may be over.
            let _ = sender.send(());
        });
        let mut wire = Wire::default();
        let mut interface =
            Interface::new(Config::new(MAC.into()), &mut wire, smoltcp::time::Instant::now());
        interface.update_ip_addrs(|ips| {
            ips.push(IpCidr::new(GUEST.into(), 24)).unwrap();
            ips.push(IpCidr::new(GUEST_V6.into(), 64)).unwrap();
        });
        interface.routes_mut().add_default_ipv4_route(GATEWAY).unwrap();
        interface.routes_mut().add_default_ipv6_route(ROUTER_LINK_LOCAL).unwrap();
        let sockets = SocketSet::new(Vec::new());
        Self { stack, ready, wire, interface, sockets, lose_each: None, delivered: 0 }
    }

    /// Moves frames until `done`.
    pub(super) fn run_until(&mut self, mut done: impl FnMut(&mut SocketSet<'static>) -> bool) {
        // Guards against a hang only.
        let give_up = Instant::now() + Duration::from_secs(120);
        loop {
            self.interface.poll(smoltcp::time::Instant::now(), &mut self.wire, &mut self.sockets);
            if done(&mut self.sockets) {
                return;
            }
            assert!(Instant::now() < give_up, "nothing goes on");
            let now = Instant::now();
            let mut moved = !self.wire.from_guest.is_empty();
            for frame in self.wire.from_guest.drain(..) {
                self.stack.receive(&frame, false, now);
            }
            self.stack.handle_events(now);
            if self.stack.deadline().is_some_and(|deadline| deadline <= now) {
                self.stack.expire(now);
            }
            for _ in 0..16 {
                let Some(frame) = next_frame(&mut self.stack, now) else { break };
                moved = true;
                self.delivered += 1;
                if self.lose_each.is_none_or(|each| !self.delivered.is_multiple_of(each)) {
                    self.wire.to_guest.push_back(frame);
                }
            }
            if !moved {
                let _ = self.ready.recv_timeout(Duration::from_millis(2));
            }
        }
    }

    /// Moves frames for a moment.
    pub(super) fn settle(&mut self) {
        let mut rounds = 0;
        self.run_until(|_| {
            rounds += 1;
            rounds > 4
        });
    }

    pub(super) fn tcp_socket(&mut self) -> SocketHandle {
        let buffer = || tcp::SocketBuffer::new(vec![0; 1 << 17]);
        self.sockets.add(tcp::Socket::new(buffer(), buffer()))
    }

    pub(super) fn connect(&mut self, ip: impl Into<IpAddr>, port: u16) -> SocketHandle {
        let handle = self.tcp_socket();
        let socket = self.sockets.get_mut::<tcp::Socket>(handle);
        let remote = (smoltcp::wire::IpAddress::from(ip.into()), port);
        socket.connect(self.interface.context(), remote, 40_000).unwrap();
        handle
    }

    pub(super) fn udp_socket(&mut self, port: u16) -> SocketHandle {
        let buffer = || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 4], vec![0; 8192]);
        let mut socket = udp::Socket::new(buffer(), buffer());
        socket.bind(port).unwrap();
        self.sockets.add(socket)
    }

    /// Sends one frame as the guest; all frames for it.
    pub(super) fn exchange(&mut self, frame: &[u8]) -> Vec<Vec<u8>> {
        let now = Instant::now();
        self.stack.receive(frame, false, now);
        std::iter::from_fn(|| next_frame(&mut self.stack, now)).collect()
    }
}

/// The next frame for the guest, in one piece.
pub(super) fn next_frame(stack: &mut Stack, now: Instant) -> Option<Vec<u8>> {
    let mut next = None;
    let mut deliver = |frame: &Frame<'_>| {
        assert!(frame.len() <= MAX_FRAME && frame.offload == super::Offload::default());
        next = Some(frame.parts().concat());
    };
    stack.next_frame(MAX_FRAME, now, &mut deliver).then(|| next.unwrap())
}

pub(super) fn pattern(len: usize) -> Vec<u8> {
    (0..len as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

/// From the guest to `to`.
pub(super) fn outgoing(to: impl Into<IpAddr>) -> Path {
    let to = to.into();
    let from = if to.is_ipv4() { GUEST.into() } else { GUEST_V6.into() };
    Path::new(GATEWAY_MAC, from, to)
}

pub(super) fn arp_frame(
    mac: EthernetAddress,
    ip: Ipv4Addr,
    to_mac: EthernetAddress,
    to_ip: Ipv4Addr,
) -> Vec<u8> {
    let mut frame = Vec::new();
    arp_reply(mac, ip, to_mac, to_ip, &mut frame);
    frame
}

pub(super) fn udp_frame(path: Path, from: u16, to: u16, payload: &[u8]) -> Vec<u8> {
    let mut header = [0; MAX_HEADER];
    let (len, _) = path.udp(from, to, payload, Capabilities::default(), &mut header);
    [&header[..len], payload].concat()
}

pub(super) fn tcp_frame(path: Path, repr: &TcpRepr<'_>, payload: &[u8]) -> Vec<u8> {
    let mut header = [0; MAX_HEADER];
    let none = Capabilities::default();
    let bare = TcpRepr { payload: &[], ..*repr };
    let (len, _) = path.tcp(&bare, [payload, &[]], usize::MAX, none, &mut header);
    [&header[..len], payload].concat()
}

/// An ICMP message, but for its checksum, in a frame.
pub(super) fn icmp_frame(path: Path, mut message: Vec<u8>) -> Vec<u8> {
    let mut header = [0; MAX_HEADER];
    let len = path.icmp(&mut message, &mut header);
    [&header[..len], &message[..]].concat()
}

/// An ICMP echo message of type `kind`.
pub(super) fn echo(kind: u8, ident: u16, data: &[u8]) -> Vec<u8> {
    let [high, low] = ident.to_be_bytes();
    [&[kind, 0, 0, 0, high, low, 0, 1], data].concat()
}
