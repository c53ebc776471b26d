//! Clients of a protocol: asynchronous here, blocking in [`sync`].

mod events;
mod interests;
pub mod sync;

pub use events::{EventMessage, EventReceiver};

use crate::encoding::{
    DynamicFlags, EPITAPH_ORDINAL, Encoder, HEADER_SIZE, TransactionHeader, WireType, decode_body,
    with_buffers,
};
use crate::{AsyncChannel, Error, Result, message_buffer};
use fuchsia_zircon::{MessageBufEtc, Status};
use interests::Interests;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

/// A client, shared by a proxy, its clones, its event stream and its calls.
#[derive(Debug, Clone)]
pub struct Client {
    inner: Arc<ClientInner>,
}

#[derive(Debug)]
struct ClientInner {
    channel: AsyncChannel,
    /// Apart from the channel, as the channel holds a waker, which holds this.
    interests: Arc<Interests>,
    /// `interests` as a waker.
    waker: Waker,
    protocol_name: &'static str,
}

/// The status of an epitaph.
fn epitaph_status(message: &mut MessageBufEtc) -> Result<Status> {
    let (bytes, handles) = message.split_mut();
    let (_, body) = TransactionHeader::split(bytes)?;
    decode_body::<i32>(body, handles).map(Status::from_raw)
}

impl ClientInner {
    fn closed(&self, status: Status) -> Error {
        Error::ClientChannelClosed { status, protocol_name: self.protocol_name }
    }

    /// Reads messages until the response with this transaction id comes, or an event. Messages for
    /// others are kept for them. Until then the caller's task is kept, to be woken.
    fn poll_message(&self, cx: &Context<'_>, tx_id: u32) -> Poll<Result<Message>> {
        loop {
            // Whoever reads does so under the lock, so that no message overtakes another on its way to
            // whom it is for.
            let mut state = self.interests.lock();
            if !state.is_to_be_read(tx_id) {
                let taken = state.take(tx_id);
                drop(state);
                return Poll::Ready(Message::new(taken?));
            }
            // Where several wait, all are woken, whoever polled last.
            let waker = if state.is_alone(tx_id) { cx.waker() } else { &self.waker };
            let mut waiting = Context::from_waker(waker);
            let polled = self.channel.poll_message(&mut waiting, message_buffer::read);
            let Poll::Ready(result) = polled else {
                let known = state.wait(tx_id, cx.waker());
                drop(state);
                drop(known);
                return Poll::Pending;
            };
            match self.received(result) {
                Ok(message) if message.header.tx_id == tx_id => {
                    // It need not be kept for a moment.
                    let known = state.forget(tx_id);
                    drop(state);
                    drop(known);
                    return Poll::Ready(Ok(message));
                }
                received => {
                    let woken = state.take_in(received);
                    drop(state);
                    woken.wake();
                }
            }
        }
    }

    /// A message that was read, unless it ends the connection.
    fn received(&self, result: Result<Box<MessageBufEtc>, Status>) -> Result<Message> {
        let message = result.map_err(|status| match status {
            Status::PEER_CLOSED => self.closed(status),
            status => Error::ClientRead(status),
        })?;
        let mut message = Message::new(message)?;
        if message.header.ordinal == EPITAPH_ORDINAL {
            return Err(if message.header.is_epitaph() {
                self.closed(epitaph_status(&mut message.buffer)?)
            } else {
                Error::InvalidResponseTxid
            });
        }
        Ok(message)
    }
}

/// A message with its header.
#[derive(Debug)]
struct Message {
    header: TransactionHeader,
    buffer: Box<MessageBufEtc>,
}

impl Message {
    fn new(buffer: Box<MessageBufEtc>) -> Result<Message> {
        let (header, _) = TransactionHeader::split(buffer.bytes())?;
        Ok(Message { header, buffer })
    }
}

impl Client {
    /// A client on a channel. `protocol_name` is for errors.
    pub fn new(channel: AsyncChannel, protocol_name: &'static str) -> Client {
        let interests = Arc::new(Interests::default());
        let waker = Waker::from(interests.clone());
        Client { inner: Arc::new(ClientInner { channel, interests, waker, protocol_name }) }
    }

    /// The channel.
    pub fn as_channel(&self) -> &AsyncChannel {
        &self.inner.channel
    }

    /// The channel back.
    ///
    /// # Errors
    ///
    /// The client itself, while it is shared or a call is not answered.
    pub fn into_channel(self) -> Result<AsyncChannel, Client> {
        match Arc::try_unwrap(self.inner) {
            Ok(inner) if inner.interests.is_idle() => Ok(inner.channel),
            Ok(inner) => Err(Client { inner: Arc::new(inner) }),
            Err(inner) => Err(Client { inner }),
        }
    }

    /// The events.
    ///
    /// # Panics
    ///
    /// If they were taken before and not dropped.
    pub fn take_event_receiver(&self) -> EventReceiver {
        assert!(self.inner.interests.take_events(), "the event stream was already taken");
        EventReceiver::new(self.inner.clone())
    }

    fn write(
        &self,
        tx_id: u32,
        ordinal: u64,
        flags: DynamicFlags,
        encode: impl FnOnce(&mut Encoder<'_>) -> Result<()>,
    ) -> Result<()> {
        with_buffers(|bytes, handles| {
            bytes.extend_from_slice(&TransactionHeader::new(tx_id, ordinal, flags).to_bytes());
            encode(&mut Encoder::new(bytes, handles))?;
            match self.inner.channel.write_etc(bytes, handles) {
                // Whoever reads finds out why, maybe from an epitaph.
                Ok(()) | Err(Status::PEER_CLOSED) => Ok(()),
                Err(status) => Err(Error::ClientWrite(status)),
            }
        })
    }

    /// Calls a one-way method.
    ///
    /// # Errors
    ///
    /// A parameter breaks a bound of its type, or [`Error::ClientWrite`]. That the server is gone is
    /// no error.
    pub fn send(
        &self,
        ordinal: u64,
        flags: DynamicFlags,
        encode: impl FnOnce(&mut Encoder<'_>) -> Result<()>,
    ) -> Result<()> {
        self.write(0, ordinal, flags, encode)
    }

    /// Calls a two-way method. The request is sent at once; the future has the response, or what
    /// went wrong when it was sent.
    pub fn send_query_and_decode<M: WireType, T>(
        &self,
        ordinal: u64,
        flags: DynamicFlags,
        encode: impl FnOnce(&mut Encoder<'_>) -> Result<()>,
        convert: impl FnOnce(M::Owned) -> Result<T> + Send + 'static,
    ) -> QueryResponseFut<T> {
        let registered = self.inner.interests.lock().register();
        let tx_id = match registered {
            Ok(tx_id) => tx_id,
            Err(error) => return QueryResponseFut { state: State::Failed(error) },
        };
        if let Err(error) = self.write(tx_id, ordinal, flags, encode) {
            let known = self.inner.interests.lock().forget(tx_id);
            drop(known);
            return QueryResponseFut { state: State::Failed(error) };
        }
        // The closures that come here have no state, so the box does not allocate.
        let decode: Decode<T> =
            Box::new(move |body, handles| convert(decode_body::<M>(body, handles)?));
        let client = self.inner.clone();
        QueryResponseFut {
            state: State::Waiting(Waiting { client, tx_id, ordinal, decode: Some(decode) }),
        }
    }
}

type Decode<T> =
    Box<dyn FnOnce(&[u8], &mut [fuchsia_zircon::HandleInfo]) -> Result<T> + Send + 'static>;

struct Waiting<T> {
    client: Arc<ClientInner>,
    tx_id: u32,
    ordinal: u64,
    /// Taken when the response is there.
    decode: Option<Decode<T>>,
}

enum State<T> {
    Failed(Error),
    Waiting(Waiting<T>),
    Done,
}

/// The response to a call.
#[must_use = "futures do nothing unless they are awaited or polled"]
pub struct QueryResponseFut<T> {
    state: State<T>,
}

impl<T> fmt::Debug for QueryResponseFut<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.state {
            State::Failed(error) => f.debug_tuple("QueryResponseFut").field(error).finish(),
            State::Waiting(waiting) => {
                f.debug_struct("QueryResponseFut").field("tx_id", &waiting.tx_id).finish()
            }
            State::Done => f.write_str("QueryResponseFut(done)"),
        }
    }
}

impl<T> QueryResponseFut<T> {
    /// The future, if the request could be sent.
    ///
    /// # Errors
    ///
    /// What went wrong when it was sent.
    pub fn check(mut self) -> Result<Self> {
        match std::mem::replace(&mut self.state, State::Done) {
            State::Failed(error) => Err(error),
            state => Ok(QueryResponseFut { state }),
        }
    }
}

impl<T> Drop for Waiting<T> {
    fn drop(&mut self) {
        if self.decode.is_some() {
            self.client.interests.discard(self.tx_id);
        }
    }
}

impl<T> Waiting<T> {
    fn poll(&mut self, cx: &Context<'_>) -> Poll<Result<T>> {
        let Message { header, mut buffer } = ready!(self.client.poll_message(cx, self.tx_id))?;
        let Some(decode) = self.decode.take() else {
            return Poll::Ready(Err(Error::PollAfterCompletion));
        };
        let result = if header.ordinal == self.ordinal {
            let (bytes, handles) = buffer.split_mut();
            decode(bytes.get(HEADER_SIZE..).unwrap_or_default(), handles)
        } else {
            Err(Error::InvalidResponseOrdinal)
        };
        message_buffer::give_back(buffer);
        Poll::Ready(result)
    }
}

impl<T> Unpin for QueryResponseFut<T> {}

impl<T> Future for QueryResponseFut<T> {
    type Output = Result<T>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<T>> {
        let result = match &mut self.state {
            State::Waiting(waiting) => ready!(waiting.poll(cx)),
            State::Failed(error) => Err(error.clone()),
            State::Done => Err(Error::PollAfterCompletion),
        };
        self.state = State::Done;
        Poll::Ready(result)
    }
}

impl<T> futures::future::FusedFuture for QueryResponseFut<T> {
    fn is_terminated(&self) -> bool {
        matches!(self.state, State::Done)
    }
}
