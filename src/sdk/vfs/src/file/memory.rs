//! Files that exist only in memory.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fidl_fuchsia_io as fio;
use fuchsia_zircon::{self as zx, Status};

use super::File;
use crate::entry::DirectoryEntry;

/// A file in memory.
pub struct Memory {
    bytes: Mutex<Vec<u8>>,
    /// In bytes; 0 for one that cannot be written.
    capacity: usize,
}

/// A file with these bytes that cannot be written.
pub fn read_only(bytes: impl Into<Vec<u8>>) -> Arc<dyn DirectoryEntry> {
    let memory = Memory { bytes: Mutex::new(bytes.into()), capacity: 0 };
    super::entry(Arc::new(memory), fio::INO_UNKNOWN)
}

/// A file with these bytes that can be written and grow to `capacity` bytes.
pub fn read_write(bytes: impl Into<Vec<u8>>, capacity: usize) -> Arc<Memory> {
    Arc::new(Memory { bytes: Mutex::new(bytes.into()), capacity })
}

impl Memory {
    fn lock(&self) -> MutexGuard<'_, Vec<u8>> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is in it now.
    pub fn contents(&self) -> Vec<u8> {
        self.lock().clone()
    }
}

impl File for Memory {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<usize, Status> {
        let bytes = self.lock();
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let available = bytes.get(start..).unwrap_or_default();
        let count = available.len().min(buffer.len());
        buffer[..count].copy_from_slice(&available[..count]);
        Ok(count)
    }

    fn write_at(&self, offset: u64, new: &[u8]) -> Result<usize, Status> {
        let mut bytes = self.lock();
        let start = usize::try_from(offset).map_err(|_| Status::NO_SPACE)?;
        let end = start.checked_add(new.len()).ok_or(Status::NO_SPACE)?;
        if end > self.capacity {
            return Err(Status::NO_SPACE);
        }
        if end > bytes.len() {
            bytes.resize(end, 0);
        }
        bytes[start..end].copy_from_slice(new);
        Ok(new.len())
    }

    fn size(&self) -> Result<u64, Status> {
        Ok(self.lock().len() as u64)
    }

    fn resize(&self, size: u64) -> Result<(), Status> {
        let size = usize::try_from(size).map_err(|_| Status::NO_SPACE)?;
        if size > self.capacity {
            return Err(Status::NO_SPACE);
        }
        self.lock().resize(size, 0);
        Ok(())
    }

    fn backing_memory(&self, flags: fio::VmoFlags) -> Result<zx::Vmo, Status> {
        if flags.contains(fio::VmoFlags::SHARED_BUFFER) {
            return Err(Status::NOT_SUPPORTED);
        }
        let bytes = self.lock();
        let vmo = zx::Vmo::create(bytes.len() as u64)?;
        vmo.write(&bytes, 0)?;
        Ok(vmo)
    }

    fn abilities(&self) -> fio::Operations {
        let read = fio::Operations::READ_BYTES | fio::Operations::GET_ATTRIBUTES;
        if self.capacity > 0 { read | fio::Operations::WRITE_BYTES } else { read }
    }
}
