use crate::handle::impl_handle_based;
use crate::{Handle, Peered, ok, sys};

/// An object that only has signals.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Event(Handle);
impl_handle_based!(Event);

impl Event {
    /// A new event.
    ///
    /// # Panics
    /// When the process has no more handles or memory, as on Fuchsia.
    #[must_use]
    pub fn create() -> Event {
        let mut out = 0;
        // SAFETY: the result has a valid place.
        ok(unsafe { sys::zx_event_create(0, &raw mut out) }).expect("zx_event_create");
        // SAFETY: the call gave us the handle.
        Event(unsafe { Handle::from_raw(out) })
    }
}

/// One of two events that can signal each other and see each other go.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct EventPair(Handle);
impl_handle_based!(EventPair);
impl Peered for EventPair {}

impl EventPair {
    /// A new pair.
    ///
    /// # Panics
    /// When the process has no more handles or memory, as on Fuchsia.
    #[must_use]
    pub fn create() -> (EventPair, EventPair) {
        let (mut left, mut right) = (0, 0);
        // SAFETY: both results have a valid place.
        let status = unsafe { sys::zx_eventpair_create(0, &raw mut left, &raw mut right) };
        ok(status).expect("zx_eventpair_create");
        // SAFETY: the call gave us both handles.
        unsafe { (EventPair(Handle::from_raw(left)), EventPair(Handle::from_raw(right))) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{AsHandleRef, Duration, HandleBased, Rights, Signals, Status, Time};

    #[test]
    fn an_event_is_signaled_and_cleared() {
        let event = Event::create();
        let wait = |signals, time| event.wait_handle(signals, time);
        assert_eq!(wait(Signals::USER_0, Time::INFINITE_PAST), Err(Status::TIMED_OUT));
        event.signal_handle(Signals::NONE, Signals::USER_0 | Signals::EVENT_SIGNALED).unwrap();
        let seen = wait(Signals::USER_0, Time::INFINITE_PAST).unwrap();
        assert!(seen.contains(Signals::USER_0 | Signals::EVENT_SIGNALED));
        event.signal_handle(Signals::USER_0, Signals::NONE).unwrap();
        let soon = Time::after(Duration::from_millis(1));
        assert_eq!(wait(Signals::USER_0, soon), Err(Status::TIMED_OUT));
        let mute = event.duplicate_handle(Rights::WAIT).unwrap();
        let refused = mute.signal_handle(Signals::NONE, Signals::USER_1);
        assert_eq!(refused, Err(Status::ACCESS_DENIED));
    }

    #[test]
    fn a_pair_signals_its_peer_and_sees_it_go() {
        let (left, right) = EventPair::create();
        left.signal_peer(Signals::NONE, Signals::USER_3).unwrap();
        assert!(right.wait_handle(Signals::USER_3, Time::INFINITE).is_ok());
        let info = left.basic_info().unwrap();
        assert_eq!(info.related_koid, right.get_koid().unwrap());
        drop(right);
        assert!(left.wait_handle(Signals::EVENTPAIR_PEER_CLOSED, Time::INFINITE).is_ok());
        assert_eq!(left.signal_peer(Signals::NONE, Signals::USER_0), Err(Status::PEER_CLOSED));
    }
}
