//! A client that blocks the thread.

use super::{EventMessage, Message, epitaph_status};
use crate::encoding::{
    DynamicFlags, Encoder, TransactionHeader, WireType, decode_body, with_buffers,
};
use crate::{Error, Result, message_buffer};
use fuchsia_zircon::{AsHandleRef as _, Channel, MessageBufEtc, Signals, Status, Time};

/// A client that blocks the thread.
#[derive(Debug)]
pub struct Client {
    channel: Channel,
    protocol_name: &'static str,
}

impl Client {
    /// A client on a channel. `protocol_name` is for errors.
    pub fn new(channel: Channel, protocol_name: &'static str) -> Client {
        Client { channel, protocol_name }
    }

    /// The channel.
    pub fn into_channel(self) -> Channel {
        self.channel
    }

    /// The channel.
    pub fn as_channel(&self) -> &Channel {
        &self.channel
    }

    /// Calls a one-way method.
    ///
    /// # Errors
    ///
    /// A parameter breaks a bound of its type, or the request could not be written.
    pub fn send(
        &self,
        ordinal: u64,
        flags: DynamicFlags,
        encode: impl FnOnce(&mut Encoder<'_>) -> Result<()>,
    ) -> Result<()> {
        with_buffers(|bytes, handles| {
            bytes.extend_from_slice(&TransactionHeader::new(0, ordinal, flags).to_bytes());
            encode(&mut Encoder::new(bytes, handles))?;
            self.channel
                .write_etc(bytes, handles)
                .map_err(|status| self.ended(status, Error::ClientWrite))
        })
    }

    /// Calls a two-way method and waits for its response.
    ///
    /// # Errors
    ///
    /// As of [`Self::send`]; `ClientCall(TIMED_OUT)` after the deadline; the response is not valid.
    pub fn send_query_and_decode<M: WireType, T>(
        &self,
        ordinal: u64,
        flags: DynamicFlags,
        deadline: Time,
        encode: impl FnOnce(&mut Encoder<'_>) -> Result<()>,
        convert: impl FnOnce(M::Owned) -> Result<T>,
    ) -> Result<T> {
        let mut message = message_buffer::take();
        let called = with_buffers(|bytes, handles| {
            // The kernel chooses the transaction id.
            bytes.extend_from_slice(&TransactionHeader::new(0, ordinal, flags).to_bytes());
            encode(&mut Encoder::new(bytes, handles))?;
            self.channel
                .call_etc(deadline, bytes, handles, &mut message)
                .map_err(|status| self.ended(status, Error::ClientCall))
        });
        let response = match called {
            Ok(()) => Self::decode::<M>(ordinal, &mut message),
            Err(error) => Err(error),
        };
        message_buffer::give_back(message);
        convert(response?)
    }

    fn decode<M: WireType>(ordinal: u64, message: &mut MessageBufEtc) -> Result<M::Owned> {
        let (bytes, handles) = message.split_mut();
        let (header, body) = TransactionHeader::split(bytes)?;
        if header.ordinal != ordinal {
            return Err(Error::InvalidResponseOrdinal);
        }
        decode_body::<M>(body, handles)
    }

    /// Waits for an event.
    ///
    /// # Errors
    ///
    /// `ClientEvent(TIMED_OUT)` after the deadline; [`Error::UnexpectedSyncResponse`]; the connection
    /// is closed.
    pub fn wait_for_event(&self, deadline: Time) -> Result<EventMessage> {
        let signals = Signals::CHANNEL_READABLE | Signals::CHANNEL_PEER_CLOSED;
        self.channel.wait_handle(signals, deadline).map_err(Error::ClientEvent)?;
        let buffer = message_buffer::read(&self.channel).map_err(|status| match status {
            Status::PEER_CLOSED => self.closed(status),
            status => Error::ClientRead(status),
        })?;
        let mut message = Message::new(buffer)?;
        if message.header.is_epitaph() {
            return Err(self.closed(epitaph_status(&mut message.buffer)?));
        }
        if message.header.tx_id != 0 {
            return Err(Error::UnexpectedSyncResponse);
        }
        Ok(EventMessage::new(message))
    }

    fn closed(&self, status: Status) -> Error {
        Error::ClientChannelClosed { status, protocol_name: self.protocol_name }
    }

    /// The error of a call that failed. When the server is gone, its epitaph is among what it sent.
    fn ended(&self, status: Status, error: impl FnOnce(Status) -> Error) -> Error {
        if status != Status::PEER_CLOSED {
            return error(status);
        }
        let mut message = MessageBufEtc::new();
        while self.channel.read_etc(&mut message).is_ok() {
            let header = TransactionHeader::split(message.bytes());
            if header.is_ok_and(|(header, _)| header.is_epitaph())
                && let Ok(status) = epitaph_status(&mut message)
            {
                return self.closed(status);
            }
        }
        self.closed(Status::PEER_CLOSED)
    }
}
