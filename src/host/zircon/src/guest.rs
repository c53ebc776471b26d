//! Guests and vCPUs.

use crate::status::{NOT_SUPPORTED, Result};
use rustix::fd::{BorrowedFd, OwnedFd};
use rustix::io::Errno;

/// A guest.
pub(crate) struct Guest {
    control: OwnedFd,
}

/// A vCPU.
pub(crate) struct Vcpu {}

/// Guest-physical memory.
pub(crate) struct GuestMemory {}

impl GuestMemory {
    pub(crate) fn map(
        &self,
        _gpa: u64,
        _fd: BorrowedFd<'_>,
        _offset: u64,
        _len: u64,
    ) -> Result<()> {
        Err(NOT_SUPPORTED)
    }

    pub(crate) fn unmap(&self, _gpa: u64, _len: u64) -> Result<()> {
        Err(NOT_SUPPORTED)
    }
}

impl Guest {
    pub(crate) fn control_for_transfer(&self) -> std::result::Result<OwnedFd, Errno> {
        rustix::io::fcntl_dupfd_cloexec(&self.control, 3)
    }

    pub(crate) fn from_control(control: OwnedFd) -> Guest {
        Guest { control }
    }
}
