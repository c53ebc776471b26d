//! The executor of several threads.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use crate::clock::Clock;
use crate::executor::{CurrentGuard, EHandle, Inner, Runnable, lock};
use crate::task::TaskHandle;

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
        let inner = Inner::new(Clock::Monotonic);
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
                inner.wake_all();
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

/// Runs tasks until `finished`. A panic finishes the other threads, too, before it goes on.
fn work(inner: &Arc<Inner>, finished: &AtomicBool) {
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        inner.run_until(
            || finished.load(Ordering::SeqCst),
            |runnable| {
                if let Runnable::Task(task) = runnable {
                    task.run();
                }
            },
        );
    }));
    if let Err(panic) = outcome {
        finished.store(true, Ordering::SeqCst);
        inner.wake_all();
        resume_unwind(panic);
    }
}

impl Drop for SendExecutor {
    fn drop(&mut self) {
        self.inner.close();
        self.current = None;
    }
}
