//! The instructions that a language does not have.

use core::arch::asm;

/// Reads a byte from an I/O port.
pub fn in8(port: u16) -> u8 {
    let value;
    // SAFETY: ports of this machine do not touch memory that the compiler knows of.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nostack, preserves_flags)) };
    value
}

/// Writes a byte to an I/O port.
pub fn out8(port: u16, value: u8) {
    // SAFETY: as for `in8`.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nostack, preserves_flags)) };
}

/// Writes two bytes to an I/O port.
pub fn out16(port: u16, value: u16) {
    // SAFETY: as for `in8`.
    unsafe { asm!("out dx, ax", in("dx") port, in("ax") value, options(nostack, preserves_flags)) };
}

/// Reads a model-specific register, which must exist.
pub fn read_msr(register: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: reading has no effect on memory; a register that does not exist ends in a report.
    unsafe {
        asm!("rdmsr", in("ecx") register, out("eax") low, out("edx") high,
            options(nostack, preserves_flags));
    }
    u64::from(high) << 32 | u64::from(low)
}

/// Writes a model-specific register.
///
/// # Safety
/// What the register does must be sound now.
pub unsafe fn write_msr(register: u32, value: u64) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("wrmsr", in("ecx") register, in("eax") value as u32, in("edx") (value >> 32) as u32,
            options(nostack, preserves_flags));
    }
}

/// The time-stamp counter, read after all that comes before.
pub fn tsc() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: it only reads.
    unsafe { asm!("lfence", "rdtsc", out("eax") low, out("edx") high, options(nostack)) };
    u64::from(high) << 32 | u64::from(low)
}

/// Makes interrupts wait.
pub fn disable_interrupts() {
    // SAFETY: always sound.
    unsafe { asm!("cli") };
}

/// Lets interrupts come. They have stacks of their own.
pub fn enable_interrupts() {
    // SAFETY: the interrupt table is loaded before anything calls this.
    unsafe { asm!("sti") };
}

/// With interrupts off: lets one come, and returns with interrupts off once it has been handled. Nothing is lost between
/// the caller's last look and the wait, because `sti` takes effect after the next instruction.
pub fn wait_for_interrupt() {
    // SAFETY: as for `enable_interrupts`.
    unsafe { asm!("sti", "hlt", "cli") };
}

/// Never goes on.
pub fn halt_for_ever() -> ! {
    loop {
        // SAFETY: nothing comes after it.
        unsafe { asm!("cli", "hlt") };
    }
}
