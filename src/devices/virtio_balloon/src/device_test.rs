//! The device against a fake driver.

use std::sync::Arc;

use fuchsia_zircon as zx;
use proptest::prelude::*;
use virtio_device::fake_queue::{FakeDriver, hostile_queue};
use virtio_device::{
    DescriptorFlags, Device as _, Features, GuestMemory, Io, Progress, Queue, QueueError,
    RING_FEATURES,
};
use zerocopy::IntoBytes as _;

use crate::{
    BalloonDevice, DEFLATE, F_PAGE_REPORTING, F_STATS_VQ, INFLATE, PAGE_SIZE, QUEUES, Stat,
    StatsError,
};

const STATS: u16 = 2;
const PAGES: u64 = 1024;
/// Pages from here on are not used by the fake drivers.
const FREE: u64 = 512;

struct Balloon {
    device: BalloonDevice,
    drivers: Vec<FakeDriver>,
    queues: Vec<Option<Queue>>,
    memory: Arc<GuestMemory>,
    port: Arc<zx::Port>,
}

impl Balloon {
    fn new(features: Features) -> Self {
        let memory = Arc::new(GuestMemory::anonymous((PAGES * PAGE_SIZE) as usize));
        let all = memory.slice(0, memory.len()).unwrap();
        all.copy_from(&vec![0x11; all.len()]);
        all.split_at((FREE * PAGE_SIZE) as usize).unwrap().0.fill_zero();
        let drivers: Vec<_> = (0..u64::from(QUEUES))
            .map(|n| FakeDriver::new(&memory, n << 18..(n + 1) << 18, 32, RING_FEATURES))
            .collect();
        let queues: Vec<_> = drivers.iter().map(|driver| Some(driver.queue())).collect();
        let mut balloon = Self {
            device: BalloonDevice::new(),
            drivers,
            queues,
            memory,
            port: Arc::new(zx::Port::create()),
        };
        balloon.device.ready(features, &Io::new(&balloon.queues, &balloon.port));
        balloon
    }

    fn process(&mut self, queue: u16) -> Result<Progress, QueueError> {
        self.device.process(queue, &Io::new(&self.queues, &self.port))
    }

    fn send(&mut self, queue: u16, pages: &[u64]) {
        let bytes: Vec<u8> = pages.iter().flat_map(|page| (*page as u32).to_le_bytes()).collect();
        self.drivers[usize::from(queue)].chain().readable(&bytes).publish();
        assert_eq!(self.process(queue), Ok(Progress::Idle));
        assert_eq!(self.drivers[usize::from(queue)].take_used().unwrap().len, 0);
    }

    /// Which of the pages that no driver uses are zero.
    fn zeroed(&self) -> Vec<u64> {
        (FREE..PAGES)
            .filter(|page| {
                let mut bytes = vec![0; PAGE_SIZE as usize];
                self.memory.slice(page * PAGE_SIZE, PAGE_SIZE).unwrap().copy_to(&mut bytes);
                bytes.iter().all(|byte| *byte == 0)
            })
            .collect()
    }

    fn give_stats(&mut self, stats: &[(u16, u64)]) {
        let stats: Vec<_> = stats
            .iter()
            .map(|(tag, value)| Stat { tag: (*tag).into(), value: (*value).into() })
            .collect();
        self.drivers[usize::from(STATS)].chain().readable(stats.as_bytes()).publish();
        self.process(STATS).unwrap();
    }
}

#[test]
fn inflated_pages_are_freed_whatever_their_order() {
    let mut balloon = Balloon::new(Features::empty());
    balloon.send(INFLATE, &[600, 601, 602, 700, 699, 698, 900, 650]);
    assert_eq!(balloon.zeroed(), [600, 601, 602, 650, 698, 699, 700, 900]);
    assert_eq!(balloon.device.inflated_pages(), 8);
    balloon.send(DEFLATE, &[600, 601]);
    assert_eq!(balloon.device.inflated_pages(), 6);
}

#[test]
fn page_numbers_may_be_split_between_buffers() {
    let mut balloon = Balloon::new(Features::empty());
    let bytes = 777u32.to_le_bytes();
    balloon.drivers[0]
        .chain()
        .readable(&bytes[..3])
        .readable(&bytes[3..])
        .readable(&[1, 2])
        .publish();
    balloon.process(INFLATE).unwrap();
    assert_eq!(balloon.zeroed(), [777]);
}

#[test]
fn pages_that_do_not_exist_are_passed_over() {
    let mut balloon = Balloon::new(Features::empty());
    balloon.send(INFLATE, &[u64::from(u32::MAX), PAGES, 1023, 1024, 800]);
    // 1023 and 1024 are one run that is not wholly in memory.
    assert_eq!(balloon.zeroed(), [800]);
}

#[test]
fn a_guest_that_deflates_too_much_is_harmless() {
    let mut balloon = Balloon::new(Features::empty());
    balloon.send(DEFLATE, &[1, 2, 3]);
    assert_eq!(balloon.device.inflated_pages(), 0);
}

#[test]
fn reported_pages_are_freed() {
    for (features, queue) in [(F_PAGE_REPORTING, 2), (F_PAGE_REPORTING.union(F_STATS_VQ), 3)] {
        let mut balloon = Balloon::new(features);
        balloon.drivers[queue]
            .chain()
            .raw(700 * PAGE_SIZE, 2 * PAGE_SIZE as u32, DescriptorFlags::WRITE)
            .raw(900 * PAGE_SIZE, PAGE_SIZE as u32, DescriptorFlags::WRITE)
            .publish();
        balloon.process(queue as u16).unwrap();
        assert_eq!(balloon.zeroed(), [700, 701, 900]);
        assert_eq!(balloon.device.reported_pages(), 3);
        assert!(balloon.drivers[queue].take_used().is_some());
    }
}

#[test]
fn statistics_are_asked_for_and_answered() {
    let mut balloon = Balloon::new(F_STATS_VQ);
    let ask = |balloon: &mut Balloon| {
        let Balloon { device, queues, port, .. } = balloon;
        device.request_stats(&Io::new(queues, port))
    };
    assert_eq!(ask(&mut balloon).unwrap_err(), StatsError::NotReady);
    balloon.give_stats(&[(6, 1)]);
    assert!(balloon.drivers[2].take_used().is_none(), "the device keeps the buffer");

    let mut first = ask(&mut balloon).unwrap();
    assert!(balloon.drivers[2].take_used().is_some(), "returning it asks for more");
    let mut second = ask(&mut balloon).unwrap();
    assert_eq!(first.try_recv(), Ok(None));
    balloon.give_stats(&[(5, 4 << 30), (6, 3 << 30)]);
    let expected = vec![
        Stat { tag: 5.into(), value: (4u64 << 30).into() },
        Stat { tag: 6.into(), value: (3u64 << 30).into() },
    ];
    assert_eq!(first.try_recv(), Ok(Some(expected.clone())));
    assert_eq!(second.try_recv(), Ok(Some(expected)));
}

#[test]
fn statistics_need_their_queue() {
    let mut balloon = Balloon::new(Features::empty());
    let Balloon { device, queues, port, .. } = &mut balloon;
    assert_eq!(
        device.request_stats(&Io::new(queues, port)).unwrap_err(),
        StatsError::NotNegotiated
    );
}

#[test]
fn a_reset_ends_the_wait_for_statistics() {
    let mut balloon = Balloon::new(F_STATS_VQ);
    balloon.give_stats(&[(0, 0)]);
    let Balloon { device, queues, port, .. } = &mut balloon;
    let mut stats = device.request_stats(&Io::new(queues, port)).unwrap();
    device.reset();
    assert!(stats.try_recv().is_err());
}

#[test]
fn a_flood_of_statistics_is_cut() {
    let mut balloon = Balloon::new(F_STATS_VQ);
    balloon.give_stats(&[(0, 0)]);
    let Balloon { device, queues, port, .. } = &mut balloon;
    let mut stats = device.request_stats(&Io::new(queues, port)).unwrap();
    balloon.give_stats(&vec![(1, 1); 5000]);
    assert_eq!(stats.try_recv().unwrap().unwrap().len(), 64);
}

proptest! {
    #[test]
    fn a_hostile_driver_harms_nobody(choices in proptest::collection::vec(any::<u8>(), 0..400)) {
        let queues: Vec<_> = (0..QUEUES).map(|_| Some(hostile_queue(&choices))).collect();
        let port = Arc::new(zx::Port::create());
        let io = Io::new(&queues, &port);
        let mut device = BalloonDevice::new();
        device.ready(F_STATS_VQ.union(F_PAGE_REPORTING), &io);
        for queue in (0..QUEUES).cycle().take(8) {
            let _ = device.process(queue, &io);
            let _ = device.request_stats(&io);
        }
    }
}
