//! The shell on the serial port.

use crate::hardware::{self, wait_for_interrupt};
use crate::{Machine, clock, cpu, interrupt, pci, power, print, println, uart};
use core::arch::asm;
use core::sync::atomic::Ordering;

const HELP: &str = "\
help                 this text
items                the items of the boot image
cpus                 the CPUs, and what they have done
physmem              how much memory there is
time                 the time since boot, and the date
sleep MILLISECONDS   waits, halted
work COUNT           all CPUs add one to one word, COUNT times each
devices              what is on the PCI bus
echo WORDS           prints them
crash [KIND]         invalid-opcode, divide, page-fault or triple-fault
poweroff             turns the machine off, as does `power shutdown`
reboot               resets the machine, as does `power reboot`";

/// A line that is being typed.
struct Line {
    bytes: [u8; 4096],
    len: usize,
}

/// Takes commands for ever.
pub fn run(machine: &Machine) -> ! {
    let mut line = Line { bytes: [0; 4096], len: 0 };
    println!("type help for a list of commands");
    loop {
        print!("$ ");
        line.read();
        match core::str::from_utf8(&line.bytes[..line.len]) {
            Ok(text) => execute(machine, text.trim()),
            Err(_) => println!("that is not UTF-8"),
        }
    }
}

/// The next byte of input; the CPU is halted until it comes.
fn next_byte() -> u8 {
    hardware::disable_interrupts();
    loop {
        if let Some(byte) = uart::read() {
            hardware::enable_interrupts();
            return byte;
        }
        wait_for_interrupt();
    }
}

impl Line {
    /// Reads a line, with echo.
    fn read(&mut self) {
        self.len = 0;
        loop {
            match next_byte() {
                b'\r' | b'\n' => {
                    println!();
                    return;
                }
                // Backspace and delete.
                8 | 127 if self.len > 0 => {
                    self.len -= 1;
                    print!("\x08 \x08");
                }
                byte @ b' '.. if byte != 127 && self.len < self.bytes.len() => {
                    self.bytes[self.len] = byte;
                    self.len += 1;
                    print!("{}", if byte.is_ascii() { byte as char } else { '?' });
                }
                _ => {}
            }
        }
    }
}

fn execute(machine: &Machine, line: &str) {
    let (command, rest) = line.split_once(' ').unwrap_or((line, ""));
    match (command, rest.trim()) {
        ("", _) => {}
        ("help", _) => println!("{HELP}"),
        ("items", _) => machine.zbi.print(),
        ("cpus", _) => print_cpus(),
        ("physmem", _) => {
            let ram = machine.zbi.ram();
            println!("{ram} bytes ({} MiB)", ram >> 20);
        }
        ("time", _) => {
            let nanos = clock::nanos();
            println!("{}.{:09} s, {}", nanos / 1_000_000_000, nanos % 1_000_000_000, clock::date());
        }
        ("sleep", milliseconds) => match milliseconds.parse::<u64>() {
            Ok(milliseconds) => sleep(milliseconds),
            Err(_) => println!("sleep takes a number of milliseconds"),
        },
        ("work", count) => match count.parse() {
            Ok(count) => {
                println!("{} CPUs have counted to {}", cpu::online(), cpu::work(count));
            }
            Err(_) => println!("work takes a number"),
        },
        ("devices", _) => pci::print(machine),
        ("echo", words) => println!("{words}"),
        ("crash", kind) => crash(kind),
        ("poweroff", _) | ("power", "shutdown") => power::off(machine),
        ("reboot", _) | ("power", "reboot") => power::reboot(),
        _ => println!("{command}: no such command; help lists them"),
    }
}

fn print_cpus() {
    for (index, cpu) in cpu::all() {
        println!(
            "cpu {index}: apic id {}, {} ticks, {} calls",
            cpu.apic_id.load(Ordering::Relaxed),
            cpu.ticks.load(Ordering::Relaxed),
            cpu.calls.load(Ordering::Relaxed)
        );
    }
    println!("uart: {} interrupts", uart::interrupts());
}

/// Waits for the timer's ticks until the time is over.
fn sleep(milliseconds: u64) {
    let end = clock::nanos().saturating_add(milliseconds.saturating_mul(1_000_000));
    let ticks = cpu::current().ticks.load(Ordering::Relaxed);
    hardware::disable_interrupts();
    while clock::nanos() < end {
        wait_for_interrupt();
    }
    hardware::enable_interrupts();
    println!("slept, {} ticks", cpu::current().ticks.load(Ordering::Relaxed) - ticks);
}

fn crash(kind: &str) {
    // SAFETY: the exceptions never return, which is the purpose.
    unsafe {
        match kind {
            "" | "invalid-opcode" => asm!("ud2"),
            "divide" => asm!("xor edx, edx", "xor ecx, ecx", "mov eax, 1", "div ecx"),
            // Beyond what is mapped.
            "page-fault" => asm!("mov rax, 0x500000000000", "mov byte ptr [rax], 0"),
            "triple-fault" => {
                interrupt::forget_handlers();
                asm!("ud2");
            }
            _ => println!("crash has no {kind:?}; help lists the kinds"),
        }
    }
}
