//! Interrupt controllers: each CPU's local APIC in x2APIC mode (SDM vol. 3 §11.12) and the IO-APIC.

use crate::Machine;
use crate::hardware::{read_msr, write_msr};

const APIC_BASE: u32 = 0x1b;
const APIC_BASE_ENABLE: u64 = 1 << 11;
const APIC_BASE_X2APIC: u64 = 1 << 10;
const ID: u32 = 0x802;
const TASK_PRIORITY: u32 = 0x808;
const END_OF_INTERRUPT: u32 = 0x80b;
const SPURIOUS: u32 = 0x80f;
const SPURIOUS_ENABLE: u64 = 1 << 8;
const INTERRUPT_COMMAND: u32 = 0x830;
const LVT_TIMER: u32 = 0x832;
const LVT_TIMER_TSC_DEADLINE: u64 = 2 << 17;
const TSC_DEADLINE: u32 = 0x6e0;

const COMMAND_INIT: u64 = 5 << 8;
const COMMAND_STARTUP: u64 = 6 << 8;
const COMMAND_ASSERT: u64 = 1 << 14;

/// Turns this CPU's local APIC on, with interrupt `spurious` for those that vanish and `timer` for the timer.
pub fn initialize(spurious: u8, timer: u8) {
    // SAFETY: the interrupt table has entries for all vectors.
    unsafe {
        write_msr(APIC_BASE, read_msr(APIC_BASE) | APIC_BASE_ENABLE | APIC_BASE_X2APIC);
        write_msr(SPURIOUS, SPURIOUS_ENABLE | u64::from(spurious));
        write_msr(TASK_PRIORITY, 0);
        write_msr(LVT_TIMER, LVT_TIMER_TSC_DEADLINE | u64::from(timer));
    }
}

/// This CPU's APIC id.
pub fn id() -> u32 {
    read_msr(ID) as u32
}

/// Lets the next interrupt come.
pub fn end_of_interrupt() {
    // SAFETY: only handlers of interrupts call it, at their end.
    unsafe { write_msr(END_OF_INTERRUPT, 0) };
}

/// Makes this CPU's timer interrupt when the time-stamp counter has this value.
pub fn set_deadline(tsc: u64) {
    // SAFETY: the timer's interrupt has a handler.
    unsafe { write_msr(TSC_DEADLINE, tsc) };
}

fn command(destination: u32, command: u64) {
    // SAFETY: what is sent has a handler at the destination, or starts it with code that is in place.
    unsafe { write_msr(INTERRUPT_COMMAND, u64::from(destination) << 32 | command) };
}

/// Interrupts a CPU.
pub fn interrupt(destination: u32, vector: u8) {
    command(destination, COMMAND_ASSERT | u64::from(vector));
}

/// Starts a CPU in real mode at `page` × 4096 (SDM vol. 3 §9.4.4).
pub fn start(destination: u32, page: u8) {
    command(destination, COMMAND_INIT | COMMAND_ASSERT);
    // Twice, as the protocol asks for.
    command(destination, COMMAND_STARTUP | COMMAND_ASSERT | u64::from(page));
    command(destination, COMMAND_STARTUP | COMMAND_ASSERT | u64::from(page));
}

/// Routes interrupt `irq` of the IO-APIC to this CPU as `vector`.
pub fn route(machine: &Machine, irq: u32, vector: u8) {
    let (address, first) = machine.acpi.io_apic().expect("there is no IO-APIC");
    let entry = 0x10 + 2 * (irq - first);
    let write = |register: u32, value: u32| {
        let base = address as *mut u32;
        // SAFETY: the registers are mapped, at the address that ACPI gives (82093AA datasheet §3).
        unsafe {
            base.write_volatile(register);
            base.add(4).write_volatile(value);
        }
    };
    // Edge-triggered, active high, fixed, physical destination, not masked.
    write(entry + 1, id() << 24);
    write(entry, u32::from(vector));
}
