//! The queue against a driver that behaves, and against drivers that do not.

use std::io::{Read as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{QueueConfigError, QueueError, RingPart};
use crate::fake_queue::FakeDriver;
use crate::features::{Features, RING_FEATURES};
use crate::memory::GuestMemory;
use crate::queue::Queue;
use crate::ring::{Descriptor, DescriptorFlags, QueueConfig};

const MEMORY: u64 = 1 << 20;

fn driver(size: u16, features: Features) -> FakeDriver {
    let memory = Arc::new(GuestMemory::anonymous(MEMORY as usize));
    FakeDriver::new(&memory, 0x1000..MEMORY, size, features)
}

fn plain() -> FakeDriver {
    driver(8, RING_FEATURES)
}

fn descriptor(addr: u64, len: u32, flags: DescriptorFlags, next: u16) -> Descriptor {
    Descriptor { addr: addr.into(), len: len.into(), flags: flags.bits().into(), next: next.into() }
}

/// What popping the chain at descriptor 0 gives.
fn pop_error(driver: &mut FakeDriver) -> QueueError {
    let queue = driver.queue();
    driver.raw_publish(0);
    let error = queue.pop().unwrap_err();
    assert_eq!(queue.pop().unwrap_err(), error, "a broken queue stays broken");
    assert!(!queue.has_available());
    error
}

#[test]
fn an_empty_queue_yields_nothing() {
    let driver = plain();
    let queue = driver.queue();
    assert!(queue.pop().unwrap().is_none());
    assert!(!queue.has_available());
    assert!(!queue.take_interrupt());
}

#[test]
fn a_request_is_read_then_written_then_returned() {
    let mut driver = plain();
    let queue = driver.queue();
    let head = driver.chain().readable(b"hel").readable(b"lo").writable(3).writable(5).publish();

    let mut chain = queue.pop().unwrap().unwrap();
    assert_eq!(chain.remaining(), 5);
    assert_eq!(chain.writable_len(), 8);
    assert_eq!(chain.descriptors(), (2, 2));
    let mut text = String::new();
    chain.read_to_string(&mut text).unwrap();
    assert_eq!(text, "hello");
    let mut chain = chain.into_writable();
    chain.write_all(b"world").unwrap();
    assert_eq!(chain.remaining(), 3);
    assert!(driver.take_used().is_none(), "not returned before it is dropped");
    drop(chain);

    let used = driver.take_used().unwrap();
    assert_eq!((used.head, used.len), (head, 5));
    assert_eq!(&used.data, b"world\xa5\xa5\xa5");
    assert!(driver.take_used().is_none());
}

#[test]
fn objects_span_descriptors() {
    let mut driver = plain();
    let queue = driver.queue();
    driver.chain().readable(&[1, 2, 3]).readable(&[4]).writable(1).writable(7).publish();
    let mut chain = queue.pop().unwrap().unwrap();
    assert_eq!(chain.read_obj::<u32>().unwrap(), u32::from_le_bytes([1, 2, 3, 4]));
    let error = chain.read_obj::<u8>().unwrap_err();
    assert_eq!((error.wanted, error.remaining), (1, 0));
    let mut chain = chain.into_writable();
    chain.write_obj(&0x0807_0605_0403_0201u64).unwrap();
    chain.write_obj(&0u8).unwrap_err();
    drop(chain);
    assert_eq!(driver.take_used().unwrap().data, [1, 2, 3, 4, 5, 6, 7, 8]);
}

#[test]
fn a_tail_is_written_last_and_the_gap_is_zeroed() {
    let mut driver = plain();
    let queue = driver.queue();
    driver.chain().writable(4).writable(5).publish();
    let mut chain = queue.pop().unwrap().unwrap().into_writable();
    chain.reserve_tail(10).unwrap_err();
    chain.reserve_tail(1).unwrap();
    assert_eq!(chain.remaining(), 8);
    chain.write_all(&[7; 2]).unwrap();
    chain.release_tail();
    assert_eq!(chain.remaining(), 1);
    chain.write_all(&[9]).unwrap();
    drop(chain);
    let used = driver.take_used().unwrap();
    assert_eq!((used.len, used.data), (9, vec![7, 7, 0, 0, 0, 0, 0, 0, 9]));
}

#[test]
fn chains_return_in_any_order() {
    let mut driver = plain();
    let queue = driver.queue();
    let heads: Vec<_> = (0..3).map(|_| driver.chain().writable(1).publish()).collect();
    let first = queue.pop().unwrap().unwrap();
    let second = queue.pop().unwrap().unwrap();
    let third = queue.pop().unwrap().unwrap();
    drop(second);
    drop(first);
    drop(third);
    let order: Vec<_> = driver.take_all_used().iter().map(|used| used.head).collect();
    assert_eq!(order, [heads[1], heads[0], heads[2]]);
}

#[test]
fn a_held_chain_resumes_on_its_own_queue_only() {
    let mut driver = plain();
    let queue = driver.queue();
    driver.chain().writable(1).publish();
    let held = queue.pop().unwrap().unwrap().hold();
    assert!(driver.take_used().is_none());
    drop(queue.resume(held).unwrap());
    assert_eq!(driver.take_used().unwrap().len, 0);

    driver.chain().writable(1).publish();
    let held = queue.pop().unwrap().unwrap().hold();
    assert!(driver.queue().resume(held).is_none());
}

#[test]
fn held_back_chains_become_visible_together() {
    let mut driver = plain();
    let queue = driver.queue();
    for _ in 0..3 {
        driver.chain().writable(1).publish();
    }
    drop(queue.pop().unwrap());
    let hold = queue.hold_used();
    drop(queue.pop().unwrap());
    drop(queue.pop().unwrap());
    assert_eq!(driver.take_all_used().len(), 1);
    drop(hold);
    assert_eq!(driver.take_all_used().len(), 2);
}

#[test]
fn indices_wrap_around() {
    for features in [Features::empty(), RING_FEATURES] {
        let mut driver = driver(2, features);
        let queue = driver.queue();
        for round in 0..70_000u32 {
            let indirect = features.contains(Features::INDIRECT_DESC) && round % 3 == 0;
            let chain = driver.chain().readable(&round.to_le_bytes()).writable(4);
            let head = if indirect { chain.indirect() } else { chain }.publish();
            let mut chain = queue.pop().unwrap().unwrap();
            let value: u32 = chain.read_obj().unwrap();
            chain.into_writable().write_obj(&!value).unwrap();
            let used = driver.take_used().unwrap();
            assert_eq!((used.head, used.len), (head, 4));
            assert_eq!(used.data, (!round).to_le_bytes());
        }
    }
}

#[test]
fn an_indirect_chain_may_be_longer_than_the_queue() {
    let mut driver = driver(4, RING_FEATURES);
    let queue = driver.queue();
    let mut chain = driver.chain();
    for byte in 0..40 {
        chain = chain.readable(&[byte]);
    }
    chain.writable(1).indirect().publish();
    let mut chain = queue.pop().unwrap().unwrap();
    let mut bytes = Vec::new();
    chain.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes, (0..40).collect::<Vec<u8>>());
}

#[test]
fn malformed_chains_are_the_guests_fault() {
    use DescriptorFlags as F;
    type Case = (fn(&mut FakeDriver), QueueError);
    let cases: [Case; 11] = [
        (
            |driver| driver.raw_descriptor(0, descriptor(0, 16, F::NEXT, 0)),
            QueueError::ChainTooLong { limit: 8 },
        ),
        (
            |driver| driver.raw_descriptor(0, descriptor(0, 16, F::NEXT, 8)),
            QueueError::DescriptorIndex { index: 8, size: 8 },
        ),
        (
            |driver| driver.raw_descriptor(0, descriptor(0, 0, F::empty(), 0)),
            QueueError::ZeroLength,
        ),
        (
            |driver| {
                driver.raw_descriptor(0, descriptor(0, 1, F::WRITE | F::NEXT, 1));
                driver.raw_descriptor(1, descriptor(0, 1, F::empty(), 0));
            },
            QueueError::ReadableAfterWritable,
        ),
        (
            |driver| driver.raw_descriptor(0, descriptor(0, 15, F::INDIRECT, 0)),
            QueueError::IndirectTableSize(15),
        ),
        (
            |driver| driver.raw_descriptor(0, descriptor(0, 0, F::INDIRECT, 0)),
            QueueError::IndirectTableSize(0),
        ),
        (
            |driver| driver.raw_descriptor(0, descriptor(0x8000, 16, F::INDIRECT | F::NEXT, 0)),
            QueueError::IndirectWithNext,
        ),
        (
            |driver| {
                // The table's memory is where `raw_descriptor(1, …)` is.
                let table = driver.config().desc + 16;
                driver.raw_descriptor(0, descriptor(table, 16, F::INDIRECT, 0));
                driver.raw_descriptor(1, descriptor(table, 16, F::INDIRECT, 0));
            },
            QueueError::NestedIndirect,
        ),
        (
            |driver| {
                let table = driver.config().desc + 16;
                driver.raw_descriptor(0, descriptor(table, 32, F::INDIRECT, 0));
                driver.raw_descriptor(1, descriptor(0, 1, F::NEXT, 1));
                driver.raw_descriptor(2, descriptor(0, 1, F::NEXT, 0));
            },
            QueueError::ChainTooLong { limit: 2 },
        ),
        (
            |driver| {
                let table = driver.config().desc + 16;
                driver.raw_descriptor(0, descriptor(table, 32, F::INDIRECT, 0));
                driver.raw_descriptor(1, descriptor(0, 1, F::NEXT, 5));
            },
            QueueError::DescriptorIndex { index: 5, size: 2 },
        ),
        (|driver| driver.raw_avail_index(8), QueueError::AvailableIndex { ahead: 9, size: 8 }),
    ];
    for (arrange, expected) in cases {
        let mut driver = plain();
        arrange(&mut driver);
        assert_eq!(pop_error(&mut driver), expected);
    }
}

#[test]
fn buffers_outside_memory_are_the_guests_fault() {
    for (addr, len) in
        [(MEMORY, 1), (MEMORY - 1, 2), (u64::MAX, 1), (u64::MAX - 4, 5), (0, u32::MAX)]
    {
        let mut driver = plain();
        driver.raw_descriptor(0, descriptor(addr, len, DescriptorFlags::empty(), 0));
        assert!(
            matches!(pop_error(&mut driver), QueueError::OutOfRange(_)),
            "{addr:#x} + {len:#x}"
        );
        let mut driver = plain();
        driver.raw_descriptor(0, descriptor(addr, len & !15 | 16, DescriptorFlags::INDIRECT, 0));
        assert!(
            matches!(pop_error(&mut driver), QueueError::OutOfRange(_)),
            "{addr:#x} + {len:#x}"
        );
    }
}

#[test]
fn an_indirect_descriptor_needs_the_feature() {
    let mut driver = driver(8, Features::EVENT_IDX);
    driver.raw_descriptor(0, descriptor(0x8000, 16, DescriptorFlags::INDIRECT, 0));
    assert_eq!(pop_error(&mut driver), QueueError::IndirectNotNegotiated);
}

#[test]
fn chains_of_four_gigabytes_are_refused() {
    // Many descriptors name the same memory, so little of it is enough.
    let mut driver = driver(8192, Features::empty());
    for index in 0..8191 {
        driver
            .raw_descriptor(index, descriptor(0, MEMORY as u32, DescriptorFlags::NEXT, index + 1));
    }
    assert_eq!(pop_error(&mut driver), QueueError::ChainTooLarge);
}

#[test]
fn a_buffer_made_available_while_in_flight_is_refused() {
    let mut driver = driver(1, Features::empty());
    let queue = driver.queue();
    driver.raw_descriptor(0, descriptor(0, 1, DescriptorFlags::empty(), 0));
    driver.raw_publish(0);
    let _first = queue.pop().unwrap().unwrap();
    driver.raw_publish(0);
    assert_eq!(queue.pop().unwrap_err(), QueueError::TooManyInFlight);
}

#[test]
fn malformed_queues_are_refused() {
    let memory = Arc::new(GuestMemory::anonymous(0x4000));
    let good = QueueConfig { size: 8, desc: 0x1000, avail: 0x2000, used: 0x3000 };
    assert!(Queue::new(memory.clone(), good, RING_FEATURES).is_ok());
    let refused = |config| Queue::new(memory.clone(), config, RING_FEATURES).unwrap_err();
    for size in [0, 3, 32769, u16::MAX] {
        assert_eq!(refused(QueueConfig { size, ..good }), QueueConfigError::Size(size));
    }
    for (config, part) in [
        (QueueConfig { desc: 0x1008, ..good }, RingPart::DescriptorTable),
        (QueueConfig { avail: 0x2001, ..good }, RingPart::AvailableRing),
        (QueueConfig { used: 0x3002, ..good }, RingPart::UsedRing),
    ] {
        assert!(
            matches!(refused(config), QueueConfigError::Misaligned { part: p, .. } if p == part)
        );
    }
    for (config, part) in [
        (QueueConfig { desc: 0x4000, ..good }, RingPart::DescriptorTable),
        (QueueConfig { avail: u64::MAX - 1, ..good }, RingPart::AvailableRing),
        (QueueConfig { used: 0x3ffc, ..good }, RingPart::UsedRing),
    ] {
        assert!(
            matches!(refused(config), QueueConfigError::OutOfRange { part: p, .. } if p == part)
        );
    }
}

#[test]
fn interrupts_follow_the_drivers_flag() {
    let mut driver = driver(8, Features::empty());
    let queue = driver.queue();
    driver.chain().writable(1).publish();
    drop(queue.pop().unwrap());
    assert!(queue.take_interrupt());
    assert!(!queue.take_interrupt(), "nothing new was returned");

    driver.enable_interrupts(false);
    driver.chain().writable(1).publish();
    drop(queue.pop().unwrap());
    assert!(!queue.take_interrupt());
}

#[test]
fn interrupts_follow_the_drivers_event_index() {
    let mut driver = plain();
    let queue = driver.queue();
    assert!(!driver.enable_interrupts(true));
    for _ in 0..2 {
        driver.chain().writable(1).publish();
    }
    drop(queue.pop().unwrap());
    assert!(queue.take_interrupt());
    drop(queue.pop().unwrap());
    assert!(!queue.take_interrupt(), "the driver asked for the first only");
    assert!(driver.enable_interrupts(true), "two returned chains were not looked at yet");
    driver.take_all_used();
    assert!(!driver.enable_interrupts(true));

    for _ in 0..3 {
        driver.chain().writable(1).publish();
        drop(queue.pop().unwrap());
    }
    assert!(queue.take_interrupt(), "the threshold lies within the batch");
}

#[test]
fn notifications_are_wanted_only_while_the_device_sleeps() {
    for features in [Features::empty(), RING_FEATURES] {
        let mut driver = driver(8, features);
        let queue = driver.queue();
        assert!(!queue.enable_notifications());
        driver.chain().writable(1).publish();
        assert!(driver.take_kick());

        queue.disable_notifications();
        drop(queue.pop().unwrap());
        driver.chain().writable(1).publish();
        assert!(!driver.take_kick(), "the device is awake");
        assert!(queue.enable_notifications(), "a chain came while notifications were off");
        drop(queue.pop().unwrap());
        assert!(!queue.enable_notifications());
        driver.chain().writable(1).publish();
        assert!(driver.take_kick());
    }
}

/// Two threads that only sleep when the protocol says that the other will wake them: a lost wake-up hangs the test.
#[test]
fn no_wake_up_is_lost_between_two_threads() {
    const REQUESTS: u32 = 20_000;
    for features in [Features::empty(), RING_FEATURES] {
        let mut driver = driver(4, features);
        let queue = driver.queue();
        let (kick, kicked) = std::sync::mpsc::channel();
        let (interrupt, interrupted) = std::sync::mpsc::channel();
        let done = Arc::new(AtomicBool::new(false));
        let device_done = done.clone();
        let device = std::thread::spawn(move || {
            while !device_done.load(Ordering::Acquire) {
                queue.disable_notifications();
                while let Some(mut chain) = queue.pop().unwrap() {
                    let value: u32 = chain.read_obj().unwrap();
                    chain.into_writable().write_obj(&value.wrapping_mul(3)).unwrap();
                }
                if queue.take_interrupt() {
                    interrupt.send(()).unwrap();
                }
                if !queue.enable_notifications() && kicked.recv().is_err() {
                    return;
                }
            }
        });
        let (mut sent, mut received) = (0, 0);
        while received < REQUESTS {
            while sent < REQUESTS && driver.outstanding() < 2 {
                driver.chain().readable(&sent.to_le_bytes()).writable(4).publish();
                sent += 1;
                if driver.take_kick() {
                    kick.send(()).unwrap();
                }
            }
            while let Some(used) = driver.take_used() {
                assert_eq!(used.data, received.wrapping_mul(3).to_le_bytes());
                received += 1;
            }
            if received < sent && !driver.enable_interrupts(true) {
                interrupted.recv().unwrap();
            }
        }
        done.store(true, Ordering::Release);
        drop(kick);
        device.join().unwrap();
    }
}
