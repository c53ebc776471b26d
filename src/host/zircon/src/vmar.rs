//! Virtual memory address regions: `mmap` in reserved ranges.
//!
//! The root region is the whole address space: the kernel picks places, and a fixed place is accepted only where nothing is
//! mapped. A sub-region is a reserved range in which this module keeps track of what is mapped. The region of a guest is
//! guest-physical memory: its offsets are guest-physical addresses.

use crate::guest::GuestMemory;
use crate::handle_table::{Held, get, insert};
use crate::object::{Kind, Object, lock};
use crate::rights;
use crate::status::{
    ACCESS_DENIED, BAD_STATE, INVALID_ARGS, NO_MEMORY, NOT_FOUND, NOT_SUPPORTED, OUT_OF_RANGE,
    Result, Status, answer, out,
};
use crate::system::page_size;
use fuchsia_zircon_types::*;
use rustix::fd::BorrowedFd;
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap, mmap_anonymous, mprotect, munmap};
use std::ffi::c_void;
use std::ptr;
use std::sync::{Arc, Mutex, Weak};

const PERMISSIONS: u32 = ZX_VM_PERM_READ | ZX_VM_PERM_WRITE | ZX_VM_PERM_EXECUTE;
const CAN_MAP: u32 = ZX_VM_CAN_MAP_READ | ZX_VM_CAN_MAP_WRITE | ZX_VM_CAN_MAP_EXECUTE;
const PLACEMENT: u32 = ZX_VM_SPECIFIC | ZX_VM_SPECIFIC_OVERWRITE | ZX_VM_OFFSET_IS_UPPER_LIMIT;
const HINTS: u32 =
    ZX_VM_COMPACT | ZX_VM_MAP_RANGE | ZX_VM_ALLOW_FAULTS | ZX_VM_REQUIRE_NON_RESIZABLE;
/// Alignment request: log2 of the bytes in the top byte of the options.
const ALIGN_SHIFT: u32 = 24;

/// An address region.
pub(crate) enum Vmar {
    Root,
    Sub(Arc<Region>),
    Guest(GuestMemory),
}

/// A reserved range of addresses.
pub(crate) struct Region {
    base: usize,
    size: usize,
    /// The `ZX_VM_CAN_MAP_*` options it was made with.
    can_map: u32,
    state: Mutex<RegionState>,
    /// The region it lies in; a sub-region of the root has none.
    parent: Option<Weak<Region>>,
}

#[derive(Default)]
struct RegionState {
    /// Ranges in use (start, end), ascending.
    used: Vec<(usize, usize)>,
    children: Vec<Weak<Region>>,
    destroyed: bool,
}

impl Region {
    /// Takes a range, at `offset` if that is given.
    fn take(
        &self,
        state: &mut RegionState,
        offset: Option<usize>,
        len: usize,
        align: usize,
    ) -> Result<usize> {
        if state.destroyed {
            return Err(BAD_STATE);
        }
        let end = self.base + self.size;
        let start = match offset {
            Some(offset) => {
                let start = self.base.checked_add(offset).ok_or(OUT_OF_RANGE)?;
                if start.checked_add(len).is_none_or(|stop| stop > end) {
                    return Err(OUT_OF_RANGE);
                }
                if state.used.iter().any(|used| used.0 < start + len && start < used.1) {
                    return Err(Status(ZX_ERR_ALREADY_EXISTS));
                }
                start
            }
            None => {
                let mut start = self.base.next_multiple_of(align);
                for used in &state.used {
                    if start + len <= used.0 {
                        break;
                    }
                    start = start.max(used.1).next_multiple_of(align);
                }
                if start.checked_add(len).is_none_or(|stop| stop > end) {
                    return Err(NO_MEMORY);
                }
                start
            }
        };
        let index = state.used.partition_point(|used| used.0 < start);
        state.used.insert(index, (start, start + len));
        Ok(start)
    }

    fn release(state: &mut RegionState, start: usize, end: usize) {
        let rest = state
            .used
            .drain(..)
            .flat_map(|used| [(used.0, used.1.min(start)), (used.0.max(end), used.1)]);
        state.used = rest.filter(|used| used.0 < used.1).collect();
    }

    /// Unmaps all and ends the region and those inside it.
    fn destroy(&self) {
        let mut state = lock(&self.state);
        if state.destroyed {
            return;
        }
        state.destroyed = true;
        for child in state.children.drain(..).filter_map(|child| child.upgrade()) {
            lock(&child.state).destroyed = true;
        }
        state.used.clear();
        drop(state);
        let parent = self.parent.as_ref().and_then(Weak::upgrade);
        match parent {
            Some(parent) => {
                let mut state = lock(&parent.state);
                if !state.destroyed {
                    let _ = reserve(self.base, self.size);
                    Self::release(&mut state, self.base, self.base + self.size);
                }
            }
            // SAFETY: the range was reserved for this region, and Zircon's contract makes the caller of
            // `zx_vmar_destroy` promise that nobody uses what is mapped in it.
            None => drop(unsafe { munmap(self.base as *mut c_void, self.size) }),
        }
    }
}

/// Puts an inaccessible mapping over a range that belongs to a region.
fn reserve(base: usize, size: usize) -> Result<()> {
    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED;
    // SAFETY: the range belongs to a region, whose owner asked for the change.
    unsafe { mmap_anonymous(base as *mut c_void, size, ProtFlags::empty(), flags)? };
    Ok(())
}

fn protection(options: u32) -> ProtFlags {
    let mut protection = ProtFlags::empty();
    protection.set(ProtFlags::READ, options & ZX_VM_PERM_READ != 0);
    protection.set(ProtFlags::WRITE, options & ZX_VM_PERM_WRITE != 0);
    protection.set(ProtFlags::EXEC, options & ZX_VM_PERM_EXECUTE != 0);
    protection
}

/// Checks options and rights for a mapping of `vmo` through a VMAR handle.
fn check_permissions(options: u32, vmo: &Held, can_map: Option<u32>) -> Result<()> {
    if options
        & !(PERMISSIONS | PLACEMENT | HINTS | ZX_VM_PERM_READ_IF_XOM_UNSUPPORTED)
        & 0x00ff_ffff
        != 0
    {
        return Err(INVALID_ARGS);
    }
    if options & (ZX_VM_PERM_WRITE | ZX_VM_PERM_READ) == ZX_VM_PERM_WRITE {
        return Err(INVALID_ARGS);
    }
    vmo.require(ZX_RIGHT_MAP)?;
    for (permission, right, allowed) in [
        (ZX_VM_PERM_READ, ZX_RIGHT_READ, ZX_VM_CAN_MAP_READ),
        (ZX_VM_PERM_WRITE, ZX_RIGHT_WRITE, ZX_VM_CAN_MAP_WRITE),
        (ZX_VM_PERM_EXECUTE, ZX_RIGHT_EXECUTE, ZX_VM_CAN_MAP_EXECUTE),
    ] {
        if options & permission != 0
            && (vmo.rights & right == 0 || can_map.is_some_and(|can| can & allowed == 0))
        {
            return Err(ACCESS_DENIED);
        }
    }
    Ok(())
}

/// Bytes to which a placement is aligned.
fn alignment(options: u32) -> Result<usize> {
    match options >> ALIGN_SHIFT {
        0 => Ok(page_size()),
        log2 @ 10..=32 => Ok((1 << log2).max(page_size())),
        _ => Err(INVALID_ARGS),
    }
}

fn is_page_aligned(value: u64) -> bool {
    value.is_multiple_of(page_size() as u64)
}

/// A request to map part of a VMO.
struct Mapping<'a> {
    options: u32,
    offset: usize,
    fd: BorrowedFd<'a>,
    file_offset: u64,
    len: usize,
}

fn map(
    vmar: &Held,
    options: u32,
    offset: usize,
    vmo: &Held,
    vmo_offset: u64,
    len: usize,
) -> Result<usize> {
    let target = vmo.vmo()?;
    if len == 0 || !is_page_aligned(vmo_offset) || !is_page_aligned(offset as u64) {
        return Err(INVALID_ARGS);
    }
    let len =
        usize::try_from(crate::system::round_up_to_page(len as u64)?).map_err(|_| OUT_OF_RANGE)?;
    let size = crate::system::round_up_to_page(target.size()?)?;
    if options & ZX_VM_ALLOW_FAULTS == 0
        && vmo_offset.checked_add(len as u64).is_none_or(|end| end > size)
    {
        return Err(OUT_OF_RANGE);
    }
    target.check_mappable(options & ZX_VM_REQUIRE_NON_RESIZABLE != 0)?;
    let file_offset = target.file_offset().checked_add(vmo_offset).ok_or(OUT_OF_RANGE)?;
    let mapping = Mapping { options, offset, fd: target.fd(), file_offset, len };
    match vmar.vmar()? {
        Vmar::Root => {
            check_permissions(options, vmo, None)?;
            map_in_root(&mapping)
        }
        Vmar::Sub(region) => {
            check_permissions(options, vmo, Some(region.can_map))?;
            map_in_region(region, &mapping)
        }
        Vmar::Guest(memory) => {
            check_permissions(options, vmo, None)?;
            if options & ZX_VM_SPECIFIC == 0 || options & ZX_VM_SPECIFIC_OVERWRITE != 0 {
                return Err(INVALID_ARGS);
            }
            if options & (ZX_VM_PERM_READ | ZX_VM_PERM_WRITE) != ZX_VM_PERM_READ | ZX_VM_PERM_WRITE
            {
                // The software hypervisor knows RAM and nothing that can only be read.
                return Err(NOT_SUPPORTED);
            }
            memory.map(offset as u64, mapping.fd, file_offset, len as u64)?;
            Ok(offset)
        }
    }
}

/// The protection of a new mapping, and how it is shared: files of the host that are only open for reading stay so.
fn map_at(address: usize, mapping: &Mapping<'_>, extra: MapFlags) -> Result<usize> {
    let flags = MapFlags::SHARED | extra;
    let prot = protection(mapping.options);
    // SAFETY: either the kernel picks the place, or MAP_FIXED_NOREPLACE keeps others' mappings whole, or the place is
    // in a region whose owner asked for it.
    let mapped = unsafe {
        mmap(address as *mut c_void, mapping.len, prot, flags, mapping.fd, mapping.file_offset)
    };
    Ok(mapped.map_err(map_error)? as usize)
}

fn map_error(errno: rustix::io::Errno) -> Status {
    match errno {
        rustix::io::Errno::EXIST => Status(ZX_ERR_ALREADY_EXISTS),
        errno => errno.into(),
    }
}

fn map_in_root(mapping: &Mapping<'_>) -> Result<usize> {
    if mapping.options & ZX_VM_OFFSET_IS_UPPER_LIMIT != 0 {
        return Err(NOT_SUPPORTED);
    }
    if mapping.options & ZX_VM_SPECIFIC_OVERWRITE != 0 {
        return map_at(mapping.offset, mapping, MapFlags::FIXED);
    }
    if mapping.options & ZX_VM_SPECIFIC != 0 {
        return map_at(mapping.offset, mapping, MapFlags::FIXED_NOREPLACE);
    }
    if mapping.offset != 0 {
        return Err(INVALID_ARGS);
    }
    let align = alignment(mapping.options)?;
    if align <= page_size() {
        return map_at(0, mapping, MapFlags::empty());
    }
    let start = reserve_aligned(mapping.len, align)?;
    map_at(start, mapping, MapFlags::FIXED)
}

/// Reserves a range at a multiple of `align` anywhere.
fn reserve_aligned(len: usize, align: usize) -> Result<usize> {
    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
    let slack = if align > page_size() { align } else { 0 };
    let total = len.checked_add(slack).ok_or(NO_MEMORY)?;
    // SAFETY: a new mapping at a place of the kernel's choice.
    let base =
        unsafe { mmap_anonymous(ptr::null_mut(), total, ProtFlags::empty(), flags)? } as usize;
    let start = base.next_multiple_of(align);
    for (from, to) in [(base, start), (start + len, base + total)] {
        if from < to {
            // SAFETY: the unneeded ends of the reservation just made.
            let _ = unsafe { munmap(from as *mut c_void, to - from) };
        }
    }
    Ok(start)
}

fn map_in_region(region: &Arc<Region>, mapping: &Mapping<'_>) -> Result<usize> {
    if mapping.options & ZX_VM_OFFSET_IS_UPPER_LIMIT != 0 {
        return Err(NOT_SUPPORTED);
    }
    let mut state = lock(&region.state);
    let specific = mapping.options & (ZX_VM_SPECIFIC | ZX_VM_SPECIFIC_OVERWRITE) != 0;
    if specific && region.can_map & ZX_VM_CAN_MAP_SPECIFIC == 0 {
        return Err(ACCESS_DENIED);
    }
    if !specific && mapping.offset != 0 {
        return Err(INVALID_ARGS);
    }
    if mapping.options & ZX_VM_SPECIFIC_OVERWRITE != 0 {
        let start = region.base.checked_add(mapping.offset).ok_or(OUT_OF_RANGE)?;
        let end = start
            .checked_add(mapping.len)
            .filter(|&end| end <= region.base + region.size)
            .ok_or(OUT_OF_RANGE)?;
        Region::release(&mut state, start, end);
    }
    let align = alignment(mapping.options)?;
    let start = region.take(&mut state, specific.then_some(mapping.offset), mapping.len, align)?;
    map_at(start, mapping, MapFlags::FIXED)
        .inspect_err(|_| Region::release(&mut state, start, start + mapping.len))
}

/// Checks that a range is made of whole pages and inside the region.
fn check_range(region: &Region, addr: usize, len: usize) -> Result<usize> {
    if len == 0 || !is_page_aligned(addr as u64) {
        return Err(INVALID_ARGS);
    }
    let len = len.checked_next_multiple_of(page_size()).ok_or(INVALID_ARGS)?;
    let end = addr.checked_add(len).ok_or(INVALID_ARGS)?;
    if addr < region.base || end > region.base + region.size {
        return Err(INVALID_ARGS);
    }
    Ok(len)
}

fn unmap(vmar: &Held, addr: usize, len: usize) -> Result<()> {
    match vmar.vmar()? {
        Vmar::Root => {
            if len == 0 || !is_page_aligned(addr as u64) {
                return Err(INVALID_ARGS);
            }
            // SAFETY: the caller of `zx_vmar_unmap` promises that nobody uses the range.
            unsafe { munmap(addr as *mut c_void, len)? };
            Ok(())
        }
        Vmar::Sub(region) => {
            let len = check_range(region, addr, len)?;
            let mut state = lock(&region.state);
            if state.destroyed {
                return Err(BAD_STATE);
            }
            reserve(addr, len)?;
            Region::release(&mut state, addr, addr + len);
            Ok(())
        }
        Vmar::Guest(memory) => memory.unmap(addr as u64, len as u64),
    }
}

fn protect(vmar: &Held, options: u32, addr: usize, len: usize) -> Result<()> {
    if options & !PERMISSIONS != 0
        || options & (ZX_VM_PERM_WRITE | ZX_VM_PERM_READ) == ZX_VM_PERM_WRITE
    {
        return Err(INVALID_ARGS);
    }
    if len == 0 || !is_page_aligned(addr as u64) {
        return Err(INVALID_ARGS);
    }
    match vmar.vmar()? {
        Vmar::Root => {}
        Vmar::Sub(region) => {
            check_range(region, addr, len)?;
            let state = lock(&region.state);
            if state.destroyed {
                return Err(BAD_STATE);
            }
            if !state.used.iter().any(|used| used.0 < addr + len && addr < used.1) {
                return Err(NOT_FOUND);
            }
        }
        Vmar::Guest(_) => return Err(NOT_SUPPORTED),
    }
    let flags = MprotectFlags::from_bits_retain(protection(options).bits());
    // SAFETY: the caller of `zx_vmar_protect` promises that the range is its own to change.
    unsafe { mprotect(addr as *mut c_void, len, flags) }.map_err(|errno| match errno {
        rustix::io::Errno::NOMEM => NOT_FOUND,
        errno => errno.into(),
    })
}

fn allocate(vmar: &Held, options: u32, offset: usize, size: usize) -> Result<(Arc<Region>, usize)> {
    if options & !(CAN_MAP | ZX_VM_CAN_MAP_SPECIFIC | PLACEMENT | ZX_VM_COMPACT) & 0x00ff_ffff != 0
    {
        return Err(INVALID_ARGS);
    }
    if size == 0 || !is_page_aligned(offset as u64) {
        return Err(INVALID_ARGS);
    }
    let size = size.checked_next_multiple_of(page_size()).ok_or(INVALID_ARGS)?;
    let can_map = options & (CAN_MAP | ZX_VM_CAN_MAP_SPECIFIC);
    let align = alignment(options)?;
    let specific = options & ZX_VM_SPECIFIC != 0;
    let new =
        |base, parent| Arc::new(Region { base, size, can_map, state: Mutex::default(), parent });
    let region = match vmar.vmar()? {
        Vmar::Root if specific => {
            let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED_NOREPLACE;
            // SAFETY: MAP_FIXED_NOREPLACE leaves existing mappings alone.
            unsafe { mmap_anonymous(offset as *mut c_void, size, ProtFlags::empty(), flags) }
                .map_err(map_error)?;
            new(offset, None)
        }
        Vmar::Root if offset == 0 => new(reserve_aligned(size, align)?, None),
        Vmar::Root => return Err(INVALID_ARGS),
        Vmar::Sub(parent) => {
            if can_map & !parent.can_map != 0 {
                return Err(ACCESS_DENIED);
            }
            let mut state = lock(&parent.state);
            let base = parent.take(&mut state, specific.then_some(offset), size, align)?;
            let region = new(base, Some(Arc::downgrade(parent)));
            state.children.retain(|child| child.strong_count() > 0);
            state.children.push(Arc::downgrade(&region));
            region
        }
        Vmar::Guest(_) => return Err(NOT_SUPPORTED),
    };
    let base = region.base;
    Ok((region, base))
}

/// A handle to the root region of this process.
pub(crate) fn root() -> Result<zx_handle_t> {
    let rights = rights::VMAR | ZX_RIGHT_READ | ZX_RIGHT_WRITE | ZX_RIGHT_EXECUTE;
    insert(Object::new(Kind::Vmar(Vmar::Root)), rights)
}

/// See the Zircon documentation of `zx_vmar_map`. `ZX_VM_OFFSET_IS_UPPER_LIMIT` is not supported.
///
/// # Safety
/// `mapped_addr` is null or valid for writing; with `ZX_VM_SPECIFIC_OVERWRITE` nobody uses what is mapped there.
pub unsafe fn zx_vmar_map(
    handle: zx_handle_t,
    options: zx_vm_option_t,
    vmar_offset: usize,
    vmo: zx_handle_t,
    vmo_offset: u64,
    len: usize,
    mapped_addr: *mut zx_vaddr_t,
) -> zx_status_t {
    answer((|| {
        // SAFETY: the caller's promise.
        let mapped_addr = unsafe { out(mapped_addr)? };
        mapped_addr.set(map(&get(handle)?, options, vmar_offset, &get(vmo)?, vmo_offset, len)?);
        Ok(())
    })())
}

/// See the Zircon documentation of `zx_vmar_unmap`.
///
/// # Safety
/// Nobody uses the range any more.
pub unsafe fn zx_vmar_unmap(handle: zx_handle_t, addr: zx_vaddr_t, len: usize) -> zx_status_t {
    answer(get(handle).and_then(|held| unmap(&held, addr, len)))
}

/// See the Zircon documentation of `zx_vmar_protect`.
///
/// # Safety
/// Nobody relies on the former protection of the range.
pub unsafe fn zx_vmar_protect(
    handle: zx_handle_t,
    options: zx_vm_option_t,
    addr: zx_vaddr_t,
    len: usize,
) -> zx_status_t {
    answer(get(handle).and_then(|held| protect(&held, options, addr, len)))
}

/// See the Zircon documentation of `zx_vmar_allocate`.
///
/// # Safety
/// `child_vmar` and `child_addr` are null or valid for writing.
pub unsafe fn zx_vmar_allocate(
    parent_vmar: zx_handle_t,
    options: zx_vm_option_t,
    offset: usize,
    size: usize,
    child_vmar: *mut zx_handle_t,
    child_addr: *mut zx_vaddr_t,
) -> zx_status_t {
    answer((|| {
        // SAFETY: the caller's promise.
        let (child_vmar, child_addr) = unsafe { (out(child_vmar)?, out(child_addr)?) };
        let held = get(parent_vmar)?;
        let (region, address) = allocate(&held, options, offset, size)?;
        let mut rights = held.rights & rights::VMAR;
        for (can, right) in [
            (ZX_VM_CAN_MAP_READ, ZX_RIGHT_READ),
            (ZX_VM_CAN_MAP_WRITE, ZX_RIGHT_WRITE),
            (ZX_VM_CAN_MAP_EXECUTE, ZX_RIGHT_EXECUTE),
        ] {
            rights |= if options & can != 0 { right } else { 0 };
        }
        let object = Object::with_koid(
            Kind::Vmar(Vmar::Sub(region.clone())),
            crate::koid::allocate(),
            held.koid,
        );
        child_vmar.set(insert(object, rights).inspect_err(|_| region.destroy())?);
        child_addr.set(address);
        Ok(())
    })())
}

/// See the Zircon documentation of `zx_vmar_destroy`.
///
/// # Safety
/// Nobody uses what is mapped in the region.
pub unsafe fn zx_vmar_destroy(handle: zx_handle_t) -> zx_status_t {
    answer((|| match get(handle)?.vmar()? {
        Vmar::Sub(region) => {
            region.destroy();
            Ok(())
        }
        Vmar::Root | Vmar::Guest(_) => Err(NOT_SUPPORTED),
    })())
}
