//! Events and eventpairs.
//!
//! The signals are in shared memory. An eventfd that is only ever added to, never read, is the broadcast: each addition
//! is an edge for every epoll set in every process, and the waiter then looks at the memory. A signal thus costs its
//! sender one system call, and a wake-up its receiver one. The sides of an eventpair share one eventfd; each also holds
//! an end of a socket pair on which nothing is ever sent: it tells when the other side is gone, however it went.

use crate::handle_table::{get, insert, insert_peers};
use crate::object::{Kind, Object, Source, Sources};
use crate::rights;
use crate::shared_signals::{Counts, SETTABLE, SharedSignals};
use crate::status::{INVALID_ARGS, NOT_SUPPORTED, PEER_CLOSED, Result, WRONG_TYPE, answer, out};
use fuchsia_zircon_types::*;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::fcntl_dupfd_cloexec;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use std::sync::atomic::{AtomicBool, Ordering};

/// What an event's signals looked like when a wait began.
pub(crate) type Snapshot = Counts;

struct Peer {
    liveness: OwnedFd,
    /// 0 or 1: which signals are this side's.
    side: usize,
    closed: AtomicBool,
}

/// An event, or one side of an eventpair.
pub(crate) struct Event {
    signals: SharedSignals,
    changed: OwnedFd,
    peer: Option<Peer>,
}

impl Event {
    pub(crate) fn new() -> Result<Event> {
        Ok(Event { signals: SharedSignals::new()?, changed: new_broadcast()?, peer: None })
    }

    fn pair() -> Result<(Event, Event)> {
        let (first, second) = socketpair(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )?;
        let signals = SharedSignals::new()?;
        let changed = new_broadcast()?;
        let side = |signals, changed, liveness, side| Event {
            signals,
            changed,
            peer: Some(Peer { liveness, side, closed: AtomicBool::new(false) }),
        };
        let other = side(signals.duplicate()?, fcntl_dupfd_cloexec(&changed, 3)?, second, 1);
        Ok((side(signals, changed, first, 0), other))
    }

    /// An event or side of an eventpair that another process sent.
    pub(crate) fn from_fds(
        memory: OwnedFd,
        changed: OwnedFd,
        peer: Option<(OwnedFd, usize)>,
    ) -> Event {
        let peer =
            peer.map(|(liveness, side)| Peer { liveness, side, closed: AtomicBool::new(false) });
        Event { signals: SharedSignals::from_fd(memory), changed, peer }
    }

    /// The descriptors that make it up, in the order of `from_fds`.
    pub(crate) fn fds(&self) -> [Option<BorrowedFd<'_>>; 3] {
        let liveness = self.peer.as_ref().map(|peer| peer.liveness.as_fd());
        [Some(self.signals.fd()), Some(self.changed.as_fd()), liveness]
    }

    /// Which side of an eventpair this is; 0 for an event.
    pub(crate) fn side(&self) -> usize {
        self.peer.as_ref().map_or(0, |peer| peer.side)
    }

    pub(crate) fn object_type(&self) -> zx_obj_type_t {
        if self.peer.is_some() { ZX_OBJ_TYPE_EVENTPAIR } else { ZX_OBJ_TYPE_EVENT }
    }

    pub(crate) fn sources(&self, interest: zx_signals_t) -> Result<Sources<'_>> {
        // Look now, where a bad page is an error, rather than when a wait ends.
        self.signals.load(self.side())?;
        let changed = (interest & SETTABLE != 0).then(|| Source {
            fd: self.changed.as_fd(),
            events: PollFlags::IN,
            edge: true,
        });
        let peer = self.peer.as_ref().filter(|_| interest & ZX_EVENTPAIR_PEER_CLOSED != 0);
        // Hang-up is reported without being asked for.
        let liveness = peer.map(|peer| Source {
            fd: peer.liveness.as_fd(),
            events: PollFlags::empty(),
            edge: false,
        });
        Ok([changed, liveness])
    }

    pub(crate) fn observe(&self, index: usize, revents: PollFlags) {
        if let Some(peer) = self.peer.as_ref().filter(|_| index == 1 && !revents.is_empty()) {
            peer.closed.store(true, Ordering::SeqCst);
        }
    }

    pub(crate) fn signals(&self) -> zx_signals_t {
        let closed = self.peer.as_ref().is_some_and(|peer| peer.closed.load(Ordering::SeqCst));
        self.signals.load(self.side()).unwrap_or(0)
            | if closed { ZX_EVENTPAIR_PEER_CLOSED } else { 0 }
    }

    pub(crate) fn snapshot(&self) -> Result<Snapshot> {
        self.signals.counts(self.side())
    }

    pub(crate) fn asserted_since(&self, snapshot: &Snapshot) -> zx_signals_t {
        self.signals.risen_since(self.side(), snapshot).unwrap_or(0)
    }

    /// `zx_object_signal`.
    pub(crate) fn signal(&self, clear: zx_signals_t, set: zx_signals_t) -> Result<()> {
        self.signals.signal(self.side(), clear, set, SETTABLE, &self.changed)
    }

    /// What tells of signals that went from clear to set.
    pub(crate) fn broadcast(&self) -> BorrowedFd<'_> {
        self.changed.as_fd()
    }

    /// For an event that stands for the signals of another object: clears and sets, and notes what was cleared.
    pub(crate) fn signal_from_peer(&self, clear: zx_signals_t, set: zx_signals_t) -> Result<()> {
        self.signals.note_cleared(clear)?;
        self.signal(clear, set)
    }

    /// All that `signal_from_peer` has ever cleared.
    pub(crate) fn ever_cleared(&self) -> zx_signals_t {
        self.signals.ever_cleared().unwrap_or(0)
    }

    /// `zx_object_signal_peer`.
    pub(crate) fn signal_peer(&self, clear: zx_signals_t, set: zx_signals_t) -> Result<()> {
        let peer = self.peer.as_ref().ok_or(WRONG_TYPE)?;
        let mut fds = [PollFd::from_borrowed_fd(peer.liveness.as_fd(), PollFlags::empty())];
        crate::object::poll_now(&mut fds)?;
        if !fds[0].revents().is_empty() {
            return Err(PEER_CLOSED);
        }
        self.signals.signal(1 - peer.side, clear, set, SETTABLE, &self.changed)
    }
}

/// An eventfd to add to; non-blocking because nobody reads it.
pub(crate) fn new_broadcast() -> Result<OwnedFd> {
    Ok(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)
}

/// See the Zircon documentation of `zx_event_create`.
///
/// # Safety
/// `out_handle` is null or valid for writing.
pub unsafe fn zx_event_create(options: u32, out_handle: *mut zx_handle_t) -> zx_status_t {
    answer((|| {
        // SAFETY: the caller's promise.
        let out_handle = unsafe { out(out_handle)? };
        if options != 0 {
            return Err(INVALID_ARGS);
        }
        out_handle.set(insert(Object::new(Kind::Event(Event::new()?)), rights::EVENT)?);
        Ok(())
    })())
}

/// See the Zircon documentation of `zx_eventpair_create`.
///
/// # Safety
/// `out0` and `out1` are null or valid for writing.
pub unsafe fn zx_eventpair_create(
    options: u32,
    out0: *mut zx_handle_t,
    out1: *mut zx_handle_t,
) -> zx_status_t {
    answer((|| {
        // SAFETY: the caller's promise.
        let (out0, out1) = unsafe { (out(out0)?, out(out1)?) };
        if options != 0 {
            return Err(NOT_SUPPORTED);
        }
        let (first, second) = Event::pair()?;
        let (first, second) =
            insert_peers(Kind::Event(first), Kind::Event(second), rights::EVENTPAIR)?;
        out0.set(first);
        out1.set(second);
        Ok(())
    })())
}

/// See the Zircon documentation of `zx_object_signal`. On an object that is no channel, event, eventpair, FIFO or socket the
/// user signals are seen in this process only, and are not carried along when its handle is sent to another.
///
/// # Safety
/// Always safe; unsafe to have the vDSO's signature.
pub unsafe fn zx_object_signal(handle: zx_handle_t, clear_mask: u32, set_mask: u32) -> zx_status_t {
    answer((|| {
        let held = get(handle)?;
        held.require(ZX_RIGHT_SIGNAL)?;
        match &held.kind {
            Kind::Event(event) => event.signal(clear_mask, set_mask),
            Kind::Fifo(fifo) => fifo.signal(clear_mask, set_mask),
            Kind::Channel(channel) => {
                held.look_for_user_signals(channel);
                if channel.signal(clear_mask, set_mask)? {
                    held.notify();
                }
                Ok(())
            }
            Kind::Socket(socket) if socket.user_signals().are_shared() => {
                socket.user_signals().signal(clear_mask, set_mask)
            }
            _ if (clear_mask | set_mask) & !ZX_USER_SIGNAL_ALL != 0 => Err(INVALID_ARGS),
            _ => {
                held.change_local_signals(clear_mask, set_mask);
                Ok(())
            }
        }
    })())
}

/// See the Zircon documentation of `zx_object_signal_peer`. User signals of the peer of a socket that the host gave are not
/// supported (`ZX_ERR_NOT_SUPPORTED`): it is no handle of anybody. A channel's peer that is signaled for the first time,
/// and where nobody waits for user signals, may look readable once, though `zx_channel_read` gives it `ZX_ERR_SHOULD_WAIT`; and
/// with 3500 messages that it has not read, the first time gives `ZX_ERR_SHOULD_WAIT`.
///
/// # Safety
/// Always safe; unsafe to have the vDSO's signature.
pub unsafe fn zx_object_signal_peer(
    handle: zx_handle_t,
    clear_mask: u32,
    set_mask: u32,
) -> zx_status_t {
    answer((|| {
        let held = get(handle)?;
        held.require(ZX_RIGHT_SIGNAL_PEER)?;
        match &held.kind {
            Kind::Event(event) => event.signal_peer(clear_mask, set_mask),
            Kind::Fifo(fifo) => fifo.signal_peer(clear_mask, set_mask),
            Kind::Socket(socket) => socket.signal_peer(clear_mask, set_mask),
            Kind::Channel(channel) => channel.signal_peer(&held, clear_mask, set_mask),
            _ => Err(WRONG_TYPE),
        }
    })())
}
