//! Ports of the host that are the guest's.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::Instant;

use mio::net::{TcpListener, UdpSocket};

/// A transport protocol whose ports can be forwarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        })
    }
}

/// A port of the host that is the guest's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forward {
    /// Of both ports.
    pub transport: Transport,
    /// Where the host listens.
    pub host: SocketAddr,
    /// Where the guest does.
    pub guest_port: u16,
}

/// The host's end of a forward.
#[derive(Debug)]
pub(super) enum Socket {
    Tcp(TcpListener),
    Udp(UdpSocket),
}

/// A forward at work.
#[derive(Debug)]
pub(super) struct Listener {
    pub(super) socket: Socket,
    pub(super) guest_port: u16,
    pub(super) readable: bool,
    /// Whether the stack has it in its queue.
    pub(super) is_pending: bool,
    /// When to accept again, after that has failed.
    pub(super) retry: Option<Instant>,
    /// Whether accepting has failed since it last went well: the log has it.
    pub(super) is_failing: bool,
}

impl Listener {
    /// Listens for the guest.
    ///
    /// # Errors
    /// When the host's port is taken, or not for this user.
    pub(super) fn bind(forward: &Forward) -> io::Result<Self> {
        let socket = match forward.transport {
            Transport::Tcp => Socket::Tcp(TcpListener::bind(forward.host)?),
            Transport::Udp => Socket::Udp(UdpSocket::bind(forward.host)?),
        };
        Ok(Self {
            socket,
            guest_port: forward.guest_port,
            // Until the first attempt says otherwise.
            readable: true,
            is_pending: false,
            retry: None,
            is_failing: false,
        })
    }

    pub(super) fn local_addr(&self) -> io::Result<SocketAddr> {
        match &self.socket {
            Socket::Tcp(socket) => socket.local_addr(),
            Socket::Udp(socket) => socket.local_addr(),
        }
    }
}
