//! Writing messages.

use super::{ALLOC_PRESENT_U32, ALLOC_PRESENT_U64, Depth, ValueType, WireType};
use crate::{Error, Result};
use fuchsia_zircon::{Handle, HandleDisposition, HandleOp, ObjectType, Rights, Status};
use std::cell::Cell;

/// A buffer that grew beyond this is given back after its message.
const KEPT_CAPACITY: usize = 128 * 1024;

/// Writes values into a buffer of bytes and one of handles.
#[derive(Debug)]
pub struct Encoder<'a> {
    /// What is written so far; its length is a multiple of 8.
    bytes: &'a mut Vec<u8>,
    handles: &'a mut Vec<HandleDisposition<'static>>,
}

#[derive(Default)]
struct Buffers {
    bytes: Vec<u8>,
    handles: Vec<HandleDisposition<'static>>,
}

thread_local! {
    static BUFFERS: Cell<Buffers> = Cell::default();
}

/// Calls `f` with empty buffers whose capacity is used again for the thread's next message. Handles
/// that are left in them are closed.
pub(crate) fn with_buffers<R>(
    f: impl FnOnce(&mut Vec<u8>, &mut Vec<HandleDisposition<'static>>) -> R,
) -> R {
    // A nested use finds no buffers and makes its own.
    let mut buffers = BUFFERS.take();
    let result = f(&mut buffers.bytes, &mut buffers.handles);
    buffers.bytes.clear();
    buffers.handles.clear();
    if buffers.bytes.capacity() <= KEPT_CAPACITY {
        BUFFERS.set(buffers);
    }
    result
}

impl<'a> Encoder<'a> {
    /// An encoder that writes after what is in `bytes`, the length of which is a multiple of 8.
    pub(crate) fn new(
        bytes: &'a mut Vec<u8>,
        handles: &'a mut Vec<HandleDisposition<'static>>,
    ) -> Encoder<'a> {
        debug_assert_eq!(bytes.len() % 8, 0);
        Encoder { bytes, handles }
    }

    /// Encodes one value as the body of a message would have it.
    ///
    /// # Errors
    ///
    /// The value breaks a bound of its type.
    pub fn encode_all<T: WireType>(
        value: T::Owned,
    ) -> Result<(Vec<u8>, Vec<HandleDisposition<'static>>)> {
        let (mut bytes, mut handles) = (Vec::new(), Vec::new());
        Encoder::new(&mut bytes, &mut handles)
            .body(T::SIZE, |encoder, at, depth| T::encode_owned(value, encoder, at, depth))?;
        Ok((bytes, handles))
    }

    /// Encodes one value into the thread's buffer, as sending does, and calls `f` with its bytes.
    ///
    /// # Errors
    ///
    /// The value breaks a bound of its type.
    pub fn with_encoded<T: ValueType, R>(
        value: T::Borrowed<'_>,
        f: impl FnOnce(&[u8]) -> R,
    ) -> Result<R> {
        with_buffers(|bytes, handles| {
            Encoder::new(bytes, handles)
                .body(T::SIZE, |encoder, at, depth| T::encode(value, encoder, at, depth))?;
            Ok(f(bytes))
        })
    }

    /// Appends room for `len` bytes, which is zero, and returns its offset.
    #[inline]
    pub fn allocate(&mut self, len: usize) -> usize {
        let offset = self.bytes.len();
        self.bytes.resize(offset + len.next_multiple_of(8), 0);
        offset
    }

    /// As [`Self::allocate`]; the room itself, to its end.
    #[inline]
    pub(crate) fn allocate_mut(&mut self, len: usize) -> &mut [u8] {
        let offset = self.allocate(len);
        &mut self.bytes[offset..]
    }

    /// Appends bytes and the padding after them.
    #[inline]
    pub(crate) fn append(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        self.bytes.resize(self.bytes.len().next_multiple_of(8), 0);
    }

    /// Writes bytes into room that was allocated.
    #[inline]
    pub(crate) fn write<const N: usize>(&mut self, offset: usize, bytes: [u8; N]) {
        self.bytes[offset..offset + N].copy_from_slice(&bytes);
    }

    /// Writes a number into room that was allocated.
    #[inline]
    pub fn write_u64(&mut self, offset: usize, value: u64) {
        self.write(offset, value.to_le_bytes());
    }

    /// Writes the inline part of a vector or string that is there.
    #[inline]
    pub(crate) fn write_vector_header(&mut self, offset: usize, count: usize) {
        self.write_u64(offset, count as u64);
        self.write_u64(offset + 8, ALLOC_PRESENT_U64);
    }

    /// Writes a handle that must be there.
    pub(crate) fn write_handle(
        &mut self,
        handle: Handle,
        object_type: ObjectType,
        rights: Rights,
        offset: usize,
    ) -> Result<()> {
        if handle.is_invalid() {
            return Err(Error::NotNullable);
        }
        self.write(offset, ALLOC_PRESENT_U32.to_le_bytes());
        self.handles.push(HandleDisposition::new(
            HandleOp::Move(handle),
            object_type,
            rights,
            Status::OK,
        ));
        Ok(())
    }

    /// Bytes and handles written so far.
    #[inline]
    pub(crate) fn written(&self) -> (usize, usize) {
        (self.bytes.len(), self.handles.len())
    }

    /// Writes the body of a message: `encode` gets its offset, where `size` bytes are allocated.
    ///
    /// # Errors
    ///
    /// That of `encode`.
    #[inline]
    pub fn body(
        &mut self,
        size: usize,
        encode: impl FnOnce(&mut Self, usize, Depth) -> Result<()>,
    ) -> Result<()> {
        let offset = self.allocate(size);
        encode(self, offset, Depth::default())
    }
}
