//! Reading messages.

use super::{ALLOC_PRESENT_U32, ALLOC_PRESENT_U64, Depth, WireType};
use crate::{Error, Result};
use fuchsia_zircon::{Handle, HandleInfo, ObjectType, Rights};

/// Reads values from the bytes of a message's body and from its handles. Handles that no value
/// takes stay with the message, which closes them.
#[derive(Debug)]
pub struct Decoder<'a> {
    bytes: &'a [u8],
    /// Where the next object out of line is: all before it belongs to objects.
    next_object: usize,
    handles: &'a mut [HandleInfo],
    next_handle: usize,
}

impl<'a> Decoder<'a> {
    /// Decodes one value from all of a body's bytes and handles.
    ///
    /// # Errors
    ///
    /// They are not those of a value of the type, or there are more of them.
    pub fn decode_all<T: WireType>(
        bytes: &'a [u8],
        handles: &'a mut [HandleInfo],
    ) -> Result<T::Owned> {
        let mut decoder = Decoder { bytes, next_object: 0, handles, next_handle: 0 };
        let offset = decoder.claim(T::SIZE)?;
        let value = T::decode(&mut decoder, offset, Depth::default())?;
        if decoder.next_object != decoder.bytes.len() {
            return Err(Error::ExtraBytes);
        }
        if decoder.next_handle != decoder.handles.len() {
            return Err(Error::ExtraHandles);
        }
        Ok(value)
    }

    /// Takes the next `len` bytes for an object out of line, checks the padding after them, and
    /// returns their offset.
    #[inline]
    pub(crate) fn claim(&mut self, len: usize) -> Result<usize> {
        let offset = self.next_object;
        let out_of_range = Error::OutOfRange { expected: len, actual: self.bytes.len() - offset };
        let end = len.checked_next_multiple_of(8).and_then(|len| offset.checked_add(len));
        let Some(end) = end.filter(|end| *end <= self.bytes.len()) else {
            return Err(out_of_range);
        };
        self.next_object = end;
        self.check_padding(offset + len, end - offset - len)?;
        Ok(offset)
    }

    /// The bytes of an object that was claimed.
    #[inline]
    pub(crate) fn slice(&self, offset: usize, len: usize) -> Result<&'a [u8]> {
        let end = offset.checked_add(len);
        end.and_then(|end| self.bytes.get(offset..end))
            .ok_or(Error::OutOfRange { expected: len, actual: self.bytes.len() })
    }

    #[inline]
    pub(crate) fn read<const N: usize>(&self, offset: usize) -> Result<[u8; N]> {
        let bytes = self.bytes.get(offset..).and_then(|bytes| bytes.first_chunk::<N>());
        bytes.copied().ok_or(Error::OutOfRange { expected: N, actual: self.bytes.len() })
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
        if self.vector_is_absent(offset)? {
            return Err(Error::NotNullable);
        }
        let count = self.read_u64(offset)?;
        usize::try_from(count)
            .map_err(|_| Error::OutOfRange { expected: usize::MAX, actual: self.bytes.len() })
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
        (self.next_object, self.next_handle)
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
