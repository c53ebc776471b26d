//! Where a disk's sectors are kept.

mod file;
mod memory;
mod qcow;
mod remote;
mod volatile;

#[cfg(test)]
mod conformance_test;
#[cfg(test)]
mod fake_block;

pub use file::{FileBackend, FileStorage, Storage};
pub use memory::MemoryBackend;
pub use qcow::{QcowBackend, StorageFile};
pub use remote::RemoteBackend;
pub use volatile::VolatileBackend;

use fuchsia_zircon as zx;
use virtio_device::GuestSlice;

/// Why a back-end could not do what a valid request asks for: the host's fault, or a damaged image's.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// A system call or a file server refused.
    #[error("The storage failed: {0}")]
    Storage(#[from] zx::Status),
    /// The channel to the file server or the host's block device failed.
    #[error("The server of the storage is gone")]
    Fidl(#[from] fidl::Error),
    /// The qcow2 image failed.
    #[error("The image failed")]
    Image(#[from] ::qcow::Error),
    /// The disk cannot be served as it is.
    #[error("{0}")]
    Unusable(&'static str),
}

/// A disk's contents.
///
/// Positions and lengths are bytes, multiples of [`crate::SECTOR_SIZE`], and within the capacity: the device checks
/// every request first. Several threads may call at once; what overlapping calls yield is as unspecified as it is on
/// a real disk.
pub trait Backend: Send + Sync {
    /// Size in bytes, a multiple of [`crate::SECTOR_SIZE`]. Does not change.
    fn capacity(&self) -> u64;

    /// The block size that the back-end works best with, in bytes: a power of two of at least 512.
    fn block_size(&self) -> u32 {
        crate::SECTOR_SIZE as u32
    }

    /// Reads all of `buf`.
    ///
    /// # Errors
    /// The storage's. `buf` may be partly written.
    fn read(&self, buf: &mut [u8], offset: u64) -> Result<(), BackendError>;

    /// Writes all of `buf`. Lasting only after [`Backend::flush`].
    ///
    /// # Errors
    /// The storage's. The range may be partly written.
    fn write(&self, buf: &[u8], offset: u64) -> Result<(), BackendError>;

    /// As [`Backend::read`], straight into guest memory. None if the back-end cannot.
    fn read_to_guest(&self, to: GuestSlice<'_>, offset: u64) -> Option<Result<(), BackendError>> {
        let _ = (to, offset);
        None
    }

    /// As [`Backend::write`], straight from guest memory. None if the back-end cannot.
    fn write_from_guest(
        &self,
        from: GuestSlice<'_>,
        offset: u64,
    ) -> Option<Result<(), BackendError>> {
        let _ = (from, offset);
        None
    }

    /// Returns once everything written before is on stable storage, as far as the host can tell.
    ///
    /// # Errors
    /// The storage's. Then what was written since the last flush may be lost.
    fn flush(&self) -> Result<(), BackendError>;

    /// Says that a range is no longer needed. It may read as anything that was ever written there, or zeroes.
    ///
    /// # Errors
    /// The storage's.
    fn discard(&self, offset: u64, len: u64) -> Result<(), BackendError> {
        let _ = (offset, len);
        Ok(())
    }

    /// Makes a range read as zeroes; with `unmap`, its storage may be freed.
    ///
    /// # Errors
    /// The storage's.
    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Result<(), BackendError> {
        let _ = unmap;
        write_zeroes_in_pieces(self, offset, len)
    }
}

/// Writes zeroes as any other bytes.
fn write_zeroes_in_pieces<B: Backend + ?Sized>(
    backend: &B,
    offset: u64,
    len: u64,
) -> Result<(), BackendError> {
    static ZEROES: [u8; 64 << 10] = [0; 64 << 10];
    let mut done = 0;
    while done < len {
        let piece = (len - done).min(ZEROES.len() as u64);
        backend.write(&ZEROES[..piece as usize], offset + done)?;
        done += piece;
    }
    Ok(())
}
