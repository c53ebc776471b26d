//! Strings, vectors, arrays, boxes, and what may be absent.

use super::{
    ALLOC_PRESENT_U64, Decoder, Depth, Encoder, Nullable, NullableValue, ValueType, WireType,
};
use crate::{Error, Result};
use std::marker::PhantomData;

/// `string:N`.
#[derive(Debug)]
pub struct BoundedString<const N: u32>;

fn encode_str<const N: u32>(
    value: &str,
    encoder: &mut Encoder<'_>,
    offset: usize,
    depth: Depth,
) -> Result<()> {
    depth.deeper()?;
    if value.len() > N as usize {
        return Err(Error::StringTooLong { max_bytes: N as usize, actual_bytes: value.len() });
    }
    encoder.write_vector_header(offset, value.len());
    encoder.append(value.as_bytes());
    Ok(())
}

impl<const N: u32> WireType for BoundedString<N> {
    type Owned = String;
    const SIZE: usize = 16;
    const ALIGN: usize = 8;

    #[inline]
    fn encode_owned(
        value: String,
        encoder: &mut Encoder<'_>,
        offset: usize,
        depth: Depth,
    ) -> Result<()> {
        encode_str::<N>(&value, encoder, offset, depth)
    }

    #[inline]
    fn decode(decoder: &mut Decoder<'_>, offset: usize, depth: Depth) -> Result<String> {
        let len = decoder.vector_len(offset)?;
        if len > N as usize {
            return Err(Error::StringTooLong { max_bytes: N as usize, actual_bytes: len });
        }
        depth.deeper()?;
        let text = std::str::from_utf8(decoder.claim_bytes(len)?).map_err(|_| Error::Utf8Error)?;
        Ok(text.to_owned())
    }
}

impl<const N: u32> ValueType for BoundedString<N> {
    type Borrowed<'a> = &'a str;

    #[inline]
    fn borrow(value: &String) -> &str {
        value
    }

    #[inline]
    fn encode(value: &str, encoder: &mut Encoder<'_>, offset: usize, depth: Depth) -> Result<()> {
        encode_str::<N>(value, encoder, offset, depth)
    }
}

impl<const N: u32> Nullable for BoundedString<N> {
    type Held = String;

    #[inline]
    fn is_absent(decoder: &Decoder<'_>, offset: usize) -> Result<bool> {
        decoder.vector_is_absent(offset)
    }

    #[inline]
    fn hold(value: String) -> String {
        value
    }

    #[inline]
    fn release(held: String) -> String {
        held
    }
}

impl<const N: u32> NullableValue for BoundedString<N> {
    #[inline]
    fn borrow_held(held: &String) -> &str {
        held
    }
}

/// `vector<T>:N`.
#[derive(Debug)]
pub struct Vector<T, const N: u32>(PhantomData<T>);

fn check_count<const N: u32>(count: usize) -> Result<()> {
    if count > N as usize {
        return Err(Error::VectorTooLong { max_length: N as usize, actual_length: count });
    }
    Ok(())
}

impl<T: WireType, const N: u32> WireType for Vector<T, N> {
    type Owned = Vec<T::Owned>;
    const SIZE: usize = 16;
    const ALIGN: usize = 8;

    #[inline]
    fn encode_owned(
        value: Vec<T::Owned>,
        encoder: &mut Encoder<'_>,
        offset: usize,
        depth: Depth,
    ) -> Result<()> {
        check_count::<N>(value.len())?;
        let depth = depth.deeper()?;
        encoder.write_vector_header(offset, value.len());
        T::encode_elements_owned(value, encoder, depth)
    }

    #[inline]
    fn decode(decoder: &mut Decoder<'_>, offset: usize, depth: Depth) -> Result<Vec<T::Owned>> {
        let count = decoder.vector_len(offset)?;
        check_count::<N>(count)?;
        let depth = depth.deeper()?;
        // The bytes are claimed before anything is allocated for them.
        let at = decoder.claim(count.saturating_mul(T::SIZE))?;
        T::decode_elements(count, decoder, at, depth)
    }
}

impl<T: ValueType, const N: u32> ValueType for Vector<T, N> {
    type Borrowed<'a> = &'a [T::Owned];

    #[inline]
    fn borrow(value: &Vec<T::Owned>) -> &[T::Owned] {
        value
    }

    #[inline]
    fn encode(
        value: &[T::Owned],
        encoder: &mut Encoder<'_>,
        offset: usize,
        depth: Depth,
    ) -> Result<()> {
        check_count::<N>(value.len())?;
        let depth = depth.deeper()?;
        encoder.write_vector_header(offset, value.len());
        T::encode_elements(value, encoder, depth)
    }
}

impl<T: WireType, const N: u32> Nullable for Vector<T, N> {
    type Held = Vec<T::Owned>;

    #[inline]
    fn is_absent(decoder: &Decoder<'_>, offset: usize) -> Result<bool> {
        decoder.vector_is_absent(offset)
    }

    #[inline]
    fn hold(value: Self::Owned) -> Self::Owned {
        value
    }

    #[inline]
    fn release(held: Self::Owned) -> Self::Owned {
        held
    }
}

impl<T: ValueType, const N: u32> NullableValue for Vector<T, N> {
    #[inline]
    fn borrow_held(held: &Vec<T::Owned>) -> &[T::Owned] {
        held
    }
}

/// `array<T, N>`.
#[derive(Debug)]
pub struct Array<T, const N: usize>(PhantomData<T>);

impl<T: WireType, const N: usize> WireType for Array<T, N> {
    type Owned = [T::Owned; N];
    const SIZE: usize = N * T::SIZE;
    const ALIGN: usize = T::ALIGN;

    fn encode_owned(
        value: [T::Owned; N],
        encoder: &mut Encoder<'_>,
        offset: usize,
        depth: Depth,
    ) -> Result<()> {
        for (i, element) in value.into_iter().enumerate() {
            T::encode_owned(element, encoder, offset + i * T::SIZE, depth)?;
        }
        Ok(())
    }

    fn decode(decoder: &mut Decoder<'_>, offset: usize, depth: Depth) -> Result<[T::Owned; N]> {
        let elements = T::decode_elements(N, decoder, offset, depth)?;
        elements.try_into().map_err(|_| Error::Invalid)
    }
}

impl<T: ValueType, const N: usize> ValueType for Array<T, N> {
    type Borrowed<'a> = &'a [T::Owned; N];

    #[inline]
    fn borrow(value: &[T::Owned; N]) -> &[T::Owned; N] {
        value
    }

    fn encode(
        value: &[T::Owned; N],
        encoder: &mut Encoder<'_>,
        offset: usize,
        depth: Depth,
    ) -> Result<()> {
        for (i, element) in value.iter().enumerate() {
            T::encode(T::borrow(element), encoder, offset + i * T::SIZE, depth)?;
        }
        Ok(())
    }
}

/// `box<S>`.
#[derive(Debug)]
pub struct Boxed<S>(PhantomData<S>);

impl<S: WireType> WireType for Boxed<S> {
    type Owned = Option<Box<S::Owned>>;
    const SIZE: usize = 8;
    const ALIGN: usize = 8;

    fn encode_owned(
        value: Option<Box<S::Owned>>,
        encoder: &mut Encoder<'_>,
        offset: usize,
        depth: Depth,
    ) -> Result<()> {
        let Some(value) = value else { return Ok(()) };
        let depth = depth.deeper()?;
        encoder.write_u64(offset, ALLOC_PRESENT_U64);
        let at = encoder.allocate(S::SIZE);
        S::encode_owned(*value, encoder, at, depth)
    }

    fn decode(
        decoder: &mut Decoder<'_>,
        offset: usize,
        depth: Depth,
    ) -> Result<Option<Box<S::Owned>>> {
        if !decoder.is_present(offset)? {
            return Ok(None);
        }
        let depth = depth.deeper()?;
        let at = decoder.claim(S::SIZE)?;
        Ok(Some(Box::new(S::decode(decoder, at, depth)?)))
    }
}

impl<S> ValueType for Boxed<S>
where
    S: for<'a> ValueType<Borrowed<'a> = &'a <S as WireType>::Owned>,
{
    type Borrowed<'a> = Option<&'a S::Owned>;

    #[inline]
    fn borrow(value: &Option<Box<S::Owned>>) -> Option<&S::Owned> {
        value.as_deref()
    }

    fn encode(
        value: Option<&S::Owned>,
        encoder: &mut Encoder<'_>,
        offset: usize,
        depth: Depth,
    ) -> Result<()> {
        let Some(value) = value else { return Ok(()) };
        let depth = depth.deeper()?;
        encoder.write_u64(offset, ALLOC_PRESENT_U64);
        let at = encoder.allocate(S::SIZE);
        S::encode(value, encoder, at, depth)
    }
}

/// `T:optional`. Absent values are zero on the wire, and what is allocated is zero already.
#[derive(Debug)]
pub struct Optional<T>(PhantomData<T>);

impl<T: Nullable> WireType for Optional<T> {
    type Owned = Option<T::Held>;
    const SIZE: usize = T::SIZE;
    const ALIGN: usize = T::ALIGN;

    #[inline]
    fn encode_owned(
        value: Option<T::Held>,
        encoder: &mut Encoder<'_>,
        offset: usize,
        depth: Depth,
    ) -> Result<()> {
        match value {
            Some(held) => T::encode_owned(T::release(held), encoder, offset, depth),
            None => Ok(()),
        }
    }

    #[inline]
    fn decode(decoder: &mut Decoder<'_>, offset: usize, depth: Depth) -> Result<Option<T::Held>> {
        if T::is_absent(decoder, offset)? {
            return Ok(None);
        }
        Ok(Some(T::hold(T::decode(decoder, offset, depth)?)))
    }
}

impl<T: NullableValue> ValueType for Optional<T> {
    type Borrowed<'a> = Option<T::Borrowed<'a>>;

    #[inline]
    fn borrow(value: &Option<T::Held>) -> Option<T::Borrowed<'_>> {
        value.as_ref().map(T::borrow_held)
    }

    #[inline]
    fn encode(
        value: Option<T::Borrowed<'_>>,
        encoder: &mut Encoder<'_>,
        offset: usize,
        depth: Depth,
    ) -> Result<()> {
        match value {
            Some(value) => T::encode(value, encoder, offset, depth),
            None => Ok(()),
        }
    }
}
