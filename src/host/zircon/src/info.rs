//! `zx_object_get_info` and properties.

use crate::handle_table::{Held, get, is_valid};
use crate::object::{Kind, lock};
use crate::status::{
    BAD_HANDLE, BUFFER_TOO_SMALL, INVALID_ARGS, NOT_SUPPORTED, Result, WRONG_TYPE, answer, bytes,
    set_optional,
};
use fuchsia_zircon_types::*;
use std::sync::atomic::Ordering;

/// Where the answer to a query goes.
struct Query {
    buffer: *mut u8,
    size: usize,
    actual: *mut usize,
    avail: *mut usize,
}

impl Query {
    /// Stores the one record that the topic has.
    ///
    /// # Safety
    /// The query's pointers are null or valid for writing what they stand for.
    unsafe fn answer<T>(&self, record: T) -> Result<()> {
        let fits = self.size >= size_of::<T>() && !self.buffer.is_null();
        // SAFETY: the caller's promise; the record fits.
        unsafe {
            set_optional(self.avail, 1);
            set_optional(self.actual, usize::from(fits));
            if !fits {
                return Err(BUFFER_TOO_SMALL);
            }
            self.buffer.cast::<T>().write_unaligned(record);
        }
        Ok(())
    }
}

/// # Safety
/// The query's pointers are null or valid for writing what they stand for.
unsafe fn get_info(handle: zx_handle_t, topic: u32, query: &Query) -> Result<()> {
    if topic == ZX_INFO_HANDLE_VALID {
        return if is_valid(handle) { Ok(()) } else { Err(BAD_HANDLE) };
    }
    let held = get(handle)?;
    if !matches!(topic, ZX_INFO_HANDLE_BASIC | ZX_INFO_VMO) {
        held.require(ZX_RIGHT_INSPECT)?;
    }
    // SAFETY: the caller's promise, in all of them.
    unsafe {
        match topic {
            ZX_INFO_HANDLE_BASIC => query.answer(zx_info_handle_basic_t {
                koid: held.koid,
                rights: held.rights,
                type_: held.object_type(),
                related_koid: held.related,
                reserved: 0,
            }),
            ZX_INFO_HANDLE_COUNT => query.answer(zx_info_handle_count_t {
                handle_count: held.handles.load(Ordering::SeqCst),
            }),
            ZX_INFO_PROCESS => query.answer(held.process()?.info()?),
            ZX_INFO_JOB => query.answer(held.job()?.info()),
            ZX_INFO_SOCKET => query.answer(held.socket()?.info()),
            ZX_INFO_VMO => query.answer(vmo_info(&held)?),
            ZX_INFO_VMAR => query.answer(held.vmar()?.info()),
            ZX_INFO_RESOURCE => query.answer(held.resource()?.info()),
            _ => Err(NOT_SUPPORTED),
        }
    }
}

fn vmo_info(held: &Held) -> Result<zx_info_vmo_t> {
    let vmo = held.vmo()?;
    let committed = vmo.committed_bytes();
    let mut info = zx_info_vmo_t::default();
    info.koid = held.koid;
    info.name = *lock(&held.name);
    info.size_bytes = vmo.size()?;
    info.parent_koid = held.related;
    info.num_children = vmo.num_children();
    info.share_count = 1;
    info.flags = vmo.info_flags();
    info.committed_bytes = committed;
    info.handle_rights = held.rights;
    info.cache_policy = ZX_CACHE_POLICY_CACHED;
    info.populated_bytes = committed;
    Ok(info)
}

/// See the Zircon documentation of `zx_object_get_info`. Topics: HANDLE_VALID, HANDLE_BASIC, HANDLE_COUNT (handles of this
/// process), PROCESS, JOB, SOCKET, VMO, VMAR, RESOURCE; others are not supported.
///
/// # Safety
/// `buffer` is valid for writing `buffer_size` bytes; `actual` and `avail` are null or valid for writing.
pub unsafe fn zx_object_get_info(
    handle: zx_handle_t,
    topic: u32,
    buffer: *mut u8,
    buffer_size: usize,
    actual: *mut usize,
    avail: *mut usize,
) -> zx_status_t {
    let query = Query { buffer, size: buffer_size, actual, avail };
    // SAFETY: the caller's promise.
    answer(unsafe { get_info(handle, topic, &query) })
}

fn get_property(held: &Held, property: u32, value: &mut [u8]) -> Result<()> {
    let number = match (property, &held.kind) {
        (ZX_PROP_NAME, _) => {
            let name = *lock(&held.name);
            value.get_mut(..name.len()).ok_or(BUFFER_TOO_SMALL)?.copy_from_slice(&name);
            return Ok(());
        }
        (ZX_PROP_VMO_CONTENT_SIZE, Kind::Vmo(vmo)) => vmo.content_size(),
        (ZX_PROP_SOCKET_RX_THRESHOLD | ZX_PROP_SOCKET_TX_THRESHOLD, Kind::Socket(socket)) => {
            socket.threshold(property).load(Ordering::SeqCst)
        }
        (ZX_PROP_CHANNEL_TX_MSG_MAX, Kind::Channel(_)) => crate::channel::MAX_PENDING as u64,
        (
            ZX_PROP_VMO_CONTENT_SIZE
            | ZX_PROP_SOCKET_RX_THRESHOLD
            | ZX_PROP_SOCKET_TX_THRESHOLD
            | ZX_PROP_CHANNEL_TX_MSG_MAX,
            _,
        ) => return Err(WRONG_TYPE),
        _ => return Err(NOT_SUPPORTED),
    };
    value.get_mut(..8).ok_or(BUFFER_TOO_SMALL)?.copy_from_slice(&number.to_ne_bytes());
    Ok(())
}

fn set_property(held: &Held, property: u32, value: &[u8]) -> Result<()> {
    let number =
        || value.first_chunk().map(|bytes| u64::from_ne_bytes(*bytes)).ok_or(BUFFER_TOO_SMALL);
    match (property, &held.kind) {
        (ZX_PROP_NAME, _) => {
            let mut name = [0; ZX_MAX_NAME_LEN];
            let len = value
                .iter()
                .position(|&byte| byte == 0)
                .unwrap_or(value.len())
                .min(ZX_MAX_NAME_LEN - 1);
            name[..len].copy_from_slice(&value[..len]);
            *lock(&held.name) = name;
            Ok(())
        }
        (ZX_PROP_VMO_CONTENT_SIZE, Kind::Vmo(vmo)) => {
            held.require(ZX_RIGHT_WRITE)?;
            vmo.set_content_size(number()?)
        }
        (ZX_PROP_SOCKET_RX_THRESHOLD | ZX_PROP_SOCKET_TX_THRESHOLD, Kind::Socket(socket)) => {
            let threshold = number()?;
            socket.check_threshold(threshold)?;
            socket.threshold(property).store(threshold, Ordering::SeqCst);
            held.notify();
            Ok(())
        }
        (
            ZX_PROP_VMO_CONTENT_SIZE | ZX_PROP_SOCKET_RX_THRESHOLD | ZX_PROP_SOCKET_TX_THRESHOLD,
            _,
        ) => Err(WRONG_TYPE),
        _ => Err(NOT_SUPPORTED),
    }
}

/// See the Zircon documentation of `zx_object_get_property`. Properties: NAME (of this process's view of the object),
/// VMO_CONTENT_SIZE, SOCKET_RX_THRESHOLD, SOCKET_TX_THRESHOLD, CHANNEL_TX_MSG_MAX.
///
/// # Safety
/// `value` is valid for writing `value_size` bytes.
pub unsafe fn zx_object_get_property(
    handle: zx_handle_t,
    property: u32,
    value: *mut u8,
    value_size: usize,
) -> zx_status_t {
    answer((|| {
        if value.is_null() {
            return Err(INVALID_ARGS);
        }
        let held = get(handle)?;
        held.require(ZX_RIGHT_GET_PROPERTY)?;
        // No property is longer than a name.
        let mut property_value = [0; ZX_MAX_NAME_LEN];
        let size = value_size.min(ZX_MAX_NAME_LEN);
        get_property(&held, property, &mut property_value[..size])?;
        let length = if property == ZX_PROP_NAME { ZX_MAX_NAME_LEN } else { 8 };
        // SAFETY: the caller's promise; `get_property` made sure that the length fits.
        unsafe { std::ptr::copy_nonoverlapping(property_value.as_ptr(), value, length) };
        Ok(())
    })())
}

/// See the Zircon documentation of `zx_object_set_property`, and [`zx_object_get_property`].
///
/// # Safety
/// `value` is valid for reading `value_size` bytes.
pub unsafe fn zx_object_set_property(
    handle: zx_handle_t,
    property: u32,
    value: *const u8,
    value_size: usize,
) -> zx_status_t {
    answer((|| {
        // SAFETY: the caller's promise.
        let value = unsafe { bytes(value, value_size)? };
        let held = get(handle)?;
        held.require(ZX_RIGHT_SET_PROPERTY)?;
        set_property(&held, property, value)
    })())
}

/// See the Zircon documentation of `zx_object_get_child`. Children are not listed on Linux: `ZX_ERR_NOT_SUPPORTED`.
///
/// # Safety
/// Always safe, because nothing is written; unsafe to have the vDSO's signature.
pub unsafe fn zx_object_get_child(
    _handle: zx_handle_t,
    _koid: u64,
    _rights: zx_rights_t,
    _out_handle: *mut zx_handle_t,
) -> zx_status_t {
    ZX_ERR_NOT_SUPPORTED
}
