//! A forward of a process that has no descriptor left. It is a program of its own, because the limit is the process's.
#![cfg(target_os = "linux")]

use std::net::TcpStream;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use smoltcp::wire::{EthernetFrame, EthernetProtocol, Ipv4Packet, TcpPacket};
use virtio_net::stack::{Capabilities, Forward, MAX_FRAME, Stack, Transport};

/// Guest ports of the connections that the frames for the guest open.
fn opened(stack: &mut Stack, now: Instant) -> Vec<u16> {
    let mut ports = Vec::new();
    while stack.next_frame(MAX_FRAME, now, &mut |frame| {
        let bytes = frame.parts().concat();
        let frame = EthernetFrame::new_checked(&bytes[..]).unwrap();
        // The router also advertises itself.
        if frame.ethertype() == EthernetProtocol::Ipv4 {
            let packet = Ipv4Packet::new_checked(frame.payload()).unwrap();
            let segment = TcpPacket::new_checked(packet.payload()).unwrap();
            assert!(segment.syn());
            ports.push(segment.dst_port());
        }
    }) {}
    ports
}

#[test]
fn a_forward_that_cannot_accept_waits_and_goes_on() {
    let mut stack = Stack::new([2, 0x1a, 0x11, 0, 0, 1]).unwrap();
    let host = "127.0.0.1:0".parse().unwrap();
    let forward = Forward { transport: Transport::Tcp, host, guest_port: 80 };
    let address = stack.forward(&forward).unwrap();
    let _hosts = [TcpStream::connect(address).unwrap(), TcpStream::connect(address).unwrap()];

    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(0), ..limit }).unwrap();
    let now = Instant::now();
    stack.start(Capabilities::default(), now);
    assert_eq!(opened(&mut stack, now), []);
    let retry = stack.deadline().expect("it tries again");
    assert!(retry > now && retry < now + Duration::from_secs(60), "{:?}", retry - now);
    stack.expire(retry);
    assert_eq!(opened(&mut stack, retry), []);
    let later = stack.deadline().expect("it tries again");
    assert!(later > retry);

    setrlimit(Resource::Nofile, limit).unwrap();
    stack.handle_events(retry);
    assert_eq!(opened(&mut stack, retry), [], "it waits for its time");
    stack.expire(later);
    assert_eq!(opened(&mut stack, later), [80, 80]);
}
