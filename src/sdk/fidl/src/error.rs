//! What can go wrong when FIDL is spoken.

use fuchsia_zircon::{ObjectType, Rights, Status};

/// A result of a FIDL operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a FIDL operation failed. The names are those of Fuchsia's crate.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A synchronous client waited for an event and got a response.
    #[error("a response came where an event was waited for")]
    UnexpectedSyncResponse,

    /// A boolean that is neither 0 nor 1.
    #[error("a boolean is neither 0 nor 1")]
    InvalidBoolean,

    /// The message is too short for its header.
    #[error("the message has no valid header")]
    InvalidHeader,

    /// The header's magic number is of another wire format.
    #[error("magic number {0} is of an unknown wire format")]
    IncompatibleMagicNumber(u8),

    /// The header's flags do not say wire format v2.
    #[error("the message is not in wire format v2")]
    UnsupportedWireFormatVersion,

    /// The message is wrong in a way that has no name of its own.
    #[error("the message is not valid")]
    Invalid,

    /// The message ends before the object does, or a size does not fit its field.
    #[error("an object of {expected} bytes does not fit into the {actual} that are there")]
    OutOfRange {
        /// Bytes the object takes.
        expected: usize,
        /// Bytes that are there.
        actual: usize,
    },

    /// The message has fewer handles than it refers to.
    #[error("the message refers to more handles than came with it")]
    OutOfHandles,

    /// The message has bytes that belong to no object.
    #[error("the message has more bytes than its object")]
    ExtraBytes,

    /// The message has handles that belong to no object.
    #[error("the message has more handles than its object")]
    ExtraHandles,

    /// Padding is not zero.
    #[error("the padding at byte {padding_start} is not zero")]
    NonZeroPadding {
        /// Offset of the first byte of the padding in the body.
        padding_start: usize,
    },

    /// More than 32 objects out of line inside each other.
    #[error("more than 32 objects out of line inside each other")]
    MaxRecursionDepth,

    /// Something that must be there is absent.
    #[error("something that is not optional is absent")]
    NotNullable,

    /// A vector or string is absent but has a length.
    #[error("an absent vector or string has a length")]
    UnexpectedNullRef,

    /// A string is not UTF-8.
    #[error("a string is not UTF-8")]
    Utf8Error,

    /// A vector is longer than its type allows.
    #[error("a vector of {actual_length} elements where {max_length} are allowed")]
    VectorTooLong {
        /// The bound in elements.
        max_length: usize,
        /// The elements there are.
        actual_length: usize,
    },

    /// A string is longer than its type allows.
    #[error("a string of {actual_bytes} bytes where {max_bytes} are allowed")]
    StringTooLong {
        /// The bound in bytes.
        max_bytes: usize,
        /// The bytes there are.
        actual_bytes: usize,
    },

    /// A message whose method or event the protocol does not have.
    #[error("{protocol_name} has no method or event with ordinal {ordinal:#x}")]
    UnknownOrdinal {
        /// The ordinal in the header.
        ordinal: u64,
        /// The protocol.
        protocol_name: &'static str,
    },

    /// The server does not know a flexible method.
    #[error("the server of {protocol_name} does not know the method {method_name}")]
    UnsupportedMethod {
        /// The method.
        method_name: &'static str,
        /// The protocol.
        protocol_name: &'static str,
    },

    /// A value of strict bits that has others than the members.
    #[error("bits that are no member's in a strict bits type")]
    InvalidBitsValue,

    /// A value of a strict enum that is no member's.
    #[error("a value that is no member's in a strict enum type")]
    InvalidEnumValue,

    /// An ordinal of a strict union that is no member's, or an unknown member that cannot be
    /// encoded.
    #[error("a union with an unknown member")]
    UnknownUnionTag,

    /// A future was polled after it was ready.
    #[error("a FIDL future was polled after it was ready")]
    PollAfterCompletion,

    /// A two-way request without a transaction id, or a one-way request with one.
    #[error("the transaction id of the request does not fit its method")]
    InvalidRequestTxid,

    /// A response to no request.
    #[error("a response to no request")]
    InvalidResponseTxid,

    /// A response with the ordinal of another method than the request's.
    #[error("a response with another method's ordinal")]
    InvalidResponseOrdinal,

    /// A presence marker that is neither zero nor all ones.
    #[error("a presence marker that is neither zero nor all ones")]
    InvalidPresenceIndicator,

    /// Content of up to 4 bytes out of line, or of more inline.
    #[error("an envelope's content is in the wrong place")]
    InvalidInlineBitInEnvelope,

    /// Flags of an envelope that have no meaning.
    #[error("unknown flags in an envelope")]
    InvalidInlineMarkerInEnvelope,

    /// An envelope that says another size than its content has.
    #[error("an envelope with the wrong number of bytes")]
    InvalidNumBytesInEnvelope,

    /// An envelope that says another number of handles than its content has.
    #[error("an envelope with the wrong number of handles")]
    InvalidNumHandlesInEnvelope,

    /// A handle to an object of another type than declared.
    #[error("a handle of type {} where {} is declared", .received.into_raw(), .expected.into_raw())]
    IncorrectHandleSubtype {
        /// The declared type.
        expected: ObjectType,
        /// The type of the object.
        received: ObjectType,
    },

    /// A handle without rights that are declared.
    #[error("a handle lacks the rights {:#x}", .missing_rights.bits())]
    MissingExpectedHandleRights {
        /// The rights that are missing.
        missing_rights: Rights,
    },

    /// A handle's rights could not be reduced to the declared ones.
    #[error("a handle's rights could not be reduced: {0}")]
    HandleReplace(#[source] Status),

    /// A server could not write a response.
    #[error("the response could not be written: {0}")]
    ServerResponseWrite(#[source] Status),

    /// A server could not read a request.
    #[error("the request could not be read: {0}")]
    ServerRequestRead(#[source] Status),

    /// A server could not write an epitaph.
    #[error("the epitaph could not be written: {0}")]
    ServerEpitaphWrite(#[source] Status),

    /// A client could not read a response or an event.
    #[error("the response could not be read: {0}")]
    ClientRead(#[source] Status),

    /// A client could not write a request.
    #[error("the request could not be written: {0}")]
    ClientWrite(#[source] Status),

    /// A synchronous call failed.
    #[error("the call failed: {0}")]
    ClientCall(#[source] Status),

    /// Waiting for an event failed.
    #[error("waiting for an event failed: {0}")]
    ClientEvent(#[source] Status),

    /// The connection is closed.
    #[error("the channel to the protocol {protocol_name} was closed: {status}")]
    ClientChannelClosed {
        /// The epitaph, or `PEER_CLOSED` if there was none.
        #[source]
        status: Status,
        /// The protocol.
        protocol_name: &'static str,
    },

    /// A channel could not be given to the executor.
    #[error("the channel could not be attached to the executor: {0}")]
    AsyncChannel(#[source] Status),
}

impl Error {
    /// Whether the reason is that the connection is closed.
    pub fn is_closed(&self) -> bool {
        matches!(self, Error::ClientChannelClosed { .. })
    }
}
