//! Messages at rest (RFC-0120): a header of 8 bytes and a value without handles.

use crate::encoding::{
    AT_REST_FLAGS_V2, Decoder, Encoder, MAGIC_NUMBER_INITIAL, ValueType, with_buffers,
};
use crate::{Error, Result};

const HEADER_SIZE: usize = 8;

/// Types that can be persisted: structs, tables and unions without handles.
pub trait Persistable:
    for<'a> ValueType<Owned = Self, Borrowed<'a> = &'a Self> + Sized + 'static
{
}

/// Encodes a value so that it can be kept.
///
/// # Errors
///
/// The value breaks a bound of its type.
pub fn persist<T: Persistable>(value: &T) -> Result<Vec<u8>> {
    let [flags0, flags1] = AT_REST_FLAGS_V2;
    with_buffers(|bytes, handles| {
        bytes.extend_from_slice(&[0, MAGIC_NUMBER_INITIAL, flags0, flags1, 0, 0, 0, 0]);
        Encoder::new(bytes, handles)
            .body(T::SIZE, |encoder, offset, depth| T::encode(value, encoder, offset, depth))?;
        Ok(bytes.to_vec())
    })
}

/// Decodes what [`persist`] encoded.
///
/// # Errors
///
/// The bytes are not those of a value of this type.
pub fn unpersist<T: Persistable>(bytes: &[u8]) -> Result<T> {
    let (header, body) = bytes.split_first_chunk::<HEADER_SIZE>().ok_or(Error::InvalidHeader)?;
    let [_, magic, flags0, _, _, _, _, _] = *header;
    if magic != MAGIC_NUMBER_INITIAL {
        return Err(Error::IncompatibleMagicNumber(magic));
    }
    if flags0 & AT_REST_FLAGS_V2[0] == 0 {
        return Err(Error::UnsupportedWireFormatVersion);
    }
    Decoder::decode_all::<T>(body, &mut [])
}
