//! The device against a fake driver.

use std::net::Ipv4Addr;
use std::sync::Arc;

use fuchsia_zircon as zx;
use proptest::prelude::*;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{IpProtocol, Ipv4Packet, Ipv4Repr, checksum};
use virtio_device::fake_queue::{FakeDriver, hostile_queue};
use virtio_device::{Device as _, Features, GuestMemory, Io, Progress, Queue, RING_FEATURES};

use crate::offload::feature;
use crate::stack::{GATEWAY, GUEST};
use crate::{NetDevice, RX, TX};

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// The guest asks who has `ip`.
pub(crate) fn arp_request(ip: Ipv4Addr) -> Vec<u8> {
    let mut frame = [[0xff; 6], MAC].concat();
    frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(MAC);
    frame.extend(GUEST.octets());
    frame.extend([0; 6]);
    frame.extend(ip.octets());
    frame
}

struct Net {
    device: NetDevice,
    rx: FakeDriver,
    tx: FakeDriver,
    queues: [Option<Queue>; 2],
    port: Arc<zx::Port>,
}

impl Net {
    fn new() -> Self {
        let memory = Arc::new(GuestMemory::anonymous(2 << 20));
        let rx = FakeDriver::new(&memory, 0..1 << 20, 16, RING_FEATURES);
        let tx = FakeDriver::new(&memory, 1 << 20..2 << 20, 16, RING_FEATURES);
        let queues = [Some(rx.queue()), Some(tx.queue())];
        let port = Arc::new(zx::Port::create());
        Self { device: NetDevice::new(MAC).unwrap(), rx, tx, queues, port }
    }

    /// One whose driver has negotiated `features`; the first frame is the router's advertisement.
    fn ready(features: Features) -> Self {
        let mut net = Self::new();
        net.device.ready(features | RING_FEATURES, &Io::new(&net.queues, &net.port));
        net
    }

    /// Publishes `count` buffers of `len` bytes.
    fn publish(&mut self, count: usize, len: u32) {
        for _ in 0..count {
            self.rx.chain().writable(len).publish();
        }
    }

    fn process(&mut self, queue: u16) -> Progress {
        self.device.process(queue, &Io::new(&self.queues, &self.port)).unwrap()
    }
}

#[test]
fn an_answer_waits_for_a_buffer_and_fills_one() {
    let mut net = Net::new();
    net.tx.chain().readable(&[0; 12]).readable(&arp_request(GATEWAY)).publish();
    assert_eq!(net.process(TX), Progress::Idle);
    assert_eq!(net.tx.take_used().unwrap().len, 0);
    assert_eq!(net.process(RX), Progress::Idle, "without a buffer the driver is to notify");
    net.rx.chain().writable(12).writable(1514).publish();
    net.rx.chain().writable(1526).publish();
    assert_eq!(net.process(RX), Progress::Blocked, "the second buffer waits for a frame");
    let used = net.rx.take_used().unwrap();
    assert_eq!(used.len, 12 + 42);
    assert_eq!(used.data[..12], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
    assert_eq!(used.data[12..18], MAC);
    assert!(net.rx.take_used().is_none());
}

#[test]
fn a_buffer_that_is_too_small_comes_back_empty() {
    let mut net = Net::new();
    net.tx.chain().readable(&[0; 12]).readable(&arp_request(GATEWAY)).publish();
    net.process(TX);
    net.rx.chain().writable(53).publish();
    net.process(RX);
    assert_eq!(net.rx.take_used().unwrap().len, 0);
}

#[test]
fn too_long_and_too_short_frames_are_dropped() {
    let mut net = Net::new();
    net.tx.chain().readable(&[0; 3]).publish();
    net.tx.chain().readable(&[0; 12]).publish();
    net.tx.chain().readable(&[0; 70_000]).publish();
    net.rx.chain().writable(1526).publish();
    assert_eq!(net.process(TX), Progress::Idle);
    assert_eq!(net.tx.take_all_used().len(), 3);
    assert_eq!(net.process(RX), Progress::Blocked);
}

/// An echo request of the guest's with `len` bytes of data, whose checksums are right.
fn ping(len: usize) -> Vec<u8> {
    let mut message = vec![8, 0, 0, 0, 0, 1, 0, 1];
    message.resize(8 + len, 0x5a);
    let sum = !checksum::data(&message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    let ip = Ipv4Repr {
        src_addr: GUEST,
        dst_addr: GATEWAY,
        next_header: IpProtocol::Icmp,
        payload_len: message.len(),
        hop_limit: 64,
    };
    let mut frame = vec![0; 34];
    frame[12..14].copy_from_slice(&[8, 0]);
    ip.emit(&mut Ipv4Packet::new_unchecked(&mut frame[14..]), &ChecksumCapabilities::default());
    frame.extend(message);
    frame
}

#[test]
fn a_frame_takes_as_many_mergeable_buffers_as_it_needs() {
    let mut net = Net::ready(feature::MRG_RXBUF);
    net.publish(13, 128);
    assert_eq!(net.process(RX), Progress::Idle, "one frame, then too little for another");
    let used = net.rx.take_all_used();
    let advertisement: Vec<u8> =
        used.iter().flat_map(|used| &used.data[..used.len as usize]).copied().collect();
    assert_eq!(used.len(), 2);
    assert_eq!((advertisement[10], used[0].len), (2, 128));
    assert_eq!(advertisement[24..26], [0x86, 0xdd]);

    net.tx.chain().readable(&[0; 12]).readable(&ping(1400)).publish();
    assert_eq!(net.process(TX), Progress::Idle);
    assert!(net.rx.take_used().is_none());
    net.publish(2, 128);
    net.process(RX);
    let used = net.rx.take_all_used();
    assert_eq!(used.len(), 12);
    let bytes: Vec<u8> =
        used.iter().flat_map(|used| &used.data[..used.len as usize]).copied().collect();
    assert_eq!(bytes.len(), 12 + 14 + 20 + 8 + 1400);
    assert_eq!(bytes[10..12], [12, 0], "num_buffers");
    assert!(bytes[54..].iter().all(|byte| *byte == 0x5a));
}

#[test]
fn a_mergeable_buffer_without_room_for_the_header_comes_back_empty() {
    let mut net = Net::ready(feature::MRG_RXBUF);
    net.publish(3, 11);
    assert_eq!(net.process(RX), Progress::Idle);
    assert!(net.rx.take_all_used().iter().all(|used| used.len == 0));
    assert_eq!(net.rx.outstanding(), 0);
}

#[test]
fn buffers_that_wait_are_forgotten_by_a_reset() {
    let mut net = Net::ready(feature::MRG_RXBUF);
    net.publish(2, 128);
    net.process(RX);
    net.device.reset();
    // The driver sets its queues up anew.
    let memory = Arc::new(GuestMemory::anonymous(1 << 20));
    net.rx = FakeDriver::new(&memory, 0..1 << 20, 16, RING_FEATURES);
    net.queues[0] = Some(net.rx.queue());
    net.device.ready(RING_FEATURES, &Io::new(&net.queues, &net.port));
    net.publish(1, 1526);
    assert_eq!(net.process(RX), Progress::Idle);
    assert_eq!(net.rx.take_used().unwrap().data[10], 1);
}

#[test]
fn headers_that_ask_for_the_impossible_lose_their_frame_only() {
    let mut net = Net::ready(feature::CSUM | feature::HOST_TSO4);
    net.publish(2, 1526);
    net.process(RX);
    net.rx.take_all_used();
    let bad: [[u8; 12]; 5] = [
        [0, 3, 0, 0, 100, 0, 0, 0, 0, 0, 0, 0], // An unknown gso_type.
        [1, 1, 0, 0, 0, 0, 34, 0, 16, 0, 0, 0], // No gso_size.
        [1, 4, 0, 0, 100, 0, 34, 0, 16, 0, 0, 0], // TSO6, which was not negotiated.
        [1, 0, 0, 0, 0, 0, 255, 255, 0, 0, 0, 0], // csum_start beyond the frame.
        [1, 0, 0, 0, 0, 0, 40, 0, 255, 255, 0, 0], // csum_offset beyond the frame.
    ];
    for header in bad {
        net.tx.chain().readable(&header).readable(&arp_request(GATEWAY)).publish();
        assert_eq!(net.process(TX), Progress::Idle);
        assert_eq!(net.tx.take_all_used().len(), 1);
        assert!(net.rx.take_used().is_none(), "{header:?}");
    }
    // hdr_len is a hint, also when it is beyond the frame.
    let header = [0, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0];
    net.tx.chain().readable(&header).readable(&arp_request(GATEWAY)).publish();
    net.process(TX);
    assert_eq!(net.rx.take_used().unwrap().len, 12 + 42);
}

#[test]
fn the_guests_frames_are_answered_without_another_notification() {
    let mut net = Net::new();
    net.publish(1, 1526);
    assert_eq!(net.process(RX), Progress::Blocked);
    net.tx.chain().readable(&[0; 12]).readable(&arp_request(GATEWAY)).publish();
    net.process(TX);
    assert_eq!(net.rx.take_used().unwrap().len, 12 + 42);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn a_hostile_driver_ends_in_an_error(choices in prop::collection::vec(any::<u8>(), 1..512)) {
        let mut device = NetDevice::new(MAC).unwrap();
        let port = Arc::new(zx::Port::create());
        let queues = [Some(hostile_queue(&choices)), Some(hostile_queue(&choices))];
        let io = Io::new(&queues, &port);
        for _ in 0..2 {
            let _ = device.process(TX, &io);
            let _ = device.process(RX, &io);
        }
    }
}
