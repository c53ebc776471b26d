//! The executor of tests.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicI64, Ordering};
use std::task::{Context, Poll, Waker};

use crate::clock::{Clock, Time};
use crate::executor::EHandle;
use crate::local::LocalExecutor;
use crate::ready::Runnable;

/// A [`LocalExecutor`] that can also run just as far as it gets, and whose clock a test can set.
pub struct TestExecutor {
    local: LocalExecutor,
}

impl TestExecutor {
    /// Makes the executor of this thread, with the monotonic clock.
    ///
    /// # Panics
    /// If the thread has one.
    #[expect(clippy::new_without_default, reason = "what panics the second time is no default")]
    pub fn new() -> TestExecutor {
        TestExecutor { local: LocalExecutor::new() }
    }

    /// Makes the executor of this thread, with a clock that stands still at 0 until set.
    ///
    /// # Panics
    /// If the thread has one.
    pub fn new_with_fake_time() -> TestExecutor {
        TestExecutor { local: LocalExecutor::with_clock(Clock::Fake(AtomicI64::new(0))) }
    }

    /// The time on the executor's clock.
    pub fn now(&self) -> Time {
        self.local.inner.clock().now()
    }

    /// Sets the clock. Timers that are thereby due fire when the executor runs next.
    ///
    /// # Panics
    /// Unless the executor was made with fake time.
    pub fn set_fake_time(&self, time: Time) {
        match self.local.inner.clock() {
            Clock::Fake(nanos) => nanos.store(time.into_nanos(), Ordering::SeqCst),
            Clock::Monotonic => panic!("the executor was made without fake time"),
        }
    }

    /// Wakes the tasks whose timers are due; whether there were any.
    pub fn wake_expired_timers(&mut self) -> bool {
        let now = self.now();
        let due = self.local.inner.timers.take_due(now);
        let any = !due.is_empty();
        due.into_iter().for_each(Waker::wake);
        any
    }

    /// When the next timer is due.
    pub fn next_timer(&self) -> Option<Time> {
        self.local.inner.timers.next()
    }

    /// Runs `future` to its end, and every task meanwhile.
    pub fn run_singlethreaded<F: Future>(&mut self, future: F) -> F::Output {
        self.local.run_singlethreaded(future)
    }

    /// Polls `future`, and runs every task, until none of them can go on.
    pub fn run_until_stalled<F: Future + Unpin + ?Sized>(
        &mut self,
        future: &mut F,
    ) -> Poll<F::Output> {
        let executor = &self.local;
        let ready = &executor.local.ready;
        let mut context = Context::from_waker(&executor.waker);
        ready.push_main();
        loop {
            match ready.pop() {
                Some(Runnable::Task(task)) => task.run(Some(&executor.local)),
                Some(Runnable::Main) => {
                    let output = Pin::new(&mut *future).poll(&mut context);
                    if output.is_ready() {
                        return output;
                    }
                }
                // A timer that fires leaves no packet, only something to run.
                None if executor.poll_port() => {}
                None if ready.is_empty() => return Poll::Pending,
                None => {}
            }
        }
    }

    /// A handle to the executor.
    pub fn ehandle(&self) -> EHandle {
        self.local.ehandle()
    }
}
