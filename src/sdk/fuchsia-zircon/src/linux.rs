//! What only Linux has: handles made from file descriptors. For those that stand in for Fuchsia's own components (the
//! component manager, the command line), and for nothing above them.

use crate::{AsHandleRef as _, Channel, Guest, Handle, Resource, Rights, Socket, Status, Vmo, sys};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

fn owned<H: From<Handle>>(raw: Result<sys::zx_handle_t, sys::linux::Status>) -> Result<H, Status> {
    let raw = raw.map_err(|status| Status::from_raw(status.0))?;
    // SAFETY: the call has just given us this handle.
    Ok(H::from(unsafe { Handle::from_raw(raw) }))
}

/// A channel over a connected `SOCK_SEQPACKET` socket whose other end is one, too.
///
/// # Errors
/// `INVALID_ARGS` for any other kind of descriptor, `NO_RESOURCES`.
pub fn channel_from_fd(fd: OwnedFd) -> Result<Channel, Status> {
    owned(sys::linux::channel_from_fd(fd))
}

/// A socket over a connected stream or sequenced-packet socket, a pipe or a terminal, which becomes non-blocking.
///
/// # Errors
/// `INVALID_ARGS` for any other kind of descriptor, `NO_RESOURCES`.
pub fn socket_from_fd(fd: OwnedFd) -> Result<Socket, Status> {
    owned(sys::linux::socket_from_fd(fd))
}

/// A VMO over a file: reads, writes and mappings go to the file. The rights are reduced to what the descriptor is open for.
///
/// # Errors
/// `INVALID_ARGS` for a descriptor that cannot be read, `NO_RESOURCES`.
pub fn vmo_from_file(fd: OwnedFd, rights: Rights) -> Result<Vmo, Status> {
    owned(sys::linux::vmo_from_file(fd, rights.bits()))
}

/// The system resource with this `ZX_RSRC_SYSTEM_*_BASE`.
///
/// # Errors
/// `NO_RESOURCES`.
pub fn system_resource(base: u64) -> Result<Resource, Status> {
    owned(sys::linux::system_resource(base))
}

/// Serves GDB's remote protocol for a guest of this process until GDB detaches or goes away.
///
/// # Errors
/// `BAD_STATE` if another debugger is attached, `ACCESS_DENIED`, `NOT_SUPPORTED` for a guest of another process.
pub fn debug_guest(guest: &Guest, connection: UnixStream) -> Result<(), Status> {
    sys::linux::debug_guest(guest.raw_handle(), connection)
        .map_err(|status| Status::from_raw(status.0))
}
