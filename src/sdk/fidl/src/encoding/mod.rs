//! Wire format v2 (RFC-0114): how values become bytes and handles, and back.
//!
//! A type marker (a primitive, a generated type, or one of the zero-sized types here) selects the
//! codec through [`WireType`]; types without handles are also [`ValueType`]s, which encode from a
//! borrow. What is public here is for generated code.

mod containers;
mod decoder;
mod encoder;
mod envelopes;
mod handles;
mod message;
mod plain;
mod primitives;
mod results;

pub use containers::{Array, BoundedString, Boxed, Optional, Vector};
pub use decoder::Decoder;
pub use encoder::Encoder;
pub(crate) use encoder::with_buffers;
pub use envelopes::TableDecoder;
pub use handles::{Endpoint, HandleType};
pub use message::{
    AT_REST_FLAGS_V2, DynamicFlags, EmptyPayload, EmptyStruct, HEADER_SIZE, MAGIC_NUMBER_INITIAL,
    TransactionHeader,
};
pub(crate) use message::{EPITAPH_ORDINAL, decode_body};
pub use plain::Plain;
pub(crate) use results::encode_unknown_method;
pub use results::{
    FRAMEWORK_ERR_UNKNOWN_METHOD, Flexible, FlexibleResult, FlexibleResultType, FlexibleType,
    ResultType,
};

/// For the derives of generated types.
#[doc(hidden)]
pub use zerocopy;

use crate::{Error, Result};

/// Objects out of line inside each other may be this deep.
pub const MAX_RECURSION: u32 = 32;

/// The presence marker of a vector, string or box that is there.
pub const ALLOC_PRESENT_U64: u64 = u64::MAX;
/// The presence marker of a handle that is there.
pub const ALLOC_PRESENT_U32: u32 = u32::MAX;

/// How many objects out of line the current one is inside of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Depth(u32);

impl Depth {
    /// The depth of an object out of line.
    ///
    /// # Errors
    ///
    /// [`Error::MaxRecursionDepth`].
    #[inline]
    pub fn deeper(self) -> Result<Depth> {
        if self.0 >= MAX_RECURSION { Err(Error::MaxRecursionDepth) } else { Ok(Depth(self.0 + 1)) }
    }
}

/// A type on the wire.
///
/// `offset` is where the inline part is: in the encoder's buffer, which has room there that is zero,
/// or in the message that is decoded.
pub trait WireType: 'static {
    /// The Rust type of the values.
    type Owned: 'static;

    /// Size of the inline part in bytes.
    const SIZE: usize;
    /// Alignment of the inline part in bytes.
    const ALIGN: usize;

    /// Encodes a value and gives its handles away.
    ///
    /// # Errors
    ///
    /// The value breaks a bound of its type.
    fn encode_owned(
        value: Self::Owned,
        encoder: &mut Encoder<'_>,
        offset: usize,
        depth: Depth,
    ) -> Result<()>;

    /// Decodes a value.
    ///
    /// # Errors
    ///
    /// The bytes or handles are not those of a value of this type.
    fn decode(decoder: &mut Decoder<'_>, offset: usize, depth: Depth) -> Result<Self::Owned>;

    /// Encodes elements side by side.
    ///
    /// # Errors
    ///
    /// As of [`Self::encode_owned`].
    fn encode_elements_owned(
        values: Vec<Self::Owned>,
        encoder: &mut Encoder<'_>,
        depth: Depth,
    ) -> Result<()> {
        let start = encoder.allocate(values.len() * Self::SIZE);
        for (i, value) in values.into_iter().enumerate() {
            Self::encode_owned(value, encoder, start + i * Self::SIZE, depth)?;
        }
        Ok(())
    }

    /// Decodes `count` elements side by side, whose bytes are known to be there.
    ///
    /// # Errors
    ///
    /// As of [`Self::decode`].
    fn decode_elements(
        count: usize,
        decoder: &mut Decoder<'_>,
        offset: usize,
        depth: Depth,
    ) -> Result<Vec<Self::Owned>> {
        // Values may be larger than their bytes. A message that lies about its length must not
        // reserve much more than its own size, so only the first elements' room is reserved.
        let size = size_of::<Self::Owned>().max(1);
        let affordable = count.saturating_mul(Self::SIZE).saturating_mul(2) / size;
        let mut values = Vec::with_capacity(count.min(affordable));
        for i in 0..count {
            values.push(Self::decode(decoder, offset + i * Self::SIZE, depth)?);
        }
        Ok(values)
    }
}

/// A type whose values have no handles and are encoded from a borrow.
pub trait ValueType: WireType {
    /// What a value is encoded from.
    type Borrowed<'a>;

    /// Borrows a value.
    fn borrow(value: &Self::Owned) -> Self::Borrowed<'_>;

    /// Encodes a value.
    ///
    /// # Errors
    ///
    /// The value breaks a bound of its type.
    fn encode(
        value: Self::Borrowed<'_>,
        encoder: &mut Encoder<'_>,
        offset: usize,
        depth: Depth,
    ) -> Result<()>;

    /// Encodes elements side by side.
    ///
    /// # Errors
    ///
    /// As of [`Self::encode`].
    fn encode_elements(
        values: &[Self::Owned],
        encoder: &mut Encoder<'_>,
        depth: Depth,
    ) -> Result<()> {
        let start = encoder.allocate(values.len() * Self::SIZE);
        for (i, value) in values.iter().enumerate() {
            Self::encode(Self::borrow(value), encoder, start + i * Self::SIZE, depth)?;
        }
        Ok(())
    }
}

/// A type that may be absent without a box: strings, vectors, handles, endpoints and unions.
pub trait Nullable: WireType {
    /// What `Option` holds: the value, or a box of it.
    type Held: 'static;

    /// Whether the value at `offset` is absent.
    ///
    /// # Errors
    ///
    /// The marker is neither that of a value nor that of none.
    fn is_absent(decoder: &Decoder<'_>, offset: usize) -> Result<bool>;

    /// A value as it is held.
    fn hold(value: Self::Owned) -> Self::Held;

    /// The value that is held.
    fn release(held: Self::Held) -> Self::Owned;
}

/// A [`Nullable`] type without handles.
pub trait NullableValue: Nullable + ValueType {
    /// Borrows a held value.
    fn borrow_held(held: &Self::Held) -> Self::Borrowed<'_>;
}
