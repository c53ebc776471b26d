//! The device against a fake driver and the other end of its socket.

use std::sync::Arc;

use fuchsia_zircon as zx;
use proptest::prelude::*;
use virtio_device::fake_queue::{FakeDriver, hostile_queue};
use virtio_device::{
    Device as _, GuestMemory, Io, Progress, Queue, QueueError, QueueSet, RING_FEATURES,
};

use crate::{ConsoleDevice, RX, TX};

struct Console {
    device: ConsoleDevice,
    rx: FakeDriver,
    tx: FakeDriver,
    queues: [Option<Queue>; 2],
    port: Arc<zx::Port>,
    host: zx::Socket,
}

impl Console {
    fn new() -> Self {
        let memory = Arc::new(GuestMemory::anonymous(8 << 20));
        let rx = FakeDriver::new(&memory, 0..1 << 20, 16, RING_FEATURES);
        let tx = FakeDriver::new(&memory, 1 << 20..8 << 20, 16, RING_FEATURES);
        let (host, socket) = zx::Socket::create_stream();
        let queues = [Some(rx.queue()), Some(tx.queue())];
        let port = Arc::new(zx::Port::create());
        Self { device: ConsoleDevice::new(socket), rx, tx, queues, port, host }
    }

    fn process(&mut self, queue: u16) -> Result<Progress, QueueError> {
        self.device.process(queue, &Io::new(&self.queues, &self.port))
    }

    /// All that the host can read now.
    fn drain(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut piece = vec![0; 1 << 16];
        while let Ok(count) = self.host.read(&mut piece) {
            bytes.extend(&piece[..count]);
        }
        bytes
    }

    /// The next signal that the device has asked for, as the queues that it wants to work on.
    fn next_signal(&mut self) -> QueueSet {
        let packet = self.port.wait(zx::Time::INFINITE).unwrap();
        let zx::PacketContents::SignalOne(signal) = packet.contents() else { panic!("a signal") };
        let token = packet.key() as u32;
        self.device.signaled(token, signal.observed(), &Io::new(&self.queues, &self.port))
    }
}

#[test]
fn the_guests_bytes_reach_the_host_in_order() {
    let mut console = Console::new();
    console.tx.chain().readable(b"hello, ").readable(b"world").publish();
    console.tx.chain().readable(b"!\n").publish();
    assert_eq!(console.process(TX), Ok(Progress::Idle));
    assert_eq!(console.drain(), b"hello, world!\n");
    let used = console.tx.take_all_used();
    assert_eq!(used.iter().map(|used| used.len).collect::<Vec<_>>(), [0, 0]);
}

#[test]
fn a_host_that_does_not_read_stops_the_guest_and_loses_nothing() {
    let mut console = Console::new();
    let data: Vec<u8> = (0..3u32 << 20).map(|i| (i / 7) as u8).collect();
    console.tx.chain().readable(&data).publish();
    assert_eq!(console.process(TX), Ok(Progress::Blocked));
    assert!(console.tx.take_used().is_none(), "the buffer is not returned before it is sent");
    let mut received = console.drain();
    assert!(received.len() < data.len());
    while console.tx.outstanding() > 0 {
        assert_eq!(console.next_signal(), QueueSet::of(TX));
        console.process(TX).unwrap();
        received.extend(console.drain());
        console.tx.take_all_used();
    }
    assert!(received == data);
}

#[test]
fn the_hosts_bytes_fill_the_guests_buffers() {
    let mut console = Console::new();
    console.rx.chain().writable(4).publish();
    console.rx.chain().writable(100).publish();
    console.rx.chain().writable(100).publish();
    console.host.write(b"type here").unwrap();
    assert_eq!(console.process(RX), Ok(Progress::Blocked));
    let used = console.rx.take_all_used();
    assert_eq!(used.len(), 2, "a buffer is returned with what there is; none is returned empty");
    assert_eq!((used[0].len, &used[0].data[..]), (4, &b"type"[..]));
    assert_eq!((used[1].len, &used[1].data[..5]), (5, &b" here"[..]));

    console.host.write(b"more").unwrap();
    assert_eq!(console.next_signal(), QueueSet::of(RX));
    console.process(RX).unwrap();
    assert_eq!(console.rx.take_used().unwrap().len, 4);
}

#[test]
fn needless_notifications_add_no_waits() {
    let mut console = Console::new();
    console.rx.chain().writable(16).publish();
    for _ in 0..100 {
        assert_eq!(console.process(RX), Ok(Progress::Blocked));
    }
    console.host.write(b"x").unwrap();
    assert_eq!(console.next_signal(), QueueSet::of(RX));
    assert_eq!(console.port.wait(zx::Time::INFINITE_PAST).unwrap_err(), zx::Status::TIMED_OUT);
}

#[test]
fn bytes_wait_for_buffers() {
    let mut console = Console::new();
    console.host.write(b"early").unwrap();
    assert_eq!(console.process(RX), Ok(Progress::Idle));
    console.rx.chain().writable(16).publish();
    console.process(RX).unwrap();
    assert_eq!(&console.rx.take_used().unwrap().data[..5], b"early");
}

#[test]
fn a_host_that_is_gone_does_not_stop_the_guest() {
    let mut console = Console::new();
    console.host = zx::Socket::create_stream().0;
    console.tx.chain().readable(b"anyone?").publish();
    assert_eq!(console.process(TX), Ok(Progress::Idle));
    assert_eq!(console.tx.take_all_used().len(), 1);
    console.rx.chain().writable(16).publish();
    assert_eq!(console.process(RX), Ok(Progress::Blocked));
    assert!(console.rx.take_used().is_none());
}

#[test]
fn wrong_directions_are_harmless() {
    let mut console = Console::new();
    console.host.write(b"x").unwrap();
    console.rx.chain().readable(b"not writable").publish();
    console.rx.chain().writable(1).publish();
    console.process(RX).unwrap();
    let used = console.rx.take_all_used();
    assert_eq!((used[0].len, used[1].len, used[1].data[0]), (0, 1, b'x'));

    console.tx.chain().writable(16).publish();
    assert_eq!(console.process(TX), Ok(Progress::Idle));
    assert_eq!(console.tx.take_used().unwrap().len, 0);
    assert!(console.drain().is_empty());
}

#[test]
fn a_reset_forgets_what_was_half_sent() {
    let mut console = Console::new();
    console.tx.chain().readable(&vec![1; 3 << 20]).publish();
    assert_eq!(console.process(TX), Ok(Progress::Blocked));
    console.device.reset();
    console.queues[1] = Some(
        FakeDriver::new(&Arc::new(GuestMemory::anonymous(1 << 20)), 0..1 << 20, 16, RING_FEATURES)
            .queue(),
    );
    assert_eq!(console.process(TX), Ok(Progress::Idle));
}

#[test]
fn broken_rings_are_reported() {
    for queue in [RX, TX] {
        let mut console = Console::new();
        console.host.write(b"x").unwrap();
        let driver = if queue == RX { &mut console.rx } else { &mut console.tx };
        driver.raw_avail_index(1000);
        assert_eq!(
            console.process(queue),
            Err(QueueError::AvailableIndex { ahead: 1000, size: 16 })
        );
    }
}

proptest! {
    #[test]
    fn a_hostile_driver_harms_nobody(choices in proptest::collection::vec(any::<u8>(), 0..400)) {
        let queues = [Some(hostile_queue(&choices)), Some(hostile_queue(&choices))];
        let port = Arc::new(zx::Port::create());
        let (host, socket) = zx::Socket::create_stream();
        let mut device = ConsoleDevice::new(socket);
        for _ in 0..4 {
            host.write(b"some bytes for the guest").unwrap();
            for queue in [RX, TX] {
                let _ = device.process(queue, &Io::new(&queues, &port));
            }
            let _ = host.read(&mut [0; 4096]);
        }
    }
}
