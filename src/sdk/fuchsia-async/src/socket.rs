//! Sockets that can be awaited.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures::future::poll_fn;
use futures::io::{AsyncRead, AsyncWrite};
use futures::stream::Stream;

use crate::on_signals::OnSignalsRef;
use crate::rwhandle::RWHandle;
use crate::zx::{self, AsHandleRef};

/// A socket that belongs to the executor on which it was made.
pub struct Socket(RWHandle<zx::Socket>);

impl Socket {
    /// Adopts a socket into the current executor.
    ///
    /// # Panics
    /// Without an executor on this thread.
    pub fn from_socket(socket: zx::Socket) -> Socket {
        Socket(RWHandle::new(socket))
    }

    /// The socket, given back.
    pub fn into_zx_socket(self) -> zx::Socket {
        self.0.into_inner()
    }

    /// Whether the other side has gone. There may still be bytes from it.
    pub fn is_closed(&self) -> bool {
        self.0.is_closed()
    }

    /// Completes when the other side goes.
    pub fn on_closed(&self) -> OnSignalsRef<'_> {
        self.0.on_closed()
    }

    /// Reads what there is, up to the length of `buf`. 0 means that no more will come: the other side has gone or has
    /// stopped writing.
    ///
    /// # Errors
    /// Those of `zx_socket_read`.
    pub fn poll_read_ref(
        &self,
        context: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<Result<usize, zx::Status>> {
        ready!(self.0.poll_readable(context));
        match self.0.get_ref().read(buf) {
            Err(zx::Status::SHOULD_WAIT) => {
                let disabled = zx::Signals::SOCKET_PEER_WRITE_DISABLED;
                match ready!(self.0.need_readable_or(disabled, context)) {
                    Ok(()) => Poll::Pending,
                    Err(status) => Poll::Ready(Err(status)),
                }
            }
            Err(zx::Status::PEER_CLOSED | zx::Status::BAD_STATE) => Poll::Ready(Ok(0)),
            result => Poll::Ready(result),
        }
    }

    /// Writes as much of `bytes` as there is room for, which is at least one.
    ///
    /// # Errors
    /// `PEER_CLOSED`, and `BAD_STATE` if this direction has been shut.
    pub fn poll_write_ref(
        &self,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<Result<usize, zx::Status>> {
        ready!(self.0.poll_writable(context));
        match self.0.get_ref().write(bytes) {
            Err(zx::Status::SHOULD_WAIT) => {
                let disabled = zx::Signals::SOCKET_WRITE_DISABLED;
                match ready!(self.0.need_writable_or(disabled, context)) {
                    Ok(()) => Poll::Pending,
                    Err(status) => Poll::Ready(Err(status)),
                }
            }
            result => Poll::Ready(result),
        }
    }

    /// Appends the next datagram to `out` and returns its length; 0 at the end.
    ///
    /// # Errors
    /// Those of `zx_socket_read`.
    pub fn poll_datagram(
        &self,
        context: &mut Context<'_>,
        out: &mut Vec<u8>,
    ) -> Poll<Result<usize, zx::Status>> {
        // The size of the next datagram is what is outstanding, up to the end of that datagram.
        let available = self.0.get_ref().outstanding_read_bytes().unwrap_or(0);
        let start = out.len();
        out.resize(start + available.max(1), 0);
        let result = self.poll_read_ref(context, &mut out[start..]);
        let length = match &result {
            Poll::Ready(Ok(length)) => *length,
            _ => 0,
        };
        out.truncate(start + length);
        result
    }

    /// Waits for a datagram and appends it to `out`; its length, 0 at the end.
    ///
    /// # Errors
    /// Those of `zx_socket_read`.
    pub async fn read_datagram(&self, out: &mut Vec<u8>) -> Result<usize, zx::Status> {
        poll_fn(|context| self.poll_datagram(context, out)).await
    }

    /// The datagrams that come, to the end.
    pub fn as_datagram_stream(&self) -> DatagramStream<&Socket> {
        DatagramStream(self)
    }

    /// The datagrams that come, to the end.
    pub fn into_datagram_stream(self) -> DatagramStream<Socket> {
        DatagramStream(self)
    }
}

impl AsyncRead for &Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_read_ref(context, buf).map_err(io::Error::from)
    }
}

impl AsyncWrite for &Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_ref(context, bytes).map_err(io::Error::from)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The socket closes when it is dropped.
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut &*self).poll_read(context, buf)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut &*self).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut &*self).poll_flush(context)
    }

    fn poll_close(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut &*self).poll_close(context)
    }
}

impl AsRef<zx::Socket> for Socket {
    fn as_ref(&self) -> &zx::Socket {
        self.0.get_ref()
    }
}

impl AsHandleRef for Socket {
    fn as_handle_ref(&self) -> zx::HandleRef<'_> {
        self.0.get_ref().as_handle_ref()
    }
}

impl From<Socket> for zx::Socket {
    fn from(socket: Socket) -> zx::Socket {
        socket.into_zx_socket()
    }
}

impl std::fmt::Debug for Socket {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(formatter)
    }
}

/// Yields datagrams; ends when no more will come.
#[derive(Debug)]
#[must_use = "streams do nothing unless polled"]
pub struct DatagramStream<S>(S);

impl<S: AsRef<Socket> + Unpin> Stream for DatagramStream<S> {
    type Item = Result<Vec<u8>, zx::Status>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut datagram = Vec::new();
        Poll::Ready(match ready!(self.0.as_ref().poll_datagram(context, &mut datagram)) {
            Ok(0) => None,
            Ok(_) => Some(Ok(datagram)),
            Err(status) => Some(Err(status)),
        })
    }
}

impl AsRef<Socket> for Socket {
    fn as_ref(&self) -> &Socket {
        self
    }
}
