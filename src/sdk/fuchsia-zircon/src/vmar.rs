use crate::handle::impl_handle_based;
use crate::{AsHandleRef, Handle, Status, Unowned, Vmo, ok, sys};
use bitflags::bitflags;

/// A region of an address space: a process's, or a guest's physical one.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Vmar(Handle);
impl_handle_based!(Vmar);

bitflags! {
    /// How a VMO is mapped or a region allocated.
    #[derive(Debug, Copy, Clone, PartialEq, Eq)]
    pub struct VmarFlags: sys::zx_vm_option_t {
        /// Readable.
        const PERM_READ = sys::ZX_VM_PERM_READ;
        /// Writable.
        const PERM_WRITE = sys::ZX_VM_PERM_WRITE;
        /// Executable.
        const PERM_EXECUTE = sys::ZX_VM_PERM_EXECUTE;
        /// At the offset given.
        const SPECIFIC = sys::ZX_VM_SPECIFIC;
        /// At the offset given, in place of what is there.
        const SPECIFIC_OVERWRITE = sys::ZX_VM_SPECIFIC_OVERWRITE;
        /// The region's mappings may be specific.
        const CAN_MAP_SPECIFIC = sys::ZX_VM_CAN_MAP_SPECIFIC;
        /// The region's mappings may be readable.
        const CAN_MAP_READ = sys::ZX_VM_CAN_MAP_READ;
        /// The region's mappings may be writable.
        const CAN_MAP_WRITE = sys::ZX_VM_CAN_MAP_WRITE;
        /// The region's mappings may be executable.
        const CAN_MAP_EXECUTE = sys::ZX_VM_CAN_MAP_EXECUTE;
        /// Fill in the page tables at once.
        const MAP_RANGE = sys::ZX_VM_MAP_RANGE;
        /// Refuse a resizable VMO.
        const REQUIRE_NON_RESIZABLE = sys::ZX_VM_REQUIRE_NON_RESIZABLE;
        /// Allow a mapping past the VMO's end.
        const ALLOW_FAULTS = sys::ZX_VM_ALLOW_FAULTS;
    }
}

/// The name that Fuchsia has for flags whose misuse is unsafe; here they are in [`VmarFlags`].
pub type VmarFlagsExtended = VmarFlags;

impl Vmar {
    /// This process's whole address space.
    #[must_use]
    pub fn root_self() -> Unowned<'static, Vmar> {
        // SAFETY: the root VMAR's handle stays open as long as the process.
        unsafe { Unowned::from_raw_handle(sys::vmar_root_self()) }
    }

    /// Maps a VMO and returns the address.
    ///
    /// # Errors
    /// `ACCESS_DENIED` for permissions that the VMO's handle lacks, `INVALID_ARGS`, `ALREADY_EXISTS`, `NO_MEMORY`.
    pub fn map(
        &self,
        offset: usize,
        vmo: &Vmo,
        vmo_offset: u64,
        length: usize,
        flags: VmarFlags,
    ) -> Result<usize, Status> {
        if flags.contains(VmarFlags::SPECIFIC_OVERWRITE) {
            // Replacing a mapping is as dangerous as unmapping one.
            return Err(Status::INVALID_ARGS);
        }
        let mut address = 0;
        // SAFETY: a new mapping replaces nothing, so no memory that Rust knows of changes.
        ok(unsafe {
            sys::zx_vmar_map(
                self.raw_handle(),
                flags.bits(),
                offset,
                vmo.raw_handle(),
                vmo_offset,
                length,
                &raw mut address,
            )
        })?;
        Ok(address)
    }

    /// Removes mappings.
    ///
    /// # Safety
    /// Nothing may use the range any more.
    ///
    /// # Errors
    /// `INVALID_ARGS`, `NOT_FOUND`.
    pub unsafe fn unmap(&self, address: usize, length: usize) -> Result<(), Status> {
        // SAFETY: the caller promises that the range is unused.
        ok(unsafe { sys::zx_vmar_unmap(self.raw_handle(), address, length) })
    }

    /// Changes the permissions of mappings.
    ///
    /// # Safety
    /// No reference may be used against the new permissions.
    ///
    /// # Errors
    /// `ACCESS_DENIED`, `INVALID_ARGS`, `NOT_FOUND`.
    pub unsafe fn protect(
        &self,
        address: usize,
        length: usize,
        flags: VmarFlags,
    ) -> Result<(), Status> {
        // SAFETY: the caller promises that nothing uses the range against its new permissions.
        ok(unsafe { sys::zx_vmar_protect(self.raw_handle(), flags.bits(), address, length) })
    }

    /// Reserves a region and returns it with its address.
    ///
    /// # Errors
    /// `INVALID_ARGS`, `ACCESS_DENIED`, `NO_MEMORY`.
    pub fn allocate(
        &self,
        offset: usize,
        size: usize,
        flags: VmarFlags,
    ) -> Result<(Vmar, usize), Status> {
        let (mut region, mut address) = (0, 0);
        // SAFETY: both results have a valid place.
        ok(unsafe {
            sys::zx_vmar_allocate(
                self.raw_handle(),
                flags.bits(),
                offset,
                size,
                &raw mut region,
                &raw mut address,
            )
        })?;
        // SAFETY: the call gave us the handle.
        Ok((Vmar(unsafe { Handle::from_raw(region) }), address))
    }

    /// Removes the region and all that is mapped in it.
    ///
    /// # Safety
    /// Nothing may use the region any more.
    ///
    /// # Errors
    /// `BAD_STATE` when it is destroyed already.
    pub unsafe fn destroy(&self) -> Result<(), Status> {
        // SAFETY: the caller promises that the region is unused.
        ok(unsafe { sys::zx_vmar_destroy(self.raw_handle()) })
    }
}
