//! What has been translated: regions, blocks, pages with code, the indirect jump table.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::ops::{Index, IndexMut};
use std::ptr::NonNull;

use super::arena::{SEGMENT_SIZE, SEGMENTS};
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

/// Number of a block in [`Cache::blocks`].
pub(super) type BlockId = u32;
/// Index of a region plus one; 0 is no region.
pub(super) type RegionId = u32;
/// Number of a link in [`Cache::links`].
pub(super) type LinkId = u32;

/// Stands for a block at sites of code that belongs to none.
pub(super) const NO_BLOCK: BlockId = BlockId::MAX;

/// Most things of each kind that go with a segment; a block more may be begun. Code of common programs needs half.
const MAX_BLOCKS: usize = 7_000;
const MAX_LINKS: usize = 16_000;
const MAX_SITES: usize = 80_000;
const MAX_INTERPRETED: usize = 3_000;
/// Most regions and pages with code that are known at a time: then everything is dropped.
const MAX_REGIONS: usize = 30_000;
const MAX_PAGES: usize = 8_000;

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
    /// The block that it leads to now.
    pub(super) to: Option<BlockId>,
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
/// Bits of a number that count within a segment.
const NUMBER_BITS: u32 = 29;
const _: () = assert!(SEGMENTS <= 1 << (32 - NUMBER_BITS));

/// Things that belong to code in the arena, kept by the code's segment, whose emptying drops them.
pub(super) struct Segmented<T>([Vec<T>; SEGMENTS]);

impl<T> Segmented<T> {
    /// Room for `most` things in each segment, and for those of one block more.
    fn new(most: usize) -> Segmented<T> {
        Segmented(std::array::from_fn(|_| Vec::with_capacity(most + 1024)))
    }

    /// The number that the next thing of a segment gets.
    pub(super) fn next(&self, segment: usize) -> u32 {
        (segment as u32) << NUMBER_BITS | self.0[segment].len() as u32
    }

    pub(super) fn push(&mut self, segment: usize, thing: T) {
        self.0[segment].push(thing);
    }

    pub(super) fn extend(&mut self, segment: usize, things: impl IntoIterator<Item = T>) {
        self.0[segment].extend(things);
    }

    /// The things of a segment.
    pub(super) fn of(&self, segment: usize) -> &[T] {
        &self.0[segment]
    }

    /// The numbers of the things of a segment.
    pub(super) fn numbers(&self, segment: usize) -> std::ops::Range<u32> {
        (segment as u32) << NUMBER_BITS..self.next(segment)
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.0.iter_mut().flatten()
    }

    /// Forgets a segment's things, and keeps their memory for those that follow.
    fn clear(&mut self, segment: usize) {
        self.0[segment].clear();
    }
}

/// The segment that a numbered thing belongs to.
pub(super) fn segment_of(number: u32) -> usize {
    (number >> NUMBER_BITS) as usize
}

impl<T> Index<u32> for Segmented<T> {
    type Output = T;
    fn index(&self, number: u32) -> &T {
        &self.0[segment_of(number)][(number & ((1 << NUMBER_BITS) - 1)) as usize]
    }
}

impl<T> IndexMut<u32> for Segmented<T> {
    fn index_mut(&mut self, number: u32) -> &mut T {
        &mut self.0[segment_of(number)][(number & ((1 << NUMBER_BITS) - 1)) as usize]
    }
}

pub(super) struct Cache {
    pub(super) regions: Vec<Region>,
    pub(super) region_ids: FastMap<Region, RegionId>,
    pub(super) blocks: Segmented<Block>,
    pub(super) by_address: FastMap<(RegionId, u64), BlockId>,
    pub(super) links: Segmented<Link>,
    /// By ascending offset.
    pub(super) sites: Segmented<Site>,
    pub(super) pages: FastMap<u64, CodePage>,
    /// Instructions that thunks interpret.
    pub(super) interpreted: Segmented<iced_x86::Instruction>,
    /// Code for instructions that the host executes outside 64-bit mode.
    pub(super) native: HashMap<iced_x86::Instruction, u64>,
}

impl Cache {
    pub(super) fn new() -> Cache {
        Cache {
            regions: Vec::new(),
            region_ids: FastMap::default(),
            blocks: Segmented::new(MAX_BLOCKS),
            by_address: FastMap::default(),
            links: Segmented::new(MAX_LINKS),
            sites: Segmented::new(MAX_SITES),
            pages: FastMap::default(),
            interpreted: Segmented::new(MAX_INTERPRETED),
            native: HashMap::new(),
        }
    }

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
        let sites = self.sites.of(offset as usize / SEGMENT_SIZE);
        let index = sites.partition_point(|site| site.offset <= offset);
        let site = sites.get(index.checked_sub(1)?)?;
        (site.block != NO_BLOCK).then_some(*site)
    }

    /// Forgets what belongs to the code in a segment.
    pub(super) fn clear_segment(&mut self, segment: usize) {
        self.blocks.clear(segment);
        self.links.clear(segment);
        self.sites.clear(segment);
        self.interpreted.clear(segment);
    }

    /// Regions or pages with code are as many as they may get.
    pub(super) fn is_scattered(&self) -> bool {
        self.regions.len() >= MAX_REGIONS || self.pages.len() >= MAX_PAGES
    }

    /// Forgets every region, when no block is left.
    pub(super) fn clear_regions(&mut self) {
        self.regions.clear();
        self.region_ids.clear();
    }

    /// A segment's tables are as large as they may get, however little code they describe.
    pub(super) fn tables_are_full(&self, segment: usize) -> bool {
        self.blocks.of(segment).len() >= MAX_BLOCKS
            || self.links.of(segment).len() >= MAX_LINKS
            || self.sites.of(segment).len() >= MAX_SITES
            || self.interpreted.of(segment).len() >= MAX_INTERPRETED
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

/// Most bytes that the tables, code memory and jump table of a vCPU take.
#[cfg(test)]
pub(super) fn most_memory() -> usize {
    // A hash table may be half empty after it has grown, and has a byte of its own for each slot.
    let mapped = |entry: usize| 2 * (entry + 1);
    let address = mapped(size_of::<((RegionId, u64), BlockId)>());
    // Links that lead to a block, return sites in it, its entries in the lists of two pages; as much again for growth.
    let lists = 2 * (2 * size_of::<LinkId>() + size_of::<u64>() + 2 * size_of::<BlockId>());
    let segment = (MAX_BLOCKS + 1024) * (size_of::<Block>() + address + lists)
        + (MAX_LINKS + 1024) * size_of::<Link>()
        + (MAX_SITES + 1024) * size_of::<Site>()
        + (MAX_INTERPRETED + 1024) * size_of::<iced_x86::Instruction>();
    let regions = MAX_REGIONS * (2 * size_of::<Region>() + mapped(size_of::<(Region, RegionId)>()));
    let pages = MAX_PAGES * mapped(size_of::<(u64, CodePage)>());
    SEGMENTS * (segment + SEGMENT_SIZE) + regions + pages + JumpTable::BYTES
}
