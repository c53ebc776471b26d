//! The 16550 UART at COM1: the kernel's console. Output is polled, input comes by interrupt.

use crate::hardware::{in8, out8};
use crate::sync::SpinLock;
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};

/// The interrupt, on the IO-APIC.
pub const IRQ: u32 = 4;

const COM1: u16 = 0x3f8;
const DATA: u16 = COM1;
const INTERRUPT_ENABLE: u16 = COM1 + 1;
const FIFO_CONTROL: u16 = COM1 + 2;
const LINE_CONTROL: u16 = COM1 + 3;
const MODEM_CONTROL: u16 = COM1 + 4;
const LINE_STATUS: u16 = COM1 + 5;

const RECEIVED: u8 = 1 << 0;
const TRANSMITTER_EMPTY: u8 = 1 << 5;
/// What the transmitter takes when it is empty, in bytes.
const FIFO: usize = 16;

static OUTPUT: SpinLock<()> = SpinLock::new(());
static INPUT: Ring = Ring::new();
static INTERRUPTS: AtomicU64 = AtomicU64::new(0);

/// Bytes from the interrupt to the shell.
struct Ring {
    bytes: [AtomicU8; 4096],
    /// Counts what was put in; only the interrupt changes it.
    head: AtomicUsize,
    /// Counts what was taken out; only the shell changes it.
    tail: AtomicUsize,
}

impl Ring {
    const fn new() -> Self {
        Self {
            bytes: [const { AtomicU8::new(0) }; 4096],
            head: AtomicUsize::new(0),
            tail: AtomicUsize::new(0),
        }
    }

    /// Whether it was taken; a full ring drops it.
    fn push(&self, byte: u8) -> bool {
        let head = self.head.load(Ordering::Relaxed);
        if head - self.tail.load(Ordering::Acquire) == self.bytes.len() {
            return false;
        }
        self.bytes[head % self.bytes.len()].store(byte, Ordering::Relaxed);
        self.head.store(head + 1, Ordering::Release);
        true
    }

    fn pop(&self) -> Option<u8> {
        let tail = self.tail.load(Ordering::Relaxed);
        if tail == self.head.load(Ordering::Acquire) {
            return None;
        }
        let byte = self.bytes[tail % self.bytes.len()].load(Ordering::Relaxed);
        self.tail.store(tail + 1, Ordering::Release);
        Some(byte)
    }
}

/// Sets the line up: 115200 baud, 8 bits, no parity, FIFOs on, no interrupts yet.
pub fn initialize() {
    out8(INTERRUPT_ENABLE, 0);
    out8(LINE_CONTROL, 0x80);
    out8(DATA, 1);
    out8(INTERRUPT_ENABLE, 0);
    out8(LINE_CONTROL, 0x03);
    out8(FIFO_CONTROL, 0x07);
    // DTR, RTS, and OUT2, which lets the interrupt through on a PC.
    out8(MODEM_CONTROL, 0x0b);
}

/// Lets what is received raise interrupts.
pub fn enable_interrupts() {
    out8(INTERRUPT_ENABLE, 0x01);
}

/// Takes all that was received; called by the interrupt.
pub fn interrupt() {
    INTERRUPTS.fetch_add(1, Ordering::Relaxed);
    while in8(LINE_STATUS) & RECEIVED != 0 {
        // A shell that is that far behind loses input, as real ones do.
        INPUT.push(in8(DATA));
    }
}

/// The next byte that was received.
pub fn read() -> Option<u8> {
    INPUT.pop()
}

/// How often the UART has interrupted.
pub fn interrupts() -> u64 {
    INTERRUPTS.load(Ordering::Relaxed)
}

/// Lets a CPU that panics speak while another, or itself, does.
pub fn break_lock() {
    OUTPUT.force_unlock();
}

struct Output;

impl Write for Output {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut room = 0;
        let mut send = |byte| {
            if room == 0 {
                while in8(LINE_STATUS) & TRANSMITTER_EMPTY == 0 {
                    core::hint::spin_loop();
                }
                room = FIFO;
            }
            out8(DATA, byte);
            room -= 1;
        };
        for byte in text.bytes() {
            if byte == b'\n' {
                send(b'\r');
            }
            send(byte);
        }
        Ok(())
    }
}

/// Writes; a line is never mixed with another CPU's.
pub fn print(arguments: fmt::Arguments<'_>) {
    let _guard = OUTPUT.lock();
    // It has no errors.
    let _written = Output.write_fmt(arguments);
}

/// Prints to the console.
#[macro_export]
macro_rules! print {
    ($($argument:tt)*) => { $crate::uart::print(format_args!($($argument)*)) };
}

/// Prints a line to the console.
#[macro_export]
macro_rules! println {
    () => { $crate::print!("\n") };
    ($($argument:tt)*) => { $crate::print!("{}\n", format_args!($($argument)*)) };
}
