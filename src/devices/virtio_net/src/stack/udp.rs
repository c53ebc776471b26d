//! Flows of datagrams and of ICMP echo: each has a host socket that is connected to the peer, or is a share of one on
//! which the host listens for the guest.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use mio::net::UdpSocket;
use socket2::{Domain, Protocol, Socket, Type};

use super::reactor::Readiness;

/// How long a flow is kept after its last datagram (RFC 4787 §4.3).
const IDLE: Duration = Duration::from_secs(300);
/// How long an echo flow is kept after its last message (RFC 5508 §3.2).
const IDLE_ECHO: Duration = Duration::from_secs(60);

/// A socket for datagrams to `peer`.
///
/// # Errors
/// When the host has none left or no way to the peer.
pub(super) fn connect(peer: SocketAddr) -> io::Result<UdpSocket> {
    let any: SocketAddr = match peer {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any)?;
    socket.connect(peer)?;
    Ok(socket)
}

/// A socket for ICMP echo messages to `peer`, whose port means nothing.
///
/// # Errors
/// As [`connect`], and when the host lets this user have none.
pub(super) fn connect_echo(peer: SocketAddr) -> io::Result<UdpSocket> {
    let (domain, protocol) = match peer {
        SocketAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4),
        SocketAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6),
    };
    let socket = Socket::new(domain, Type::DGRAM, Some(protocol))?;
    socket.set_nonblocking(true)?;
    socket.connect(&SocketAddr::new(peer.ip(), 0).into())?;
    Ok(UdpSocket::from_std(socket.into()))
}

/// What a flow sends by.
#[derive(Debug)]
pub(super) enum Outlet {
    /// A socket of its own, known to the reactor by this token.
    Own { socket: UdpSocket, token: usize },
    /// The socket of this forward, which receives for the flow too.
    Forward { index: usize, peer: SocketAddr },
}

/// One flow.
#[derive(Debug)]
pub(super) struct Flow {
    pub(super) outlet: Outlet,
    /// Whether the stack has it in its queue.
    pub(super) is_pending: bool,
    is_echo: bool,
    readable: bool,
    /// The peer has refused a datagram, and the guest was not told.
    is_refused: bool,
    last_use: Instant,
}

impl Flow {
    pub(super) fn new(outlet: Outlet, is_echo: bool, now: Instant) -> Self {
        let (is_pending, readable, is_refused) = (false, false, false);
        Self { outlet, is_pending, is_echo, readable, is_refused, last_use: now }
    }

    pub(super) fn last_use(&self) -> Instant {
        self.last_use
    }

    pub(super) fn touch(&mut self, now: Instant) {
        self.last_use = now;
    }

    pub(super) fn expiry(&self) -> Instant {
        self.last_use + if self.is_echo { IDLE_ECHO } else { IDLE }
    }

    pub(super) fn ready(&mut self, ready: Readiness) {
        self.readable |= ready.readable;
    }

    /// Sends `payload` by the socket that the flow has for itself.
    ///
    /// # Errors
    /// The host's.
    pub(super) fn send(&mut self, payload: &[u8]) -> io::Result<()> {
        let Outlet::Own { socket, .. } = &self.outlet else { return Ok(()) };
        match socket.send(payload) {
            // That was an earlier datagram; this one was not sent.
            Err(e) if is_refusal(&e) => {
                self.is_refused = true;
                socket.send(payload).map(drop)
            }
            sent => sent.map(drop),
        }
    }

    /// Whether the peer has refused a datagram since this was last asked.
    pub(super) fn take_refusal(&mut self) -> bool {
        std::mem::take(&mut self.is_refused)
    }

    /// The next datagram for the guest, of at most `buffer.len() - 1` bytes; its length. Longer ones, which need
    /// fragments, are lost.
    pub(super) fn receive(&mut self, buffer: &mut [u8], now: Instant) -> Option<usize> {
        let Outlet::Own { socket, .. } = &self.outlet else { return None };
        let len = receive(buffer, &mut self.readable, |buffer| {
            socket.recv(buffer).inspect_err(|e| self.is_refused |= is_refusal(e))
        })?;
        self.last_use = now;
        Some(len)
    }
}

/// Whether an error says that an earlier datagram met a closed port.
fn is_refusal(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::ConnectionRefused
}

/// Receives by `receive` until there is a datagram that leaves room in `buffer`, or no further one.
pub(super) fn receive<T: Received>(
    buffer: &mut [u8],
    readable: &mut bool,
    mut receive: impl FnMut(&mut [u8]) -> io::Result<T>,
) -> Option<T> {
    /// Datagrams or errors in a row that the guest sees nothing of, before others get their turn.
    const TRIES: usize = 16;
    for _ in 0..TRIES {
        if !*readable {
            return None;
        }
        match receive(buffer) {
            Ok(received) if received.len() < buffer.len() => return Some(received),
            Ok(_) => tracing::debug!("A datagram for the guest was too long"),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => *readable = false,
            // An error of an earlier datagram, such as a closed port; the socket goes on.
            Err(_) => {}
        }
    }
    None
}

/// What receiving yields.
pub(super) trait Received {
    /// Bytes of the datagram, as far as they fitted.
    fn len(&self) -> usize;
}

impl Received for usize {
    fn len(&self) -> usize {
        *self
    }
}

impl Received for (usize, SocketAddr) {
    fn len(&self) -> usize {
        self.0
    }
}
