//! What exists on Linux only: the way between handles and file descriptors, and what a process starts with.
//!
//! Nothing above the syscall seam may use this module except the entry code of a process and the components of this
//! system that stand for Fuchsia's own (component manager, the command line).

pub use crate::status::Status;
pub use crate::task::{
    Program, STARTUP_FD_VARIABLE, SpawnOptions, StartupHandles, spawn, take_startup_handles,
};
pub use hypervisor::VcpuStats;

use crate::channel::Channel;
use crate::handle_table::{get, insert};
use crate::object::{Kind, Object};
use crate::resource::Resource;
use crate::rights;
use crate::socket::Socket;
use crate::status::{INVALID_ARGS, NOT_SUPPORTED, Result};
use crate::vmo::Vmo;
use fuchsia_zircon_types::*;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::OFlags;
use std::os::unix::net::UnixStream;

/// A handle to the root VMAR of this process.
pub fn vmar_root_self() -> Result<zx_handle_t> {
    crate::vmar::root()
}

/// A handle to this process.
pub fn process_self() -> Result<zx_handle_t> {
    crate::task::self_process()
}

/// A handle that stands for the calling thread. It has a koid and a name, and `ZX_THREAD_TERMINATED` when the thread has
/// ended, from Linux 6.9 on; nothing can be done to the thread.
pub fn thread_self() -> Result<zx_handle_t> {
    crate::task::self_thread()
}

/// A handle to the job in which this process starts others unless told otherwise.
pub fn job_default() -> Result<zx_handle_t> {
    insert(crate::task::default_job(), rights::JOB)
}

/// The Linux process number behind a process handle.
pub fn process_id(process: zx_handle_t) -> Result<u32> {
    Ok(get(process)?.process()?.pid())
}

/// A `ZX_RSRC_KIND_SYSTEM` resource with this `ZX_RSRC_SYSTEM_*_BASE`, as component manager hands them out. Anyone can
/// make one: on Linux nothing is behind it that a process could not do anyway.
pub fn system_resource(base: zx_rsrc_system_base_t) -> Result<zx_handle_t> {
    insert(Object::new(Kind::Resource(Resource { base })), rights::RESOURCE)
}

/// A VMO over a file, a block device or a memfd: reads, writes and mappings go to the file. Its size is the file's and is
/// not rounded to pages. `rights` are reduced to what the descriptor is open for.
///
/// Errors: `ZX_ERR_INVALID_ARGS` for a descriptor that is not open for reading.
pub fn vmo_from_file(file: OwnedFd, rights: zx_rights_t) -> Result<zx_handle_t> {
    let mode = rustix::fs::fcntl_getfl(&file)? & OFlags::ACCMODE;
    let mut allowed = rights::VMO | ZX_RIGHT_EXECUTE;
    if mode == OFlags::WRONLY {
        return Err(INVALID_ARGS);
    }
    if mode == OFlags::RDONLY {
        allowed &= !ZX_RIGHT_WRITE;
    }
    let rights =
        if rights == ZX_RIGHT_SAME_RIGHTS { allowed & !ZX_RIGHT_EXECUTE } else { rights & allowed };
    insert(Object::new(Kind::Vmo(Vmo::from_host_file(file)?)), rights)
}

/// A socket over a connected stream or sequenced-packet socket, or over a pipe or terminal, which then becomes
/// non-blocking (for everyone who shares its open file description).
pub fn socket_from_fd(fd: OwnedFd) -> Result<zx_handle_t> {
    insert(Object::new(Kind::Socket(Socket::from_host_fd(fd)?)), rights::SOCKET)
}

/// A channel over a connected `SOCK_SEQPACKET` socket whose other end is one as well.
///
/// Errors: `ZX_ERR_INVALID_ARGS` for any other kind of descriptor.
pub fn channel_from_fd(fd: OwnedFd) -> Result<zx_handle_t> {
    if rustix::net::sockopt::socket_type(&fd) != Ok(rustix::net::SocketType::SEQPACKET) {
        return Err(INVALID_ARGS);
    }
    insert(Object::new(Kind::Channel(Channel::from_fd(fd))), rights::CHANNEL)
}

/// A new descriptor of the file behind a VMO, socket, channel, timer or process handle; the handle stays.
///
/// Errors: `ZX_ERR_NOT_SUPPORTED` for other objects.
pub fn duplicate_fd(handle: zx_handle_t) -> Result<OwnedFd> {
    let held = get(handle)?;
    let fd: BorrowedFd<'_> = match &held.kind {
        Kind::Channel(channel) => channel.fd(),
        Kind::Process(process) => process.fd(),
        Kind::Socket(socket) => socket.fd(),
        Kind::Timer(timer) => timer.fd(),
        Kind::Vmo(vmo) => vmo.fd(),
        _ => return Err(NOT_SUPPORTED),
    };
    Ok(rustix::io::fcntl_dupfd_cloexec(fd.as_fd(), 3)?)
}

/// Where a VMO begins in the file that [`duplicate_fd`] gives, in bytes; not 0 for slices only.
pub fn vmo_file_offset(handle: zx_handle_t) -> Result<u64> {
    Ok(get(handle)?.vmo()?.file_offset())
}

/// What a vCPU of this process did so far; from any thread. The handle needs `ZX_RIGHT_READ`.
///
/// Errors: `ZX_ERR_NOT_SUPPORTED` for a vCPU of another process.
pub fn vcpu_stats(vcpu: zx_handle_t) -> Result<VcpuStats> {
    let held = get(vcpu)?;
    held.require(ZX_RIGHT_READ)?;
    held.vcpu()?.stats()
}

/// Serves GDB's remote protocol for a guest of this process until GDB detaches or goes away. The handle needs
/// `ZX_RIGHT_MANAGE_PROCESS`.
///
/// Errors: `ZX_ERR_BAD_STATE` if another debugger is attached, `ZX_ERR_NOT_SUPPORTED` for a guest of another process.
pub fn debug_guest(guest: zx_handle_t, connection: UnixStream) -> Result<()> {
    let held = get(guest)?;
    held.require(ZX_RIGHT_MANAGE_PROCESS)?;
    let guest = std::sync::Arc::clone(held.guest()?.own()?);
    // GDB may stay long, and the handle be closed meanwhile.
    drop(held);
    Ok(hypervisor::gdb::serve_unix(&guest, connection)?)
}

/// Handles that this process has, for leak checks.
pub fn handle_count() -> usize {
    crate::handle_table::count()
}
