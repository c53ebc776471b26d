use crate::handle::impl_handle_based;
use crate::{AsHandleRef, Handle, Port, Resource, Status, Vmar, ok, sys};

/// A virtual machine: guest-physical memory, traps, and the vCPUs made for it.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Guest(Handle);
impl_handle_based!(Guest);

impl Guest {
    /// A new guest and its physical address space.
    ///
    /// # Errors
    /// `ACCESS_DENIED` where the resource is not the hypervisor's, `NOT_SUPPORTED`, `NO_MEMORY`.
    pub fn create(hypervisor: &Resource) -> Result<(Guest, Vmar), Status> {
        let (mut guest, mut vmar) = (0, 0);
        // SAFETY: both results have a valid place.
        ok(unsafe {
            sys::zx_guest_create(hypervisor.raw_handle(), 0, &raw mut guest, &raw mut vmar)
        })?;
        // SAFETY: the call gave us both handles.
        unsafe { Ok((Guest(Handle::from_raw(guest)), Vmar::from(Handle::from_raw(vmar)))) }
    }

    /// Sends writes in a range of guest-physical addresses to a port, while the guest goes on.
    ///
    /// # Errors
    /// `ALREADY_EXISTS` on an overlap, `INVALID_ARGS` without page alignment, `OUT_OF_RANGE`, `ACCESS_DENIED`.
    pub fn set_trap_bell(
        &self,
        addr: u64,
        size: usize,
        port: &Port,
        key: u64,
    ) -> Result<(), Status> {
        self.set_trap(sys::ZX_GUEST_TRAP_BELL, addr, size, port.raw_handle(), key)
    }

    /// Makes a vCPU that touches a range of guest-physical addresses return from [`crate::Vcpu::enter`].
    ///
    /// # Errors
    /// As [`Guest::set_trap_bell`].
    pub fn set_mem_trap(&self, addr: u64, size: usize, key: u64) -> Result<(), Status> {
        self.set_trap(sys::ZX_GUEST_TRAP_MEM, addr, size, sys::ZX_HANDLE_INVALID, key)
    }

    /// Makes a vCPU that touches a range of I/O ports return from [`crate::Vcpu::enter`].
    ///
    /// # Errors
    /// As [`Guest::set_trap_bell`]; `NOT_SUPPORTED` on machines without I/O ports.
    pub fn set_io_trap(&self, port: u16, size: u16, key: u64) -> Result<(), Status> {
        let (addr, size) = (u64::from(port), usize::from(size));
        self.set_trap(sys::ZX_GUEST_TRAP_IO, addr, size, sys::ZX_HANDLE_INVALID, key)
    }

    fn set_trap(
        &self,
        kind: sys::zx_guest_trap_t,
        addr: u64,
        size: usize,
        port: sys::zx_handle_t,
        key: u64,
    ) -> Result<(), Status> {
        let addr = usize::try_from(addr).map_err(|_| Status::OUT_OF_RANGE)?;
        // SAFETY: the call takes numbers only.
        ok(unsafe { sys::zx_guest_set_trap(self.raw_handle(), kind, addr, size, port, key) })
    }
}
