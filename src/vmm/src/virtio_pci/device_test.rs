//! A scripted driver against the transport.

use super::super::{BackendError, F_VERSION_1};
use super::*;
use crate::memory::BufferMemory;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Call {
    Queue(u16, QueueConfig),
    Ready(u32),
    Reset,
}

#[derive(Clone, Default)]
struct Backend {
    calls: Arc<Mutex<Vec<Call>>>,
    broken: Arc<AtomicBool>,
}

impl Backend {
    fn record(&self, call: Call) -> Result<(), BackendError> {
        if self.broken.load(Ordering::SeqCst) {
            return Err(BackendError("gone".to_owned()));
        }
        lock(&self.calls).push(call);
        Ok(())
    }

    fn take(&self) -> Vec<Call> {
        std::mem::take(&mut lock(&self.calls))
    }
}

impl VirtioBackend for Backend {
    fn configure_queue(&mut self, index: u16, queue: &QueueConfig) -> Result<(), BackendError> {
        self.record(Call::Queue(index, *queue))
    }
    fn ready(&mut self, features: u32) -> Result<(), BackendError> {
        self.record(Call::Ready(features))
    }
    fn reset(&mut self) -> Result<(), BackendError> {
        self.record(Call::Reset)
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Interrupt {
    Line(u32, bool),
    Message(u64, u32),
}

#[derive(Default)]
struct Controller(Mutex<Vec<Interrupt>>);

impl InterruptController for Controller {
    fn set_irq(&self, irq: u32, asserted: bool) {
        lock(&self.0).push(Interrupt::Line(irq, asserted));
    }
    fn signal_msi(&self, address: u64, data: u32) {
        lock(&self.0).push(Interrupt::Message(address, data));
    }
}

/// Plays the driver, with offsets from the specification's structure.
struct Driver {
    device: VirtioPciDevice,
    backend: Backend,
    controller: Arc<Controller>,
    memory: Arc<BufferMemory>,
}

const FEATURES: u64 = 0b101;

impl Driver {
    fn new(queues: usize) -> Self {
        let identity = VirtioIdentity {
            name: "test".to_owned(),
            device_id: 2,
            class: 0x01_8000,
            features: FEATURES,
            queue_sizes: vec![128; queues],
            breaks_queues: true,
        };
        let controller = Arc::new(Controller::default());
        let memory = Arc::new(BufferMemory::new(0x10_0000));
        let backend = Backend::default();
        let bars = [
            Bar { address: 0xf820_0000, size: REGISTERS_BAR_SIZE },
            Bar { address: 0xf820_2000, size: NOTIFY_BAR_SIZE },
        ];
        let config = DeviceConfig::read_only(vec![1, 2, 3, 4, 5, 6, 7, 8]).writable(4, 4);
        let device = VirtioPciDevice::new(
            &identity,
            config,
            3,
            bars,
            controller.clone(),
            memory.clone(),
            Box::new(backend.clone()),
        );
        Self { device, backend, controller, memory }
    }

    fn read<const N: usize>(&self, offset: u64) -> [u8; N] {
        let mut data = [0; N];
        self.device.read(offset, &mut data);
        data
    }

    fn status(&self) -> u8 {
        self.read::<1>(0x14)[0]
    }

    fn set_status(&self, status: u8) {
        self.device.write(0x14, &[status]);
    }

    fn device_features(&self) -> u64 {
        let half = |select: u32| {
            self.device.write(0x00, &select.to_le_bytes());
            u64::from(u32::from_le_bytes(self.read(0x04)))
        };
        half(0) | (half(1) << 32)
    }

    fn set_features(&self, features: u64) {
        for select in 0..2u32 {
            self.device.write(0x08, &select.to_le_bytes());
            self.device.write(0x0c, &((features >> (32 * select)) as u32).to_le_bytes());
        }
    }

    fn negotiate(&self, features: u64) -> bool {
        self.set_status(0);
        self.set_status(1);
        self.set_status(3);
        self.set_features(features);
        self.set_status(0x0b);
        self.status() & status::FEATURES_OK != 0
    }

    fn set_up_queue(&self, index: u16) -> QueueConfig {
        let base = 0x1000 + u64::from(index) * 0x4000;
        let config = QueueConfig {
            size: 64,
            descriptors: base,
            available: base + 0x1000,
            used: base + 0x2000,
        };
        self.write_queue(index, &config);
        config
    }

    fn write_queue(&self, index: u16, config: &QueueConfig) {
        self.device.write(0x16, &index.to_le_bytes());
        self.device.write(0x18, &config.size.to_le_bytes());
        for (offset, address) in
            [(0x20, config.descriptors), (0x28, config.available), (0x30, config.used)]
        {
            self.device.write(offset, &(address as u32).to_le_bytes());
            self.device.write(offset + 4, &((address >> 32) as u32).to_le_bytes());
        }
        self.device.write(0x1c, &1u16.to_le_bytes());
    }

    fn start(&self) {
        assert!(self.negotiate(F_VERSION_1 | FEATURES | F_EVENT_IDX));
        self.set_up_queue(0);
        self.set_up_queue(1);
        self.set_status(0x0f);
        self.backend.take();
    }

    fn enable_msix(&self) {
        let offset = self.device.msix_control;
        self.device.write_config(offset, &0x8000u16.to_le_bytes());
        for vector in 0..3u64 {
            let entry = 0x1000 + vector * 16;
            self.device.write(entry, &0xfee0_0000u64.to_le_bytes());
            self.device.write(entry + 8, &(0x40 + vector as u32).to_le_bytes());
            self.device.write(entry + 12, &[0; 4]);
        }
        self.device.write(0x10, &0u16.to_le_bytes());
        for queue in 0..2u16 {
            self.device.write(0x16, &queue.to_le_bytes());
            self.device.write(0x1a, &(queue + 1).to_le_bytes());
        }
    }

    fn interrupts(&self) -> Vec<Interrupt> {
        std::mem::take(&mut lock(&self.controller.0))
    }
}

const QUEUES: Cause = Cause { queues: true, lanes: 0, config: false };
const CONFIG: Cause = Cause { queues: false, lanes: 0, config: true };

#[test]
fn capabilities_describe_the_structures() {
    let driver = Driver::new(2);
    let read = |offset: u16| {
        let mut data = [0; 4];
        driver.device.read_config(offset, &mut data);
        u32::from_le_bytes(data)
    };
    assert_eq!(read(0), 0x1042_1af4);
    assert_eq!(read(8), 0x0180_0001);
    let mut found = Vec::new();
    let mut at = read(0x34) as u8;
    while at != 0 {
        let header = read(u16::from(at));
        if header as u8 == CAPABILITY_VENDOR {
            let where_ =
                (read(u16::from(at) + 4) as u8, read(u16::from(at) + 8), read(u16::from(at) + 12));
            found.push(((header >> 24) as u8, where_));
        } else {
            assert_eq!((header as u8, header >> 16), (CAPABILITY_MSIX, 2));
        }
        at = (header >> 8) as u8;
    }
    assert_eq!(
        found,
        [
            (CAP_COMMON, (0, 0, 0x38)),
            (CAP_NOTIFY, (2, 0, 0x1000)),
            (CAP_ISR, (0, 0x38, 1)),
            (CAP_DEVICE, (0, 0x3c, 8))
        ]
    );
}

#[test]
fn initialisation_reaches_the_backend_in_order() {
    let driver = Driver::new(2);
    assert_eq!(driver.device_features(), FEATURES | F_INDIRECT_DESC | F_EVENT_IDX | F_VERSION_1);
    assert!(driver.negotiate(F_VERSION_1 | 1));
    assert_eq!(u16::from_le_bytes(driver.read(0x12)), 2);
    let first = driver.set_up_queue(0);
    let second = driver.set_up_queue(1);
    assert_eq!(u16::from_le_bytes(driver.read(0x1c)), 1);
    assert_eq!(u16::from_le_bytes(driver.read(0x1e)), 1);
    driver.set_status(0x0f);
    assert_eq!(
        driver.backend.take(),
        [Call::Queue(0, first), Call::Queue(1, second), Call::Ready(1)]
    );
    assert_eq!(driver.status(), 0x0f);
    assert_eq!(driver.device.negotiated(), Some(F_VERSION_1 | 1));
}

/// Every combination of the two device features, the ring features and VERSION_1, and one that was not offered.
#[test]
fn negotiation_matrix() {
    let driver = Driver::new(1);
    for bits in 0..64u64 {
        let choose = |index: u64, feature: u64| if bits & (1 << index) != 0 { feature } else { 0 };
        let features = choose(0, 1)
            | choose(1, 4)
            | choose(2, F_INDIRECT_DESC)
            | choose(3, F_EVENT_IDX)
            | choose(4, F_VERSION_1)
            | choose(5, 1 << 33);
        let acceptable = features & F_VERSION_1 != 0 && features & (1 << 33) == 0;
        assert_eq!(driver.negotiate(features), acceptable, "{features:#x}");
        driver.set_status(driver.status() | status::DRIVER_OK);
        let expected = if acceptable { vec![Call::Ready(features as u32)] } else { vec![] };
        let calls: Vec<_> =
            driver.backend.take().into_iter().filter(|call| *call != Call::Reset).collect();
        assert_eq!(calls, expected, "{features:#x}");
    }
}

#[test]
fn features_are_settled_once_accepted() {
    let driver = Driver::new(1);
    assert!(driver.negotiate(F_VERSION_1));
    driver.set_features(F_VERSION_1 | 1);
    driver.set_status(0x0f);
    assert_eq!(driver.backend.take(), [Call::Ready(0)]);
}

#[test]
fn reset_and_reinitialisation() {
    let driver = Driver::new(2);
    driver.set_status(0);
    assert_eq!(driver.backend.take(), [], "a device that is not in use needs no reset");
    driver.start();
    driver.set_status(0);
    assert_eq!(driver.backend.take(), [Call::Reset]);
    assert_eq!((driver.status(), u16::from_le_bytes(driver.read(0x1c))), (0, 0));
    assert_eq!(driver.device.negotiated(), None);
    assert!(driver.negotiate(F_VERSION_1));
    let config = driver.set_up_queue(0);
    assert_eq!(driver.backend.take(), [Call::Queue(0, config)]);
}

#[test]
fn queue_is_configured_once() {
    let driver = Driver::new(1);
    assert!(driver.negotiate(F_VERSION_1));
    driver.set_up_queue(0);
    driver.set_up_queue(0);
    assert_eq!(driver.backend.take().len(), 1);
}

#[test]
fn impossible_queues_ask_for_a_reset() {
    let good = QueueConfig { size: 64, descriptors: 0x1000, available: 0x2000, used: 0x3000 };
    let bad = [
        QueueConfig { size: 0, ..good },
        QueueConfig { size: 63, ..good },
        QueueConfig { size: 256, ..good },
        QueueConfig { descriptors: 0x1008, ..good },
        QueueConfig { available: 0x2001, ..good },
        QueueConfig { used: 0x3002, ..good },
        QueueConfig { descriptors: 0xf_ff00, ..good },
        QueueConfig { available: u64::MAX - 1, ..good },
        QueueConfig { used: 1 << 40, ..good },
    ];
    for config in bad {
        let driver = Driver::new(1);
        assert!(driver.negotiate(F_VERSION_1));
        driver.write_queue(0, &config);
        assert_eq!(driver.backend.take(), [], "{config:?}");
        assert_ne!(driver.status() & status::NEEDS_RESET, 0, "{config:?}");
        driver.set_status(0);
        assert_eq!(driver.status(), 0);
    }
    let driver = Driver::new(1);
    driver.write_queue(0, &good);
    assert_eq!(driver.backend.take(), [], "queue enabled before features were negotiated");
}

#[test]
fn intx_follows_the_isr() {
    let driver = Driver::new(2);
    driver.start();
    driver.device.raise(QUEUES);
    driver.device.raise(CONFIG);
    assert_eq!(driver.interrupts(), [Interrupt::Line(35, true)]);
    let mut command_and_status = [0; 4];
    driver.device.read_config(4, &mut command_and_status);
    assert_eq!(command_and_status[2] & 8, 8);
    assert_eq!(driver.read::<1>(0x38), [3]);
    assert_eq!(driver.read::<1>(0x38), [0]);
    assert_eq!(driver.interrupts(), [Interrupt::Line(35, false)]);
}

#[test]
fn intx_can_be_disabled() {
    let driver = Driver::new(2);
    driver.start();
    driver.device.write_config(4, &0x0406u16.to_le_bytes());
    driver.device.raise(QUEUES);
    assert_eq!(driver.interrupts(), []);
    driver.device.write_config(4, &0x0006u16.to_le_bytes());
    assert_eq!(driver.interrupts(), [Interrupt::Line(35, true)]);
    driver.set_status(0);
    assert_eq!(driver.interrupts(), [Interrupt::Line(35, false)]);
}

#[test]
fn msix_sends_the_vectors_of_the_queues_that_the_device_names() {
    let driver = Driver::new(2);
    driver.start();
    driver.enable_msix();
    driver.device.raise(Cause { lanes: 0b10, ..QUEUES });
    assert_eq!(driver.interrupts(), [Interrupt::Message(0xfee0_0000, 0x42)]);
    driver.device.raise(CONFIG);
    assert_eq!(driver.interrupts(), [Interrupt::Message(0xfee0_0000, 0x40)]);
    assert_eq!(driver.read::<1>(0x38), [0]);
}

#[test]
fn msix_finds_the_queues_that_moved_if_the_device_names_none() {
    let driver = Driver::new(2);
    driver.start();
    driver.enable_msix();
    driver.memory.write(0x1000 + 0x2002, &1u16.to_le_bytes()).unwrap();
    driver.device.raise(QUEUES);
    assert_eq!(driver.interrupts(), [Interrupt::Message(0xfee0_0000, 0x41)]);
    driver.device.raise(QUEUES);
    assert_eq!(driver.interrupts(), []);
}

#[test]
fn shared_vectors_interrupt_once() {
    let driver = Driver::new(2);
    driver.start();
    driver.enable_msix();
    driver.device.write(0x1a, &1u16.to_le_bytes());
    driver.device.raise(Cause { lanes: 0b11, ..QUEUES });
    assert_eq!(driver.interrupts(), [Interrupt::Message(0xfee0_0000, 0x41)]);
}

#[test]
fn vectors_outside_the_table_read_back_as_none() {
    let driver = Driver::new(2);
    driver.device.write(0x10, &3u16.to_le_bytes());
    assert_eq!(driver.read::<2>(0x10), [0xff, 0xff]);
    driver.device.write(0x10, &2u16.to_le_bytes());
    assert_eq!(driver.read::<2>(0x10), [2, 0]);
}

#[test]
fn configuration_changes_have_a_generation() {
    let driver = Driver::new(1);
    driver.start();
    assert_eq!(driver.read::<1>(0x15), [0]);
    driver.device.update_config(0, &[9, 9]);
    assert_eq!(driver.read::<1>(0x15), [1]);
    assert_eq!(driver.read::<4>(0x3c), [9, 9, 3, 4]);
    assert_eq!(driver.interrupts(), [Interrupt::Line(35, true)]);
    driver.device.write(0x3c + 2, &[7, 7, 7, 7]);
    assert_eq!(driver.read::<8>(0x3c), [9, 9, 3, 4, 7, 7, 7, 8]);
}

#[test]
fn dead_device_is_seen_and_stays_dead() {
    let driver = Driver::new(2);
    driver.start();
    driver.enable_msix();
    driver.device.set_dead();
    driver.device.set_dead();
    assert_ne!(driver.status() & status::NEEDS_RESET, 0);
    let message = |data| Interrupt::Message(0xfee0_0000, data);
    assert_eq!(driver.interrupts(), [message(0x40), message(0x41), message(0x42)]);
    assert_eq!(driver.backend.take(), []);
    // A driver waits for the end of a reset, and is then refused.
    driver.set_status(0);
    assert_eq!(driver.status(), 0);
    assert!(!driver.negotiate(F_VERSION_1));
    assert_ne!(driver.status() & status::NEEDS_RESET, 0);
    driver.set_up_queue(0);
    driver.set_status(0x0f);
    assert_eq!(driver.backend.take(), []);
}

#[test]
fn queues_of_a_dead_device_are_broken_for_whoever_polls_them() {
    let driver = Driver::new(2);
    driver.start();
    // Index 64 is entry 0 again: the queues have 64 descriptors.
    driver.memory.write(0x1000 + 0x2002, &64u16.to_le_bytes()).unwrap();
    driver.device.set_dead();
    for (used, index) in [(0x3000, 65u16), (0x7000, 1)] {
        assert_eq!(driver.memory.read_u16(used + 2), Ok(index));
        assert_eq!(driver.memory.read_u64(used + 4), Ok(0xffff_ffff));
    }
    driver.set_status(0);
    driver.memory.write(0x3000, &[0; 12]).unwrap();
    driver.device.set_dead();
    assert_eq!(driver.memory.read_u64(0x3004), Ok(0), "memory is the driver's again after a reset");
}

#[test]
fn device_that_dies_while_it_is_being_reset_lets_the_driver_go_on() {
    let driver = Driver::new(2);
    driver.start();
    driver.backend.broken.store(true, Ordering::SeqCst);
    driver.set_status(0);
    assert!(driver.device.is_dead());
    assert_eq!(driver.status(), 0);
    assert!(!driver.negotiate(F_VERSION_1));
}

#[test]
fn accesses_of_any_width_and_place_are_harmless() {
    let driver = Driver::new(2);
    for value in [0xff, 0x01] {
        for offset in 0..REGISTERS_BAR_SIZE {
            for width in [1, 2, 4, 8] {
                driver.device.write(offset, &[value; 8][..width]);
                driver.device.read(offset, &mut [0; 8][..width]);
            }
        }
    }
    for offset in 0..4096 {
        driver.device.write_config(offset, &[0xff; 4]);
        driver.device.read_config(offset, &mut [0; 4]);
    }
}
