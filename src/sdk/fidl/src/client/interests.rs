//! Who waits for which message of a client's channel.

use crate::{Error, Result};
use fuchsia_zircon::{MessageBufEtc, Status};
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Wake, Waker};

/// Events are kept up to this many, as memory is not for a server to fill. Where nobody took the
/// event stream the oldest goes then; where somebody did and is that slow, the connection ends.
const MAX_QUEUED_EVENTS: usize = 4096;

/// The high bit of a transaction id belongs to `zx_channel_call`.
const TX_ID_MASK: u32 = u32::MAX >> 1;

/// What a call waits for.
#[derive(Debug)]
enum Interest {
    /// The response, by nobody yet.
    Unpolled,
    /// The response, by this task.
    Waiting(Waker),
    /// Nothing: the response is there.
    Received(MessageBufEtc),
    /// That the response can be dropped.
    Discard,
}

impl Interest {
    /// The task that waits, which is to poll again.
    fn take_waker(&mut self) -> Option<Waker> {
        match std::mem::replace(self, Interest::Unpolled) {
            Interest::Waiting(waker) => Some(waker),
            other => {
                *self = other;
                None
            }
        }
    }
}

#[derive(Debug, Default)]
struct State {
    last_tx_id: u32,
    calls: BTreeMap<u32, Interest>,
    events: VecDeque<MessageBufEtc>,
    events_taken: bool,
    event_waker: Option<Waker>,
    /// Why there will be no more messages.
    ended: Option<Error>,
}

/// The calls and the event stream of a client. As a waker it wakes all of them.
#[derive(Debug, Default)]
pub(super) struct Interests {
    state: Mutex<State>,
}

impl Interests {
    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is consistent between any two statements, so a panic elsewhere does no harm.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new transaction.
    pub(super) fn register(&self) -> u32 {
        let mut state = self.lock();
        loop {
            state.last_tx_id = state.last_tx_id.wrapping_add(1) & TX_ID_MASK;
            let tx_id = state.last_tx_id;
            if tx_id != 0 && !state.calls.contains_key(&tx_id) {
                state.calls.insert(tx_id, Interest::Unpolled);
                return tx_id;
            }
        }
    }

    /// Forgets a transaction that was not sent.
    pub(super) fn forget(&self, tx_id: u32) {
        self.lock().calls.remove(&tx_id);
    }

    /// Lets the response of a transaction be dropped when it comes.
    pub(super) fn discard(&self, tx_id: u32) {
        let mut state = self.lock();
        match state.calls.get_mut(&tx_id) {
            Some(Interest::Received(_)) => {
                state.calls.remove(&tx_id);
            }
            Some(interest) => *interest = Interest::Discard,
            None => {}
        }
    }

    /// Whether no response is to come and no event is kept.
    pub(super) fn is_idle(&self) -> bool {
        let state = self.lock();
        state.calls.is_empty() || state.ended.is_some()
    }

    /// The response of a transaction or why there is none; else keeps the waker.
    pub(super) fn take_response(&self, tx_id: u32, waker: &Waker) -> Option<Result<MessageBufEtc>> {
        let mut state = self.lock();
        if matches!(state.calls.get(&tx_id), Some(Interest::Received(_)))
            && let Some(Interest::Received(message)) = state.calls.remove(&tx_id)
        {
            return Some(Ok(message));
        }
        if let Some(error) = state.ended.clone() {
            state.calls.remove(&tx_id);
            return Some(Err(error));
        }
        match state.calls.get_mut(&tx_id) {
            Some(Interest::Waiting(known)) if known.will_wake(waker) => {}
            Some(interest) => *interest = Interest::Waiting(waker.clone()),
            None => return Some(Err(Error::PollAfterCompletion)),
        }
        None
    }

    /// The next event or why there is none; else keeps the waker.
    pub(super) fn take_event(&self, waker: &Waker) -> Option<Result<MessageBufEtc>> {
        let mut state = self.lock();
        if let Some(message) = state.events.pop_front() {
            return Some(Ok(message));
        }
        if let Some(error) = state.ended.clone() {
            return Some(Err(error));
        }
        state.event_waker = Some(waker.clone());
        None
    }

    /// Claims the event stream; false if it is claimed.
    pub(super) fn take_events(&self) -> bool {
        !std::mem::replace(&mut self.lock().events_taken, true)
    }

    /// Lets the event stream be claimed again.
    pub(super) fn release_events(&self) {
        let mut state = self.lock();
        state.events_taken = false;
        state.event_waker = None;
    }

    /// Takes in a response. One that no call waits for ends the connection.
    pub(super) fn response(&self, tx_id: u32, message: MessageBufEtc) {
        let mut state = self.lock();
        let woken = match state.calls.get_mut(&tx_id) {
            Some(Interest::Discard) => {
                state.calls.remove(&tx_id);
                None
            }
            Some(Interest::Received(_)) | None => {
                drop(state);
                return self.end(Error::InvalidResponseTxid);
            }
            Some(interest) => match std::mem::replace(interest, Interest::Received(message)) {
                Interest::Waiting(waker) => Some(waker),
                _ => None,
            },
        };
        drop(state);
        if let Some(waker) = woken {
            waker.wake();
        }
    }

    /// Takes in an event.
    pub(super) fn event(&self, message: MessageBufEtc) {
        let mut state = self.lock();
        if state.events.len() >= MAX_QUEUED_EVENTS {
            if state.events_taken {
                drop(state);
                return self.end(Error::ClientEvent(Status::NO_RESOURCES));
            }
            state.events.pop_front();
        }
        state.events.push_back(message);
        let woken = state.event_waker.take();
        drop(state);
        if let Some(waker) = woken {
            waker.wake();
        }
    }

    /// Remembers why there will be no more messages; the first reason stays.
    pub(super) fn end(&self, error: Error) {
        let mut state = self.lock();
        state.ended.get_or_insert(error);
        drop(state);
        self.wake_all();
    }

    fn wake_all(&self) {
        let mut state = self.lock();
        let events = state.event_waker.take();
        let mut waiting = state.calls.values_mut().filter_map(Interest::take_waker);
        // Mostly there is one call, and then nothing to allocate for more.
        let first = waiting.next();
        let others: Vec<Waker> = waiting.collect();
        // Not under the lock: a waker may run its task at once.
        drop(state);
        events.into_iter().chain(first).chain(others).for_each(Waker::wake);
    }
}

impl Wake for Interests {
    fn wake(self: Arc<Self>) {
        self.wake_all();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.wake_all();
    }
}
