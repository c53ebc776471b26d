//! What has been translated: regions, blocks, pages with code, the indirect jump table.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::ptr::NonNull;

use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

/// Index of a block in [`Cache::blocks`].
pub(super) type BlockId = u32;
/// Index of a region plus one; 0 is no region.
pub(super) type RegionId = u32;
/// Index of a link in [`Cache::links`].
pub(super) type LinkId = u32;

/// Log2 of the number of entries of the jump table.
const JUMP_TABLE_BITS: u32 = 16;
/// Rotation that brings the indexed bits of a linear address to the bottom.
pub(super) const JUMP_TABLE_SHIFT: u8 = 2;

/// Properties of the processor mode that translated code depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Mode {
    /// CPL is 3.
    pub(super) user: bool,
    /// Enabled units, bits by `Unit`: X87 1, MMX 2, SSE 3, AVX 4.
    pub(super) units: u8,
    /// RDTSC is allowed.
    pub(super) tsc: bool,
    /// RDFSBASE and its kin are enabled.
    pub(super) fsgsbase: bool,
    /// Blocks are single instructions and lead nowhere.
    pub(super) single: bool,
}

/// One guest page of any size, mapped at one linear address and executed in one mode: transfers inside it need no check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Region {
    /// Linear address of the page.
    pub(super) va: u64,
    /// Guest-physical address of the page.
    pub(super) gpa: u64,
    /// Size in bytes.
    pub(super) size: u64,
    pub(super) mode: Mode,
}

impl Region {
    pub(super) fn contains(&self, va: u64) -> bool {
        va.wrapping_sub(self.va) < self.size
    }

    pub(super) fn gpa_of(&self, va: u64) -> u64 {
        self.gpa + (va - self.va)
    }
}

/// A translated run of guest instructions.
pub(super) struct Block {
    pub(super) region: RegionId,
    /// Linear address of the first instruction.
    pub(super) va: u64,
    /// Entry with the guest's status flags in the host's.
    pub(super) main: u64,
    /// Entry with the status flags in `flags_slot`.
    pub(super) slot: u64,
    /// Entry as `main`, without a poll if one can be left out.
    pub(super) forward: u64,
    /// Entry through the jump table, 0 until one exists.
    pub(super) indirect: u64,
    /// Some status flag is live at entry.
    pub(super) flags_live: bool,
    pub(super) valid: bool,
    /// Linear address and region in which the only instruction continues.
    pub(super) second: Option<(u64, RegionId)>,
    /// Host addresses behind calls, to be closed on invalidation.
    pub(super) return_sites: Vec<u64>,
    /// Links that jump here.
    pub(super) incoming: Vec<LinkId>,
}

/// A direct transfer out of a block.
pub(super) struct Link {
    /// Executable address of the displacement of the jump or call.
    pub(super) displacement: u64,
    /// Executable address of the immediate that holds the target region, 0 within a region.
    pub(super) region_immediate: u64,
    /// Where the transfer goes while it is not linked.
    pub(super) stub: u64,
    pub(super) target: u64,
    pub(super) from: BlockId,
    /// The status flags travel in `flags_slot`.
    pub(super) slot: bool,
    /// Leads to a higher address in the same region.
    pub(super) forward: bool,
}

/// Where a guest instruction's code starts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Site {
    /// Offset in the arena.
    pub(super) offset: u32,
    pub(super) block: BlockId,
    /// Offset of the instruction from the block's first.
    pub(super) guest: u16,
    /// Length of the instruction.
    pub(super) length: u8,
    /// The status flags are in `flags_slot` here.
    pub(super) parked: bool,
}

/// A guest-physical page with translated bytes.
pub(super) struct CodePage {
    /// One bit for each byte that some block depends on.
    pub(super) bytes: [u64; 64],
    pub(super) blocks: Vec<BlockId>,
    /// Hash of the page's bytes under `bytes`, and the device event count at which it was right.
    pub(super) checked_at: u64,
    pub(super) hash: u64,
    /// The hash is current for `bytes`.
    pub(super) hashed: bool,
}

impl CodePage {
    pub(super) fn new() -> CodePage {
        CodePage { bytes: [0; 64], blocks: Vec::new(), checked_at: 0, hash: 0, hashed: false }
    }

    pub(super) fn mark(&mut self, offset: usize, len: usize) {
        for i in offset..(offset + len).min(4096) {
            self.bytes[i / 64] |= 1 << (i % 64);
        }
        self.hashed = false;
    }

    pub(super) fn overlaps(&self, offset: usize, len: usize) -> bool {
        (offset..(offset + len).min(4096)).any(|i| self.bytes[i / 64] >> (i % 64) & 1 != 0)
    }
}

/// A multiplicative hasher for integer keys.
#[derive(Default)]
pub(super) struct FastHasher(u64);

impl Hasher for FastHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(byte.into());
        }
    }

    fn write_u8(&mut self, value: u8) {
        self.write_u64(value.into());
    }

    fn write_u32(&mut self, value: u32) {
        self.write_u64(value.into());
    }

    fn write_u64(&mut self, value: u64) {
        let mixed = (self.0 ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = mixed ^ mixed >> 29;
    }
}

pub(super) type FastMap<K, V> = HashMap<K, V, BuildHasherDefault<FastHasher>>;

/// Everything known about translated code, except the code.
#[derive(Default)]
pub(super) struct Cache {
    pub(super) regions: Vec<Region>,
    pub(super) region_ids: FastMap<Region, RegionId>,
    pub(super) blocks: Vec<Block>,
    pub(super) by_address: FastMap<(RegionId, u64), BlockId>,
    pub(super) links: Vec<Link>,
    pub(super) sites: Vec<Site>,
    pub(super) pages: FastMap<u64, CodePage>,
    /// Instructions that thunks interpret, by index.
    pub(super) interpreted: Vec<iced_x86::Instruction>,
    /// Code for instructions that the host executes outside 64-bit mode.
    pub(super) native: HashMap<iced_x86::Instruction, u64>,
}

impl Cache {
    /// The id of `region`, interned.
    pub(super) fn intern(&mut self, region: Region) -> RegionId {
        if let Some(&id) = self.region_ids.get(&region) {
            return id;
        }
        self.regions.push(region);
        let id = self.regions.len() as RegionId;
        self.region_ids.insert(region, id);
        id
    }

    pub(super) fn region(&self, id: RegionId) -> &Region {
        &self.regions[id as usize - 1]
    }

    /// The site whose code covers the arena offset.
    pub(super) fn site(&self, offset: u32) -> Option<Site> {
        let index = self.sites.partition_point(|site| site.offset <= offset);
        self.sites.get(index.checked_sub(1)?).copied()
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        self.regions.clear();
        self.region_ids.clear();
        self.blocks.clear();
        self.by_address.clear();
        self.links.clear();
        self.sites.clear();
        self.pages.clear();
        self.interpreted.clear();
        self.native.clear();
    }
}

/// Host code addresses by a few bits of the guest's linear address, read by translated indirect jumps.
pub(super) struct JumpTable {
    entries: NonNull<u64>,
    empty: u64,
}

impl JumpTable {
    const BYTES: usize = 8 << JUMP_TABLE_BITS;

    pub(super) fn new() -> Result<JumpTable, rustix::io::Errno> {
        // SAFETY: a fresh mapping at an address the kernel chooses.
        let at = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                Self::BYTES,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::from_bits_retain(libc::MAP_32BIT as u32),
            )?
        };
        let entries = NonNull::new(at.cast()).ok_or(rustix::io::Errno::NOMEM)?;
        Ok(JumpTable { entries, empty: 0 })
    }

    /// Address of the first entry, below 2 GiB.
    pub(super) fn address(&self) -> i32 {
        self.entries.as_ptr() as usize as i32
    }

    fn index(va: u64) -> usize {
        (va >> JUMP_TABLE_SHIFT) as usize & ((1 << JUMP_TABLE_BITS) - 1)
    }

    fn slots(&mut self) -> &mut [u64] {
        // SAFETY: the mapping made in `new`, zero-initialised; translated code reads it only on this thread, inside
        // `run`, while no Rust reference is in use.
        unsafe { std::slice::from_raw_parts_mut(self.entries.as_ptr(), 1 << JUMP_TABLE_BITS) }
    }

    /// Points every entry at `empty`.
    pub(super) fn clear(&mut self, empty: u64) {
        self.empty = empty;
        self.slots().fill(empty);
    }

    pub(super) fn set(&mut self, va: u64, code: u64) {
        self.slots()[Self::index(va)] = code;
    }

    /// Empties the entry of `va` if it holds `code`.
    pub(super) fn remove(&mut self, va: u64, code: u64) {
        let empty = self.empty;
        let slot = &mut self.slots()[Self::index(va)];
        if *slot == code {
            *slot = empty;
        }
    }
}

impl Drop for JumpTable {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `new`. Failure would only leak address space.
        unsafe {
            let _ = munmap(self.entries.as_ptr().cast(), Self::BYTES);
        }
    }
}
