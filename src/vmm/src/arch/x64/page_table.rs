//! Page tables: building the identity map that a kernel is entered with, and walking the guest's own to fetch
//! instructions (SDM vol. 3 §4.5).

use crate::memory::{GuestMemory, MemoryError, PAGE_SIZE};

/// Guest-physical address of the PML4 that the first vCPU starts with (what Zircon's hypervisor loads into CR3).
pub const PML4_ADDRESS: u64 = 0;
/// RAM sizes that can be mapped, in bytes: one PML4 entry's worth at most.
const MAX_MAPPED: u64 = 512 << 30;
const MIN_MAPPED: u64 = 4 * PAGE_SIZE;

const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const LARGE: u64 = 1 << 7;
const ADDRESS_MASK: u64 = 0x000f_ffff_ffff_f000;
const ENTRIES: u64 = 512;
const SIZE_1G: u64 = 1 << 30;
const SIZE_2M: u64 = 1 << 21;

/// Why the identity map could not be built. The configuration is at fault.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PageTableError {
    /// Not a multiple of 4 KiB, or outside 16 KiB to 512 GiB.
    #[error("Cannot identity-map {size:#x} bytes")]
    Size {
        /// Bytes asked for.
        size: u64,
    },
    /// The tables do not fit in memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

/// Writes an identity map of `[0, size)` with the largest pages that fit, starting at [`PML4_ADDRESS`], and returns one
/// past the last byte of the tables.
///
/// # Errors
///
/// [`PageTableError`]
pub fn write_identity_map(memory: &dyn GuestMemory, size: u64) -> Result<u64, PageTableError> {
    if !size.is_multiple_of(PAGE_SIZE) || !(MIN_MAPPED..=MAX_MAPPED).contains(&size) {
        return Err(PageTableError::Size { size });
    }
    let pdpt = PML4_ADDRESS + PAGE_SIZE;
    let page_directory = pdpt + PAGE_SIZE;
    let page_table = page_directory + PAGE_SIZE;
    memory.write(PML4_ADDRESS, &(pdpt | PRESENT | WRITABLE).to_le_bytes())?;

    let gibs = size / SIZE_1G;
    let rest = size % SIZE_1G;
    write_leaves(memory, pdpt, 0, gibs, SIZE_1G)?;
    if rest == 0 {
        return Ok(page_directory);
    }
    memory.write(pdpt + gibs * 8, &(page_directory | PRESENT | WRITABLE).to_le_bytes())?;
    let base = gibs * SIZE_1G;
    let large = rest / SIZE_2M;
    let pages = rest % SIZE_2M / PAGE_SIZE;
    write_leaves(memory, page_directory, base, large, SIZE_2M)?;
    if pages == 0 {
        return Ok(page_table);
    }
    memory.write(page_directory + large * 8, &(page_table | PRESENT | WRITABLE).to_le_bytes())?;
    write_leaves(memory, page_table, base + large * SIZE_2M, pages, PAGE_SIZE)?;
    Ok(page_table + PAGE_SIZE)
}

fn write_leaves(
    memory: &dyn GuestMemory,
    table: u64,
    base: u64,
    count: u64,
    size: u64,
) -> Result<(), MemoryError> {
    let large = if size == PAGE_SIZE { 0 } else { LARGE };
    let entries: Vec<u8> = (0..count.min(ENTRIES))
        .flat_map(|index| ((base + index * size) | PRESENT | WRITABLE | large).to_le_bytes())
        .collect();
    memory.write(table, &entries)
}

/// Why a linear address does not translate. The guest is at fault: the processor just translated it.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TranslateError {
    /// An entry on the way is not present.
    #[error("Linear address {linear:#x} is not mapped")]
    NotPresent {
        /// The linear address.
        linear: u64,
    },
    /// A page table lies outside memory.
    #[error("Page table of linear address {linear:#x}: {source}")]
    Memory {
        /// The linear address.
        linear: u64,
        /// What failed.
        source: MemoryError,
    },
}

/// Translates `linear` through the four-level tables at `cr3`.
///
/// # Errors
///
/// [`TranslateError`]
pub fn translate(memory: &dyn GuestMemory, cr3: u64, linear: u64) -> Result<u64, TranslateError> {
    let mut table = cr3 & ADDRESS_MASK;
    for level in (0..4).rev() {
        let shift = 12 + 9 * level;
        let index = (linear >> shift) & (ENTRIES - 1);
        let entry = memory
            .read_u64(table + index * 8)
            .map_err(|source| TranslateError::Memory { linear, source })?;
        if entry & PRESENT == 0 {
            return Err(TranslateError::NotPresent { linear });
        }
        let leaf = level == 0 || (entry & LARGE != 0 && level < 3);
        if leaf {
            let offset_mask = (1 << shift) - 1;
            return Ok((entry & ADDRESS_MASK & !offset_mask) | (linear & offset_mask));
        }
        table = entry & ADDRESS_MASK;
    }
    Err(TranslateError::NotPresent { linear })
}

/// Copies `buffer.len()` bytes from linear address `linear`, crossing pages as needed.
///
/// # Errors
///
/// [`TranslateError`]
pub fn read_linear(
    memory: &dyn GuestMemory,
    cr3: u64,
    linear: u64,
    buffer: &mut [u8],
) -> Result<(), TranslateError> {
    for_each_page(linear, buffer.len(), |linear, range| {
        let physical = translate(memory, cr3, linear)?;
        memory
            .read(physical, &mut buffer[range])
            .map_err(|source| TranslateError::Memory { linear, source })
    })
}

/// Copies `data` to linear address `linear`, crossing pages as needed.
///
/// # Errors
///
/// [`TranslateError`]
pub fn write_linear(
    memory: &dyn GuestMemory,
    cr3: u64,
    linear: u64,
    data: &[u8],
) -> Result<(), TranslateError> {
    for_each_page(linear, data.len(), |linear, range| {
        let physical = translate(memory, cr3, linear)?;
        memory
            .write(physical, &data[range])
            .map_err(|source| TranslateError::Memory { linear, source })
    })
}

fn for_each_page<E>(
    linear: u64,
    len: usize,
    mut access: impl FnMut(u64, std::ops::Range<usize>) -> Result<(), E>,
) -> Result<(), E> {
    let mut done = 0;
    while done < len {
        let address = linear.wrapping_add(done as u64);
        let in_page = (PAGE_SIZE - address % PAGE_SIZE) as usize;
        let end = len.min(done + in_page);
        access(address, done..end)?;
        done = end;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::BufferMemory;

    #[test]
    fn identity_map_translates_to_itself() {
        for size in [0x4000, 0x20_0000, 0x40_3000, 0x4000_0000, 0x4020_1000, 0x1_3fff_f000] {
            let memory = BufferMemory::new(0x8000);
            let end = write_identity_map(&memory, size).unwrap();
            assert!(end <= 0x4000);
            for linear in [0, 0x3fff, size / 2, size - 1] {
                assert_eq!(
                    translate(&memory, PML4_ADDRESS, linear),
                    Ok(linear),
                    "{linear:#x} of {size:#x}"
                );
            }
            assert_eq!(
                translate(&memory, PML4_ADDRESS, size),
                Err(TranslateError::NotPresent { linear: size })
            );
        }
    }

    #[test]
    fn sizes_out_of_range_are_refused() {
        let memory = BufferMemory::new(0x8000);
        for size in [0, 0x3000, 0x4001, (512 << 30) + 0x1000] {
            assert_eq!(write_identity_map(&memory, size), Err(PageTableError::Size { size }));
        }
    }

    #[test]
    fn tables_outside_memory_are_an_error() {
        let memory = BufferMemory::new(0x1000);
        memory.write(0, &(0x7fff_f000u64 | PRESENT).to_le_bytes()).unwrap();
        assert!(matches!(translate(&memory, 0, 0), Err(TranslateError::Memory { .. })));
        assert!(matches!(translate(&memory, u64::MAX, 0), Err(TranslateError::Memory { .. })));
    }

    #[test]
    fn copies_cross_pages() {
        let memory = BufferMemory::new(0x10000);
        write_identity_map(&memory, 0x10000).unwrap();
        write_linear(&memory, 0, 0x8ffc, b"abcdefgh").unwrap();
        let mut data = [0; 8];
        read_linear(&memory, 0, 0x8ffc, &mut data).unwrap();
        assert_eq!(&data, b"abcdefgh");
    }
}
