//! Channels: `AF_UNIX` `SOCK_SEQPACKET` socket pairs.
//!
//! A message is one packet: a header, the bytes, then one descriptor per handle; the handles' file descriptors go along
//! as `SCM_RIGHTS`. Reading and writing is one system call each (`receive`, `message`); before the first message with
//! handles there is an announcement of such. What a Linux socket cannot do is done beside it:
//! a write never blocks (`outbound`), a call's reply goes to its caller and nobody else (`call`), and endpoints have user
//! signals (`user_signals`).

mod call;
#[cfg(test)]
mod channel_test;
mod inbound;
mod message;
mod outbound;
mod receive;
mod syscalls;
mod user_signals;
#[cfg(test)]
mod user_signals_test;

pub(crate) use message::Outgoing;
pub(crate) use outbound::all_flushed;
pub(crate) use receive::Incoming;
pub use syscalls::*;

use crate::object::{Source, Sources, lock};
use crate::status::{IO_DATA_INTEGRITY, Result};
use fuchsia_zircon_types::*;
use inbound::Inbound;
use outbound::Outbound;
use receive::Packet;
use rustix::event::PollFlags;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Condvar, Mutex};
use user_signals::UserSignals;

/// Messages that may wait outside the socket, on either side. On Zircon a process that lets 3500 messages pend is killed.
pub(crate) const MAX_PENDING: usize = 3500;

/// How deep channels with messages taken out of their sockets may be nested in such messages.
const MAX_BACKLOG_DEPTH: u32 = 8;

/// One endpoint of a channel.
pub(crate) struct Channel {
    fd: OwnedFd,
    /// Whether messages that were taken out of the socket wait for a reader. Changes under the lock of `inbound`.
    stashed: AtomicBool,
    /// The peer said that its messages may have handles. Only who takes messages out of the socket looks.
    handles_follow: AtomicBool,
    /// The same was said to the peer.
    announced: AtomicBool,
    /// How often a reader found nothing.
    drains: AtomicU32,
    inbound: Mutex<Inbound>,
    replied: Condvar,
    /// Whether messages have to queue behind others in `outbound`.
    overflow: AtomicBool,
    outbound: Mutex<Outbound>,
    user: UserSignals,
}

impl Channel {
    pub(crate) fn pair() -> Result<(Channel, Channel)> {
        let (first, second) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        Ok((Channel::from_fd(first), Channel::from_fd(second)))
    }

    /// An endpoint over a connected sequenced-packet socket that nobody has taken a message out of.
    pub(crate) fn from_fd(fd: OwnedFd) -> Channel {
        Channel {
            fd,
            stashed: AtomicBool::new(false),
            handles_follow: AtomicBool::new(false),
            announced: AtomicBool::new(false),
            drains: AtomicU32::new(0),
            inbound: Mutex::default(),
            replied: Condvar::new(),
            overflow: AtomicBool::new(false),
            outbound: Mutex::default(),
            user: UserSignals::default(),
        }
    }

    /// An endpoint that another process sent: `gate` closes when that process has written what it had queued, `backlog`
    /// holds messages that it had taken out of the socket, `signals` are its user signals, and `handles_follow` is what its
    /// peer said.
    ///
    /// Errors: `ZX_ERR_IO_DATA_INTEGRITY` for backlogs within backlogs, deeper than any that comes about honestly.
    pub(crate) fn from_transfer(
        fd: OwnedFd,
        gate: Option<OwnedFd>,
        backlog: Option<OwnedFd>,
        signals: zx_signals_t,
        handles_follow: bool,
    ) -> Result<Channel> {
        let mut channel = Channel::from_fd(fd);
        channel.handles_follow = handles_follow.into();
        channel.user = UserSignals::with_local(signals);
        if let Some(gate) = gate {
            lock(&channel.outbound).gate = Some(gate);
            channel.overflow.store(true, Ordering::SeqCst);
        }
        if let Some(backlog) = backlog {
            let stash = channel.drain_backlog(backlog)?;
            if !stash.is_empty() {
                lock(&channel.inbound).stash = stash;
                channel.stashed.store(true, Ordering::SeqCst);
            }
        }
        Ok(channel)
    }

    fn drain_backlog(&mut self, backlog: OwnedFd) -> Result<VecDeque<Incoming>> {
        thread_local! {
            static DEPTH: Cell<u32> = const { Cell::new(0) };
        }
        if DEPTH.get() >= MAX_BACKLOG_DEPTH {
            return Err(IO_DATA_INTEGRITY);
        }
        DEPTH.set(DEPTH.get() + 1);
        let mut earlier = Channel::from_fd(backlog);
        // Control messages in it are about this endpoint.
        std::mem::swap(&mut earlier.user, &mut self.user);
        let mut stash = VecDeque::new();
        while stash.len() < MAX_PENDING {
            match earlier.receive(false) {
                Ok(message) => stash.push_back(message.into_incoming()),
                Err(_) => break,
            }
        }
        DEPTH.set(DEPTH.get() - 1);
        std::mem::swap(&mut earlier.user, &mut self.user);
        Ok(stash)
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Waits for the next message, with no regard to calls.
    pub(crate) fn receive_blocking(&self) -> Result<Incoming> {
        self.receive(true).map(Packet::into_incoming)
    }

    /// What a process has to know to which the endpoint is sent.
    pub(crate) fn handles_follow(&self) -> bool {
        self.handles_follow.load(Ordering::SeqCst)
    }

    #[cfg(test)]
    fn pretend_announced(&self) {
        self.announced.store(true, Ordering::SeqCst);
    }

    pub(crate) fn into_fd(self) -> OwnedFd {
        self.fd
    }

    pub(crate) fn sources(&self, interest: zx_signals_t) -> Result<Sources<'_>> {
        // Hang-up is reported without being asked for.
        let events =
            if interest & ZX_CHANNEL_READABLE != 0 { PollFlags::IN } else { PollFlags::empty() };
        let any =
            interest & (ZX_CHANNEL_READABLE | ZX_CHANNEL_WRITABLE | ZX_CHANNEL_PEER_CLOSED) != 0;
        let socket = any.then(|| Source { fd: self.fd.as_fd(), events, edge: false });
        Ok([socket, self.user_source(interest)?])
    }

    #[inline]
    pub(crate) fn signals(&self, revents: PollFlags) -> zx_signals_t {
        let closed = revents.intersects(PollFlags::HUP | PollFlags::RDHUP | PollFlags::ERR);
        let mut signals = if closed { ZX_CHANNEL_PEER_CLOSED } else { ZX_CHANNEL_WRITABLE };
        let readable = if closed && revents.contains(PollFlags::IN) {
            // A closed socket is always ready; whether there is a message is another question.
            rustix::io::ioctl_fionread(&self.fd).is_ok_and(|bytes| bytes > 0)
        } else {
            revents.contains(PollFlags::IN)
        };
        if readable || self.has_stash() {
            signals |= ZX_CHANNEL_READABLE;
        }
        signals | self.user_signals()
    }

    /// Whether messages that were taken out of the socket wait for a reader.
    #[inline]
    pub(crate) fn has_stash(&self) -> bool {
        self.stashed.load(Ordering::SeqCst)
    }

    pub(crate) fn drains(&self) -> u32 {
        self.drains.load(Ordering::SeqCst)
    }

    /// The last handle is closed: callers that are still waiting return.
    pub(crate) fn retire(&self) {
        let mut inbound = lock(&self.inbound);
        inbound.stash.clear();
        if !inbound.calls.is_empty() {
            let _ = rustix::net::shutdown(&self.fd, rustix::net::Shutdown::Read);
            inbound.canceled = true;
            self.replied.notify_all();
        }
    }
}
