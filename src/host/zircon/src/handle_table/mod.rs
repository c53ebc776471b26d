//! The process's handle table.

mod slots;
#[cfg(test)]
mod slots_test;

pub(crate) use slots::Borrowed;

use crate::object::{Kind, Object};
use crate::rights::reduce;
use crate::status::{ACCESS_DENIED, BAD_HANDLE, INVALID_ARGS, NO_RESOURCES, Result, answer, out};
use fuchsia_zircon_types::*;
use rustix::process::{Resource, getrlimit, setrlimit};
use slots::{INDEX_BITS, Slots};
use std::ops::Deref;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Once};

/// An object with the rights that a handle gives to it.
#[derive(Clone)]
pub(crate) struct Held {
    pub(crate) object: Arc<Object>,
    pub(crate) rights: zx_rights_t,
}

impl Held {
    /// Fails with `ZX_ERR_ACCESS_DENIED` when any of `rights` is missing.
    pub(crate) fn require(&self, rights: zx_rights_t) -> Result<()> {
        if self.rights & rights == rights { Ok(()) } else { Err(ACCESS_DENIED) }
    }
}

impl Deref for Held {
    type Target = Arc<Object>;

    fn deref(&self) -> &Arc<Object> {
        &self.object
    }
}

static SLOTS: Slots = Slots::new();

/// Generation in the high bits, index in the middle, the two low bits set as on Zircon. Generations stop short of
/// all ones, so no handle is `FIDL_HANDLE_PRESENT` (0xffffffff).
fn value(index: u32, generation: u32) -> zx_handle_t {
    (generation << (INDEX_BITS + 2)) | (index << 2) | 3
}

/// The index and generation of a handle, if it is one at all.
#[inline]
fn place(handle: zx_handle_t) -> Option<(u32, u32)> {
    let place = ((handle >> 2) & ((1 << INDEX_BITS) - 1), handle >> (INDEX_BITS + 2));
    (handle & 3 == 3).then_some(place)
}

/// A handle costs up to three file descriptors, and the usual soft limit is for programs that call `select`.
fn raise_descriptor_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // Without it the process runs into `ZX_ERR_NO_RESOURCES` sooner.
    let _ = setrlimit(Resource::Nofile, limit);
}

/// Gives an object a handle. The object's last use ends here when the table is full.
pub(crate) fn insert(object: Arc<Object>, rights: zx_rights_t) -> Result<zx_handle_t> {
    static FIRST: Once = Once::new();
    FIRST.call_once(raise_descriptor_limit);
    object.handles.fetch_add(1, Ordering::SeqCst);
    match SLOTS.insert(Held { object, rights }) {
        Ok((index, generation)) => Ok(value(index, generation)),
        Err(held) => {
            held.object.handles.fetch_sub(1, Ordering::SeqCst);
            Err(NO_RESOURCES)
        }
    }
}

/// Gives two new objects that are each other's peers handles, or neither.
pub(crate) fn insert_peers(first: Kind, second: Kind, rights: zx_rights_t) -> Result<(u32, u32)> {
    let (koid0, koid1) = (crate::koid::allocate(), crate::koid::allocate());
    let first = Object::with_koid(first, koid0, koid1);
    let second = Object::with_koid(second, koid1, koid0);
    let first = insert(first, rights)?;
    match insert(second, rights) {
        Ok(second) => Ok((first, second)),
        Err(status) => {
            let _ = take(first);
            Err(status)
        }
    }
}

/// What a handle refers to, for the time of a call.
#[inline]
pub(crate) fn borrow(handle: zx_handle_t) -> Result<Borrowed<'static>> {
    place(handle).and_then(|(index, generation)| SLOTS.borrow(index, generation)).ok_or(BAD_HANDLE)
}

/// What a handle refers to, to be kept.
pub(crate) fn get(handle: zx_handle_t) -> Result<Held> {
    borrow(handle).map(|held| held.clone())
}

/// Whether the handle is in use.
#[inline]
pub(crate) fn is_valid(handle: zx_handle_t) -> bool {
    place(handle).is_some_and(|(index, generation)| SLOTS.is_live(index, generation))
}

fn remove(handle: zx_handle_t) -> Result<Held> {
    place(handle).and_then(|(index, generation)| SLOTS.take(index, generation)).ok_or(BAD_HANDLE)
}

/// Takes a handle out of the process: nobody here can use it any more.
pub(crate) fn take(handle: zx_handle_t) -> Result<Held> {
    let held = remove(handle)?;
    held.object.release(handle);
    Ok(held)
}

/// Handles of this process, for leak checks.
pub(crate) fn count() -> usize {
    SLOTS.len()
}

fn close(handle: zx_handle_t) -> Result<()> {
    if handle == ZX_HANDLE_INVALID {
        return Ok(());
    }
    let held = remove(handle)?;
    if held.object.release(handle) {
        held.object.retire();
    }
    Ok(())
}

/// See the Zircon documentation of `zx_handle_close`.
///
/// # Safety
/// Always safe; unsafe to have the vDSO's signature.
pub unsafe fn zx_handle_close(handle: zx_handle_t) -> zx_status_t {
    answer(close(handle))
}

/// See the Zircon documentation of `zx_handle_close_many`. Every valid handle is closed, even after a bad one.
///
/// # Safety
/// `handles` is valid for reading `num_handles` handles.
pub unsafe fn zx_handle_close_many(handles: *const zx_handle_t, num_handles: usize) -> zx_status_t {
    let mut result = Ok(());
    if num_handles != 0 && handles.is_null() {
        return ZX_ERR_INVALID_ARGS;
    }
    for index in 0..num_handles {
        // SAFETY: the caller's promise.
        result = result.and(close(unsafe { handles.add(index).read() }));
    }
    answer(result)
}

/// See the Zircon documentation of `zx_handle_duplicate`.
///
/// # Safety
/// `out_handle` is null or valid for writing.
pub unsafe fn zx_handle_duplicate(
    handle: zx_handle_t,
    rights: zx_rights_t,
    out_handle: *mut zx_handle_t,
) -> zx_status_t {
    answer((|| {
        // SAFETY: the caller's promise.
        let out_handle = unsafe { out(out_handle)? };
        let held = get(handle)?;
        held.require(ZX_RIGHT_DUPLICATE)?;
        let rights = reduce(held.rights, rights)?;
        out_handle.set(insert(held.object, rights)?);
        Ok(())
    })())
}

/// See the Zircon documentation of `zx_handle_replace`. The old handle is gone even when the call fails, unless it
/// was no handle.
///
/// # Safety
/// `out_handle` is null or valid for writing.
pub unsafe fn zx_handle_replace(
    handle: zx_handle_t,
    rights: zx_rights_t,
    out_handle: *mut zx_handle_t,
) -> zx_status_t {
    answer((|| {
        let held = remove(handle)?;
        let replaced = match reduce(held.rights, rights) {
            Ok(_) if out_handle.is_null() => Err(INVALID_ARGS),
            Ok(rights) => insert(held.object.clone(), rights),
            Err(status) => Err(status),
        };
        held.object.release(handle);
        let replaced = replaced?;
        // SAFETY: not null, so valid for writing by the caller's promise.
        unsafe { out_handle.write(replaced) };
        Ok(())
    })())
}
