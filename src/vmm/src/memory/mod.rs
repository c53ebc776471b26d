//! Guest physical memory as the VMM sees it: checked reads and writes by guest-physical address.
//!
//! The VMM never maps guest memory: it copies in and out of the VMO that backs it, so no reference into memory
//! that the guest changes at will can exist in this process.

mod layout;
mod vmo;

pub use layout::{LayoutError, MemoryLayout, PAGE_SIZE};
pub use vmo::VmoMemory;

use std::sync::Mutex;

/// Why an access to guest memory failed.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum MemoryError {
    /// The range is not (wholly) RAM. Whoever computed the address is at fault: the guest, or a malformed image.
    #[error("Guest-physical range {addr:#x}+{len:#x} is outside guest memory")]
    OutOfRange {
        /// First byte of the range.
        addr: u64,
        /// Length in bytes.
        len: u64,
    },
    /// The host refused the access.
    #[error("The host failed an access to guest memory at {addr:#x}: {status}")]
    Host {
        /// First byte of the range.
        addr: u64,
        /// The status of the failed system call.
        status: fuchsia_zircon::Status,
    },
}

/// Guest-physical memory, addressed from 0 to [`GuestMemory::size`].
pub trait GuestMemory: Send + Sync {
    /// One past the highest address that may be accessed, in bytes.
    fn size(&self) -> u64;

    /// Copies `buffer.len()` bytes from `addr`.
    fn read(&self, addr: u64, buffer: &mut [u8]) -> Result<(), MemoryError>;

    /// Copies `data` to `addr`.
    fn write(&self, addr: u64, data: &[u8]) -> Result<(), MemoryError>;

    /// Reads a little-endian `u64` at `addr`.
    fn read_u64(&self, addr: u64) -> Result<u64, MemoryError> {
        let mut bytes = [0; 8];
        self.read(addr, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Reads a little-endian `u16` at `addr`.
    fn read_u16(&self, addr: u64) -> Result<u16, MemoryError> {
        let mut bytes = [0; 2];
        self.read(addr, &mut bytes)?;
        Ok(u16::from_le_bytes(bytes))
    }

    /// Checks that `[addr, addr + len)` lies inside the address space.
    fn check(&self, addr: u64, len: u64) -> Result<(), MemoryError> {
        match addr.checked_add(len) {
            Some(end) if end <= self.size() => Ok(()),
            _ => Err(MemoryError::OutOfRange { addr, len }),
        }
    }
}

/// Guest memory in a plain buffer, for tests and for building images before a guest exists.
pub struct BufferMemory(Mutex<Vec<u8>>);

impl BufferMemory {
    /// Zero-filled memory of `size` bytes.
    pub fn new(size: usize) -> Self {
        Self(Mutex::new(vec![0; size]))
    }

    fn bytes(&self) -> std::sync::MutexGuard<'_, Vec<u8>> {
        // A panic while copying leaves at worst a half-written range, which memory tolerates.
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl GuestMemory for BufferMemory {
    fn size(&self) -> u64 {
        self.bytes().len() as u64
    }

    fn read(&self, addr: u64, buffer: &mut [u8]) -> Result<(), MemoryError> {
        self.check(addr, buffer.len() as u64)?;
        let start = addr as usize;
        buffer.copy_from_slice(&self.bytes()[start..start + buffer.len()]);
        Ok(())
    }

    fn write(&self, addr: u64, data: &[u8]) -> Result<(), MemoryError> {
        self.check(addr, data.len() as u64)?;
        let start = addr as usize;
        self.bytes()[start..start + data.len()].copy_from_slice(data);
        Ok(())
    }
}
