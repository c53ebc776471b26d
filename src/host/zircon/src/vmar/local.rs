//! What is done to the address space of this process, and to the memory of its guests.

use super::region::{Region, protect};
use super::{
    CAN_MAP, CAN_MAP_ANY, HINTS, PERMISSIONS, PLACEMENT, Vmar, alignment, from_can_map,
    is_page_aligned,
};
use crate::handle_table::Held;
use crate::status::{
    ACCESS_DENIED, INVALID_ARGS, NO_MEMORY, NOT_SUPPORTED, OUT_OF_RANGE, Result, Status,
};
use crate::system::{page_size, round_up_to_page};
use fuchsia_zircon_types::*;
use rustix::fd::BorrowedFd;
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};
use std::ffi::c_void;
use std::ptr;
use std::sync::Arc;

/// A request to map part of a VMO.
pub(super) struct Mapping<'a> {
    pub(super) options: u32,
    pub(super) offset: usize,
    pub(super) len: usize,
    /// The `ZX_VM_PERM_*` that the rights of the VMO and the VMAR allow.
    pub(super) allowed: u32,
    fd: BorrowedFd<'a>,
    file_offset: u64,
}

pub(super) fn protection(options: u32) -> ProtFlags {
    let mut protection = ProtFlags::empty();
    protection.set(ProtFlags::READ, options & ZX_VM_PERM_READ != 0);
    protection.set(ProtFlags::WRITE, options & ZX_VM_PERM_WRITE != 0);
    protection.set(ProtFlags::EXEC, options & ZX_VM_PERM_EXECUTE != 0);
    protection
}

/// The `ZX_VM_PERM_*` that rights allow.
fn permissions_of(rights: zx_rights_t) -> u32 {
    [
        (ZX_RIGHT_READ, ZX_VM_PERM_READ),
        (ZX_RIGHT_WRITE, ZX_VM_PERM_WRITE),
        (ZX_RIGHT_EXECUTE, ZX_VM_PERM_EXECUTE),
    ]
    .into_iter()
    .filter(|(right, _)| rights & right != 0)
    .fold(0, |permissions, (_, permission)| permissions | permission)
}

/// Checks options and rights for a mapping of `vmo` through a VMAR handle; the permissions it can have at most.
fn check_permissions(options: u32, vmo: &Held, vmar: &Held) -> Result<u32> {
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
    let allowed = permissions_of(vmo.rights & vmar.rights);
    if options & PERMISSIONS & !allowed != 0 { Err(ACCESS_DENIED) } else { Ok(allowed) }
}

/// Maps part of a VMO in an address space of this process.
pub(super) fn map(
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
    let len = usize::try_from(round_up_to_page(len as u64)?).map_err(|_| OUT_OF_RANGE)?;
    let size = round_up_to_page(target.size()?)?;
    if options & ZX_VM_ALLOW_FAULTS == 0
        && vmo_offset.checked_add(len as u64).is_none_or(|end| end > size)
    {
        return Err(OUT_OF_RANGE);
    }
    target.check_mappable(options & ZX_VM_REQUIRE_NON_RESIZABLE != 0)?;
    let file_offset = target.file_offset().checked_add(vmo_offset).ok_or(OUT_OF_RANGE)?;
    let allowed = check_permissions(options, vmo, vmar)?;
    let mapping = Mapping { options, offset, len, allowed, fd: target.fd(), file_offset };
    match vmar.vmar()? {
        Vmar::Root => map_in_root(&mapping),
        Vmar::Sub(region) => region.map(&mapping, alignment(options)?),
        Vmar::Guest(memory) => {
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
        Vmar::Remote { .. } => Err(NOT_SUPPORTED),
    }
}

/// The protection of a new mapping, and how it is shared: files of the host that are only open for reading stay so.
pub(super) fn map_at(address: usize, mapping: &Mapping<'_>, extra: MapFlags) -> Result<usize> {
    let flags = MapFlags::SHARED | extra;
    let prot = protection(mapping.options);
    // SAFETY: either the kernel picks the place, or MAP_FIXED_NOREPLACE keeps others' mappings whole, or the place is
    // in a region whose owner asked for it.
    let mapped = unsafe {
        mmap(address as *mut c_void, mapping.len, prot, flags, mapping.fd, mapping.file_offset)
    };
    Ok(mapped.map_err(map_error)? as usize)
}

fn map_error(errno: Errno) -> Status {
    match errno {
        Errno::EXIST => Status(ZX_ERR_ALREADY_EXISTS),
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

pub(super) fn unmap(vmar: &Held, addr: usize, len: usize) -> Result<()> {
    match vmar.vmar()? {
        Vmar::Root => {
            if len == 0 || !is_page_aligned(addr as u64) {
                return Err(INVALID_ARGS);
            }
            // SAFETY: the caller of `zx_vmar_unmap` promises that nobody uses the range.
            unsafe { munmap(addr as *mut c_void, len)? };
            Ok(())
        }
        Vmar::Sub(region) => region.unmap(addr, len, vmar.rights & ZX_RIGHT_OP_CHILDREN != 0),
        Vmar::Guest(memory) => memory.unmap(addr as u64, len as u64),
        Vmar::Remote { .. } => Err(NOT_SUPPORTED),
    }
}

pub(super) fn protect_range(vmar: &Held, options: u32, addr: usize, len: usize) -> Result<()> {
    let target = vmar.vmar()?;
    if options & PERMISSIONS & !permissions_of(vmar.rights) != 0 {
        return Err(ACCESS_DENIED);
    }
    if options & !PERMISSIONS != 0
        || options & (ZX_VM_PERM_WRITE | ZX_VM_PERM_READ) == ZX_VM_PERM_WRITE
        || len == 0
        || !is_page_aligned(addr as u64)
    {
        return Err(INVALID_ARGS);
    }
    match target {
        Vmar::Root => protect(options, addr, len),
        Vmar::Sub(region) => {
            region.protect(options, addr, len, vmar.rights & ZX_RIGHT_OP_CHILDREN != 0)
        }
        Vmar::Guest(_) | Vmar::Remote { .. } => Err(NOT_SUPPORTED),
    }
}

pub(super) fn allocate(
    vmar: &Held,
    options: u32,
    offset: usize,
    size: usize,
) -> Result<Arc<Region>> {
    let target = vmar.vmar()?;
    if options & !(CAN_MAP_ANY | PLACEMENT | ZX_VM_COMPACT) & 0x00ff_ffff != 0 {
        return Err(INVALID_ARGS);
    }
    if size == 0 || !is_page_aligned(offset as u64) {
        return Err(INVALID_ARGS);
    }
    if from_can_map(options & CAN_MAP) & !permissions_of(vmar.rights) != 0 {
        return Err(ACCESS_DENIED);
    }
    let size = size.checked_next_multiple_of(page_size()).ok_or(INVALID_ARGS)?;
    let can_map = options & CAN_MAP_ANY;
    let align = alignment(options)?;
    match target {
        Vmar::Root if options & ZX_VM_SPECIFIC != 0 => {
            let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED_NOREPLACE;
            // SAFETY: MAP_FIXED_NOREPLACE leaves existing mappings alone.
            unsafe { mmap_anonymous(offset as *mut c_void, size, ProtFlags::empty(), flags) }
                .map_err(map_error)?;
            Ok(Region::new(offset, size, can_map))
        }
        Vmar::Root if offset == 0 => Ok(Region::new(reserve_aligned(size, align)?, size, can_map)),
        Vmar::Root => Err(INVALID_ARGS),
        Vmar::Sub(parent) => parent.allocate(options, offset, size, align),
        Vmar::Guest(_) | Vmar::Remote { .. } => Err(NOT_SUPPORTED),
    }
}

pub(super) fn destroy(vmar: &Held) -> Result<()> {
    let target = vmar.vmar()?;
    vmar.require(ZX_RIGHT_OP_CHILDREN)?;
    match target {
        Vmar::Sub(region) => region.destroy(),
        Vmar::Root | Vmar::Guest(_) | Vmar::Remote { .. } => Err(NOT_SUPPORTED),
    }
}
