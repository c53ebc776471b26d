//! Serving a protocol: reading requests, sending responses and events, ending connections.

use crate::encoding::{
    DynamicFlags, Encoder, TransactionHeader, WireType, decode_body, encode_unknown_method,
    with_buffers,
};
use crate::epitaph::write_epitaph;
use crate::{AsyncChannel, Error, Result, message_buffer};
use fuchsia_zircon::{HandleInfo, MessageBufEtc, Status};
use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

/// Whether the client of an unknown method waits for a response.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub enum MethodType {
    /// It does not.
    OneWay,
    /// It does.
    TwoWay,
}

/// The server's end of a connection, which its stream of requests, control handles and responders
/// share. The channel closes when the last of them goes.
#[derive(Debug)]
pub struct ServeInner {
    channel: AsyncChannel,
    shut_down: AtomicBool,
}

/// A request that is not decoded yet.
#[derive(Debug)]
pub struct RequestMessage<'a> {
    header: TransactionHeader,
    body: &'a [u8],
    handles: RefCell<&'a mut [HandleInfo]>,
}

impl ServeInner {
    /// The server's end that this channel is.
    pub fn new(channel: AsyncChannel) -> ServeInner {
        ServeInner { channel, shut_down: AtomicBool::new(false) }
    }

    /// The channel.
    pub fn channel(&self) -> &AsyncChannel {
        &self.channel
    }

    /// The channel, given back, for who goes on with another protocol on it.
    pub fn into_channel(self) -> AsyncChannel {
        self.channel
    }

    /// Ends the connection when the stream of requests is polled next.
    pub fn shutdown(&self) {
        self.shut_down.store(true, Ordering::Release);
        self.channel.wake_reader();
    }

    /// Sends an epitaph, once, and ends the connection.
    pub fn shutdown_with_epitaph(&self, status: Status) {
        if !self.shut_down.swap(true, Ordering::AcqRel) {
            // A client that is gone does not want to know.
            let _ = write_epitaph(self.channel.as_ref(), status);
            self.channel.wake_reader();
        }
    }

    /// The next request, decoded by `decode`. After an error or the end there are no more.
    pub fn poll_request<R>(
        &self,
        is_terminated: &mut bool,
        cx: &mut Context<'_>,
        decode: impl FnOnce(RequestMessage<'_>) -> Result<R>,
    ) -> Poll<Option<Result<R>>> {
        if *is_terminated || self.shut_down.load(Ordering::Acquire) {
            *is_terminated = true;
            return Poll::Ready(None);
        }
        match self.channel.poll_message(cx, message_buffer::read) {
            Poll::Ready(Ok(mut message)) => {
                let result = Self::decode_request(&mut message, decode);
                // Closes handles that the request did not take.
                message_buffer::give_back(message);
                *is_terminated = result.is_err();
                Poll::Ready(Some(result))
            }
            // Who ends the connection from this side sets the flag and then wakes who reads. Either he finds
            // our task, or the flag is seen here, as it was set before the task was kept.
            Poll::Pending if !self.shut_down.load(Ordering::Acquire) => Poll::Pending,
            Poll::Pending | Poll::Ready(Err(Status::PEER_CLOSED)) => {
                *is_terminated = true;
                Poll::Ready(None)
            }
            Poll::Ready(Err(status)) => {
                *is_terminated = true;
                Poll::Ready(Some(Err(Error::ServerRequestRead(status))))
            }
        }
    }

    fn decode_request<R>(
        message: &mut MessageBufEtc,
        decode: impl FnOnce(RequestMessage<'_>) -> Result<R>,
    ) -> Result<R> {
        let (bytes, handles) = message.split_mut();
        let (header, body) = TransactionHeader::split(bytes)?;
        decode(RequestMessage { header, body, handles: RefCell::new(handles) })
    }

    fn send(
        &self,
        tx_id: u32,
        ordinal: u64,
        flags: DynamicFlags,
        encode: impl FnOnce(&mut Encoder<'_>) -> Result<()>,
    ) -> Result<()> {
        with_buffers(|bytes, handles| {
            bytes.extend_from_slice(&TransactionHeader::new(tx_id, ordinal, flags).to_bytes());
            encode(&mut Encoder::new(bytes, handles))?;
            match self.channel.write_etc(bytes, handles) {
                // The stream of requests finds out that the client is gone.
                Ok(()) | Err(Status::PEER_CLOSED) => Ok(()),
                Err(status) => Err(Error::ServerResponseWrite(status)),
            }
        })
    }

    /// Sends a response.
    ///
    /// # Errors
    ///
    /// The value breaks a bound of its type, or [`Error::ServerResponseWrite`]. That the client is
    /// gone is no error.
    pub fn send_response(
        &self,
        tx_id: u32,
        ordinal: u64,
        flags: DynamicFlags,
        encode: impl FnOnce(&mut Encoder<'_>) -> Result<()>,
    ) -> Result<()> {
        self.send(tx_id, ordinal, flags, encode)
    }

    /// Sends an event.
    ///
    /// # Errors
    ///
    /// As of [`Self::send_response`].
    pub fn send_event(
        &self,
        ordinal: u64,
        flags: DynamicFlags,
        encode: impl FnOnce(&mut Encoder<'_>) -> Result<()>,
    ) -> Result<()> {
        self.send(0, ordinal, flags, encode)
    }
}

impl RequestMessage<'_> {
    /// The method.
    #[inline]
    pub fn ordinal(&self) -> u64 {
        self.header.ordinal
    }

    /// The transaction; 0 if no response is waited for.
    #[inline]
    pub fn tx_id(&self) -> u32 {
        self.header.tx_id
    }

    /// Whether the client tolerates that the method is not known.
    #[inline]
    pub fn is_flexible(&self) -> bool {
        self.header.dynamic_flags.contains(DynamicFlags::FLEXIBLE)
    }

    /// Checks that a response is waited for.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidRequestTxid`].
    #[inline]
    pub fn expect_two_way(&self) -> Result<()> {
        if self.header.tx_id == 0 { Err(Error::InvalidRequestTxid) } else { Ok(()) }
    }

    /// Checks that no response is waited for.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidRequestTxid`].
    #[inline]
    pub fn expect_one_way(&self) -> Result<()> {
        if self.header.tx_id == 0 { Ok(()) } else { Err(Error::InvalidRequestTxid) }
    }

    /// The request's parameters.
    ///
    /// # Errors
    ///
    /// The body is not that of a `T`.
    pub fn decode_body<T: WireType>(&self) -> Result<T::Owned> {
        decode_body::<T>(self.body, &mut self.handles.borrow_mut())
    }

    /// Whether this unknown request is one that an ajar protocol tolerates.
    #[inline]
    pub fn accept_unknown_one_way(&self) -> bool {
        self.is_flexible() && self.header.tx_id == 0
    }

    /// Tolerates an unknown flexible request, as an open protocol does: a client that waits for a
    /// response is told that the method is not known.
    ///
    /// # Errors
    ///
    /// As of [`ServeInner::send_response`].
    pub fn accept_unknown(&self, inner: &ServeInner) -> Result<MethodType> {
        if self.header.tx_id == 0 {
            return Ok(MethodType::OneWay);
        }
        let (tx_id, ordinal) = (self.header.tx_id, self.header.ordinal);
        inner.send_response(tx_id, ordinal, DynamicFlags::FLEXIBLE, encode_unknown_method)?;
        Ok(MethodType::TwoWay)
    }
}
