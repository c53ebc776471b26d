//! User signals of channels.
//!
//! An endpoint is in one process, since its handle cannot be duplicated, so its own signals are a word in that process. Its
//! peer, when it signals it for the first time, makes an event, which all processes see alike, and sends it through the
//! channel as a control message; from then on the endpoint's signals are that event's. Whoever does not use user signals
//! thus pays for nothing: no memory, no descriptor, no system call.
//!
//! A control message is found by whoever reads next. Whoever waits for user signals does not read, and may wait on an
//! endpoint with unread messages in front of the control message: so it moves what is in the socket to the stash, where
//! readers find it, until it has found the event or the end. What it watches is an epoll set, which has the socket in it as
//! long as the event may come from there, and then the event.

use super::receive::Incoming;
use super::{Channel, MAX_PENDING, Outgoing};
use crate::event::Event;
use crate::handle_table::Held;
use crate::object::{Kind, Object, Source, lock, poll_now};
use crate::status::{INVALID_ARGS, IO_DATA_INTEGRITY, NO_RESOURCES, PEER_CLOSED, Result};
use fuchsia_zircon_types::*;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{PollFd, PollFlags};
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

/// What a control message brings: the event of the receiver's own signals, or of its peer's; or word that messages with
/// handles come from now on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Control {
    OwnSignals = 1,
    PeerSignals = 2,
    HandlesFollow = 3,
}

impl Control {
    pub(super) fn from_wire(number: u32) -> Option<Control> {
        [Control::OwnSignals, Control::PeerSignals, Control::HandlesFollow]
            .into_iter()
            .find(|control| *control as u32 == number)
    }
}

/// The user signals of an endpoint, and what it knows of its peer's.
#[derive(Default)]
pub(super) struct UserSignals {
    /// The endpoint's signals before its peer has sent an event for them.
    local: AtomicU32,
    /// The event of its signals, which the peer made. On its side 1 are the signals that the peer has ever cleared.
    own: OnceLock<Arc<Object>>,
    /// The event of its peer's signals, which this endpoint made.
    peer: Mutex<Option<Arc<Object>>>,
    /// What those watch who wait for its signals.
    watch: OnceLock<OwnedFd>,
}

impl UserSignals {
    pub(super) fn with_local(signals: zx_signals_t) -> UserSignals {
        let local = AtomicU32::new(signals & ZX_USER_SIGNAL_ALL);
        UserSignals { local, ..UserSignals::default() }
    }

    fn own_event(&self) -> Option<&Event> {
        self.own.get().and_then(|object| object.event().ok())
    }

    fn load(&self) -> zx_signals_t {
        let signals =
            self.own_event().map_or(0, Event::signals) | self.local.load(Ordering::SeqCst);
        signals & ZX_USER_SIGNAL_ALL
    }

    /// Gives the local signals to the event. What the peer cleared since they were set is no longer set.
    fn merge(&self, event: &Event) {
        let local = self.local.swap(0, Ordering::SeqCst);
        // A bad page of the peer's means no signals, as everywhere.
        let _ = event.signal(0, local & !event.ever_cleared());
    }

    /// The event for the peer's signals in a message to it, and those of the endpoint itself for a process it is sent to.
    fn events(&self) -> [Option<(Control, Arc<Object>)>; 2] {
        [
            self.own.get().map(|event| (Control::OwnSignals, event.clone())),
            lock(&self.peer).as_ref().map(|event| (Control::PeerSignals, event.clone())),
        ]
    }
}

/// The event that a control message brings.
fn sole_event(message: Incoming) -> Result<Arc<Object>> {
    let [Held { object, .. }] =
        <[Held; 1]>::try_from(message.handles).map_err(|_| IO_DATA_INTEGRITY)?;
    object.event().map_err(|_| IO_DATA_INTEGRITY)?;
    Ok(object)
}

impl Channel {
    /// Takes in a control message.
    ///
    /// Errors: `ZX_ERR_IO_DATA_INTEGRITY` if it is not what a control message is.
    pub(super) fn adopt(&self, control: Control, message: Incoming) -> Result<()> {
        self.handles_follow.store(true, Ordering::SeqCst);
        let user = &self.user;
        match control {
            Control::HandlesFollow if message.handles.is_empty() => {}
            Control::HandlesFollow => return Err(IO_DATA_INTEGRITY),
            Control::PeerSignals => *lock(&user.peer) = Some(sole_event(message)?),
            // Of two, the first stays: waiters may watch it.
            Control::OwnSignals => {
                let _ = user.own.set(sole_event(message)?);
                let Some(event) = user.own_event() else { return Ok(()) };
                user.merge(event);
                if let Some(watch) = user.watch.get() {
                    self.watch_event(watch, event)?;
                }
            }
        }
        Ok(())
    }

    fn watch_event(&self, watch: &OwnedFd, event: &Event) -> Result<()> {
        let edge = EventFlags::IN | EventFlags::ET;
        match epoll::add(watch, event.broadcast(), EventData::new_u64(0), edge) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno.into()),
        }
        // Gone already, where two threads come here.
        let _ = epoll::delete(watch, self.fd());
        Ok(())
    }

    /// What to watch for a change of this endpoint's user signals, if any is in `interest`.
    pub(super) fn user_source(&self, interest: zx_signals_t) -> Result<Option<Source<'_>>> {
        if interest & ZX_USER_SIGNAL_ALL == 0 {
            return Ok(None);
        }
        if self.user.watch.get().is_none() {
            let watch = epoll::create(CreateFlags::CLOEXEC)?;
            let edge = EventFlags::IN | EventFlags::ET;
            epoll::add(&watch, self.fd(), EventData::new_u64(0), edge)?;
            // Of two threads that come here at once, one made it for nothing.
            let _ = self.user.watch.set(watch);
        }
        let watch = self.user.watch.get().ok_or(NO_RESOURCES)?;
        // Looked for after the watch was there for `adopt` to find.
        if let Some(event) = self.user.own_event().filter(|_| self.is_watching_socket(watch)) {
            self.watch_event(watch, event)?;
        }
        Ok(Some(Source { fd: watch.as_fd(), events: PollFlags::IN, edge: true }))
    }

    /// Whether the watch has the socket in it still.
    fn is_watching_socket(&self, watch: &OwnedFd) -> bool {
        let edge = EventFlags::IN | EventFlags::ET;
        epoll::modify(watch, self.fd(), EventData::new_u64(0), edge).is_ok()
    }

    /// Whether what is in the socket may be a control message, as far as this process can know: it waits for one.
    pub(crate) fn may_be_mistaken(&self, revents: PollFlags) -> bool {
        self.user.watch.get().is_some()
            && revents.contains(PollFlags::IN)
            && self.user.own.get().is_none()
    }

    /// The state of the socket after control messages were taken out.
    pub(crate) fn poll_again(&self) -> Result<PollFlags> {
        let mut fds = [PollFd::from_borrowed_fd(self.fd(), PollFlags::IN)];
        poll_now(&mut fds)?;
        Ok(fds[0].revents())
    }

    pub(super) fn user_signals(&self) -> zx_signals_t {
        self.user.load()
    }

    /// Looks in the socket for the event of this endpoint's signals, if it has not come yet. Whether messages were stashed on
    /// the way, so that those who wait for them have to look.
    pub(crate) fn look_for_user_signals(&self) -> bool {
        if self.user.own.get().is_some() {
            return false;
        }
        let mut inbound = lock(&self.inbound);
        let mut stashed = false;
        // While calls are under way the callers read, and take in what they find.
        while inbound.calls.is_empty()
            && self.user.own.get().is_none()
            && inbound.stash.len() < MAX_PENDING
            && let Ok(message) = self.receive(false)
        {
            stashed |= self.stash(&mut inbound, message.into_incoming()).is_ok();
        }
        stashed
    }

    /// `zx_object_signal`, after looking for the event. Whether any signal went from clear to set without an event to tell of
    /// it.
    pub(crate) fn signal(&self, clear: zx_signals_t, set: zx_signals_t) -> Result<bool> {
        if (clear | set) & !ZX_USER_SIGNAL_ALL != 0 {
            return Err(INVALID_ARGS);
        }
        let user = &self.user;
        if let Some(event) = user.own_event() {
            return event.signal(clear, set).map(|()| false);
        }
        let change = |old| Some((old & !clear) | set);
        let old =
            user.local.fetch_update(Ordering::SeqCst, Ordering::SeqCst, change).unwrap_or_default();
        if let Some(event) = user.own_event() {
            // It came meanwhile, and perhaps took the signals as they were before.
            event.signal(clear, 0)?;
            user.merge(event);
        }
        Ok(set & !old != 0)
    }

    /// `zx_object_signal_peer`.
    pub(crate) fn signal_peer(
        &self,
        this: &Arc<Object>,
        clear: zx_signals_t,
        set: zx_signals_t,
    ) -> Result<()> {
        if (clear | set) & !ZX_USER_SIGNAL_ALL != 0 {
            return Err(INVALID_ARGS);
        }
        let mut fds = [PollFd::from_borrowed_fd(self.fd(), PollFlags::empty())];
        poll_now(&mut fds)?;
        if !fds[0].revents().is_empty() {
            return Err(PEER_CLOSED);
        }
        let mut peer = lock(&self.user.peer);
        if let Some(object) = &*peer {
            return object.event()?.signal_from_peer(clear, set);
        }
        let object = Object::new(Kind::Event(Event::new()?));
        object.event()?.signal_from_peer(clear, set)?;
        self.write(this, Outgoing::control(Control::OwnSignals, object.clone()))?;
        *peer = Some(object);
        Ok(())
    }

    /// The signals that go in the descriptor of an endpoint that is sent away; others go through its backlog.
    pub(crate) fn local_user_signals(&self) -> zx_signals_t {
        self.user.local.load(Ordering::SeqCst)
    }

    /// The control messages that a process needs to which the endpoint is sent.
    pub(super) fn controls_for_transfer(&self) -> impl Iterator<Item = Outgoing<'static>> {
        let controls = self.user.events().into_iter().flatten();
        controls.map(|(control, event)| Outgoing::control(control, event))
    }
}
