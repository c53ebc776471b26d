//! Guest-physical addresses of the x64 machine, and the firmware memory map (E820) that tells a kernel about them.

use crate::memory::MemoryLayout;
use std::ops::Range;

/// Ranges where RAM is never placed: firmware's low memory, the BIOS area, devices below 4 GiB, and everything above
/// the limit of dynamically placed device memory.
pub const RESTRICTED: [Range<u64>; 4] =
    [LOW_RESERVED, BIOS_RESERVED, DEVICES, 0xb_0000_0000..u64::MAX];
/// Memory the VMM owns at the bottom: the first page tables.
pub const LOW_RESERVED: Range<u64> = 0..0x8000;
/// The BIOS area, which holds the ACPI tables.
pub const BIOS_RESERVED: Range<u64> = 0x8_0000..0x10_0000;
/// Where devices live.
pub const DEVICES: Range<u64> = 0xf800_0000..0x1_0000_0000;
/// The IO-APIC's registers.
pub const IO_APIC: u64 = 0xf800_0000;
/// PCI configuration space (ECAM) of bus 0.
pub const PCI_ECAM: Range<u64> = 0xf810_0000..0xf820_0000;
/// Where PCI base address registers are placed.
pub const PCI_MMIO: Range<u64> = 0xf820_0000..0xf830_0000;
/// The ACPI root pointer.
pub const ACPI_RSDP: u64 = 0xe_0000;

/// Most entries the zero page has room for.
const MAX_ENTRIES: usize = 128;

/// Type of an E820 entry (ACPI 6.5 §15).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum E820Type {
    /// Usable RAM.
    Ram = 1,
    /// Anything else.
    Reserved = 2,
}

/// One range of the firmware memory map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct E820Entry {
    /// Guest-physical addresses.
    pub range: Range<u64>,
    /// What they are.
    pub kind: E820Type,
}

impl E820Entry {
    /// The 20-byte form of the zero page.
    pub fn to_bytes(&self) -> [u8; 20] {
        let mut bytes = [0; 20];
        bytes[..8].copy_from_slice(&self.range.start.to_le_bytes());
        bytes[8..16].copy_from_slice(&(self.range.end - self.range.start).to_le_bytes());
        bytes[16..].copy_from_slice(&(self.kind as u32).to_le_bytes());
        bytes
    }
}

/// The memory map of a machine with `layout`'s RAM and devices at `devices`, ascending.
pub fn e820(layout: &MemoryLayout, devices: &[Range<u64>]) -> Vec<E820Entry> {
    let reserved = [LOW_RESERVED, BIOS_RESERVED].into_iter().chain(devices.iter().cloned());
    let mut entries: Vec<E820Entry> = reserved
        .map(|range| E820Entry { range, kind: E820Type::Reserved })
        .chain(
            layout
                .ram()
                .iter()
                .map(|range| E820Entry { range: range.clone(), kind: E820Type::Ram }),
        )
        .collect();
    entries.sort_by_key(|entry| entry.range.start);
    entries.truncate(MAX_ENTRIES);
    entries
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn map_is_ascending_and_complete() {
        let layout = MemoryLayout::new(1 << 30, &RESTRICTED).unwrap();
        let map = e820(&layout, &[IO_APIC..IO_APIC + 0x1000, PCI_ECAM]);
        let expected = [
            (LOW_RESERVED, E820Type::Reserved),
            (0x8000..0x8_0000, E820Type::Ram),
            (BIOS_RESERVED, E820Type::Reserved),
            (0x10_0000..0x4000_0000 + 0x8_8000, E820Type::Ram),
            (IO_APIC..IO_APIC + 0x1000, E820Type::Reserved),
            (PCI_ECAM, E820Type::Reserved),
        ];
        assert_eq!(map, expected.map(|(range, kind)| E820Entry { range, kind }));
    }

    /// Why no configuration is answered with `DEVICE_MEMORY_OVERLAP`.
    #[test]
    fn no_size_of_memory_reaches_a_device() {
        const LIMIT: u64 = 0xb_0000_0000;
        let reserved = RESTRICTED.iter().filter(|range| range.end < LIMIT);
        let most = LIMIT - reserved.map(|range| range.end - range.start).sum::<u64>();
        for around in [LOW_RESERVED.end, BIOS_RESERVED.start, DEVICES.start, DEVICES.end, most] {
            for size in [around - 0x1000, around, (around + 0x1000).min(most)] {
                let layout = MemoryLayout::new(size, &RESTRICTED).unwrap();
                for device in [IO_APIC..IO_APIC + 0x1000, PCI_ECAM, PCI_MMIO] {
                    assert_eq!(layout.check_device(&device), Ok(()), "{size:#x}");
                }
            }
        }
        assert!(MemoryLayout::new(most + 1, &RESTRICTED).is_err());
    }

    #[test]
    fn entries_are_twenty_bytes_little_endian() {
        let entry = E820Entry { range: 0x1000..0x3000, kind: E820Type::Ram };
        assert_eq!(
            entry.to_bytes(),
            [0, 0x10, 0, 0, 0, 0, 0, 0, 0, 0x20, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]
        );
    }
}
