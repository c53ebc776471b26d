//! The connections that belong together, so that they can be ended together.

use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

use fuchsia_async as fasync;
use fuchsia_zircon as zx;
use futures::future::{AbortHandle, Abortable};

use crate::directory::Directory;

/// A set of tasks, each of which serves one connection.
#[derive(Clone, Default)]
pub struct ExecutionScope(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    tasks: HashMap<u64, AbortHandle>,
    numbers: u64,
    closed: bool,
    waiting: Vec<Waker>,
    /// The directories that clients name by a token, by the koid of its event.
    tokens: HashMap<zx::Koid, Arc<dyn Directory>>,
}

impl ExecutionScope {
    /// A scope without tasks.
    pub fn new() -> ExecutionScope {
        ExecutionScope::default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `future` on the current executor until it ends or the scope is shut down. Drops it at once if that has happened.
    ///
    /// # Panics
    /// Without an executor on this thread.
    pub fn spawn(&self, future: impl Future<Output = ()> + Send + 'static) {
        let (abort, registration) = AbortHandle::new_pair();
        let mut state = self.state();
        if state.closed {
            return;
        }
        state.numbers += 1;
        let ended = Ended { scope: self.clone(), number: state.numbers };
        let number = state.numbers;
        state.tasks.insert(number, abort);
        drop(state);
        let future = Abortable::new(future, registration);
        fasync::Task::spawn(async move {
            let _ended = ended;
            // That it was aborted is no news to who did it.
            let _ = future.await;
        })
        .detach();
    }

    /// Ends all tasks, and lets no more begin.
    pub fn shutdown(&self) {
        let mut state = self.state();
        state.closed = true;
        for abort in state.tasks.values() {
            abort.abort();
        }
    }

    /// How many tasks there are.
    pub fn len(&self) -> usize {
        self.state().tasks.len()
    }

    /// Whether there are no tasks.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Ready when there are no tasks, and otherwise wakes the task of `context` when the last ends.
    pub fn poll_empty(&self, context: &mut std::task::Context<'_>) -> Poll<()> {
        let mut state = self.state();
        if state.tasks.is_empty() {
            return Poll::Ready(());
        }
        if !state.waiting.iter().any(|waker| waker.will_wake(context.waker())) {
            state.waiting.push(context.waker().clone());
        }
        Poll::Pending
    }

    /// Lets a client name `directory` by a token.
    pub(crate) fn keep_token(&self, koid: zx::Koid, directory: Arc<dyn Directory>) {
        self.state().tokens.insert(koid, directory);
    }

    pub(crate) fn forget_token(&self, koid: zx::Koid) {
        let directory = self.state().tokens.remove(&koid);
        drop(directory);
    }

    pub(crate) fn directory_of(&self, koid: zx::Koid) -> Option<Arc<dyn Directory>> {
        self.state().tokens.get(&koid).cloned()
    }

    /// Waits until there are no tasks.
    pub async fn wait(&self) {
        poll_fn(|context| self.poll_empty(context)).await;
    }
}

/// Takes a task out of its scope when it ends, however that happens.
struct Ended {
    scope: ExecutionScope,
    number: u64,
}

impl Drop for Ended {
    fn drop(&mut self) {
        let mut state = self.scope.state();
        state.tasks.remove(&self.number);
        if state.tasks.is_empty() {
            let waiting = std::mem::take(&mut state.waiting);
            drop(state);
            for waker in waiting {
                waker.wake();
            }
        }
    }
}
