//! The ways out.

use crate::hardware::{halt_for_ever, out8, out16};
use crate::{MACHINE, Machine, println};

const SLEEP_ENABLE: u16 = 1 << 13;

/// Turns the machine off.
pub fn off(machine: &Machine) -> ! {
    match machine.acpi.power_off() {
        Some(register) => {
            out16(register.port, u16::from(register.sleep_type) << 10 | SLEEP_ENABLE);
        }
        None => println!("ACPI does not say how to turn this machine off"),
    }
    halt_for_ever()
}

/// Resets the machine.
pub fn reboot() -> ! {
    match MACHINE.get().and_then(|machine| machine.acpi.reset()) {
        Some((port, value)) => out8(port, value),
        None => println!("ACPI does not say how to reset this machine"),
    }
    halt_for_ever()
}
