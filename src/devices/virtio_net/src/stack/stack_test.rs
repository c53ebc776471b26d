//! The network against another implementation of TCP/IP, smoltcp's, as the guest, and this machine's sockets.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::socket::{dhcpv4, tcp, udp};
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol,
    Icmpv4DstUnreachable, Icmpv4Packet, Icmpv4Repr, Icmpv6DstUnreachable, Icmpv6Packet, Icmpv6Repr,
    Ipv4Packet, Ipv6Packet, TcpControl, TcpRepr, TcpSeqNumber, UdpPacket,
};

use super::address::{DNS_MAC, GATEWAY_MAC};
use super::dns::Resolver;
use super::test_guest::{
    GUEST_V6, Guest, MAC, arp_frame, echo, icmp_frame, outgoing, pattern, tcp_frame, udp_frame,
};
use super::{
    DNS, DNS_V6, GATEWAY, GATEWAY_V6, GUEST, MAX_CONNECTIONS, MAX_FLOWS, MTU, ROUTER_LINK_LOCAL,
};

const CAPS: fn() -> ChecksumCapabilities = ChecksumCapabilities::default;
const MEBIBYTE: usize = 1 << 20;

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
        let mut request = arp_frame(MAC, GUEST, EthernetAddress::BROADCAST, ip);
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
    let answers = guest.exchange(&icmp_frame(outgoing(GATEWAY), echo(8, 7, b"abcdefgh")));
    let frame = EthernetFrame::new_checked(&answers[0]).unwrap();
    let packet = Ipv4Packet::new_checked(frame.payload()).unwrap();
    assert!(packet.verify_checksum());
    assert_eq!((packet.src_addr(), packet.dst_addr()), (GATEWAY, GUEST));
    let icmp = Icmpv4Packet::new_checked(packet.payload()).unwrap();
    assert_eq!(
        Icmpv4Repr::parse(&icmp, &CAPS()),
        Ok(Icmpv4Repr::EchoReply { ident: 7, seq_no: 1, data: b"abcdefgh" })
    );
}

/// A port of the host's that takes no datagrams: what has it takes them from one sender only.
fn closed_port(loopback: &str) -> (UdpSocket, u16) {
    let socket = UdpSocket::bind((loopback, 0)).unwrap();
    socket.connect(socket.local_addr().unwrap()).unwrap();
    let port = socket.local_addr().unwrap().port();
    (socket, port)
}

/// Sends a datagram as the guest; the first frame for it.
fn answer_to_datagram(to: IpAddr, port: u16) -> Vec<u8> {
    let mut guest = Guest::new();
    let mut answers = guest.exchange(&udp_frame(outgoing(to), 4000, port, b"anyone?"));
    // Guards against a hang only.
    let give_up = Instant::now() + Duration::from_secs(120);
    while answers.is_empty() {
        assert!(Instant::now() < give_up, "no answer");
        let _ = guest.ready.recv_timeout(Duration::from_millis(2));
        guest.stack.handle_events(Instant::now());
        answers.extend(super::test_guest::next_frame(&mut guest.stack, Instant::now()));
    }
    answers.swap_remove(0)
}

#[test]
fn a_closed_port_of_the_hosts_is_unreachable() {
    let (_closed, port) = closed_port("127.0.0.1");
    let frame = answer_to_datagram(GATEWAY.into(), port);
    let frame = EthernetFrame::new_checked(&frame[..]).unwrap();
    let packet = Ipv4Packet::new_checked(frame.payload()).unwrap();
    assert_eq!((packet.src_addr(), packet.dst_addr()), (GATEWAY, GUEST));
    let icmp = Icmpv4Packet::new_checked(packet.payload()).unwrap();
    let message = Icmpv4Repr::parse(&icmp, &CAPS()).unwrap();
    let Icmpv4Repr::DstUnreachable { reason, header, data } = message else {
        panic!("{message:?}")
    };
    assert_eq!(reason, Icmpv4DstUnreachable::PortUnreachable);
    assert_eq!((header.src_addr, header.dst_addr), (GUEST, GATEWAY));
    let sent = UdpPacket::new_unchecked(data);
    assert_eq!((sent.src_port(), sent.dst_port()), (4000, port));
}

#[test]
fn a_closed_port_of_the_hosts_is_unreachable_over_ipv6() {
    let (_closed, port) = closed_port("::1");
    let frame = answer_to_datagram(GATEWAY_V6.into(), port);
    let frame = EthernetFrame::new_checked(&frame[..]).unwrap();
    let packet = Ipv6Packet::new_checked(frame.payload()).unwrap();
    let (from, to) = (packet.src_addr(), packet.dst_addr());
    assert_eq!((from, to), (GATEWAY_V6, GUEST_V6));
    let icmp = Icmpv6Packet::new_checked(packet.payload()).unwrap();
    let message = Icmpv6Repr::parse(&from, &to, &icmp, &CAPS()).unwrap();
    let Icmpv6Repr::DstUnreachable { reason, header, data } = message else {
        panic!("{message:?}")
    };
    assert_eq!(reason, Icmpv6DstUnreachable::PortUnreachable);
    assert_eq!((header.src_addr, header.dst_addr), (GUEST_V6, GATEWAY_V6));
    let sent = UdpPacket::new_unchecked(data);
    assert_eq!((sent.src_port(), sent.dst_port()), (4000, port));
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
    let handle = guest.udp_socket(5353);
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
    guest.stack.resolver = Resolver::fixed(None);
    let query = [0x12, 0x34, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let answers = guest.exchange(&udp_frame(outgoing(DNS), 1234, 53, &query));
    assert_eq!(answers[0][42..], [0x12, 0x34, 0x81, 0x82, 0, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn the_hosts_name_server_is_asked_under_both_addresses() {
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = server.local_addr().unwrap();
    let answers = std::thread::spawn(move || {
        let mut buffer = [0; 512];
        for _ in 0..2 {
            let (len, from) = server.recv_from(&mut buffer).unwrap();
            buffer[..len].reverse();
            server.send_to(&buffer[..len], from).unwrap();
        }
    });
    let mut guest = Guest::new();
    guest.stack.resolver = Resolver::fixed(Some(address));
    let handle = guest.udp_socket(5353);
    for dns in [IpAddr::from(DNS), DNS_V6.into()] {
        let dns = smoltcp::wire::IpAddress::from(dns);
        let socket = guest.sockets.get_mut::<udp::Socket>(handle);
        socket.send_slice(b"query", (dns, 53)).unwrap();
        guest.run_until(|sockets| {
            let Ok((data, from)) = sockets.get_mut::<udp::Socket>(handle).recv() else {
                return false;
            };
            assert_eq!((data, from.endpoint), (&b"yreuq"[..], (dns, 53).into()));
            true
        });
    }
    answers.join().unwrap();
}

/// The guest sends `up` and closes; the host sends `down` and closes; both get everything and the end of it.
fn transfer(guest: &mut Guest, ip: IpAddr, up: &[u8], down: &'static [u8]) {
    let loopback = if ip.is_ipv4() { "127.0.0.1:0" } else { "[::1]:0" };
    let listener = TcpListener::bind(loopback).unwrap();
    let handle = guest.connect(ip, listener.local_addr().unwrap().port());
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
    guest.settle();
    assert!(guest.stack.tcp.is_empty() && guest.stack.tokens.is_empty());
}

#[test]
fn a_mebibyte_goes_each_way_and_both_ends_close() {
    let data: &'static [u8] = pattern(MEBIBYTE).leak();
    transfer(&mut Guest::new(), GATEWAY.into(), data, data);
    transfer(&mut Guest::new(), GATEWAY_V6.into(), data, data);
}

#[test]
fn lost_segments_are_sent_again() {
    let mut guest = Guest::new();
    guest.lose_each = Some(23);
    transfer(&mut guest, GATEWAY.into(), &pattern(40_000), pattern(40_000).leak());
}

#[test]
fn a_refused_connection_is_reset() {
    // Bound and closed again: nobody listens there.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut guest = Guest::new();
    let handle = guest.connect(GATEWAY, port);
    guest.run_until(|sockets| sockets.get_mut::<tcp::Socket>(handle).state() == tcp::State::Closed);
    assert!(guest.stack.tcp.is_empty() && guest.stack.tokens.is_empty());
}

#[test]
fn a_reset_closes_the_hosts_connection() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut guest = Guest::new();
    let handle = guest.connect(GATEWAY, listener.local_addr().unwrap().port());
    guest.run_until(|sockets| sockets.get_mut::<tcp::Socket>(handle).may_send());
    let (mut stream, _) = listener.accept().unwrap();
    guest.stack.reset();
    // An end that cannot be taken for a complete one.
    assert_eq!(stream.read(&mut [0]).unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
}

fn syn(port: u16, dst_port: u16) -> TcpRepr<'static> {
    TcpRepr {
        src_port: port,
        dst_port,
        control: TcpControl::Syn,
        seq_number: TcpSeqNumber(0),
        ack_number: None,
        window_len: 1000,
        window_scale: None,
        max_seg_size: None,
        sack_permitted: false,
        sack_ranges: [None; 3],
        timestamp: None,
        payload: &[],
    }
}

#[test]
fn a_storm_of_connections_is_bounded_and_the_established_one_survives_it() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut guest = Guest::new();
    let handle = guest.connect(GATEWAY, port);
    guest.run_until(|sockets| sockets.get_mut::<tcp::Socket>(handle).may_send());
    let (mut stream, _) = listener.accept().unwrap();
    // The guest's last word of the handshake is to arrive.
    guest.settle();
    // From ports that the guest's own socket does not have; nobody answers at the addresses of RFC 5737.
    for number in 0..3000u16 {
        let path = outgoing(IpAddr::from([192, 0, 2, number.to_be_bytes()[1]]));
        guest.stack.receive(&tcp_frame(path, &syn(1000 + number, 80), &[]), false, Instant::now());
        assert!(guest.stack.tcp.len() <= MAX_CONNECTIONS);
        assert!(guest.stack.tokens.len() <= MAX_CONNECTIONS + MAX_FLOWS);
        assert!(guest.stack.pending.len() <= MAX_CONNECTIONS + MAX_FLOWS);
    }
    guest.sockets.get_mut::<tcp::Socket>(handle).send_slice(b"still here").unwrap();
    guest.settle();
    let mut received = [0; 10];
    stream.read_exact(&mut received).unwrap();
    assert_eq!(&received, b"still here");
}

#[test]
fn flows_of_datagrams_are_bounded_and_the_oldest_goes_first() {
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port();
    let mut guest = Guest::new();
    for number in 0..2 * MAX_FLOWS as u16 {
        guest.exchange(&udp_frame(outgoing(GATEWAY), 1000 + number, port, b"x"));
        assert!(guest.stack.flows.len() <= MAX_FLOWS);
    }
    let ports = guest.stack.flows.keys().map(|id| match id {
        super::FlowId::Udp(key) => key.guest_port,
        other => panic!("{other:?}"),
    });
    assert!(ports.min().unwrap() >= 1000 + MAX_FLOWS as u16);
}

/// Frames that are right but for a few bytes: of each protocol that the stack reads.
fn nearly_right_frame() -> impl Strategy<Value = Vec<u8>> {
    let payload = prop::collection::vec(any::<u8>(), 0..400);
    let kind = 0..9u8;
    let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4);
    (kind, payload, changes, any::<prop::sample::Index>()).prop_map(
        |(kind, payload, changes, cut)| {
            let mut frame = match kind {
                0 => arp_frame(MAC, GUEST, GATEWAY_MAC, GATEWAY),
                1 => udp_frame(outgoing(GATEWAY), 68, 67, &payload),
                // The options of DHCP.
                2 => {
                    let mut message = vec![0; 240];
                    message[0..3].copy_from_slice(&[1, 1, 6]);
                    message[236..].copy_from_slice(&[0x63, 0x82, 0x53, 0x63]);
                    message.extend(payload);
                    udp_frame(outgoing(GATEWAY), 68, 67, &message)
                }
                3 => icmp_frame(outgoing(GATEWAY), echo(8, 1, &payload)),
                4 => icmp_frame(outgoing(GATEWAY_V6), echo(128, 1, &payload)),
                // Neighbour and router discovery, with the payload for options.
                5 | 6 => {
                    let mut message = vec![if kind == 5 { 135 } else { 133 }, 0, 0, 0, 0, 0, 0, 0];
                    message.extend(ROUTER_LINK_LOCAL.octets());
                    message.extend(payload);
                    let path = super::wire::Path { hop_limit: 255, ..outgoing(ROUTER_LINK_LOCAL) };
                    icmp_frame(path, message)
                }
                7 => tcp_frame(outgoing(GUEST_V6), &syn(1, 1), &payload),
                _ => udp_frame(outgoing(DNS), 1234, 53, &payload),
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
        guest.stack.resolver = Resolver::fixed(None);
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
                control,
                seq_number: TcpSeqNumber(seq),
                ack_number: ack.filter(|_| index != 0).map(TcpSeqNumber),
                window_len,
                ..syn(1000, port)
            };
            let payload = if index == 0 { &[] } else { &payload[..] };
            guest.exchange(&tcp_frame(outgoing(GATEWAY), &segment, payload));
            if index % 4 == 0 {
                let _ = guest.ready.recv_timeout(Duration::from_millis(1));
            }
            guest.stack.handle_events(Instant::now());
            guest.stack.expire(Instant::now() + Duration::from_secs(u64::from(window_len % 3)));
        }
        prop_assert!(guest.stack.tcp.len() <= 1);
    }
}
