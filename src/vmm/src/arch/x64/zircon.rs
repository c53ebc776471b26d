//! Loading Zircon: the kernel item of a boot image to its place, everything else with what the machine has to say into
//! a second image, whose address the kernel gets.

use super::memory_map::{self, E820Type};
use crate::arch::Entry;
use crate::loader::u64_at;
use crate::loader::zbi::{self, Builder, HEADER_SIZE, ZbiError, item_type};
use crate::memory::{GuestMemory, MemoryError, MemoryLayout};
use std::ops::Range;

/// Where the kernel item goes, container header first.
const KERNEL_ADDRESS: u64 = 0x10_0000;
/// Where the data image goes.
const DATA_ADDRESS: u64 = 0x400_0000;
/// Entry points above this are absolute addresses, those below offsets from [`KERNEL_ADDRESS`].
const ABSOLUTE_ENTRY: u64 = 0x10_0000;
const DRIVER_I8250_PIO: u32 = u32::from_le_bytes(*b"8250");
const COM1: u16 = 0x3f8;
const COM1_IRQ: u32 = 4;
const MEMORY_RAM: u32 = 1;
const MEMORY_RESERVED: u32 = 3;

/// Why Zircon could not be loaded. The images are at fault, or memory is too small for them.
#[derive(Debug, thiserror::Error)]
pub enum ZirconError {
    /// A boot image is malformed.
    #[error(transparent)]
    Zbi(#[from] ZbiError),
    /// The first item of the kernel's image is not an x86-64 kernel.
    #[error("Boot image does not start with an x86-64 kernel")]
    NoKernel,
    /// The kernel says that it needs memory that is not there.
    #[error("Kernel at {range:#x?} does not fit into guest memory below the data image")]
    KernelRoom {
        /// Where it would be.
        range: Range<u64>,
    },
    /// The entry point lies outside the kernel.
    #[error("Kernel entry point {entry:#x} is outside the kernel")]
    Entry {
        /// The entry point.
        entry: u64,
    },
    /// The data image does not fit.
    #[error("Data image of {len:#x} bytes does not fit into guest memory")]
    DataRoom {
        /// Its size in bytes.
        len: u64,
    },
    /// Guest memory did not take a piece.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

/// What to boot.
pub struct ZirconImage<'a> {
    /// A boot image that starts with a kernel item.
    pub kernel: &'a [u8],
    /// A boot image of further items.
    pub ramdisk: Option<&'a [u8]>,
    /// The command line.
    pub command_line: &'a str,
}

/// Loads `image` into `memory`, which must be fresh (zero-filled), and returns where the first vCPU starts.
///
/// # Errors
///
/// [`ZirconError`]
pub fn load(
    memory: &dyn GuestMemory,
    layout: &MemoryLayout,
    devices: &[Range<u64>],
    image: &ZirconImage<'_>,
) -> Result<Entry, ZirconError> {
    let items = zbi::parse(image.kernel)?;
    let (kernel, rest) = match items.split_first() {
        Some((kernel, rest)) if kernel.kind == item_type::KERNEL_X64 => (kernel, rest),
        _ => return Err(ZirconError::NoKernel),
    };
    let entry = load_kernel(memory, layout, kernel)?;

    let mut data = Builder::default();
    if let Some(ramdisk) = image.ramdisk {
        for item in zbi::parse(ramdisk)? {
            data.push_item(&item)?;
        }
    }
    for item in rest {
        data.push_item(item)?;
    }
    append_machine(&mut data, layout, devices, image.command_line)?;
    let data = data.finish();
    let len = data.len() as u64;
    if !layout.contains(DATA_ADDRESS, len) {
        return Err(ZirconError::DataRoom { len });
    }
    memory.write(DATA_ADDRESS, &data)?;
    Ok(Entry { address: entry, argument: DATA_ADDRESS })
}

/// Puts a container with just the kernel item at [`KERNEL_ADDRESS`] and returns the entry point.
fn load_kernel(
    memory: &dyn GuestMemory,
    layout: &MemoryLayout,
    kernel: &zbi::Item<'_>,
) -> Result<u64, ZirconError> {
    let entry = u64_at(kernel.payload(), 0).ok_or(ZirconError::NoKernel)?;
    let reserve = u64_at(kernel.payload(), 8).ok_or(ZirconError::NoKernel)?;
    let mut container = Builder::default();
    container.push_item(kernel)?;
    let container = container.finish();
    let len = (container.len() as u64).checked_add(reserve);
    let range =
        KERNEL_ADDRESS..len.and_then(|len| KERNEL_ADDRESS.checked_add(len)).unwrap_or(u64::MAX);
    if range.end > DATA_ADDRESS || !layout.contains(range.start, range.end - range.start) {
        return Err(ZirconError::KernelRoom { range });
    }
    let entry = if entry > ABSOLUTE_ENTRY { entry } else { KERNEL_ADDRESS + entry };
    let code = KERNEL_ADDRESS + 2 * HEADER_SIZE as u64..KERNEL_ADDRESS + container.len() as u64;
    if !code.contains(&entry) {
        return Err(ZirconError::Entry { entry });
    }
    memory.write(KERNEL_ADDRESS, &container)?;
    Ok(entry)
}

/// The items that describe the machine.
fn append_machine(
    data: &mut Builder,
    layout: &MemoryLayout,
    devices: &[Range<u64>],
    command_line: &str,
) -> Result<(), ZbiError> {
    let mut line = command_line.as_bytes().to_vec();
    line.push(0);
    data.push(item_type::COMMAND_LINE, 0, &line)?;

    let mut serial = Vec::new();
    serial.extend_from_slice(&COM1.to_le_bytes());
    serial.extend_from_slice(&[0; 2]);
    serial.extend_from_slice(&COM1_IRQ.to_le_bytes());
    data.push(item_type::KERNEL_DRIVER, DRIVER_I8250_PIO, &serial)?;

    let mut ranges = Vec::new();
    for entry in memory_map::e820(layout, devices) {
        let kind = match entry.kind {
            E820Type::Ram => MEMORY_RAM,
            E820Type::Reserved => MEMORY_RESERVED,
        };
        ranges.extend_from_slice(&entry.range.start.to_le_bytes());
        ranges.extend_from_slice(&(entry.range.end - entry.range.start).to_le_bytes());
        ranges.extend_from_slice(&kind.to_le_bytes());
        ranges.extend_from_slice(&[0; 4]);
    }
    data.push(item_type::MEMORY_CONFIG, 0, &ranges)?;
    data.push(item_type::ACPI_RSDP, 0, &memory_map::ACPI_RSDP.to_le_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::BufferMemory;

    fn layout() -> MemoryLayout {
        MemoryLayout::new(68 << 20, &memory_map::RESTRICTED).unwrap()
    }

    fn kernel(entry: u64, reserve: u64) -> Vec<u8> {
        let mut payload = entry.to_le_bytes().to_vec();
        payload.extend_from_slice(&reserve.to_le_bytes());
        payload.extend_from_slice(b"code");
        let mut builder = Builder::default();
        builder.push(item_type::KERNEL_X64, 0, &payload).unwrap();
        builder.push(0x1234, 0, b"rest").unwrap();
        builder.finish()
    }

    fn try_load(
        kernel: &[u8],
        ramdisk: Option<&[u8]>,
    ) -> Result<(BufferMemory, Entry), ZirconError> {
        let memory = BufferMemory::new(layout().end() as usize);
        let image = ZirconImage { kernel, ramdisk, command_line: "kernel.serial=legacy" };
        let entry = load(&memory, &layout(), &[memory_map::PCI_ECAM], &image)?;
        Ok((memory, entry))
    }

    #[test]
    fn kernel_and_data_are_separated() {
        let (memory, entry) = try_load(&kernel(0x50, 0x1000), None).unwrap();
        assert_eq!(entry, Entry { address: KERNEL_ADDRESS + 0x50, argument: DATA_ADDRESS });
        let mut image = vec![0; 0x400];
        memory.read(KERNEL_ADDRESS, &mut image).unwrap();
        assert_eq!(zbi::parse(&image).unwrap().len(), 1);
        memory.read(DATA_ADDRESS, &mut image).unwrap();
        let items = zbi::parse(&image).unwrap();
        let kinds: Vec<u32> = items.iter().map(|item| item.kind).collect();
        use item_type::{ACPI_RSDP, COMMAND_LINE, KERNEL_DRIVER, MEMORY_CONFIG};
        assert_eq!(kinds, [0x1234, COMMAND_LINE, KERNEL_DRIVER, MEMORY_CONFIG, ACPI_RSDP]);
        assert_eq!(items[1].payload(), b"kernel.serial=legacy\0");
        assert_eq!(items[2].payload(), [0xf8, 3, 0, 0, 4, 0, 0, 0]);
        assert_eq!(items[3].payload().len(), 5 * 24);
        assert_eq!(items[4].payload(), 0xe_0000u64.to_le_bytes());
    }

    #[test]
    fn absolute_entry_points_are_kept() {
        let (_, entry) = try_load(&kernel(KERNEL_ADDRESS + 0x51, 0), None).unwrap();
        assert_eq!(entry.address, KERNEL_ADDRESS + 0x51);
    }

    #[test]
    fn ramdisk_items_come_first() {
        let mut ramdisk = Builder::default();
        ramdisk.push(0x77, 0, b"bootfs").unwrap();
        let (memory, _) = try_load(&kernel(0x50, 0), Some(&ramdisk.finish())).unwrap();
        let mut image = vec![0; 0x400];
        memory.read(DATA_ADDRESS, &mut image).unwrap();
        assert_eq!(zbi::parse(&image).unwrap()[0].payload(), b"bootfs");
    }

    #[test]
    fn impossible_kernels_are_refused() {
        assert!(matches!(
            try_load(&kernel(0x50, u64::MAX), None),
            Err(ZirconError::KernelRoom { .. })
        ));
        assert!(matches!(
            try_load(&kernel(0x50, 0x3f0_0000), None),
            Err(ZirconError::KernelRoom { .. })
        ));
        assert!(matches!(try_load(&kernel(0x10, 0), None), Err(ZirconError::Entry { .. })));
        assert!(matches!(try_load(&kernel(u64::MAX, 0), None), Err(ZirconError::Entry { .. })));
        assert!(matches!(try_load(&Builder::default().finish(), None), Err(ZirconError::NoKernel)));
        assert!(matches!(try_load(b"", None), Err(ZirconError::Zbi(_))));
        let big = vec![0; 8 << 20];
        let mut ramdisk = Builder::default();
        ramdisk.push(1, 0, &big).unwrap();
        let result = try_load(&kernel(0x50, 0), Some(&ramdisk.finish()));
        assert!(matches!(result, Err(ZirconError::DataRoom { .. })));
    }
}
