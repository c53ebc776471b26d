//! The `zx_channel_*` calls.

use super::inbound::{Delivered, Destination, ReadError};
use super::message::check_sizes;
use super::{Channel, Outgoing};
use crate::handle_table::{Held, borrow, get, insert, insert_peers, take};
use crate::object::Kind;
use crate::rights;
use crate::status::{
    ACCESS_DENIED, BUFFER_TOO_SMALL, INVALID_ARGS, NOT_SUPPORTED, Result, WRONG_TYPE, answer,
    bytes, out, set_optional,
};
use crate::transfer::prepare;
use fuchsia_zircon_types::*;

const READ_MAY_DISCARD: u32 = 1;

/// See the Zircon documentation of `zx_channel_create`.
///
/// # Safety
/// `out0` and `out1` are null or valid for writing.
pub unsafe fn zx_channel_create(
    options: u32,
    out0: *mut zx_handle_t,
    out1: *mut zx_handle_t,
) -> zx_status_t {
    answer((|| {
        // SAFETY: the caller's promise.
        let (out0, out1) = unsafe { (out(out0)?, out(out1)?) };
        if options != 0 {
            return Err(INVALID_ARGS);
        }
        let (first, second) = Channel::pair()?;
        let (first, second) =
            insert_peers(Kind::Channel(first), Kind::Channel(second), rights::CHANNEL)?;
        out0.set(first);
        out1.set(second);
        Ok(())
    })())
}

/// The handles of a message; all are dealt with, even when one of them cannot go.
#[cold]
fn gather(count: usize, mut next: impl FnMut(usize) -> Result<Held>) -> Result<Vec<Held>> {
    let mut taken = Vec::with_capacity(count.min(64));
    let mut result = Ok(());
    for index in 0..count {
        match next(index) {
            Ok(held) => taken.push(held),
            Err(status) => result = result.and(Err(status)),
        }
    }
    result.map(|()| taken)
}

/// Takes handles out of the table for a message.
///
/// # Safety
/// `handles` is valid for reading `count` handles.
unsafe fn take_handles(
    channel: zx_handle_t,
    handles: *const zx_handle_t,
    count: usize,
) -> Result<Vec<Held>> {
    if count == 0 {
        return Ok(Vec::new());
    }
    if handles.is_null() {
        return Err(INVALID_ARGS);
    }
    gather(count, |index| {
        // SAFETY: the caller's promise.
        let handle = unsafe { handles.add(index).read() };
        if handle == channel {
            return Err(NOT_SUPPORTED);
        }
        prepare(sendable(take(handle)?, ZX_OBJ_TYPE_NONE)?)
    })
}

fn sendable(held: Held, expected: zx_obj_type_t) -> Result<Held> {
    if expected != ZX_OBJ_TYPE_NONE && held.object_type() != expected {
        return Err(WRONG_TYPE);
    }
    held.require(ZX_RIGHT_TRANSFER)?;
    Ok(held)
}

/// Applies one handle disposition.
fn dispose(channel: zx_handle_t, disposition: &zx_handle_disposition_t) -> Result<Held> {
    if disposition.handle == channel {
        return Err(NOT_SUPPORTED);
    }
    let held = match disposition.operation {
        ZX_HANDLE_OP_MOVE => take(disposition.handle)?,
        ZX_HANDLE_OP_DUPLICATE => {
            let held = get(disposition.handle)?;
            if held.rights & ZX_RIGHT_DUPLICATE == 0 {
                return Err(ACCESS_DENIED);
            }
            held
        }
        _ => return Err(INVALID_ARGS),
    };
    let held = sendable(held, disposition.type_)?;
    let rights = rights::reduce(held.rights, disposition.rights)?;
    prepare(Held { object: held.object, rights })
}

/// Takes or duplicates handles as their dispositions say, and says in each what came of it.
///
/// # Safety
/// `handles` is valid for reading and writing `count` dispositions.
unsafe fn dispose_handles(
    channel: zx_handle_t,
    handles: *mut zx_handle_disposition_t,
    count: usize,
) -> Result<Vec<Held>> {
    if count == 0 {
        return Ok(Vec::new());
    }
    if handles.is_null() {
        return Err(INVALID_ARGS);
    }
    gather(count, |index| {
        // SAFETY: the caller's promise.
        let disposition = unsafe { &mut *handles.add(index) };
        let disposed = dispose(channel, disposition);
        disposition.result = answer(disposed.as_ref().map(drop).map_err(|status| *status));
        disposed
    })
}

/// Writes a message; `handles` takes its `count` handles from the caller, which is done whatever comes of the call.
#[inline]
fn write(
    handle: zx_handle_t,
    options: u32,
    bytes: Result<&[u8]>,
    count: u32,
    handles: impl FnOnce() -> Result<Vec<Held>>,
) -> Result<()> {
    let handles = if count == 0 { None } else { Some(handles()) };
    let held = borrow(handle)?;
    let channel = held.channel()?;
    held.require(ZX_RIGHT_WRITE)?;
    if options != 0 {
        return Err(INVALID_ARGS);
    }
    let bytes = bytes?;
    check_sizes(bytes.len(), count as usize)?;
    match handles {
        None => channel.write_bytes(&held, None, bytes),
        Some(handles) => channel.write(&held, Outgoing::new(bytes, handles?)),
    }
}

/// See the Zircon documentation of `zx_channel_write`. Gives `ZX_ERR_SHOULD_WAIT` when 3500 messages wait because the
/// peer does not read; Zircon kills a process that lets it come to that. A vCPU or VMAR of another process
/// that is sent on with fewer rights takes a call to that process, which may have to be waited for.
///
/// # Safety
/// `wr_bytes` and `handles` are valid for reading as many items as they are said to have.
pub unsafe fn zx_channel_write(
    handle: zx_handle_t,
    options: u32,
    wr_bytes: *const u8,
    num_bytes: u32,
    handles: *const zx_handle_t,
    num_handles: u32,
) -> zx_status_t {
    // SAFETY: the caller's promise.
    let bytes = unsafe { bytes(wr_bytes, num_bytes as usize) };
    answer(write(handle, options, bytes, num_handles, || {
        // SAFETY: the caller's promise.
        unsafe { take_handles(handle, handles, num_handles as usize) }
    }))
}

/// See the Zircon documentation of `zx_channel_write_etc`, and [`zx_channel_write`].
///
/// # Safety
/// `wr_bytes` is valid for reading, and `handles` for reading and writing, as many items as they are said to have.
pub unsafe fn zx_channel_write_etc(
    handle: zx_handle_t,
    options: u32,
    wr_bytes: *const u8,
    num_bytes: u32,
    handles: *mut zx_handle_disposition_t,
    num_handles: u32,
) -> zx_status_t {
    // SAFETY: the caller's promise.
    let bytes = unsafe { bytes(wr_bytes, num_bytes as usize) };
    answer(write(handle, options, bytes, num_handles, || {
        // SAFETY: the caller's promise.
        unsafe { dispose_handles(handle, handles, num_handles as usize) }
    }))
}

/// Puts received objects into the handle table and tells about each; none stays when there is no room for all.
#[cold]
fn deliver_handles(
    handles: Box<[Held]>,
    mut tell: impl FnMut(usize, zx_handle_info_t),
) -> Result<()> {
    let mut inserted = Vec::with_capacity(handles.len());
    for (index, Held { object, rights }) in handles.into_iter().enumerate() {
        let ty = object.object_type();
        match insert(object, rights) {
            Ok(handle) => {
                inserted.push(handle);
                tell(index, zx_handle_info_t { handle, ty, rights, unused: 0 });
            }
            Err(status) => {
                for handle in inserted {
                    let _ = take(handle);
                }
                return Err(status);
            }
        }
    }
    Ok(())
}

/// A reader's buffers, apart from where its handles go.
struct ReadBuffers {
    bytes: *mut u8,
    num_bytes: u32,
    num_handles: u32,
    actual_bytes: *mut u32,
    actual_handles: *mut u32,
}

impl ReadBuffers {
    /// Where the bytes go.
    ///
    /// # Safety
    /// The pointers are null or valid for writing what they stand for, while the result is in use.
    unsafe fn destination(&self) -> Result<Destination> {
        if self.bytes.is_null() && self.num_bytes != 0 {
            return Err(INVALID_ARGS);
        }
        // SAFETY: the caller's promise.
        Ok(unsafe {
            Destination::new(self.bytes, self.num_bytes as usize, self.num_handles as usize)
        })
    }

    /// Tells what came of a read.
    ///
    /// # Safety
    /// The pointers are null or valid for writing what they stand for.
    unsafe fn report(
        &self,
        read: std::result::Result<Delivered, ReadError>,
        tell: impl FnMut(usize, zx_handle_info_t),
    ) -> Result<()> {
        let tell_sizes = |bytes: usize, handles: usize| {
            // SAFETY: the caller's promise.
            unsafe {
                set_optional(self.actual_bytes, bytes as u32);
                set_optional(self.actual_handles, handles as u32);
            }
        };
        match read {
            Ok(Delivered { bytes, handles: None }) => {
                tell_sizes(bytes, 0);
                Ok(())
            }
            Ok(Delivered { bytes, handles: Some(handles) }) => {
                tell_sizes(bytes, handles.len());
                deliver_handles(handles, tell)
            }
            Err(ReadError::TooSmall { bytes, handles }) => {
                tell_sizes(bytes, handles);
                Err(BUFFER_TOO_SMALL)
            }
            Err(ReadError::Status(status)) => Err(status),
        }
    }
}

/// # Safety
/// The pointers in `buffers` are null or valid for writing what they stand for.
unsafe fn read(
    handle: zx_handle_t,
    options: u32,
    buffers: &ReadBuffers,
    tell: impl FnMut(usize, zx_handle_info_t),
) -> Result<()> {
    let held = borrow(handle)?;
    let channel = held.channel()?;
    held.require(ZX_RIGHT_READ)?;
    if options & !READ_MAY_DISCARD != 0 {
        return Err(INVALID_ARGS);
    }
    // SAFETY: the caller's promise.
    unsafe {
        let destination = buffers.destination()?;
        buffers.report(channel.read(&destination, options & READ_MAY_DISCARD != 0), tell)
    }
}

/// See the Zircon documentation of `zx_channel_read`. In a `bytes` buffer of 64 KiB or more, what lies behind the
/// message may be overwritten.
///
/// # Safety
/// The pointers are null or valid for writing what they stand for.
#[allow(clippy::too_many_arguments, reason = "the system call has them")]
pub unsafe fn zx_channel_read(
    handle: zx_handle_t,
    options: u32,
    rd_bytes: *mut u8,
    handles: *mut zx_handle_t,
    num_bytes: u32,
    num_handles: u32,
    actual_bytes: *mut u32,
    actual_handles: *mut u32,
) -> zx_status_t {
    let num_handles = if handles.is_null() { 0 } else { num_handles };
    let buffers =
        ReadBuffers { bytes: rd_bytes, num_bytes, num_handles, actual_bytes, actual_handles };
    // SAFETY: the caller's promise; `index` is below `num_handles`.
    let tell = |index, info: zx_handle_info_t| unsafe { handles.add(index).write(info.handle) };
    // SAFETY: the caller's promise.
    answer(unsafe { read(handle, options, &buffers, tell) })
}

/// See the Zircon documentation of `zx_channel_read_etc`, and [`zx_channel_read`].
///
/// # Safety
/// The pointers are null or valid for writing what they stand for.
#[allow(clippy::too_many_arguments, reason = "the system call has them")]
pub unsafe fn zx_channel_read_etc(
    handle: zx_handle_t,
    options: u32,
    rd_bytes: *mut u8,
    handles: *mut zx_handle_info_t,
    num_bytes: u32,
    num_handles: u32,
    actual_bytes: *mut u32,
    actual_handles: *mut u32,
) -> zx_status_t {
    let num_handles = if handles.is_null() { 0 } else { num_handles };
    let buffers =
        ReadBuffers { bytes: rd_bytes, num_bytes, num_handles, actual_bytes, actual_handles };
    // SAFETY: the caller's promise; `index` is below `num_handles`.
    let tell = |index, info| unsafe { handles.add(index).write(info) };
    // SAFETY: the caller's promise.
    answer(unsafe { read(handle, options, &buffers, tell) })
}

/// What is to be called.
struct Call<'a> {
    handle: zx_handle_t,
    options: u32,
    deadline: zx_time_t,
    bytes: Result<&'a [u8]>,
    handles: Result<Vec<Held>>,
}

impl Call<'_> {
    /// Makes the call, and hands the reply to the caller's buffers; one that does not fit is lost, as on Zircon.
    ///
    /// # Safety
    /// The pointers in `buffers` are null or valid for writing what they stand for.
    unsafe fn make(
        self,
        buffers: &ReadBuffers,
        tell: impl FnMut(usize, zx_handle_info_t),
    ) -> Result<()> {
        let held = borrow(self.handle)?;
        let channel = held.channel()?;
        held.require(ZX_RIGHT_READ | ZX_RIGHT_WRITE)?;
        let bytes = self.bytes?;
        if self.options != 0 || bytes.len() < size_of::<u32>() {
            return Err(INVALID_ARGS);
        }
        check_sizes(bytes.len(), self.handles.as_ref().map_or(0, Vec::len))?;
        let handles = self.handles?;
        // SAFETY: the caller's promise.
        unsafe {
            let destination = buffers.destination()?;
            buffers.report(channel.call(&held, bytes, handles, &destination, self.deadline), tell)
        }
    }
}

/// See the Zircon documentation of `zx_channel_call`.
///
/// # Safety
/// `args` is null or valid for reading, and what it points to for what it stands for; `actual_bytes` and
/// `actual_handles` are null or valid for writing.
pub unsafe fn zx_channel_call(
    handle: zx_handle_t,
    options: u32,
    deadline: zx_time_t,
    args: *const zx_channel_call_args_t,
    actual_bytes: *mut u32,
    actual_handles: *mut u32,
) -> zx_status_t {
    if args.is_null() {
        return ZX_ERR_INVALID_ARGS;
    }
    // SAFETY: the caller's promise.
    let (args, taken, wr_bytes) = unsafe {
        let args = args.read();
        let taken = take_handles(handle, args.wr_handles, args.wr_num_handles as usize);
        (args, taken, bytes(args.wr_bytes, args.wr_num_bytes as usize))
    };
    let call = Call { handle, options, deadline, bytes: wr_bytes, handles: taken };
    let buffers = ReadBuffers {
        bytes: args.rd_bytes,
        num_bytes: args.rd_num_bytes,
        num_handles: if args.rd_handles.is_null() { 0 } else { args.rd_num_handles },
        actual_bytes,
        actual_handles,
    };
    // SAFETY: the caller's promise; `index` is below `num_handles`.
    let tell =
        |index, info: zx_handle_info_t| unsafe { args.rd_handles.add(index).write(info.handle) };
    // SAFETY: the caller's promise.
    answer(unsafe { call.make(&buffers, tell) })
}

/// See the Zircon documentation of `zx_channel_call_etc`.
///
/// # Safety
/// `args` is null or valid for reading and writing, and what it points to for what it stands for; `actual_bytes` and
/// `actual_handles` are null or valid for writing.
pub unsafe fn zx_channel_call_etc(
    handle: zx_handle_t,
    options: u32,
    deadline: zx_time_t,
    args: *mut zx_channel_call_etc_args_t,
    actual_bytes: *mut u32,
    actual_handles: *mut u32,
) -> zx_status_t {
    if args.is_null() {
        return ZX_ERR_INVALID_ARGS;
    }
    // SAFETY: the caller's promise.
    let (args, taken, wr_bytes) = unsafe {
        let args = args.read();
        let taken = dispose_handles(handle, args.wr_handles, args.wr_num_handles as usize);
        (args, taken, bytes(args.wr_bytes, args.wr_num_bytes as usize))
    };
    let call = Call { handle, options, deadline, bytes: wr_bytes, handles: taken };
    let buffers = ReadBuffers {
        bytes: args.rd_bytes,
        num_bytes: args.rd_num_bytes,
        num_handles: if args.rd_handles.is_null() { 0 } else { args.rd_num_handles },
        actual_bytes,
        actual_handles,
    };
    // SAFETY: the caller's promise; `index` is below `num_handles`.
    let tell = |index, info| unsafe { args.rd_handles.add(index).write(info) };
    // SAFETY: the caller's promise.
    answer(unsafe { call.make(&buffers, tell) })
}
