//! Reading messages.

use super::{ALLOC_PRESENT_U32, ALLOC_PRESENT_U64, Depth, WireType};
use crate::{Error, Result};
use fuchsia_zircon::{Handle, HandleInfo, ObjectType, Rights};

/// Reads values from the bytes of a message's body and from its handles. Handles that no value
/// takes stay with the message, which closes them.
#[derive(Debug)]
pub struct Decoder<'a> {
    bytes: &'a [u8],
    /// The end of them, where the next object out of line is: all before it belongs to objects.
    rest: &'a [u8],
    handles: &'a mut [HandleInfo],
    next_handle: usize,
}

impl<'a> Decoder<'a> {
    /// Decodes one value from all of a body's bytes and handles.
    ///
    /// # Errors
    ///
    /// They are not those of a value of the type, or there are more of them.
    #[inline]
    pub fn decode_all<T: WireType>(
        bytes: &'a [u8],
        handles: &'a mut [HandleInfo],
    ) -> Result<T::Owned> {
        let mut decoder = Decoder { bytes, rest: bytes, handles, next_handle: 0 };
        let offset = decoder.claim(T::SIZE)?;
        let value = T::decode(&mut decoder, offset, Depth::default())?;
        if !decoder.rest.is_empty() {
            return Err(cold(Error::ExtraBytes));
        }
        if decoder.next_handle != decoder.handles.len() {
            return Err(cold(Error::ExtraHandles));
        }
        Ok(value)
    }

    /// Takes the next `len` bytes for an object out of line, checks the padding after them, and
    /// returns their offset.
    #[inline]
    pub(crate) fn claim(&mut self, len: usize) -> Result<usize> {
        let offset = self.bytes.len() - self.rest.len();
        self.claim_bytes(len)?;
        Ok(offset)
    }

    /// As [`Self::claim`]; the bytes themselves.
    #[inline]
    pub(crate) fn claim_bytes(&mut self, len: usize) -> Result<&'a [u8]> {
        // Where `len` is so large that this wraps around, it is larger than the object.
        let object = self.rest.split_at_checked(len.wrapping_add(7) & !7);
        let parts = object.and_then(|(object, rest)| Some((object, object.get(..len)?, rest)));
        let Some((object, content, rest)) = parts else {
            return Err(out_of_range(len, self.rest.len()));
        };
        let padding = object.len() - len;
        if padding > 0 {
            // It is the last bytes of the last word.
            let last = object.last_chunk().map_or(0, |word| u64::from_le_bytes(*word));
            if last >> (64 - 8 * padding) != 0 {
                let padding_start = self.bytes.len() - self.rest.len() + len;
                return Err(cold(Error::NonZeroPadding { padding_start }));
            }
        }
        self.rest = rest;
        Ok(content)
    }

    /// The bytes of an object that was claimed.
    #[inline]
    pub(crate) fn slice(&self, offset: usize, len: usize) -> Result<&'a [u8]> {
        let end = offset.checked_add(len);
        end.and_then(|end| self.bytes.get(offset..end))
            .ok_or_else(|| out_of_range(len, self.bytes.len()))
    }

    /// Bytes at an offset.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfRange`].
    #[inline]
    pub fn read<const N: usize>(&self, offset: usize) -> Result<[u8; N]> {
        let bytes = offset.checked_add(N).and_then(|end| self.bytes.get(offset..end));
        let bytes = bytes.and_then(|bytes| bytes.first_chunk());
        bytes.copied().ok_or_else(|| out_of_range(N, self.bytes.len()))
    }

    #[inline]
    pub(crate) fn read_u16(&self, offset: usize) -> Result<u16> {
        self.read(offset).map(u16::from_le_bytes)
    }

    #[inline]
    pub(crate) fn read_u32(&self, offset: usize) -> Result<u32> {
        self.read(offset).map(u32::from_le_bytes)
    }

    #[inline]
    pub(crate) fn read_u64(&self, offset: usize) -> Result<u64> {
        self.read(offset).map(u64::from_le_bytes)
    }

    /// Checks that padding is zero.
    ///
    /// # Errors
    ///
    /// [`Error::NonZeroPadding`].
    #[inline]
    pub fn check_padding(&self, offset: usize, len: usize) -> Result<()> {
        if self.slice(offset, len)?.iter().any(|byte| *byte != 0) {
            return Err(Error::NonZeroPadding { padding_start: offset });
        }
        Ok(())
    }

    /// Whether a presence marker of 8 bytes says that the object is there.
    #[inline]
    pub(crate) fn is_present(&self, offset: usize) -> Result<bool> {
        match self.read_u64(offset)? {
            ALLOC_PRESENT_U64 => Ok(true),
            0 => Ok(false),
            _ => Err(Error::InvalidPresenceIndicator),
        }
    }

    /// Whether a vector or string is absent.
    pub(crate) fn vector_is_absent(&self, offset: usize) -> Result<bool> {
        if self.is_present(offset + 8)? {
            return Ok(false);
        }
        if self.read_u64(offset)? == 0 { Ok(true) } else { Err(Error::UnexpectedNullRef) }
    }

    /// The length of a vector or string that must be there.
    #[inline]
    pub(crate) fn vector_len(&self, offset: usize) -> Result<usize> {
        let (words, _) = self.slice(offset, 16)?.as_chunks();
        let [count, presence] = *words else { return Err(self.why_no_vector(offset)) };
        if u64::from_le_bytes(presence) != ALLOC_PRESENT_U64 {
            return Err(self.why_no_vector(offset));
        }
        let count = u64::from_le_bytes(count);
        usize::try_from(count).map_err(|_| out_of_range(usize::MAX, self.bytes.len()))
    }

    /// The error of a vector or string that is not there, though it must be.
    #[cold]
    #[inline(never)]
    fn why_no_vector(&self, offset: usize) -> Error {
        self.vector_is_absent(offset).err().unwrap_or(Error::NotNullable)
    }

    /// Whether a handle is absent.
    #[inline]
    pub(crate) fn handle_is_absent(&self, offset: usize) -> Result<bool> {
        match self.read_u32(offset)? {
            ALLOC_PRESENT_U32 => Ok(false),
            0 => Ok(true),
            _ => Err(Error::InvalidPresenceIndicator),
        }
    }

    /// Takes the next handle, which must be of the type and have the rights; other rights it has are
    /// taken away.
    pub(crate) fn take_handle(&mut self, expected: ObjectType, rights: Rights) -> Result<Handle> {
        let info = self.handles.get_mut(self.next_handle).ok_or(Error::OutOfHandles)?;
        self.next_handle += 1;
        let handle = std::mem::replace(&mut info.handle, Handle::invalid());
        if handle.is_invalid() {
            return Err(Error::NotNullable);
        }
        if expected != ObjectType::NONE && expected != info.object_type {
            return Err(Error::IncorrectHandleSubtype { expected, received: info.object_type });
        }
        if rights == Rights::SAME_RIGHTS || rights == info.rights {
            return Ok(handle);
        }
        let missing_rights = rights - info.rights;
        if !missing_rights.is_empty() {
            return Err(Error::MissingExpectedHandleRights { missing_rights });
        }
        handle.replace(rights).map_err(Error::HandleReplace)
    }

    /// Bytes and handles that belong to objects so far.
    #[inline]
    pub(crate) fn consumed(&self) -> (usize, usize) {
        (self.bytes.len() - self.rest.len(), self.next_handle)
    }

    /// Closes the next `count` handles.
    pub(crate) fn close_handles(&mut self, count: usize) -> Result<()> {
        let end = self.next_handle.saturating_add(count);
        let handles = self.handles.get_mut(self.next_handle..end).ok_or(Error::OutOfHandles)?;
        for info in handles {
            drop(std::mem::replace(&mut info.handle, Handle::invalid()));
        }
        self.next_handle = end;
        Ok(())
    }
}

/// An error off the path of those who have none.
#[cold]
#[inline(never)]
fn cold(error: Error) -> Error {
    error
}

#[cold]
#[inline(never)]
fn out_of_range(expected: usize, actual: usize) -> Error {
    Error::OutOfRange { expected, actual }
}
