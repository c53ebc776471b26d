//! Guests and vCPUs: Zircon's hypervisor calls over the software hypervisor.
//!
//! The process that creates a guest runs it. A guest handle that was sent to another process is the way to ask for bells
//! there, which is what a virtio device needs of a guest.

mod bell;
mod control;
mod vcpu;

pub(crate) use bell::BellSource;
pub(crate) use vcpu::Vcpu;
pub use vcpu::{
    zx_vcpu_create, zx_vcpu_enter, zx_vcpu_interrupt, zx_vcpu_kick, zx_vcpu_read_state,
    zx_vcpu_write_state,
};

use crate::handle_table::{get, insert};
use crate::object::{Kind, Object};
use crate::rights;
use crate::status::{ACCESS_DENIED, INVALID_ARGS, NOT_SUPPORTED, Result, Status, answer, out};
use crate::vmar::Vmar;
use bell::{Ringer, RingerParts, new_bell};
use control::Control;
use fuchsia_zircon_types::*;
use hypervisor::TrapKind;
use rustix::fd::{BorrowedFd, OwnedFd};
use rustix::io::Errno;
use std::sync::{Arc, OnceLock};

const TRAP_BELL: u32 = 0;
const TRAP_MEM: u32 = 1;
const TRAP_IO: u32 = 2;

/// A guest.
pub(crate) enum Guest {
    /// One that this process runs.
    Own {
        guest: Arc<hypervisor::Guest>,
        /// Where other processes send their requests; made when a handle is sent for the first time.
        control: OnceLock<Control>,
    },
    /// One that another process runs.
    Other(OwnedFd),
}

/// Guest-physical memory of a guest of this process.
pub(crate) struct GuestMemory {
    guest: Arc<hypervisor::Guest>,
}

impl GuestMemory {
    /// Maps part of a file as RAM at guest-physical address `gpa`; in bytes, whole pages.
    pub(crate) fn map(&self, gpa: u64, fd: BorrowedFd<'_>, offset: u64, len: u64) -> Result<()> {
        Ok(self.guest.map(gpa, fd, offset, len)?)
    }

    pub(crate) fn unmap(&self, gpa: u64, len: u64) -> Result<()> {
        Ok(self.guest.unmap(gpa, len)?)
    }
}

impl From<hypervisor::Error> for Status {
    fn from(error: hypervisor::Error) -> Self {
        use hypervisor::Error;
        match error {
            Error::Canceled => Status(ZX_ERR_CANCELED),
            Error::InvalidArgs(_) => INVALID_ARGS,
            Error::OutOfRange(_) => Status(ZX_ERR_OUT_OF_RANGE),
            Error::AlreadyExists => Status(ZX_ERR_ALREADY_EXISTS),
            Error::BadState(_) => Status(ZX_ERR_BAD_STATE),
            Error::Shutdown { .. } => Status(ZX_ERR_INTERNAL),
            Error::NotSupported(_) => NOT_SUPPORTED,
            Error::Host(error) => {
                Errno::from_io_error(&error).map_or(Status(ZX_ERR_INTERNAL), Status::from)
            }
        }
    }
}

impl Guest {
    /// The guest, if this process runs it.
    pub(crate) fn own(&self) -> Result<&Arc<hypervisor::Guest>> {
        match self {
            Guest::Own { guest, .. } => Ok(guest),
            Guest::Other(_) => Err(NOT_SUPPORTED),
        }
    }

    /// The descriptor that a message carries for this guest.
    pub(crate) fn control_for_transfer(&self) -> std::result::Result<OwnedFd, Errno> {
        match self {
            Guest::Other(control) => rustix::io::fcntl_dupfd_cloexec(control, 3),
            Guest::Own { guest, control } => {
                if control.get().is_none() {
                    // Of two threads that come here at once, one made a control for nothing; it ends at once.
                    let _ = control.set(Control::new(guest)?);
                }
                control.get().ok_or(Errno::AGAIN)?.duplicate()
            }
        }
    }

    /// A guest that another process runs.
    pub(crate) fn from_control(control: OwnedFd) -> Guest {
        Guest::Other(control)
    }

    fn set_bell(&self, addr: u64, size: usize, this: &Arc<Object>, key: u64) -> Result<()> {
        let port = this.port()?;
        let (source, ringer) = new_bell(key, addr, size)?;
        match self {
            Guest::Own { guest, .. } => install_bell(guest, addr, size, ringer, |_| Ok(()))?,
            Guest::Other(control) => {
                control::request_bell(control, addr, size, &ringer)?;
                // Ours of the other end, or we would never see it close.
                drop(ringer);
                source.registered()?;
            }
        }
        port.add_bell(this, source)
    }

    fn set_trap(&self, kind: TrapKind, addr: u64, size: usize, key: u64) -> Result<()> {
        Ok(self.own()?.set_trap(kind, addr, size as u64, key, None)?)
    }
}

/// Makes a guest ring a bell; `before` sees the ringer first.
fn install_bell(
    guest: &hypervisor::Guest,
    addr: u64,
    size: usize,
    parts: RingerParts,
    before: impl FnOnce(&Ringer) -> Result<()>,
) -> Result<()> {
    let ringer = Ringer::new(parts, addr, size)?;
    before(&ringer)?;
    Ok(guest.set_trap(TrapKind::Bell, addr, size as u64, 0, Some(Box::new(ringer)))?)
}

/// See the Zircon documentation of `zx_guest_create`.
///
/// # Safety
/// `guest_handle` and `vmar_handle` are null or valid for writing.
pub unsafe fn zx_guest_create(
    resource: zx_handle_t,
    options: u32,
    guest_handle: *mut zx_handle_t,
    vmar_handle: *mut zx_handle_t,
) -> zx_status_t {
    answer((|| {
        // SAFETY: the caller's promise.
        let (guest_handle, vmar_handle) = unsafe { (out(guest_handle)?, out(vmar_handle)?) };
        if !get(resource)?.resource()?.is_hypervisor() {
            return Err(ACCESS_DENIED);
        }
        if options != 0 {
            return Err(INVALID_ARGS);
        }
        let guest = hypervisor::Guest::new()?;
        let memory = Vmar::Guest(GuestMemory { guest: guest.clone() });
        let guest = Object::new(Kind::Guest(Guest::Own { guest, control: OnceLock::new() }));
        let memory_rights = rights::VMAR | ZX_RIGHT_READ | ZX_RIGHT_WRITE | ZX_RIGHT_EXECUTE;
        let vmar = insert(Object::new(Kind::Vmar(memory)), memory_rights)?;
        let guest = insert(guest, rights::GUEST).inspect_err(|_| {
            let _ = crate::handle_table::take(vmar);
        })?;
        guest_handle.set(guest);
        vmar_handle.set(vmar);
        Ok(())
    })())
}

/// See the Zircon documentation of `zx_guest_set_trap`.
///
/// Through a handle that came from another process only bells can be set. The range of a bell is at most 1 MiB. Rings
/// of the same two bytes that come before the port's reader has seen the first are one packet; the packet's address is
/// rounded down to two bytes. A bell whose port is closed, because its process died or otherwise, swallows writes: where
/// Zircon ends `zx_vcpu_enter` with an error, here a device that died is one that does not answer.
///
/// # Safety
/// Always safe; unsafe to have the vDSO's signature.
pub unsafe fn zx_guest_set_trap(
    handle: zx_handle_t,
    kind: u32,
    addr: zx_vaddr_t,
    size: usize,
    port_handle: zx_handle_t,
    key: u64,
) -> zx_status_t {
    answer((|| {
        let held = get(handle)?;
        let guest = held.guest()?;
        held.require(ZX_RIGHT_WRITE)?;
        let trap = match kind {
            TRAP_BELL => {
                let port = get(port_handle)?;
                port.port()?;
                port.require(ZX_RIGHT_WRITE)?;
                return guest.set_bell(addr as u64, size, &port, key);
            }
            TRAP_MEM => TrapKind::Mem,
            TRAP_IO => TrapKind::Io,
            _ => return Err(INVALID_ARGS),
        };
        if port_handle != ZX_HANDLE_INVALID {
            return Err(INVALID_ARGS);
        }
        guest.set_trap(trap, addr as u64, size, key)
    })())
}
