//! Readiness of the host's sockets: one thread that polls them and wakes the device.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use mio::event::Source;
use mio::{Events, Interest, Poll, Registry, Token};

/// Token of the waker that ends the thread.
const STOP: Token = Token(usize::MAX);
/// Events taken from the host at a time.
const EVENTS: usize = 256;

/// What a socket became since it was last asked. Edges: it stays so until an operation would block.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Readiness {
    pub(super) readable: bool,
    pub(super) writable: bool,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// By token; at most one entry a socket, so bounded as the sockets are.
    ready: HashMap<usize, Readiness>,
    waker: Option<Box<dyn Fn() + Send>>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The poll object and its thread, which ends when this is dropped.
pub(super) struct Reactor {
    registry: Registry,
    stop: mio::Waker,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl fmt::Debug for Reactor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reactor").finish_non_exhaustive()
    }
}

impl Reactor {
    pub(super) fn new() -> io::Result<Self> {
        let poll = Poll::new()?;
        let registry = poll.registry().try_clone()?;
        let stop = mio::Waker::new(&registry, STOP)?;
        let shared = Arc::<Shared>::default();
        let thread = std::thread::Builder::new().name("sockets".to_owned()).spawn({
            let shared = shared.clone();
            move || serve(poll, &shared)
        })?;
        Ok(Self { registry, stop, shared, thread: Some(thread) })
    }

    /// Has `waker` called, from the thread, when sockets became ready; and at once if some are.
    pub(super) fn set_waker(&self, waker: impl Fn() + Send + 'static) {
        let mut state = self.shared.state();
        if !state.ready.is_empty() {
            waker();
        }
        state.waker = Some(Box::new(waker));
    }

    pub(super) fn add(&self, source: &mut impl Source, token: usize) -> io::Result<()> {
        self.registry.register(source, Token(token), Interest::READABLE | Interest::WRITABLE)
    }

    pub(super) fn remove(&self, source: &mut impl Source) {
        if let Err(e) = self.registry.deregister(source) {
            tracing::debug!(error = &e as &dyn std::error::Error, "A socket was not registered");
        }
    }

    /// Appends the sockets that became ready since the last call.
    pub(super) fn take_ready(&self, ready: &mut Vec<(usize, Readiness)>) {
        ready.extend(self.shared.state().ready.drain());
    }
}

impl Drop for Reactor {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        if let Err(e) = self.stop.wake() {
            // Joining could wait for ever; the thread goes with the process.
            tracing::error!(error = &e as &dyn std::error::Error, "The socket thread stays");
            return;
        }
        if let Some(thread) = self.thread.take() {
            // It does not panic; if it did, it is gone all the same.
            let _ = thread.join();
        }
    }
}

fn serve(mut poll: Poll, shared: &Shared) {
    let mut events = Events::with_capacity(EVENTS);
    while !shared.stop.load(Ordering::Acquire) {
        match poll.poll(&mut events, None) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => {
                tracing::error!(error = &e as &dyn std::error::Error, "Sockets cannot be polled");
                return;
            }
        }
        let mut state = shared.state();
        let was_empty = state.ready.is_empty();
        for event in events.iter().filter(|event| event.token() != STOP) {
            let ready = state.ready.entry(event.token().0).or_default();
            let failed = event.is_error();
            ready.readable |= failed || event.is_readable() || event.is_read_closed();
            ready.writable |= failed || event.is_writable() || event.is_write_closed();
        }
        // One wake-up is under way as long as nobody took what is ready.
        if let (true, false, Some(waker)) = (was_empty, state.ready.is_empty(), &state.waker) {
            waker();
        }
    }
}
