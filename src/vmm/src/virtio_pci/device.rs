//! The PCI function of a virtio device.

use super::common_config::{self, Action, CommonConfig, Outside, status};
use super::interrupts::{Cause, Interrupts};
use super::{
    DeviceConfig, F_EVENT_IDX, F_INDIRECT_DESC, QueueConfig, VirtioBackend, VirtioIdentity,
};
use crate::bus::BusDevice;
use crate::interrupt::InterruptController;
use crate::memory::{GuestMemory, PAGE_SIZE};
use crate::pci::{self, Bar, ConfigSpace, Identity, Msix, PciDevice};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Size of the base address with the registers, in bytes.
pub const REGISTERS_BAR_SIZE: u64 = 2 * PAGE_SIZE;
/// Size of the base address that notifications are written to, in bytes.
pub const NOTIFY_BAR_SIZE: u64 = PAGE_SIZE;

const VIRTIO_VENDOR: u16 = 0x1af4;
/// PCI device IDs of devices that are not transitional start here (virtio 1.2 §4.1.2).
const DEVICE_ID_BASE: u16 = 0x1040;
const REVISION: u32 = 1;

/// Register offsets in the first base address.
const ISR: u64 = common_config::SIZE;
const DEVICE_CONFIG: u64 = 0x3c;
const MSIX_TABLE: u64 = 0x1000;
const MSIX_PENDING: u64 = 0x1800;
/// Entries that fit between table and pending bits.
const MAX_VECTORS: u16 = ((MSIX_PENDING - MSIX_TABLE) / 16) as u16;

const REGISTERS_BAR: u8 = 0;
/// The first base address is 64 bits wide, so the second one is number 2.
const NOTIFY_BAR: u8 = 2;
/// Bytes between two queues' notification addresses.
const NOTIFY_STRIDE: u32 = 4;

const CAPABILITY_VENDOR: u8 = 0x09;
const CAPABILITY_MSIX: u8 = 0x11;
/// Types of virtio capabilities (§4.1.4).
const CAP_COMMON: u8 = 1;
const CAP_NOTIFY: u8 = 2;
const CAP_ISR: u8 = 3;
const CAP_DEVICE: u8 = 4;

/// Every queue of a device, in [`Cause::lanes`].
const ALL_LANES: u8 = 0b1111;

struct Control {
    common: CommonConfig,
    backend: Box<dyn VirtioBackend>,
    /// The backend has something to let go of.
    in_use: bool,
}

/// A virtio device on PCI.
pub struct VirtioPciDevice {
    name: String,
    registers: Bar,
    notify: Bar,
    space: Mutex<ConfigSpace>,
    msix_control: u16,
    control: Mutex<Control>,
    interrupts: Mutex<Interrupts>,
    config: Mutex<DeviceConfig>,
    /// The device asks for a reset, because the driver broke the protocol.
    needs_reset: AtomicBool,
    /// The device is gone for good.
    dead: AtomicBool,
    breaks_queues: bool,
    memory: Arc<dyn GuestMemory>,
}

impl VirtioPciDevice {
    /// The function of `identity` in `slot`, with its base addresses at `bars` (of [`REGISTERS_BAR_SIZE`] and
    /// [`NOTIFY_BAR_SIZE`] bytes).
    pub fn new(
        identity: &VirtioIdentity,
        config: DeviceConfig,
        slot: u8,
        bars: [Bar; 2],
        controller: Arc<dyn InterruptController>,
        memory: Arc<dyn GuestMemory>,
        backend: Box<dyn VirtioBackend>,
    ) -> Self {
        let queues = identity.queue_sizes.len();
        // One for each queue and one for configuration changes.
        let vectors = u16::try_from(queues + 1).unwrap_or(u16::MAX).min(MAX_VECTORS);
        let interrupts =
            Interrupts::new(queues, vectors, pci::irq(slot), controller, memory.clone());
        let [registers, notify] = bars;
        let pci_identity = Identity {
            vendor: VIRTIO_VENDOR,
            device: DEVICE_ID_BASE + identity.device_id,
            subsystem_vendor: VIRTIO_VENDOR,
            subsystem: identity.device_id,
            class_and_revision: (identity.class << 8) | REVISION,
        };
        let mut space = ConfigSpace::new(pci_identity, &bars, Some(slot));
        let msix_control = add_capabilities(&mut space, interrupts.msix(), config.len());
        let features = identity.features | F_INDIRECT_DESC | F_EVENT_IDX;
        Self {
            name: identity.name.clone(),
            registers,
            notify,
            space: Mutex::new(space),
            msix_control,
            control: Mutex::new(Control {
                common: CommonConfig::new(features, &identity.queue_sizes),
                backend,
                in_use: false,
            }),
            interrupts: Mutex::new(interrupts),
            config: Mutex::new(config),
            needs_reset: AtomicBool::new(false),
            dead: AtomicBool::new(false),
            breaks_queues: identity.breaks_queues,
            memory,
        }
    }

    /// Its name in logs.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Guest-physical addresses of the registers, which this process traps.
    pub fn registers(&self) -> Range<u64> {
        self.registers.address..self.registers.address + self.registers.size
    }

    /// Guest-physical addresses of notifications, which the backend traps.
    pub fn notify(&self) -> Range<u64> {
        self.notify.address..self.notify.address + self.notify.size
    }

    /// The device's configuration, as it is now.
    pub fn config(&self) -> DeviceConfig {
        lock(&self.config).clone()
    }

    /// Changes `data.len()` bytes of the device's configuration and tells the driver.
    pub fn update_config(&self, offset: usize, data: &[u8]) {
        lock(&self.config).update(offset, data);
        self.raise(Cause { config: true, ..Cause::default() });
    }

    /// Fills in the configuration before the guest runs.
    pub fn set_config(&self, bytes: &[u8]) {
        lock(&self.config).initialize(bytes);
    }

    /// The features that the driver accepted, once it is ready.
    pub fn negotiated(&self) -> Option<u64> {
        let control = lock(&self.control);
        (control.common.status() & status::DRIVER_OK != 0).then(|| control.common.negotiated())
    }

    /// Tells the driver about used buffers or changed configuration.
    pub(super) fn raise(&self, cause: Cause) {
        lock(&self.interrupts).raise(cause);
    }

    /// The driver broke the protocol: the device wants to be reset.
    pub fn set_needs_reset(&self) {
        self.needs_reset.store(true, Ordering::SeqCst);
        self.raise(Cause { config: true, ..Cause::default() });
    }

    /// The device is gone: the driver sees a device that needs a reset, which it gets, and which then accepts no
    /// features any more.
    ///
    /// Nobody serves the queues. What is in them will not be completed, and a driver may not assume that it will
    /// (virtio 1.2 §2.1.2), but drivers wait all the same: Linux' console polls the used ring with interrupts off, its
    /// disks wait for ever. For such devices ([`VirtioIdentity::breaks_queues`]) each used ring gets an entry that
    /// cannot be true, by which the driver takes the queue for broken: polling ends and new requests fail. (Not for all:
    /// Linux' network driver polls a queue that it takes for broken.)
    pub fn set_dead(&self) {
        if self.dead.swap(true, Ordering::SeqCst) {
            return;
        }
        self.needs_reset.store(true, Ordering::SeqCst);
        let mut interrupts = lock(&self.interrupts);
        if self.breaks_queues {
            interrupts.break_queues();
        }
        interrupts.raise(Cause { queues: true, lanes: ALL_LANES, config: true });
    }

    /// Whether [`VirtioPciDevice::set_dead`] was called.
    pub fn is_dead(&self) -> bool {
        self.dead.load(Ordering::SeqCst)
    }

    fn read_common(&self, offset: u64, data: &mut [u8]) {
        let control = lock(&self.control);
        let outside = {
            let interrupts = lock(&self.interrupts);
            Outside {
                config_vector: interrupts.config_vector(),
                queue_vector: interrupts.queue_vector(control.common.queue_select()),
                generation: lock(&self.config).generation(),
                needs_reset: self.needs_reset(control.common.status()),
            }
        };
        control.common.read(offset, data, outside);
    }

    fn write_common(&self, offset: u64, data: &[u8]) {
        let mut control = lock(&self.control);
        let action = control.common.write(offset, data);
        if self.is_dead() && action != Action::Reset {
            control.common.refuse_features();
        }
        match action {
            Action::None => {}
            Action::SetConfigVector(vector) => lock(&self.interrupts).set_config_vector(vector),
            Action::SetQueueVector(queue, vector) => {
                lock(&self.interrupts).set_queue_vector(queue, vector);
            }
            Action::EnableQueue(index, config) => self.enable_queue(&mut control, index, &config),
            Action::Ready => self.ready(&mut control),
            Action::Reset => self.reset(&mut control),
        }
    }

    /// A reset ends with a status of 0 (§2.4.2), also of a dead device: drivers wait for that. It needs the next one as
    /// soon as a driver turns to it.
    fn needs_reset(&self, status: u8) -> bool {
        self.needs_reset.load(Ordering::SeqCst) || (self.is_dead() && status != 0)
    }

    fn enable_queue(&self, control: &mut Control, index: u16, config: &QueueConfig) {
        let negotiated = control.common.status() & status::FEATURES_OK != 0;
        if !negotiated || !control.common.is_valid(index, config, self.memory.size()) {
            tracing::warn!(
                device = self.name,
                index,
                ?config,
                "The driver enabled an impossible queue"
            );
            self.set_needs_reset();
            return;
        }
        lock(&self.interrupts).enable_queue(index, config);
        control.in_use = true;
        self.tell(control, |backend| backend.configure_queue(index, config));
    }

    fn ready(&self, control: &mut Control) {
        control.in_use = true;
        let features = control.common.negotiated() as u32;
        self.tell(control, |backend| backend.ready(features));
    }

    fn reset(&self, control: &mut Control) {
        if std::mem::take(&mut control.in_use) {
            self.tell(control, |backend| backend.reset());
        }
        control.common.reset();
        lock(&self.interrupts).reset();
        self.needs_reset.store(false, Ordering::SeqCst);
    }

    fn tell(
        &self,
        control: &mut Control,
        call: impl FnOnce(&mut dyn VirtioBackend) -> Result<(), super::BackendError>,
    ) {
        if self.is_dead() {
            return;
        }
        if let Err(error) = call(control.backend.as_mut()) {
            tracing::error!(device = self.name, %error, "Virtio device failed");
            self.set_dead();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Adds the capabilities and returns the offset of the MSI-X control register.
fn add_capabilities(space: &mut ConfigSpace, msix: &Msix, config_len: usize) -> u16 {
    let config_len = u32::try_from(config_len).unwrap_or(u32::MAX);
    let structures = [
        (CAP_COMMON, REGISTERS_BAR, 0, common_config::SIZE as u32, None),
        (CAP_NOTIFY, NOTIFY_BAR, 0, NOTIFY_BAR_SIZE as u32, Some(NOTIFY_STRIDE)),
        (CAP_ISR, REGISTERS_BAR, ISR as u32, 1, None),
        (CAP_DEVICE, REGISTERS_BAR, DEVICE_CONFIG as u32, config_len, None),
    ];
    for (kind, bar, offset, length, extra) in structures {
        // A device without configuration has no structure for it (§4.1.4.6).
        if length > 0 {
            space.add_capability(
                CAPABILITY_VENDOR,
                &virtio_capability(kind, bar, offset, length, extra),
                &[],
            );
        }
    }
    let body = msix.capability(REGISTERS_BAR, MSIX_TABLE as u32, MSIX_PENDING as u32);
    let offset = space.add_capability(CAPABILITY_MSIX, &body, &Msix::WRITABLE);
    // All capabilities together take 108 of 192 bytes, so there is room.
    offset.map_or(u16::MAX, |offset| u16::from(offset) + 2)
}

/// The body of `struct virtio_pci_cap` (§4.1.4).
fn virtio_capability(kind: u8, bar: u8, offset: u32, length: u32, extra: Option<u32>) -> Vec<u8> {
    let len = if extra.is_some() { 20 } else { 16 };
    let mut body = vec![len, kind, bar, 0, 0, 0];
    body.extend_from_slice(&offset.to_le_bytes());
    body.extend_from_slice(&length.to_le_bytes());
    body.extend(extra.into_iter().flat_map(u32::to_le_bytes));
    body
}

impl PciDevice for VirtioPciDevice {
    fn read_config(&self, offset: u16, data: &mut [u8]) {
        let mut space = lock(&self.space);
        space.set_interrupt_status(lock(&self.interrupts).pending());
        space.read(offset, data);
    }

    fn write_config(&self, offset: u16, data: &[u8]) {
        let mut space = lock(&self.space);
        space.write(offset, data);
        let end = u32::from(offset) + data.len() as u32;
        let control = u32::from(self.msix_control);
        let mut interrupts = lock(&self.interrupts);
        if u32::from(offset) < control + 2 && control < end {
            interrupts.set_msix_control(space.read_u16(self.msix_control as u8));
        }
        interrupts.set_intx_disabled(space.intx_disabled());
    }
}

impl BusDevice for VirtioPciDevice {
    fn read(&self, offset: u64, data: &mut [u8]) {
        match offset {
            0..common_config::SIZE => self.read_common(offset, data),
            ISR => {
                data.fill(0);
                if let Some(byte) = data.first_mut() {
                    *byte = lock(&self.interrupts).take_isr();
                }
            }
            DEVICE_CONFIG..MSIX_TABLE => {
                lock(&self.config).read((offset - DEVICE_CONFIG) as usize, data);
            }
            MSIX_TABLE..MSIX_PENDING => {
                lock(&self.interrupts).msix().read_table((offset - MSIX_TABLE) as usize, data);
            }
            MSIX_PENDING.. => {
                lock(&self.interrupts).msix().read_pending((offset - MSIX_PENDING) as usize, data);
            }
            _ => data.fill(0),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        match offset {
            0..common_config::SIZE => self.write_common(offset, data),
            DEVICE_CONFIG..MSIX_TABLE => {
                lock(&self.config).write((offset - DEVICE_CONFIG) as usize, data);
            }
            MSIX_TABLE..MSIX_PENDING => {
                lock(&self.interrupts).write_msix_table((offset - MSIX_TABLE) as usize, data);
            }
            _ => {}
        }
    }
}

#[cfg(test)]
#[path = "device_test.rs"]
mod tests;
