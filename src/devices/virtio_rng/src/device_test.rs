//! The device against a fake driver.

use std::sync::Arc;

use fuchsia_zircon as zx;
use proptest::prelude::*;
use virtio_device::fake_queue::{FakeDriver, hostile_queue};
use virtio_device::{Device as _, GuestMemory, Io, Progress, QueueError, RING_FEATURES};

use crate::RngDevice;

fn driver() -> FakeDriver {
    let memory = Arc::new(GuestMemory::anonymous(4 << 20));
    FakeDriver::new(&memory, 0..4 << 20, 16, RING_FEATURES)
}

fn process(driver: &FakeDriver) -> Result<Progress, QueueError> {
    let queues = [Some(driver.queue())];
    RngDevice::new().process(0, &Io::new(&queues, &Arc::new(zx::Port::create())))
}

#[test]
fn every_writable_byte_is_filled() {
    let mut driver = driver();
    driver.chain().writable(3000).writable(1).writable(1095).publish();
    assert_eq!(process(&driver), Ok(Progress::Idle));
    let used = driver.take_used().unwrap();
    assert_eq!(used.len, 4096);
    // The fake driver's buffers start as 0xa5; 64 equal bytes in a row are not random.
    assert!(used.data.chunks(64).all(|chunk| chunk.iter().any(|byte| *byte != chunk[0])));
}

#[test]
fn answers_differ() {
    let mut driver = driver();
    driver.chain().writable(32).publish();
    driver.chain().writable(32).publish();
    process(&driver).unwrap();
    let used = driver.take_all_used();
    assert_ne!(used[0].data, used[1].data);
}

#[test]
fn readable_buffers_are_left_alone() {
    let mut driver = driver();
    driver.chain().readable(b"seed?").publish();
    assert_eq!(process(&driver), Ok(Progress::Idle));
    assert_eq!(driver.take_used().unwrap().len, 0);
}

#[test]
fn a_huge_request_gets_a_part() {
    let mut driver = driver();
    driver.chain().writable(1 << 20).publish();
    process(&driver).unwrap();
    let used = driver.take_used().unwrap();
    assert_eq!(used.len, 64 << 10);
    assert!(used.data[64 << 10..].iter().all(|byte| *byte == 0xa5));
}

#[test]
fn a_broken_ring_is_reported() {
    let mut driver = driver();
    driver.raw_publish(99);
    assert_eq!(process(&driver), Err(QueueError::DescriptorIndex { index: 99, size: 16 }));
}

proptest! {
    #[test]
    fn a_hostile_driver_harms_nobody(choices in proptest::collection::vec(any::<u8>(), 0..400)) {
        let queues = [Some(hostile_queue(&choices))];
        let port = Arc::new(zx::Port::create());
        let mut device = RngDevice::new();
        for _ in 0..4 {
            let _ = device.process(0, &Io::new(&queues, &port));
        }
    }
}
