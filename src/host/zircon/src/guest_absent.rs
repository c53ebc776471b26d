//! Guests where there is no hypervisor: every call says so.

use crate::status::{NOT_SUPPORTED, Result};
use fuchsia_zircon_types::*;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;

pub(crate) struct BellSource(OwnedFd);
pub(crate) struct Guest(OwnedFd);
pub(crate) struct Vcpu(());
pub(crate) struct GuestMemory(());

impl BellSource {
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    pub(crate) fn take(&self) -> Vec<zx_port_packet_t> {
        Vec::new()
    }
}

impl Vcpu {
    pub(crate) fn retire(&self) {}
}

impl GuestMemory {
    pub(crate) fn map(&self, _gpa: u64, _fd: BorrowedFd<'_>, _offset: u64, _len: u64) -> Result<()> {
        Err(NOT_SUPPORTED)
    }

    pub(crate) fn unmap(&self, _gpa: u64, _len: u64) -> Result<()> {
        Err(NOT_SUPPORTED)
    }
}

impl Guest {
    pub(crate) fn control_for_transfer(&self) -> std::result::Result<OwnedFd, Errno> {
        rustix::io::fcntl_dupfd_cloexec(&self.0, 3)
    }

    pub(crate) fn from_control(control: OwnedFd) -> Guest {
        Guest(control)
    }
}



/// See the Zircon documentation of `zx_guest_create`.
///
/// # Safety
/// As on Zircon.
pub unsafe fn zx_guest_create(
    _resource: zx_handle_t,
    _options: u32,
    _guest_handle: *mut zx_handle_t,
    _vmar_handle: *mut zx_handle_t,
) -> zx_status_t {
    ZX_ERR_NOT_SUPPORTED
}

/// See the Zircon documentation of `zx_guest_set_trap`.
///
/// # Safety
/// As on Zircon.
pub unsafe fn zx_guest_set_trap(
    _handle: zx_handle_t,
    _kind: u32,
    _addr: zx_vaddr_t,
    _size: usize,
    _port_handle: zx_handle_t,
    _key: u64,
) -> zx_status_t {
    ZX_ERR_NOT_SUPPORTED
}

/// See the Zircon documentation of `zx_vcpu_create`.
///
/// # Safety
/// As on Zircon.
pub unsafe fn zx_vcpu_create(
    _guest: zx_handle_t,
    _options: u32,
    _entry: zx_vaddr_t,
    _out: *mut zx_handle_t,
) -> zx_status_t {
    ZX_ERR_NOT_SUPPORTED
}

/// See the Zircon documentation of `zx_vcpu_enter`.
///
/// # Safety
/// As on Zircon.
pub unsafe fn zx_vcpu_enter(_handle: zx_handle_t, _packet: *mut zx_port_packet_t) -> zx_status_t {
    ZX_ERR_NOT_SUPPORTED
}

/// See the Zircon documentation of `zx_vcpu_kick`.
///
/// # Safety
/// As on Zircon.
pub unsafe fn zx_vcpu_kick(_handle: zx_handle_t) -> zx_status_t {
    ZX_ERR_NOT_SUPPORTED
}

/// See the Zircon documentation of `zx_vcpu_interrupt`.
///
/// # Safety
/// As on Zircon.
pub unsafe fn zx_vcpu_interrupt(_handle: zx_handle_t, _vector: u32) -> zx_status_t {
    ZX_ERR_NOT_SUPPORTED
}

/// See the Zircon documentation of `zx_vcpu_read_state`.
///
/// # Safety
/// As on Zircon.
pub unsafe fn zx_vcpu_read_state(
    _handle: zx_handle_t,
    _kind: u32,
    _buffer: *mut u8,
    _buffer_size: usize,
) -> zx_status_t {
    ZX_ERR_NOT_SUPPORTED
}

/// See the Zircon documentation of `zx_vcpu_write_state`.
///
/// # Safety
/// As on Zircon.
pub unsafe fn zx_vcpu_write_state(
    _handle: zx_handle_t,
    _kind: u32,
    _buffer: *const u8,
    _buffer_size: usize,
) -> zx_status_t {
    ZX_ERR_NOT_SUPPORTED
}
