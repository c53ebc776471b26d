//! Locks on bytes of files that belong to the open file: they go wherever its descriptor is sent, and end with the last of them.

use fuchsia_zircon::Status;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use std::os::fd::AsFd;

/// Sets the kind of an open file's lock on a range of bytes, or fails at once with `BAD_STATE` where another's is in the way.
pub(crate) fn set(file: &impl AsFd, start: i64, length: i64, kind: i32) -> Result<(), Status> {
    match fcntl(file, FcntlArg::F_OFD_SETLK(&range(start, length, kind))) {
        Ok(_) => Ok(()),
        Err(errno) => Err(status_of(errno)),
    }
}

fn range(start: i64, length: i64, kind: i32) -> libc::flock {
    libc::flock {
        l_type: i16::try_from(kind).unwrap_or(i16::MAX),
        // Both are 0 and 1 and so on.
        l_whence: i16::try_from(libc::SEEK_SET).unwrap_or_default(),
        l_start: start,
        l_len: length,
        // Must be 0: the lock is the open file's and not a process'.
        l_pid: 0,
    }
}

fn status_of(errno: Errno) -> Status {
    match errno {
        // An exclusive lock, such as a tool that locks whole files takes.
        Errno::EAGAIN | Errno::EACCES => Status::BAD_STATE,
        Errno::EINVAL | Errno::ENOLCK | Errno::ENOSYS | Errno::EOPNOTSUPP => Status::NOT_SUPPORTED,
        _ => Status::IO,
    }
}

/// Whether another open file has a lock of any kind on a byte.
pub(crate) fn is_held_elsewhere(file: &impl AsFd, byte: i64) -> Result<bool, Status> {
    let mut other = range(byte, 1, libc::F_WRLCK);
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut other)).map_err(status_of)?;
    Ok(i32::from(other.l_type) != libc::F_UNLCK)
}
