//! Regions inside regions.

use super::region::MAX_DEPTH;
use crate::testing::*;
use crate::*;
use fuchsia_zircon_types::*;

const PAGE: usize = 4096;
const CAN_READ: u32 = ZX_VM_CAN_MAP_READ;
const CAN_ALL: u32 = CAN_READ | ZX_VM_CAN_MAP_WRITE | ZX_VM_CAN_MAP_SPECIFIC;
const READ: u32 = ZX_VM_PERM_READ;
const READ_WRITE: u32 = READ | ZX_VM_PERM_WRITE;

fn protect(vmar: zx_handle_t, options: u32, addr: usize, len: usize) -> zx_status_t {
    // SAFETY: the tests use nothing of what they protect.
    unsafe { zx_vmar_protect(vmar, options, addr, len) }
}

fn destroy(vmar: zx_handle_t) -> zx_status_t {
    // SAFETY: the tests use nothing of what they destroy.
    unsafe { zx_vmar_destroy(vmar) }
}

fn without(handle: zx_handle_t, right: zx_rights_t) -> zx_handle_t {
    let mut copy = 0;
    let rights = basic_info(handle).rights & !right;
    // SAFETY: the pointer is to a local.
    assert_eq!(unsafe { zx_handle_duplicate(handle, rights, &mut copy) }, ZX_OK);
    copy
}

#[test]
fn a_region_ends_with_those_around_it() {
    let (outer, base) = region(CAN_ALL, 8 * PAGE);
    let (middle, _) = allocate(outer, CAN_ALL, 0, 4 * PAGE).unwrap();
    let (inner, address) = allocate(middle, CAN_ALL, 0, PAGE).unwrap();
    assert_eq!(address, base);
    let vmo = vmo(PAGE as u64, 0);
    assert_eq!(map(inner, READ, 0, vmo, PAGE), Ok(base));
    // Not a part of a region, and not without the right to.
    assert_eq!(unmap(outer, base, PAGE), ZX_ERR_INVALID_ARGS);
    let reduced = without(outer, ZX_RIGHT_OP_CHILDREN);
    assert_eq!(unmap(reduced, base, 4 * PAGE), ZX_ERR_INVALID_ARGS);
    assert_eq!(protect(reduced, READ, base, PAGE), ZX_ERR_INVALID_ARGS);
    assert_eq!(destroy(reduced), ZX_ERR_ACCESS_DENIED);
    let overwrite = READ | ZX_VM_SPECIFIC_OVERWRITE;
    assert_eq!(map(outer, overwrite, 0, vmo, PAGE), Err(ZX_ERR_INVALID_ARGS));
    assert_eq!(unmap(outer, base, 4 * PAGE), ZX_OK);
    for ended in [middle, inner] {
        assert_eq!(map(ended, READ, 0, vmo, PAGE), Err(ZX_ERR_BAD_STATE));
        assert_eq!(unmap(ended, base, PAGE), ZX_ERR_BAD_STATE);
        assert_eq!(protect(ended, READ, base, PAGE), ZX_ERR_BAD_STATE);
        assert_eq!(allocate(ended, CAN_READ, 0, PAGE), Err(ZX_ERR_BAD_STATE));
        assert_eq!(destroy(ended), ZX_ERR_BAD_STATE);
    }
    // The place is free again.
    assert_eq!(map(outer, READ | ZX_VM_SPECIFIC, 0, vmo, PAGE), Ok(base));
    let (again, address) = allocate(outer, CAN_READ, 0, 2 * PAGE).unwrap();
    assert_eq!(address, base + PAGE);
    assert_eq!(destroy(outer), ZX_OK);
    assert_eq!(map(again, READ, 0, vmo, PAGE), Err(ZX_ERR_BAD_STATE));
    [outer, middle, inner, again, reduced, vmo].into_iter().for_each(close);
}

#[test]
fn a_region_stays_where_it_is_without_handles() {
    let (outer, base) = region(CAN_ALL, 4 * PAGE);
    let (inner, _) = allocate(outer, CAN_READ, 0, PAGE).unwrap();
    let vmo = vmo(PAGE as u64, 0);
    assert_eq!(map(inner, READ, 0, vmo, PAGE), Ok(base));
    close(inner);
    let specific = READ | ZX_VM_SPECIFIC;
    assert_eq!(map(outer, specific, 0, vmo, PAGE), Err(ZX_ERR_ALREADY_EXISTS));
    assert_eq!(protect(outer, READ, base, PAGE), ZX_OK);
    assert_eq!(destroy(outer), ZX_OK);
    [outer, vmo].into_iter().for_each(close);
}

#[test]
fn permissions_never_grow_beyond_what_was_given() {
    let (region, base) = region(CAN_ALL, 4 * PAGE);
    let vmo = vmo(2 * PAGE as u64, 0);
    let readable = without(vmo, ZX_RIGHT_WRITE);
    assert_eq!(map(region, READ, 0, readable, PAGE), Ok(base));
    assert_eq!(protect(region, READ_WRITE, base, PAGE), ZX_ERR_ACCESS_DENIED);
    assert_eq!(map(region, READ, 0, vmo, PAGE), Ok(base + PAGE));
    // Only all of it: a part would be readable only, and another is not mapped.
    assert_eq!(protect(region, READ_WRITE, base, 2 * PAGE), ZX_ERR_ACCESS_DENIED);
    assert_eq!(protect(region, READ_WRITE, base + PAGE, 2 * PAGE), ZX_ERR_NOT_FOUND);
    let reader = without(region, ZX_RIGHT_WRITE);
    assert_eq!(protect(reader, READ_WRITE, base + PAGE, PAGE), ZX_ERR_ACCESS_DENIED);
    assert_eq!(map(reader, READ_WRITE, 0, vmo, PAGE), Err(ZX_ERR_ACCESS_DENIED));
    assert_eq!(protect(region, READ_WRITE, base + PAGE, PAGE), ZX_OK);
    // The two halves of a mapping that was cut remember.
    assert_eq!(map(region, READ | ZX_VM_SPECIFIC_OVERWRITE, 0, readable, 2 * PAGE), Ok(base));
    assert_eq!(unmap(region, base, PAGE), ZX_OK);
    assert_eq!(protect(region, READ_WRITE, base + PAGE, PAGE), ZX_ERR_ACCESS_DENIED);
    assert_eq!(destroy(region), ZX_OK);
    [region, vmo, readable, reader].into_iter().for_each(close);
}

#[test]
fn regions_are_not_endlessly_deep() {
    let (outermost, _) = region(CAN_ALL, PAGE);
    let mut regions = vec![outermost];
    let refused = loop {
        match allocate(*regions.last().unwrap(), CAN_ALL, 0, PAGE) {
            Ok((region, _)) => regions.push(region),
            Err(status) => break status,
        }
    };
    assert_eq!((refused, regions.len()), (ZX_ERR_NO_RESOURCES, MAX_DEPTH as usize));
    assert_eq!(destroy(outermost), ZX_OK);
    assert_eq!(destroy(*regions.last().unwrap()), ZX_ERR_BAD_STATE);
    regions.into_iter().for_each(close);
}
