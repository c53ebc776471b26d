//! VMARs across processes: what a handle asks the owner for, and what the owner does then.
//!
//! What the calls are promised, as that nobody uses what is unmapped, is for the holder of the handle to keep, wherever that
//! is: as on Zircon, who gives away a handle to its address space trusts the receiver with what the handle allows.

use super::{Vmar, child_object, child_rights, local};
use crate::handle_table::Held;
use crate::object::{Kind, Object};
use crate::remote::{Answer, Connection, Operation, Request, connect};
use crate::status::{IO_DATA_INTEGRITY, OUT_OF_RANGE, Result};
use crate::system::page_size;
use fuchsia_zircon_types::*;
use std::sync::Arc;

/// Asks the owner for something that needs no answer but its status.
fn call(
    connection: &Connection,
    vmar: &Held,
    operation: Operation,
    options: u32,
    arguments: [u64; 3],
    vmo: Option<&Held>,
) -> Result<Answer> {
    connection.call(&Request { operation, rights: vmar.rights, options, arguments }, vmo)
}

fn address(value: u64) -> Result<usize> {
    usize::try_from(value).map_err(|_| IO_DATA_INTEGRITY)
}

pub(super) fn map(
    connection: &Connection,
    vmar: &Held,
    options: u32,
    offset: usize,
    vmo: &Held,
    vmo_offset: u64,
    len: usize,
) -> Result<usize> {
    vmo.vmo()?;
    let arguments = [offset as u64, vmo_offset, len as u64];
    address(call(connection, vmar, Operation::VmarMap, options, arguments, Some(vmo))?.value)
}

pub(super) fn unmap(connection: &Connection, vmar: &Held, addr: usize, len: usize) -> Result<()> {
    call(connection, vmar, Operation::VmarUnmap, 0, [addr as u64, len as u64, 0], None).map(drop)
}

pub(super) fn protect(
    connection: &Connection,
    vmar: &Held,
    options: u32,
    addr: usize,
    len: usize,
) -> Result<()> {
    let arguments = [addr as u64, len as u64, 0];
    call(connection, vmar, Operation::VmarProtect, options, arguments, None).map(drop)
}

pub(super) fn destroy(connection: &Connection, vmar: &Held) -> Result<()> {
    call(connection, vmar, Operation::VmarDestroy, 0, [0; 3], None).map(drop)
}

/// A region inside a VMAR of another process, and its address.
pub(super) fn allocate(
    connection: &Connection,
    vmar: &Held,
    options: u32,
    offset: usize,
    size: usize,
) -> Result<(Arc<Object>, usize)> {
    let arguments = [offset as u64, size as u64, 0];
    let Answer { value, koid, socket } =
        call(connection, vmar, Operation::VmarAllocate, options, arguments, None)?;
    let base = address(value)?;
    let connection =
        Connection::new(socket.ok_or(IO_DATA_INTEGRITY)?, child_rights(vmar.rights, options));
    // The owner has accepted the size, so it is one that can be rounded.
    let len = size.checked_next_multiple_of(page_size()).ok_or(OUT_OF_RANGE)?;
    let child = Vmar::Remote { connection, info: zx_info_vmar_t { base, len } };
    Ok((Object::with_koid(Kind::Vmar(child), koid, vmar.koid), base))
}

/// Does what a holder in another process asks for, with the rights that both its handle and its connection have.
pub(crate) fn serve(vmar: &Held, request: &Request, vmo: Option<&Held>) -> Result<Answer> {
    let Request { options, arguments: [first, second, third], .. } = *request;
    // Where a `usize` is smaller, no such address exists.
    let size = |value: u64| usize::try_from(value).map_err(|_| OUT_OF_RANGE);
    let mut answer = Answer::default();
    match request.operation {
        Operation::VmarMap => {
            let vmo = vmo.ok_or(IO_DATA_INTEGRITY)?;
            let address = local::map(vmar, options, size(first)?, vmo, second, size(third)?)?;
            answer.value = address as u64;
        }
        Operation::VmarUnmap => local::unmap(vmar, size(first)?, size(second)?)?,
        Operation::VmarProtect => {
            local::protect_range(vmar, options, size(first)?, size(second)?)?;
        }
        Operation::VmarAllocate => {
            let region = local::allocate(vmar, options, size(first)?, size(second)?)?;
            let child = child_object(&region, vmar);
            answer.value = region.info().base as u64;
            answer.koid = child.koid;
            let socket = connect(&child, child_rights(vmar.rights, options));
            answer.socket = Some(socket.inspect_err(|_| {
                let _ = region.destroy();
            })?);
        }
        Operation::VmarDestroy => local::destroy(vmar)?,
        Operation::Connect | Operation::VcpuKick | Operation::VcpuInterrupt => {
            return Err(IO_DATA_INTEGRITY);
        }
    }
    Ok(answer)
}
