//! Responses that are a union of success, error and "unknown method".

use super::{Decoder, Depth, Encoder, WireType};
use crate::endpoints::ProtocolMarker;
use crate::{Error, Result};
use std::marker::PhantomData;

const SUCCESS: u64 = 1;
const ERROR: u64 = 2;
const FRAMEWORK_ERROR: u64 = 3;

/// The framework error that says that the server does not know the method (RFC-0138); it is
/// `ZX_ERR_NOT_SUPPORTED`.
pub const FRAMEWORK_ERR_UNKNOWN_METHOD: i32 = -2;

/// The response of a strict method with an error.
#[derive(Debug)]
pub struct ResultType<T, E>(PhantomData<(T, E)>);

/// The response of a flexible method without an error.
#[derive(Debug)]
pub struct FlexibleType<T>(PhantomData<T>);

/// The response of a flexible method with an error.
#[derive(Debug)]
pub struct FlexibleResultType<T, E>(PhantomData<(T, E)>);

/// What a flexible method without an error responds.
#[derive(Debug, PartialEq)]
pub enum Flexible<T> {
    /// The response.
    Success(T),
    /// The server does not know the method.
    UnknownMethod,
}

/// What a flexible method with an error responds.
#[derive(Debug, PartialEq)]
pub enum FlexibleResult<T, E> {
    /// The response.
    Success(T),
    /// The method's error.
    Error(E),
    /// The server does not know the method.
    UnknownMethod,
}

fn unsupported<P: ProtocolMarker, T>(method_name: &'static str) -> Result<T> {
    Err(Error::UnsupportedMethod { method_name, protocol_name: P::DEBUG_NAME })
}

impl<T> Flexible<T> {
    /// The response.
    ///
    /// # Errors
    ///
    /// [`Error::UnsupportedMethod`].
    pub fn into_success<P: ProtocolMarker>(self, method_name: &'static str) -> Result<T> {
        match self {
            Flexible::Success(value) => Ok(value),
            Flexible::UnknownMethod => unsupported::<P, T>(method_name),
        }
    }
}

impl<T, E> FlexibleResult<T, E> {
    /// The response or the method's error.
    ///
    /// # Errors
    ///
    /// [`Error::UnsupportedMethod`].
    pub fn into_result<P: ProtocolMarker>(
        self,
        method_name: &'static str,
    ) -> Result<std::result::Result<T, E>> {
        match self {
            FlexibleResult::Success(value) => Ok(Ok(value)),
            FlexibleResult::Error(error) => Ok(Err(error)),
            FlexibleResult::UnknownMethod => unsupported::<P, _>(method_name),
        }
    }
}

/// Decodes a framework error, of which there is one.
fn decode_framework_error(decoder: &mut Decoder<'_>, offset: usize, depth: Depth) -> Result<()> {
    match decoder.union_member::<i32>(offset, depth)? {
        FRAMEWORK_ERR_UNKNOWN_METHOD => Ok(()),
        _ => Err(Error::InvalidEnumValue),
    }
}

impl<T: WireType, E: WireType> WireType for ResultType<T, E> {
    type Owned = std::result::Result<T::Owned, E::Owned>;
    const SIZE: usize = 16;
    const ALIGN: usize = 8;

    fn encode_owned(
        value: Self::Owned,
        encoder: &mut Encoder<'_>,
        offset: usize,
        depth: Depth,
    ) -> Result<()> {
        match value {
            Ok(value) => {
                encoder.write_u64(offset, SUCCESS);
                encoder.envelope_owned::<T>(value, offset + 8, depth)
            }
            Err(error) => {
                encoder.write_u64(offset, ERROR);
                encoder.envelope_owned::<E>(error, offset + 8, depth)
            }
        }
    }

    fn decode(decoder: &mut Decoder<'_>, offset: usize, depth: Depth) -> Result<Self::Owned> {
        match decoder.union_ordinal(offset)? {
            SUCCESS => Ok(Ok(decoder.union_member::<T>(offset, depth)?)),
            ERROR => Ok(Err(decoder.union_member::<E>(offset, depth)?)),
            _ => Err(Error::UnknownUnionTag),
        }
    }
}

impl<T: WireType> WireType for FlexibleType<T> {
    type Owned = Flexible<T::Owned>;
    const SIZE: usize = 16;
    const ALIGN: usize = 8;

    fn encode_owned(
        value: Self::Owned,
        encoder: &mut Encoder<'_>,
        offset: usize,
        depth: Depth,
    ) -> Result<()> {
        match value {
            Flexible::Success(value) => {
                encoder.write_u64(offset, SUCCESS);
                encoder.envelope_owned::<T>(value, offset + 8, depth)
            }
            Flexible::UnknownMethod => {
                encoder.write_u64(offset, FRAMEWORK_ERROR);
                encoder.envelope::<i32>(FRAMEWORK_ERR_UNKNOWN_METHOD, offset + 8, depth)
            }
        }
    }

    fn decode(decoder: &mut Decoder<'_>, offset: usize, depth: Depth) -> Result<Self::Owned> {
        match decoder.union_ordinal(offset)? {
            SUCCESS => Ok(Flexible::Success(decoder.union_member::<T>(offset, depth)?)),
            FRAMEWORK_ERROR => {
                decode_framework_error(decoder, offset, depth)?;
                Ok(Flexible::UnknownMethod)
            }
            _ => Err(Error::UnknownUnionTag),
        }
    }
}

impl<T: WireType, E: WireType> WireType for FlexibleResultType<T, E> {
    type Owned = FlexibleResult<T::Owned, E::Owned>;
    const SIZE: usize = 16;
    const ALIGN: usize = 8;

    fn encode_owned(
        value: Self::Owned,
        encoder: &mut Encoder<'_>,
        offset: usize,
        depth: Depth,
    ) -> Result<()> {
        match value {
            FlexibleResult::Success(value) => {
                ResultType::<T, E>::encode_owned(Ok(value), encoder, offset, depth)
            }
            FlexibleResult::Error(error) => {
                ResultType::<T, E>::encode_owned(Err(error), encoder, offset, depth)
            }
            FlexibleResult::UnknownMethod => {
                encoder.write_u64(offset, FRAMEWORK_ERROR);
                encoder.envelope::<i32>(FRAMEWORK_ERR_UNKNOWN_METHOD, offset + 8, depth)
            }
        }
    }

    fn decode(decoder: &mut Decoder<'_>, offset: usize, depth: Depth) -> Result<Self::Owned> {
        match decoder.union_ordinal(offset)? {
            SUCCESS => Ok(FlexibleResult::Success(decoder.union_member::<T>(offset, depth)?)),
            ERROR => Ok(FlexibleResult::Error(decoder.union_member::<E>(offset, depth)?)),
            FRAMEWORK_ERROR => {
                decode_framework_error(decoder, offset, depth)?;
                Ok(FlexibleResult::UnknownMethod)
            }
            _ => Err(Error::UnknownUnionTag),
        }
    }
}

impl Encoder<'_> {
    /// Writes a response's body with a success of `size` bytes that `encode` writes, or an error.
    ///
    /// # Errors
    ///
    /// That of `encode`.
    pub fn result_body<E, T>(
        &mut self,
        result: std::result::Result<T, E::Owned>,
        size: usize,
        encode: impl FnOnce(&mut Self, usize, Depth, T) -> Result<()>,
    ) -> Result<()>
    where
        E: WireType,
    {
        match result {
            Ok(value) => {
                self.success_body(size, |encoder, at, depth| encode(encoder, at, depth, value))
            }
            Err(error) => self.body(16, |encoder, offset, depth| {
                encoder.write_u64(offset, ERROR);
                encoder.envelope_owned::<E>(error, offset + 8, depth)
            }),
        }
    }

    /// Writes a response's body with a success of `size` bytes that `encode` writes.
    ///
    /// # Errors
    ///
    /// That of `encode`.
    pub fn success_body(
        &mut self,
        size: usize,
        encode: impl FnOnce(&mut Self, usize, Depth) -> Result<()>,
    ) -> Result<()> {
        self.body(16, |encoder, offset, depth| {
            encoder.write_u64(offset, SUCCESS);
            encoder.envelope_with(size, offset + 8, depth, encode)
        })
    }
}

/// Writes the body that tells a client that its method is not known.
pub(crate) fn encode_unknown_method(encoder: &mut Encoder<'_>) -> Result<()> {
    encoder.body(16, |encoder, offset, depth| {
        encoder.write_u64(offset, FRAMEWORK_ERROR);
        encoder.envelope::<i32>(FRAMEWORK_ERR_UNKNOWN_METHOD, offset + 8, depth)
    })
}
