//! A conventional PCI bus with memory-mapped configuration: bus 0 only, one function a slot, base addresses assigned
//! once and never moved (PCI Local Bus 3.0; PCI Express 5.0 §7.2.2 for ECAM).

mod bus;
mod config;
mod msix;

pub use bus::{Ecam, PciBus, PciDevice, PciError, PortWindow};
pub use config::{Bar, ConfigSpace, Identity};
pub use msix::{MSIX_CAPABILITY_LEN, MsiMessage, Msix, NO_VECTOR};

/// Slots of the bus. Slot 0 is the host bridge.
pub const SLOTS: u8 = 16;
/// Interrupt of slot 0; slot `n`'s INTA is this plus `n`.
const IRQ_BASE: u32 = 32;

/// The interrupt controller input of `slot`'s INTA.
pub fn irq(slot: u8) -> u32 {
    IRQ_BASE + u32::from(slot)
}
