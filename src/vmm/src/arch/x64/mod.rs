//! The x64 machine: a PC without its past. IO-APIC, 16550, CMOS clock, ACPI power management; ports of what is missing
//! answer harmlessly.

pub mod acpi;
pub mod cmos_rtc;
pub mod emulate;
pub mod instruction;
pub mod ioapic;
pub mod legacy_ports;
pub mod linux;
pub mod memory_map;
pub mod page_table;
pub mod pm1;
pub mod uart16550;
#[cfg(target_arch = "x86_64")]
pub mod vcpu;
pub mod zircon;

use super::{AddressSpace, Entry, Kernel, PlatformError};
use crate::bus::{Bus, BusDevice};
use crate::interrupt::{InterruptController, InterruptSink, PowerControl};
use crate::memory::{GuestMemory, MemoryLayout};
use crate::pci::{Ecam, PciBus, PortWindow};
use crate::serial::SerialPort;
use std::ops::Range;
use std::sync::Arc;

/// COM1 to COM4 and their interrupts. Only COM1 leads outside.
const SERIAL_PORTS: [(u64, u32); 4] = [(0x3f8, 4), (0x2f8, 3), (0x3e8, 4), (0x2e8, 3)];
/// I/O ports are trapped whole, in two halves because a range's length has 16 bits.
const IO_TRAPS: [(u16, u16); 2] = [(0, 0x8000), (0x8000, 0x8000)];

/// The platform devices.
pub struct Platform {
    io: Bus,
    interrupts: Arc<ioapic::IoApic>,
    serial: Arc<uart16550::Uart16550>,
}

impl Platform {
    /// The address space.
    pub const ADDRESS_SPACE: AddressSpace = AddressSpace {
        restricted: &memory_map::RESTRICTED,
        firmware: &[memory_map::LOW_RESERVED, memory_map::BIOS_RESERVED],
        pci_mmio: memory_map::PCI_MMIO,
        pci_ecam: memory_map::PCI_ECAM,
        max_cpus: 64,
    };

    /// Builds the platform: interrupts go to `sink`, power requests to `power`; memory-mapped devices are added to `mmio`.
    ///
    /// # Errors
    ///
    /// [`PlatformError::Bus`]
    pub fn new(
        sink: Arc<dyn InterruptSink>,
        power: Arc<dyn PowerControl>,
        pci: Arc<PciBus>,
        mmio: &mut Bus,
    ) -> Result<Self, PlatformError> {
        let interrupts = Arc::new(ioapic::IoApic::new(sink));
        mmio.insert(memory_map::IO_APIC..memory_map::IO_APIC + ioapic::SIZE, interrupts.clone())?;
        mmio.insert(memory_map::PCI_ECAM, Arc::new(Ecam(pci.clone())))?;
        let mut io = Bus::default();
        let serial = add_serial_ports(&mut io, &interrupts)?;
        let keyboard = Arc::new(legacy_ports::I8042::new(power.clone()));
        let event_end = u64::from(pm1::EVENT_PORT) + u64::from(pm1::EVENT_SIZE);
        let control_end = u64::from(pm1::CONTROL_PORT) + u64::from(pm1::CONTROL_SIZE);
        let devices: [(Range<u64>, Arc<dyn BusDevice>); 11] = [
            (0x20..0x22, Arc::new(legacy_ports::ConstantPort(0xff))), // 8259A, first
            (0x40..0x44, Arc::new(legacy_ports::ConstantPort(0xff))), // 8254
            (0x60..0x61, keyboard.data_port()),
            (0x61..0x62, Arc::new(legacy_ports::SystemControlB::default())),
            (0x64..0x65, keyboard.command_port()),
            (0x70..0x70 + cmos_rtc::SIZE, Arc::new(cmos_rtc::CmosRtc::default())),
            (0x80..0x90, Arc::new(legacy_ports::ConstantPort(0xff))), // POST codes and DMA pages
            (0xa0..0xa2, Arc::new(legacy_ports::ConstantPort(0xff))), // 8259A, second
            (0xcf8..0xd00, Arc::new(PortWindow::new(pci, power.clone()))),
            (u64::from(pm1::EVENT_PORT)..event_end, Arc::new(pm1::Pm1Event::default())),
            (u64::from(pm1::CONTROL_PORT)..control_end, Arc::new(pm1::Pm1Control::new(power))),
        ];
        for (range, device) in devices {
            io.insert(range, device)?;
        }
        Ok(Self { io, interrupts, serial })
    }

    /// The interrupt controller.
    pub fn interrupts(&self) -> Arc<dyn InterruptController> {
        self.interrupts.clone()
    }

    /// The console UART, COM1.
    pub fn serial(&self) -> Arc<dyn SerialPort> {
        self.serial.clone()
    }

    /// Trapped I/O port ranges: first port and count.
    pub fn io_traps(&self) -> &[(u16, u16)] {
        &IO_TRAPS
    }

    /// The I/O port bus.
    pub fn io(&self) -> &Bus {
        &self.io
    }

    /// Loads page tables, ACPI tables and the kernel into fresh memory. `devices` are the memory-mapped ranges, ascending.
    ///
    /// # Errors
    ///
    /// [`PlatformError`]
    pub fn load(
        &self,
        memory: &dyn GuestMemory,
        layout: &MemoryLayout,
        devices: &[Range<u64>],
        cpus: u8,
        kernel: Kernel<'_>,
    ) -> Result<Entry, PlatformError> {
        page_table::write_identity_map(memory, layout.end())?;
        acpi::write_tables(memory, cpus)?;
        Ok(match kernel {
            Kernel::Linux { image, ramdisk, device_tree, command_line } => {
                let image = linux::LinuxImage { kernel: image, ramdisk, command_line, device_tree };
                linux::load(memory, layout, &memory_map::e820(layout, devices), &image)?
            }
            Kernel::Zircon { image, ramdisk, command_line } => {
                let image = zircon::ZirconImage { kernel: image, ramdisk, command_line };
                zircon::load(memory, layout, devices, &image)?
            }
        })
    }
}

/// COM1 is a UART; the others are absent, so that no kernel finds a port that leads nowhere.
fn add_serial_ports(
    io: &mut Bus,
    interrupts: &Arc<ioapic::IoApic>,
) -> Result<Arc<uart16550::Uart16550>, PlatformError> {
    let [(port, irq), absent @ ..] = SERIAL_PORTS;
    let serial = Arc::new(uart16550::Uart16550::new(interrupts.clone(), irq));
    io.insert(port..port + uart16550::SIZE, serial.clone())?;
    for (port, _) in absent {
        io.insert(port..port + uart16550::SIZE, Arc::new(legacy_ports::ConstantPort(0xff)))?;
    }
    Ok(serial)
}
