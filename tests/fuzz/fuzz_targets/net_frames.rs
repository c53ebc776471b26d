//! Frames of a guest, in any order and shape: nearly right ones, since others do not come far. Lengths and the checksums
//! that the network insists on are put right, and nobody but this process is talked to.
#![no_main]

mod network;

use std::cell::RefCell;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;
use network::Host;
use virtio_net::stack::{
    Capabilities, Forward, Frame, MAX_FRAME, MAX_LARGE_FRAME, Stack, Transport,
};

/// A network, and a host for it.
struct World {
    stack: Stack,
    host: Host,
}

impl World {
    fn new() -> Self {
        let mut stack = Stack::new([2, 0, 0, 0, 0, 1]).expect("a network");
        let mut network = Host::new();
        for transport in [Transport::Tcp, Transport::Udp] {
            let host = (Ipv4Addr::LOCALHOST, 0).into();
            let forward = Forward { transport, host, guest_port: 7 };
            network.forwards.push(stack.forward(&forward).expect("a forward"));
        }
        Self { stack, host: network }
    }
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
                world.host.fix(&mut frame);
                world.stack.receive(&frame, true, now);
            }
            if kind & 2 != 0 {
                world.host.act(&frame);
            }
            if kind & 32 != 0 {
                world.host.wait();
            }
            if kind & 4 != 0 {
                world.stack.handle_events(now);
            }
            if kind & 8 != 0 {
                now += Duration::from_millis(700);
                world.stack.expire(now);
            }
            let room = if kind & 16 != 0 { MAX_FRAME } else { MAX_LARGE_FRAME };
            let heard = &mut world.host;
            let mut deliver = |frame: &Frame<'_>| {
                assert!((14..=room).contains(&frame.len()));
                assert!(checksum || frame.offload.checksum.is_none());
                assert!(frame.offload.segmentation.is_some() || frame.len() <= MAX_FRAME);
                heard.hear(frame);
            };
            for _ in 0..8 {
                if !world.stack.next_frame(room, now, &mut deliver) {
                    break;
                }
            }
        }
        world.stack.reset();
        world.host.reset();
        assert!(world.stack.deadline().is_none());
    });
});
