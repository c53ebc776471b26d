//! The process's handle table.

use crate::object::{Kind, Object};
use crate::rights::reduce;
use crate::status::{ACCESS_DENIED, BAD_HANDLE, INVALID_ARGS, NO_RESOURCES, Result, answer, out};
use fuchsia_zircon_types::*;
use rustix::process::{Resource, getrlimit, setrlimit};
use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// The most handles a process can have, as on Zircon.
const MAX_HANDLES: usize = 1 << INDEX_BITS;
const INDEX_BITS: u32 = 18;
const GENERATIONS: u32 = (1 << (30 - INDEX_BITS)) - 1;

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

struct Slot {
    /// Changes with each use of the slot, so that a stale handle value is not a live one for a long time.
    generation: u32,
    held: Option<Held>,
}

struct Table {
    slots: Vec<Slot>,
    free: Vec<u32>,
}

static EPOCH: AtomicU64 = AtomicU64::new(0);

static TABLE: RwLock<Table> = RwLock::new(Table { slots: Vec::new(), free: Vec::new() });

fn read() -> RwLockReadGuard<'static, Table> {
    TABLE.read().unwrap_or_else(PoisonError::into_inner)
}

fn write() -> RwLockWriteGuard<'static, Table> {
    TABLE.write().unwrap_or_else(PoisonError::into_inner)
}

/// Generation in the high bits, index in the middle, the two low bits set as on Zircon. Generations stop short of
/// all ones, so no handle is `FIDL_HANDLE_PRESENT` (0xffffffff).
fn value(index: u32, generation: u32) -> zx_handle_t {
    (generation << (INDEX_BITS + 2)) | (index << 2) | 3
}

impl Table {
    fn slot(&self, handle: zx_handle_t) -> Option<usize> {
        let index = (handle >> 2) & (MAX_HANDLES as u32 - 1);
        let slot = self.slots.get(index as usize)?;
        (slot.held.is_some() && value(index, slot.generation) == handle).then_some(index as usize)
    }

    fn insert(&mut self, held: Held) -> Result<zx_handle_t> {
        let index = match self.free.pop() {
            Some(index) => index,
            None if self.slots.len() == MAX_HANDLES => return Err(NO_RESOURCES),
            None => {
                if self.slots.is_empty() {
                    raise_descriptor_limit();
                }
                self.slots.push(Slot { generation: 0, held: None });
                self.slots.len() as u32 - 1
            }
        };
        held.object.handles.fetch_add(1, Ordering::SeqCst);
        let slot = &mut self.slots[index as usize];
        slot.held = Some(held);
        Ok(value(index, slot.generation))
    }

    fn take(&mut self, handle: zx_handle_t) -> Option<Held> {
        let index = self.slot(handle)?;
        EPOCH.fetch_add(1, Ordering::SeqCst);
        let slot = &mut self.slots[index];
        slot.generation = (slot.generation + 1) % GENERATIONS;
        self.free.push(index as u32);
        slot.held.take()
    }
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
    write().insert(Held { object, rights })
}

/// Gives two new objects that are each other's peers handles, or neither.
pub(crate) fn insert_peers(first: Kind, second: Kind, rights: zx_rights_t) -> Result<(u32, u32)> {
    let (koid0, koid1) = (crate::koid::allocate(), crate::koid::allocate());
    let first = Object::with_koid(first, koid0, koid1);
    let second = Object::with_koid(second, koid1, koid0);
    let mut table = write();
    let first = table.insert(Held { object: first, rights })?;
    match table.insert(Held { object: second, rights }) {
        Ok(second) => Ok((first, second)),
        Err(status) => {
            let held = table.take(first);
            drop(table);
            if let Some(held) = held {
                held.object.release(first);
            }
            Err(status)
        }
    }
}

/// What a handle refers to.
pub(crate) fn get(handle: zx_handle_t) -> Result<Held> {
    let table = read();
    table.slot(handle).and_then(|index| table.slots[index].held.clone()).ok_or(BAD_HANDLE)
}

/// How often a handle was taken out of the table: as long as this is the same, a valid handle is still valid.
pub(crate) fn epoch() -> u64 {
    EPOCH.load(Ordering::SeqCst)
}

/// Whether the handle is in use.
pub(crate) fn is_valid(handle: zx_handle_t) -> bool {
    read().slot(handle).is_some()
}

/// Takes a handle out of the process: nobody here can use it any more.
pub(crate) fn take(handle: zx_handle_t) -> Result<Held> {
    let held = write().take(handle).ok_or(BAD_HANDLE)?;
    held.object.release(handle);
    Ok(held)
}

/// Handles of this process, for leak checks.
pub(crate) fn count() -> usize {
    let table = read();
    table.slots.len() - table.free.len()
}

fn close(handle: zx_handle_t) -> Result<()> {
    if handle == ZX_HANDLE_INVALID {
        return Ok(());
    }
    let held = write().take(handle).ok_or(BAD_HANDLE)?;
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
        let mut table = write();
        let held = table.take(handle).ok_or(BAD_HANDLE)?;
        let rights = reduce(held.rights, rights);
        let replaced = match rights {
            Ok(_) if out_handle.is_null() => Err(INVALID_ARGS),
            Ok(rights) => table.insert(Held { object: held.object.clone(), rights }),
            Err(status) => Err(status),
        };
        drop(table);
        held.object.release(handle);
        let replaced = replaced?;
        // SAFETY: not null, so valid for writing by the caller's promise.
        unsafe { out_handle.write(replaced) };
        Ok(())
    })())
}
