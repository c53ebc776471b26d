//! Guest memory in the VMO that is mapped into the guest.

use super::{GuestMemory, MemoryError};
use fuchsia_zircon as zx;

/// Guest-physical memory backed by a VMO whose offsets are guest-physical addresses.
pub struct VmoMemory {
    vmo: zx::Vmo,
    size: u64,
}

impl VmoMemory {
    /// Wraps `vmo`, whose size is the size of the guest-physical address space.
    ///
    /// # Errors
    ///
    /// The status of asking for the VMO's size.
    pub fn new(vmo: zx::Vmo) -> Result<Self, zx::Status> {
        let size = vmo.get_size()?;
        Ok(Self { vmo, size })
    }

    /// The VMO behind this memory.
    pub fn vmo(&self) -> &zx::Vmo {
        &self.vmo
    }
}

impl GuestMemory for VmoMemory {
    fn size(&self) -> u64 {
        self.size
    }

    fn read(&self, addr: u64, buffer: &mut [u8]) -> Result<(), MemoryError> {
        self.check(addr, buffer.len() as u64)?;
        self.vmo.read(buffer, addr).map_err(|status| MemoryError::Host { addr, status })
    }

    fn write(&self, addr: u64, data: &[u8]) -> Result<(), MemoryError> {
        self.check(addr, data.len() as u64)?;
        self.vmo.write(data, addr).map_err(|status| MemoryError::Host { addr, status })
    }
}
