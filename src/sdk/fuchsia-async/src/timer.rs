//! Timers: points on the executor's clock that can be awaited.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use futures::stream::{FusedStream, Stream};
use pin_project_lite::pin_project;

use crate::clock::{Time, WakeupTime};
use crate::executor::{EHandle, lock};
use crate::zx;

/// The timers of an executor that somebody waits for, in the order in which they are due. The number keeps apart those
/// that are due at the same time.
#[derive(Default)]
pub(crate) struct Timers {
    waiting: BTreeMap<(Time, u64), Waker>,
    numbers: u64,
}

impl Timers {
    pub(crate) fn next_deadline(&self) -> Option<Time> {
        self.waiting.first_key_value().map(|((deadline, _), _)| *deadline)
    }

    /// Takes out all that are due at `now`.
    pub(crate) fn take_due(&mut self, now: Time) -> Vec<Waker> {
        let mut due = Vec::new();
        while let Some(entry) = self.waiting.first_entry() {
            if entry.key().0 > now {
                break;
            }
            due.push(entry.remove());
        }
        due
    }

    pub(crate) fn clear(&mut self) -> Vec<Waker> {
        std::mem::take(&mut self.waiting).into_values().collect()
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
            let waker =
                lock(&self.executor.inner().timers).waiting.remove(&(self.deadline, number));
            drop(waker);
        }
    }
}

impl Future for Timer {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let timer = &mut *self;
        if let Some(number) = timer.number {
            let mut timers = lock(&timer.executor.inner().timers);
            return match timers.waiting.get_mut(&(timer.deadline, number)) {
                Some(waker) => {
                    waker.clone_from(context.waker());
                    Poll::Pending
                }
                None => {
                    drop(timers);
                    timer.number = None;
                    // It fired; from now on it is over by the clock.
                    Poll::Ready(())
                }
            };
        }
        if timer.deadline <= timer.executor.now() {
            return Poll::Ready(());
        }
        let mut timers = lock(&timer.executor.inner().timers);
        let earliest = timers.next_deadline().is_none_or(|next| timer.deadline < next);
        timers.numbers += 1;
        let number = timers.numbers;
        timers.waiting.insert((timer.deadline, number), context.waker().clone());
        drop(timers);
        timer.number = Some(number);
        if earliest {
            // A thread that sleeps does so until the deadline that was the earliest before.
            timer.executor.inner().wake_one();
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
