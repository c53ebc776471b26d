//! The ACPI tables (ACPI 6.5 §5.2): one processor a vCPU, the IO-APIC, PCI with its interrupt routing, the serial port,
//! the clock, S5 and the reset register.

use super::{cmos_rtc, legacy_ports, memory_map, pm1};
use crate::memory::{GuestMemory, MemoryError};
use crate::pci;
use acpi_tables::Aml;
use acpi_tables::aml;
use acpi_tables::facs::FACS;
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{
    EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic,
};
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use zerocopy::{Immutable, IntoBytes};

const OEM_ID: [u8; 6] = *b"ZX    ";
const OEM_TABLE_ID: [u8; 8] = *b"MACHINA ";
const OEM_REVISION: u32 = 1;
const LOCAL_APIC: u32 = 0xfee0_0000;
/// Interrupt the FADT names for system control events; nothing raises it.
const SCI: u8 = 9;
/// COM1 (its port range is fixed by the PC).
const COM1: u16 = 0x3f8;
const COM1_IRQ: u32 = 4;
const KEYBOARD_COMMAND_PORT: u64 = 0x64;
/// FADT IA-PC boot flags: no VGA to probe for. A clear 8042 bit keeps kernels from looking for a keyboard.
const BOOT_ARCH_NO_VGA: u16 = 1 << 2;
/// FACS must be 64-byte aligned (§5.2.10).
const TABLE_ALIGNMENT: u64 = 64;

/// Why the tables could not be written.
#[derive(Debug, thiserror::Error)]
pub enum AcpiError {
    /// The tables outgrow the BIOS area.
    #[error("ACPI tables of {len} bytes do not fit below 1 MiB")]
    TooLarge {
        /// Their size in bytes.
        len: u64,
    },
    /// Guest memory did not take them.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

/// An interrupt source override (§5.2.12.5), which `acpi_tables` does not have.
#[repr(C, packed)]
#[derive(Clone, Copy, IntoBytes, Immutable)]
struct InterruptSourceOverride {
    kind: u8,
    length: u8,
    bus: u8,
    source: u8,
    global_system_interrupt: [u8; 4],
    flags: [u8; 2],
}

impl Aml for InterruptSourceOverride {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        sink.vec(self.as_bytes());
    }
}

/// Writes the tables of a machine with `cpus` processors to [`memory_map::ACPI_RSDP`] and up.
///
/// # Errors
///
/// [`AcpiError`]
pub fn write_tables(memory: &dyn GuestMemory, cpus: u8) -> Result<(), AcpiError> {
    let mut writer = Writer { memory, next: memory_map::ACPI_RSDP + TABLE_ALIGNMENT };
    let facs = writer.write(&FACS::new())?;
    let mut dsdt_bytes = Vec::new();
    dsdt().to_aml_bytes(&mut dsdt_bytes);
    let dsdt = writer.write_bytes(&dsdt_bytes)?;
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    xsdt.add_entry(writer.write(&fadt(facs, dsdt))?);
    xsdt.add_entry(writer.write(&madt(cpus))?);
    let mut mcfg = MCFG::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    mcfg.add_ecam(memory_map::PCI_ECAM.start, 0, 0, 0);
    xsdt.add_entry(writer.write(&mcfg)?);
    let xsdt = writer.write(&xsdt)?;
    let mut rsdp = Vec::new();
    Rsdp::new(OEM_ID, xsdt).to_aml_bytes(&mut rsdp);
    Ok(memory.write(memory_map::ACPI_RSDP, &rsdp)?)
}

struct Writer<'a> {
    memory: &'a dyn GuestMemory,
    next: u64,
}

impl Writer<'_> {
    fn write(&mut self, table: &dyn Aml) -> Result<u64, AcpiError> {
        let mut bytes = Vec::new();
        table.to_aml_bytes(&mut bytes);
        self.write_bytes(&bytes)
    }

    fn write_bytes(&mut self, bytes: &[u8]) -> Result<u64, AcpiError> {
        let address = self.next;
        let end = address + bytes.len() as u64;
        if end > memory_map::BIOS_RESERVED.end {
            return Err(AcpiError::TooLarge { len: end - memory_map::ACPI_RSDP });
        }
        self.memory.write(address, bytes)?;
        self.next = end.next_multiple_of(TABLE_ALIGNMENT);
        Ok(address)
    }
}

fn io_register(port: u64, width: u8, access: AccessSize) -> GAS {
    GAS::new(AddressSpace::SystemIo, width, 0, access, port)
}

fn fadt(facs: u64, dsdt: u64) -> impl Aml {
    // Below 4 GiB, so the 32-bit fields hold them; ACPI 2.0 and later read the 64-bit ones.
    let mut builder = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .firmware_ctrl_32(facs as u32)
        .dsdt_64(dsdt)
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::FixRtc)
        .flag(Flags::ResetRegSup);
    builder.dsdt = (dsdt as u32).into();
    builder.sci_int = u16::from(SCI).into();
    builder.pm1a_evt_blk = u32::from(pm1::EVENT_PORT).into();
    builder.pm1_evt_len = pm1::EVENT_SIZE;
    builder.x_pm1a_evt_blk =
        io_register(u64::from(pm1::EVENT_PORT), pm1::EVENT_SIZE * 8, AccessSize::WordAccess);
    builder.pm1a_cnt_blk = u32::from(pm1::CONTROL_PORT).into();
    builder.pm1_cnt_len = pm1::CONTROL_SIZE;
    builder.x_pm1a_cnt_blk =
        io_register(u64::from(pm1::CONTROL_PORT), pm1::CONTROL_SIZE * 8, AccessSize::WordAccess);
    // Values above these mean that C2 and C3 are not supported (§5.2.9).
    builder.p_lvl2_lat = 101.into();
    builder.p_lvl3_lat = 1001.into();
    builder.century = cmos_rtc::CENTURY_REGISTER;
    builder.iapc_boot_arch = BOOT_ARCH_NO_VGA.into();
    builder.reset_reg = io_register(KEYBOARD_COMMAND_PORT, 8, AccessSize::ByteAccess);
    builder.reset_value = legacy_ports::I8042_RESET;
    builder.finalize()
}

fn madt(cpus: u8) -> impl Aml {
    let mut madt = MADT::new(
        OEM_ID,
        OEM_TABLE_ID,
        OEM_REVISION,
        LocalInterruptController::Address(LOCAL_APIC),
    );
    for cpu in 0..cpus {
        madt.add_structure(ProcessorLocalApic::new(cpu, cpu, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(0, memory_map::IO_APIC as u32, 0));
    madt.add_structure(InterruptSourceOverride {
        kind: 2,
        length: 10,
        bus: 0,
        source: SCI,
        global_system_interrupt: u32::from(SCI).to_le_bytes(),
        // Active high, level-triggered.
        flags: 0x000du16.to_le_bytes(),
    });
    madt
}

fn dsdt() -> Sdt {
    let mut bytes = Vec::new();
    let sleep_type = pm1::SLP_TYP_S5;
    aml::Name::new(
        aml::Path::new("_S5_"),
        &aml::Package::new(vec![&sleep_type, &sleep_type, &aml::ZERO, &aml::ZERO]),
    )
    .to_aml_bytes(&mut bytes);
    system_bus(&mut bytes);
    let mut dsdt = Sdt::new(*b"DSDT", 36, 2, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    dsdt.append_slice(&bytes);
    dsdt
}

/// Everything under `\_SB`.
fn system_bus(sink: &mut Vec<u8>) {
    let ecam = memory_map::PCI_ECAM;
    let motherboard = aml::Device::new(
        aml::Path::new("MBRD"),
        vec![
            &aml::Name::new(aml::Path::new("_HID"), &aml::EISAName::new("PNP0C02")),
            &aml::Name::new(aml::Path::new("_UID"), &aml::ZERO),
            &aml::Name::new(
                aml::Path::new("_CRS"),
                &aml::ResourceTemplate::new(vec![&aml::Memory32Fixed::new(
                    true,
                    ecam.start as u32,
                    (ecam.end - ecam.start) as u32,
                )]),
            ),
        ],
    )
    .to_bytes();
    let serial = aml::Device::new(
        aml::Path::new("COM1"),
        vec![
            &aml::Name::new(aml::Path::new("_HID"), &aml::EISAName::new("PNP0501")),
            &aml::Name::new(aml::Path::new("_UID"), &aml::ONE),
            &aml::Name::new(
                aml::Path::new("_CRS"),
                &aml::ResourceTemplate::new(vec![
                    &aml::IO::new(COM1, COM1, 1, 8),
                    &aml::Interrupt::new(true, true, false, false, COM1_IRQ),
                ]),
            ),
        ],
    )
    .to_bytes();
    let clock = aml::Device::new(
        aml::Path::new("RTC_"),
        vec![
            &aml::Name::new(aml::Path::new("_HID"), &aml::EISAName::new("PNP0B00")),
            &aml::Name::new(
                aml::Path::new("_CRS"),
                &aml::ResourceTemplate::new(vec![&aml::IO::new(0x70, 0x70, 1, 2)]),
            ),
        ],
    )
    .to_bytes();
    aml::Scope::new(
        aml::Path::new("_SB_"),
        vec![&Raw(pci_host_bridge()), &Raw(motherboard), &Raw(serial), &Raw(clock)],
    )
    .to_aml_bytes(sink);
}

/// The host bridge, with slot `n`'s INTA on global system interrupt 32 + `n`.
fn pci_host_bridge() -> Vec<u8> {
    let mut routes = aml::PackageBuilder::new();
    for slot in 1..pci::SLOTS {
        let address = (u32::from(slot) << 16) | 0xffff;
        routes.add_element(&aml::Package::new(vec![
            &address,
            &aml::ZERO,
            &aml::ZERO,
            &pci::irq(slot),
        ]));
    }
    let mmio = memory_map::PCI_MMIO;
    aml::Device::new(
        aml::Path::new("PCI0"),
        vec![
            &aml::Name::new(aml::Path::new("_HID"), &aml::EISAName::new("PNP0A03")),
            &aml::Name::new(aml::Path::new("_SEG"), &aml::ZERO),
            &aml::Name::new(aml::Path::new("_BBN"), &aml::ZERO),
            &aml::Name::new(aml::Path::new("_UID"), &aml::ZERO),
            &aml::Name::new(
                aml::Path::new("_CRS"),
                &aml::ResourceTemplate::new(vec![
                    &aml::AddressSpace::new_bus_number(0u16, 0u16),
                    &aml::IO::new(0xcf8, 0xcf8, 1, 8),
                    &aml::AddressSpace::new_memory(
                        aml::AddressSpaceCacheable::NotCacheable,
                        true,
                        mmio.start as u32,
                        (mmio.end - 1) as u32,
                        None,
                    ),
                ]),
            ),
            &aml::Name::new(aml::Path::new("_PRT"), &routes),
        ],
    )
    .to_bytes()
}

trait ToBytes: Aml {
    fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.to_aml_bytes(&mut bytes);
        bytes
    }
}

impl<T: Aml> ToBytes for T {}

/// AML that is already encoded.
struct Raw(Vec<u8>);

impl Aml for Raw {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        sink.vec(&self.0);
    }
}

#[cfg(test)]
#[path = "acpi_test.rs"]
mod tests;
