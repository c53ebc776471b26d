//! Numbers and booleans.

use super::{Decoder, Depth, Encoder, ValueType, WireType};
use crate::{Error, Result};
use zerocopy::{FromBytes as _, IntoBytes as _};

macro_rules! impl_number {
    ($($number:ty),*) => {$(
        impl WireType for $number {
            type Owned = $number;
            const SIZE: usize = size_of::<$number>();
            const ALIGN: usize = size_of::<$number>();

            #[inline]
            fn encode_owned(
                value: Self,
                encoder: &mut Encoder<'_>,
                offset: usize,
                _depth: Depth,
            ) -> Result<()> {
                encoder.write(offset, value.to_le_bytes());
                Ok(())
            }

            #[inline]
            fn decode(decoder: &mut Decoder<'_>, offset: usize, _depth: Depth) -> Result<Self> {
                decoder.read(offset).map(<$number>::from_le_bytes)
            }

            #[inline]
            fn encode_elements_owned(
                values: Vec<Self>,
                encoder: &mut Encoder<'_>,
                depth: Depth,
            ) -> Result<()> {
                Self::encode_elements(&values, encoder, depth)
            }

            #[inline]
            fn decode_elements(
                count: usize,
                decoder: &mut Decoder<'_>,
                offset: usize,
                _depth: Depth,
            ) -> Result<Vec<Self>> {
                let bytes = decoder.slice(offset, count.saturating_mul(Self::SIZE))?;
                if let Ok(numbers) = <[$number]>::ref_from_bytes(bytes) {
                    return Ok(numbers.to_vec());
                }
                // They are not where such numbers may be in memory.
                let (elements, _) = bytes.as_chunks::<{ size_of::<$number>() }>();
                Ok(elements.iter().map(|element| <$number>::from_le_bytes(*element)).collect())
            }
        }

        impl ValueType for $number {
            type Borrowed<'a> = $number;

            #[inline]
            fn borrow(value: &Self) -> Self {
                *value
            }

            #[inline]
            fn encode(
                value: Self,
                encoder: &mut Encoder<'_>,
                offset: usize,
                _depth: Depth,
            ) -> Result<()> {
                encoder.write(offset, value.to_le_bytes());
                Ok(())
            }

            #[inline]
            fn encode_elements(
                values: &[Self],
                encoder: &mut Encoder<'_>,
                _depth: Depth,
            ) -> Result<()> {
                encoder.append(values.as_bytes());
                Ok(())
            }
        }
    )*};
}

impl_number!(u8, u16, u32, u64, i8, i16, i32, i64, f32, f64);

impl WireType for bool {
    type Owned = bool;
    const SIZE: usize = 1;
    const ALIGN: usize = 1;

    #[inline]
    fn encode_owned(
        value: bool,
        encoder: &mut Encoder<'_>,
        offset: usize,
        _depth: Depth,
    ) -> Result<()> {
        encoder.write(offset, [u8::from(value)]);
        Ok(())
    }

    #[inline]
    fn decode(decoder: &mut Decoder<'_>, offset: usize, _depth: Depth) -> Result<bool> {
        match decoder.read(offset)? {
            [0] => Ok(false),
            [1] => Ok(true),
            _ => Err(Error::InvalidBoolean),
        }
    }
}

impl ValueType for bool {
    type Borrowed<'a> = bool;

    #[inline]
    fn borrow(value: &bool) -> bool {
        *value
    }

    #[inline]
    fn encode(value: bool, encoder: &mut Encoder<'_>, offset: usize, depth: Depth) -> Result<()> {
        Self::encode_owned(value, encoder, offset, depth)
    }
}
