//! The bus: slots, the window for base addresses, and the two ways to configuration space.

use super::SLOTS;
use super::config::{Bar, ConfigSpace, Identity};
use crate::bus::BusDevice;
use crate::interrupt::{PowerControl, PowerRequest};
use crate::memory::PAGE_SIZE;
use std::ops::Range;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};

/// The host bridge: Intel Q35's.
const HOST_BRIDGE: Identity = Identity {
    vendor: 0x8086,
    device: 0x29c0,
    subsystem_vendor: 0,
    subsystem: 0,
    class_and_revision: 0x0600_0000,
};
/// Bytes of extended configuration space a function has in ECAM.
const FUNCTION_SIZE: u64 = 4096;
/// ECAM bytes a slot covers: eight functions, of which the first exists.
const SLOT_SIZE: u64 = 8 * FUNCTION_SIZE;

const PORT_ADDRESS: u64 = 0;
/// Reset control lies inside the address register; byte writes reach it (ICH9 datasheet §13.7.6).
const PORT_RESET: u64 = 1;
const PORT_DATA: u64 = 4;
const ADDRESS_ENABLE: u32 = 1 << 31;
const RESET_CPU: u8 = 1 << 2;

/// Why a device cannot be added. The configuration asks for too much.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PciError {
    /// All slots are taken.
    #[error("More than {} PCI devices", SLOTS - 1)]
    NoSlot,
    /// The window for base addresses is full.
    #[error("No room for {size:#x} bytes in the PCI memory window")]
    NoMemory {
        /// Size of the base address register that did not fit.
        size: u64,
    },
}

/// A PCI function as the bus sees it. Calls come from vCPU threads.
pub trait PciDevice: Send + Sync {
    /// Reads configuration space: `data.len()` is 1, 2 or 4 and `offset` a multiple of it.
    fn read_config(&self, offset: u16, data: &mut [u8]);

    /// Writes configuration space: `data.len()` is 1, 2 or 4 and `offset` a multiple of it.
    fn write_config(&self, offset: u16, data: &[u8]);
}

/// The host bridge has no registers beyond its header.
struct HostBridge(RwLock<ConfigSpace>);

impl PciDevice for HostBridge {
    fn read_config(&self, offset: u16, data: &mut [u8]) {
        self.0.read().unwrap_or_else(PoisonError::into_inner).read(offset, data);
    }

    fn write_config(&self, offset: u16, data: &[u8]) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).write(offset, data);
    }
}

struct Allocation {
    next_slot: u8,
    window: Range<u64>,
}

/// The bus. Slots are given out in order of creation, which the guest sees.
pub struct PciBus {
    slots: [OnceLock<Arc<dyn PciDevice>>; SLOTS as usize],
    allocation: Mutex<Allocation>,
}

impl PciBus {
    /// A bus with a host bridge, placing base addresses in `window`.
    pub fn new(window: Range<u64>) -> Self {
        let slots: [OnceLock<Arc<dyn PciDevice>>; SLOTS as usize] = Default::default();
        let bridge = HostBridge(RwLock::new(ConfigSpace::new(HOST_BRIDGE, &[], None)));
        let bridge: Arc<dyn PciDevice> = Arc::new(bridge);
        let [first, ..] = &slots;
        first.get_or_init(|| bridge);
        Self { slots, allocation: Mutex::new(Allocation { next_slot: 1, window }) }
    }

    /// Reserves the next slot and `sizes.len()` base addresses of `sizes` bytes, then adds the device that `create`
    /// makes of them.
    ///
    /// # Errors
    ///
    /// [`PciError`]
    pub fn add<D: PciDevice + 'static>(
        &self,
        sizes: &[u64],
        create: impl FnOnce(u8, Vec<Bar>) -> Arc<D>,
    ) -> Result<Arc<D>, PciError> {
        let mut allocation = self.allocation.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = allocation.next_slot;
        let cell = self.slots.get(usize::from(slot)).ok_or(PciError::NoSlot)?;
        let mut bars = Vec::new();
        let mut next = allocation.window.start;
        for size in sizes {
            let size = size
                .max(&PAGE_SIZE)
                .checked_next_power_of_two()
                .ok_or(PciError::NoMemory { size: *size })?;
            let address = next.checked_next_multiple_of(size);
            let placed = address.and_then(|address| Some((address, address.checked_add(size)?)));
            let (address, end) = placed
                .filter(|(_, end)| *end <= allocation.window.end)
                .ok_or(PciError::NoMemory { size })?;
            bars.push(Bar { address, size });
            next = end;
        }
        let device = create(slot, bars);
        cell.get_or_init(|| device.clone());
        allocation.window.start = next;
        allocation.next_slot += 1;
        Ok(device)
    }

    fn read(&self, slot: u8, offset: u16, data: &mut [u8]) {
        match self.device(slot) {
            Some(device) if aligned(offset, data.len()) => device.read_config(offset, data),
            _ => data.fill(0xff),
        }
    }

    fn write(&self, slot: u8, offset: u16, data: &[u8]) {
        if let Some(device) = self.device(slot).filter(|_| aligned(offset, data.len())) {
            device.write_config(offset, data);
        }
    }

    fn device(&self, slot: u8) -> Option<&dyn PciDevice> {
        self.slots.get(usize::from(slot))?.get().map(AsRef::as_ref)
    }
}

fn aligned(offset: u16, len: usize) -> bool {
    matches!(len, 1 | 2 | 4) && usize::from(offset) % len == 0
}

/// Memory-mapped configuration space of bus 0.
pub struct Ecam(
    /// The bus.
    pub Arc<PciBus>,
);

/// Slot, function and register of an ECAM offset; bus 0 is all there is (PCI Express 5.0 §7.2.2).
fn decode_ecam(offset: u64) -> Option<(u8, u16)> {
    let function = offset % SLOT_SIZE / FUNCTION_SIZE;
    let slot = u8::try_from(offset / SLOT_SIZE).ok()?;
    (function == 0).then_some((slot, (offset % FUNCTION_SIZE) as u16))
}

impl BusDevice for Ecam {
    fn read(&self, offset: u64, data: &mut [u8]) {
        match decode_ecam(offset) {
            Some((slot, register)) => self.0.read(slot, register, data),
            None => data.fill(0xff),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Some((slot, register)) = decode_ecam(offset) {
            self.0.write(slot, register, data);
        }
    }
}

/// Configuration mechanism 1: ports 0xcf8 (address) and 0xcfc (data) (PCI 3.0 §3.2.2.3.2).
pub struct PortWindow {
    bus: Arc<PciBus>,
    address: Mutex<u32>,
    power: Arc<dyn PowerControl>,
}

impl PortWindow {
    /// Ports into `bus`'s configuration space; resets go to `power`.
    pub fn new(bus: Arc<PciBus>, power: Arc<dyn PowerControl>) -> Self {
        Self { bus, address: Mutex::new(0), power }
    }

    /// Slot and register that a data access of `offset` reaches.
    fn target(&self, offset: u64) -> Option<(u8, u16)> {
        let address = *self.address.lock().unwrap_or_else(PoisonError::into_inner);
        let bus = (address >> 16) & 0xff;
        let function = (address >> 8) & 7;
        if address & ADDRESS_ENABLE == 0 || bus != 0 || function != 0 {
            return None;
        }
        let slot = ((address >> 11) & 0x1f) as u8;
        let register = (address & 0xfc) as u16 + (offset - PORT_DATA) as u16;
        Some((slot, register))
    }
}

impl BusDevice for PortWindow {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        if offset >= PORT_DATA {
            if let Some((slot, register)) = self.target(offset) {
                self.bus.read(slot, register, data);
            }
            return;
        }
        let address = self.address.lock().unwrap_or_else(PoisonError::into_inner).to_le_bytes();
        for (byte, value) in
            data.iter_mut().zip(address.iter().skip((offset - PORT_ADDRESS) as usize))
        {
            *byte = *value;
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        match (offset, data) {
            (PORT_RESET, [value]) => {
                if value & RESET_CPU != 0 {
                    self.power.request(PowerRequest::Reset);
                }
            }
            (0..PORT_DATA, _) => {
                let mut address = self.address.lock().unwrap_or_else(PoisonError::into_inner);
                let mut bytes = address.to_le_bytes();
                for (byte, value) in bytes.iter_mut().skip(offset as usize).zip(data) {
                    *byte = *value;
                }
                *address = u32::from_le_bytes(bytes);
            }
            _ => {
                if let Some((slot, register)) = self.target(offset) {
                    self.bus.write(slot, register, data);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Resets(Mutex<u32>);

    impl PowerControl for Resets {
        fn request(&self, request: PowerRequest) {
            assert_eq!(request, PowerRequest::Reset);
            *self.0.lock().unwrap() += 1;
        }
    }

    struct Function(RwLock<ConfigSpace>);

    impl PciDevice for Function {
        fn read_config(&self, offset: u16, data: &mut [u8]) {
            self.0.read().unwrap().read(offset, data);
        }
        fn write_config(&self, offset: u16, data: &[u8]) {
            self.0.write().unwrap().write(offset, data);
        }
    }

    fn add(bus: &PciBus, sizes: &[u64]) -> Result<Vec<Bar>, PciError> {
        let mut placed = Vec::new();
        bus.add(sizes, |slot, bars| {
            placed.clone_from(&bars);
            let identity = Identity { vendor: 0x1234, device: u16::from(slot), ..HOST_BRIDGE };
            Arc::new(Function(RwLock::new(ConfigSpace::new(identity, &bars, Some(slot)))))
        })?;
        Ok(placed)
    }

    fn bus() -> Arc<PciBus> {
        Arc::new(PciBus::new(0xf820_0000..0xf830_0000))
    }

    fn ecam_u32(bus: &Arc<PciBus>, offset: u64) -> u32 {
        let mut data = [0; 4];
        Ecam(bus.clone()).read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn ecam_finds_functions_and_nothing_else() {
        let bus = bus();
        add(&bus, &[0x1000]).unwrap();
        assert_eq!(ecam_u32(&bus, 0), 0x29c0_8086);
        assert_eq!(ecam_u32(&bus, SLOT_SIZE), 0x0001_1234);
        assert_eq!(ecam_u32(&bus, SLOT_SIZE + 0x3c), 0x0000_0121);
        assert_eq!(ecam_u32(&bus, SLOT_SIZE + 0x100), 0);
        for nothing in [2 * SLOT_SIZE, FUNCTION_SIZE, 20 * SLOT_SIZE, SLOT_SIZE + 2] {
            assert_eq!(ecam_u32(&bus, nothing), 0xffff_ffff, "{nothing:#x}");
        }
    }

    #[test]
    fn base_addresses_are_naturally_aligned_and_sequential() {
        let bus = bus();
        assert_eq!(
            add(&bus, &[0x1000, 0x2000]).unwrap(),
            [
                Bar { address: 0xf820_0000, size: 0x1000 },
                Bar { address: 0xf820_2000, size: 0x2000 }
            ]
        );
        assert_eq!(add(&bus, &[0x1800]).unwrap(), [Bar { address: 0xf820_4000, size: 0x2000 }]);
    }

    #[test]
    fn slots_and_memory_run_out_with_an_error() {
        let bus = bus();
        assert_eq!(add(&bus, &[2 << 20]), Err(PciError::NoMemory { size: 2 << 20 }));
        assert_eq!(add(&bus, &[u64::MAX]), Err(PciError::NoMemory { size: u64::MAX }));
        for _ in 1..SLOTS {
            add(&bus, &[0x1000]).unwrap();
        }
        assert_eq!(add(&bus, &[0x1000]), Err(PciError::NoSlot));
    }

    #[test]
    fn ports_reach_the_same_registers() {
        let bus = bus();
        add(&bus, &[0x1000]).unwrap();
        let ports = PortWindow::new(bus, Arc::new(Resets::default()));
        ports.write(0, &(ADDRESS_ENABLE | (1 << 11) | 0x3c).to_le_bytes());
        let mut data = [0; 4];
        ports.read(PORT_DATA, &mut data);
        assert_eq!(data, [0x21, 1, 0, 0]);
        ports.write(PORT_DATA, &[0x0b]);
        ports.read(PORT_DATA, &mut data[..1]);
        assert_eq!(data[0], 0x0b);
        ports.write(0, &[0x00]);
        ports.read(PORT_DATA, &mut data);
        assert_eq!(data, [0x34, 0x12, 1, 0]);
        ports.write(3, &[0x00]);
        ports.read(PORT_DATA, &mut data);
        assert_eq!(data, [0xff; 4]);
    }

    #[test]
    fn reset_control_resets() {
        let resets = Arc::new(Resets::default());
        let ports = PortWindow::new(bus(), resets.clone());
        ports.write(1, &[0x02]);
        ports.write(1, &[0x06]);
        assert_eq!(*resets.0.lock().unwrap(), 1);
    }

    #[test]
    fn accesses_of_any_width_are_harmless() {
        let bus = bus();
        let ports = PortWindow::new(bus.clone(), Arc::new(Resets::default()));
        for offset in 0..8 {
            for width in [1, 2, 4, 8] {
                ports.write(offset, &[0xff; 8][..width]);
                ports.read(offset, &mut [0; 8][..width]);
                Ecam(bus.clone()).write(offset, &[0xff; 8][..width]);
                Ecam(bus.clone()).read(offset, &mut [0; 8][..width]);
            }
        }
    }
}
