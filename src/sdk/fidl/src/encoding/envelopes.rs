//! Envelopes, and the tables and unions that are made of them.

use super::{Decoder, Depth, Encoder, ValueType, WireType};
use crate::{Error, Result};

/// Content of up to this many bytes is in the envelope itself.
const INLINE_SIZE: usize = 4;
/// The flag of such an envelope.
const INLINE_FLAG: u16 = 1;
/// Size of an envelope.
const ENVELOPE_SIZE: usize = 8;

impl Encoder<'_> {
    /// Writes an envelope at `offset`; `encode` writes its content of `size` inline bytes.
    ///
    /// # Errors
    ///
    /// That of `encode`, or the content is too large for an envelope.
    #[inline]
    pub(crate) fn envelope_with(
        &mut self,
        size: usize,
        offset: usize,
        depth: Depth,
        encode: impl FnOnce(&mut Self, usize, Depth) -> Result<()>,
    ) -> Result<()> {
        let depth = depth.deeper()?;
        let (bytes_before, handles_before) = self.written();
        if size <= INLINE_SIZE {
            encode(self, offset, depth)?;
            self.write(offset + 6, INLINE_FLAG.to_le_bytes());
        } else {
            let at = self.allocate(size);
            encode(self, at, depth)?;
            let num_bytes = self.written().0 - bytes_before;
            let out_of_range = Error::OutOfRange { expected: num_bytes, actual: u32::MAX as usize };
            let num_bytes = u32::try_from(num_bytes).map_err(|_| out_of_range)?;
            self.write(offset, num_bytes.to_le_bytes());
        }
        let num_handles = self.written().1 - handles_before;
        let out_of_range = Error::OutOfRange { expected: num_handles, actual: u16::MAX.into() };
        let num_handles = u16::try_from(num_handles).map_err(|_| out_of_range)?;
        self.write(offset + 4, num_handles.to_le_bytes());
        Ok(())
    }

    /// Writes an envelope with a value.
    ///
    /// # Errors
    ///
    /// As of [`ValueType::encode`].
    #[inline]
    pub fn envelope<T: ValueType>(
        &mut self,
        value: T::Borrowed<'_>,
        offset: usize,
        depth: Depth,
    ) -> Result<()> {
        self.envelope_with(T::SIZE, offset, depth, |encoder, at, depth| {
            T::encode(value, encoder, at, depth)
        })
    }

    /// Writes an envelope with a value that may have handles.
    ///
    /// # Errors
    ///
    /// As of [`WireType::encode_owned`].
    #[inline]
    pub fn envelope_owned<T: WireType>(
        &mut self,
        value: T::Owned,
        offset: usize,
        depth: Depth,
    ) -> Result<()> {
        self.envelope_with(T::SIZE, offset, depth, |encoder, at, depth| {
            T::encode_owned(value, encoder, at, depth)
        })
    }

    /// Writes the vector of a table with `count` envelopes, which are absent, and returns where they
    /// are and at which depth.
    ///
    /// # Errors
    ///
    /// [`Error::MaxRecursionDepth`].
    #[inline]
    pub fn begin_table(
        &mut self,
        offset: usize,
        count: usize,
        depth: Depth,
    ) -> Result<(usize, Depth)> {
        let depth = depth.deeper()?;
        self.write_vector_header(offset, count);
        Ok((self.allocate(count * ENVELOPE_SIZE), depth))
    }
}

/// An envelope as it is on the wire.
struct Envelope {
    num_bytes: u32,
    num_handles: u16,
    flags: u16,
}

impl Envelope {
    /// The envelope at `offset`, `None` if it is absent.
    fn read(decoder: &Decoder<'_>, offset: usize) -> Result<Option<Envelope>> {
        if decoder.read_u64(offset)? == 0 {
            return Ok(None);
        }
        let envelope = Envelope {
            num_bytes: decoder.read_u32(offset)?,
            num_handles: decoder.read_u16(offset + 4)?,
            flags: decoder.read_u16(offset + 6)?,
        };
        if envelope.flags & !INLINE_FLAG != 0 {
            return Err(Error::InvalidInlineMarkerInEnvelope);
        }
        Ok(Some(envelope))
    }

    fn is_inline(&self) -> bool {
        self.flags & INLINE_FLAG != 0
    }
}

impl Decoder<'_> {
    /// Decodes the content of the envelope at `offset`, `None` if it is absent.
    #[inline]
    pub(crate) fn envelope<T: WireType>(
        &mut self,
        offset: usize,
        depth: Depth,
    ) -> Result<Option<T::Owned>> {
        let Some(envelope) = Envelope::read(self, offset)? else { return Ok(None) };
        let depth = depth.deeper()?;
        let (bytes_before, handles_before) = self.consumed();
        if envelope.is_inline() != (T::SIZE <= INLINE_SIZE) {
            return Err(Error::InvalidInlineBitInEnvelope);
        }
        let value = if envelope.is_inline() {
            self.check_padding(offset + T::SIZE, INLINE_SIZE - T::SIZE)?;
            T::decode(self, offset, depth)?
        } else {
            let at = self.claim(T::SIZE)?;
            let value = T::decode(self, at, depth)?;
            if self.consumed().0 - bytes_before != envelope.num_bytes as usize {
                return Err(Error::InvalidNumBytesInEnvelope);
            }
            value
        };
        if self.consumed().1 - handles_before != usize::from(envelope.num_handles) {
            return Err(Error::InvalidNumHandlesInEnvelope);
        }
        Ok(Some(value))
    }

    /// Passes over the content of an envelope that nobody here knows, and closes its handles.
    /// Returns whether there was one.
    fn skip_envelope(&mut self, offset: usize, depth: Depth) -> Result<bool> {
        let Some(envelope) = Envelope::read(self, offset)? else { return Ok(false) };
        depth.deeper()?;
        if !envelope.is_inline() {
            let num_bytes = envelope.num_bytes as usize;
            if num_bytes == 0 || !num_bytes.is_multiple_of(8) {
                return Err(Error::InvalidNumBytesInEnvelope);
            }
            self.claim(num_bytes)?;
        }
        self.close_handles(envelope.num_handles.into())?;
        Ok(true)
    }

    /// The ordinal of a union that must be there.
    ///
    /// # Errors
    ///
    /// [`Error::NotNullable`].
    #[inline]
    pub fn union_ordinal(&self, offset: usize) -> Result<u64> {
        match self.read_u64(offset)? {
            0 => Err(Error::NotNullable),
            ordinal => Ok(ordinal),
        }
    }

    /// Whether a union is absent.
    ///
    /// # Errors
    ///
    /// It has no ordinal, but content.
    #[inline]
    pub fn union_is_absent(&self, offset: usize) -> Result<bool> {
        if self.read_u64(offset)? != 0 {
            return Ok(false);
        }
        if self.read_u64(offset + 8)? == 0 { Ok(true) } else { Err(Error::UnknownUnionTag) }
    }

    /// The member of a union.
    ///
    /// # Errors
    ///
    /// As of [`WireType::decode`].
    #[inline]
    pub fn union_member<T: WireType>(&mut self, offset: usize, depth: Depth) -> Result<T::Owned> {
        self.envelope::<T>(offset + 8, depth)?.ok_or(Error::NotNullable)
    }

    /// Passes over the member of a union that nobody here knows.
    ///
    /// # Errors
    ///
    /// The envelope is not valid or absent.
    pub fn skip_union_member(&mut self, offset: usize, depth: Depth) -> Result<()> {
        if self.skip_envelope(offset + 8, depth)? { Ok(()) } else { Err(Error::NotNullable) }
    }

    /// Begins to decode a table.
    ///
    /// # Errors
    ///
    /// The vector of envelopes is not valid.
    pub fn begin_table(&mut self, offset: usize, depth: Depth) -> Result<TableDecoder> {
        let count = self.vector_len(offset)?;
        let depth = depth.deeper()?;
        let envelopes = self.claim(count.saturating_mul(ENVELOPE_SIZE))?;
        // The vector ends with the last member that is there.
        if count > 0 && self.read_u64(envelopes + (count - 1) * ENVELOPE_SIZE)? == 0 {
            return Err(Error::Invalid);
        }
        Ok(TableDecoder { count, envelopes, next: 0, depth })
    }
}

/// Decodes the members of a table, which must be asked for by ascending ordinal.
#[derive(Debug)]
pub struct TableDecoder {
    count: usize,
    envelopes: usize,
    /// Index of the first envelope that is not yet decoded.
    next: usize,
    depth: Depth,
}

impl TableDecoder {
    /// The member with this ordinal, `None` if it is absent. Members before it are passed over.
    ///
    /// # Errors
    ///
    /// An envelope or its content is not valid.
    #[inline]
    pub fn member<T: WireType>(
        &mut self,
        decoder: &mut Decoder<'_>,
        ordinal: usize,
    ) -> Result<Option<T::Owned>> {
        let index = ordinal.saturating_sub(1);
        self.skip_to(decoder, index)?;
        if index >= self.count {
            return Ok(None);
        }
        self.next = index + 1;
        decoder.envelope::<T>(self.envelopes + index * ENVELOPE_SIZE, self.depth)
    }

    /// Passes over the members that are left.
    ///
    /// # Errors
    ///
    /// An envelope is not valid.
    #[inline]
    pub fn finish(mut self, decoder: &mut Decoder<'_>) -> Result<()> {
        let count = self.count;
        self.skip_to(decoder, count)
    }

    fn skip_to(&mut self, decoder: &mut Decoder<'_>, index: usize) -> Result<()> {
        while self.next < index.min(self.count) {
            decoder.skip_envelope(self.envelopes + self.next * ENVELOPE_SIZE, self.depth)?;
            self.next += 1;
        }
        Ok(())
    }
}
