//! The arm64 machine (Fuchsia on arm64 only): its address space. GIC, PL011, PL031, device tree and the Image loader
//! follow; until then building it is an error.

#[cfg(target_arch = "aarch64")]
pub mod vcpu;

use super::{AddressSpace, Entry, Kernel, PlatformError};
use crate::bus::Bus;
use crate::interrupt::{InterruptController, InterruptSink, PowerControl};
use crate::memory::{GuestMemory, MemoryLayout};
use crate::pci::PciBus;
use crate::serial::SerialPort;
use std::convert::Infallible;
use std::ops::Range;
use std::sync::Arc;

/// Devices start here; RAM never reaches it.
const DEVICES: u64 = 0x8_0000_0000;
/// Devices whose place is found at run time start here.
const DYNAMIC_DEVICES: u64 = 0xb_0000_0000;

/// Ranges where RAM is never placed.
const RESTRICTED: [Range<u64>; 2] = [DEVICES..DYNAMIC_DEVICES, DYNAMIC_DEVICES..u64::MAX];

/// The platform. There is no value of it yet.
pub struct Platform(Infallible);

impl Platform {
    /// The address space.
    pub const ADDRESS_SPACE: AddressSpace = AddressSpace {
        restricted: &RESTRICTED,
        firmware: &[],
        pci_mmio: 0x8_0820_0000..0x8_0830_0000,
        pci_ecam: 0x8_0810_0000..0x8_0820_0000,
        max_cpus: 8,
    };

    /// Fails: the machine is not there yet.
    ///
    /// # Errors
    ///
    /// [`PlatformError::Unsupported`], always.
    pub fn new(
        _sink: Arc<dyn InterruptSink>,
        _power: Arc<dyn PowerControl>,
        _pci: Arc<PciBus>,
        _mmio: &mut Bus,
    ) -> Result<Self, PlatformError> {
        Err(PlatformError::Unsupported("arm64"))
    }

    /// The interrupt controller.
    pub fn interrupts(&self) -> Arc<dyn InterruptController> {
        match self.0 {}
    }

    /// The console UART.
    pub fn serial(&self) -> Arc<dyn SerialPort> {
        match self.0 {}
    }

    /// Trapped I/O port ranges: first port and count.
    pub fn io_traps(&self) -> &[(u16, u16)] {
        match self.0 {}
    }

    /// Loads firmware tables and the kernel.
    ///
    /// # Errors
    ///
    /// [`PlatformError`]
    pub fn load(
        &self,
        _memory: &dyn GuestMemory,
        _layout: &MemoryLayout,
        _devices: &[Range<u64>],
        _cpus: u8,
        _kernel: Kernel<'_>,
    ) -> Result<Entry, PlatformError> {
        match self.0 {}
    }
}
