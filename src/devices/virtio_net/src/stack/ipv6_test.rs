//! IPv6: discovery, address configuration, echo and transport.

use std::net::{IpAddr, Ipv6Addr, UdpSocket};

use smoltcp::socket::udp;
use smoltcp::wire::{
    EthernetFrame, EthernetProtocol, Icmpv6Packet, Icmpv6Repr, Ipv6Packet, NdiscNeighborFlags,
    NdiscPrefixInfoFlags, NdiscRepr,
};

use super::address::{ALL_NODES, GATEWAY_MAC, ROUTER_LINK_LOCAL};
use super::test_guest::{GUEST_V6, Guest, MAC, echo, icmp_frame, next_frame, outgoing, udp_frame};
use super::wire::Path;
use super::{Capabilities, DNS_V6, GATEWAY_V6, MTU, PREFIX_V6};

/// Takes a frame apart, with all checks; who it is from and to, and its ICMPv6 message.
fn icmp(frame: &[u8], check: impl FnOnce(&Icmpv6Repr<'_>)) -> (Ipv6Addr, Ipv6Addr, u8) {
    let frame = EthernetFrame::new_checked(frame).unwrap();
    assert_eq!(frame.ethertype(), EthernetProtocol::Ipv6);
    let packet = Ipv6Packet::new_checked(frame.payload()).unwrap();
    let (from, to) = (packet.src_addr(), packet.dst_addr());
    let message = Icmpv6Packet::new_checked(packet.payload()).unwrap();
    let caps = smoltcp::phy::ChecksumCapabilities::default();
    check(&Icmpv6Repr::parse(&from, &to, &message, &caps).unwrap());
    (from, to, packet.hop_limit())
}

/// A neighbour solicitation for `target` from `from`.
fn solicitation(from: IpAddr, target: Ipv6Addr, hop_limit: u8) -> Vec<u8> {
    let mut message = vec![135, 0, 0, 0, 0, 0, 0, 0];
    message.extend(target.octets());
    let path = Path { mac: GATEWAY_MAC, from, to: target.into(), hop_limit };
    icmp_frame(path, message)
}

fn check_advertisement(frame: &[u8]) {
    let (from, to, hop_limit) = icmp(frame, |message| {
        let Icmpv6Repr::Ndisc(NdiscRepr::RouterAdvert {
            router_lifetime,
            lladdr,
            mtu,
            prefix_info: Some(prefix),
            ..
        }) = message
        else {
            panic!("{message:?}");
        };
        assert!(router_lifetime.secs() > 600);
        assert_eq!(*lladdr, Some(GATEWAY_MAC.into()));
        assert_eq!(*mtu, Some(MTU as u32));
        assert_eq!((prefix.prefix, prefix.prefix_len), (PREFIX_V6, 64));
        assert!(prefix.flags.contains(NdiscPrefixInfoFlags::ADDRCONF));
    });
    assert_eq!((from, to, hop_limit), (ROUTER_LINK_LOCAL, ALL_NODES, 255));
    // The option that smoltcp does not know: the name server (RFC 8106).
    let option = [&[25, 3, 0, 0][..], &1800u32.to_be_bytes(), &DNS_V6.octets()].concat();
    assert!(frame.ends_with(&option));
}

#[test]
fn the_router_advertises_itself_to_a_new_guest_and_when_asked() {
    let mut guest = Guest::new();
    let now = std::time::Instant::now();
    guest.stack.start(Capabilities::default(), now);
    check_advertisement(&next_frame(&mut guest.stack, now).unwrap());
    assert!(guest.stack.deadline().unwrap() > now);
    let path = Path { hop_limit: 255, ..outgoing(ROUTER_LINK_LOCAL) };
    let answers = guest.exchange(&icmp_frame(path, vec![133, 0, 0, 0, 0, 0, 0, 0]));
    assert_eq!(answers.len(), 1);
    check_advertisement(&answers[0]);
}

#[test]
fn neighbours_are_found_on_the_link_only() {
    let mut guest = Guest::new();
    for target in [ROUTER_LINK_LOCAL, GATEWAY_V6, DNS_V6] {
        let answers = guest.exchange(&solicitation(GUEST_V6.into(), target, 255));
        let (from, to, _) = icmp(&answers[0], |message| {
            let Icmpv6Repr::Ndisc(NdiscRepr::NeighborAdvert { flags, target_addr, lladdr }) =
                message
            else {
                panic!("{message:?}");
            };
            assert!(flags.contains(NdiscNeighborFlags::SOLICITED | NdiscNeighborFlags::ROUTER));
            assert_eq!(*target_addr, target);
            assert!(lladdr.is_some());
        });
        assert_eq!((from, to), (target, GUEST_V6));
    }
    assert!(guest.exchange(&solicitation(GUEST_V6.into(), GUEST_V6, 255)).is_empty());
    assert!(guest.exchange(&solicitation(GUEST_V6.into(), GATEWAY_V6, 64)).is_empty());
    // Somebody wants the router's address: everybody hears that it is taken.
    let unspecified = Ipv6Addr::UNSPECIFIED.into();
    let answers = guest.exchange(&solicitation(unspecified, GATEWAY_V6, 255));
    let (_, to, _) = icmp(&answers[0], |_| {});
    assert_eq!(to, ALL_NODES);
}

#[test]
fn the_router_answers_a_ping() {
    let mut guest = Guest::new();
    for target in [GATEWAY_V6, DNS_V6, ROUTER_LINK_LOCAL] {
        let answers = guest.exchange(&icmp_frame(outgoing(target), echo(128, 7, b"abc")));
        let frame = EthernetFrame::new_checked(&answers[0]).unwrap();
        assert_eq!(frame.dst_addr(), MAC);
        let (from, to, _) = icmp(&answers[0], |message| {
            assert_eq!(*message, Icmpv6Repr::EchoReply { ident: 7, seq_no: 1, data: b"abc" });
        });
        assert_eq!((from, to), (target, GUEST_V6));
    }
}

#[test]
fn datagrams_go_to_the_hosts_loopback_and_back() {
    let server = UdpSocket::bind("[::1]:0").unwrap();
    let port = server.local_addr().unwrap().port();
    let echo = std::thread::spawn(move || {
        let mut buffer = [0; 2048];
        for _ in 0..2 {
            let (len, from) = server.recv_from(&mut buffer).unwrap();
            server.send_to(&buffer[..len], from).unwrap();
        }
    });
    let mut guest = Guest::new();
    let handle = guest.udp_socket(5353);
    for len in [0, 1452] {
        let sent = super::test_guest::pattern(len);
        let socket = guest.sockets.get_mut::<udp::Socket>(handle);
        socket.send_slice(&sent, (GATEWAY_V6, port)).unwrap();
        guest.run_until(|sockets| {
            let Ok((data, from)) = sockets.get_mut::<udp::Socket>(handle).recv() else {
                return false;
            };
            assert_eq!(from.endpoint, (GATEWAY_V6, port).into());
            assert!(data == sent);
            true
        });
    }
    echo.join().unwrap();
}

#[test]
fn addresses_that_are_not_the_guests_are_not_translated() {
    let server = UdpSocket::bind("[::1]:0").unwrap();
    server.set_nonblocking(true).unwrap();
    let port = server.local_addr().unwrap().port();
    let mut guest = Guest::new();
    for from in ["fe80::1", "2001:db8::1", "fec0::2", "::"] {
        let path = Path { from: from.parse().unwrap(), ..outgoing(GATEWAY_V6) };
        guest.exchange(&udp_frame(path, 1000, port, b"x"));
        assert!(guest.stack.flows.is_empty(), "{from}");
    }
    assert!(server.recv(&mut [0]).is_err());
}
