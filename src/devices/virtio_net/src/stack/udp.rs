//! UDP flows: a connected host socket for each pair of ports and peer.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use mio::net::UdpSocket;

use super::MTU;
use super::reactor::Readiness;

/// How long a flow is kept after its last datagram (RFC 4787 §4.3).
const IDLE: Duration = Duration::from_secs(300);
/// Longest payload for the guest in bytes: what fits an IPv4 packet without fragments.
const MAX_PAYLOAD: usize = MTU - 28;

/// A socket for a flow to `peer`.
pub(super) fn connect(peer: SocketAddr) -> io::Result<UdpSocket> {
    let any: SocketAddr = match peer {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any)?;
    socket.connect(peer)?;
    Ok(socket)
}

/// One flow.
#[derive(Debug)]
pub(super) struct Flow {
    pub(super) socket: UdpSocket,
    pub(super) token: usize,
    /// Whether the stack has it in its queue.
    pub(super) is_pending: bool,
    readable: bool,
    last_use: Instant,
}

impl Flow {
    pub(super) fn new(socket: UdpSocket, token: usize) -> Self {
        Self { socket, token, is_pending: false, readable: false, last_use: Instant::now() }
    }

    pub(super) fn expiry(&self) -> Instant {
        self.last_use + IDLE
    }

    pub(super) fn ready(&mut self, ready: Readiness) {
        self.readable |= ready.readable;
    }

    /// Sends a datagram of the guest's. It may be lost, as datagrams may.
    pub(super) fn send(&mut self, payload: &[u8], now: Instant) {
        self.last_use = now;
        if let Err(e) = self.socket.send(payload) {
            tracing::debug!(error = &e as &dyn std::error::Error, "A datagram was lost");
        }
    }

    /// The next datagram for the guest. One that needs fragments is lost.
    pub(super) fn receive(&mut self, now: Instant) -> Option<Vec<u8>> {
        /// Datagrams or errors in a row that the guest sees nothing of, before others get their turn.
        const TRIES: usize = 16;
        let mut buffer = vec![0; MAX_PAYLOAD + 1];
        for _ in 0..TRIES {
            if !self.readable {
                return None;
            }
            match self.socket.recv(&mut buffer) {
                Ok(len) if len <= MAX_PAYLOAD => {
                    self.last_use = now;
                    buffer.truncate(len);
                    return Some(buffer);
                }
                Ok(_) => tracing::debug!("A datagram for the guest was too long"),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => self.readable = false,
                // An error of an earlier datagram, such as a closed port; the socket goes on.
                Err(_) => {}
            }
        }
        None
    }
}

/// The answer to a DNS query when there is no name server: SERVFAIL (RFC 1035 §4.1.1).
pub(super) fn server_failure(query: &[u8]) -> Option<Vec<u8>> {
    const RESPONSE: u8 = 0x80;
    const KEPT: u8 = 0x79; // Opcode and RD.
    const RECURSION_AVAILABLE: u8 = 0x80;
    const SERVFAIL: u8 = 2;
    let [id_high, id_low, flags, _, ..] = *query.first_chunk::<12>()?;
    if flags & RESPONSE != 0 {
        return None;
    }
    // Without the question, of which a malformed one could not be copied.
    let mut reply = vec![id_high, id_low, flags & KEPT | RESPONSE, RECURSION_AVAILABLE | SERVFAIL];
    reply.resize(12, 0);
    Some(reply)
}
