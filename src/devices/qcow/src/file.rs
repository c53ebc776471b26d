//! Where an image's bytes are kept.

use std::io;
use std::sync::{Mutex, PoisonError};

/// A file that can be read and written anywhere. Shared, so all methods take `&self`.
pub trait BlockFile: Send + Sync {
    /// Length in bytes.
    ///
    /// # Errors
    /// The file's.
    fn len(&self) -> io::Result<u64>;

    /// Whether the file has no bytes.
    ///
    /// # Errors
    /// The file's.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Reads all of `buf` from `offset`.
    ///
    /// # Errors
    /// The file's; `UnexpectedEof` when it ends before.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;

    /// Writes all of `buf` at `offset`, growing the file if it ends before.
    ///
    /// # Errors
    /// The file's.
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()>;

    /// Sets the length in bytes; new ones are zero.
    ///
    /// # Errors
    /// The file's.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Returns once everything written before is on stable storage, with the metadata needed to find it.
    ///
    /// # Errors
    /// The file's. What was written before may then be lost.
    fn sync(&self) -> io::Result<()>;

    /// Says that a range's contents are no longer needed, so that its storage may be freed. What it reads as
    /// afterwards is unspecified. A file that cannot does nothing.
    ///
    /// # Errors
    /// The file's.
    fn punch_hole(&self, offset: u64, len: u64) -> io::Result<()> {
        let _ = (offset, len);
        Ok(())
    }
}

/// A file in memory.
#[derive(Debug, Default)]
pub struct MemoryFile(Mutex<Vec<u8>>);

impl MemoryFile {
    /// A file with these contents.
    pub fn new(contents: Vec<u8>) -> Self {
        Self(Mutex::new(contents))
    }

    /// A copy of the contents.
    pub fn contents(&self) -> Vec<u8> {
        self.bytes().clone()
    }

    fn bytes(&self) -> std::sync::MutexGuard<'_, Vec<u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn range(offset: u64, len: usize) -> io::Result<std::ops::Range<usize>> {
    let start = usize::try_from(offset).map_err(|_| io::ErrorKind::FileTooLarge)?;
    let end = start.checked_add(len).ok_or(io::ErrorKind::FileTooLarge)?;
    Ok(start..end)
}

impl BlockFile for MemoryFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.bytes().len() as u64)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let bytes = self.bytes();
        buf.copy_from_slice(
            bytes.get(range(offset, buf.len())?).ok_or(io::ErrorKind::UnexpectedEof)?,
        );
        Ok(())
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let range = range(offset, buf.len())?;
        let mut bytes = self.bytes();
        if bytes.len() < range.end {
            bytes.resize(range.end, 0);
        }
        if let Some(to) = bytes.get_mut(range) {
            to.copy_from_slice(buf);
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.bytes().resize(usize::try_from(len).map_err(|_| io::ErrorKind::FileTooLarge)?, 0);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}
