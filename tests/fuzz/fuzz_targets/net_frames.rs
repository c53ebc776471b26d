//! Frames of a guest, in any order and shape: nearly right ones, since others do not come far. Lengths and the checksums
//! that the network insists on are put right, and nobody but this process is talked to.
#![no_main]

use std::cell::RefCell;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;
use virtio_net::stack::{
    Capabilities, Forward, Frame, GATEWAY, GATEWAY_V6, GUEST, MAX_FRAME, MAX_LARGE_FRAME, Stack,
    Transport,
};

/// A network, and a host for it.
struct World {
    stack: Stack,
    tcp: TcpListener,
    udp: UdpSocket,
}

impl World {
    fn new() -> Self {
        let any = (Ipv4Addr::LOCALHOST, 0);
        let tcp = TcpListener::bind(any).expect("a listener");
        tcp.set_nonblocking(true).expect("a mode");
        let udp = UdpSocket::bind(any).expect("a socket");
        udp.set_nonblocking(true).expect("a mode");
        let mut stack = Stack::new([2, 0, 0, 0, 0, 1]).expect("a network");
        for transport in [Transport::Tcp, Transport::Udp] {
            let forward = Forward { transport, host: any.into(), guest_port: 7 };
            stack.forward(&forward).expect("a forward");
        }
        Self { stack, tcp, udp }
    }

    /// Makes a frame one that is looked at, and keeps it in this process.
    fn fix(&self, frame: &mut [u8]) {
        let Some((ethernet, packet)) = frame.split_at_mut_checked(14) else { return };
        let is_v6 = ethernet[12] & 1 != 0;
        let header = if is_v6 { 40 } else { 20 };
        let len = packet.len();
        if ethernet[12] & 0x70 == 0x70 {
            ethernet[12..].copy_from_slice(&[8, 6]);
            return;
        }
        let Some((ip, payload)) = packet.split_at_mut_checked(header) else { return };
        let protocol = if is_v6 { ip[6] } else { ip[9] } % 3;
        let (protocol, port) = match (protocol, is_v6) {
            (0, _) => (6, self.tcp.local_addr().expect("bound").port()),
            (1, _) => (17, self.udp.local_addr().expect("bound").port()),
            (_, false) => (1, 0),
            (_, true) => (58, 0),
        };
        let is_icmp = port == 0;
        // DHCP is for everybody.
        if protocol == 17 && !is_v6 && ip[1] & 1 != 0 {
            if let Some(to) = payload.get_mut(2..4) {
                to.copy_from_slice(&[0, 67]);
            }
        } else if !is_icmp && let Some(to) = payload.get_mut(2..4) {
            to.copy_from_slice(&port.to_be_bytes());
        }
        if is_v6 {
            ethernet[12..].copy_from_slice(&[0x86, 0xdd]);
            ip[0] = 0x60;
            ip[4..6].copy_from_slice(&(payload.len() as u16).to_be_bytes());
            (ip[6], ip[7]) = (protocol, if ip[7] & 1 == 0 { 255 } else { 64 });
            if ip[1] & 3 != 0 {
                ip[8..24].copy_from_slice(&[0xfe, 0xc0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 15]);
            }
            ip[24..].copy_from_slice(&GATEWAY_V6.octets());
            if is_icmp {
                let mut pseudo = ip[8..].to_vec();
                pseudo.extend((payload.len() as u32).to_be_bytes());
                pseudo.extend([0, 0, 0, protocol]);
                put_sum(payload, 2, &pseudo);
            }
        } else {
            ethernet[12..].copy_from_slice(&[8, 0]);
            ip[0] = 0x45;
            ip[2..4].copy_from_slice(&(len as u16).to_be_bytes());
            ip[6..8].copy_from_slice(&[0, 0]);
            ip[9] = protocol;
            ip[12..16].copy_from_slice(&GUEST.octets());
            ip[16..20].copy_from_slice(&GATEWAY.octets());
            put_sum(ip, 10, &[]);
            if is_icmp {
                put_sum(payload, 2, &[]);
            }
        }
    }

    /// Does what the host does.
    fn host(&mut self, data: &[u8]) {
        if let Ok((mut stream, _)) = self.tcp.accept() {
            use std::io::{Read as _, Write as _};
            let _ = stream.set_nonblocking(true);
            let _ = stream.write(data);
            let _ = stream.read(&mut [0; 4096]);
        }
        if let Ok((len, from)) = self.udp.recv_from(&mut [0; 4096]) {
            let _ = self.udp.send_to(&data[..len.min(data.len())], from);
        }
    }
}

/// Puts the checksum of `bytes`, and of `before`, at `at`.
fn put_sum(bytes: &mut [u8], at: usize, before: &[u8]) {
    let Some(slot) = bytes.get_mut(at..at + 2) else { return };
    slot.fill(0);
    let words = before.chunks(2).chain(bytes.chunks(2));
    let sum = words
        .map(|word| u64::from(u16::from_be_bytes([word[0], word.get(1).copied().unwrap_or(0)])))
        .sum::<u64>();
    let folded = (0..4).fold(sum, |sum, _| (sum >> 16) + (sum & 0xffff));
    bytes[at..at + 2].copy_from_slice(&(!(folded as u16)).to_be_bytes());
}

thread_local! {
    static WORLD: RefCell<World> = RefCell::new(World::new());
}

fuzz_target!(|bytes: &[u8]| {
    WORLD.with_borrow_mut(|world| {
        let Some((choice, mut rest)) = bytes.split_first() else { return };
        let mut now = Instant::now();
        let (checksum, tso4, tso6) = (choice & 1 != 0, choice & 3 == 3, choice & 5 == 5);
        world.stack.start(Capabilities { checksum, tso4, tso6 }, now);
        while let Some((&[kind, low, high], tail)) = rest.split_first_chunk() {
            let len = usize::from(u16::from_le_bytes([low, high])).min(tail.len());
            let (frame, tail) = tail.split_at(len);
            rest = tail;
            let mut frame = frame.to_vec();
            if kind & 0x40 != 0 {
                frame.resize(60_000, 0x5a);
            }
            if kind & 1 != 0 {
                world.fix(&mut frame);
                world.stack.receive(&frame, true, now);
            }
            if kind & 2 != 0 {
                world.host(&frame);
            }
            if kind & 4 != 0 {
                world.stack.handle_events(now);
            }
            if kind & 8 != 0 {
                now += Duration::from_millis(700);
                world.stack.expire(now);
            }
            let room = if kind & 16 != 0 { MAX_FRAME } else { MAX_LARGE_FRAME };
            let mut deliver = |frame: &Frame<'_>| {
                assert!((14..=room).contains(&frame.len()));
                assert!(checksum || frame.offload.checksum.is_none());
                assert!(frame.offload.segmentation.is_some() == (frame.len() > MAX_FRAME) || frame.len() <= MAX_FRAME);
            };
            for _ in 0..8 {
                if !world.stack.next_frame(room, now, &mut deliver) {
                    break;
                }
            }
        }
        world.stack.reset();
        assert!(world.stack.deadline().is_none());
    });
});
