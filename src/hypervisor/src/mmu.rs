//! Paging: translation of linear addresses through the guest's page tables (SDM vol. 3 §4).

use crate::cpu::Cpu;
use crate::exception::Exception;
use crate::guest::PHYSICAL_ADDRESS_BITS;
use crate::registers::{cr0, cr4, efer, rflags};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// What an access does with the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AccessKind {
    /// Data read.
    Read,
    /// Data write, or the read half of a read-modify-write.
    Write,
    /// Instruction fetch.
    Execute,
}

/// The rights with which a page is looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Access {
    /// Read, write or execute.
    pub(crate) kind: AccessKind,
    /// User mode: CPL 3, and not an implicit access to a system table.
    pub(crate) user: bool,
    /// Supervisor-mode access prevention holds for this access: CR4.SMAP is set, and RFLAGS.AC is clear or the
    /// access is implicit (SDM vol. 3 §4.6.1).
    pub(crate) smap: bool,
}

impl Access {
    /// An access by the current instruction.
    pub(crate) fn current(cpu: &Cpu, kind: AccessKind) -> Access {
        let state = &cpu.state;
        Access {
            kind,
            user: cpu.cpl() == 3,
            smap: state.cr4 & cr4::SMAP != 0 && state.rflags & rflags::AC == 0,
        }
    }

    /// An implicit supervisor access: descriptor tables, the TSS, and stacks of interrupt delivery.
    pub(crate) fn system(cpu: &Cpu, kind: AccessKind) -> Access {
        Access { kind, user: false, smap: cpu.state.cr4 & cr4::SMAP != 0 }
    }
}

/// A translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mapping {
    /// Guest-physical address of the byte that was looked up.
    pub(crate) gpa: u64,
    /// Size of the page in bytes.
    pub(crate) page_size: u64,
    /// Every level allows user access.
    pub(crate) user: bool,
    /// Every level allows writing. CR0.WP = 0 lets supervisor mode write regardless.
    pub(crate) writable: bool,
    /// The page's dirty flag is set, so a later write changes nothing in the tables.
    pub(crate) dirty: bool,
    /// The translation survives a change of address space (CR4.PGE and the G flag).
    pub(crate) global: bool,
    /// Some level forbids execution.
    pub(crate) nx: bool,
}

impl Mapping {
    /// Whether an access with these rights may be repeated without another walk.
    pub(crate) fn allows(&self, cpu: &Cpu, access: Access) -> bool {
        permits(cpu, self, access) && (access.kind != AccessKind::Write || self.dirty)
    }
}

/// Page-fault error code bits (SDM vol. 3 §4.7).
mod error_code {
    pub(super) const PRESENT: u32 = 1 << 0;
    pub(super) const WRITE: u32 = 1 << 1;
    pub(super) const USER: u32 = 1 << 2;
    pub(super) const RESERVED: u32 = 1 << 3;
    pub(super) const FETCH: u32 = 1 << 4;
}

const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const PAGE_SIZE_FLAG: u64 = 1 << 7;
const GLOBAL: u64 = 1 << 8;
const NO_EXECUTE: u64 = 1 << 63;
/// Bits of an 8-byte entry that hold the physical address of a table or a 4 KiB page.
const ADDRESS: u64 = ((1 << PHYSICAL_ADDRESS_BITS) - 1) & !0xfff;
/// Address bits beyond MAXPHYADDR, reserved in 8-byte entries.
const BEYOND_ADDRESS: u64 = ((1 << 52) - 1) & !((1 << PHYSICAL_ADDRESS_BITS) - 1);

/// True when bits 63:47 of a linear address are all the same.
#[inline]
pub(crate) fn is_canonical(va: u64) -> bool {
    ((va as i64) << 16 >> 16) as u64 == va
}

/// Translates a linear address, checks the access and sets accessed and dirty flags.
///
/// A non-canonical address is #GP(0); the caller that knows it is a stack access makes that #SS(0). Accessed and dirty
/// flags are written only when the access is allowed, each with a locked update.
pub(crate) fn walk(cpu: &Cpu, va: u64, access: Access) -> Result<Mapping, Exception> {
    let state = &cpu.state;
    if state.cr0 & cr0::PG == 0 {
        return Ok(Mapping {
            gpa: va & 0xffff_ffff,
            page_size: 4096,
            user: true,
            writable: true,
            dirty: true,
            global: false,
            nx: false,
        });
    }
    loop {
        let mut path = Path::default();
        let found = if state.efer & efer::LMA != 0 {
            if !is_canonical(va) {
                return Err(Exception::gp(0));
            }
            walk_levels(cpu, va, state.cr3 & ADDRESS, 4, &mut path)
        } else if state.cr4 & cr4::PAE != 0 {
            walk_pae(cpu, va, &mut path)
        } else {
            walk_32bit(cpu, va, &mut path)
        };
        let mut mapping = match found {
            Ok(mapping) => mapping,
            Err(reserved) => {
                let code = if reserved { error_code::PRESENT | error_code::RESERVED } else { 0 };
                return Err(page_fault(cpu, va, access, code));
            }
        };
        if !permits(cpu, &mapping, access) {
            return Err(page_fault(cpu, va, access, error_code::PRESENT));
        }
        if path.mark(cpu, access.kind == AccessKind::Write) {
            mapping.dirty |= access.kind == AccessKind::Write;
            return Ok(mapping);
        }
        // Another CPU changed an entry between our read and our update: its new value decides.
    }
}

fn page_fault(cpu: &Cpu, va: u64, access: Access, mut code: u32) -> Exception {
    let state = &cpu.state;
    match access.kind {
        AccessKind::Read => {}
        AccessKind::Write => code |= error_code::WRITE,
        AccessKind::Execute => {
            let has_nx = state.cr4 & cr4::PAE != 0 && state.efer & efer::NXE != 0;
            if has_nx || state.cr4 & cr4::SMEP != 0 {
                code |= error_code::FETCH;
            }
        }
    }
    if access.user {
        code |= error_code::USER;
    }
    Exception::page_fault(va, code)
}

/// Access rights of a present translation (SDM vol. 3 §4.6.1).
fn permits(cpu: &Cpu, mapping: &Mapping, access: Access) -> bool {
    let state = &cpu.state;
    if access.kind == AccessKind::Execute && mapping.nx {
        return false;
    }
    if access.user {
        return mapping.user && (mapping.writable || access.kind != AccessKind::Write);
    }
    match access.kind {
        AccessKind::Execute => !(mapping.user && state.cr4 & cr4::SMEP != 0),
        AccessKind::Read => !(mapping.user && access.smap),
        AccessKind::Write => {
            !(mapping.user && access.smap) && (mapping.writable || state.cr0 & cr0::WP == 0)
        }
    }
}

/// The entries that a walk went through, for the accessed and dirty flags.
#[derive(Default)]
struct Path {
    entries: [(u64, u64); 4],
    len: usize,
    /// Entries are 4 bytes (32-bit paging) instead of 8.
    narrow: bool,
}

impl Path {
    fn push(&mut self, gpa: u64, entry: u64) {
        if let Some(slot) = self.entries.get_mut(self.len) {
            *slot = (gpa, entry);
            self.len += 1;
        }
    }

    /// Sets the accessed flags, and the dirty flag of the last entry if `write`. False when an entry has changed.
    fn mark(&self, cpu: &Cpu, write: bool) -> bool {
        for (index, &(gpa, entry)) in self.entries[..self.len].iter().enumerate() {
            let dirty = if write && index + 1 == self.len { DIRTY } else { 0 };
            let marked = entry | ACCESSED | dirty;
            if marked != entry && !self.replace(cpu, gpa, entry, marked) {
                return false;
            }
        }
        true
    }

    fn replace(&self, cpu: &Cpu, gpa: u64, old: u64, new: u64) -> bool {
        let Some(host) = cpu.guest.host(gpa) else {
            return true;
        };
        if self.narrow {
            // SAFETY: the entry is in guest RAM and aligned to its size; guest memory is only accessed atomically here.
            let slot = unsafe { AtomicU32::from_ptr(host.cast()) };
            slot.compare_exchange(old as u32, new as u32, Ordering::AcqRel, Ordering::Relaxed)
                .is_ok()
        } else {
            // SAFETY: as above.
            let slot = unsafe { AtomicU64::from_ptr(host.cast()) };
            slot.compare_exchange(old, new, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        }
    }
}

/// Reads an 8-byte entry. Tables outside RAM read as all ones, which has reserved bits set.
fn read_entry(cpu: &Cpu, gpa: u64) -> u64 {
    match cpu.guest.host(gpa) {
        // SAFETY: the entry is in guest RAM and 8-byte aligned, because tables are page aligned.
        Some(host) => unsafe { AtomicU64::from_ptr(host.cast()) }.load(Ordering::Acquire),
        None => u64::MAX,
    }
}

/// Walks `levels` levels of 8-byte entries from `table`. `Err(true)` is a reserved bit, `Err(false)` a missing page.
fn walk_levels(
    cpu: &Cpu,
    va: u64,
    mut table: u64,
    levels: u32,
    path: &mut Path,
) -> Result<Mapping, bool> {
    let state = &cpu.state;
    let nx_enabled = state.efer & efer::NXE != 0;
    let (mut user, mut writable, mut nx) = (true, true, false);
    for level in (1..=levels).rev() {
        let shift = 12 + 9 * (level - 1);
        let gpa = table + (va >> shift & 0x1ff) * 8;
        let entry = read_entry(cpu, gpa);
        if entry & PRESENT == 0 {
            return Err(false);
        }
        let leaf = level == 1 || level <= 3 && entry & PAGE_SIZE_FLAG != 0;
        let mut reserved = BEYOND_ADDRESS;
        if !nx_enabled {
            reserved |= NO_EXECUTE;
        }
        if levels == 2 {
            // PAE: bits 62:52 are reserved, not ignored.
            reserved |= 0x7ff << 52;
        }
        match level {
            4 => reserved |= PAGE_SIZE_FLAG,
            // Bit 12 of a large page is its PAT flag; the rest up to its size is reserved.
            2 | 3 if leaf => reserved |= (1 << shift) - (1 << 13),
            _ => {}
        }
        if entry & reserved != 0 {
            return Err(true);
        }
        path.push(gpa, entry);
        user &= entry & USER != 0;
        writable &= entry & WRITABLE != 0;
        nx |= entry & NO_EXECUTE != 0;
        if leaf {
            let page_size = 1 << shift;
            return Ok(Mapping {
                gpa: entry & ADDRESS & !(page_size - 1) | va & (page_size - 1),
                page_size,
                user,
                writable,
                dirty: entry & DIRTY != 0,
                global: entry & GLOBAL != 0 && state.cr4 & cr4::PGE != 0,
                nx,
            });
        }
        table = entry & ADDRESS;
    }
    Err(false)
}

/// PAE paging: four page-directory-pointer entries without rights, then two levels (SDM vol. 3 §4.4).
fn walk_pae(cpu: &Cpu, va: u64, path: &mut Path) -> Result<Mapping, bool> {
    let va = va & 0xffff_ffff;
    let entry = read_entry(cpu, (cpu.state.cr3 & 0xffff_ffe0) + (va >> 30) * 8);
    if entry & PRESENT == 0 {
        return Err(false);
    }
    walk_levels(cpu, va, entry & ADDRESS, 2, path)
}

/// 32-bit paging with 4-byte entries and 4 MiB pages (SDM vol. 3 §4.3).
fn walk_32bit(cpu: &Cpu, va: u64, path: &mut Path) -> Result<Mapping, bool> {
    let read = |gpa: u64| match cpu.guest.host(gpa) {
        // SAFETY: the entry is in guest RAM and 4-byte aligned, because tables are page aligned.
        Some(host) => unsafe { AtomicU32::from_ptr(host.cast()) }.load(Ordering::Acquire),
        None => u32::MAX,
    };
    path.narrow = true;
    let state = &cpu.state;
    let va = va & 0xffff_ffff;
    let directory_gpa = (state.cr3 & 0xffff_f000) + (va >> 22) * 4;
    let directory = u64::from(read(directory_gpa));
    if directory & PRESENT == 0 {
        return Err(false);
    }
    path.push(directory_gpa, directory);
    let (leaf, gpa, page_size) = if directory & PAGE_SIZE_FLAG != 0 && state.cr4 & cr4::PSE != 0 {
        if directory & 1 << 21 != 0 {
            return Err(true);
        }
        let high = (directory >> 13 & 0xff) << 32;
        (directory, high | directory & 0xffc0_0000 | va & 0x3f_ffff, 1 << 22)
    } else {
        let table_gpa = (directory & 0xffff_f000) + (va >> 12 & 0x3ff) * 4;
        let entry = u64::from(read(table_gpa));
        if entry & PRESENT == 0 {
            return Err(false);
        }
        path.push(table_gpa, entry);
        (entry, entry & 0xffff_f000 | va & 0xfff, 1 << 12)
    };
    let rights = if page_size == 4096 { directory & leaf } else { leaf };
    Ok(Mapping {
        gpa,
        page_size,
        user: rights & USER != 0,
        writable: rights & WRITABLE != 0,
        dirty: leaf & DIRTY != 0,
        global: leaf & GLOBAL != 0 && state.cr4 & cr4::PGE != 0,
        nx: false,
    })
}
