//! Virtual memory address regions: `mmap` in reserved ranges.
//!
//! The root region is the whole address space: the kernel picks places, and a fixed place is accepted only where nothing is
//! mapped. A sub-region is a reserved range in which this module keeps track of what is mapped. The region of a guest is
//! guest-physical memory: its offsets are guest-physical addresses. A region of another process is that process's to change,
//! and asked for; see [`crate::remote`].

mod local;
mod region;
#[cfg(test)]
mod region_test;
mod remote;

pub(crate) use remote::serve;

use crate::guest::GuestMemory;
use crate::handle_table::{Held, get, insert};
use crate::object::{Kind, Object};
use crate::remote::Connection;
use crate::rights;
use crate::status::{INVALID_ARGS, Result, answer, out};
use crate::system::page_size;
use fuchsia_zircon_types::*;
use region::Region;
use std::sync::Arc;

const PERMISSIONS: u32 = ZX_VM_PERM_READ | ZX_VM_PERM_WRITE | ZX_VM_PERM_EXECUTE;
const CAN_MAP: u32 = ZX_VM_CAN_MAP_READ | ZX_VM_CAN_MAP_WRITE | ZX_VM_CAN_MAP_EXECUTE;
const CAN_MAP_ANY: u32 = CAN_MAP | ZX_VM_CAN_MAP_SPECIFIC;
const PLACEMENT: u32 = ZX_VM_SPECIFIC | ZX_VM_SPECIFIC_OVERWRITE | ZX_VM_OFFSET_IS_UPPER_LIMIT;
const HINTS: u32 =
    ZX_VM_COMPACT | ZX_VM_MAP_RANGE | ZX_VM_ALLOW_FAULTS | ZX_VM_REQUIRE_NON_RESIZABLE;
/// Alignment request: log2 of the bytes in the top byte of the options.
const ALIGN_SHIFT: u32 = 24;
/// The end of what a program can map, with four levels of page tables.
const ADDRESS_SPACE: usize = (1 << 47) - 4096;

/// An address region.
pub(crate) enum Vmar {
    Root,
    Sub(Arc<Region>),
    Guest(GuestMemory),
    /// One of another process.
    Remote {
        connection: Connection,
        info: zx_info_vmar_t,
    },
}

impl Vmar {
    /// The way to it, if it is one of another process.
    pub(crate) fn connection(&self) -> Option<&Connection> {
        match self {
            Vmar::Remote { connection, .. } => Some(connection),
            Vmar::Root | Vmar::Sub(_) | Vmar::Guest(_) => None,
        }
    }

    /// `ZX_INFO_VMAR`. The root begins at 0, so that its offsets are addresses.
    pub(crate) fn info(&self) -> zx_info_vmar_t {
        match self {
            Vmar::Root => zx_info_vmar_t { base: 0, len: ADDRESS_SPACE },
            Vmar::Sub(region) => region.info(),
            Vmar::Guest(_) => {
                zx_info_vmar_t { base: 0, len: 1 << hypervisor::PHYSICAL_ADDRESS_BITS }
            }
            Vmar::Remote { info, .. } => *info,
        }
    }
}

/// The `ZX_VM_CAN_MAP_*` for `ZX_VM_PERM_*`.
fn to_can_map(permissions: u32) -> u32 {
    (permissions & PERMISSIONS) * (ZX_VM_CAN_MAP_READ / ZX_VM_PERM_READ)
}

/// The `ZX_VM_PERM_*` for `ZX_VM_CAN_MAP_*`.
fn from_can_map(can_map: u32) -> u32 {
    (can_map & CAN_MAP) / (ZX_VM_CAN_MAP_READ / ZX_VM_PERM_READ)
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

/// The rights of a handle to a new region, of the handle it is made through.
fn child_rights(parent: zx_rights_t, options: u32) -> zx_rights_t {
    [
        (ZX_VM_CAN_MAP_READ, ZX_RIGHT_READ),
        (ZX_VM_CAN_MAP_WRITE, ZX_RIGHT_WRITE),
        (ZX_VM_CAN_MAP_EXECUTE, ZX_RIGHT_EXECUTE),
    ]
    .into_iter()
    .filter(|(can, _)| options & can != 0)
    .fold(parent & rights::VMAR, |rights, (_, right)| rights | right)
}

/// The object of a new region.
fn child_object(region: &Arc<Region>, parent: &Held) -> Arc<Object> {
    let kind = Kind::Vmar(Vmar::Sub(region.clone()));
    Object::with_koid(kind, crate::koid::allocate(), parent.koid)
}

/// A handle to the root region of this process.
pub(crate) fn root() -> Result<zx_handle_t> {
    let rights = rights::VMAR | ZX_RIGHT_READ | ZX_RIGHT_WRITE | ZX_RIGHT_EXECUTE;
    insert(Object::new(Kind::Vmar(Vmar::Root)), rights)
}

/// See the Zircon documentation of `zx_vmar_map`. `ZX_VM_OFFSET_IS_UPPER_LIMIT` is not supported.
///
/// As all calls on VMARs, in a VMAR of another process it is done by that process, which is waited for while it is stopped;
/// `ZX_ERR_BAD_STATE` when it is gone.
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
        let (held, vmo) = (get(handle)?, get(vmo)?);
        mapped_addr.set(match held.vmar()? {
            Vmar::Remote { connection, .. } => {
                remote::map(connection, &held, options, vmar_offset, &vmo, vmo_offset, len)?
            }
            _ => local::map(&held, options, vmar_offset, &vmo, vmo_offset, len)?,
        });
        Ok(())
    })())
}

/// See the Zircon documentation of `zx_vmar_unmap`.
///
/// # Safety
/// Nobody uses the range any more.
pub unsafe fn zx_vmar_unmap(handle: zx_handle_t, addr: zx_vaddr_t, len: usize) -> zx_status_t {
    answer((|| {
        let held = get(handle)?;
        match held.vmar()? {
            Vmar::Remote { connection, .. } => remote::unmap(connection, &held, addr, len),
            _ => local::unmap(&held, addr, len),
        }
    })())
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
    answer((|| {
        let held = get(handle)?;
        match held.vmar()? {
            Vmar::Remote { connection, .. } => {
                remote::protect(connection, &held, options, addr, len)
            }
            _ => local::protect_range(&held, options, addr, len),
        }
    })())
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
        let (object, address) = match held.vmar()? {
            Vmar::Remote { connection, .. } => {
                remote::allocate(connection, &held, options, offset, size)?
            }
            _ => {
                let region = local::allocate(&held, options, offset, size)?;
                (child_object(&region, &held), region.info().base)
            }
        };
        let rights = child_rights(held.rights, options);
        child_vmar.set(insert(object.clone(), rights).inspect_err(|_| {
            let _ = destroy(&Held { object, rights });
        })?);
        child_addr.set(address);
        Ok(())
    })())
}

fn destroy(held: &Held) -> Result<()> {
    match held.vmar()? {
        Vmar::Remote { connection, .. } => remote::destroy(connection, held),
        _ => local::destroy(held),
    }
}

/// See the Zircon documentation of `zx_vmar_destroy`.
///
/// # Safety
/// Nobody uses what is mapped in the region.
pub unsafe fn zx_vmar_destroy(handle: zx_handle_t) -> zx_status_t {
    answer(get(handle).and_then(|held| destroy(&held)))
}
