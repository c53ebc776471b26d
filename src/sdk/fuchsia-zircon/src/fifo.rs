use crate::{AsHandleRef, Handle, HandleBased, HandleRef, Peered, Status, ok, sys};
use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use zerocopy::{FromBytes, IntoBytes};

/// One end of a pair of rings of elements: `R` comes out of it, `W` goes in.
///
/// The element types are the program's claim; the kernel checks their size at each use. A FIFO that came in a message
/// has none, until [`Fifo::cast`] or `From` gives it some.
#[repr(transparent)]
pub struct Fifo<R = UnspecifiedFifoElement, W = R>(Handle, PhantomData<(R, W)>);

/// What is in a FIFO of which nobody has said it: cannot be read or written.
#[derive(Copy, Clone, Debug)]
pub struct UnspecifiedFifoElement;

impl<R: IntoBytes + FromBytes, W: IntoBytes + FromBytes> Fifo<R, W> {
    /// Two ends, each with room for `elem_count` elements that the other has not read.
    ///
    /// # Errors
    /// `INVALID_ARGS` where the element types differ in size; `OUT_OF_RANGE` for no elements, elements without bytes, and
    /// more than 4096 bytes in all.
    pub fn create(elem_count: usize) -> Result<(Self, Fifo<W, R>), Status> {
        if size_of::<R>() != size_of::<W>() {
            return Err(Status::INVALID_ARGS);
        }
        let (mut left, mut right) = (0, 0);
        // SAFETY: both results have a valid place.
        ok(unsafe {
            sys::zx_fifo_create(elem_count, size_of::<R>(), 0, &raw mut left, &raw mut right)
        })?;
        // SAFETY: the call gave us both handles.
        unsafe { Ok((Fifo::from(Handle::from_raw(left)), Fifo::from(Handle::from_raw(right)))) }
    }

    /// Writes what fits, which is at least one element, and returns how many that were.
    ///
    /// # Errors
    /// `SHOULD_WAIT` when nothing fits, `PEER_CLOSED`, `OUT_OF_RANGE` for no elements or elements of another size.
    pub fn write(&self, elements: &[W]) -> Result<usize, Status> {
        // SAFETY: the slice is valid for its length.
        unsafe { self.write_raw(elements.as_ptr(), elements.len()) }
    }

    /// Writes one element.
    ///
    /// # Errors
    /// As [`Fifo::write`].
    pub fn write_one(&self, element: &W) -> Result<(), Status> {
        self.write(std::slice::from_ref(element)).map(drop)
    }

    /// As [`Fifo::write`], from a pointer.
    ///
    /// # Errors
    /// As [`Fifo::write`].
    ///
    /// # Safety
    /// `elements` must be valid for reading `count` elements.
    pub unsafe fn write_raw(&self, elements: *const W, count: usize) -> Result<usize, Status> {
        let mut actual = 0;
        // SAFETY: the caller's promise; `IntoBytes` elements have no uninitialized bytes.
        ok(unsafe {
            let (size, bytes) = (size_of::<W>(), elements.cast());
            sys::zx_fifo_write(self.raw_handle(), size, bytes, count, &raw mut actual)
        })?;
        Ok(actual)
    }

    /// Reads what there is, up to the buffer's length, and returns how many elements that were.
    ///
    /// # Errors
    /// `SHOULD_WAIT` when there is nothing, `PEER_CLOSED` when nothing more will come, `OUT_OF_RANGE` for an empty buffer
    /// or elements of another size.
    pub fn read(&self, elements: &mut [R]) -> Result<usize, Status> {
        // SAFETY: the slice is valid for its length.
        unsafe { self.read_raw(elements.as_mut_ptr(), elements.len()) }
    }

    /// Reads one element.
    ///
    /// # Errors
    /// As [`Fifo::read`].
    pub fn read_one(&self) -> Result<R, Status> {
        let mut element = MaybeUninit::uninit();
        // SAFETY: there is room for one element. A call that succeeds has filled it, and any bytes are an `R`.
        unsafe {
            self.read_raw(element.as_mut_ptr(), 1)?;
            Ok(element.assume_init())
        }
    }

    /// As [`Fifo::read`], into memory that need not be initialized; returns the part that was filled.
    ///
    /// # Errors
    /// As [`Fifo::read`].
    pub fn read_uninit<'a>(
        &self,
        elements: &'a mut [MaybeUninit<R>],
    ) -> Result<&'a mut [R], Status> {
        // SAFETY: the slice is valid for writing its length. The call has filled so many elements, and any bytes are an `R`.
        unsafe {
            let count = self.read_raw(elements.as_mut_ptr().cast(), elements.len())?;
            Ok(std::slice::from_raw_parts_mut(elements.as_mut_ptr().cast(), count))
        }
    }

    /// As [`Fifo::read`], into a pointer's memory.
    ///
    /// # Errors
    /// As [`Fifo::read`].
    ///
    /// # Safety
    /// `elements` must be valid for writing `count` elements.
    pub unsafe fn read_raw(&self, elements: *mut R, count: usize) -> Result<usize, Status> {
        let mut actual = 0;
        // SAFETY: the caller's promise.
        ok(unsafe {
            let (size, bytes) = (size_of::<R>(), elements.cast());
            sys::zx_fifo_read(self.raw_handle(), size, bytes, count, &raw mut actual)
        })?;
        Ok(actual)
    }
}

impl Fifo {
    /// Says what the elements are. Reading and writing fail where their size is another than the FIFO was made with.
    #[must_use]
    pub fn cast<R, W>(self) -> Fifo<R, W> {
        Fifo::from(self.0)
    }
}

impl<R, W> Fifo<R, W> {
    /// Forgets what the elements are, to send the FIFO in a message.
    #[must_use]
    pub fn downcast(self) -> Fifo {
        Fifo::from(self.0)
    }
}

impl<R, W> AsHandleRef for Fifo<R, W> {
    fn as_handle_ref(&self) -> HandleRef<'_> {
        self.0.as_handle_ref()
    }
}

impl<R, W> From<Handle> for Fifo<R, W> {
    fn from(handle: Handle) -> Self {
        Fifo(handle, PhantomData)
    }
}

impl<R, W> From<Fifo<R, W>> for Handle {
    fn from(fifo: Fifo<R, W>) -> Handle {
        fifo.0
    }
}

impl<R: FromBytes + IntoBytes, W: FromBytes + IntoBytes> From<Fifo> for Fifo<R, W> {
    fn from(fifo: Fifo) -> Self {
        fifo.cast()
    }
}

impl<R, W> HandleBased for Fifo<R, W> {}
impl<R, W> Peered for Fifo<R, W> {}

impl<R, W> fmt::Debug for Fifo<R, W> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Fifo").field(&self.0).finish()
    }
}

impl<R, W> PartialEq for Fifo<R, W> {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl<R, W> Eq for Fifo<R, W> {}

impl<R, W> PartialOrd for Fifo<R, W> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<R, W> Ord for Fifo<R, W> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.cmp(&other.0)
    }
}

impl<R, W> Hash for Fifo<R, W> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Signals;

    #[test]
    fn elements_go_through_in_order() {
        let (left, right) = Fifo::<u32, u32>::create(2).unwrap();
        assert_eq!(left.write(&[]), Err(Status::OUT_OF_RANGE));
        assert_eq!(left.write(&[1, 2, 3]), Ok(2));
        assert_eq!(left.write_one(&4), Err(Status::SHOULD_WAIT));
        assert_eq!(right.read_one(), Ok(1));
        let mut buffer = [MaybeUninit::uninit(); 4];
        assert_eq!(right.read_uninit(&mut buffer).unwrap(), [2]);
        assert_eq!(right.read(&mut [0; 4]), Err(Status::SHOULD_WAIT));
        right.signal_peer(Signals::NONE, Signals::USER_1).unwrap();
        let pending = left.wait_handle(Signals::USER_1, crate::Time::INFINITE).unwrap();
        assert!(pending.contains(Signals::USER_1));
    }

    #[test]
    fn element_types_are_checked_by_size() {
        assert_eq!(Fifo::<u32, u64>::create(2).unwrap_err(), Status::INVALID_ARGS);
        let (left, right) = Fifo::<u32>::create(2).unwrap();
        left.write_one(&7).unwrap();
        let right: Fifo<[u8; 8]> = right.downcast().into();
        assert_eq!(right.read_one(), Err(Status::OUT_OF_RANGE));
        let right: Fifo<[u8; 4]> = right.downcast().cast();
        assert_eq!(right.read_one(), Ok(7_u32.to_ne_bytes()));
        drop(left);
        assert_eq!(right.read_one(), Err(Status::PEER_CLOSED));
    }
}
