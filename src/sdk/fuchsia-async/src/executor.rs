//! What all executors share: the port, the queue of ready tasks, timers, and how a thread sleeps and is woken.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::Future;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Wake;

use crate::clock::{Clock, Time};
use crate::local::LocalTasks;
use crate::packets::{PacketReceiver, ReceiverRegistration, Receivers, WAKEUP_KEY};
use crate::task::{TaskHandle, TaskRegistry};
use crate::timer::Timers;
use crate::zx;

/// How many tasks run before the port is looked at, so that busy tasks do not keep input out.
const TASKS_PER_TURN: usize = 128;

/// Something to run.
pub(crate) enum Runnable {
    /// The future that the executor was asked to run.
    Main,
    Task(Arc<TaskHandle>),
}

/// The shared part of an executor.
pub(crate) struct Inner {
    port: zx::Port,
    clock: Clock,
    ready: Mutex<Ready>,
    sleepers: Sleepers,
    receivers: Mutex<Receivers>,
    pub(crate) timers: Mutex<Timers>,
    pub(crate) tasks: Mutex<TaskRegistry>,
}

/// What is to run.
#[derive(Default)]
struct Ready {
    queue: VecDeque<Runnable>,
    /// Nothing runs any more, or will.
    closed: bool,
}

impl Inner {
    pub(crate) fn new(clock: Clock) -> Arc<Inner> {
        Arc::new(Inner {
            port: zx::Port::create(),
            clock,
            ready: Mutex::default(),
            sleepers: Sleepers::default(),
            receivers: Mutex::default(),
            timers: Mutex::default(),
            tasks: Mutex::default(),
        })
    }

    pub(crate) fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Makes `runnable` run on some thread of the executor.
    pub(crate) fn push(&self, runnable: Runnable) {
        {
            let mut ready = lock(&self.ready);
            if ready.closed {
                return;
            }
            ready.queue.push_back(runnable);
        }
        self.wake_one();
    }

    pub(crate) fn pop(&self) -> Option<Runnable> {
        lock(&self.ready).queue.pop_front()
    }

    /// Whether nothing is ready to run.
    pub(crate) fn is_idle(&self) -> bool {
        lock(&self.ready).queue.is_empty()
    }

    /// Wakes one thread if one sleeps that has not been woken yet.
    pub(crate) fn wake_one(&self) {
        if self.sleepers.claim() {
            self.send_wakeup();
        }
    }

    /// Wakes every thread that sleeps.
    pub(crate) fn wake_all(&self) {
        while self.sleepers.claim() {
            self.send_wakeup();
        }
    }

    fn send_wakeup(&self) {
        let packet =
            zx::Packet::from_user_packet(WAKEUP_KEY, 0, zx::UserPacket::from_u8_array([0; 32]));
        // The port is ours and lives as long as we do; that its queue overflows means that threads are being woken anyway.
        let _ = self.port.queue(&packet);
    }

    /// Runs what is ready until `finished`, and sleeps in between.
    pub(crate) fn run_until(&self, finished: impl Fn() -> bool, mut run: impl FnMut(Runnable)) {
        let mut budget = TASKS_PER_TURN;
        while !finished() {
            if budget > 0
                && let Some(runnable) = self.pop()
            {
                budget -= 1;
                run(runnable);
                continue;
            }
            self.turn(&finished);
            budget = TASKS_PER_TURN;
        }
    }

    /// Fires timers, takes one packet from the port and, if there is nothing to do, waits for one.
    fn turn(&self, finished: impl Fn() -> bool) {
        let deadline = self.fire_timers();
        self.sleepers.enter();
        // Whoever pushes after this sees a sleeper, whoever pushed before is seen here.
        let idle = self.is_idle() && !finished();
        let deadline = if idle { deadline.into_zx() } else { zx::Time::INFINITE_PAST };
        let packet = self.port.wait(deadline);
        let woken = matches!(&packet, Ok(packet) if packet.key() == WAKEUP_KEY);
        self.sleepers.leave(woken);
        if let Ok(packet) = packet {
            self.dispatch(packet);
        }
    }

    /// Takes a packet that is there already.
    pub(crate) fn poll_port(&self) -> bool {
        self.fire_timers();
        match self.port.wait(zx::Time::INFINITE_PAST) {
            Ok(packet) => {
                if packet.key() == WAKEUP_KEY {
                    self.sleepers.absorb();
                }
                self.dispatch(packet);
                true
            }
            Err(_) => false,
        }
    }

    fn dispatch(&self, packet: zx::Packet) {
        let key = packet.key();
        if key == WAKEUP_KEY {
            return;
        }
        let receiver = lock(&self.receivers).get(key);
        if let Some(receiver) = receiver {
            receiver.receive_packet(packet);
        }
    }

    /// Wakes whose timers are due, and says when the next one is.
    fn fire_timers(&self) -> Time {
        let mut timers = lock(&self.timers);
        let Some(next) = timers.next_deadline() else {
            return Time::INFINITE;
        };
        let now = self.clock.now();
        if next > now {
            return match self.clock {
                Clock::Monotonic => next,
                // Such a clock does not reach a deadline by waiting.
                Clock::Fake(_) => Time::INFINITE,
            };
        }
        let due = timers.take_due(now);
        drop(timers);
        for waker in due {
            waker.wake();
        }
        Time::INFINITE_PAST
    }

    /// Drops every task, timer and receiver. To be called on the thread that owns the local tasks.
    pub(crate) fn close(&self) {
        lock(&self.ready).closed = true;
        // Futures are dropped outside the locks: what they own may call back.
        let tasks = lock(&self.tasks).close();
        for task in &tasks {
            task.drop_future();
        }
        let ready = std::mem::take(&mut lock(&self.ready).queue);
        drop(ready);
        let wakers = lock(&self.timers).clear();
        drop(wakers);
        let receivers = lock(&self.receivers).clear();
        drop(receivers);
    }
}

/// A panic in a task must not make the executor's own locks unusable: what they guard is consistent between statements.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Counts threads that sleep (low half) and wake-up packets on the way to them (high half).
#[derive(Default)]
struct Sleepers(AtomicU32);

const ONE_PACKET: u32 = 1 << 16;
const SLEEPING: u32 = ONE_PACKET - 1;

impl Sleepers {
    fn enter(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }

    fn leave(&self, woken: bool) {
        self.0.fetch_sub(if woken { 1 + ONE_PACKET } else { 1 }, Ordering::SeqCst);
    }

    /// Accounts for a packet that was taken without sleeping.
    fn absorb(&self) {
        self.0.fetch_sub(ONE_PACKET, Ordering::SeqCst);
    }

    /// Whether a packet is to be sent: some thread sleeps and there are fewer packets than such threads.
    fn claim(&self) -> bool {
        self.0
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |state| {
                (state & SLEEPING > state / ONE_PACKET).then(|| state + ONE_PACKET)
            })
            .is_ok()
    }
}

/// Wakes the main future.
pub(crate) struct MainWaker {
    inner: Arc<Inner>,
    queued: AtomicBool,
}

impl MainWaker {
    /// Queues the main future for the first time.
    pub(crate) fn new(inner: &Arc<Inner>) -> Arc<MainWaker> {
        let waker = Arc::new(MainWaker { inner: inner.clone(), queued: AtomicBool::new(false) });
        waker.wake_by_ref();
        waker
    }

    /// To be called before the main future is polled.
    pub(crate) fn taken(&self) {
        self.queued.store(false, Ordering::SeqCst);
    }
}

impl Wake for MainWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.queued.swap(true, Ordering::SeqCst) {
            self.inner.push(Runnable::Main);
        }
    }
}

/// The executor that a thread belongs to.
struct Current {
    inner: Arc<Inner>,
    locals: Option<Rc<LocalTasks>>,
}

thread_local! {
    static CURRENT: RefCell<Option<Current>> = const { RefCell::new(None) };
}

/// Makes `inner` the executor of this thread until dropped.
pub(crate) struct CurrentGuard(());

impl CurrentGuard {
    /// # Panics
    /// If the thread has an executor.
    pub(crate) fn enter(inner: &Arc<Inner>, locals: Option<Rc<LocalTasks>>) -> CurrentGuard {
        CURRENT.with_borrow_mut(|current| {
            assert!(current.is_none(), "there is an executor on this thread already");
            *current = Some(Current { inner: inner.clone(), locals });
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

/// The tasks that belong to this thread, if it runs those of `inner`.
pub(crate) fn local_tasks(inner: &Arc<Inner>) -> Option<Rc<LocalTasks>> {
    CURRENT
        .try_with(|current| {
            let current = current.borrow();
            let current = current.as_ref()?;
            Arc::ptr_eq(&current.inner, inner).then(|| current.locals.clone())?
        })
        .ok()
        .flatten()
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
        CURRENT
            .try_with(|current| {
                current.borrow().as_ref().map(|current| EHandle { inner: current.inner.clone() })
            })
            .ok()
            .flatten()
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
        let key = lock(&self.inner.receivers).insert(receiver.clone());
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
