//! The header of a message, and bodies without members.

use super::{Decoder, Depth, Encoder, ValueType, WireType};
use crate::{Error, Result};
use fuchsia_zircon::HandleInfo;

/// Size of the transaction header.
pub const HEADER_SIZE: usize = 16;
/// The magic number of the wire format.
pub const MAGIC_NUMBER_INITIAL: u8 = 1;
/// The at-rest flags of wire format v2.
pub const AT_REST_FLAGS_V2: [u8; 2] = [0x02, 0x00];
/// The ordinal of an epitaph.
pub(crate) const EPITAPH_ORDINAL: u64 = u64::MAX;

bitflags::bitflags! {
    /// Flags that say how a message is to be taken.
    #[derive(Debug, Copy, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
    pub struct DynamicFlags: u8 {
        /// A receiver that does not know the method tolerates it.
        const FLEXIBLE = 0x80;
    }
}

/// What every message between a client and a server begins with.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub struct TransactionHeader {
    /// The transaction: 0 for one-way methods and events.
    pub tx_id: u32,
    /// Flags of the encoding.
    pub at_rest_flags: [u8; 2],
    /// Flags of the interaction.
    pub dynamic_flags: DynamicFlags,
    /// [`MAGIC_NUMBER_INITIAL`].
    pub magic_number: u8,
    /// The method or event.
    pub ordinal: u64,
}

impl TransactionHeader {
    /// A header of wire format v2.
    pub fn new(tx_id: u32, ordinal: u64, dynamic_flags: DynamicFlags) -> TransactionHeader {
        TransactionHeader {
            tx_id,
            at_rest_flags: AT_REST_FLAGS_V2,
            dynamic_flags,
            magic_number: MAGIC_NUMBER_INITIAL,
            ordinal,
        }
    }

    /// The header as bytes.
    pub fn to_bytes(self) -> [u8; HEADER_SIZE] {
        let mut bytes = [0; HEADER_SIZE];
        bytes[0..4].copy_from_slice(&self.tx_id.to_le_bytes());
        bytes[4..6].copy_from_slice(&self.at_rest_flags);
        bytes[6] = self.dynamic_flags.bits();
        bytes[7] = self.magic_number;
        bytes[8..16].copy_from_slice(&self.ordinal.to_le_bytes());
        bytes
    }

    /// Splits a message into its header and its body.
    ///
    /// # Errors
    ///
    /// It is too short, or not of wire format v2. Flags without a meaning are not an error.
    pub fn split(message: &[u8]) -> Result<(TransactionHeader, &[u8])> {
        let (bytes, body) = message.split_first_chunk::<16>().ok_or(Error::InvalidHeader)?;
        let [t0, t1, t2, t3, r0, r1, dynamic, magic, ordinal @ ..] = *bytes;
        if magic != MAGIC_NUMBER_INITIAL {
            return Err(Error::IncompatibleMagicNumber(magic));
        }
        if r0 & AT_REST_FLAGS_V2[0] == 0 {
            return Err(Error::UnsupportedWireFormatVersion);
        }
        let header = TransactionHeader {
            tx_id: u32::from_le_bytes([t0, t1, t2, t3]),
            at_rest_flags: [r0, r1],
            dynamic_flags: DynamicFlags::from_bits_truncate(dynamic),
            magic_number: magic,
            ordinal: u64::from_le_bytes(ordinal),
        };
        Ok((header, body))
    }

    /// Whether this is the server's last word.
    pub fn is_epitaph(&self) -> bool {
        self.ordinal == EPITAPH_ORDINAL && self.tx_id == 0
    }
}

/// Decodes a message's body, all of it.
#[inline]
pub(crate) fn decode_body<T: WireType>(
    body: &[u8],
    handles: &mut [HandleInfo],
) -> Result<T::Owned> {
    Decoder::decode_all::<T>(body, handles)
}

/// The body of a message without parameters: no bytes.
#[derive(Debug)]
pub struct EmptyPayload;

/// A struct without members, which takes a byte.
#[derive(Debug)]
pub struct EmptyStruct;

impl WireType for EmptyPayload {
    type Owned = ();
    const SIZE: usize = 0;
    const ALIGN: usize = 1;

    #[inline]
    fn encode_owned((): (), _: &mut Encoder<'_>, _: usize, _: Depth) -> Result<()> {
        Ok(())
    }

    #[inline]
    fn decode(_: &mut Decoder<'_>, _: usize, _: Depth) -> Result<()> {
        Ok(())
    }
}

impl WireType for EmptyStruct {
    type Owned = ();
    const SIZE: usize = 1;
    const ALIGN: usize = 1;

    #[inline]
    fn encode_owned((): (), _: &mut Encoder<'_>, _: usize, _: Depth) -> Result<()> {
        Ok(())
    }

    #[inline]
    fn decode(decoder: &mut Decoder<'_>, offset: usize, _: Depth) -> Result<()> {
        decoder.check_padding(offset, 1)
    }
}

impl ValueType for EmptyStruct {
    type Borrowed<'a> = ();

    #[inline]
    fn borrow((): &()) {}

    #[inline]
    fn encode((): (), _: &mut Encoder<'_>, _: usize, _: Depth) -> Result<()> {
        Ok(())
    }
}
