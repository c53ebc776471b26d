//! Directories of this machine's file system, shown over `fuchsia.io`: packages (to be read) and storage (to be written, too).

use crate::image_lock::{self, ImageUse};
use fidl_fuchsia_io as fio;
use fuchsia_zircon::{self as zx, Status};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{self, AtFlags, CWD, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;
use std::any::Any;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use vfs::directory::{Directory, NewNode};
use vfs::file::File;
use vfs::{DirectoryEntry, EntryInfo};

/// Whether what is shown may be changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// No.
    ReadOnly,
    /// Yes.
    ReadWrite,
    /// Yes, and what is in it may be executed: a package of the user's.
    Package,
}

impl Access {
    fn abilities(self) -> fio::Operations {
        match self {
            Self::ReadOnly => fio::RX_STAR_DIR,
            Self::ReadWrite => fio::RW_STAR_DIR,
            Self::Package => fio::RW_STAR_DIR | fio::RX_STAR_DIR,
        }
    }
}

fn status_of(errno: Errno) -> Status {
    match errno {
        Errno::NOENT => Status::NOT_FOUND,
        Errno::EXIST => Status::ALREADY_EXISTS,
        Errno::NOTDIR => Status::NOT_DIR,
        Errno::ISDIR => Status::NOT_FILE,
        Errno::NOTEMPTY => Status::BAD_STATE,
        Errno::ACCESS | Errno::PERM | Errno::ROFS => Status::ACCESS_DENIED,
        Errno::NOSPC | Errno::DQUOT => Status::NO_SPACE,
        Errno::MFILE | Errno::NFILE => Status::NO_RESOURCES,
        Errno::INVAL => Status::INVALID_ARGS,
        Errno::FBIG => Status::FILE_BIG,
        Errno::XDEV => Status::NOT_SUPPORTED,
        _ => Status::IO,
    }
}

/// The directory at `path`. It is opened when it is first used, so that one that does not exist is empty until it does.
#[must_use]
pub(crate) fn directory(path: &Path, access: Access) -> Arc<dyn Directory> {
    Arc::new(HostDirectory { place: Place::Path(path.to_owned()), access })
}

/// The directory at `below` in `directory`, which may be `""`.
///
/// # Errors
/// `NOT_FOUND`, `NOT_DIR`.
pub(crate) fn descend(
    directory: Arc<dyn Directory>,
    below: &str,
) -> Result<Arc<dyn Directory>, Status> {
    below.split('/').filter(|name| !name.is_empty()).try_fold(directory, |directory, name| {
        directory.lookup(name)?.as_directory().ok_or(Status::NOT_DIR)
    })
}

enum Place {
    Path(PathBuf),
    Open(OwnedFd),
}

struct HostDirectory {
    place: Place,
    access: Access,
}

impl HostDirectory {
    fn open(&self) -> Result<OwnedFd, Status> {
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let opened = match &self.place {
            Place::Path(path) => fs::openat(CWD, path, flags, Mode::empty()),
            Place::Open(fd) => fs::openat(fd, ".", flags, Mode::empty()),
        };
        opened.map_err(status_of)
    }

    fn open_file(&self, parent: &OwnedFd, name: &str, more: OFlags) -> Result<HostFile, Status> {
        let mode = Mode::RUSR | Mode::WUSR;
        let flags = more | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let readable = |parent| fs::openat(parent, name, flags | OFlags::RDONLY, mode);
        let opened = match self.access {
            Access::ReadOnly => readable(parent),
            Access::ReadWrite | Access::Package => {
                match fs::openat(parent, name, flags | OFlags::RDWR, mode) {
                    // A program that runs cannot be opened for writing either.
                    Err(Errno::ACCESS | Errno::ROFS | Errno::TXTBSY) => readable(parent),
                    opened => opened,
                }
            }
        };
        Ok(HostFile { fd: opened.map_err(status_of)?, access: self.access })
    }
}

impl Directory for HostDirectory {
    fn lookup(&self, name: &str) -> Result<Arc<dyn DirectoryEntry>, Status> {
        let parent = self.open()?;
        let stat = fs::statat(&parent, name, AtFlags::empty()).map_err(status_of)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
                let fd = fs::openat(&parent, name, flags, Mode::empty()).map_err(status_of)?;
                let directory = Self { place: Place::Open(fd), access: self.access };
                Ok(vfs::directory::entry(Arc::new(directory), stat.st_ino))
            }
            FileType::RegularFile => Ok(vfs::file::entry(
                Arc::new(self.open_file(&parent, name, OFlags::empty())?),
                stat.st_ino,
            )),
            // A pipe or device of this machine is nothing that a component gets to see.
            _ => Err(Status::NOT_SUPPORTED),
        }
    }

    fn list(&self) -> Result<Vec<(String, EntryInfo)>, Status> {
        let directory = self.open()?;
        let mut entries = Vec::new();
        for entry in Dir::read_from(&directory).map_err(status_of)? {
            let entry = entry.map_err(status_of)?;
            // A name that is not text cannot be asked for.
            let Ok(name) = entry.file_name().to_str() else { continue };
            if matches!(name, "." | "..") {
                continue;
            }
            let kind = match entry.file_type() {
                FileType::Directory => fio::DirentType::Directory,
                FileType::RegularFile => fio::DirentType::File,
                _ => fio::DirentType::Unknown,
            };
            entries.push((name.to_owned(), EntryInfo { inode: entry.ino(), kind }));
        }
        Ok(entries)
    }

    fn abilities(&self) -> fio::Operations {
        self.access.abilities()
    }

    fn create(&self, name: &str, node: NewNode) -> Result<Arc<dyn DirectoryEntry>, Status> {
        if self.access == Access::ReadOnly {
            return Err(Status::ACCESS_DENIED);
        }
        let parent = self.open()?;
        match node {
            NewNode::Directory => {
                fs::mkdirat(&parent, name, Mode::RWXU).map_err(status_of)?;
                self.lookup(name)
            }
            NewNode::File => {
                let file = self.open_file(&parent, name, OFlags::CREATE | OFlags::EXCL)?;
                Ok(vfs::file::entry(Arc::new(file), fio::INO_UNKNOWN))
            }
        }
    }

    fn unlink(&self, name: &str, must_be_directory: bool) -> Result<(), Status> {
        if self.access == Access::ReadOnly {
            return Err(Status::ACCESS_DENIED);
        }
        let parent = self.open()?;
        let stat = fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW).map_err(status_of)?;
        let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        if must_be_directory && !is_directory {
            return Err(Status::NOT_DIR);
        }
        let flags = if is_directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        fs::unlinkat(&parent, name, flags).map_err(status_of)
    }

    fn rename(&self, from: &str, target: &Arc<dyn Directory>, to: &str) -> Result<(), Status> {
        let target = target
            .as_any()
            .and_then(|any| any.downcast_ref::<Self>())
            .ok_or(Status::NOT_SUPPORTED)?;
        if self.access == Access::ReadOnly || target.access == Access::ReadOnly {
            return Err(Status::ACCESS_DENIED);
        }
        fs::renameat(self.open()?, from, target.open()?, to).map_err(status_of)
    }

    fn sync(&self) -> Result<(), Status> {
        fs::fsync(self.open()?).map_err(status_of)
    }

    fn as_any(&self) -> Option<&dyn Any> {
        Some(self)
    }
}

struct HostFile {
    fd: OwnedFd,
    access: Access,
}

impl File for HostFile {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<usize, Status> {
        rustix::io::pread(&self.fd, buffer, offset).map_err(status_of)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<usize, Status> {
        rustix::io::pwrite(&self.fd, bytes, offset).map_err(status_of)
    }

    fn size(&self) -> Result<u64, Status> {
        let stat = fs::fstat(&self.fd).map_err(status_of)?;
        u64::try_from(stat.st_size).map_err(|_| Status::IO)
    }

    fn resize(&self, size: u64) -> Result<(), Status> {
        fs::ftruncate(&self.fd, size).map_err(status_of)
    }

    fn sync(&self) -> Result<(), Status> {
        fs::fsync(&self.fd).map_err(status_of)
    }

    fn backing_memory(&self, flags: fio::VmoFlags) -> Result<zx::Vmo, Status> {
        if flags.contains(fio::VmoFlags::WRITE) && self.access == Access::ReadOnly {
            return Err(Status::ACCESS_DENIED);
        }
        backing_memory(self.fd.as_fd(), flags)
    }

    fn advisory_lock(&self, kind: fio::AdvisoryLockType) -> Result<(), Status> {
        match kind {
            fio::AdvisoryLockType::Read => image_lock::lock(&self.fd, ImageUse::Read),
            fio::AdvisoryLockType::Write => image_lock::lock(&self.fd, ImageUse::Write),
            fio::AdvisoryLockType::Unlock => image_lock::unlock(&self.fd),
        }
    }

    fn abilities(&self) -> fio::Operations {
        let readable = fio::Operations::READ_BYTES | fio::Operations::GET_ATTRIBUTES;
        match self.access {
            Access::ReadOnly => readable | fio::Operations::EXECUTE,
            Access::ReadWrite => readable | fio::Operations::WRITE_BYTES,
            Access::Package => readable | fio::Operations::WRITE_BYTES | fio::Operations::EXECUTE,
        }
    }
}

/// The directory `bin` of the built-in package: every component's binary is `executable`, which tells by its arguments which it is.
#[must_use]
pub(crate) fn binaries(executable: &Path) -> Arc<dyn DirectoryEntry> {
    vfs::directory::entry(
        Arc::new(Binaries { executable: executable.to_owned() }),
        fio::INO_UNKNOWN,
    )
}

struct Binaries {
    executable: PathBuf,
}

impl Directory for Binaries {
    fn lookup(&self, _name: &str) -> Result<Arc<dyn DirectoryEntry>, Status> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let fd = fs::openat(CWD, &self.executable, flags, Mode::empty()).map_err(status_of)?;
        Ok(vfs::file::entry(Arc::new(HostFile { fd, access: Access::ReadOnly }), fio::INO_UNKNOWN))
    }

    fn list(&self) -> Result<Vec<(String, EntryInfo)>, Status> {
        let names = crate::builtin_package::BINARIES.iter();
        Ok(names
            .map(|name| ((*name).to_owned(), EntryInfo::of_kind(fio::DirentType::File)))
            .collect())
    }

    fn abilities(&self) -> fio::Operations {
        fio::RX_STAR_DIR
    }
}

/// A VMO with a file's bytes: the file itself where changes are to be shared or nothing is changed, a copy where they are private.
fn backing_memory(fd: rustix::fd::BorrowedFd<'_>, flags: fio::VmoFlags) -> Result<zx::Vmo, Status> {
    let mut rights = zx::Rights::DUPLICATE
        | zx::Rights::TRANSFER
        | zx::Rights::WAIT
        | zx::Rights::INSPECT
        | zx::Rights::GET_PROPERTY
        | zx::Rights::MAP;
    if flags.contains(fio::VmoFlags::READ) {
        rights |= zx::Rights::READ;
    }
    if flags.contains(fio::VmoFlags::WRITE) {
        rights |= zx::Rights::WRITE;
    }
    if flags.contains(fio::VmoFlags::EXECUTE) {
        rights |= zx::Rights::EXECUTE;
    }
    if flags.contains(fio::VmoFlags::PRIVATE_CLONE) && flags.contains(fio::VmoFlags::WRITE) {
        return Err(Status::NOT_SUPPORTED);
    }
    zx::linux::vmo_from_file(rustix::io::fcntl_dupfd_cloexec(fd, 0).map_err(status_of)?, rights)
}
