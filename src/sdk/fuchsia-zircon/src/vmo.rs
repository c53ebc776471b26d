use crate::handle::impl_handle_based;
use crate::{AsHandleRef, Handle, Status, ok, sys};
use bitflags::bitflags;

/// A virtual memory object: pages that can be read, written and mapped.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Vmo(Handle);
impl_handle_based!(Vmo);

bitflags! {
    /// How a VMO is created.
    #[derive(Debug, Copy, Clone, PartialEq, Eq)]
    pub struct VmoOptions: u32 {
        /// Its size may change later.
        const RESIZABLE = sys::ZX_VMO_RESIZABLE;
        /// The kernel may discard it while it is unlocked.
        const DISCARDABLE = sys::ZX_VMO_DISCARDABLE;
    }

    /// How a VMO's child relates to it.
    #[derive(Debug, Copy, Clone, PartialEq, Eq)]
    pub struct VmoChildOptions: u32 {
        /// The child keeps the parent's contents as they are now.
        const SNAPSHOT = sys::ZX_VMO_CHILD_SNAPSHOT;
        /// As a snapshot for pages the child has written; for others either is allowed.
        const SNAPSHOT_AT_LEAST_ON_WRITE = sys::ZX_VMO_CHILD_SNAPSHOT_AT_LEAST_ON_WRITE;
        /// The child is a window on the parent's pages.
        const SLICE = sys::ZX_VMO_CHILD_SLICE;
        /// The child's size may change later.
        const RESIZABLE = sys::ZX_VMO_CHILD_RESIZABLE;
    }
}

/// What to do with a range of a VMO.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
#[repr(transparent)]
pub struct VmoOp(u32);

impl VmoOp {
    /// Gives the range memory.
    pub const COMMIT: VmoOp = VmoOp(sys::ZX_VMO_OP_COMMIT);
    /// Takes the range's memory; it reads as zeroes then.
    pub const DECOMMIT: VmoOp = VmoOp(sys::ZX_VMO_OP_DECOMMIT);
    /// Makes the range read as zeroes, giving back what memory that needs no longer.
    pub const ZERO: VmoOp = VmoOp(sys::ZX_VMO_OP_ZERO);

    const fn into_raw(self) -> u32 {
        self.0
    }
}

impl Vmo {
    /// A VMO of at least `size` bytes, rounded up to pages, that reads as zeroes.
    ///
    /// # Errors
    /// `NO_MEMORY`, `OUT_OF_RANGE`.
    pub fn create(size: u64) -> Result<Vmo, Status> {
        Self::create_with_opts(VmoOptions::empty(), size)
    }

    /// As [`Vmo::create`], with options.
    ///
    /// # Errors
    /// As [`Vmo::create`].
    pub fn create_with_opts(options: VmoOptions, size: u64) -> Result<Vmo, Status> {
        let mut out = 0;
        // SAFETY: the result has a valid place.
        ok(unsafe { sys::zx_vmo_create(size, options.bits(), &raw mut out) })?;
        // SAFETY: the call gave us the handle.
        Ok(Vmo(unsafe { Handle::from_raw(out) }))
    }

    /// Reads the whole of `data` from `offset`.
    ///
    /// # Errors
    /// `OUT_OF_RANGE` past the end, `ACCESS_DENIED`.
    pub fn read(&self, data: &mut [u8], offset: u64) -> Result<(), Status> {
        // SAFETY: the buffer is valid for its length.
        ok(unsafe { sys::zx_vmo_read(self.raw_handle(), data.as_mut_ptr(), offset, data.len()) })
    }

    /// Reads from `offset` into memory that no Rust reference may point to, such as a guest's.
    ///
    /// # Safety
    /// `buffer` must be valid for writes of `buffer_length` bytes.
    ///
    /// # Errors
    /// As [`Vmo::read`].
    pub unsafe fn read_raw(
        &self,
        buffer: *mut u8,
        buffer_length: usize,
        offset: u64,
    ) -> Result<(), Status> {
        // SAFETY: the caller's promise.
        ok(unsafe { sys::zx_vmo_read(self.raw_handle(), buffer, offset, buffer_length) })
    }

    /// Writes at `offset` from memory that no Rust reference may point to, such as a guest's.
    ///
    /// # Safety
    /// `buffer` must be valid for reads of `buffer_length` bytes.
    ///
    /// # Errors
    /// As [`Vmo::write`].
    pub unsafe fn write_raw(
        &self,
        buffer: *const u8,
        buffer_length: usize,
        offset: u64,
    ) -> Result<(), Status> {
        // SAFETY: the caller's promise.
        ok(unsafe { sys::zx_vmo_write(self.raw_handle(), buffer, offset, buffer_length) })
    }

    /// Reads `length` bytes from `offset` into a new vector.
    ///
    /// # Errors
    /// As [`Vmo::read`]. `length` is checked against the VMO's size before anything is allocated.
    pub fn read_to_vec(&self, offset: u64, length: u64) -> Result<Vec<u8>, Status> {
        if offset.checked_add(length).is_none_or(|end| end > self.get_size().unwrap_or(0)) {
            return Err(Status::OUT_OF_RANGE);
        }
        let mut data = vec![0; usize::try_from(length).map_err(|_| Status::OUT_OF_RANGE)?];
        self.read(&mut data, offset)?;
        Ok(data)
    }

    /// Writes the whole of `data` at `offset`.
    ///
    /// # Errors
    /// `OUT_OF_RANGE` past the end, `ACCESS_DENIED`.
    pub fn write(&self, data: &[u8], offset: u64) -> Result<(), Status> {
        // SAFETY: the buffer is valid for its length.
        ok(unsafe { sys::zx_vmo_write(self.raw_handle(), data.as_ptr(), offset, data.len()) })
    }

    /// The size in bytes.
    ///
    /// # Errors
    /// `BAD_HANDLE`, `WRONG_TYPE`.
    pub fn get_size(&self) -> Result<u64, Status> {
        let mut size = 0;
        // SAFETY: the result has a valid place.
        ok(unsafe { sys::zx_vmo_get_size(self.raw_handle(), &raw mut size) })?;
        Ok(size)
    }

    /// Changes the size of a resizable VMO.
    ///
    /// # Errors
    /// `UNAVAILABLE` for one that is not, `ACCESS_DENIED`, `NO_MEMORY`.
    pub fn set_size(&self, size: u64) -> Result<(), Status> {
        // SAFETY: the call takes numbers only.
        ok(unsafe { sys::zx_vmo_set_size(self.raw_handle(), size) })
    }

    /// The size of the contents, which need not fill the last page.
    ///
    /// # Errors
    /// As [`Vmo::get_size`].
    pub fn get_content_size(&self) -> Result<u64, Status> {
        let mut size = 0_u64;
        // SAFETY: the property is one `u64`.
        ok(unsafe {
            sys::zx_object_get_property(
                self.raw_handle(),
                sys::ZX_PROP_VMO_CONTENT_SIZE,
                (&raw mut size).cast(),
                size_of::<u64>(),
            )
        })?;
        Ok(size)
    }

    /// Does something with a range.
    ///
    /// # Errors
    /// `OUT_OF_RANGE` past the end, `NOT_SUPPORTED`, `ACCESS_DENIED`.
    pub fn op_range(&self, op: VmoOp, offset: u64, size: u64) -> Result<(), Status> {
        // SAFETY: the operations of `VmoOp` use no buffer.
        ok(unsafe {
            sys::zx_vmo_op_range(
                self.raw_handle(),
                op.into_raw(),
                offset,
                size,
                std::ptr::null_mut(),
                0,
            )
        })
    }

    /// A VMO whose contents come from this one's.
    ///
    /// # Errors
    /// `INVALID_ARGS`, `OUT_OF_RANGE`, `NOT_SUPPORTED`, `NO_MEMORY`.
    pub fn create_child(
        &self,
        options: VmoChildOptions,
        offset: u64,
        size: u64,
    ) -> Result<Vmo, Status> {
        let mut out = 0;
        // SAFETY: the result has a valid place.
        ok(unsafe {
            sys::zx_vmo_create_child(self.raw_handle(), options.bits(), offset, size, &raw mut out)
        })?;
        // SAFETY: the call gave us the handle.
        Ok(Vmo(unsafe { Handle::from_raw(out) }))
    }

    /// Adds the right to execute.
    ///
    /// # Errors
    /// `ACCESS_DENIED` where the resource does not allow it.
    pub fn replace_as_executable(self, vmex: &crate::Resource) -> Result<Vmo, Status> {
        let mut out = 0;
        let raw = crate::HandleBased::into_raw(self);
        // SAFETY: ownership goes to the call, which invalidates the handle also on failure.
        ok(unsafe { sys::zx_vmo_replace_as_executable(raw, vmex.raw_handle(), &raw mut out) })?;
        // SAFETY: the call gave us the handle.
        Ok(Vmo(unsafe { Handle::from_raw(out) }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_back_what_was_written_and_zeroes_ranges() {
        let vmo = Vmo::create(10000).unwrap();
        assert_eq!(vmo.get_size(), Ok(12288));
        vmo.write(b"abc", 5000).unwrap();
        assert_eq!(vmo.read_to_vec(4999, 5).unwrap(), b"\0abc\0");
        vmo.op_range(VmoOp::ZERO, 5001, 1).unwrap();
        assert_eq!(vmo.read_to_vec(5000, 3).unwrap(), b"a\0c");
        assert_eq!(vmo.write(b"x", 12288), Err(Status::OUT_OF_RANGE));
        assert_eq!(vmo.read_to_vec(0, u64::MAX), Err(Status::OUT_OF_RANGE));
        assert_eq!(vmo.set_size(4096), Err(Status::UNAVAILABLE));
    }

    #[test]
    fn a_slice_shows_the_parents_pages() {
        let vmo = Vmo::create(8192).unwrap();
        let slice = vmo.create_child(VmoChildOptions::SLICE, 4096, 4096).unwrap();
        slice.write(b"through", 0).unwrap();
        assert_eq!(vmo.read_to_vec(4096, 7).unwrap(), b"through");
    }
}
