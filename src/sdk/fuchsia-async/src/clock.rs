//! The executor's clock: the monotonic one, or one that a test sets.

use std::ops::{Add, AddAssign, Sub, SubAssign};
use std::sync::atomic::{AtomicI64, Ordering};

use crate::EHandle;
use crate::zx;

/// A point in time on the clock of the current executor.
///
/// It differs from [`zx::Time`] only in that [`Time::now`] follows a [`crate::TestExecutor`] with fake time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(zx::Time);

impl Time {
    /// Never, for a deadline.
    pub const INFINITE: Time = Time(zx::Time::INFINITE);
    /// Has passed, always.
    pub const INFINITE_PAST: Time = Time(zx::Time::INFINITE_PAST);

    /// The time on the clock of the current executor.
    ///
    /// # Panics
    /// Without an executor on this thread.
    pub fn now() -> Time {
        EHandle::local().now()
    }

    /// `duration` from now; [`Time::INFINITE`] if that is beyond the clock's range.
    pub fn after(duration: zx::Duration) -> Time {
        Time::now() + duration
    }

    /// The same point as a kernel time.
    pub const fn into_zx(self) -> zx::Time {
        self.0
    }

    /// The point that a kernel time names.
    pub const fn from_zx(time: zx::Time) -> Time {
        Time(time)
    }

    /// Nanoseconds on the monotonic clock.
    pub fn into_nanos(self) -> i64 {
        self.0.into_nanos()
    }

    /// A point given in nanoseconds on the monotonic clock.
    pub fn from_nanos(nanos: i64) -> Time {
        Time(zx::Time::from_nanos(nanos))
    }
}

impl From<zx::Time> for Time {
    fn from(time: zx::Time) -> Time {
        Time(time)
    }
}

impl From<Time> for zx::Time {
    fn from(time: Time) -> zx::Time {
        time.0
    }
}

impl Add<zx::Duration> for Time {
    type Output = Time;
    fn add(self, duration: zx::Duration) -> Time {
        Time::from_nanos(self.into_nanos().saturating_add(duration.into_nanos()))
    }
}

impl Sub<zx::Duration> for Time {
    type Output = Time;
    fn sub(self, duration: zx::Duration) -> Time {
        Time::from_nanos(self.into_nanos().saturating_sub(duration.into_nanos()))
    }
}

impl Sub<Time> for Time {
    type Output = zx::Duration;
    fn sub(self, other: Time) -> zx::Duration {
        zx::Duration::from_nanos(self.into_nanos().saturating_sub(other.into_nanos()))
    }
}

impl AddAssign<zx::Duration> for Time {
    fn add_assign(&mut self, duration: zx::Duration) {
        *self = *self + duration;
    }
}

impl SubAssign<zx::Duration> for Time {
    fn sub_assign(&mut self, duration: zx::Duration) {
        *self = *self - duration;
    }
}

/// What a timer can be set to: a point in time, or a time from now.
pub trait WakeupTime {
    /// The point at which to wake up.
    fn into_time(self) -> Time;
}

impl WakeupTime for Time {
    fn into_time(self) -> Time {
        self
    }
}

impl WakeupTime for zx::Time {
    fn into_time(self) -> Time {
        Time(self)
    }
}

impl WakeupTime for zx::Duration {
    fn into_time(self) -> Time {
        Time::after(self)
    }
}

impl WakeupTime for std::time::Duration {
    fn into_time(self) -> Time {
        let nanos = i64::try_from(self.as_nanos()).unwrap_or(i64::MAX);
        Time::after(zx::Duration::from_nanos(nanos))
    }
}

/// Where an executor's time comes from.
pub(crate) enum Clock {
    Monotonic,
    /// Nanoseconds; moves only when told to.
    Fake(AtomicI64),
}

impl Clock {
    pub(crate) fn now(&self) -> Time {
        match self {
            Clock::Monotonic => Time(zx::Time::get_monotonic()),
            Clock::Fake(nanos) => Time::from_nanos(nanos.load(Ordering::SeqCst)),
        }
    }
}
