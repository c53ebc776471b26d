//! The network against another implementation of TCP/IP, smoltcp's, as the guest, and this machine's sockets.

use std::collections::VecDeque;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{ChecksumCapabilities, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::{dhcpv4, tcp, udp};
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol,
    Icmpv4Packet, Icmpv4Repr, IpCidr, Ipv4Packet,
};

use super::wire::{Path, arp_reply};
use super::{DNS, DNS_MAC, GATEWAY, GATEWAY_MAC, GUEST, MTU, Stack};

const MAC: EthernetAddress = EthernetAddress([2, 0x1a, 0x11, 0, 0, 1]);
const CAPS: fn() -> ChecksumCapabilities = ChecksumCapabilities::default;
const MEBIBYTE: usize = 1 << 20;

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

struct Guest {
    stack: Stack,
    ready: Receiver<()>,
    wire: Wire,
    interface: Interface,
    sockets: SocketSet<'static>,
    /// Every so many frames to the guest are lost.
    lose_each: Option<usize>,
    delivered: usize,
}

impl Guest {
    fn new() -> Self {
        let stack = Stack::new(MAC.0).unwrap();
        let (sender, ready) = channel();
        stack.set_waker(move || {
            // The test may be over.
            let _ = sender.send(());
        });
        let mut wire = Wire::default();
        let mut interface =
            Interface::new(Config::new(MAC.into()), &mut wire, smoltcp::time::Instant::now());
        interface.update_ip_addrs(|ips| ips.push(IpCidr::new(GUEST.into(), 24)).unwrap());
        interface.routes_mut().add_default_ipv4_route(GATEWAY).unwrap();
        let sockets = SocketSet::new(Vec::new());
        Self { stack, ready, wire, interface, sockets, lose_each: None, delivered: 0 }
    }

    /// Moves frames until `done`.
    fn run_until(&mut self, mut done: impl FnMut(&mut SocketSet<'static>) -> bool) {
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
                self.stack.receive(&frame, now);
            }
            self.stack.handle_events(now);
            if self.stack.deadline().is_some_and(|deadline| deadline <= now) {
                self.stack.expire(now);
            }
            for _ in 0..16 {
                let Some(frame) = self.stack.next_frame(now) else { break };
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

    fn connect(&mut self, port: u16) -> SocketHandle {
        let buffer = || tcp::SocketBuffer::new(vec![0; 1 << 17]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        socket.connect(self.interface.context(), (GATEWAY, port), 40_000).unwrap();
        self.sockets.add(socket)
    }

    /// Sends one frame as the guest; the answers of the router itself.
    fn exchange(&mut self, frame: &[u8]) -> Vec<Vec<u8>> {
        let now = Instant::now();
        self.stack.receive(frame, now);
        std::iter::from_fn(|| self.stack.next_frame(now)).collect()
    }
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

fn outgoing() -> Path {
    Path { mac: GATEWAY_MAC, from: GUEST, to: GATEWAY }
}

#[test]
fn the_guest_gets_its_address_by_dhcp() {
    let mut guest = Guest::new();
    guest.interface.update_ip_addrs(|ips| ips.truncate(0));
    let handle = guest.sockets.add(dhcpv4::Socket::new());
    let mut lease = None;
    guest.run_until(|sockets| {
        if let Some(dhcpv4::Event::Configured(config)) =
            sockets.get_mut::<dhcpv4::Socket>(handle).poll()
        {
            lease = Some((config.address, config.router, config.dns_servers.to_vec()));
        }
        lease.is_some()
    });
    let (address, router, dns) = lease.unwrap();
    assert_eq!((address.address(), address.prefix_len()), (GUEST, 24));
    assert_eq!(router, Some(GATEWAY));
    assert_eq!(dns, [DNS]);
}

#[test]
fn arp_finds_the_router_and_the_name_server_and_nobody_else() {
    let mut guest = Guest::new();
    let mut ask = |ip| {
        let mut request = arp_reply(MAC, GUEST, EthernetAddress::BROADCAST, ip);
        let mut frame = EthernetFrame::new_unchecked(&mut request);
        ArpPacket::new_unchecked(frame.payload_mut()).set_operation(ArpOperation::Request);
        guest.exchange(&request)
    };
    for (ip, mac) in [(GATEWAY, GATEWAY_MAC), (DNS, DNS_MAC)] {
        let answers = ask(ip);
        let frame = EthernetFrame::new_checked(&answers[0]).unwrap();
        assert_eq!((frame.ethertype(), frame.dst_addr()), (EthernetProtocol::Arp, MAC));
        let answer = ArpRepr::parse(&ArpPacket::new_checked(frame.payload()).unwrap()).unwrap();
        let ArpRepr::EthernetIpv4 { operation, source_hardware_addr, .. } = answer else {
            panic!("Ethernet and IPv4");
        };
        assert_eq!((operation, source_hardware_addr), (ArpOperation::Reply, mac));
    }
    assert!(ask(GUEST).is_empty(), "the guest would think that its address is taken");
}

#[test]
fn the_router_answers_a_ping() {
    let mut guest = Guest::new();
    let ping = Icmpv4Repr::EchoRequest { ident: 7, seq_no: 3, data: b"abcdefgh" };
    let answers = guest.exchange(&outgoing().icmp(&ping));
    let frame = EthernetFrame::new_checked(&answers[0]).unwrap();
    let packet = Ipv4Packet::new_checked(frame.payload()).unwrap();
    assert!(packet.verify_checksum());
    assert_eq!((packet.src_addr(), packet.dst_addr()), (GATEWAY, GUEST));
    let icmp = Icmpv4Packet::new_checked(packet.payload()).unwrap();
    assert_eq!(
        Icmpv4Repr::parse(&icmp, &CAPS()),
        Ok(Icmpv4Repr::EchoReply { ident: 7, seq_no: 3, data: b"abcdefgh" })
    );
}

#[test]
fn datagrams_go_to_the_hosts_loopback_and_back() {
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port();
    let echo = std::thread::spawn(move || {
        let mut buffer = [0; 2048];
        for _ in 0..3 {
            let (len, from) = server.recv_from(&mut buffer).unwrap();
            server.send_to(&buffer[..len], from).unwrap();
        }
    });
    let mut guest = Guest::new();
    let buffer = || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 4], vec![0; 8192]);
    let mut socket = udp::Socket::new(buffer(), buffer());
    socket.bind(5353).unwrap();
    let handle = guest.sockets.add(socket);
    for len in [0, 1, 1472] {
        let sent = pattern(len);
        let socket = guest.sockets.get_mut::<udp::Socket>(handle);
        socket.send_slice(&sent, (GATEWAY, port)).unwrap();
        guest.run_until(|sockets| {
            let Ok((data, from)) = sockets.get_mut::<udp::Socket>(handle).recv() else {
                return false;
            };
            assert_eq!(from.endpoint, (GATEWAY, port).into());
            assert!(data == sent);
            true
        });
    }
    echo.join().unwrap();
}

#[test]
fn without_a_name_server_queries_fail_at_once() {
    let mut guest = Guest::new();
    guest.stack.name_server = None;
    let query = [0x12, 0x34, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let answers = guest.exchange(&Path { to: DNS, ..outgoing() }.udp(1234, 53, &query));
    assert_eq!(answers[0][42..], [0x12, 0x34, 0x81, 0x82, 0, 0, 0, 0, 0, 0, 0, 0]);
}

/// The guest sends `up` and closes; the host sends `down` and closes; both get everything and the end of it.
fn transfer(guest: &mut Guest, up: &[u8], down: &'static [u8]) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let handle = guest.connect(listener.local_addr().unwrap().port());
    let host = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut reader: TcpStream = stream.try_clone().unwrap();
        let reading = std::thread::spawn(move || {
            let mut received = Vec::new();
            reader.read_to_end(&mut received).unwrap();
            received
        });
        stream.write_all(down).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        reading.join().unwrap()
    });
    let (mut sent, mut received) = (0, Vec::new());
    guest.run_until(|sockets| {
        let socket = sockets.get_mut::<tcp::Socket>(handle);
        if socket.can_send() {
            sent += socket.send_slice(&up[sent..]).unwrap();
        }
        if sent == up.len() && socket.may_send() {
            socket.close();
        }
        if socket.can_recv() {
            socket
                .recv(|data| {
                    received.extend_from_slice(data);
                    (data.len(), ())
                })
                .unwrap();
        }
        matches!(socket.state(), tcp::State::Closed | tcp::State::TimeWait)
    });
    assert!(host.join().unwrap() == up, "the host got what the guest sent");
    assert!(received == down, "the guest got what the host sent");
    let mut stack_is_done = 0;
    guest.run_until(|_| {
        stack_is_done += 1;
        stack_is_done > 2
    });
    assert!(guest.stack.tcp.is_empty() && guest.stack.tokens.is_empty());
}

#[test]
fn a_mebibyte_goes_each_way_and_both_ends_close() {
    let data: &'static [u8] = pattern(MEBIBYTE).leak();
    transfer(&mut Guest::new(), data, data);
}

#[test]
fn lost_segments_are_sent_again() {
    let mut guest = Guest::new();
    guest.lose_each = Some(23);
    transfer(&mut guest, &pattern(40_000), pattern(40_000).leak());
}

#[test]
fn a_refused_connection_is_reset() {
    // Bound and closed again: nobody listens there.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut guest = Guest::new();
    let handle = guest.connect(port);
    guest.run_until(|sockets| sockets.get_mut::<tcp::Socket>(handle).state() == tcp::State::Closed);
    assert!(guest.stack.tcp.is_empty() && guest.stack.tokens.is_empty());
}

#[test]
fn a_reset_closes_the_hosts_connection() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut guest = Guest::new();
    let handle = guest.connect(listener.local_addr().unwrap().port());
    guest.run_until(|sockets| sockets.get_mut::<tcp::Socket>(handle).may_send());
    let (mut stream, _) = listener.accept().unwrap();
    guest.stack.reset();
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
}

/// Frames that are right but for a few bytes: of each protocol that the stack reads.
fn nearly_right_frame() -> impl Strategy<Value = Vec<u8>> {
    let payload = prop::collection::vec(any::<u8>(), 0..400);
    let kind = 0..5u8;
    let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4);
    (kind, payload, changes, any::<prop::sample::Index>()).prop_map(
        |(kind, payload, changes, cut)| {
            let mut frame = match kind {
                0 => arp_reply(MAC, GUEST, GATEWAY_MAC, GATEWAY),
                1 => outgoing().udp(68, 67, &payload),
                // The options of DHCP.
                2 => {
                    let mut message = vec![0; 240];
                    message[0..3].copy_from_slice(&[1, 1, 6]);
                    message[236..].copy_from_slice(&[0x63, 0x82, 0x53, 0x63]);
                    message.extend(payload);
                    outgoing().udp(68, 67, &message)
                }
                3 => outgoing().icmp(&Icmpv4Repr::EchoRequest {
                    ident: 1,
                    seq_no: 1,
                    data: &payload,
                }),
                _ => Path { to: DNS, ..outgoing() }.udp(1234, 53, &payload),
            };
            for (index, value) in changes {
                let at = index.index(frame.len());
                frame[at] = value;
            }
            if cut.index(3) == 0 {
                frame.truncate(cut.index(frame.len()));
            }
            frame
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn no_frame_is_too_strange(frames in prop::collection::vec(
        prop_oneof![
            nearly_right_frame(),
            prop::collection::vec(any::<u8>(), 0..1600),
        ],
        1..32,
    )) {
        let mut guest = Guest::new();
        guest.stack.name_server = None;
        for frame in &frames {
            // Answers are frames that the guest could read.
            for answer in guest.exchange(frame) {
                prop_assert!((14..=14 + MTU).contains(&answer.len()));
            }
        }
    }

    /// A peer that does not follow TCP, on a connection to a port where nobody listens or somebody does.
    #[test]
    fn no_segment_is_too_strange(segments in prop::collection::vec(
        (0..5u8, -70_000..70_000i32, prop::option::of(-3..70_000i32), any::<u16>(), 0..1400usize),
        1..64,
    )) {
        use smoltcp::wire::{TcpControl, TcpRepr, TcpSeqNumber};
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut guest = Guest::new();
        for (index, (control, seq, ack, window_len, len)) in segments.into_iter().enumerate() {
            let control = match control {
                _ if index == 0 => TcpControl::Syn,
                0 => TcpControl::None,
                1 => TcpControl::Psh,
                2 => TcpControl::Syn,
                3 => TcpControl::Fin,
                _ => TcpControl::Rst,
            };
            let payload = pattern(len);
            let segment = TcpRepr {
                src_port: 1000,
                dst_port: port,
                control,
                seq_number: TcpSeqNumber(seq),
                ack_number: ack.filter(|_| index != 0).map(TcpSeqNumber),
                window_len,
                window_scale: None,
                max_seg_size: None,
                sack_permitted: false,
                sack_ranges: [None; 3],
                timestamp: None,
                payload: if index == 0 { &[] } else { &payload },
            };
            guest.exchange(&outgoing().tcp(&segment));
            if index % 4 == 0 {
                let _ = guest.ready.recv_timeout(Duration::from_millis(1));
            }
            guest.stack.handle_events(Instant::now());
            guest.stack.expire(Instant::now() + Duration::from_secs(u64::from(window_len % 3)));
        }
        prop_assert!(guest.stack.tcp.len() <= 1);
    }
}
