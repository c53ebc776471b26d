//! A disk in a VMO of its own, gone with the device.

use fuchsia_zircon as zx;
use virtio_device::GuestSlice;

use super::{Backend, BackendError};

/// An anonymous VMO as a disk. Pages take memory only once they are written.
#[derive(Debug)]
pub struct MemoryBackend {
    vmo: zx::Vmo,
    capacity: u64,
}

impl MemoryBackend {
    /// A disk of `capacity` zero bytes.
    ///
    /// # Errors
    /// What `zx_vmo_create` returns.
    pub fn new(capacity: u64) -> Result<Self, BackendError> {
        Ok(Self { vmo: zx::Vmo::create(capacity)?, capacity })
    }
}

impl Backend for MemoryBackend {
    fn capacity(&self) -> u64 {
        self.capacity
    }

    fn read(&self, buf: &mut [u8], offset: u64) -> Result<(), BackendError> {
        Ok(self.vmo.read(buf, offset)?)
    }

    fn write(&self, buf: &[u8], offset: u64) -> Result<(), BackendError> {
        Ok(self.vmo.write(buf, offset)?)
    }

    fn read_to_guest(&self, to: GuestSlice<'_>, offset: u64) -> Option<Result<(), BackendError>> {
        Some(to.read_from_vmo(&self.vmo, offset).map_err(BackendError::from))
    }

    fn write_from_guest(
        &self,
        from: GuestSlice<'_>,
        offset: u64,
    ) -> Option<Result<(), BackendError>> {
        Some(from.write_to_vmo(&self.vmo, offset).map_err(BackendError::from))
    }

    fn flush(&self) -> Result<(), BackendError> {
        Ok(())
    }

    fn discard(&self, offset: u64, len: u64) -> Result<(), BackendError> {
        self.write_zeroes(offset, len, true)
    }

    fn write_zeroes(&self, offset: u64, len: u64, _unmap: bool) -> Result<(), BackendError> {
        if len == 0 {
            return Ok(());
        }
        Ok(self.vmo.op_range(zx::VmoOp::ZERO, offset, len)?)
    }
}
