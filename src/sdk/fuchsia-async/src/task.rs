//! Tasks: futures that run on an executor by themselves.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};

use slab::Slab;

use crate::EHandle;
use crate::executor::{Inner, local, lock};
use crate::local::Local;

pub(crate) type LocalFuture = Pin<Box<dyn Future<Output = ()>>>;
type SendFuture = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Where a task is. `WOKEN` is running and woken meanwhile, so it has to run again.
const IDLE: u8 = 0;
const QUEUED: u8 = 1;
const RUNNING: u8 = 2;
const WOKEN: u8 = 3;
const DONE: u8 = 4;

/// What a task runs.
enum Body {
    /// With the task's waker, so that it need not be made for each poll. A circle of references, which whoever finishes the task
    /// breaks; and as long as its executor knows the task somebody will.
    Send(Mutex<Option<(SendFuture, Waker)>>),
    /// Kept by the thread that made it, under this number.
    Local(usize),
}

/// A task, as its executor and its wakers see it.
pub(crate) struct TaskHandle {
    inner: Arc<Inner>,
    state: AtomicU8,
    cancelled: AtomicBool,
    body: Body,
    /// Where the executor keeps it.
    slot: usize,
}

impl TaskHandle {
    /// Makes a task of `future`. `None` if the executor has been closed.
    pub(crate) fn spawn_send(inner: &Arc<Inner>, future: SendFuture) -> Option<Arc<TaskHandle>> {
        let task = lock(&inner.tasks).insert_with(|slot| {
            let task = TaskHandle::new(inner, Body::Send(Mutex::default()), slot);
            if let Body::Send(body) = &task.body {
                *lock(body) = Some((future, Waker::from(task.clone())));
            }
            task
        })?;
        Inner::push(task.clone());
        Some(task)
    }

    fn spawn_local(inner: &Arc<Inner>, future: LocalFuture) -> Option<Arc<TaskHandle>> {
        let tasks = &local(inner)
            .expect("a local task needs a LocalExecutor on the thread that makes it")
            .tasks;
        let number = tasks.reserve();
        let made = lock(&inner.tasks)
            .insert_with(|slot| TaskHandle::new(inner, Body::Local(number), slot));
        let Some(task) = made else {
            tasks.remove(number);
            return None;
        };
        tasks.fill(number, future, Waker::from(task.clone()));
        Inner::push(task.clone());
        Some(task)
    }

    fn new(inner: &Arc<Inner>, body: Body, slot: usize) -> Arc<TaskHandle> {
        let (state, cancelled) = (AtomicU8::new(QUEUED), AtomicBool::new(false));
        Arc::new(TaskHandle { inner: inner.clone(), state, cancelled, body, slot })
    }

    pub(crate) fn executor(&self) -> &Arc<Inner> {
        &self.inner
    }

    /// Polls the future once. Called by one thread at a time: who took the task from the queue. `local` is what belongs to the
    /// thread, if it is that of a `LocalExecutor`.
    pub(crate) fn run(self: Arc<Self>, local: Option<&Local>) {
        // Whoever wakes the task from here on sees that it runs; what he did before, if he saw it queued, is seen by the poll.
        if self.state.swap(RUNNING, Ordering::AcqRel) == DONE {
            self.state.store(DONE, Ordering::Release);
            return;
        }
        if self.cancelled.load(Ordering::Acquire) || self.poll(local).is_ready() {
            self.drop_future();
            let task = lock(&self.inner.tasks).remove(self.slot);
            drop(task);
            return;
        }
        let idle = self.state.compare_exchange(RUNNING, IDLE, Ordering::AcqRel, Ordering::Acquire);
        if idle == Err(WOKEN) {
            // Not a store, which would hide from the next poll what another one who has woken it meanwhile did before.
            self.state.swap(QUEUED, Ordering::AcqRel);
            Inner::push(self);
        }
    }

    fn poll(&self, local: Option<&Local>) -> Poll<()> {
        match (&self.body, local) {
            (Body::Send(body), _) => match &mut *lock(body) {
                Some((future, waker)) => future.as_mut().poll(&mut Context::from_waker(waker)),
                None => Poll::Ready(()),
            },
            (Body::Local(number), Some(local)) => local.tasks.poll(*number),
            // Only the thread of a LocalExecutor runs its queue.
            (Body::Local(_), None) => Poll::Pending,
        }
    }

    /// Finishes the task, once. Not to be called while it is polled.
    pub(crate) fn drop_future(&self) {
        if self.state.swap(DONE, Ordering::AcqRel) == DONE {
            return;
        }
        match &self.body {
            Body::Send(body) => {
                let body = lock(body).take();
                drop(body);
            }
            Body::Local(number) => {
                if let Some(local) = local(&self.inner) {
                    local.tasks.remove(*number);
                }
            }
        }
    }

    /// Has the executor drop the future in its next turn.
    fn cancel(self: &Arc<Self>) {
        self.cancelled.store(true, Ordering::Release);
        self.wake_by_ref();
    }

    /// Notes that the task is woken; whether it is to be queued therefor.
    ///
    /// Where it is queued already, too, this changes the state, by the same value: whoever takes the task from the queue then
    /// sees all that happened before.
    fn is_to_be_queued(&self) -> bool {
        let woken =
            self.state.fetch_update(Ordering::AcqRel, Ordering::Acquire, |state| match state {
                IDLE | QUEUED => Some(QUEUED),
                RUNNING | WOKEN => Some(WOKEN),
                _ => None,
            });
        woken == Ok(IDLE)
    }
}

impl Wake for TaskHandle {
    fn wake(self: Arc<Self>) {
        if self.is_to_be_queued() {
            Inner::push(self);
        }
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.is_to_be_queued() {
            Inner::push(self.clone());
        }
    }
}

/// All tasks of an executor, so that they can be dropped with it.
#[derive(Default)]
pub(crate) struct TaskRegistry {
    tasks: Slab<Arc<TaskHandle>>,
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
        let entry = self.tasks.vacant_entry();
        let task = make(entry.key());
        entry.insert(task.clone());
        Some(task)
    }

    fn remove(&mut self, slot: usize) -> Option<Arc<TaskHandle>> {
        self.tasks.try_remove(slot)
    }

    /// Takes all tasks out, and no more in.
    pub(crate) fn close(&mut self) -> Vec<Arc<TaskHandle>> {
        self.closed = true;
        self.tasks.drain().collect()
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
