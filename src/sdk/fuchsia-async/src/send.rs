//! The executor of several threads.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use crate::clock::Clock;
use crate::executor::{CurrentGuard, EHandle, Inner, Ready, lock};
use crate::packets::WAKEUP_KEY;
use crate::ready::{SharedQueue, TASKS_PER_TURN};
use crate::task::TaskHandle;
use crate::zx;

/// An executor that runs tasks on several threads, one of which is the caller's.
pub struct SendExecutor {
    inner: Arc<Inner>,
    threads: usize,
    current: Option<CurrentGuard>,
}

impl SendExecutor {
    /// Makes the executor of this thread and of `threads - 1` more that exist while it runs. At least one.
    ///
    /// # Panics
    /// If the thread has an executor.
    pub fn new(threads: usize) -> SendExecutor {
        let inner = Inner::new(Clock::Monotonic, Ready::Shared(SharedQueue::default()));
        let current = CurrentGuard::enter(&inner, None);
        SendExecutor { inner, threads: threads.max(1), current: Some(current) }
    }

    /// Runs `future` to its end, and every task meanwhile. A task that panics ends that, with its panic.
    pub fn run<F>(&mut self, future: F) -> F::Output
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let finished = Arc::new(AtomicBool::new(false));
        let result = Arc::new(Mutex::new(None));
        let main = {
            let (finished, result, inner) = (finished.clone(), result.clone(), self.inner.clone());
            async move {
                let output = future.await;
                *lock(&result) = Some(output);
                finished.store(true, Ordering::SeqCst);
                wake_all(&inner);
            }
        };
        TaskHandle::spawn_send(&self.inner, Box::pin(main));
        let inner = &self.inner;
        let finished = &*finished;
        thread::scope(|scope| {
            let workers: Vec<_> = (1..self.threads)
                .map(|_| {
                    scope.spawn(move || {
                        let _current = CurrentGuard::enter(inner, None);
                        work(inner, finished);
                    })
                })
                .collect();
            work(inner, finished);
            for worker in workers {
                if let Err(panic) = worker.join() {
                    resume_unwind(panic);
                }
            }
        });
        lock(&result).take().expect("the main task has stored its result")
    }

    /// A handle to the executor.
    pub fn ehandle(&self) -> EHandle {
        EHandle::new(self.inner.clone())
    }
}

/// Has every thread look whether it is finished.
fn wake_all(inner: &Inner) {
    if let Ready::Shared(queue) = &inner.ready {
        queue.wake_all(&inner.port);
    }
}

/// Runs tasks until `finished`. A panic finishes the other threads, too, before it goes on.
fn work(inner: &Inner, finished: &AtomicBool) {
    let Ready::Shared(queue) = &inner.ready else { return };
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let mut budget = TASKS_PER_TURN;
        while !finished.load(Ordering::SeqCst) {
            if budget > 0
                && let Some(task) = queue.pop()
            {
                budget -= 1;
                task.run(None);
                continue;
            }
            turn(inner, queue, finished);
            budget = TASKS_PER_TURN;
        }
    }));
    if let Err(panic) = outcome {
        finished.store(true, Ordering::SeqCst);
        wake_all(inner);
        resume_unwind(panic);
    }
}

/// Fires timers, takes one packet from the port and, if there is nothing to do, waits for one.
fn turn(inner: &Inner, queue: &SharedQueue, finished: &AtomicBool) {
    inner.fire_timers();
    queue.sleepers.enter();
    // Whoever makes something ready, or sets a timer, after this sees a sleeper; whoever did before is seen here.
    let idle = queue.is_empty() && !finished.load(Ordering::SeqCst);
    let packet = inner.port.wait(if idle { inner.deadline() } else { zx::Time::INFINITE_PAST });
    let woken = matches!(&packet, Ok(packet) if packet.key() == WAKEUP_KEY);
    queue.sleepers.leave(woken);
    if let Ok(packet) = packet
        && !woken
        && let Some(waker) = inner.dispatch(&packet)
    {
        waker.wake();
    }
}

impl Drop for SendExecutor {
    fn drop(&mut self) {
        self.inner.close();
        self.current = None;
    }
}
