//! A disk in a qcow2 image.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use ::qcow::{BlockFile, Image, SharedImage};
use fuchsia_zircon as zx;

use super::{Backend, BackendError, Storage};

/// The file of an image grows by at least this many bytes at a time: growing is a message to the file server.
const GROWTH: u64 = 4 << 20;

/// A [`Storage`] as the image format wants it: a file that grows when it is written beyond its end.
#[derive(Debug)]
pub struct StorageFile<S> {
    storage: S,
    size: Mutex<u64>,
}

impl<S: Storage> StorageFile<S> {
    /// Takes a storage whose size nobody else changes.
    ///
    /// # Errors
    /// The storage's.
    pub fn new(storage: S) -> Result<Self, BackendError> {
        let size = Mutex::new(storage.size()?);
        Ok(Self { storage, size })
    }

    fn known_size(&self) -> MutexGuard<'_, u64> {
        self.size.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn to_io(error: BackendError) -> io::Error {
    match error {
        BackendError::Storage(zx::Status::NO_SPACE) => {
            io::Error::new(io::ErrorKind::StorageFull, error)
        }
        BackendError::Storage(zx::Status::OUT_OF_RANGE) => {
            io::Error::new(io::ErrorKind::UnexpectedEof, error)
        }
        error => io::Error::other(error),
    }
}

impl<S: Storage> BlockFile for StorageFile<S> {
    fn len(&self) -> io::Result<u64> {
        Ok(*self.known_size())
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.storage.read(buf, offset).map_err(to_io)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let end = offset.checked_add(buf.len() as u64).ok_or(io::ErrorKind::FileTooLarge)?;
        let mut size = self.known_size();
        if end > *size {
            let grown = end.checked_next_multiple_of(GROWTH).ok_or(io::ErrorKind::FileTooLarge)?;
            self.storage.resize(grown).map_err(to_io)?;
            *size = grown;
        }
        drop(size);
        self.storage.write(buf, offset).map_err(to_io)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut size = self.known_size();
        self.storage.resize(len).map_err(to_io)?;
        *size = len;
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.storage.sync().map_err(to_io)
    }

    fn punch_hole(&self, offset: u64, len: u64) -> io::Result<()> {
        let size = *self.known_size();
        let len = len.min(size.saturating_sub(offset));
        let Some(vmo) = self.storage.vmo().filter(|_| len > 0) else { return Ok(()) };
        match vmo.op_range(zx::VmoOp::ZERO, offset, len) {
            // Freeing is a hint here.
            Ok(()) | Err(zx::Status::NOT_SUPPORTED) => Ok(()),
            Err(status) => Err(to_io(status.into())),
        }
    }
}

/// A qcow2 image as a disk, of which several queues read and write what is allocated at once.
#[derive(Debug)]
pub struct QcowBackend {
    image: SharedImage,
    capacity: u64,
}

impl QcowBackend {
    /// The disk in `image`, up to its last whole sector.
    pub fn new(image: Image) -> Self {
        let capacity = image.size() - image.size() % crate::SECTOR_SIZE;
        Self { image: SharedImage::new(image), capacity }
    }
}

impl Backend for QcowBackend {
    fn capacity(&self) -> u64 {
        self.capacity
    }

    fn read(&self, buf: &mut [u8], offset: u64) -> Result<(), BackendError> {
        Ok(self.image.read_at(buf, offset)?)
    }

    fn write(&self, buf: &[u8], offset: u64) -> Result<(), BackendError> {
        Ok(self.image.write_at(buf, offset)?)
    }

    fn flush(&self) -> Result<(), BackendError> {
        Ok(self.image.flush()?)
    }

    fn discard(&self, offset: u64, len: u64) -> Result<(), BackendError> {
        Ok(self.image.discard(offset, len)?)
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Result<(), BackendError> {
        Ok(self.image.write_zeroes(offset, len, unmap)?)
    }
}
