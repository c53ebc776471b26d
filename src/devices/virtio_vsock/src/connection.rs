//! A connection: one type for each state, whose transitions consume it, so that what a state lacks cannot be used.
//!
//! ```text
//! GuestInitiated ──┐                ┌─► GuestInitiatedShutdown ──┐
//!                  ├─► ReadWrite ───┤             │              ├─► ShutdownClean
//! ClientInitiated ─┘                └─► ClientInitiatedShutdown ─┘
//!                         every state ─► ShutdownForced
//! ```

use std::collections::VecDeque;

use fuchsia_zircon as zx;
use futures::channel::oneshot;
use virtio_device::ReadableChain;

use crate::credit::{BUF_ALLOC, Credit, CreditExceeded};
use crate::wire::{Header, Shutdown};

/// Where the socket of a connection that the host asked for goes, or why there is none.
pub(crate) type Client = oneshot::Sender<Result<zx::Socket, zx::Status>>;

/// The guest has asked; an acceptor is to answer.
#[derive(Debug)]
pub(crate) struct GuestInitiated {
    credit: Credit,
}

impl GuestInitiated {
    pub(crate) fn new(request: &Header) -> Self {
        Self { credit: Credit::new(request) }
    }

    pub(crate) fn accept(self, socket: zx::Socket) -> ReadWrite {
        ReadWrite { stream: Stream::new(socket, self.credit) }
    }

    /// The guest has heard a reset, and knows.
    pub(crate) fn refuse(self) -> ShutdownClean {
        ShutdownClean
    }
}

/// A client of the host has asked; the guest is to answer.
#[derive(Debug)]
pub(crate) struct ClientInitiated {
    client: Client,
}

impl ClientInitiated {
    pub(crate) fn new(client: Client) -> Self {
        Self { client }
    }

    pub(crate) fn respond(self, response: &Header) -> ReadWrite {
        let (ours, theirs) = zx::Socket::create_stream();
        // A client that is gone has dropped its end with this, which ends the connection in order.
        let _ = self.client.send(Ok(theirs));
        ReadWrite { stream: Stream::new(ours, Credit::new(response)) }
    }

    pub(crate) fn refuse(self) -> ShutdownClean {
        let _ = self.client.send(Err(zx::Status::CONNECTION_REFUSED));
        ShutdownClean
    }

    pub(crate) fn fail(self, status: zx::Status) -> ShutdownForced {
        let _ = self.client.send(Err(status));
        ShutdownForced
    }
}

/// Established: data goes both ways.
#[derive(Debug)]
pub(crate) struct ReadWrite {
    stream: Stream,
}

impl ReadWrite {
    fn guest_shutdown(mut self, flags: Shutdown) -> GuestInitiatedShutdown {
        self.stream.guest_shutdown |= flags;
        GuestInitiatedShutdown { stream: self.stream }
    }

    fn client_shutdown(mut self, flags: Shutdown) -> ClientInitiatedShutdown {
        self.stream.host_shutdown |= flags;
        ClientInitiatedShutdown { stream: self.stream, linger: 0 }
    }
}

/// The guest has closed one direction or both; what it sent before still goes to the client.
#[derive(Debug)]
pub(crate) struct GuestInitiatedShutdown {
    stream: Stream,
}

impl GuestInitiatedShutdown {
    fn guest_shutdown(mut self, flags: Shutdown) -> Self {
        self.stream.guest_shutdown |= flags;
        self
    }

    fn client_shutdown(mut self, flags: Shutdown) -> ClientInitiatedShutdown {
        self.stream.host_shutdown |= flags;
        ClientInitiatedShutdown { stream: self.stream, linger: 0 }
    }
}

/// The client has closed one direction or both; the guest has been told.
#[derive(Debug)]
pub(crate) struct ClientInitiatedShutdown {
    stream: Stream,
    /// How often the guest was given more time to read what it has.
    linger: u32,
}

impl ClientInitiatedShutdown {
    fn guest_shutdown(mut self, flags: Shutdown) -> Self {
        self.stream.guest_shutdown |= flags;
        self
    }

    fn client_shutdown(mut self, flags: Shutdown) -> Self {
        self.stream.host_shutdown |= flags;
        self
    }

    /// Whether the guest, which has not answered for another second, gets one more: it has data that its program did
    /// not read, which a reset could make it lose.
    pub(crate) fn lingers(&mut self, most: u32) -> bool {
        self.linger += 1;
        self.linger < most && self.stream.credit.unacknowledged() != 0
    }
}

/// Over, and both sides know it.
#[derive(Debug)]
pub(crate) struct ShutdownClean;

/// Over by a reset: packets of the connection may still come.
#[derive(Debug)]
pub(crate) struct ShutdownForced;

/// A connection in any state.
#[derive(Debug)]
pub(crate) enum Connection {
    GuestInitiated(GuestInitiated),
    ClientInitiated(ClientInitiated),
    ReadWrite(ReadWrite),
    GuestInitiatedShutdown(GuestInitiatedShutdown),
    ClientInitiatedShutdown(ClientInitiatedShutdown),
    ShutdownClean(ShutdownClean),
    ShutdownForced(ShutdownForced),
}

impl Connection {
    /// The data, once there can be any.
    pub(crate) fn stream(&mut self) -> Option<&mut Stream> {
        match self {
            Self::ReadWrite(state) => Some(&mut state.stream),
            Self::GuestInitiatedShutdown(state) => Some(&mut state.stream),
            Self::ClientInitiatedShutdown(state) => Some(&mut state.stream),
            _ => None,
        }
    }

    /// The guest has said that it will not receive or send.
    pub(crate) fn guest_shutdown(self, flags: Shutdown) -> Self {
        match self {
            Self::ReadWrite(state) => Self::GuestInitiatedShutdown(state.guest_shutdown(flags)),
            Self::GuestInitiatedShutdown(state) => {
                Self::GuestInitiatedShutdown(state.guest_shutdown(flags))
            }
            Self::ClientInitiatedShutdown(state) => {
                Self::ClientInitiatedShutdown(state.guest_shutdown(flags))
            }
            other => other.reset(),
        }
    }

    /// The client will not receive or send, and the guest is told.
    pub(crate) fn client_shutdown(self, flags: Shutdown) -> Self {
        match self {
            Self::ReadWrite(state) => Self::ClientInitiatedShutdown(state.client_shutdown(flags)),
            Self::GuestInitiatedShutdown(state) => {
                Self::ClientInitiatedShutdown(state.client_shutdown(flags))
            }
            Self::ClientInitiatedShutdown(state) => {
                Self::ClientInitiatedShutdown(state.client_shutdown(flags))
            }
            other => other.reset(),
        }
    }

    /// The guest has reset the connection: it knows nothing of it any more.
    pub(crate) fn guest_reset(self) -> Self {
        Self::ShutdownClean(match self {
            Self::ClientInitiated(state) => state.refuse(),
            // The client sees its peer close.
            _ => ShutdownClean,
        })
    }

    /// All is delivered after both directions were closed.
    pub(crate) fn finish(self) -> Self {
        Self::ShutdownClean(ShutdownClean)
    }

    /// The device resets the connection.
    pub(crate) fn reset(self) -> Self {
        Self::ShutdownForced(match self {
            Self::ClientInitiated(state) => state.fail(zx::Status::CONNECTION_REFUSED),
            _ => ShutdownForced,
        })
    }
}

/// The two directions of an established connection.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) socket: zx::Socket,
    pub(crate) credit: Credit,
    /// From the guest, where the socket was full. At most [`BUF_ALLOC`] bytes, allocated once if ever.
    backlog: VecDeque<u8>,
    pub(crate) guest_shutdown: Shutdown,
    pub(crate) host_shutdown: Shutdown,
    half_closed: bool,
    /// The client takes nothing any more.
    deaf: bool,
    pub(crate) waits_readable: bool,
    pub(crate) waits_writable: bool,
    /// Whether the connection is in the list of those with something to read.
    pub(crate) listed: bool,
    pub(crate) update_queued: bool,
}

impl Stream {
    fn new(socket: zx::Socket, credit: Credit) -> Self {
        Self {
            socket,
            credit,
            backlog: VecDeque::new(),
            guest_shutdown: Shutdown::empty(),
            host_shutdown: Shutdown::empty(),
            half_closed: false,
            deaf: false,
            waits_readable: false,
            waits_writable: false,
            listed: false,
            update_queued: false,
        }
    }

    /// Moves `len` bytes of the guest's to the client, through `buffer`.
    pub(crate) fn receive(
        &mut self,
        chain: &mut ReadableChain<'_>,
        len: u32,
        buffer: &mut [u8],
    ) -> Result<(), CreditExceeded> {
        self.credit.receive(len)?;
        let mut left = len as usize;
        while left > 0 {
            let most = left.min(buffer.len());
            let Some(piece) = buffer.get_mut(..most) else { break };
            let count = chain.read_bytes(piece);
            if count == 0 {
                break;
            }
            left -= count;
            self.deliver(piece.get(..count).unwrap_or(&[]));
        }
        Ok(())
    }

    fn deliver(&mut self, bytes: &[u8]) {
        let mut done = 0;
        if self.backlog.is_empty() && !self.deaf {
            done = self.write(bytes);
        }
        if self.deaf {
            self.credit.forward(bytes.len() - done);
            return;
        }
        if done < bytes.len() {
            if self.backlog.capacity() == 0 {
                self.backlog.reserve_exact(BUF_ALLOC as usize);
            }
            self.backlog.extend(bytes.get(done..).unwrap_or(&[]));
        }
    }

    /// Writes what the socket takes.
    fn write(&mut self, bytes: &[u8]) -> usize {
        match self.socket.write(bytes) {
            Ok(count) => {
                self.credit.forward(count);
                count
            }
            Err(zx::Status::SHOULD_WAIT) => 0,
            Err(_) => {
                self.deaf = true;
                0
            }
        }
    }

    /// Gives the client what was kept back.
    pub(crate) fn flush(&mut self) {
        while !self.backlog.is_empty() {
            let mut backlog = std::mem::take(&mut self.backlog);
            let count = self.write(backlog.as_slices().0);
            backlog.drain(..count);
            self.backlog = backlog;
            if self.deaf {
                self.credit.forward(self.backlog.len());
                self.backlog.clear();
            }
            if count == 0 {
                return;
            }
        }
    }

    pub(crate) fn is_drained(&self) -> bool {
        self.backlog.is_empty()
    }

    /// Whether the guest is to be told that the client takes nothing any more.
    pub(crate) fn owes_deafness(&self) -> bool {
        self.deaf && !self.host_shutdown.contains(Shutdown::RECEIVE)
    }

    /// The client has closed its end.
    pub(crate) fn client_gone(&mut self) {
        self.deaf = true;
        self.credit.forward(self.backlog.len());
        self.backlog.clear();
    }

    /// Lets the client see what the guest closed, once it has all.
    pub(crate) fn close_directions(&mut self) {
        if self.guest_shutdown.contains(Shutdown::SEND) && self.is_drained() && !self.half_closed {
            self.half_closed = true;
            if let Err(status) = self.socket.half_close() {
                tracing::debug!(%status, "A client's socket could not be half-closed");
            }
        }
    }
}
