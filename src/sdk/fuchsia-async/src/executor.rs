//! What all executors share: the port, who its packets are for, timers, tasks, and which executor a thread belongs to.

use std::cell::RefCell;
use std::future::Future;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Wake, Waker};

use crate::clock::{Clock, Time};
use crate::local::Local;
use crate::packets::{PacketReceiver, Receiver, ReceiverRegistration, Receivers};
use crate::ready::{Inbox, SharedQueue};
use crate::task::{TaskHandle, TaskRegistry};
use crate::timer::Timers;
use crate::zx;

/// The shared part of an executor. As a waker it wakes the main future of a `LocalExecutor`.
pub(crate) struct Inner {
    pub(crate) port: zx::Port,
    clock: Clock,
    pub(crate) ready: Ready,
    pub(crate) receivers: Mutex<Receivers>,
    pub(crate) timers: Timers,
    pub(crate) tasks: Mutex<TaskRegistry>,
}

/// Where what is ready waits.
pub(crate) enum Ready {
    /// With the thread of a `LocalExecutor`, in [`Local`]; here what comes from others.
    Local(Inbox),
    /// For any thread of a `SendExecutor`.
    Shared(SharedQueue),
}

impl Inner {
    pub(crate) fn new(clock: Clock, ready: Ready) -> Arc<Inner> {
        Arc::new(Inner {
            port: zx::Port::create(),
            clock,
            ready,
            receivers: Mutex::default(),
            timers: Timers::default(),
            tasks: Mutex::default(),
        })
    }

    pub(crate) fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Makes a task run on some thread of its executor.
    pub(crate) fn push(task: Arc<TaskHandle>) {
        let mut task = Some(task);
        with_current(|current| {
            let local = current.local_of(task.as_ref()?.executor())?;
            task.take().map(|task| local.ready.push(task))
        });
        // Not on its executor's thread.
        let Some(task) = task else { return };
        let inner = task.executor().clone();
        match &inner.ready {
            Ready::Local(inbox) => inbox.put(&inner.port, task),
            Ready::Shared(queue) => queue.push(&inner.port, task),
        }
    }

    fn push_main(&self) {
        let here = with_current(|current| {
            let local = current.local_of(self)?;
            local.ready.push_main();
            Some(())
        });
        if here.is_none()
            && let Ready::Local(inbox) = &self.ready
        {
            inbox.put_main(&self.port);
        }
    }

    /// Has a thread that sleeps look when the next timer is due.
    pub(crate) fn timer_changed(&self) {
        match &self.ready {
            Ready::Local(inbox) if local(self).is_none() => inbox.announce(&self.port),
            // Its thread is this one, so that it does not sleep.
            Ready::Local(_) => {}
            Ready::Shared(queue) => queue.wake_one(&self.port),
        }
    }

    /// Wakes whose timers are due.
    #[inline]
    pub(crate) fn fire_timers(&self) {
        if self.timers.next_deadline() != Time::INFINITE {
            self.fire_due_timers();
        }
    }

    #[inline(never)]
    fn fire_due_timers(&self) {
        let due = self.timers.take_due(self.clock.now());
        due.into_iter().for_each(Waker::wake);
    }

    /// Until when to sleep if nothing is ready.
    pub(crate) fn deadline(&self) -> zx::Time {
        match self.clock {
            Clock::Monotonic => self.timers.next_deadline().into_zx(),
            // Such a clock does not reach a deadline by waiting.
            Clock::Fake(_) => zx::Time::INFINITE,
        }
    }

    /// Tells whom a packet is for, unless that has gone; or says whom to wake, which is not to be done under a lock either.
    #[inline]
    pub(crate) fn dispatch(&self, packet: &zx::Packet) -> Option<Waker> {
        let mut receivers = lock(&self.receivers);
        match receivers.get(packet.key())? {
            Receiver::Wait(wait) => wait.end(),
            Receiver::Packets(receiver) => {
                let receiver = receiver.clone();
                drop(receivers);
                receiver.receive_packet(*packet);
                None
            }
        }
    }

    /// Drops every task, timer and receiver. To be called on the thread that owns the local tasks.
    pub(crate) fn close(&self) {
        match &self.ready {
            Ready::Local(inbox) => {
                if let Some(local) = local(self) {
                    local.ready.close();
                }
                inbox.close();
            }
            Ready::Shared(queue) => queue.close(),
        }
        // Futures are dropped outside the locks: what they own may call back.
        let tasks = lock(&self.tasks).close();
        for task in &tasks {
            task.drop_future();
        }
        let wakers = self.timers.clear();
        drop(wakers);
        let receivers = lock(&self.receivers).clear();
        drop(receivers);
    }
}

impl Wake for Inner {
    fn wake(self: Arc<Self>) {
        self.push_main();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.push_main();
    }
}

/// A panic in a task must not make the executor's own locks unusable: what they guard is consistent between statements.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The executor that a thread belongs to.
struct Current {
    inner: Arc<Inner>,
    local: Option<Rc<Local>>,
}

impl Current {
    /// What belongs to this thread alone, if it is that of the `LocalExecutor` that `inner` is part of.
    fn local_of(&self, inner: &Inner) -> Option<&Rc<Local>> {
        self.local.as_ref().filter(|_| std::ptr::eq(&*self.inner, inner))
    }
}

thread_local! {
    static CURRENT: RefCell<Option<Current>> = const { RefCell::new(None) };
}

/// Makes `inner` the executor of this thread until dropped.
pub(crate) struct CurrentGuard(());

impl CurrentGuard {
    /// # Panics
    /// If the thread has an executor.
    pub(crate) fn enter(inner: &Arc<Inner>, local: Option<Rc<Local>>) -> CurrentGuard {
        CURRENT.with_borrow_mut(|current| {
            assert!(current.is_none(), "there is an executor on this thread already");
            *current = Some(Current { inner: inner.clone(), local });
        });
        CurrentGuard(())
    }
}

impl Drop for CurrentGuard {
    fn drop(&mut self) {
        // `try_with`: a thread that ends may have lost the variable already.
        let _ = CURRENT.try_with(RefCell::take);
    }
}

/// Calls `f` with what this thread belongs to, if it belongs to an executor.
#[inline]
fn with_current<R>(f: impl FnOnce(&Current) -> Option<R>) -> Option<R> {
    // `try_with`: a thread that ends may have lost the variable already.
    CURRENT.try_with(|current| current.borrow().as_ref().and_then(f)).ok().flatten()
}

/// What belongs to this thread alone, if it is that of the `LocalExecutor` that `inner` is part of.
pub(crate) fn local(inner: &Inner) -> Option<Rc<Local>> {
    with_current(|current| current.local_of(inner).cloned())
}

/// A handle to an executor.
#[derive(Clone)]
pub struct EHandle {
    inner: Arc<Inner>,
}

impl EHandle {
    pub(crate) fn new(inner: Arc<Inner>) -> EHandle {
        EHandle { inner }
    }

    /// The executor of this thread.
    ///
    /// # Panics
    /// Without one.
    pub fn local() -> EHandle {
        EHandle::try_local().expect("an executor must be created on this thread first")
    }

    /// The executor of this thread, if it has one.
    pub fn try_local() -> Option<EHandle> {
        with_current(|current| Some(EHandle { inner: current.inner.clone() }))
    }

    pub(crate) fn inner(&self) -> &Arc<Inner> {
        &self.inner
    }

    /// The time on the executor's clock.
    pub fn now(&self) -> Time {
        self.inner.clock.now()
    }

    /// The port that the executor waits on.
    pub fn port(&self) -> &zx::Port {
        &self.inner.port
    }

    /// Lets `receiver` have the packets that arrive on the executor's port with the key of the registration.
    pub fn register_receiver<T: PacketReceiver>(
        &self,
        receiver: Arc<T>,
    ) -> ReceiverRegistration<T> {
        let key = lock(&self.inner.receivers).insert(Receiver::Packets(receiver.clone()));
        ReceiverRegistration::new(self.clone(), receiver, key)
    }

    pub(crate) fn deregister_receiver(&self, key: u64) {
        let receiver = lock(&self.inner.receivers).remove(key);
        drop(receiver);
    }

    /// Runs `future` on the executor, with nobody waiting for it.
    pub fn spawn_detached(&self, future: impl Future<Output = ()> + Send + 'static) {
        TaskHandle::spawn_send(&self.inner, Box::pin(future));
    }
}
