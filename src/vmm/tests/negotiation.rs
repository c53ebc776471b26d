//! A scripted driver against a real device behind the real transport: every set of features that a driver may choose,
//! both kinds of interrupts, queues of several sizes, and resets at any time.
#![cfg(target_os = "linux")]

use fuchsia_zircon::{self as zx, HandleBased as _};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use virtio_block::{
    Backend as _, BlockDevice, DiskInfo, MemoryBackend, RequestHeader, RequestType,
};
use virtio_device::fake_queue::FakeDriver;
use virtio_device::{Features, GuestMemory, Worker};
use vmm::bus::BusDevice as _;
use vmm::interrupt::InterruptController;
use vmm::memory::VmoMemory;
use vmm::pci::{Bar, PciDevice as _};
use vmm::virtio_pci::{
    BackendError, DeviceConfig, DeviceEvents, F_EVENT_IDX, F_INDIRECT_DESC, F_VERSION_1,
    NOTIFY_BAR_SIZE, QueueConfig, REGISTERS_BAR_SIZE, VirtioBackend, VirtioIdentity,
    VirtioPciDevice,
};
use zerocopy::IntoBytes as _;

/// Registers of the common configuration structure (virtio 1.2 §4.1.4.3) and the ISR behind it.
const DRIVER_FEATURE_SELECT: u64 = 0x08;
const DRIVER_FEATURE: u64 = 0x0c;
const STATUS: u64 = 0x14;
const QUEUE_SELECT: u64 = 0x16;
const QUEUE_SIZE: u64 = 0x18;
const QUEUE_VECTOR: u64 = 0x1a;
const QUEUE_ENABLE: u64 = 0x1c;
const QUEUE_DESC: u64 = 0x20;
const ISR: u64 = 0x38;
const MSIX_TABLE: u64 = 0x1000;

const FEATURES_OK: u8 = 8;
const DRIVER_OK: u8 = 4;
const F_FLUSH: u64 = 1 << 9;
const MAX_SIZE: u16 = 256;
const SECTORS: u64 = 64;
const MSI_ADDRESS: u64 = 0xfee0_0000;
const MSI_DATA: u32 = 0x41;
/// Far longer than an interrupt takes on a machine that has much else to do.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Interrupt {
    Line(bool),
    Message(u64, u32),
}

struct Controller(Mutex<Sender<Interrupt>>);

impl Controller {
    fn send(&self, interrupt: Interrupt) {
        let sender = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // The test may have ended.
        let _ = sender.send(interrupt);
    }
}

impl InterruptController for Controller {
    fn set_irq(&self, _irq: u32, asserted: bool) {
        self.send(Interrupt::Line(asserted));
    }

    fn signal_msi(&self, address: u64, data: u32) {
        self.send(Interrupt::Message(address, data));
    }
}

/// The device's process, in this one.
#[derive(Clone)]
struct Disk(Arc<Mutex<Worker<BlockDevice>>>);

impl Disk {
    fn with(&self, f: impl FnOnce(&mut Worker<BlockDevice>)) -> Result<(), BackendError> {
        f(&mut self.0.lock().unwrap());
        Ok(())
    }
}

impl VirtioBackend for Disk {
    fn configure_queue(&mut self, index: u16, queue: &QueueConfig) -> Result<(), BackendError> {
        let config = virtio_device::QueueConfig {
            size: queue.size,
            desc: queue.descriptors,
            avail: queue.available,
            used: queue.used,
        };
        self.with(|worker| worker.configure(index, config))
    }

    fn ready(&mut self, features: u32) -> Result<(), BackendError> {
        self.with(|worker| worker.ready(Features::from_bits_retain(features)))
    }

    fn reset(&mut self) -> Result<(), BackendError> {
        self.with(Worker::reset)
    }
}

#[derive(Debug, Clone, Copy)]
struct Choice {
    features: u64,
    msix: bool,
    size: u16,
}

impl Choice {
    fn all() -> impl Iterator<Item = Self> {
        let ring = [0, F_INDIRECT_DESC, F_EVENT_IDX, F_INDIRECT_DESC | F_EVENT_IDX];
        ring.into_iter().flat_map(|ring| {
            [false, true].into_iter().flat_map(move |msix| {
                [4, 32, MAX_SIZE].map(move |size| Self {
                    features: F_VERSION_1 | F_FLUSH | ring,
                    msix,
                    size,
                })
            })
        })
    }
}

struct Driver {
    device: Arc<VirtioPciDevice>,
    disk: Disk,
    interrupts: Receiver<Interrupt>,
    memory: Arc<GuestMemory>,
    _events: DeviceEvents,
}

impl Driver {
    fn new() -> Self {
        let vmo = zx::Vmo::create(1 << 20).unwrap();
        let duplicate = || vmo.duplicate_handle(zx::Rights::SAME_RIGHTS).unwrap();
        let memory = Arc::new(GuestMemory::map(duplicate()).unwrap());
        let backend = MemoryBackend::new(SECTORS * 512).unwrap();
        for sector in 0..SECTORS {
            backend.write(&[sector as u8; 512], sector * 512).unwrap();
        }
        let device = BlockDevice::new(Arc::new(backend), DiskInfo::new("disk", false));
        let bars = [
            Bar { address: 0xf820_0000, size: REGISTERS_BAR_SIZE },
            Bar { address: 0xf820_2000, size: NOTIFY_BAR_SIZE },
        ];
        let event = zx::Event::create();
        let signalled = event.duplicate_handle(zx::Rights::SAME_RIGHTS).unwrap();
        let worker =
            Worker::start(vec![device], 1, memory.clone(), bars[1].address, signalled).unwrap();
        let disk = Disk(Arc::new(Mutex::new(worker)));
        let (sender, interrupts) = channel();
        let identity = VirtioIdentity {
            name: "disk".to_owned(),
            device_id: 2,
            class: 0x01_8000,
            features: F_FLUSH,
            queue_sizes: vec![MAX_SIZE],
            breaks_queues: true,
        };
        let device = Arc::new(VirtioPciDevice::new(
            &identity,
            DeviceConfig::read_only(SECTORS.to_le_bytes().to_vec()),
            3,
            bars,
            Arc::new(Controller(Mutex::new(sender))),
            Arc::new(VmoMemory::new(duplicate()).unwrap()),
            Box::new(disk.clone()),
        ));
        let events = DeviceEvents::new().unwrap();
        events.add(event, device.clone()).unwrap();
        Self { device, disk, interrupts, memory, _events: events }
    }

    fn status(&self) -> u8 {
        let mut status = [0];
        self.device.read(STATUS, &mut status);
        status[0]
    }

    /// As far as FEATURES_OK; whether the device agrees.
    fn negotiate(&self, features: u64) -> bool {
        self.device.write(STATUS, &[0]);
        assert_eq!(self.status(), 0, "the reset has ended");
        for status in [1, 3] {
            self.device.write(STATUS, &[status]);
        }
        for half in 0..2u32 {
            self.device.write(DRIVER_FEATURE_SELECT, &half.to_le_bytes());
            self.device.write(DRIVER_FEATURE, &((features >> (32 * half)) as u32).to_le_bytes());
        }
        self.device.write(STATUS, &[3 | FEATURES_OK]);
        self.status() & FEATURES_OK != 0
    }

    fn enable_msix(&self, enable: bool) {
        // The capability is found as a driver finds it.
        let read = |at: u16| {
            let mut byte = [0];
            self.device.read_config(at, &mut byte);
            byte[0]
        };
        let mut at = read(0x34);
        while read(at.into()) != 0x11 {
            at = read(u16::from(at) + 1);
            assert_ne!(at, 0, "there is an MSI-X capability");
        }
        self.device.write_config(u16::from(at) + 2, &(u16::from(enable) << 15).to_le_bytes());
        if enable {
            for (word, value) in [MSI_ADDRESS as u32, 0, MSI_DATA, 0].into_iter().enumerate() {
                self.device.write(MSIX_TABLE + 16 + 4 * word as u64, &value.to_le_bytes());
            }
            self.device.write(QUEUE_VECTOR, &1u16.to_le_bytes());
        }
    }

    /// Initialises the device, in the order of virtio 1.2 §3.1.1, and returns its queue.
    fn start(&self, choice: Choice) -> FakeDriver {
        assert!(self.negotiate(choice.features), "{choice:?}");
        let all = self.memory.slice(0, self.memory.len()).unwrap();
        all.fill_zero();
        let features = Features::from_bits_retain(choice.features as u32);
        let queue = FakeDriver::new(&self.memory, 0..self.memory.len(), choice.size, features);
        let config = queue.config();
        self.device.write(QUEUE_SELECT, &[0, 0]);
        self.enable_msix(choice.msix);
        self.device.write(QUEUE_SIZE, &choice.size.to_le_bytes());
        for (index, address) in [config.desc, config.avail, config.used].into_iter().enumerate() {
            self.device.write(QUEUE_DESC + 8 * index as u64, &address.to_le_bytes());
        }
        self.device.write(QUEUE_ENABLE, &[1, 0]);
        self.device.write(STATUS, &[3 | FEATURES_OK | DRIVER_OK]);
        assert_eq!(self.status(), 15, "{choice:?}");
        queue
    }

    fn publish(queue: &mut FakeDriver, sector: u64, choice: Choice) -> u16 {
        let header = RequestHeader {
            request_type: RequestType::IN.0.into(),
            reserved: 0.into(),
            sector: sector.into(),
        };
        let chain = queue.chain().readable(header.as_bytes()).writable(512).writable(1);
        if choice.features & F_INDIRECT_DESC != 0 {
            chain.indirect().publish()
        } else {
            chain.publish()
        }
    }

    fn kick(&self, queue: &mut FakeDriver) {
        if queue.take_kick() {
            self.disk.0.lock().unwrap().notify(0);
        }
    }

    /// Waits for the interrupt that was asked for, of the kind that was chosen. One may also be left of the time before the
    /// reset.
    fn interrupt(&self, choice: Choice) {
        loop {
            let interrupt = self.interrupts.recv_timeout(PATIENCE);
            match interrupt.unwrap_or_else(|_| panic!("no interrupt with {choice:?}")) {
                Interrupt::Message(..) if !choice.msix => {}
                Interrupt::Message(address, data) => {
                    assert_eq!((address, data), (MSI_ADDRESS, MSI_DATA));
                    return;
                }
                Interrupt::Line(true) if !choice.msix => {
                    let mut isr = [0];
                    self.device.read(ISR, &mut isr);
                    assert!(isr[0] <= 1, "{choice:?}");
                    if isr == [1] {
                        return;
                    }
                }
                Interrupt::Line(_) => {}
            }
        }
    }

    fn answer(&self, queue: &mut FakeDriver, choice: Choice) -> Vec<u8> {
        loop {
            if let Some(used) = queue.take_used() {
                assert_eq!(used.len, 513);
                return used.data;
            }
            if !queue.enable_interrupts(true) {
                self.interrupt(choice);
            }
        }
    }

    /// Reads the disk, one request at a time and then as many as fit.
    fn works(&self, queue: &mut FakeDriver, choice: Choice) {
        for at_once in [1, queue.free_descriptors() / 4] {
            for round in 0..SECTORS / at_once.max(1) as u64 {
                let first = round * at_once as u64;
                for sector in first..first + at_once as u64 {
                    Self::publish(queue, sector % SECTORS, choice);
                }
                self.kick(queue);
                let mut read: Vec<u8> = (0..at_once)
                    .map(|_| {
                        let data = self.answer(queue, choice);
                        assert_eq!(data.last(), Some(&0), "the request's status with {choice:?}");
                        assert!(data[..512].iter().all(|byte| *byte == data[0]));
                        data[0]
                    })
                    .collect();
                read.sort_unstable();
                let mut expected: Vec<u8> = (first..first + at_once as u64)
                    .map(|sector| (sector % SECTORS) as u8)
                    .collect();
                expected.sort_unstable();
                assert_eq!(read, expected, "{choice:?}");
            }
        }
    }
}

#[test]
fn every_choice_of_features_interrupts_and_sizes_works() {
    // One device for all: each initialisation also shows that nothing is left of the one before.
    let driver = Driver::new();
    for choice in Choice::all() {
        let mut queue = driver.start(choice);
        driver.works(&mut queue, choice);
    }
}

#[test]
fn a_driver_without_version_1_or_with_unknown_features_is_refused() {
    let driver = Driver::new();
    for features in [0, F_FLUSH, F_EVENT_IDX, F_VERSION_1 | 1 << 3, F_VERSION_1 | 1 << 33, u64::MAX]
    {
        assert!(!driver.negotiate(features), "{features:#x}");
        // It goes on all the same: there is no device for it.
        driver.device.write(STATUS, &[15]);
    }
    let choice = Choice { features: F_VERSION_1, msix: true, size: 32 };
    let mut queue = driver.start(choice);
    driver.works(&mut queue, choice);
}

#[test]
fn a_reset_while_requests_are_under_way_leaves_memory_alone() {
    let driver = Driver::new();
    for choice in Choice::all().chain(Choice::all()) {
        let mut queue = driver.start(choice);
        while queue.free_descriptors() >= 3 {
            Driver::publish(&mut queue, 1, choice);
        }
        driver.kick(&mut queue);
        driver.device.write(STATUS, &[0]);
        assert_eq!(driver.status(), 0);
        // The driver may use the memory for something else now.
        let config = queue.config();
        let used = driver.memory.slice(config.used, config.used_len()).unwrap();
        let (mut at_reset, mut later) = (vec![0; used.len()], vec![0; used.len()]);
        used.copy_to(&mut at_reset);
        driver.disk.0.lock().unwrap().notify(0);
        std::thread::yield_now();
        used.copy_to(&mut later);
        assert_eq!(at_reset, later, "{choice:?}");
    }
    let choice = Choice { features: F_VERSION_1 | F_EVENT_IDX, msix: false, size: 32 };
    let mut queue = driver.start(choice);
    driver.works(&mut queue, choice);
}

#[test]
fn a_broken_queue_needs_a_reset_and_gets_it() {
    let driver = Driver::new();
    let choice = Choice { features: F_VERSION_1, msix: false, size: 32 };
    let mut queue = driver.start(choice);
    queue.raw_publish(1000);
    driver.kick(&mut queue);
    let interrupt = driver.interrupts.recv_timeout(PATIENCE).unwrap();
    assert_eq!(interrupt, Interrupt::Line(true));
    assert_eq!(driver.status(), 64 | 15);
    let mut queue = driver.start(choice);
    driver.works(&mut queue, choice);
}
