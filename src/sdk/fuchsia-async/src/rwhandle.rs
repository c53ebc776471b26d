//! Readiness of objects that are read and written: channels, sockets, FIFOs.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Waker, ready};

use crate::executor::{EHandle, lock};
use crate::on_signals::{OnSignals, OnSignalsRef};
use crate::packets::Receiver;
use crate::zx::{self, AsHandleRef};

/// What an executor keeps of a wait for one direction of an object.
pub(crate) struct Wait {
    /// A wait is under way. Shared with the object, which looks without the executor's lock, and changed under that.
    armed: Arc<AtomicBool>,
    waker: Option<Waker>,
}

impl Wait {
    /// The wait is over; whom to tell.
    pub(crate) fn end(&mut self) -> Option<Waker> {
        self.armed.store(false, Ordering::Release);
        self.waker.take()
    }

    /// Changes whom to tell. What was known before is to be dropped without the lock.
    fn tell(&mut self, waker: &Waker) -> Option<Waker> {
        match &self.waker {
            Some(known) if known.will_wake(waker) => None,
            _ => self.waker.replace(waker.clone()),
        }
    }
}

/// One direction of an object, for which its executor keeps a [`Wait`].
struct Direction {
    executor: EHandle,
    key: u64,
    armed: Arc<AtomicBool>,
}

impl Direction {
    fn new(executor: EHandle) -> Direction {
        let armed = Arc::new(AtomicBool::new(false));
        let wait = Receiver::Wait(Wait { armed: armed.clone(), waker: None });
        let key = lock(&executor.inner().receivers).insert(wait);
        Direction { executor, key, armed }
    }

    /// Pending while a wait is under way: then the object has not become ready since somebody last tried.
    #[inline]
    fn poll_ready(&self, context: &mut Context<'_>) -> Poll<()> {
        if self.armed.load(Ordering::Acquire) { self.poll_armed(context) } else { Poll::Ready(()) }
    }

    fn poll_armed(&self, context: &mut Context<'_>) -> Poll<()> {
        let mut receivers = lock(&self.executor.inner().receivers);
        // It may have ended before the lock was taken.
        if !self.armed.load(Ordering::Relaxed) {
            return Poll::Ready(());
        }
        let known = receivers.wait(self.key).and_then(|wait| wait.tell(context.waker()));
        drop(receivers);
        drop(known);
        Poll::Pending
    }

    /// Waits for `signals` of `handle`, unless a wait is under way already.
    fn need(
        &self,
        handle: &impl AsHandleRef,
        signals: zx::Signals,
        context: &mut Context<'_>,
    ) -> Poll<Result<(), zx::Status>> {
        let mut receivers = lock(&self.executor.inner().receivers);
        // Only changed under the lock, so that two steps do no harm.
        let under_way = self.armed.load(Ordering::Relaxed);
        self.armed.store(true, Ordering::Relaxed);
        let known = receivers.wait(self.key).and_then(|wait| wait.tell(context.waker()));
        drop(receivers);
        drop(known);
        if !under_way {
            let options = zx::WaitAsyncOpts::empty();
            let wait = handle.wait_async_handle(self.executor.port(), self.key, signals, options);
            if let Err(status) = wait {
                self.end_wait();
                return Poll::Ready(Err(status));
            }
        }
        Poll::Pending
    }

    /// Forgets a wait that could not be made.
    fn end_wait(&self) {
        let mut receivers = lock(&self.executor.inner().receivers);
        self.armed.store(false, Ordering::Release);
        let waker = receivers.wait(self.key).and_then(Wait::end);
        drop(receivers);
        drop(waker);
    }

    /// Wakes who waits, though the wait goes on.
    fn wake(&self) {
        let mut receivers = lock(&self.executor.inner().receivers);
        let waker = receivers.wait(self.key).and_then(|wait| wait.waker.take());
        drop(receivers);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl Drop for Direction {
    fn drop(&mut self) {
        self.executor.deregister_receiver(self.key);
    }
}

/// How messages have come so far: one at a time, as in calls that are answered, or several.
///
/// Only guesses follow from it, so that its parts may be seen in any order.
#[derive(Default)]
struct History {
    /// Since a wait last ended.
    reads: AtomicU8,
    /// How many waits in a row have brought a single message.
    singles: AtomicU8,
}

/// So many waits in a row must have brought a single message before the next one is expected to.
const SINGLES: u8 = 4;

/// Every so many guesses one is put to the test.
const PROBE: u8 = 32;

impl History {
    fn found(&self) {
        let reads = self.reads.load(Ordering::Relaxed);
        self.reads.store(reads.saturating_add(1), Ordering::Relaxed);
    }

    fn found_nothing(&self) {
        let reads = self.reads.load(Ordering::Relaxed);
        self.reads.store(0, Ordering::Relaxed);
        match reads {
            0 => {}
            1 => self.another_single(),
            _ => self.singles.store(0, Ordering::Relaxed),
        }
    }

    fn another_single(&self) {
        let singles = self.singles.load(Ordering::Relaxed);
        self.singles.store(singles.checked_add(1).unwrap_or(SINGLES), Ordering::Relaxed);
    }

    /// Whether it is not worth while to look for another message.
    fn expects_nothing(&self) -> bool {
        let singles = self.singles.load(Ordering::Relaxed);
        if self.reads.load(Ordering::Relaxed) != 1
            || singles < SINGLES
            || singles.is_multiple_of(PROBE)
        {
            return false;
        }
        self.reads.store(0, Ordering::Relaxed);
        self.another_single();
        true
    }
}

/// A kernel object with the signals `OBJECT_READABLE`, `OBJECT_WRITABLE` and `OBJECT_PEER_CLOSED`, and what is known of them.
///
/// Reading and writing are tried first and waited for only after they failed, and while a wait is under way
/// they are not tried: an object that is ready costs one system call, a task that is polled for other reasons none.
pub struct RWHandle<T> {
    handle: T,
    read: Direction,
    history: History,
    /// Not every object is waited for in this direction.
    write: OnceLock<Direction>,
}

impl<T: AsHandleRef> RWHandle<T> {
    /// Adopts `handle` into the current executor.
    ///
    /// # Panics
    /// Without an executor on this thread.
    pub fn new(handle: T) -> Self {
        let read = Direction::new(EHandle::local());
        RWHandle { handle, read, history: History::default(), write: OnceLock::new() }
    }

    /// The object.
    pub fn get_ref(&self) -> &T {
        &self.handle
    }

    /// The object, given back. Waits for it are cancelled.
    pub fn into_inner(self) -> T {
        for direction in [Some(&self.read), self.write.get()].into_iter().flatten() {
            if direction.armed.load(Ordering::Acquire) {
                let handle = self.handle.as_handle_ref();
                // It may have ended meanwhile; then the packet finds nobody.
                let _ = direction.executor.port().cancel(&handle, direction.key);
            }
        }
        self.handle
    }

    /// Pending while it is known that a read would find nothing.
    pub fn poll_readable(&self, context: &mut Context<'_>) -> Poll<()> {
        self.read.poll_ready(context)
    }

    /// Reads one message with `read`, which says `SHOULD_WAIT` when there is none, or waits for it.
    ///
    /// Where messages come one at a time, as requests do from a client that waits for each answer, the read that would find
    /// nothing after each is left out, and the wait begun at once: it ends at once if there is something after all.
    ///
    /// # Errors
    /// Those of `read` and of [`RWHandle::need_readable`].
    pub fn poll_message<R>(
        &self,
        context: &mut Context<'_>,
        read: impl FnOnce(&T) -> Result<R, zx::Status>,
    ) -> Poll<Result<R, zx::Status>> {
        ready!(self.poll_readable(context));
        if !self.history.expects_nothing() {
            match read(&self.handle) {
                Err(zx::Status::SHOULD_WAIT) => self.history.found_nothing(),
                result => {
                    self.history.found();
                    return Poll::Ready(result);
                }
            }
        }
        match ready!(self.need_readable(context)) {
            Ok(()) => Poll::Pending,
            Err(status) => Poll::Ready(Err(status)),
        }
    }

    /// Waits for something to read after a read found nothing.
    ///
    /// # Errors
    /// Those of `zx_object_wait_async`, such as `ACCESS_DENIED` for a handle that cannot be waited on.
    pub fn need_readable(&self, context: &mut Context<'_>) -> Poll<Result<(), zx::Status>> {
        let signals = zx::Signals::OBJECT_READABLE | zx::Signals::OBJECT_PEER_CLOSED;
        self.read.need(&self.handle, signals, context)
    }

    /// As [`RWHandle::need_readable`], with further signals that end the wait.
    ///
    /// # Errors
    /// As [`RWHandle::need_readable`].
    pub fn need_readable_or(
        &self,
        more: zx::Signals,
        context: &mut Context<'_>,
    ) -> Poll<Result<(), zx::Status>> {
        let signals = zx::Signals::OBJECT_READABLE | zx::Signals::OBJECT_PEER_CLOSED | more;
        self.read.need(&self.handle, signals, context)
    }

    /// Pending while it is known that a write would not be taken.
    pub fn poll_writable(&self, context: &mut Context<'_>) -> Poll<()> {
        self.write.get().map_or(Poll::Ready(()), |write| write.poll_ready(context))
    }

    /// Waits for room after a write was not taken.
    ///
    /// # Errors
    /// As [`RWHandle::need_readable`].
    pub fn need_writable(&self, context: &mut Context<'_>) -> Poll<Result<(), zx::Status>> {
        let signals = zx::Signals::OBJECT_WRITABLE | zx::Signals::OBJECT_PEER_CLOSED;
        self.need_writable_or(signals, context)
    }

    /// As [`RWHandle::need_writable`], with further signals that end the wait.
    ///
    /// # Errors
    /// As [`RWHandle::need_readable`].
    pub fn need_writable_or(
        &self,
        more: zx::Signals,
        context: &mut Context<'_>,
    ) -> Poll<Result<(), zx::Status>> {
        let signals = zx::Signals::OBJECT_WRITABLE | zx::Signals::OBJECT_PEER_CLOSED | more;
        let write = self.write.get_or_init(|| Direction::new(self.read.executor.clone()));
        write.need(&self.handle, signals, context)
    }

    /// Has who waits for something to read poll again, as when there is another reason for it to go on.
    pub fn wake_reader(&self) {
        self.read.wake();
    }

    /// Whether the other side has gone.
    pub fn is_closed(&self) -> bool {
        let closed = zx::Signals::OBJECT_PEER_CLOSED;
        self.handle
            .wait_handle(closed, zx::Time::INFINITE_PAST)
            .is_ok_and(|signals| signals.contains(closed))
    }

    /// Completes when the other side goes.
    pub fn on_closed(&self) -> OnSignalsRef<'_> {
        OnSignals::new(self.handle.as_handle_ref(), zx::Signals::OBJECT_PEER_CLOSED)
    }
}

impl<T: std::fmt::Debug> std::fmt::Debug for RWHandle<T> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.handle.fmt(formatter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn single_messages_are_expected_once_they_are_the_rule() {
        let history = History::default();
        for _ in 0..SINGLES {
            assert!(!history.expects_nothing());
            history.found();
            assert!(!history.expects_nothing());
            history.found_nothing();
        }
        // Before the first message after a wait one always looks.
        assert!(!history.expects_nothing());
        history.found();
        assert!(history.expects_nothing());
    }

    #[test]
    fn a_guess_is_put_to_the_test_and_given_up() {
        let history = History::default();
        let mut guesses = 0;
        for _ in 0..1000 {
            history.found();
            if history.expects_nothing() {
                guesses += 1;
            } else {
                history.found_nothing();
            }
        }
        assert!((900..990).contains(&guesses), "{guesses}");
        // Two messages where one was expected, as soon as one looks.
        for _ in 0..2 * usize::from(PROBE) {
            history.found();
            if !history.expects_nothing() {
                history.found();
                history.found_nothing();
                break;
            }
        }
        history.found();
        assert!(!history.expects_nothing());
    }
}
