//! Who waits for which message of a client's channel.

use super::Message;
use crate::{Error, Result, message_buffer};
use fuchsia_zircon::{MessageBufEtc, Status};
use slab::Slab;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Wake, Waker};

/// Events are kept up to this many, as memory is not for a server to fill. Where nobody took the
/// event stream the oldest goes then; where somebody did and is that slow, the connection ends.
const MAX_QUEUED_EVENTS: usize = 4096;

/// What events have in place of a transaction id.
pub(super) const EVENT: u32 = 0;

/// A transaction id is a call's place among those of the client, plus one, in so many bits. Above
/// them is a number that the next call there does not have, so that a late or doubled response
/// finds nobody. The high bit belongs to `zx_channel_call`.
const PLACE_BITS: u32 = 20;
const PLACE_MASK: u32 = (1 << PLACE_BITS) - 1;
const GENERATION_MASK: u32 = u32::MAX >> 1 >> PLACE_BITS;

/// What a call waits for.
#[derive(Debug)]
pub(super) enum Interest {
    /// The response, by nobody yet.
    Unpolled,
    /// The response, by this task.
    Waiting(Waker),
    /// Nothing: the response is there.
    Received(Box<MessageBufEtc>),
    /// That the response can be dropped.
    Discard,
}

impl Interest {
    /// The task that waits, which is to poll again.
    fn take_waker(&mut self) -> Option<Waker> {
        match self {
            Interest::Waiting(_) => match std::mem::replace(self, Interest::Unpolled) {
                Interest::Waiting(waker) => Some(waker),
                _ => None,
            },
            _ => None,
        }
    }
}

#[derive(Debug)]
struct Call {
    generation: u32,
    interest: Interest,
}

/// The calls and the event stream of a client.
#[derive(Debug, Default)]
pub(super) struct State {
    calls: Slab<Call>,
    next_generation: u32,
    events: VecDeque<Box<MessageBufEtc>>,
    events_taken: bool,
    event_waker: Option<Waker>,
    /// Why there will be no more messages.
    ended: Option<Error>,
}

/// Whom to wake, once the lock is released: a waker may run its task at once.
#[derive(Debug, Default)]
#[must_use = "who is not woken waits for ever"]
pub(super) struct Woken {
    first: Option<Waker>,
    /// Mostly there is one, and then nothing to allocate.
    others: Vec<Waker>,
}

impl Woken {
    pub(super) fn wake(self) {
        self.first.into_iter().chain(self.others).for_each(Waker::wake);
    }
}

impl From<Option<Waker>> for Woken {
    fn from(first: Option<Waker>) -> Woken {
        Woken { first, others: Vec::new() }
    }
}

impl State {
    /// A new transaction.
    ///
    /// # Errors
    ///
    /// There are about a million already.
    pub(super) fn register(&mut self) -> Result<u32> {
        let entry = self.calls.vacant_entry();
        let place = u32::try_from(entry.key() + 1).ok().filter(|place| *place <= PLACE_MASK);
        let place = place.ok_or(Error::ClientWrite(Status::NO_RESOURCES))?;
        let generation = self.next_generation;
        self.next_generation = (generation + 1) & GENERATION_MASK;
        entry.insert(Call { generation, interest: Interest::Unpolled });
        Ok(generation << PLACE_BITS | place)
    }

    /// Where the call with this transaction id is, if it is.
    #[inline]
    fn place(&self, tx_id: u32) -> Option<usize> {
        let place = (tx_id & PLACE_MASK).checked_sub(1)? as usize;
        let call = self.calls.get(place)?;
        (call.generation == tx_id >> PLACE_BITS).then_some(place)
    }

    /// What the call with this transaction id waits for, if there is one.
    #[inline]
    fn interest(&mut self, tx_id: u32) -> Option<&mut Interest> {
        let place = (tx_id & PLACE_MASK).checked_sub(1)? as usize;
        let call = self.calls.get_mut(place)?;
        (call.generation == tx_id >> PLACE_BITS).then_some(&mut call.interest)
    }

    /// Forgets a transaction: its response has been taken, or it was not sent. What it waited for is
    /// to be dropped without the lock.
    #[inline]
    pub(super) fn forget(&mut self, tx_id: u32) -> Option<Interest> {
        let place = self.place(tx_id)?;
        Some(self.calls.remove(place).interest)
    }

    /// Lets the response of a transaction be dropped when it comes.
    fn discard(&mut self, tx_id: u32) -> Option<Interest> {
        let interest = self.interest(tx_id)?;
        let known = std::mem::replace(interest, Interest::Discard);
        if let Interest::Received(_) = known {
            drop(self.forget(tx_id));
        }
        Some(known)
    }

    /// Whether the response of a transaction, or an event, is still to be read. Otherwise
    /// [`Self::take`] has it, or knows why there is none.
    #[inline]
    pub(super) fn is_to_be_read(&mut self, tx_id: u32) -> bool {
        self.ended.is_none()
            && if tx_id == EVENT {
                self.events.is_empty()
            } else {
                matches!(
                    self.interest(tx_id),
                    Some(Interest::Unpolled | Interest::Waiting(_) | Interest::Discard)
                )
            }
    }

    /// The response of a transaction, or the next event, that somebody else has read.
    ///
    /// # Errors
    ///
    /// There will be none.
    pub(super) fn take(&mut self, tx_id: u32) -> Result<Box<MessageBufEtc>> {
        if tx_id == EVENT {
            if let Some(message) = self.events.pop_front() {
                return Ok(message);
            }
        } else {
            match self.forget(tx_id) {
                Some(Interest::Received(message)) => return Ok(message),
                Some(_) => {}
                None => return Err(Error::PollAfterCompletion),
            }
        }
        Err(self.ended.clone().unwrap_or(Error::PollAfterCompletion))
    }

    /// Whether nobody else waits for a message, or will before he polls.
    #[inline]
    pub(super) fn is_alone(&self, tx_id: u32) -> bool {
        if tx_id == EVENT {
            self.calls.is_empty()
        } else {
            self.calls.len() == 1 && self.event_waker.is_none()
        }
    }

    /// Keeps who waits for a response, or for an event. Whom it replaces is to be dropped without
    /// the lock.
    #[inline]
    pub(super) fn wait(&mut self, tx_id: u32, waker: &Waker) -> Option<Waker> {
        if tx_id == EVENT {
            return self.event_waker.replace(waker.clone());
        }
        match self.interest(tx_id)? {
            Interest::Waiting(known) if known.will_wake(waker) => None,
            interest => {
                let known = interest.take_waker();
                *interest = Interest::Waiting(waker.clone());
                known
            }
        }
    }

    /// Takes in a message for somebody else than who has read it, or why there is none.
    #[cold]
    pub(super) fn take_in(&mut self, received: Result<Message>) -> Woken {
        match received {
            Ok(Message { header, buffer }) => {
                let kept = message_buffer::keep(buffer);
                if header.tx_id == EVENT {
                    self.event(kept)
                } else {
                    self.response(header.tx_id, kept)
                }
            }
            Err(error) => self.end(error),
        }
    }

    /// Takes in a response. One that no call waits for ends the connection.
    fn response(&mut self, tx_id: u32, message: Box<MessageBufEtc>) -> Woken {
        match self.interest(tx_id) {
            Some(Interest::Discard) => {
                drop(self.forget(tx_id));
                Woken::default()
            }
            Some(Interest::Received(_)) | None => self.end(Error::InvalidResponseTxid),
            Some(interest) => {
                let waker = interest.take_waker();
                *interest = Interest::Received(message);
                waker.into()
            }
        }
    }

    /// Takes in an event.
    fn event(&mut self, message: Box<MessageBufEtc>) -> Woken {
        if self.events.len() >= MAX_QUEUED_EVENTS {
            if self.events_taken {
                return self.end(Error::ClientEvent(Status::NO_RESOURCES));
            }
            self.events.pop_front();
        }
        self.events.push_back(message);
        self.event_waker.take().into()
    }

    /// Remembers why there will be no more messages; the first reason stays.
    fn end(&mut self, error: Error) -> Woken {
        self.ended.get_or_insert(error);
        self.all()
    }

    /// All that wait.
    fn all(&mut self) -> Woken {
        let events = self.event_waker.take();
        let calls = self.calls.iter_mut().filter_map(|(_, call)| call.interest.take_waker());
        let mut all = events.into_iter().chain(calls);
        Woken { first: all.next(), others: all.collect() }
    }
}

/// The calls and the event stream of a client. As a waker it wakes all of them.
#[derive(Debug, Default)]
pub(super) struct Interests {
    state: Mutex<State>,
}

impl Interests {
    #[inline]
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        // The state is consistent between any two statements, so a panic elsewhere does no harm.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets the response of a transaction be dropped when it comes.
    pub(super) fn discard(&self, tx_id: u32) {
        let known = self.lock().discard(tx_id);
        drop(known);
    }

    /// Whether no response is to come and no event is kept.
    pub(super) fn is_idle(&self) -> bool {
        let state = self.lock();
        state.calls.is_empty() || state.ended.is_some()
    }

    /// Claims the event stream; false if it is claimed.
    pub(super) fn take_events(&self) -> bool {
        !std::mem::replace(&mut self.lock().events_taken, true)
    }

    /// Lets the event stream be claimed again.
    pub(super) fn release_events(&self) {
        let mut state = self.lock();
        state.events_taken = false;
        let waker = state.event_waker.take();
        drop(state);
        drop(waker);
    }

    fn wake_all(&self) {
        let woken = self.lock().all();
        woken.wake();
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_id_is_not_given_out_again_soon() {
        let mut state = State::default();
        let ids: Vec<u32> = (0..1000).map(|_| state.register().unwrap()).collect();
        for &tx_id in &ids {
            assert!(tx_id != EVENT && tx_id >> 31 == 0, "{tx_id:#x}");
            assert!(state.interest(tx_id).is_some());
            // The kernel's own have the high bit.
            assert!(state.interest(tx_id | 1 << 31).is_none());
        }
        for &tx_id in &ids {
            drop(state.forget(tx_id));
            assert!(state.interest(tx_id).is_none());
        }
        let first = state.register().unwrap();
        assert!(!ids.contains(&first));
        drop(state.forget(first));
        let second = state.register().unwrap();
        assert_ne!(first, second);
        assert!(state.interest(first).is_none());
        // A response to the first call ends the connection, though the second waits in its place.
        let _ = state.response(first, Box::default());
        assert!(!state.is_to_be_read(second));
        assert!(matches!(state.take(second), Err(Error::InvalidResponseTxid)));
    }

    #[test]
    fn a_response_can_come_only_once() {
        let mut state = State::default();
        let tx_id = state.register().unwrap();
        let _ = state.response(tx_id, Box::default());
        let _ = state.response(tx_id, Box::default());
        assert!(!state.is_to_be_read(tx_id));
        assert!(state.take(tx_id).is_ok());
        assert!(matches!(state.take(tx_id), Err(Error::PollAfterCompletion)));
        let next = state.register().unwrap();
        assert!(matches!(state.take(next), Err(Error::InvalidResponseTxid)));
    }
}
