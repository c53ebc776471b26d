use crate::{Status, ok, sys};
use std::ops::{Add, AddAssign, Div, Mul, Neg, Sub, SubAssign};
use std::time;

/// A span of monotonic time in nanoseconds, negative ones included.
#[derive(Debug, Default, Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Duration(sys::zx_duration_t);

/// A point of the monotonic clock, in nanoseconds since the system's start.
#[derive(Debug, Default, Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Time(sys::zx_time_t);

/// The name that newer Fuchsia has for [`Time`].
pub type MonotonicInstant = Time;
/// The name that newer Fuchsia has for [`Duration`].
pub type MonotonicDuration = Duration;

impl Duration {
    /// No time at all.
    pub const ZERO: Duration = Duration(0);
    /// Longer than any other.
    pub const INFINITE: Duration = Duration(i64::MAX);
    /// Shorter than any other.
    pub const INFINITE_PAST: Duration = Duration(i64::MIN);

    /// So many nanoseconds.
    #[must_use]
    pub const fn from_nanos(nanos: i64) -> Self {
        Self(nanos)
    }

    /// So many microseconds; saturates.
    #[must_use]
    pub const fn from_micros(micros: i64) -> Self {
        Self(micros.saturating_mul(1_000))
    }

    /// So many milliseconds; saturates.
    #[must_use]
    pub const fn from_millis(millis: i64) -> Self {
        Self(millis.saturating_mul(1_000_000))
    }

    /// So many seconds; saturates.
    #[must_use]
    pub const fn from_seconds(seconds: i64) -> Self {
        Self(seconds.saturating_mul(1_000_000_000))
    }

    /// So many minutes; saturates.
    #[must_use]
    pub const fn from_minutes(minutes: i64) -> Self {
        Self(minutes.saturating_mul(60_000_000_000))
    }

    /// The span in nanoseconds.
    #[must_use]
    pub const fn into_nanos(self) -> i64 {
        self.0
    }

    /// The span in whole microseconds.
    #[must_use]
    pub const fn into_micros(self) -> i64 {
        self.0 / 1_000
    }

    /// The span in whole milliseconds.
    #[must_use]
    pub const fn into_millis(self) -> i64 {
        self.0 / 1_000_000
    }

    /// The span in whole seconds.
    #[must_use]
    pub const fn into_seconds(self) -> i64 {
        self.0 / 1_000_000_000
    }

    /// The span in seconds.
    #[must_use]
    pub const fn into_seconds_f64(self) -> f64 {
        self.0 as f64 / 1e9
    }

    /// Sleeps this long.
    pub fn sleep(self) {
        Time::after(self).sleep();
    }
}

impl Time {
    /// A deadline that never comes.
    pub const INFINITE: Time = Time(sys::ZX_TIME_INFINITE);
    /// A deadline that is always over.
    pub const INFINITE_PAST: Time = Time(sys::ZX_TIME_INFINITE_PAST);
    /// The clock's zero.
    pub const ZERO: Time = Time(0);

    /// What the monotonic clock says now.
    #[must_use]
    pub fn get_monotonic() -> Self {
        // SAFETY: the call has no arguments and cannot fail.
        Self(unsafe { sys::zx_clock_get_monotonic() })
    }

    /// What the monotonic clock says now, by the name of newer Fuchsia.
    #[must_use]
    pub fn get() -> Self {
        Self::get_monotonic()
    }

    /// The point so far from now; saturates.
    #[must_use]
    pub fn after(duration: Duration) -> Self {
        Self(Self::get_monotonic().0.saturating_add(duration.0))
    }

    /// The point with this number of nanoseconds.
    #[must_use]
    pub const fn from_nanos(nanos: i64) -> Self {
        Self(nanos)
    }

    /// The nanoseconds since the clock's zero.
    #[must_use]
    pub const fn into_nanos(self) -> i64 {
        self.0
    }

    /// Sleeps until this point.
    pub fn sleep(self) {
        // SAFETY: the call takes a number only.
        let status = unsafe { sys::zx_nanosleep(self.0) };
        debug_assert_eq!(ok(status), Ok::<(), Status>(()));
    }
}

impl From<time::Duration> for Duration {
    fn from(duration: time::Duration) -> Self {
        Self(i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX))
    }
}

impl Add for Duration {
    type Output = Duration;
    fn add(self, other: Duration) -> Duration {
        Duration(self.0.saturating_add(other.0))
    }
}

impl Sub for Duration {
    type Output = Duration;
    fn sub(self, other: Duration) -> Duration {
        Duration(self.0.saturating_sub(other.0))
    }
}

impl Neg for Duration {
    type Output = Duration;
    fn neg(self) -> Duration {
        Duration(self.0.saturating_neg())
    }
}

impl Mul<i64> for Duration {
    type Output = Duration;
    fn mul(self, factor: i64) -> Duration {
        Duration(self.0.saturating_mul(factor))
    }
}

impl Div<i64> for Duration {
    type Output = Duration;
    fn div(self, divisor: i64) -> Duration {
        Duration(self.0 / divisor)
    }
}

impl AddAssign for Duration {
    fn add_assign(&mut self, other: Duration) {
        *self = *self + other;
    }
}

impl SubAssign for Duration {
    fn sub_assign(&mut self, other: Duration) {
        *self = *self - other;
    }
}

impl Add<Duration> for Time {
    type Output = Time;
    fn add(self, duration: Duration) -> Time {
        Time(self.0.saturating_add(duration.0))
    }
}

impl Sub<Duration> for Time {
    type Output = Time;
    fn sub(self, duration: Duration) -> Time {
        Time(self.0.saturating_sub(duration.0))
    }
}

impl Sub for Time {
    type Output = Duration;
    fn sub(self, other: Time) -> Duration {
        Duration(self.0.saturating_sub(other.0))
    }
}

impl AddAssign<Duration> for Time {
    fn add_assign(&mut self, duration: Duration) {
        *self = *self + duration;
    }
}

impl SubAssign<Duration> for Time {
    fn sub_assign(&mut self, duration: Duration) {
        *self = *self - duration;
    }
}

/// Durations from integer literals: `5.seconds()`.
pub trait DurationNum: Sized {
    /// So many nanoseconds.
    fn nanos(self) -> Duration;
    /// So many microseconds.
    fn micros(self) -> Duration;
    /// So many milliseconds.
    fn millis(self) -> Duration;
    /// So many seconds.
    fn seconds(self) -> Duration;
}

impl DurationNum for i64 {
    fn nanos(self) -> Duration {
        Duration::from_nanos(self)
    }
    fn micros(self) -> Duration {
        Duration::from_micros(self)
    }
    fn millis(self) -> Duration {
        Duration::from_millis(self)
    }
    fn seconds(self) -> Duration {
        Duration::from_seconds(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arithmetic_saturates() {
        assert_eq!(Time::INFINITE + Duration::from_seconds(1), Time::INFINITE);
        assert_eq!(Duration::from_seconds(i64::MAX), Duration::INFINITE);
        assert_eq!((Time::from_nanos(7) - Time::from_nanos(3)).into_nanos(), 4);
        assert_eq!(2.seconds(), Duration::from_millis(2000));
    }
}
