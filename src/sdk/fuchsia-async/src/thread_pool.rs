//! Threads for what can only block.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use futures::channel::oneshot;

use crate::executor::lock;

type Job = Box<dyn FnOnce() + Send>;

/// As many calls may block at a time; more wait their turn.
const MAX_THREADS: usize = 64;

/// A thread that has been idle for so long ends.
const IDLE: Duration = Duration::from_secs(2);

static POOL: Pool = Pool {
    state: Mutex::new(State { jobs: VecDeque::new(), threads: 0, idle: 0 }),
    available: Condvar::new(),
};

struct Pool {
    state: Mutex<State>,
    available: Condvar,
}

struct State {
    jobs: VecDeque<Job>,
    threads: usize,
    idle: usize,
}

impl Pool {
    fn submit(&'static self, job: Job) {
        let mut state = lock(&self.state);
        state.jobs.push_back(job);
        let spawn = state.jobs.len() > state.idle && state.threads < MAX_THREADS;
        if spawn {
            state.threads += 1;
        }
        drop(state);
        if !spawn {
            self.available.notify_one();
            return;
        }
        let spawned = thread::Builder::new().name("blocking".into()).spawn(|| self.work());
        if spawned.is_err() {
            let mut state = lock(&self.state);
            state.threads -= 1;
            if state.threads > 0 {
                return;
            }
            // Nobody else will: better to block than to hang.
            let jobs = std::mem::take(&mut state.jobs);
            drop(state);
            for job in jobs {
                job();
            }
        }
    }

    fn work(&self) {
        let mut state = lock(&self.state);
        loop {
            if let Some(job) = state.jobs.pop_front() {
                drop(state);
                job();
                state = lock(&self.state);
                continue;
            }
            state.idle += 1;
            let (next, waited) = self
                .available
                .wait_timeout_while(state, IDLE, |state| state.jobs.is_empty())
                .unwrap_or_else(PoisonError::into_inner);
            state = next;
            state.idle -= 1;
            if waited.timed_out() && state.jobs.is_empty() {
                state.threads -= 1;
                return;
            }
        }
    }
}

/// Runs `function`, which may block, on a thread of its own, and completes with its result. It begins at once and is not
/// stopped when the future is dropped.
///
/// # Panics
/// The future panics if `function` does.
pub fn unblock<T: Send + 'static>(
    function: impl FnOnce() -> T + Send + 'static,
) -> impl Future<Output = T> + Send + 'static {
    let (sender, receiver) = oneshot::channel();
    POOL.submit(Box::new(move || {
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(function));
        // The caller may have lost interest.
        let _ = sender.send(result);
    }));
    async move {
        match receiver.await {
            Ok(Ok(result)) => result,
            Ok(Err(panic)) => std::panic::resume_unwind(panic),
            Err(oneshot::Canceled) => unreachable!("a job always sends its result"),
        }
    }
}
