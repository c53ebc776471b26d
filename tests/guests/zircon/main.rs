//! A small kernel that follows Zircon's boot contract, to test the `zircon` guest with: it is a boot image (ZBI) itself,
//! shows the items that the boot loader gave it, and uses the machine as Zircon does: the UART with interrupts, x2APIC
//! and TSC-deadline timers, the IO-APIC, PCI through ECAM, ACPI, and every CPU. On the serial port it has a shell.
//!
//! It is freestanding, yet built for the host's own target, since no other has to be installed then: the precompiled
//! core library uses the red zone and SSE, so interrupts get stacks of their own and save the vector state.
#![no_std]
#![no_main]

mod acpi;
mod apic;
mod clock;
mod cpu;
mod hardware;
mod interrupt;
mod memory;
mod pci;
mod power;
mod shell;
mod sync;
mod uart;
mod zbi;

use core::panic::PanicInfo;
use sync::BootCell;

core::arch::global_asm!(include_str!("start.s"));
core::arch::global_asm!(include_str!("trampoline.s"), options(att_syntax));

/// What the kernel has learned of its machine.
pub struct Machine {
    /// The boot loader's data image.
    pub zbi: zbi::Image,
    /// What ACPI says.
    pub acpi: acpi::Tables,
}

/// Filled in before the second CPU starts.
pub static MACHINE: BootCell<Machine> = BootCell::new();

/// The kernel, entered with the address of the data image.
#[unsafe(no_mangle)]
extern "C" fn kernel_main(zbi_address: usize) -> ! {
    uart::initialize();
    println!();
    println!("Zircon test kernel");
    // SAFETY: the boot contract promises a data image at this address, which nobody writes to.
    let image = unsafe { zbi::Image::new(zbi_address) };
    println!("boot image at {zbi_address:#x}, {} bytes", image.len());
    image.print();
    memory::initialize();
    let rsdp = image.acpi_rsdp().expect("the boot image has no ACPI root pointer");
    // SAFETY: the boot contract promises that the item holds the tables' address.
    let acpi = unsafe { acpi::Tables::new(rsdp) };
    let machine = MACHINE.set(Machine { zbi: image, acpi });
    cpu::initialize_first();
    clock::initialize();
    apic::route(machine, uart::IRQ, interrupt::SERIAL);
    uart::enable_interrupts();
    cpu::start_others(&machine.acpi);
    println!("{} of {} CPUs are up", cpu::online(), machine.acpi.cpus().count());
    shell::run(machine)
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    hardware::disable_interrupts();
    uart::break_lock();
    println!("\nZIRCON KERNEL PANIC\n{info}");
    match MACHINE.get() {
        Some(machine) if !machine.zbi.command_line_has("kernel.halt-on-panic=true") => {
            println!("rebooting");
            power::reboot()
        }
        _ => {
            println!("halted");
            hardware::halt_for_ever()
        }
    }
}
