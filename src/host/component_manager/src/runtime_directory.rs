//! Where the component manager of a user is found: a directory that only this user can enter, with a socket and a lock.

use crate::byte_lock;
use fuchsia_zircon::Status;
use nix::libc;
use rustix::fd::OwnedFd;
use rustix::fs::{self, CWD, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The socket's name.
const SOCKET: &str = "component_manager";
/// The lock's name.
const LOCK: &str = "lock";

/// A directory that is not safe to use.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeDirectoryError {
    /// It cannot be made or read.
    #[error("{path}: {error}")]
    Io {
        /// The directory.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// Somebody else's.
    #[error("{0} belongs to another user; remove it, or set XDG_RUNTIME_DIR")]
    NotOurs(PathBuf),
    /// Open to others.
    #[error("{0} can be entered by other users; run `chmod 700` on it")]
    NotPrivate(PathBuf),
}

/// The directory, checked.
#[derive(Debug, Clone)]
pub struct RuntimeDirectory(PathBuf);

impl RuntimeDirectory {
    /// This user's: below `$XDG_RUNTIME_DIR`, or `/tmp/guest-<uid>`. Made where it does not exist.
    ///
    /// # Errors
    /// [`RuntimeDirectoryError`]
    pub fn of_user() -> Result<Self, RuntimeDirectoryError> {
        let uid = rustix::process::getuid().as_raw();
        let path = match std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from) {
            Some(path) if path.is_absolute() && path.is_dir() => path.join("guest"),
            _ => PathBuf::from(format!("/tmp/guest-{uid}")),
        };
        Self::at(&path)
    }

    /// The one at `path`. Made where it does not exist.
    ///
    /// # Errors
    /// [`RuntimeDirectoryError`]
    pub fn at(path: &Path) -> Result<Self, RuntimeDirectoryError> {
        let io = |error: std::io::Error| RuntimeDirectoryError::Io { path: path.to_owned(), error };
        match fs::mkdirat(CWD, path, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(io(error.into())),
        }
        let metadata = std::fs::symlink_metadata(path).map_err(io)?;
        if !metadata.is_dir() || metadata.uid() != rustix::process::getuid().as_raw() {
            return Err(RuntimeDirectoryError::NotOurs(path.to_owned()));
        }
        if metadata.mode() & 0o077 != 0 {
            return Err(RuntimeDirectoryError::NotPrivate(path.to_owned()));
        }
        Ok(Self(path.to_owned()))
    }

    /// The path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Takes the lock of the one component manager; `None` where another has it. Closing it gives it back.
    pub(crate) fn lock(&self) -> Result<Option<OwnedFd>, Errno> {
        let file = self.open_lock()?;
        match fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(file)),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn open_lock(&self) -> Result<OwnedFd, Errno> {
        let flags = OFlags::CREATE | OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        fs::openat(CWD, self.0.join(LOCK), flags, Mode::RUSR | Mode::WUSR)
    }

    /// Joins those who use the thing with this number, until the result is closed, and tells whether it is the first. It is a lock
    /// on a byte of the lock's file: nothing is left of a process that is killed.
    ///
    /// # Errors
    /// Where the file cannot be opened, or the file system has no such locks.
    pub fn join(&self, thing: u8) -> Result<(OwnedFd, bool), Status> {
        let file = self.open_lock().map_err(|_| Status::IO)?;
        let byte = i64::from(thing);
        // Whoever can have it alone is the first. Then all share it.
        let first = byte_lock::set(&file, byte, 1, libc::F_WRLCK).is_ok();
        byte_lock::set(&file, byte, 1, libc::F_RDLCK)?;
        Ok((file, first))
    }

    /// Listens. Only whoever holds the lock may: a socket that is there is a dead one's.
    pub(crate) fn listen(&self) -> Result<OwnedFd, Errno> {
        self.remove_socket();
        let socket = net::socket_with(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        net::bind(&socket, &SocketAddrUnix::new(self.0.join(SOCKET))?)?;
        net::listen(&socket, 128)?;
        Ok(socket)
    }

    pub(crate) fn remove_socket(&self) {
        // It may never have been there.
        let _absent = fs::unlinkat(CWD, self.0.join(SOCKET), fs::AtFlags::empty());
    }

    /// Connects to the component manager; `None` where there is none.
    pub(crate) fn connect(&self) -> Result<Option<OwnedFd>, Errno> {
        let socket = net::socket_with(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        match net::connect(&socket, &SocketAddrUnix::new(self.0.join(SOCKET))?) {
            Ok(()) => Ok(Some(socket)),
            Err(Errno::NOENT | Errno::CONNREFUSED) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_directory_is_private_or_refused() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("run");
        RuntimeDirectory::at(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o750)).unwrap();
        assert!(matches!(RuntimeDirectory::at(&path), Err(RuntimeDirectoryError::NotPrivate(_))));
        let link = parent.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(matches!(RuntimeDirectory::at(&link), Err(RuntimeDirectoryError::NotOurs(_))));
    }

    #[test]
    fn the_lock_is_taken_once_and_connecting_needs_a_listener() {
        let parent = tempfile::tempdir().unwrap();
        let directory = RuntimeDirectory::at(&parent.path().join("run")).unwrap();
        assert!(directory.connect().unwrap().is_none());
        let lock = directory.lock().unwrap().unwrap();
        assert!(directory.lock().unwrap().is_none());
        let listener = directory.listen().unwrap();
        assert!(directory.connect().unwrap().is_some());
        drop(listener);
        assert!(directory.connect().unwrap().is_none());
        drop(lock);
        assert!(directory.lock().unwrap().is_some());
    }

    #[test]
    fn the_first_to_join_is_told_apart_until_all_have_left() {
        let parent = tempfile::tempdir().unwrap();
        let directory = RuntimeDirectory::at(&parent.path().join("run")).unwrap();
        let _lock = directory.lock().unwrap().unwrap();
        let (first, is_first) = directory.join(1).unwrap();
        assert!(is_first);
        let (second, is_first) = directory.join(1).unwrap();
        assert!(!is_first);
        assert!(directory.join(2).unwrap().1);
        drop(first);
        assert!(!directory.join(1).unwrap().1);
        drop(second);
        assert!(directory.join(1).unwrap().1);
    }
}
