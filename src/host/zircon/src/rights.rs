//! Rights: the defaults of each kind of object and the rules of reduction.

use crate::status::{INVALID_ARGS, Result};
use fuchsia_zircon_types::*;

const BASIC: zx_rights_t =
    ZX_RIGHT_TRANSFER | ZX_RIGHT_DUPLICATE | ZX_RIGHT_WAIT | ZX_RIGHT_INSPECT;
const IO: zx_rights_t = ZX_RIGHT_READ | ZX_RIGHT_WRITE;
const PROPERTY: zx_rights_t = ZX_RIGHT_GET_PROPERTY | ZX_RIGHT_SET_PROPERTY;
const POLICY: zx_rights_t = ZX_RIGHT_GET_POLICY | ZX_RIGHT_SET_POLICY;

pub(crate) const CHANNEL: zx_rights_t =
    (BASIC & !ZX_RIGHT_DUPLICATE) | IO | ZX_RIGHT_SIGNAL | ZX_RIGHT_SIGNAL_PEER;
pub(crate) const SOCKET: zx_rights_t =
    BASIC | IO | PROPERTY | ZX_RIGHT_SIGNAL | ZX_RIGHT_SIGNAL_PEER | ZX_RIGHT_MANAGE_SOCKET;
pub(crate) const EVENT: zx_rights_t = BASIC | ZX_RIGHT_SIGNAL;
pub(crate) const EVENTPAIR: zx_rights_t = BASIC | ZX_RIGHT_SIGNAL | ZX_RIGHT_SIGNAL_PEER;
pub(crate) const FIFO: zx_rights_t = BASIC | IO | ZX_RIGHT_SIGNAL | ZX_RIGHT_SIGNAL_PEER;
pub(crate) const VMO: zx_rights_t = BASIC | IO | PROPERTY | ZX_RIGHT_MAP | ZX_RIGHT_SIGNAL;
pub(crate) const VMAR: zx_rights_t = (BASIC & !ZX_RIGHT_WAIT) | ZX_RIGHT_OP_CHILDREN;
pub(crate) const PORT: zx_rights_t = (BASIC & !ZX_RIGHT_WAIT) | IO;
pub(crate) const TIMER: zx_rights_t = BASIC | ZX_RIGHT_WRITE | ZX_RIGHT_SIGNAL;
pub(crate) const PROCESS: zx_rights_t = BASIC
    | IO
    | PROPERTY
    | ZX_RIGHT_ENUMERATE
    | ZX_RIGHT_DESTROY
    | ZX_RIGHT_SIGNAL
    | ZX_RIGHT_MANAGE_PROCESS
    | ZX_RIGHT_MANAGE_THREAD;
pub(crate) const THREAD: zx_rights_t =
    BASIC | IO | PROPERTY | ZX_RIGHT_DESTROY | ZX_RIGHT_SIGNAL | ZX_RIGHT_MANAGE_THREAD;
pub(crate) const JOB: zx_rights_t = BASIC
    | IO
    | PROPERTY
    | POLICY
    | ZX_RIGHT_ENUMERATE
    | ZX_RIGHT_DESTROY
    | ZX_RIGHT_SIGNAL
    | ZX_RIGHT_MANAGE_JOB
    | ZX_RIGHT_MANAGE_PROCESS
    | ZX_RIGHT_MANAGE_THREAD;
pub(crate) const RESOURCE: zx_rights_t = ZX_RIGHT_TRANSFER
    | ZX_RIGHT_DUPLICATE
    | ZX_RIGHT_WRITE
    | ZX_RIGHT_INSPECT
    | ZX_RIGHT_GET_PROPERTY;
pub(crate) const GUEST: zx_rights_t = ZX_RIGHT_TRANSFER
    | ZX_RIGHT_DUPLICATE
    | ZX_RIGHT_WRITE
    | ZX_RIGHT_INSPECT
    | ZX_RIGHT_MANAGE_PROCESS;
pub(crate) const VCPU: zx_rights_t = BASIC | IO | ZX_RIGHT_EXECUTE | ZX_RIGHT_SIGNAL;

/// Rights that a handle with `current` rights can hand on as `wanted`: all of `wanted` must be there.
pub(crate) fn reduce(current: zx_rights_t, wanted: zx_rights_t) -> Result<zx_rights_t> {
    if wanted == ZX_RIGHT_SAME_RIGHTS {
        return Ok(current);
    }
    if wanted & !current != 0 {
        return Err(INVALID_ARGS);
    }
    Ok(wanted)
}
