//! Events as they come to a client.

use super::interests::EVENT;
use super::{ClientInner, Message};
use crate::encoding::{DynamicFlags, TransactionHeader, WireType, decode_body};
use crate::{Error, Result, message_buffer};
use fuchsia_zircon::{MessageBufEtc, Status};
use std::sync::Arc;
use std::task::{Context, Poll, ready};

/// An event that is not decoded yet.
#[derive(Debug)]
pub struct EventMessage {
    header: TransactionHeader,
    message: Box<MessageBufEtc>,
}

impl EventMessage {
    /// The event in a message.
    pub(super) fn new(message: Message) -> EventMessage {
        let Message { header, buffer } = message;
        EventMessage { header, message: message_buffer::keep(buffer) }
    }

    /// Which event.
    pub fn ordinal(&self) -> u64 {
        self.header.ordinal
    }

    /// Whether the server tolerates that the event is not known.
    pub fn is_flexible(&self) -> bool {
        self.header.dynamic_flags.contains(DynamicFlags::FLEXIBLE)
    }

    /// The event's parameters.
    ///
    /// # Errors
    ///
    /// The body is not that of a `T`.
    pub fn decode_body<T: WireType>(mut self) -> Result<T::Owned> {
        let (bytes, handles) = self.message.split_mut();
        let (_, body) = TransactionHeader::split(bytes)?;
        decode_body::<T>(body, handles)
    }
}

/// The events of a client, which only one at a time can have.
#[derive(Debug)]
pub struct EventReceiver {
    client: Arc<ClientInner>,
    /// Whether the connection's end was reported.
    ended: bool,
}

impl EventReceiver {
    pub(super) fn new(client: Arc<ClientInner>) -> EventReceiver {
        EventReceiver { client, ended: false }
    }

    /// The next event. A connection that ends without an epitaph ends the stream; any other end is
    /// its last item.
    pub fn poll_event(&mut self, cx: &Context<'_>) -> Poll<Option<Result<EventMessage>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let polled = self.client.poll_message(cx, EVENT);
        Poll::Ready(match ready!(polled) {
            Ok(message) => Some(Ok(EventMessage::new(message))),
            Err(Error::ClientChannelClosed { status: Status::PEER_CLOSED, .. }) => {
                self.ended = true;
                None
            }
            Err(error) => {
                self.ended = true;
                Some(Err(error))
            }
        })
    }

    /// Whether there are no more events.
    pub fn is_terminated(&self) -> bool {
        self.ended
    }
}

impl Drop for EventReceiver {
    fn drop(&mut self) {
        self.client.interests.release_events();
    }
}
