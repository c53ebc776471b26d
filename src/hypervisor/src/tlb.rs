//! The software TLB: direct-mapped sets that translated code searches inline.
//!
//! A *set* caches translations for one combination of address space and privilege view. Translated code finds the
//! current set through the GS base, so switching privilege, SMAP state or PCID is one register write.
//! A tag is the page's linear address; linear address XOR tag is the page offset on a hit and at least 4096 on a miss,
//! so one unsigned compare with `4096 - size` catches both a miss and an access that crosses the page's end.

use std::ptr::NonNull;

use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

use crate::state::{CpuState, Rflags};

/// Log2 of the number of data entries in a set.
pub(crate) const TLB_BITS: u32 = 11;
/// Number of data entries in a set.
pub(crate) const TLB_ENTRIES: usize = 1 << TLB_BITS;
/// Number of code page identities in a set: enough that the pages of a large program and its libraries seldom collide.
pub(crate) const CODE_ENTRIES: usize = 1 << 14;
/// Shift that turns a linear address into a byte offset of an entry, before masking with [`TLB_OFFSET_MASK`].
pub(crate) const TLB_SHIFT: u32 = 12 - 5;
/// Mask for the byte offset of an entry.
pub(crate) const TLB_OFFSET_MASK: u32 = ((TLB_ENTRIES - 1) << 5) as u32;
/// Number of address spaces whose sets are kept. Linux uses as many PCIDs.
const SPACES: usize = 6;

/// One cached translation of a 4 KiB page.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct TlbEntry {
    /// Linear page address if reads hit, else a tag that cannot match.
    pub(crate) read: u64,
    /// Linear page address if writes may go straight to memory, else a tag that cannot match.
    pub(crate) write: u64,
    /// Host address of the page.
    pub(crate) host: u64,
    /// Guest-physical page address, plus flags in the low bits.
    pub(crate) gpa_flags: u64,
}

/// The page is global.
pub(crate) const FLAG_GLOBAL: u64 = 1 << 0;
/// The page tables allow writing and the dirty bit is set, whatever `write` says.
pub(crate) const FLAG_WRITABLE: u64 = 1 << 1;

/// A set: data entries, then the code page identities, by page number.
#[repr(C, align(4096))]
pub(crate) struct TlbSet {
    /// Data entries by page number modulo [`TLB_ENTRIES`].
    pub(crate) entries: [TlbEntry; TLB_ENTRIES],
    /// Interned identity of the code page at this page number modulo [`CODE_ENTRIES`], 0 if unknown: see the
    /// translator's regions.
    pub(crate) code: [u32; CODE_ENTRIES],
}

/// Which accesses a set answers for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum View {
    /// CPL 3.
    User,
    /// CPL 0..=2 with SMAP in force and AC clear.
    Protected,
    /// CPL 0..=2 that may touch user pages.
    Open,
}

impl View {
    /// The view that data accesses of the current state use.
    pub(crate) fn current(state: &CpuState) -> View {
        if state.cpl == 3 {
            View::User
        } else if state.cr4 & (1 << 21) != 0 && !state.flag(Rflags::AC) {
            View::Protected
        } else {
            View::Open
        }
    }
}

/// What the page walk found for a page, in the form the TLB stores.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fill {
    /// Linear address, any offset in the page.
    pub(crate) va: u64,
    /// Guest-physical address of the 4 KiB page.
    pub(crate) gpa: u64,
    /// Host address of the 4 KiB page.
    pub(crate) host: u64,
    /// Writes may go straight to memory: allowed, dirty bit set, page not watched for code.
    pub(crate) write: bool,
    /// Global translation.
    pub(crate) global: bool,
    /// Size of the guest page that holds it, in bytes.
    pub(crate) page_size: u64,
}

/// Bookkeeping of one set that translated code does not see.
struct SetLog {
    set: NonNull<TlbSet>,
    /// Indices of entries filled with non-global translations since the last flush; overflow means "all".
    filled: Vec<u16>,
    overflow: bool,
    /// Any global entry present.
    globals: bool,
    /// As `filled`, for the code page identities.
    code_filled: Vec<u16>,
    code_overflow: bool,
    /// Any code page identity present.
    code_present: bool,
    /// Smallest aligned range that covers every large page with an entry here.
    large: Option<(u64, u64)>,
    /// PCID or address space this set belongs to; not the protected set, which holds no user pages.
    owner: Option<u64>,
    last_use: u64,
}

/// All sets of a vCPU.
pub(crate) struct Tlb {
    base: NonNull<u8>,
    logs: Vec<SetLog>,
    /// Number of the current address space's sets.
    space: usize,
    clock: u64,
    /// Data fills so far.
    pub(crate) fills: u64,
    /// Flushes of any kind so far.
    pub(crate) flushes: u64,
}

const PROTECTED: usize = 0;
const FIRST_USER: usize = 1;
const FIRST_OPEN: usize = FIRST_USER + SPACES;
const SETS: usize = FIRST_OPEN + SPACES;
/// Bytes of all sets of a vCPU.
#[cfg(test)]
pub(crate) const BYTES: usize = SETS * size_of::<TlbSet>();
const LOG_LIMIT: usize = 512;

/// A tag for entry `index` that no linear address of that index equals: it belongs to the neighbouring index.
const fn invalid_tag(index: usize) -> u64 {
    ((index ^ 1) as u64) << 12
}

fn index_of(va: u64) -> usize {
    (va >> 12) as usize & (TLB_ENTRIES - 1)
}

/// Index of the identity of the code page at `va`.
pub(crate) fn code_index(va: u64) -> usize {
    (va >> 12) as usize & (CODE_ENTRIES - 1)
}

impl Tlb {
    /// Reserves and clears the sets of one vCPU.
    pub(crate) fn new() -> Result<Tlb, rustix::io::Errno> {
        let len = SETS * size_of::<TlbSet>();
        // SAFETY: a fresh anonymous mapping that nothing else refers to.
        let base = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )?
        };
        let base = NonNull::new(base.cast::<u8>()).ok_or(rustix::io::Errno::NOMEM)?;
        let mut logs = Vec::with_capacity(SETS);
        for i in 0..SETS {
            // SAFETY: `i < SETS`, so the set lies in the mapping, which is aligned and zeroed.
            let set = unsafe { base.cast::<TlbSet>().add(i) };
            logs.push(SetLog {
                set,
                filled: Vec::with_capacity(LOG_LIMIT),
                overflow: false,
                globals: false,
                code_filled: Vec::with_capacity(LOG_LIMIT),
                code_overflow: false,
                code_present: true,
                large: None,
                owner: None,
                last_use: 0,
            });
        }
        let mut tlb = Tlb { base, logs, space: 0, clock: 0, fills: 0, flushes: 0 };
        for log in &mut tlb.logs {
            log.clear_all();
        }
        Ok(tlb)
    }

    /// Host address of the set that answers for `view`: the GS base for translated code.
    pub(crate) fn set_address(&self, view: View) -> u64 {
        self.logs[self.slot(view)].set.as_ptr() as u64
    }

    /// Stores the set addresses that translated code needs into `state`; after changes of CPL, CR3, CR4.SMAP or AC.
    pub(crate) fn publish(&self, state: &mut CpuState) {
        let smap = state.cr4 & (1 << 21) != 0;
        state.tlb_set_protected = self.set_address(if smap { View::Protected } else { View::Open });
        state.tlb_set_user = self.set_address(View::User);
        state.tlb_set_open = self.set_address(View::Open);
        state.tlb_set = self.set_address(View::current(state));
    }

    /// Caches a translation for `view`; `Fill::write == false` makes writes take the slow path.
    pub(crate) fn insert(&mut self, view: View, fill: &Fill) {
        self.fills += 1;
        let slot = self.slot(view);
        self.logs[slot].insert(fill);
    }

    /// The host address for an access inside one page at `va`, if the set of `view` has it.
    pub(crate) fn lookup(&self, view: View, va: u64, write: bool) -> Option<u64> {
        let entry = &self.logs[self.slot(view)].set().entries[index_of(va)];
        let tag = if write { entry.write } else { entry.read };
        (tag == va & !0xfff).then_some(entry.host + (va & 0xfff))
    }

    /// Drops everything, global entries too: CR4.PGE/PCIDE/SMEP/SMAP, CR0.PG/WP, EFER changes, INVPCID type 2.
    pub(crate) fn flush_all(&mut self) {
        self.flushes += 1;
        for log in &mut self.logs {
            log.clear_all();
            log.owner = None;
        }
    }

    /// Drops non-global entries of every address space: INVPCID type 3.
    pub(crate) fn flush_non_global(&mut self) {
        self.flushes += 1;
        for log in &mut self.logs {
            log.clear_non_global();
        }
    }

    /// A write to CR3. `space` identifies the address space (the PCID, or anything constant without PCIDs);
    /// `keep` is bit 63 of the written value with CR4.PCIDE set: entries of that PCID may stay.
    pub(crate) fn switch_space(&mut self, space: u64, keep: bool) {
        self.flushes += 1;
        self.clock += 1;
        self.logs[PROTECTED].clear_non_global();
        let known = (0..SPACES).find(|&i| self.logs[FIRST_USER + i].owner == Some(space));
        let oldest = || (0..SPACES).min_by_key(|&i| self.logs[FIRST_USER + i].last_use);
        let index = known.or_else(oldest).unwrap_or(0);
        for slot in [FIRST_USER + index, FIRST_OPEN + index] {
            if known.is_none() || !keep {
                self.logs[slot].clear_non_global();
            }
            self.logs[slot].owner = Some(space);
            self.logs[slot].last_use = self.clock;
        }
        self.space = index;
    }

    /// INVPCID types 0 and 1, and INVLPG of another space: drops a page, or with `None` everything non-global, of `space`.
    pub(crate) fn flush_space(&mut self, space: u64, current: bool, va: Option<u64>) {
        self.flushes += 1;
        for (i, log) in self.logs.iter_mut().enumerate() {
            let affected = if i == PROTECTED { current } else { log.owner == Some(space) };
            if affected {
                match va {
                    Some(va) => log.clear_page(va),
                    None => log.clear_non_global(),
                }
            }
        }
    }

    /// INVLPG: drops the page in the current space and global entries of it everywhere.
    pub(crate) fn flush_page(&mut self, va: u64) {
        self.flushes += 1;
        for log in &mut self.logs {
            log.clear_page(va);
        }
    }

    /// Makes writes to guest-physical page `gpa` take the slow path, in every set: the page now holds translated code.
    pub(crate) fn protect(&mut self, gpa: u64) {
        for log in &mut self.logs {
            for (i, entry) in log.set_mut().entries.iter_mut().enumerate() {
                if entry.gpa_flags & !0xfff == gpa {
                    entry.write = invalid_tag(i);
                }
            }
        }
    }

    /// Forgets every code page identity, e.g. after the code cache was emptied.
    pub(crate) fn forget_code(&mut self) {
        for log in &mut self.logs {
            log.clear_code();
        }
    }

    /// The identity of the code page at `va` for `view`, 0 if unknown. Another page with the same index may own it.
    pub(crate) fn code(&self, view: View, va: u64) -> u32 {
        self.logs[self.slot(view)].set().code[code_index(va)]
    }

    /// Records the identity of the code page at `va` for `view`.
    pub(crate) fn set_code(&mut self, view: View, va: u64, id: u32, global: bool, page_size: u64) {
        let slot = self.slot(view);
        let log = &mut self.logs[slot];
        log.set_mut().code[code_index(va)] = id;
        log.note_code(code_index(va), global);
        log.note_large(va, page_size);
    }

    fn slot(&self, view: View) -> usize {
        match view {
            View::User => FIRST_USER + self.space,
            View::Protected => PROTECTED,
            View::Open => FIRST_OPEN + self.space,
        }
    }
}

impl Drop for Tlb {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `new`, and every pointer into it dies with `self`.
        // Failure would only leak address space.
        unsafe {
            let _ = munmap(self.base.as_ptr().cast(), SETS * size_of::<TlbSet>());
        }
    }
}

impl SetLog {
    fn set(&self) -> &TlbSet {
        // SAFETY: points into the mapping owned by `Tlb`; only this thread, and never while a `&mut` exists, reads it.
        unsafe { self.set.as_ref() }
    }

    fn set_mut(&mut self) -> &mut TlbSet {
        // SAFETY: as for `set`; `&mut self` makes it the only reference.
        unsafe { self.set.as_mut() }
    }

    fn insert(&mut self, fill: &Fill) {
        let index = index_of(fill.va);
        let page = fill.va & !0xfff;
        let flags =
            if fill.global { FLAG_GLOBAL } else { 0 } | if fill.write { FLAG_WRITABLE } else { 0 };
        self.set_mut().entries[index] = TlbEntry {
            read: page,
            write: if fill.write { page } else { invalid_tag(index) },
            host: fill.host & !0xfff,
            gpa_flags: (fill.gpa & !0xfff) | flags,
        };
        self.note(index, fill.global);
        self.note_large(fill.va, fill.page_size);
    }

    fn note(&mut self, index: usize, global: bool) {
        if global {
            self.globals = true;
        } else if self.filled.len() < LOG_LIMIT {
            self.filled.push(index as u16);
        } else {
            self.overflow = true;
        }
    }

    fn note_code(&mut self, index: usize, global: bool) {
        self.code_present = true;
        if global {
            return;
        }
        if self.code_filled.len() < LOG_LIMIT {
            self.code_filled.push(index as u16);
        } else {
            self.code_overflow = true;
        }
    }

    /// Drops every code page identity.
    fn clear_code(&mut self) {
        if self.code_present {
            self.set_mut().code.fill(0);
        }
        self.code_filled.clear();
        self.code_overflow = false;
        self.code_present = false;
    }

    fn clear_non_global_code(&mut self) {
        if self.code_overflow {
            // Resolving the global ones again is cheap.
            return self.clear_code();
        }
        let mut filled = std::mem::take(&mut self.code_filled);
        let code = &mut self.set_mut().code;
        for &index in &filled {
            code[usize::from(index)] = 0;
        }
        filled.clear();
        self.code_filled = filled;
    }

    fn note_large(&mut self, va: u64, page_size: u64) {
        if page_size <= 4096 {
            return;
        }
        let start = va & !(page_size - 1);
        let end = start.wrapping_add(page_size - 1);
        self.large = Some(match self.large {
            Some((s, e)) => (s.min(start), e.max(end)),
            None => (start, end),
        });
    }

    fn clear_index(&mut self, index: usize) {
        let set = self.set_mut();
        let tag = invalid_tag(index);
        set.entries[index] = TlbEntry { read: tag, write: tag, host: 0, gpa_flags: 0 };
    }

    fn clear_all(&mut self) {
        for index in 0..TLB_ENTRIES {
            self.clear_index(index);
        }
        self.clear_code();
        self.filled.clear();
        self.overflow = false;
        self.globals = false;
        self.large = None;
    }

    fn clear_non_global(&mut self) {
        self.clear_non_global_code();
        if self.overflow {
            if self.globals {
                for index in 0..TLB_ENTRIES {
                    self.clear_index_if_non_global(index);
                }
                self.filled.clear();
                self.overflow = false;
            } else {
                self.clear_all();
            }
            return;
        }
        let mut filled = std::mem::take(&mut self.filled);
        for &index in &filled {
            self.clear_index_if_non_global(index as usize);
        }
        filled.clear();
        self.filled = filled;
    }

    fn clear_index_if_non_global(&mut self, index: usize) {
        if self.set().entries[index].gpa_flags & FLAG_GLOBAL == 0 {
            self.clear_index(index);
        }
    }

    fn clear_page(&mut self, va: u64) {
        if self.large.is_some_and(|(start, end)| va >= start && va <= end) {
            self.clear_all();
        } else {
            self.clear_index(index_of(va));
            self.set_mut().code[code_index(va)] = 0;
        }
    }
}
