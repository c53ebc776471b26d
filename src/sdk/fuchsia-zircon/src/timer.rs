use crate::handle::impl_handle_based;
use crate::{AsHandleRef, Duration, Handle, Status, Time, ok, sys};

/// An object that is signaled at a point of the monotonic clock.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Timer(Handle);
impl_handle_based!(Timer);

impl Timer {
    /// A new timer, not set.
    ///
    /// # Panics
    /// When the process has no more handles or memory, as on Fuchsia.
    #[must_use]
    pub fn create() -> Timer {
        let mut out = 0;
        // SAFETY: the result has a valid place.
        let status = unsafe { sys::zx_timer_create(0, sys::ZX_CLOCK_MONOTONIC, &raw mut out) };
        ok(status).expect("zx_timer_create");
        // SAFETY: the call gave us the handle.
        Timer(unsafe { Handle::from_raw(out) })
    }

    /// Sets the deadline; `TIMER_SIGNALED` is cleared and set again then.
    ///
    /// # Errors
    /// `ACCESS_DENIED`.
    pub fn set(&self, deadline: Time, slack: Duration) -> Result<(), Status> {
        // SAFETY: the call takes numbers only.
        ok(unsafe {
            sys::zx_timer_set(self.raw_handle(), deadline.into_nanos(), slack.into_nanos())
        })
    }

    /// Takes the deadline back.
    ///
    /// # Errors
    /// `ACCESS_DENIED`.
    pub fn cancel(&self) -> Result<(), Status> {
        // SAFETY: the call takes numbers only.
        ok(unsafe { sys::zx_timer_cancel(self.raw_handle()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Signals;

    #[test]
    fn a_timer_fires_once_set_and_not_once_canceled() {
        let timer = Timer::create();
        let poll = || timer.wait_handle(Signals::TIMER_SIGNALED, Time::INFINITE_PAST);
        assert_eq!(poll(), Err(Status::TIMED_OUT));
        timer.set(Time::after(Duration::from_millis(1)), Duration::ZERO).unwrap();
        assert!(timer.wait_handle(Signals::TIMER_SIGNALED, Time::INFINITE).is_ok());
        timer.set(Time::INFINITE, Duration::ZERO).unwrap();
        assert_eq!(poll(), Err(Status::TIMED_OUT));
        timer.set(Time::after(Duration::from_seconds(3600)), Duration::ZERO).unwrap();
        timer.cancel().unwrap();
        assert_eq!(poll(), Err(Status::TIMED_OUT));
    }
}
