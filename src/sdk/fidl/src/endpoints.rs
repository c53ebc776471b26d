//! The two ends of a connection, typed by their protocol.

use crate::epitaph::ChannelEpitaphExt as _;
use crate::{AsyncChannel, Error, OnSignalsRef, Result, ServeInner};
use fuchsia_zircon::{
    AsHandleRef, Channel, Handle, HandleBased, HandleRef, Peered as _, Signals, Status,
};
use futures::{Stream, TryStream};
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

/// A protocol.
pub trait ProtocolMarker: Sized + Send + Sync + 'static {
    /// The asynchronous client.
    type Proxy: Proxy<Protocol = Self>;

    /// The client that blocks the thread.
    type SynchronousProxy: SynchronousProxy<Protocol = Self>;

    /// The server's requests.
    type RequestStream: RequestStream<Protocol = Self>;

    /// A name for people: that of [`DiscoverableProtocolMarker`], or `(anonymous) Name`.
    const DEBUG_NAME: &'static str;
}

/// A protocol that components find by its name.
pub trait DiscoverableProtocolMarker: ProtocolMarker {
    /// The name under which a directory of services has it.
    const PROTOCOL_NAME: &'static str = <Self as ProtocolMarker>::DEBUG_NAME;
}

/// A service: a set of protocols that belong together.
pub trait ServiceMarker: Send + Sync + 'static {
    /// The name under which a directory of services has it.
    const SERVICE_NAME: &'static str;
    /// The names of its members.
    const MEMBERS: &'static [&'static str];
}

/// An asynchronous client.
pub trait Proxy: Sized + Send + Sync {
    /// The protocol it speaks.
    type Protocol: ProtocolMarker<Proxy = Self>;

    /// A client on this channel.
    fn from_channel(inner: AsyncChannel) -> Self;

    /// The channel back.
    ///
    /// # Errors
    ///
    /// The proxy itself, while it has clones, event streams or calls that are not answered.
    fn into_channel(self) -> Result<AsyncChannel, Self>;

    /// The client end back.
    ///
    /// # Errors
    ///
    /// As of [`Self::into_channel`].
    fn into_client_end(self) -> Result<ClientEnd<Self::Protocol>, Self> {
        Ok(ClientEnd::new(self.into_channel()?.into_zx_channel()))
    }

    /// The channel, to look at but not to read from or write to.
    fn as_channel(&self) -> &AsyncChannel;

    /// Whether the server is gone.
    fn is_closed(&self) -> bool {
        self.as_channel().is_closed()
    }

    /// Completes when the server is gone.
    fn on_closed(&self) -> OnSignalsRef<'_> {
        self.as_channel().on_closed()
    }
}

/// A client that blocks the thread.
pub trait SynchronousProxy: Sized + Send + Sync {
    /// The asynchronous client of the protocol.
    type Proxy: Proxy<Protocol = Self::Protocol>;

    /// The protocol it speaks.
    type Protocol: ProtocolMarker<Proxy = Self::Proxy>;

    /// A client on this channel.
    fn from_channel(inner: Channel) -> Self;

    /// The channel back.
    fn into_channel(self) -> Channel;

    /// The channel, to look at but not to read from or write to.
    fn as_channel(&self) -> &Channel;

    /// Whether the server is gone.
    ///
    /// # Errors
    ///
    /// Those of waiting for a signal.
    fn is_closed(&self) -> Result<bool, Status> {
        self.as_channel().is_closed()
    }
}

/// The requests that come to a server.
pub trait RequestStream: Sized + Send + Stream + TryStream<Error = Error> + Unpin {
    /// The protocol it serves.
    type Protocol: ProtocolMarker<RequestStream = Self>;

    /// What the server sends events with, and ends the connection with.
    type ControlHandle: ControlHandle;

    /// The control handle of this connection.
    fn control_handle(&self) -> Self::ControlHandle;

    /// The requests on this channel.
    fn from_channel(inner: AsyncChannel) -> Self;

    /// The parts of the stream.
    fn into_inner(self) -> (Arc<ServeInner>, bool);

    /// A stream of parts.
    fn from_inner(inner: Arc<ServeInner>, is_terminated: bool) -> Self;

    /// The same requests as those of another protocol.
    fn cast_stream<T: RequestStream>(self) -> T {
        let (inner, is_terminated) = self.into_inner();
        T::from_inner(inner, is_terminated)
    }
}

/// The requests of a protocol.
pub type Request<Marker> = <<Marker as ProtocolMarker>::RequestStream as TryStream>::Ok;

/// What a server sends events with, and ends the connection with.
pub trait ControlHandle {
    /// The connection.
    #[doc(hidden)]
    fn inner(&self) -> &Arc<ServeInner>;

    /// Ends the connection: the stream of requests ends when it is polled next, and the channel
    /// closes with it.
    fn shutdown(&self) {
        self.inner().shutdown();
    }

    /// As [`Self::shutdown`], after the epitaph is sent.
    fn shutdown_with_epitaph(&self, status: Status) {
        self.inner().shutdown_with_epitaph(status);
    }

    /// Whether the client is gone.
    fn is_closed(&self) -> bool {
        self.inner().channel().is_closed()
    }

    /// Completes when the client is gone.
    fn on_closed(&self) -> OnSignalsRef<'_> {
        self.inner().channel().on_closed()
    }

    /// Sets and clears user signals on the client's end.
    ///
    /// # Errors
    ///
    /// Those of `zx_object_signal_peer`.
    fn signal_peer(&self, clear_mask: Signals, set_mask: Signals) -> Result<(), Status> {
        let channel: &Channel = self.inner().channel().as_ref();
        channel.signal_peer(clear_mask, set_mask)
    }
}

/// What a server answers one call with.
pub trait Responder {
    /// The connection's control handle.
    type ControlHandle: ControlHandle;

    /// The connection's control handle.
    fn control_handle(&self) -> &Self::ControlHandle;

    /// Leaves the call unanswered without ending the connection.
    fn drop_without_shutdown(self);
}

macro_rules! impl_end {
    ($(#[$doc:meta])* $End:ident) => {
        $(#[$doc])*
        #[derive(PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $End<T> {
            inner: Channel,
            phantom: PhantomData<T>,
        }

        impl<T> $End<T> {
            /// The end that this channel is.
            pub fn new(inner: Channel) -> Self {
                Self { inner, phantom: PhantomData }
            }

            /// The channel.
            pub fn channel(&self) -> &Channel {
                &self.inner
            }

            /// The channel.
            pub fn into_channel(self) -> Channel {
                self.inner
            }
        }

        impl<T> AsHandleRef for $End<T> {
            fn as_handle_ref(&self) -> HandleRef<'_> {
                self.inner.as_handle_ref()
            }
        }

        impl<T> From<$End<T>> for Handle {
            fn from(end: $End<T>) -> Handle {
                end.into_channel().into()
            }
        }

        impl<T> From<$End<T>> for Channel {
            fn from(end: $End<T>) -> Channel {
                end.into_channel()
            }
        }

        impl<T> From<Handle> for $End<T> {
            fn from(handle: Handle) -> Self {
                Self::new(handle.into())
            }
        }

        impl<T> From<Channel> for $End<T> {
            fn from(channel: Channel) -> Self {
                Self::new(channel)
            }
        }

        impl<T> HandleBased for $End<T> {}

        impl<T: ProtocolMarker> fmt::Debug for $End<T> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}(name={}, channel={:?})", stringify!($End), T::DEBUG_NAME, self.inner)
            }
        }
    };
}

impl_end! {
    /// The client's end of a connection.
    ClientEnd
}

impl_end! {
    /// The server's end of a connection.
    ServerEnd
}

impl<T: ProtocolMarker> ClientEnd<T> {
    /// A client on this end.
    ///
    /// # Panics
    ///
    /// Outside of an asynchronous executor.
    pub fn into_proxy(self) -> T::Proxy {
        T::Proxy::from_channel(AsyncChannel::from_channel(self.inner))
    }

    /// A client on this end that blocks the thread.
    pub fn into_sync_proxy(self) -> T::SynchronousProxy {
        T::SynchronousProxy::from_channel(self.inner)
    }
}

impl<T> ServerEnd<T> {
    /// Sends an epitaph and closes the end.
    ///
    /// # Errors
    ///
    /// [`Error::ServerEpitaphWrite`]; the end is closed all the same.
    pub fn close_with_epitaph(self, status: Status) -> Result<()> {
        self.inner.close_with_epitaph(status)
    }

    /// The requests on this end.
    ///
    /// # Panics
    ///
    /// Outside of an asynchronous executor.
    pub fn into_stream(self) -> T::RequestStream
    where
        T: ProtocolMarker,
    {
        T::RequestStream::from_channel(AsyncChannel::from_channel(self.inner))
    }

    /// The requests on this end, and their control handle.
    ///
    /// # Panics
    ///
    /// Outside of an asynchronous executor.
    pub fn into_stream_and_control_handle(
        self,
    ) -> (T::RequestStream, <T::RequestStream as RequestStream>::ControlHandle)
    where
        T: ProtocolMarker,
    {
        let stream = self.into_stream();
        let control_handle = stream.control_handle();
        (stream, control_handle)
    }
}

/// A new connection's two ends.
pub fn create_endpoints<T: ProtocolMarker>() -> (ClientEnd<T>, ServerEnd<T>) {
    let (client, server) = Channel::create();
    (ClientEnd::new(client), ServerEnd::new(server))
}

/// A new connection: a client, and the server's end.
///
/// # Panics
///
/// Outside of an asynchronous executor.
pub fn create_proxy<T: ProtocolMarker>() -> (T::Proxy, ServerEnd<T>) {
    let (client, server) = create_endpoints::<T>();
    (client.into_proxy(), server)
}

/// A new connection: a client that blocks the thread, and the server's end.
pub fn create_sync_proxy<T: ProtocolMarker>() -> (T::SynchronousProxy, ServerEnd<T>) {
    let (client, server) = create_endpoints::<T>();
    (client.into_sync_proxy(), server)
}

/// A new connection: the client's end, and the requests.
///
/// # Panics
///
/// Outside of an asynchronous executor.
pub fn create_request_stream<T: ProtocolMarker>() -> (ClientEnd<T>, T::RequestStream) {
    let (client, server) = create_endpoints::<T>();
    (client, server.into_stream())
}

/// A new connection: a client, and the requests.
///
/// # Panics
///
/// Outside of an asynchronous executor.
pub fn create_proxy_and_stream<T: ProtocolMarker>() -> (T::Proxy, T::RequestStream) {
    let (client, server) = create_endpoints::<T>();
    (client.into_proxy(), server.into_stream())
}

/// A new connection: a client that blocks the thread, and the requests.
///
/// # Panics
///
/// Outside of an asynchronous executor.
pub fn create_sync_proxy_and_stream<T: ProtocolMarker>() -> (T::SynchronousProxy, T::RequestStream)
{
    let (client, server) = create_endpoints::<T>();
    (client.into_sync_proxy(), server.into_stream())
}
