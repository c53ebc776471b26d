//! The ACPI tables, as far as a kernel needs them to find CPUs, interrupts, PCI and the way out (ACPI 6.5 §5.2).

use core::slice;

/// The tables, found from the root pointer.
pub struct Tables {
    root: &'static [u8],
    /// Bytes of an entry in the root table: 8 in an XSDT, 4 in an RSDT.
    entry: usize,
}

/// The registers with which the machine is turned off.
pub struct PowerOff {
    /// The PM1a control port.
    pub port: u16,
    /// SLP_TYP of S5.
    pub sleep_type: u8,
}

fn number(bytes: &[u8], at: usize, len: usize) -> u64 {
    let bytes = bytes.get(at..at + len).unwrap_or_default();
    bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

/// The table at `address`.
///
/// # Safety
/// A table must be there.
unsafe fn table(address: usize) -> &'static [u8] {
    // SAFETY: every table begins with signature and length (§5.2.6).
    let len = unsafe { (address as *const u32).add(1).read_unaligned() } as usize;
    // SAFETY: the caller's promise.
    let table = unsafe { slice::from_raw_parts(address as *const u8, len) };
    let sum = table.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    assert!(sum == 0, "the ACPI table at {address:#x} has a wrong checksum");
    table
}

impl Tables {
    /// The tables of the root pointer at `rsdp`.
    ///
    /// # Safety
    /// It must be one.
    pub unsafe fn new(rsdp: usize) -> Self {
        // SAFETY: the caller's promise; the first version of the structure has 20 bytes, the second 36 (§5.2.5.3).
        let pointer = unsafe { slice::from_raw_parts(rsdp as *const u8, 36) };
        assert!(pointer.starts_with(b"RSD PTR "), "no ACPI root pointer at {rsdp:#x}");
        let (address, entry) = match pointer[15] {
            0 => (number(pointer, 16, 4), 4),
            _ => (number(pointer, 24, 8), 8),
        };
        // SAFETY: the pointer says so.
        Self { root: unsafe { table(address as usize) }, entry }
    }

    fn find(&self, signature: &[u8; 4]) -> Option<&'static [u8]> {
        let addresses = self.root[36..].chunks_exact(self.entry);
        addresses
            // SAFETY: the root table holds the addresses of tables.
            .map(|address| unsafe { table(number(address, 0, self.entry) as usize) })
            .find(|table| table.starts_with(signature))
    }

    /// The structures of the MADT: type and contents (§5.2.12).
    fn interrupt_structures(&self) -> impl Iterator<Item = (u8, &'static [u8])> + use<> {
        let mut rest = self.find(b"APIC").and_then(|madt| madt.get(44..)).unwrap_or_default();
        core::iter::from_fn(move || {
            let [kind, len, ..] = *rest else { return None };
            let structure = rest.get(..usize::from(len.max(2)))?;
            rest = &rest[structure.len()..];
            Some((kind, structure))
        })
    }

    /// The APIC ids of the CPUs that can be used.
    pub fn cpus(&self) -> impl Iterator<Item = u32> + use<> {
        self.interrupt_structures().filter_map(|(kind, structure)| match kind {
            // Processor local APIC, and local x2APIC.
            0 if structure[4] & 1 != 0 => Some(u32::from(structure[3])),
            9 if structure[8] & 1 != 0 => Some(number(structure, 4, 4) as u32),
            _ => None,
        })
    }

    /// The first IO-APIC: the address of its registers, and its first interrupt.
    pub fn io_apic(&self) -> Option<(usize, u32)> {
        self.interrupt_structures().find(|(kind, _)| *kind == 1).map(|(_, structure)| {
            (number(structure, 4, 4) as usize, number(structure, 8, 4) as u32)
        })
    }

    /// Where PCI configuration space of bus 0 is (PCI Firmware Specification 3.3 §4.1.2).
    pub fn pci_configuration(&self) -> Option<usize> {
        self.find(b"MCFG").map(|mcfg| number(mcfg, 44, 8) as usize)
    }

    /// How the machine is turned off: the FADT's port and what the DSDT's `\_S5` says to write (§7.4.2.6).
    pub fn power_off(&self) -> Option<PowerOff> {
        let fadt = self.find(b"FACP")?;
        let port = number(fadt, 64, 4) as u16;
        // SAFETY: the FADT holds the DSDT's address.
        let dsdt = unsafe { table(number(fadt, 40, 4) as usize) };
        let at = dsdt.windows(4).position(|name| name == b"_S5_")?;
        // PackageOp, its length in one byte, the number of elements, then the first: a byte with its prefix, or 0 or 1.
        let package = dsdt.get(at + 4..)?;
        let sleep_type = match *package {
            [0x12, _, _, 0x0a, value, ..] => value,
            [0x12, _, _, value @ 0..=1, ..] => value,
            _ => return None,
        };
        Some(PowerOff { port, sleep_type })
    }

    /// The I/O port of the reset register and what to write to it (§4.8.3.6).
    pub fn reset(&self) -> Option<(u16, u8)> {
        let fadt = self.find(b"FACP")?;
        let supported = number(fadt, 112, 4) & 1 << 10 != 0;
        let system_io = *fadt.get(116)? == 1;
        let port = number(fadt, 120, 8) as u16;
        (supported && system_io).then_some((port, *fadt.get(128)?))
    }
}
