//! What is on the PCI bus.

use crate::Machine;
use crate::println;

/// Prints each function of bus 0.
pub fn print(machine: &Machine) {
    let Some(base) = machine.acpi.pci_configuration() else {
        println!("there is no PCI");
        return;
    };
    for device in 0..32 {
        let register = |offset: usize| {
            // SAFETY: configuration space of a device that is not there reads as ones (PCIe 5.0 §7.2.2).
            unsafe { ((base + (device << 15) + offset) as *const u32).read_volatile() }
        };
        let id = register(0);
        if id & 0xffff != 0xffff {
            let (vendor, product) = (id & 0xffff, id >> 16);
            println!("00:{device:02x}.0 {vendor:04x}:{product:04x} class {:06x}", register(8) >> 8);
        }
    }
}
