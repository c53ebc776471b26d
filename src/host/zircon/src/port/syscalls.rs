//! The `zx_port_*` calls, and `zx_object_wait_async`.

use super::Port;
use super::registration::{Edge, Observer};
use crate::handle_table::{borrow, get, insert};
use crate::object::{Kind, Object};
use crate::rights;
use crate::status::{INVALID_ARGS, Result, answer, out};
use fuchsia_zircon_types::*;

/// `zx_object_wait_async` with its checks.
pub(crate) fn wait_async(
    handle: zx_handle_t,
    port: zx_handle_t,
    key: u64,
    signals: zx_signals_t,
    options: u32,
) -> Result<()> {
    if options & !(ZX_WAIT_ASYNC_TIMESTAMP | ZX_WAIT_ASYNC_EDGE) != 0 {
        return Err(INVALID_ARGS);
    }
    let held = borrow(handle)?;
    let port_held = borrow(port)?;
    let port = port_held.port()?;
    held.require(ZX_RIGHT_WAIT)?;
    port_held.require(ZX_RIGHT_WRITE)?;
    if options == 0 && port.observe_messages(&held, handle, key, signals) {
        return Ok(());
    }
    let edge = if options & ZX_WAIT_ASYNC_EDGE == 0 {
        None
    } else {
        Some(Edge { active: held.signals(signals)? & signals, drains: held.drains() })
    };
    let snapshot = held.snapshot()?;
    let timestamp = options & ZX_WAIT_ASYNC_TIMESTAMP != 0;
    port.observe(&port_held, &held, Observer { handle, key, signals, timestamp, snapshot, edge })
}

/// See the Zircon documentation of `zx_port_create`. Asynchronous waits and bells belong to the process that made them: they
/// end when that has closed, or sent away, its last handle to the port. A port that was sent has room for some hundreds of
/// packets, and `zx_port_cancel` does not find what is on its way to the other processes.
///
/// # Safety
/// `out_handle` is null or valid for writing.
pub unsafe fn zx_port_create(options: u32, out_handle: *mut zx_handle_t) -> zx_status_t {
    answer((|| {
        // SAFETY: the caller's promise.
        let out_handle = unsafe { out(out_handle)? };
        if options & !1 != 0 {
            return Err(INVALID_ARGS);
        }
        out_handle.set(insert(Object::new(Kind::Port(Port::new()?)), rights::PORT)?);
        Ok(())
    })())
}

/// See the Zircon documentation of `zx_port_queue`.
///
/// # Safety
/// `packet` is null or valid for reading a packet.
pub unsafe fn zx_port_queue(handle: zx_handle_t, packet: *const zx_port_packet_t) -> zx_status_t {
    answer((|| {
        if packet.is_null() {
            return Err(INVALID_ARGS);
        }
        // SAFETY: the caller's promise. The type field is an enum in the caller's memory, valid as such.
        let packet = unsafe { packet.read() };
        let held = borrow(handle)?;
        let port = held.port()?;
        held.require(ZX_RIGHT_WRITE)?;
        port.queue(zx_port_packet_t { packet_type: zx_packet_type_t::ZX_PKT_TYPE_USER, ..packet })
    })())
}

/// See the Zircon documentation of `zx_port_wait`.
///
/// # Safety
/// `packet` is null or valid for writing a packet.
pub unsafe fn zx_port_wait(
    handle: zx_handle_t,
    deadline: zx_time_t,
    packet: *mut zx_port_packet_t,
) -> zx_status_t {
    answer((|| {
        let held = borrow(handle)?;
        let port = held.port()?;
        held.require(ZX_RIGHT_READ)?;
        let received = port.wait(deadline)?;
        if !packet.is_null() {
            // SAFETY: not null, so valid for writing by the caller's promise.
            unsafe { packet.write(received) };
        }
        Ok(())
    })())
}

/// See the Zircon documentation of `zx_port_cancel`.
///
/// # Safety
/// Always safe; unsafe to have the vDSO's signature.
pub unsafe fn zx_port_cancel(handle: zx_handle_t, source: zx_handle_t, key: u64) -> zx_status_t {
    answer((|| {
        let port_held = get(handle)?;
        let port = port_held.port()?;
        port_held.require(ZX_RIGHT_WRITE)?;
        let held = get(source)?;
        held.require(ZX_RIGHT_WAIT)?;
        port.cancel(source, &held, key)
    })())
}
