//! Exceptions and interrupts.

use crate::sync::Shared;
use crate::{apic, cpu, uart};
use core::arch::asm;

/// The UART has input.
pub const SERIAL: u8 = 0x24;
/// A CPU's timer has come to its deadline.
pub const TIMER: u8 = 0x40;
/// Another CPU calls.
pub const CALL: u8 = 0x50;
/// An interrupt that has vanished; it is not to be acknowledged.
pub const SPURIOUS: u8 = 0xff;

const CODE: u64 = 0x08;
const PRESENT_INTERRUPT_GATE: u64 = 0x8e;
/// The stacks, by their number in the task state segment.
const EXCEPTION_STACK: u64 = 1;
const INTERRUPT_STACK: u64 = 2;

static TABLE: Shared<[[u64; 2]; 256]> = Shared::new([[0; 2]; 256]);

unsafe extern "C" {
    /// The code of vector 0; each further vector's is 16 bytes on.
    static interrupt_entries: u8;
}

/// What is on the stack in a handler.
#[repr(C)]
#[derive(Debug)]
pub struct Frame {
    r15: u64,
    r14: u64,
    r13: u64,
    r12: u64,
    r11: u64,
    r10: u64,
    r9: u64,
    r8: u64,
    rdi: u64,
    rsi: u64,
    rbp: u64,
    rbx: u64,
    rdx: u64,
    rcx: u64,
    rax: u64,
    vector: u64,
    error_code: u64,
    rip: u64,
    cs: u64,
    rflags: u64,
    rsp: u64,
    ss: u64,
}

/// Fills the interrupt table that all CPUs use.
pub fn initialize() {
    // SAFETY: no CPU has loaded the table yet.
    let table = unsafe { &mut *TABLE.get() };
    for (vector, gate) in table.iter_mut().enumerate() {
        let entry = &raw const interrupt_entries as u64 + 16 * vector as u64;
        let stack = if vector < 32 { EXCEPTION_STACK } else { INTERRUPT_STACK };
        gate[0] = entry & 0xffff
            | CODE << 16
            | stack << 32
            | PRESENT_INTERRUPT_GATE << 40
            | (entry >> 16 & 0xffff) << 48;
        gate[1] = entry >> 32;
    }
}

/// Loads the interrupt table on this CPU.
pub fn load() {
    load_table(TABLE.get() as u64, size_of::<[[u64; 2]; 256]>() as u16 - 1);
}

fn load_table(address: u64, limit: u16) {
    #[repr(C, packed)]
    struct Pointer(u16, u64);
    let pointer = Pointer(limit, address);
    // SAFETY: the table stays, and its entries are sound; an empty one has none.
    unsafe { asm!("lidt [{}]", in(reg) &raw const pointer, options(nostack, readonly)) };
}

/// Leaves the CPU without handlers, so that the next exception shuts it down.
pub fn forget_handlers() {
    load_table(0, 0);
}

#[unsafe(no_mangle)]
extern "C" fn interrupt_dispatch(frame: &mut Frame) {
    match frame.vector {
        vector @ 0..32 => exception(vector, frame),
        vector if vector == u64::from(SPURIOUS) => return,
        vector if vector == u64::from(TIMER) => cpu::tick(),
        vector if vector == u64::from(SERIAL) => uart::interrupt(),
        vector if vector == u64::from(CALL) => cpu::called(),
        vector => panic!("interrupt {vector:#x} that nobody asked for"),
    }
    apic::end_of_interrupt();
}

fn exception(vector: u64, frame: &Frame) -> ! {
    let name = match vector {
        0 => "divide error",
        3 => "breakpoint",
        6 => "invalid opcode",
        8 => "double fault",
        13 => "general protection",
        14 => "page fault",
        _ => "other",
    };
    let address: u64;
    // SAFETY: it only reads.
    unsafe { asm!("mov {}, cr2", out(reg) address, options(nostack, preserves_flags)) };
    panic!("exception {vector} ({name}), address {address:#x}\n{frame:#x?}");
}
