//! The device against a fake driver.

use std::net::Ipv4Addr;
use std::sync::Arc;

use fuchsia_zircon as zx;
use proptest::prelude::*;
use virtio_device::fake_queue::{FakeDriver, hostile_queue};
use virtio_device::{Device as _, GuestMemory, Io, Progress, Queue, RING_FEATURES};

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
