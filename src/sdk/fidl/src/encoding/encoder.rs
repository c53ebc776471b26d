//! Writing messages.

use super::{ALLOC_PRESENT_U32, ALLOC_PRESENT_U64, Depth, ValueType, WireType};
use crate::{Error, Result};
use fuchsia_zircon::{Handle, HandleDisposition, HandleOp, ObjectType, Rights, Status};
use std::cell::Cell;
use std::ops::Deref;

/// A buffer that grew beyond this is given back after its message.
const KEPT_CAPACITY: usize = 128 * 1024;
/// Room that a new buffer has at least: most messages are smaller.
const FIRST_CAPACITY: usize = 512;

/// Writes values into a buffer of bytes and one of handles.
#[derive(Debug)]
pub struct Encoder<'a> {
    /// What is written so far; its length is a multiple of 8.
    bytes: &'a mut MessageBytes,
    handles: &'a mut Vec<HandleDisposition<'static>>,
}

/// The bytes of a message. Room after them keeps what earlier messages had there, so that it need not be made zero before
/// something is written.
#[derive(Debug, Default)]
pub(crate) struct MessageBytes {
    room: Vec<u8>,
    /// How much of the room is this message's.
    len: usize,
}

impl MessageBytes {
    /// Appends `len` bytes of any content.
    #[inline]
    fn extend(&mut self, len: usize) -> &mut [u8] {
        let (start, end) = (self.len, self.len + len);
        if end > self.room.len() {
            // So that the compiler sees that there are as many here, too.
            return &mut self.grow(len)[..len];
        }
        self.len = end;
        &mut self.room[start..end]
    }

    #[cold]
    #[inline(never)]
    fn grow(&mut self, len: usize) -> &mut [u8] {
        let (start, end) = (self.len, self.len + len);
        self.room.resize(end.next_power_of_two().max(FIRST_CAPACITY), 0);
        self.len = end;
        &mut self.room[start..end]
    }

    /// Appends bytes.
    #[inline]
    pub(crate) fn extend_from_slice(&mut self, bytes: &[u8]) {
        self.extend(bytes.len()).copy_from_slice(bytes);
    }

    fn into_vec(mut self) -> Vec<u8> {
        self.room.truncate(self.len);
        self.room
    }
}

impl Deref for MessageBytes {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        &self.room[..self.len]
    }
}

#[derive(Default)]
struct Buffers {
    bytes: MessageBytes,
    handles: Vec<HandleDisposition<'static>>,
}

thread_local! {
    static BUFFERS: Cell<Option<Box<Buffers>>> = const { Cell::new(None) };
}

/// Calls `f` with empty buffers whose capacity is used again for the thread's next message. Handles
/// that are left in them are closed.
#[inline]
pub(crate) fn with_buffers<R>(
    f: impl FnOnce(&mut MessageBytes, &mut Vec<HandleDisposition<'static>>) -> R,
) -> R {
    // A nested use finds no buffers and makes its own.
    let mut buffers = BUFFERS.take().unwrap_or_default();
    let result = f(&mut buffers.bytes, &mut buffers.handles);
    buffers.bytes.len = 0;
    if !buffers.handles.is_empty() {
        buffers.handles.clear();
    }
    if buffers.bytes.room.len() <= KEPT_CAPACITY
        && let Some(nested) = BUFFERS.replace(Some(buffers))
    {
        discard(nested);
    }
    result
}

/// Off the path of those who are not nested.
#[cold]
#[inline(never)]
fn discard(buffers: Box<Buffers>) {
    drop(buffers);
}

impl<'a> Encoder<'a> {
    /// An encoder that writes after what is in `bytes`, the length of which is a multiple of 8.
    pub(crate) fn new(
        bytes: &'a mut MessageBytes,
        handles: &'a mut Vec<HandleDisposition<'static>>,
    ) -> Encoder<'a> {
        debug_assert_eq!(bytes.len % 8, 0);
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
        let (mut bytes, mut handles) = (MessageBytes::default(), Vec::new());
        Encoder::new(&mut bytes, &mut handles)
            .body(T::SIZE, |encoder, at, depth| T::encode_owned(value, encoder, at, depth))?;
        Ok((bytes.into_vec(), handles))
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
        let offset = self.bytes.len;
        self.bytes.extend(len.next_multiple_of(8)).fill(0);
        offset
    }

    /// Appends room for `len` bytes, which are anything, and zero padding.
    #[inline]
    pub(crate) fn append_with_padding(&mut self, len: usize) -> &mut [u8] {
        let room = self.bytes.extend(len.next_multiple_of(8));
        if let Some(last) = room.last_chunk_mut() {
            *last = [0; 8];
        }
        &mut room[..len]
    }

    /// Appends bytes and the padding after them.
    #[inline]
    pub(crate) fn append(&mut self, bytes: &[u8]) {
        self.append_with_padding(bytes.len()).copy_from_slice(bytes);
    }

    /// Writes bytes into room that was allocated.
    #[inline]
    pub fn write<const N: usize>(&mut self, offset: usize, bytes: [u8; N]) {
        self.bytes.room[offset..offset + N].copy_from_slice(&bytes);
    }

    /// Writes a number into room that was allocated.
    #[inline]
    pub fn write_u64(&mut self, offset: usize, value: u64) {
        self.write(offset, value.to_le_bytes());
    }

    /// Writes the inline part of a vector or string that is there.
    #[inline]
    pub(crate) fn write_vector_header(&mut self, offset: usize, count: usize) {
        let header = u128::from(ALLOC_PRESENT_U64) << 64 | count as u128;
        self.write(offset, header.to_le_bytes());
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
        (self.bytes.len, self.handles.len())
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
