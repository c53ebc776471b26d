//! Timers: points on the executor's clock that can be awaited.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Mutex;
use std::sync::atomic::{AtomicI64, Ordering};
use std::task::{Context, Poll, Waker};

use futures::stream::{FusedStream, Stream};
use pin_project_lite::pin_project;

use crate::clock::{Time, WakeupTime};
use crate::executor::{EHandle, lock};
use crate::zx;

/// The timers of an executor that somebody waits for.
pub(crate) struct Timers {
    waiting: Mutex<Waiting>,
    /// When the first of them is due, in nanoseconds, so that a turn without a timer takes no lock. Changed under the lock, and
    /// in one order with the count of threads that sleep: who sets a timer sees a sleeper, or the sleeper sees the timer.
    next: AtomicI64,
}

/// In the order in which they are due. The number keeps apart those that are due at the same time.
#[derive(Default)]
struct Waiting {
    wakers: BTreeMap<(Time, u64), Waker>,
    numbers: u64,
}

impl Default for Timers {
    fn default() -> Self {
        Timers { waiting: Mutex::default(), next: AtomicI64::new(Time::INFINITE.into_nanos()) }
    }
}

impl Timers {
    /// When the first is due; never, if there is none.
    pub(crate) fn next_deadline(&self) -> Time {
        Time::from_nanos(self.next.load(Ordering::SeqCst))
    }

    /// When the first is due.
    pub(crate) fn next(&self) -> Option<Time> {
        lock(&self.waiting).next()
    }

    /// Takes out all that are due at `now`.
    pub(crate) fn take_due(&self, now: Time) -> Vec<Waker> {
        if self.next_deadline() > now {
            return Vec::new();
        }
        let mut due = Vec::new();
        let mut waiting = lock(&self.waiting);
        while let Some(entry) = waiting.wakers.first_entry() {
            if entry.key().0 > now {
                break;
            }
            due.push(entry.remove());
        }
        self.changed(&waiting);
        due
    }

    pub(crate) fn clear(&self) -> Vec<Waker> {
        let mut waiting = lock(&self.waiting);
        let wakers = std::mem::take(&mut waiting.wakers);
        self.changed(&waiting);
        wakers.into_values().collect()
    }

    /// Adds a timer; its number, and whether it is the first to be due.
    fn insert(&self, deadline: Time, waker: Waker) -> (u64, bool) {
        let mut waiting = lock(&self.waiting);
        let first = waiting.next().is_none_or(|next| deadline < next);
        waiting.numbers += 1;
        let number = waiting.numbers;
        waiting.wakers.insert((deadline, number), waker);
        self.changed(&waiting);
        (number, first)
    }

    /// Changes whom a timer wakes. False if it has fired.
    fn update(&self, deadline: Time, number: u64, waker: &Waker) -> bool {
        let mut waiting = lock(&self.waiting);
        let known = waiting.wakers.get_mut(&(deadline, number));
        known.map(|known| known.clone_from(waker)).is_some()
    }

    fn remove(&self, deadline: Time, number: u64) -> Option<Waker> {
        let mut waiting = lock(&self.waiting);
        let waker = waiting.wakers.remove(&(deadline, number));
        self.changed(&waiting);
        waker
    }

    fn changed(&self, waiting: &Waiting) {
        let next = waiting.next().unwrap_or(Time::INFINITE);
        self.next.store(next.into_nanos(), Ordering::SeqCst);
    }
}

impl Waiting {
    fn next(&self) -> Option<Time> {
        self.wakers.first_key_value().map(|((deadline, _), _)| *deadline)
    }
}

/// Completes at a point in time.
#[must_use = "a timer does nothing unless awaited"]
pub struct Timer {
    executor: EHandle,
    deadline: Time,
    /// Its number among the executor's timers once it is there.
    number: Option<u64>,
}

impl Timer {
    /// A timer for a point in time, or a time from now.
    ///
    /// # Panics
    /// Without an executor on this thread.
    pub fn new(time: impl WakeupTime) -> Timer {
        Timer { executor: EHandle::local(), deadline: time.into_time(), number: None }
    }

    /// Sets the timer anew.
    pub fn reset(&mut self, time: impl WakeupTime) {
        self.remove();
        self.deadline = time.into_time();
    }

    fn remove(&mut self) {
        if let Some(number) = self.number.take() {
            let waker = self.executor.inner().timers.remove(self.deadline, number);
            drop(waker);
        }
    }
}

impl Future for Timer {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let timer = &mut *self;
        let timers = &timer.executor.inner().timers;
        if let Some(number) = timer.number {
            if timers.update(timer.deadline, number, context.waker()) {
                return Poll::Pending;
            }
            timer.number = None;
            // It fired; from now on it is over by the clock.
            return Poll::Ready(());
        }
        if timer.deadline <= timer.executor.now() {
            return Poll::Ready(());
        }
        let (number, first) = timers.insert(timer.deadline, context.waker().clone());
        timer.number = Some(number);
        if first {
            // A thread that sleeps does so until the deadline that was the earliest before.
            timer.executor.inner().timer_changed();
        }
        Poll::Pending
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        self.remove();
    }
}

/// Yields at regular times. Those that pass while nobody looks are made up for.
#[must_use = "an interval does nothing unless polled"]
pub struct Interval {
    timer: Timer,
    next: Time,
    period: zx::Duration,
}

impl Interval {
    /// An interval that yields after `period` for the first time.
    ///
    /// # Panics
    /// Without an executor on this thread.
    pub fn new(period: zx::Duration) -> Interval {
        let next = Time::after(period);
        Interval { timer: Timer::new(next), next, period }
    }
}

impl Stream for Interval {
    type Item = ();

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<()>> {
        let interval = &mut *self;
        std::task::ready!(Pin::new(&mut interval.timer).poll(context));
        interval.next += interval.period;
        interval.timer.reset(interval.next);
        Poll::Ready(Some(()))
    }
}

impl FusedStream for Interval {
    fn is_terminated(&self) -> bool {
        false
    }
}

/// Gives any future a time limit.
pub trait TimeoutExt: Future + Sized {
    /// The future's output, or that of `on_timeout` if it has none by `time`.
    fn on_timeout<F: FnOnce() -> Self::Output>(
        self,
        time: impl WakeupTime,
        on_timeout: F,
    ) -> OnTimeout<Self, F> {
        OnTimeout { future: self, timer: Timer::new(time), on_timeout: Some(on_timeout) }
    }
}

impl<F: Future> TimeoutExt for F {}

pin_project! {
    /// See [`TimeoutExt::on_timeout`].
    #[must_use = "futures do nothing unless polled"]
    pub struct OnTimeout<F, T> {
        #[pin]
        future: F,
        timer: Timer,
        on_timeout: Option<T>,
    }
}

impl<F: Future, T: FnOnce() -> F::Output> Future for OnTimeout<F, T> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        if let Poll::Ready(output) = this.future.poll(context) {
            return Poll::Ready(output);
        }
        std::task::ready!(Pin::new(this.timer).poll(context));
        let on_timeout = this.on_timeout.take().expect("a finished future is not polled again");
        Poll::Ready(on_timeout())
    }
}
