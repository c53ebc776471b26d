//! Locks on disk images, so that no two machines write to one disk.
//!
//! They are the locks that QEMU takes (`docs/system/qemu-block-drivers.rst.inc`, "Disk image file locking"), so that its tools and
//! machines see ours and are seen: whoever uses a file holds a shared lock on the byte at 100 + n for each permission n that it has,
//! and on the byte at 200 + n for each that it lets nobody else have; then it looks whether somebody is in the way. They are
//! open-file-description locks: the lock of an open file goes wherever its descriptor is sent, a VMO made of it included, and ends
//! with the last of them.

use crate::byte_lock;
use fuchsia_zircon::Status;
use nix::libc;
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Where the bytes for permissions that somebody has begin.
const HELD: i64 = 100;
/// Where the bytes for permissions that nobody else may have begin.
const NOT_SHARED: i64 = 200;
/// How many permissions there are.
const PERMISSIONS: i64 = 4;

/// The permission to read what nobody changes meanwhile.
const CONSISTENT_READ: i64 = 0;
/// The permission to write.
const WRITE: i64 = 1;
/// The permission to change the size.
const RESIZE: i64 = 3;

/// What the user of an image lets nobody else do. A disk that somebody writes is of no use to anybody else, not to be read either:
/// those who read ask for this, too, and so are not let in beside the writer.
const KEPT: [i64; 2] = [WRITE, RESIZE];

/// What an image is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageUse {
    /// To be read, with others that read.
    Read,
    /// To be written, by nobody else.
    Write,
}

impl ImageUse {
    fn permissions(self) -> &'static [i64] {
        match self {
            Self::Read => &[CONSISTENT_READ],
            Self::Write => &[CONSISTENT_READ, WRITE, RESIZE],
        }
    }
}

/// Locks an open image, in place of a lock that it has. The file needs to be open for reading only.
///
/// # Errors
/// `BAD_STATE` where another open file has a lock that is in the way; the file has none then. `NOT_SUPPORTED` where the file system has
/// no such locks.
pub(crate) fn lock(image: &impl AsFd, wanted: ImageUse) -> Result<(), Status> {
    unlock(image)?;
    let result = lock_and_look(image, wanted);
    if result.is_err() {
        unlock(image)?;
    }
    result
}

/// First locks, then looks: of two that come at once at least one sees the other.
fn lock_and_look(image: &impl AsFd, wanted: ImageUse) -> Result<(), Status> {
    let held = wanted.permissions().iter().map(|permission| HELD + permission);
    for byte in held.chain(KEPT.map(|permission| NOT_SHARED + permission)) {
        byte_lock::set(image, byte, 1, libc::F_RDLCK)?;
    }
    let refused = wanted.permissions().iter().map(|permission| NOT_SHARED + permission);
    for byte in refused.chain(KEPT.map(|permission| HELD + permission)) {
        if byte_lock::is_held_elsewhere(image, byte)? {
            return Err(Status::BAD_STATE);
        }
    }
    Ok(())
}

/// Lets go of an image's lock, if it has one.
///
/// # Errors
/// `NOT_SUPPORTED` where the file system has no such locks.
pub(crate) fn unlock(image: &impl AsFd) -> Result<(), Status> {
    byte_lock::set(image, HELD, PERMISSIONS, libc::F_UNLCK)?;
    byte_lock::set(image, NOT_SHARED, PERMISSIONS, libc::F_UNLCK)
}

/// A process that has a lock on a file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Holder {
    /// Its id.
    pub pid: u32,
    /// Its program, as it was called.
    pub name: String,
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} (process {})", self.name, self.pid)
    }
}

/// The processes that have locks on the file at `path`, as far as this user may know.
#[must_use]
pub fn holders(path: &Path) -> Vec<Holder> {
    let Ok(file) = fs::metadata(path) else { return Vec::new() };
    let mut found = Vec::new();
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        if has_lock(&process.path(), (file.dev(), file.ino())) {
            found.push(Holder { pid, name: program(&process.path()) });
        }
    }
    found.sort();
    found
}

/// Whether a process has the file open and locked. Another user's process keeps that to itself.
fn has_lock(process: &Path, file: (u64, u64)) -> bool {
    let descriptors = fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
    descriptors
        .filter(|entry| {
            fs::metadata(entry.path()).is_ok_and(|open| (open.dev(), open.ino()) == file)
        })
        .any(|entry| {
            let information = fs::read_to_string(process.join("fdinfo").join(entry.file_name()));
            information.is_ok_and(|text| text.lines().any(|line| line.starts_with("lock:")))
        })
}

fn program(process: &Path) -> String {
    let words = fs::read(process.join("cmdline")).unwrap_or_default();
    let first = words.split(|byte| *byte == 0).next().unwrap_or_default();
    let first = PathBuf::from(String::from_utf8_lossy(first).into_owned());
    match first.file_name() {
        Some(name) => name.to_string_lossy().into_owned(),
        None => "a program without a name".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{File, OpenOptions};
    use std::process::{Command, Stdio};

    fn image() -> tempfile::NamedTempFile {
        let image = tempfile::NamedTempFile::new().unwrap();
        image.as_file().set_len(1 << 20).unwrap();
        image
    }

    fn open(image: &tempfile::NamedTempFile) -> File {
        OpenOptions::new().read(true).write(true).open(image.path()).unwrap()
    }

    #[test]
    fn readers_share_and_a_writer_is_alone() {
        let image = image();
        let (one, two, three) = (open(&image), open(&image), open(&image));
        lock(&one, ImageUse::Read).unwrap();
        lock(&two, ImageUse::Read).unwrap();
        assert_eq!(lock(&three, ImageUse::Write), Err(Status::BAD_STATE));
        drop(one);
        unlock(&two).unwrap();
        lock(&three, ImageUse::Write).unwrap();
        assert_eq!(lock(&two, ImageUse::Read), Err(Status::BAD_STATE));
        assert_eq!(lock(&two, ImageUse::Write), Err(Status::BAD_STATE));
        // The refused left no traces.
        lock(&three, ImageUse::Write).unwrap();
    }

    #[test]
    fn a_lock_lives_as_long_as_the_last_descriptor_of_the_open_file() {
        let image = image();
        let first = open(&image);
        lock(&first, ImageUse::Write).unwrap();
        let sent = first.try_clone().unwrap();
        drop(first);
        let second = open(&image);
        assert_eq!(lock(&second, ImageUse::Write), Err(Status::BAD_STATE));
        drop(sent);
        lock(&second, ImageUse::Write).unwrap();
    }

    #[test]
    fn the_holder_is_found() {
        let image = image();
        assert_eq!(holders(image.path()), []);
        let file = open(&image);
        lock(&file, ImageUse::Read).unwrap();
        let found = holders(image.path());
        assert!(found.iter().any(|holder| holder.pid == std::process::id()), "{found:?}");
    }

    /// Whether qemu-img does its work, or none where it is not installed.
    fn qemu_img(words: &[&str]) -> Option<bool> {
        let mut command = Command::new("qemu-img");
        command.args(words).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().ok().map(|status| status.success())
    }

    #[test]
    fn qemu_sees_our_locks() {
        let image = image();
        let path = image.path().to_str().unwrap();
        let copy = tempfile::NamedTempFile::new().unwrap();
        let copy = copy.path().to_str().unwrap();
        let read = || qemu_img(&["convert", "-f", "raw", "-O", "raw", path, copy]);
        let write = || qemu_img(&["resize", "-f", "raw", path, "1M"]);
        if read().is_none() {
            return;
        }
        let file = open(&image);
        lock(&file, ImageUse::Read).unwrap();
        assert_eq!((read(), write()), (Some(true), Some(false)), "beside a reader");
        lock(&file, ImageUse::Write).unwrap();
        assert_eq!((read(), write()), (Some(false), Some(false)), "beside a writer");
        unlock(&file).unwrap();
        assert_eq!((read(), write()), (Some(true), Some(true)), "beside nobody");
    }
}
