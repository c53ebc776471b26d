//! The executor of one thread.

use std::cell::RefCell;
use std::future::Future;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use slab::Slab;

use crate::clock::Clock;
use crate::executor::{CurrentGuard, EHandle, Inner, Ready};
use crate::packets::WAKEUP_KEY;
use crate::ready::{Inbox, LocalQueue, Runnable, TASKS_PER_TURN};
use crate::task::LocalFuture;
use crate::zx;

/// What belongs to the thread of a [`LocalExecutor`] alone.
#[derive(Default)]
pub(crate) struct Local {
    pub(crate) ready: LocalQueue,
    pub(crate) tasks: LocalTasks,
}

/// Futures that cannot leave the thread, each with its task's waker. The tasks, which can leave, know them by number.
#[derive(Default)]
pub(crate) struct LocalTasks(RefCell<Slab<Option<LocalTask>>>);

struct LocalTask {
    future: LocalFuture,
    waker: Waker,
}

impl LocalTasks {
    /// A number for a future.
    pub(crate) fn reserve(&self) -> usize {
        self.0.borrow_mut().insert(None)
    }

    /// Puts a future where a number was reserved for it.
    pub(crate) fn fill(&self, number: usize, future: LocalFuture, waker: Waker) {
        self.put(number, LocalTask { future, waker });
    }

    fn put(&self, number: usize, task: LocalTask) {
        if let Some(slot) = self.0.borrow_mut().get_mut(number) {
            *slot = Some(task);
        }
    }

    fn take(&self, number: usize) -> Option<LocalTask> {
        self.0.borrow_mut().get_mut(number)?.take()
    }

    /// Polls a future, which is out of its slot meanwhile, so that it can make and drop others.
    pub(crate) fn poll(&self, number: usize) -> Poll<()> {
        let Some(mut task) = self.take(number) else {
            return Poll::Ready(());
        };
        let result = task.future.as_mut().poll(&mut Context::from_waker(&task.waker));
        self.put(number, task);
        result
    }

    pub(crate) fn remove(&self, number: usize) {
        let task = self.0.borrow_mut().try_remove(number);
        drop(task);
    }
}

/// An executor that runs everything on the thread that made it.
pub struct LocalExecutor {
    pub(crate) inner: Arc<Inner>,
    /// Also keeps the executor on its thread.
    pub(crate) local: Rc<Local>,
    /// Wakes the main future.
    pub(crate) waker: Waker,
    current: Option<CurrentGuard>,
}

impl LocalExecutor {
    /// Makes the executor of this thread.
    ///
    /// # Panics
    /// If the thread has one.
    #[expect(clippy::new_without_default, reason = "what panics the second time is no default")]
    pub fn new() -> LocalExecutor {
        LocalExecutor::with_clock(Clock::Monotonic)
    }

    pub(crate) fn with_clock(clock: Clock) -> LocalExecutor {
        let inner = Inner::new(clock, Ready::Local(Inbox::default()));
        let local = Rc::new(Local::default());
        let current = CurrentGuard::enter(&inner, Some(local.clone()));
        let waker = Waker::from(inner.clone());
        LocalExecutor { inner, local, waker, current: Some(current) }
    }

    /// Runs `future` to its end, and every task meanwhile.
    pub fn run_singlethreaded<F: Future>(&mut self, future: F) -> F::Output {
        let mut future = pin!(future);
        let mut context = Context::from_waker(&self.waker);
        self.local.ready.push_main();
        loop {
            for _ in 0..TASKS_PER_TURN {
                match self.local.ready.pop() {
                    Some(Runnable::Main) => {
                        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
                            return output;
                        }
                    }
                    Some(Runnable::Task(task)) => task.run(Some(&self.local)),
                    None => break,
                }
            }
            self.turn();
        }
    }

    /// Fires timers, takes one packet from the port and, if there is nothing to do, waits for one.
    fn turn(&self) {
        self.inner.fire_timers();
        let idle = self.local.ready.is_empty();
        self.take_packet(if idle { self.inner.deadline() } else { zx::Time::INFINITE_PAST });
    }

    /// Fires timers and takes a packet that is there already.
    pub(crate) fn poll_port(&self) -> bool {
        self.inner.fire_timers();
        self.take_packet(zx::Time::INFINITE_PAST)
    }

    fn take_packet(&self, deadline: zx::Time) -> bool {
        // Not moved out, as it is large.
        let Ok(packet) = &self.inner.port.wait(deadline) else {
            return false;
        };
        let Ready::Local(inbox) = &self.inner.ready else {
            return true;
        };
        let announced = packet.key() == WAKEUP_KEY;
        if !announced && let Some(waker) = self.inner.dispatch(packet) {
            // The most frequent one is known here.
            if waker.will_wake(&self.waker) {
                self.local.ready.push_main();
            } else {
                waker.wake();
            }
        }
        if announced || inbox.is_unannounced() {
            inbox.empty_into(&self.local.ready);
        }
        true
    }

    /// A handle to the executor.
    pub fn ehandle(&self) -> EHandle {
        EHandle::new(self.inner.clone())
    }
}

impl Drop for LocalExecutor {
    fn drop(&mut self) {
        // Still the thread's executor while futures are dropped, since what they own may look for it.
        self.inner.close();
        self.current = None;
    }
}
