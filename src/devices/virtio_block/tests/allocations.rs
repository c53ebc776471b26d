//! Requests cost no allocation.

use std::sync::Arc;

use fuchsia_zircon as zx;
use virtio_block::{
    Backend, BlockDevice, DiskInfo, F_FLUSH, MemoryBackend, RequestHeader, RequestType,
    VolatileBackend,
};
use virtio_device::fake_queue::FakeDriver;
use virtio_device::{Device as _, GuestMemory, Io, Queue, RING_FEATURES};
use zerocopy::IntoBytes as _;

const CAPACITY: u64 = 1 << 20;

fn publish(driver: &mut FakeDriver, round: u64) {
    let kind = [RequestType::IN, RequestType::OUT, RequestType::FLUSH, RequestType::GET_ID];
    let kind = kind[(round % 4) as usize];
    let sector = if kind == RequestType::FLUSH { 0 } else { round * 8 % (CAPACITY / 512) };
    let header =
        RequestHeader { request_type: kind.0.into(), reserved: 0.into(), sector: sector.into() };
    let chain = driver.chain().readable(header.as_bytes());
    let chain = match kind {
        RequestType::IN => chain.writable(4096),
        RequestType::OUT => chain.readable(&[round as u8; 2048]).readable(&[1; 2048]),
        RequestType::GET_ID => chain.writable(20),
        _ => chain,
    };
    let chain = chain.writable(1);
    if round.is_multiple_of(3) {
        chain.indirect().publish()
    } else {
        chain.publish()
    };
}

fn requests_allocate_nothing(backend: Arc<dyn Backend>) {
    let memory = Arc::new(GuestMemory::anonymous(4 << 20));
    let mut driver = FakeDriver::new(&memory, 0..4 << 20, 256, RING_FEATURES);
    let queues: [Option<Queue>; 1] = [Some(driver.queue())];
    let port = Arc::new(zx::Port::create());
    let io = Io::new(&queues, &port);
    let mut device = BlockDevice::new(backend, DiskInfo::new("disk", false));
    device.ready(F_FLUSH | RING_FEATURES, &io);
    let mut allocated = 0;
    for round in 0..600 {
        publish(&mut driver, round);
        let counts = allocation_counter::measure(|| {
            device.process(0, &io).unwrap();
        });
        // The first of each kind may make room for what all others use.
        if round >= 300 {
            allocated += counts.count_total;
        }
        let used = driver.take_all_used();
        assert!(used.iter().all(|used| used.data.last() == Some(&0)), "{used:?}");
        assert_eq!(used.len(), 1);
    }
    assert_eq!(allocated, 0);
}

#[test]
fn on_a_plain_disk() {
    requests_allocate_nothing(Arc::new(MemoryBackend::new(CAPACITY).unwrap()));
}

#[test]
fn on_a_volatile_disk() {
    let below = MemoryBackend::new(CAPACITY).unwrap();
    requests_allocate_nothing(Arc::new(VolatileBackend::new(Box::new(below)).unwrap()));
}
