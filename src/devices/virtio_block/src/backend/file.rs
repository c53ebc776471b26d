//! A disk in a file: byte n of the disk is byte n of the file.
//!
//! The file arrives as a `fuchsia.io.File` channel. A message to a file server for every request would cost two
//! context switches, so the device asks once for the memory that backs the file and reads and writes that; the
//! channel remains for what a VMO cannot do: `Sync`, and `Resize` for images that grow. A server that has no such
//! memory is spoken to in messages.

use fidl_fuchsia_io as fio;
use fuchsia_zircon as zx;
use virtio_device::GuestSlice;

use super::{Backend, BackendError};

/// Something that holds bytes at positions: a file, or a test's stand-in for one. Shared, so all methods take `&self`.
pub trait Storage: Send + Sync {
    /// Size in bytes.
    ///
    /// # Errors
    /// The storage's.
    fn size(&self) -> Result<u64, BackendError>;

    /// Reads all of `buf`.
    ///
    /// # Errors
    /// The storage's; `OUT_OF_RANGE` when it ends before.
    fn read(&self, buf: &mut [u8], offset: u64) -> Result<(), BackendError>;

    /// Writes all of `buf` to what exists.
    ///
    /// # Errors
    /// The storage's; `OUT_OF_RANGE` when it ends before.
    fn write(&self, buf: &[u8], offset: u64) -> Result<(), BackendError>;

    /// Sets the size in bytes.
    ///
    /// # Errors
    /// The storage's.
    fn resize(&self, size: u64) -> Result<(), BackendError>;

    /// Returns once everything written before is on stable storage.
    ///
    /// # Errors
    /// The storage's.
    fn sync(&self) -> Result<(), BackendError>;

    /// The VMO with the bytes, if there is one.
    fn vmo(&self) -> Option<&zx::Vmo>;
}

/// A `fuchsia.io.File`.
#[derive(Debug)]
pub struct FileStorage {
    file: fio::FileSynchronousProxy,
    vmo: Option<zx::Vmo>,
}

impl FileStorage {
    /// Takes a file that was opened with the right to read, and to write if `writable`.
    ///
    /// # Errors
    /// When the file server does not answer.
    pub fn new(file: fio::FileSynchronousProxy, writable: bool) -> Result<Self, BackendError> {
        let mut flags = fio::VmoFlags::READ | fio::VmoFlags::SHARED_BUFFER;
        if writable {
            flags |= fio::VmoFlags::WRITE;
        }
        let vmo = match file.get_backing_memory(flags, zx::Time::INFINITE)? {
            Ok(vmo) => Some(vmo),
            Err(status) => {
                let status = zx::Status::from_raw(status);
                tracing::info!(%status, "The file has no backing memory; it is read and written in messages");
                None
            }
        };
        Ok(Self { file, vmo })
    }
}

fn check(result: Result<Result<(), i32>, fidl::Error>) -> Result<(), BackendError> {
    Ok(result?.map_err(zx::Status::from_raw)?)
}

impl Storage for FileStorage {
    fn size(&self) -> Result<u64, BackendError> {
        if let Some(vmo) = &self.vmo {
            return Ok(vmo.get_content_size()?);
        }
        let attributes = self
            .file
            .get_attributes(fio::NodeAttributesQuery::CONTENT_SIZE, zx::Time::INFINITE)?
            .map_err(zx::Status::from_raw)?;
        attributes
            .1
            .content_size
            .ok_or(BackendError::Unusable("The file server does not say the file's size"))
    }

    fn read(&self, buf: &mut [u8], offset: u64) -> Result<(), BackendError> {
        if let Some(vmo) = &self.vmo {
            return Ok(vmo.read(buf, offset)?);
        }
        let mut done = 0;
        while let Some(rest) = buf.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let count = (rest.len() as u64).min(fio::MAX_TRANSFER_SIZE);
            let data = self
                .file
                .read_at(count, offset + done as u64, zx::Time::INFINITE)?
                .map_err(zx::Status::from_raw)?;
            let len = data.len().min(rest.len());
            if len == 0 {
                return Err(zx::Status::OUT_OF_RANGE.into());
            }
            rest[..len].copy_from_slice(&data[..len]);
            done += len;
        }
        Ok(())
    }

    fn write(&self, buf: &[u8], offset: u64) -> Result<(), BackendError> {
        if let Some(vmo) = &self.vmo {
            return Ok(vmo.write(buf, offset)?);
        }
        let mut done = 0;
        while let Some(rest) = buf.get(done..).filter(|rest| !rest.is_empty()) {
            let len = rest.len().min(fio::MAX_TRANSFER_SIZE as usize);
            let written = self
                .file
                .write_at(&rest[..len], offset + done as u64, zx::Time::INFINITE)?
                .map_err(zx::Status::from_raw)?;
            match usize::try_from(written).unwrap_or(0).min(len) {
                0 => return Err(zx::Status::IO.into()),
                written => done += written,
            }
        }
        Ok(())
    }

    fn resize(&self, size: u64) -> Result<(), BackendError> {
        check(self.file.resize(size, zx::Time::INFINITE))
    }

    fn sync(&self) -> Result<(), BackendError> {
        check(self.file.sync(zx::Time::INFINITE))
    }

    fn vmo(&self) -> Option<&zx::Vmo> {
        self.vmo.as_ref()
    }
}

/// A raw disk image.
#[derive(Debug)]
pub struct FileBackend<S> {
    storage: S,
    capacity: u64,
}

impl<S: Storage> FileBackend<S> {
    /// The disk in `storage`, up to its last whole sector.
    ///
    /// # Errors
    /// The storage's; [`BackendError::Unusable`] when its size is not a multiple of a sector.
    pub fn new(storage: S) -> Result<Self, BackendError> {
        let capacity = storage.size()?;
        if !capacity.is_multiple_of(crate::SECTOR_SIZE) {
            return Err(BackendError::Unusable("The file's size is not a multiple of 512 bytes"));
        }
        Ok(Self { storage, capacity })
    }
}

impl<S: Storage> Backend for FileBackend<S> {
    fn capacity(&self) -> u64 {
        self.capacity
    }

    fn read(&self, buf: &mut [u8], offset: u64) -> Result<(), BackendError> {
        self.storage.read(buf, offset)
    }

    fn write(&self, buf: &[u8], offset: u64) -> Result<(), BackendError> {
        self.storage.write(buf, offset)
    }

    fn read_to_guest(&self, to: GuestSlice<'_>, offset: u64) -> Option<Result<(), BackendError>> {
        Some(to.read_from_vmo(self.storage.vmo()?, offset).map_err(BackendError::from))
    }

    fn write_from_guest(
        &self,
        from: GuestSlice<'_>,
        offset: u64,
    ) -> Option<Result<(), BackendError>> {
        Some(from.write_to_vmo(self.storage.vmo()?, offset).map_err(BackendError::from))
    }

    fn flush(&self) -> Result<(), BackendError> {
        self.storage.sync()
    }

    fn discard(&self, offset: u64, len: u64) -> Result<(), BackendError> {
        match self.storage.vmo() {
            Some(vmo) if len > 0 => match vmo.op_range(zx::VmoOp::ZERO, offset, len) {
                // A discard is a hint.
                Err(zx::Status::NOT_SUPPORTED) => Ok(()),
                result => Ok(result?),
            },
            _ => Ok(()),
        }
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Result<(), BackendError> {
        // Zeroing a VMO frees its pages; who wants them kept gets zeroes written.
        if let Some(vmo) = self.storage.vmo().filter(|_| unmap && len > 0) {
            match vmo.op_range(zx::VmoOp::ZERO, offset, len) {
                Err(zx::Status::NOT_SUPPORTED) => {}
                result => return Ok(result?),
            }
        }
        super::write_zeroes_in_pieces(self, offset, len)
    }
}
