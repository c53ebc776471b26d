//! Tasks: futures that run on an executor by themselves.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};

use crate::EHandle;
use crate::executor::{Inner, Runnable, local_tasks, lock};

pub(crate) type LocalFuture = Pin<Box<dyn Future<Output = ()>>>;
type SendFuture = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Where a task is. `WOKEN` is running and woken meanwhile, so it has to run again.
const IDLE: u8 = 0;
const QUEUED: u8 = 1;
const RUNNING: u8 = 2;
const WOKEN: u8 = 3;
const DONE: u8 = 4;

enum TaskFuture {
    Send(SendFuture),
    /// Kept by the thread that made it, under this number.
    Local(usize),
    Gone,
}

/// A task, as its executor and its wakers see it.
pub(crate) struct TaskHandle {
    inner: Arc<Inner>,
    state: AtomicU8,
    cancelled: AtomicBool,
    future: Mutex<TaskFuture>,
    /// Where the executor keeps it.
    slot: usize,
}

impl TaskHandle {
    /// Makes a task of `future`. `None` if the executor has been closed.
    pub(crate) fn spawn_send(inner: &Arc<Inner>, future: SendFuture) -> Option<Arc<TaskHandle>> {
        TaskHandle::spawn(inner, TaskFuture::Send(future))
    }

    fn spawn_local(inner: &Arc<Inner>, future: LocalFuture) -> Option<Arc<TaskHandle>> {
        let locals = local_tasks(inner)
            .expect("a local task needs a LocalExecutor on the thread that makes it");
        let number = locals.insert(future);
        TaskHandle::spawn(inner, TaskFuture::Local(number))
    }

    fn spawn(inner: &Arc<Inner>, future: TaskFuture) -> Option<Arc<TaskHandle>> {
        let task = lock(&inner.tasks).insert_with(|slot| {
            Arc::new(TaskHandle {
                inner: inner.clone(),
                state: AtomicU8::new(QUEUED),
                cancelled: AtomicBool::new(false),
                future: Mutex::new(future),
                slot,
            })
        })?;
        inner.push(Runnable::Task(task.clone()));
        Some(task)
    }

    /// Polls the future once. Called by one thread at a time: who took the task from the queue.
    pub(crate) fn run(self: &Arc<Self>) {
        if self.state.swap(RUNNING, Ordering::AcqRel) == DONE {
            self.state.store(DONE, Ordering::Release);
            return;
        }
        if self.cancelled.load(Ordering::Acquire) || self.poll().is_ready() {
            self.state.store(DONE, Ordering::Release);
            self.drop_future();
            let task = lock(&self.inner.tasks).remove(self.slot);
            drop(task);
            return;
        }
        let idle = self.state.compare_exchange(RUNNING, IDLE, Ordering::AcqRel, Ordering::Acquire);
        if idle == Err(WOKEN) {
            self.state.store(QUEUED, Ordering::Release);
            self.inner.push(Runnable::Task(self.clone()));
        }
    }

    fn poll(self: &Arc<Self>) -> Poll<()> {
        let waker = Waker::from(self.clone());
        let mut context = Context::from_waker(&waker);
        let number = match &mut *lock(&self.future) {
            TaskFuture::Send(future) => return future.as_mut().poll(&mut context),
            TaskFuture::Local(number) => *number,
            TaskFuture::Gone => return Poll::Ready(()),
        };
        match local_tasks(&self.inner) {
            Some(locals) => locals.poll(number, &mut context),
            // Only the thread of a LocalExecutor runs its queue.
            None => Poll::Pending,
        }
    }

    /// Drops the future, if it is not being polled further up the stack.
    pub(crate) fn drop_future(&self) {
        let future = std::mem::replace(&mut *lock(&self.future), TaskFuture::Gone);
        if let TaskFuture::Local(number) = future
            && let Some(locals) = local_tasks(&self.inner)
        {
            locals.remove(number);
        }
    }

    /// Has the executor drop the future in its next turn.
    fn cancel(self: &Arc<Self>) {
        self.cancelled.store(true, Ordering::Release);
        self.wake_by_ref();
    }
}

impl Wake for TaskHandle {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let woken =
            self.state.fetch_update(Ordering::AcqRel, Ordering::Acquire, |state| match state {
                IDLE => Some(QUEUED),
                RUNNING => Some(WOKEN),
                _ => None,
            });
        if woken == Ok(IDLE) {
            self.inner.push(Runnable::Task(self.clone()));
        }
    }
}

/// All tasks of an executor, so that they can be dropped with it.
#[derive(Default)]
pub(crate) struct TaskRegistry {
    slots: Vec<Option<Arc<TaskHandle>>>,
    free: Vec<usize>,
    closed: bool,
}

impl TaskRegistry {
    fn insert_with(
        &mut self,
        make: impl FnOnce(usize) -> Arc<TaskHandle>,
    ) -> Option<Arc<TaskHandle>> {
        if self.closed {
            return None;
        }
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        let task = make(slot);
        self.slots[slot] = Some(task.clone());
        Some(task)
    }

    fn remove(&mut self, slot: usize) -> Option<Arc<TaskHandle>> {
        if self.closed {
            return None;
        }
        self.free.push(slot);
        self.slots[slot].take()
    }

    /// Takes all tasks out, and no more in.
    pub(crate) fn close(&mut self) -> Vec<Arc<TaskHandle>> {
        self.closed = true;
        self.slots.drain(..).flatten().collect()
    }
}

/// What a task has come to.
enum Outcome<T> {
    Pending(Option<Waker>),
    Finished(T),
    /// It was cancelled, its executor has gone, or the result has been taken.
    Gone,
}

struct Join<T>(Mutex<Outcome<T>>);

impl<T> Join<T> {
    fn finish(&self, outcome: Outcome<T>) {
        let mut guard = lock(&self.0);
        if let Outcome::Pending(waker) = &mut *guard {
            let waker = waker.take();
            *guard = outcome;
            drop(guard);
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }

    /// The result, or `None` if there will be none.
    fn poll(&self, context: &mut Context<'_>) -> Poll<Option<T>> {
        let mut guard = lock(&self.0);
        if let Outcome::Pending(waker) = &mut *guard {
            match waker {
                Some(waker) => waker.clone_from(context.waker()),
                None => *waker = Some(context.waker().clone()),
            }
            return Poll::Pending;
        }
        match std::mem::replace(&mut *guard, Outcome::Gone) {
            Outcome::Finished(result) => Poll::Ready(Some(result)),
            _ => Poll::Ready(None),
        }
    }
}

/// Tells who waits that nothing will come, when a future is dropped unfinished.
struct Unfinished<T>(Arc<Join<T>>);

impl<T> Drop for Unfinished<T> {
    fn drop(&mut self) {
        self.0.finish(Outcome::Gone);
    }
}

async fn finishing<T>(future: impl Future<Output = T>, unfinished: Unfinished<T>) {
    let result = future.await;
    unfinished.0.finish(Outcome::Finished(result));
}

/// A future that runs by itself on an executor. Awaiting it gives its result; dropping it cancels it, in the executor's
/// next turn, unless it was [detached](Task::detach).
#[must_use = "dropping a task cancels it; see detach()"]
pub struct Task<T> {
    handle: Option<Arc<TaskHandle>>,
    join: Arc<Join<T>>,
}

impl<T: 'static> Task<T> {
    /// Runs `future` on the current executor, on any of its threads.
    ///
    /// # Panics
    /// Without an executor on this thread.
    pub fn spawn(future: impl Future<Output = T> + Send + 'static) -> Task<T>
    where
        T: Send,
    {
        let join = Arc::new(Join(Mutex::new(Outcome::Pending(None))));
        let future = finishing(future, Unfinished(join.clone()));
        let handle = TaskHandle::spawn_send(EHandle::local().inner(), Box::pin(future));
        Task { handle, join }
    }

    /// Runs `future` on the current executor, on this thread.
    ///
    /// # Panics
    /// Without a [`crate::LocalExecutor`] or [`crate::TestExecutor`] on this thread.
    pub fn local(future: impl Future<Output = T> + 'static) -> Task<T> {
        let join = Arc::new(Join(Mutex::new(Outcome::Pending(None))));
        let future = finishing(future, Unfinished(join.clone()));
        let handle = TaskHandle::spawn_local(EHandle::local().inner(), Box::pin(future));
        Task { handle, join }
    }
}

impl<T> Task<T> {
    /// Lets the task run to its end with nobody waiting for it.
    pub fn detach(mut self) {
        self.handle = None;
    }

    /// Cancels the task and waits until its future has been dropped; the result, if it had finished before.
    pub fn cancel(mut self) -> impl Future<Output = Option<T>> {
        if let Some(handle) = self.handle.take() {
            handle.cancel();
        }
        futures::future::poll_fn(move |context| self.join.poll(context))
    }
}

impl<T> Future for Task<T> {
    type Output = T;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        match self.join.poll(context) {
            Poll::Ready(Some(result)) => Poll::Ready(result),
            // Its executor is going, and we with it.
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        }
    }
}

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        if let Some(handle) = self.handle.take() {
            handle.cancel();
        }
    }
}

impl<T> std::fmt::Debug for Task<T> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Task").finish_non_exhaustive()
    }
}
