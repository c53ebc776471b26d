//! What is ready to run, and how a thread that sleeps learns of it.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use crate::executor::lock;
use crate::packets::WAKEUP_KEY;
use crate::task::TaskHandle;
use crate::zx;

/// How many tasks run before the port is looked at, so that busy tasks do not keep input out.
pub(crate) const TASKS_PER_TURN: usize = 128;

/// Something for the thread of a `LocalExecutor` to run.
pub(crate) enum Runnable {
    /// The future that the executor was asked to run.
    Main,
    Task(Arc<TaskHandle>),
}

/// What is ready on the thread of a `LocalExecutor`. Only that thread has it, so that it takes no lock.
#[derive(Default)]
pub(crate) struct LocalQueue {
    queue: RefCell<VecDeque<Runnable>>,
    /// `Main` is in the queue.
    main: Cell<bool>,
    /// Nothing runs any more, or will.
    closed: Cell<bool>,
}

impl LocalQueue {
    pub(crate) fn push(&self, task: Arc<TaskHandle>) {
        if !self.closed.get() {
            self.queue.borrow_mut().push_back(Runnable::Task(task));
        }
    }

    pub(crate) fn push_main(&self) {
        if !self.closed.get() && !self.main.replace(true) {
            self.queue.borrow_mut().push_back(Runnable::Main);
        }
    }

    pub(crate) fn pop(&self) -> Option<Runnable> {
        let runnable = self.queue.borrow_mut().pop_front();
        if let Some(Runnable::Main) = runnable {
            self.main.set(false);
        }
        runnable
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.queue.borrow().is_empty()
    }

    pub(crate) fn close(&self) {
        self.closed.set(true);
        drop(self.queue.take());
    }
}

/// What other threads have made ready for the thread of a `LocalExecutor`.
///
/// Who finds it empty announces what he puts in with a packet, and there is no other packet until the thread has come for
/// all. So the thread need neither look in here before it sleeps nor say that it sleeps: the port that it waits on keeps
/// both, and a task that only its own thread wakes costs no atomic operation.
#[derive(Default)]
pub(crate) struct Inbox {
    contents: Mutex<Contents>,
    /// There was no room for the packet, so that the thread has to look without it.
    unannounced: AtomicBool,
}

#[derive(Default)]
struct Contents {
    tasks: Vec<Arc<TaskHandle>>,
    main: bool,
    announced: bool,
    closed: bool,
}

impl Inbox {
    pub(crate) fn put(&self, port: &zx::Port, task: Arc<TaskHandle>) {
        self.add(port, |contents| contents.tasks.push(task));
    }

    pub(crate) fn put_main(&self, port: &zx::Port) {
        self.add(port, |contents| contents.main = true);
    }

    /// Has the thread go round once, if only to see a new timer.
    pub(crate) fn announce(&self, port: &zx::Port) {
        self.add(port, |_| {});
    }

    fn add(&self, port: &zx::Port, add: impl FnOnce(&mut Contents)) {
        {
            let mut contents = lock(&self.contents);
            if contents.closed {
                return;
            }
            add(&mut contents);
            if std::mem::replace(&mut contents.announced, true) {
                return;
            }
        }
        if send_wakeup(port).is_err() {
            self.unannounced.store(true, Ordering::Release);
            // Either there is room now, or the port was full after the store: then a packet is still to be taken, and whoever
            // takes it sees the store, as the port puts the two in this order.
            let _ = send_wakeup(port);
        }
    }

    /// Whether to look in here after some packet that does not say so.
    pub(crate) fn is_unannounced(&self) -> bool {
        self.unannounced.load(Ordering::Acquire)
    }

    /// Moves all there is to the thread's own queue.
    pub(crate) fn empty_into(&self, queue: &LocalQueue) {
        let (tasks, main) = {
            let mut contents = lock(&self.contents);
            self.unannounced.store(false, Ordering::Relaxed);
            contents.announced = false;
            (std::mem::take(&mut contents.tasks), std::mem::take(&mut contents.main))
        };
        if main {
            queue.push_main();
        }
        tasks.into_iter().for_each(|task| queue.push(task));
    }

    pub(crate) fn close(&self) {
        let tasks = {
            let mut contents = lock(&self.contents);
            contents.closed = true;
            std::mem::take(&mut contents.tasks)
        };
        drop(tasks);
    }
}

/// What is ready to run on the threads of a `SendExecutor`.
#[derive(Default)]
pub(crate) struct SharedQueue {
    ready: Mutex<SharedReady>,
    pub(crate) sleepers: Sleepers,
}

#[derive(Default)]
struct SharedReady {
    queue: VecDeque<Arc<TaskHandle>>,
    /// Nothing runs any more, or will.
    closed: bool,
}

impl SharedQueue {
    pub(crate) fn push(&self, port: &zx::Port, task: Arc<TaskHandle>) {
        {
            let mut ready = lock(&self.ready);
            if ready.closed {
                return;
            }
            ready.queue.push_back(task);
        }
        self.wake_one(port);
    }

    pub(crate) fn pop(&self) -> Option<Arc<TaskHandle>> {
        lock(&self.ready).queue.pop_front()
    }

    pub(crate) fn is_empty(&self) -> bool {
        lock(&self.ready).queue.is_empty()
    }

    /// Wakes one thread if one sleeps that has not been woken yet.
    pub(crate) fn wake_one(&self, port: &zx::Port) {
        if self.sleepers.claim() {
            // That the port is full means that threads are being woken anyway.
            let _ = send_wakeup(port);
        }
    }

    /// Wakes every thread that sleeps.
    pub(crate) fn wake_all(&self, port: &zx::Port) {
        while self.sleepers.claim() {
            let _ = send_wakeup(port);
        }
    }

    pub(crate) fn close(&self) {
        let queue = {
            let mut ready = lock(&self.ready);
            ready.closed = true;
            std::mem::take(&mut ready.queue)
        };
        drop(queue);
    }
}

fn send_wakeup(port: &zx::Port) -> Result<(), zx::Status> {
    port.queue(&zx::Packet::from_user_packet(WAKEUP_KEY, 0, zx::UserPacket::from_u8_array([0; 32])))
}

/// Counts threads that sleep (low half) and wake-up packets on the way to them (high half).
#[derive(Default)]
pub(crate) struct Sleepers(AtomicU32);

const ONE_PACKET: u32 = 1 << 16;
const SLEEPING: u32 = ONE_PACKET - 1;

impl Sleepers {
    pub(crate) fn enter(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }

    pub(crate) fn leave(&self, woken: bool) {
        self.0.fetch_sub(if woken { 1 + ONE_PACKET } else { 1 }, Ordering::SeqCst);
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
