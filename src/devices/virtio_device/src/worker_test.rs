//! The worker with a device that answers, over real ports, events and threads.

use std::sync::Arc;
use std::sync::mpsc;

use fuchsia_zircon::{self as zx, AsHandleRef as _, HandleBased as _};

use crate::error::QueueError;
use crate::fake_queue::FakeDriver;
use crate::features::{Features, RING_FEATURES};
use crate::memory::GuestMemory;
use crate::ring::QueueConfig;
use crate::worker::{Device, Io, Progress, QueueSet, Waker, Worker};

/// Answers each request with its bytes plus one. Queue 1 is blocked until it is woken.
#[derive(Debug)]
struct PlusOne {
    woken: bool,
    waker: Option<mpsc::Sender<Waker>>,
    resets: Arc<std::sync::atomic::AtomicU32>,
}

impl PlusOne {
    fn new() -> Self {
        Self { woken: false, waker: None, resets: Arc::default() }
    }
}

impl Device for PlusOne {
    fn ready(&mut self, _: Features, io: &Io<'_>) -> QueueSet {
        if let Some(sender) = self.waker.take() {
            sender.send(io.waker(7)).unwrap();
        }
        QueueSet::ALL
    }

    fn process(&mut self, index: u16, io: &Io<'_>) -> Result<Progress, QueueError> {
        if index == 1 && !self.woken {
            return Ok(Progress::Blocked);
        }
        let queue = io.queue(index).unwrap();
        while let Some(mut chain) = queue.pop()? {
            let byte: u8 = chain.read_obj().unwrap_or(0);
            let _ = chain.into_writable().write_obj(&byte.wrapping_add(1));
        }
        Ok(Progress::Idle)
    }

    fn signaled(&mut self, token: u32, _: zx::Signals, _: &Io<'_>) -> QueueSet {
        assert_eq!(token, 7);
        self.woken = true;
        QueueSet::of(1)
    }

    fn reset(&mut self) {
        self.woken = false;
        self.resets.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    }
}

struct Bed {
    worker: Worker<PlusOne>,
    drivers: Vec<FakeDriver>,
    event: zx::Event,
}

const USED: zx::Signals = zx::Signals::USER_0;
const INTERRUPT: zx::Signals = zx::Signals::USER_2;
const NEEDS_RESET: zx::Signals = zx::Signals::USER_3;

impl Bed {
    fn start(devices: Vec<PlusOne>) -> Self {
        let memory = Arc::new(GuestMemory::anonymous(1 << 20));
        let drivers: Vec<_> = (0..2)
            .map(|n| FakeDriver::new(&memory, n << 19..(n + 1) << 19, 16, RING_FEATURES))
            .collect();
        let event = zx::Event::create();
        let duplicate = event.duplicate_handle(zx::Rights::SAME_RIGHTS).unwrap();
        let worker = Worker::start(devices, 2, memory, 0xf000, duplicate).unwrap();
        Self { worker, drivers, event }
    }

    fn configure(&mut self) {
        for (queue, driver) in (0..).zip(&self.drivers) {
            self.worker.configure(queue, driver.config());
        }
    }

    /// Waits for an interrupt and takes it as a transport does; the signals that came with it.
    fn interrupt(&self) -> zx::Signals {
        let observed = self.event.wait_handle(INTERRUPT, zx::Time::INFINITE).unwrap();
        self.event.signal_handle(observed, zx::Signals::NONE).unwrap();
        observed
    }

    fn ask(&mut self, queue: u16, byte: u8) {
        let driver = &mut self.drivers[usize::from(queue)];
        driver.enable_interrupts(true);
        driver.chain().readable(&[byte]).writable(1).publish();
        if driver.take_kick() {
            self.worker.notify(queue);
        }
    }

    fn answer(&mut self, queue: u16) -> u8 {
        loop {
            if let Some(used) = self.drivers[usize::from(queue)].take_used() {
                return used.data[0];
            }
            self.interrupt();
        }
    }
}

#[test]
fn a_notification_is_answered_with_an_interrupt() {
    for lanes in 1..=2 {
        let mut bed = Bed::start((0..lanes).map(|_| PlusOne::new()).collect());
        bed.configure();
        bed.worker.ready(RING_FEATURES);
        for byte in 0..50 {
            bed.ask(0, byte);
            let signals = bed.interrupt();
            assert!(signals.contains(USED | zx::Signals::USER_4), "queue 0 is named");
            assert_eq!(bed.answer(0), byte + 1);
        }
    }
}

#[test]
fn what_was_made_available_before_ready_is_found() {
    let mut bed = Bed::start(vec![PlusOne::new()]);
    bed.configure();
    bed.ask(0, 1);
    bed.worker.ready(RING_FEATURES);
    assert_eq!(bed.answer(0), 2);
}

#[test]
fn a_blocked_queue_goes_on_when_the_device_is_woken() {
    let (sender, receiver) = mpsc::channel();
    let mut bed = Bed::start(vec![PlusOne { waker: Some(sender), ..PlusOne::new() }]);
    bed.configure();
    bed.worker.ready(RING_FEATURES);
    bed.ask(1, 5);
    bed.ask(0, 1);
    assert_eq!(bed.answer(0), 2);
    assert!(bed.drivers[1].take_used().is_none());
    receiver.recv().unwrap().wake();
    assert_eq!(bed.answer(1), 6);
}

#[test]
fn a_broken_driver_needs_a_reset_and_then_goes_on() {
    let mut bed = Bed::start(vec![PlusOne::new()]);
    bed.configure();
    bed.worker.ready(RING_FEATURES);
    bed.drivers[0].raw_publish(999);
    bed.worker.notify(0);
    assert!(bed.interrupt().contains(NEEDS_RESET));
    // Nothing is served until the reset.
    bed.ask(1, 1);
    bed.worker.notify(1);
    bed.worker.reset();
    assert!(bed.drivers[1].take_used().is_none());
    assert_eq!(
        bed.worker
            .with_device(|device, _| (device.resets.clone(), QueueSet::EMPTY))
            .load(std::sync::atomic::Ordering::Relaxed),
        1
    );

    let memory = Arc::new(GuestMemory::anonymous(1 << 20));
    let _ = memory;
    bed.worker.configure(0, bed.drivers[1].config());
    bed.worker.ready(RING_FEATURES);
    assert_eq!(bed.answer(1), 2, "queue 0 is now where queue 1 was");
}

#[test]
fn impossible_set_ups_need_a_reset() {
    let config = |bed: &Bed| bed.drivers[0].config();
    let cases: [fn(&mut Worker<PlusOne>, QueueConfig); 5] = [
        |worker, config| worker.configure(0, QueueConfig { size: 3, ..config }),
        |worker, config| worker.configure(0, QueueConfig { desc: !15, ..config }),
        |worker, config| worker.configure(2, config),
        |worker, config| {
            worker.configure(0, config);
            worker.configure(0, config);
        },
        |worker, config| {
            worker.ready(Features::empty());
            worker.configure(0, config);
        },
    ];
    for case in cases {
        let mut bed = Bed::start(vec![PlusOne::new()]);
        let config = config(&bed);
        case(&mut bed.worker, config);
        assert!(bed.interrupt().contains(NEEDS_RESET));
        bed.worker.ready(RING_FEATURES);
        bed.worker.reset();
        bed.configure();
        bed.worker.ready(RING_FEATURES);
        bed.ask(0, 1);
        assert_eq!(bed.answer(0), 2);
    }
}

#[test]
fn notifications_of_queues_that_do_not_exist_are_nothing() {
    let mut bed = Bed::start(vec![PlusOne::new()]);
    bed.worker.notify(0);
    bed.worker.notify(u16::MAX);
    bed.configure();
    bed.worker.notify(1);
    bed.worker.ready(RING_FEATURES);
    bed.worker.notify(63);
    bed.worker.notify(64);
    bed.ask(0, 1);
    assert_eq!(bed.answer(0), 2);
}
