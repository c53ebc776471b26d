//! Handles and protocol endpoints.

use super::{Decoder, Depth, Encoder, Nullable, WireType};
use crate::Result;
use fuchsia_zircon::{Handle, HandleBased, ObjectType, Rights};
use std::marker::PhantomData;

/// `zx.Handle:<SUBTYPE, RIGHTS>`, with values of the Rust type `H`.
#[derive(Debug)]
pub struct HandleType<H, const SUBTYPE: u32, const RIGHTS: u32>(PhantomData<H>);

impl<H: HandleBased + 'static, const SUBTYPE: u32, const RIGHTS: u32> WireType
    for HandleType<H, SUBTYPE, RIGHTS>
{
    type Owned = H;
    const SIZE: usize = 4;
    const ALIGN: usize = 4;

    #[inline]
    fn encode_owned(
        value: H,
        encoder: &mut Encoder<'_>,
        offset: usize,
        _depth: Depth,
    ) -> Result<()> {
        let (object_type, rights) = (ObjectType::from_raw(SUBTYPE), Rights::from_raw(RIGHTS));
        encoder.write_handle(value.into_handle(), object_type, rights, offset)
    }

    #[inline]
    fn decode(decoder: &mut Decoder<'_>, offset: usize, _depth: Depth) -> Result<H> {
        if decoder.handle_is_absent(offset)? {
            return Err(crate::Error::NotNullable);
        }
        let (object_type, rights) = (ObjectType::from_raw(SUBTYPE), Rights::from_raw(RIGHTS));
        Ok(H::from_handle(decoder.take_handle(object_type, rights)?))
    }
}

impl<H: HandleBased + 'static, const SUBTYPE: u32, const RIGHTS: u32> Nullable
    for HandleType<H, SUBTYPE, RIGHTS>
{
    type Held = H;

    #[inline]
    fn is_absent(decoder: &Decoder<'_>, offset: usize) -> Result<bool> {
        decoder.handle_is_absent(offset)
    }

    #[inline]
    fn hold(value: H) -> H {
        value
    }

    #[inline]
    fn release(held: H) -> H {
        held
    }
}

/// `client_end:P` or `server_end:P`, where `E` is the Rust type of the end.
#[derive(Debug)]
pub struct Endpoint<E>(PhantomData<E>);

/// The rights of a channel that is an endpoint (`ZX_DEFAULT_CHANNEL_RIGHTS`).
const CHANNEL_RIGHTS: Rights = Rights::TRANSFER
    .union(Rights::WAIT)
    .union(Rights::INSPECT)
    .union(Rights::READ)
    .union(Rights::WRITE)
    .union(Rights::SIGNAL)
    .union(Rights::SIGNAL_PEER);

impl<E: From<Handle> + Into<Handle> + 'static> WireType for Endpoint<E> {
    type Owned = E;
    const SIZE: usize = 4;
    const ALIGN: usize = 4;

    #[inline]
    fn encode_owned(
        value: E,
        encoder: &mut Encoder<'_>,
        offset: usize,
        _depth: Depth,
    ) -> Result<()> {
        encoder.write_handle(value.into(), ObjectType::CHANNEL, CHANNEL_RIGHTS, offset)
    }

    #[inline]
    fn decode(decoder: &mut Decoder<'_>, offset: usize, _depth: Depth) -> Result<E> {
        if decoder.handle_is_absent(offset)? {
            return Err(crate::Error::NotNullable);
        }
        Ok(E::from(decoder.take_handle(ObjectType::CHANNEL, CHANNEL_RIGHTS)?))
    }
}

impl<E: From<Handle> + Into<Handle> + 'static> Nullable for Endpoint<E> {
    type Held = E;

    #[inline]
    fn is_absent(decoder: &Decoder<'_>, offset: usize) -> Result<bool> {
        decoder.handle_is_absent(offset)
    }

    #[inline]
    fn hold(value: E) -> E {
        value
    }

    #[inline]
    fn release(held: E) -> E {
        held
    }
}
