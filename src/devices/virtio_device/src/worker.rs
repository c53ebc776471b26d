//! The threads that a device's queues are served on.
//!
//! One port collects everything a device reacts to: the guest's bells (straight from the hypervisor, without a detour
//! through the VMM), signals of host objects, wake-ups, and requests to stop. A worker thread sleeps in that port and
//! nowhere else, so a bell costs one wake-up.
//!
//! A device is served in one or more *lanes*. A lane owns some of the queues and one [`Device`] value behind a lock;
//! there are as many threads as lanes, and any of them may serve any lane. The control side (FIDL) takes the same
//! locks to configure, start and reset, so when [`Worker::reset`] returns nothing touches guest memory any more.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use fuchsia_zircon::{self as zx, AsHandleRef as _};

use crate::error::{QueueConfigError, QueueError};
use crate::features::Features;
use crate::memory::GuestMemory;
use crate::queue::Queue;
use crate::ring::QueueConfig;

/// Bytes between the notification addresses of two queues: the transport's `notify_off_multiplier`.
const NOTIFY_STRIDE: u64 = 4;

/// Rounds of one queue before the others of its lane, and the control side, get their turn.
const ROUNDS: usize = 4;

/// Signals on the event of StartInfo by which a device talks to the transport.
///
/// The first three are Fuchsia's `EVENT_SET_QUEUE`, `EVENT_SET_CONFIG` and `EVENT_SET_INTERRUPT`. The others are
/// additions that a transport may ignore.
mod event {
    use fuchsia_zircon::Signals;

    /// Sets the queue bit of the ISR.
    pub(super) const SET_QUEUE: Signals = Signals::USER_0;
    /// Sets the configuration bit of the ISR.
    pub(super) const SET_CONFIG: Signals = Signals::USER_1;
    /// Has the transport interrupt the guest.
    pub(super) const SET_INTERRUPT: Signals = Signals::USER_2;
    /// The guest broke the protocol: the transport sets `DEVICE_NEEDS_RESET` in the device status (virtio 1.2 §2.1.2).
    pub(super) const NEEDS_RESET: Signals = Signals::USER_3;
    /// Which queue has an interrupt, modulo 4: a transport with a vector for each queue needs to know.
    pub(super) const QUEUE: [Signals; 4] =
        [Signals::USER_4, Signals::USER_5, Signals::USER_6, Signals::USER_7];
}

/// What is left to do in a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// The queue has no chain left. The device wants the driver's notification of the next one.
    Idle,
    /// Chains may be left; the device wants to be called again soon.
    More,
    /// Chains may be left but are of no use until the host does something. The device has asked for that signal and
    /// does not want the driver's notifications before.
    Blocked,
}

/// A set of queue indices below 64.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct QueueSet(u64);

impl QueueSet {
    /// No queue.
    pub const EMPTY: Self = Self(0);
    /// Every queue.
    pub const ALL: Self = Self(u64::MAX);

    /// The set of one queue; empty when the index is 64 or more.
    pub const fn of(queue: u16) -> Self {
        Self(if queue < 64 { 1 << queue } else { 0 })
    }

    /// The queues of either set.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether `queue` is in the set.
    pub const fn contains(self, queue: u16) -> bool {
        self.0 & Self::of(queue).0 != 0
    }
}

/// A kind of device, or one lane of it: what it does with its queues.
///
/// All methods are called with the lane's lock held, one at a time, from any worker thread.
pub trait Device: Send + 'static {
    /// Works on the chains of `queue`, which is configured, until there is none, for one bounded round.
    ///
    /// Called when the driver notified, and for queues that the other methods return. Chains returned to this or any
    /// other queue of the lane are signalled to the driver afterwards.
    ///
    /// # Errors
    /// The guest broke the protocol: the device is reported as needing a reset, and not called again before.
    fn process(&mut self, queue: u16, io: &Io<'_>) -> Result<Progress, QueueError>;

    /// The driver has set `DRIVER_OK` with these negotiated features; the queues are there. Returns the queues to
    /// look at.
    fn ready(&mut self, features: Features, io: &Io<'_>) -> QueueSet {
        let _ = (features, io);
        QueueSet::ALL
    }

    /// A handle given to [`Io::wait`] has one of the signals, or a [`Waker`] was used (no signals then). Returns the
    /// queues that can go on. Comes also while the device is reset and there are no queues.
    fn signaled(&mut self, token: u32, observed: zx::Signals, io: &Io<'_>) -> QueueSet {
        let _ = (token, observed, io);
        QueueSet::EMPTY
    }

    /// When [`Device::deadline_passed`] is to be called next. Asked after each of the other calls.
    fn deadline(&self) -> zx::Time {
        zx::Time::INFINITE
    }

    /// The deadline has passed. Returns the queues that can go on. As [`Device::signaled`], it may come after a reset.
    fn deadline_passed(&mut self, io: &Io<'_>) -> QueueSet {
        let _ = io;
        QueueSet::EMPTY
    }

    /// The driver has reset the device. Held chains are void and all state that the driver made is to be forgotten.
    fn reset(&mut self) {}
}

/// What a device can reach while it is being called.
#[derive(Debug, Clone, Copy)]
pub struct Io<'a> {
    queues: &'a [Option<Queue>],
    port: &'a Arc<zx::Port>,
    lane: u8,
}

impl<'a> Io<'a> {
    /// The context of lane 0, for tests that call a device themselves.
    pub fn new(queues: &'a [Option<Queue>], port: &'a Arc<zx::Port>) -> Self {
        Self { queues, port, lane: 0 }
    }

    /// A queue of this lane; none if the driver did not configure it or it belongs to another lane.
    pub fn queue(&self, index: u16) -> Option<&'a Queue> {
        self.queues.get(usize::from(index))?.as_ref()
    }

    /// Asks for one call of [`Device::signaled`] once `handle` has one of `signals`.
    ///
    /// # Errors
    /// What `zx_object_wait_async` returns.
    pub fn wait(
        &self,
        handle: &impl zx::AsHandleRef,
        signals: zx::Signals,
        token: u32,
    ) -> Result<(), zx::Status> {
        let key = Key::Signal { lane: self.lane, token }.encode();
        handle.as_handle_ref().wait_async_handle(
            self.port,
            key,
            signals,
            zx::WaitAsyncOpts::empty(),
        )
    }

    /// Something by which any thread can have [`Device::signaled`] called with `token`.
    pub fn waker(&self, token: u32) -> Waker {
        Waker { port: self.port.clone(), key: Key::Signal { lane: self.lane, token } }
    }
}

/// Has [`Device::signaled`] called from another thread.
#[derive(Debug, Clone)]
pub struct Waker {
    port: Arc<zx::Port>,
    key: Key,
}

impl Waker {
    /// Asks for one call.
    pub fn wake(&self) {
        post(&self.port, self.key);
    }
}

/// What a port packet is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Key {
    /// The guest touched the trap range.
    Bell,
    /// A queue is to be looked at.
    Kick { queue: u16 },
    /// A handle's signal or a waker of a lane.
    Signal { lane: u8, token: u32 },
    /// A worker thread is to look at its deadline again.
    Rouse,
    /// One worker thread is to end.
    Stop,
}

impl Key {
    fn encode(self) -> u64 {
        match self {
            Self::Bell => 0,
            Self::Kick { queue } => 1 << 56 | u64::from(queue),
            Self::Signal { lane, token } => 2 << 56 | u64::from(lane) << 32 | u64::from(token),
            Self::Rouse => 3 << 56,
            Self::Stop => 4 << 56,
        }
    }

    fn decode(key: u64) -> Option<Self> {
        match key >> 56 {
            0 => Some(Self::Bell),
            1 => Some(Self::Kick { queue: key as u16 }),
            2 => Some(Self::Signal { lane: (key >> 32) as u8, token: key as u32 }),
            3 => Some(Self::Rouse),
            4 => Some(Self::Stop),
            _ => None,
        }
    }
}

/// Queues a user packet. Fails only when memory is out or the port is full, and then the device is lost anyway.
fn post(port: &zx::Port, key: Key) {
    let packet =
        zx::Packet::from_user_packet(key.encode(), 0, zx::UserPacket::from_u8_array([0; 32]));
    if let Err(status) = port.queue(&packet) {
        tracing::error!(%status, ?key, "A wake-up of the device could not be queued");
    }
}

#[derive(Debug)]
struct Lane<D> {
    device: D,
    /// Indexed by queue number; those of other lanes are none.
    queues: Vec<Option<Queue>>,
    ready: bool,
}

impl<D: Device> Lane<D> {
    fn deadline(&self) -> zx::Time {
        if self.ready { self.device.deadline() } else { zx::Time::INFINITE }
    }
}

/// Where bells come from and interrupts go.
#[derive(Debug)]
pub(crate) struct Transport {
    /// First guest-physical address of the notification range.
    pub(crate) trap_addr: u64,
    /// The event of StartInfo.
    pub(crate) event: zx::Event,
}

impl Transport {
    fn signal(&self, signals: zx::Signals) {
        if let Err(status) = self.event.signal_handle(zx::Signals::NONE, signals) {
            tracing::error!(%status, ?signals, "The transport could not be signalled");
        }
    }

    fn interrupt(&self, queue: u16) {
        self.signal(event::SET_QUEUE | event::SET_INTERRUPT | event::QUEUE[usize::from(queue % 4)]);
    }

    fn needs_reset(&self) {
        self.signal(event::SET_CONFIG | event::SET_INTERRUPT | event::NEEDS_RESET);
    }
}

#[derive(Debug)]
struct Shared<D> {
    port: Arc<zx::Port>,
    transport: Transport,
    lanes: Vec<Mutex<Lane<D>>>,
}

/// A running device: its lanes and the threads that serve them. Dropping it stops the threads.
#[derive(Debug)]
pub struct Worker<D: Device> {
    shared: Arc<Shared<D>>,
    memory: Arc<GuestMemory>,
    configs: Vec<Option<QueueConfig>>,
    threads: Vec<JoinHandle<()>>,
    is_ready: bool,
    is_broken: bool,
}

/// Why a request of the control side was refused: the driver's fault, or the VMM's.
#[derive(Debug, thiserror::Error)]
enum ControlError {
    /// A queue that the device does not have.
    #[error("There is no queue {0}")]
    NoSuchQueue(u16),
    /// A queue was configured twice without a reset in between.
    #[error("Queue {0} is configured already")]
    AlreadyConfigured(u16),
    /// `ConfigureQueue` or `Ready` after `Ready` without a reset in between.
    #[error("The device is ready already")]
    AlreadyReady,
    /// The driver's queue is malformed.
    #[error("Queue {queue} cannot be used")]
    Queue {
        /// Which one.
        queue: u16,
        /// What is wrong with it.
        source: QueueConfigError,
    },
}

impl<D: Device> Worker<D> {
    /// Starts a worker with a lane, and a thread, for each of `devices`, sharing `queue_count` queues: queue `n` is
    /// served by lane `n` modulo the number of lanes.
    ///
    /// # Errors
    /// When a thread cannot be started.
    ///
    /// # Panics
    /// Without any device, or with more than 64 queues or lanes.
    pub fn start(
        devices: Vec<D>,
        queue_count: u16,
        memory: Arc<GuestMemory>,
        trap_addr: u64,
        event: zx::Event,
    ) -> std::io::Result<Self> {
        assert!(
            (1..=64).contains(&devices.len()) && queue_count <= 64,
            "1 to 64 lanes, up to 64 queues"
        );
        let lanes: Vec<_> = devices
            .into_iter()
            .map(|device| {
                let queues = (0..queue_count).map(|_| None).collect();
                Mutex::new(Lane { device, queues, ready: false })
            })
            .collect();
        let shared = Arc::new(Shared {
            port: Arc::new(zx::Port::create()),
            transport: Transport { trap_addr, event },
            lanes,
        });
        let mut worker = Self {
            memory,
            configs: vec![None; usize::from(queue_count)],
            threads: Vec::new(),
            is_ready: false,
            is_broken: false,
            shared,
        };
        for index in 0..worker.shared.lanes.len() {
            let shared = worker.shared.clone();
            let thread = std::thread::Builder::new()
                .name(format!("queues-{index}"))
                .spawn(move || shared.serve(index))?;
            worker.threads.push(thread);
        }
        Ok(worker)
    }

    /// The port that bells go to: `guest.set_trap_bell(trap.addr, trap.size, port, Worker::BELL_KEY)`.
    pub fn port(&self) -> &zx::Port {
        &self.shared.port
    }

    /// The key under which bells are expected in the port.
    pub const BELL_KEY: u64 = 0;

    /// `ConfigureQueue`: takes the driver's queue on. One that cannot be taken on breaks the device: the driver is
    /// told that it needs a reset.
    pub fn configure(&mut self, queue: u16, config: QueueConfig) {
        if let Err(error) = self.try_configure(queue, config) {
            self.refuse(&error);
        }
    }

    fn try_configure(&mut self, queue: u16, config: QueueConfig) -> Result<(), ControlError> {
        if self.is_ready {
            return Err(ControlError::AlreadyReady);
        }
        let slot =
            self.configs.get_mut(usize::from(queue)).ok_or(ControlError::NoSuchQueue(queue))?;
        if slot.is_some() {
            return Err(ControlError::AlreadyConfigured(queue));
        }
        config.validate(&self.memory).map_err(|source| ControlError::Queue { queue, source })?;
        *slot = Some(config);
        Ok(())
    }

    /// `Ready`: the driver has finished with set-up; the queues go live.
    pub fn ready(&mut self, features: Features) {
        if self.is_broken {
            return;
        }
        if let Err(error) = self.try_ready(features) {
            self.refuse(&error);
        }
    }

    fn try_ready(&mut self, features: Features) -> Result<(), ControlError> {
        if std::mem::replace(&mut self.is_ready, true) {
            return Err(ControlError::AlreadyReady);
        }
        let lanes = self.shared.lanes.len();
        for (index, lane) in self.shared.lanes.iter().enumerate() {
            let mut lane = lock(lane);
            for (queue, config) in (0u16..).zip(&self.configs) {
                let (Some(config), true) = (config, usize::from(queue) % lanes == index) else {
                    continue;
                };
                let made = Queue::new(self.memory.clone(), *config, features)
                    .map_err(|source| ControlError::Queue { queue, source })?;
                lane.queues[usize::from(queue)] = Some(made);
            }
            lane.ready = true;
            self.shared.run(index, &mut lane, |device, io| device.ready(features, io));
            post(&self.shared.port, Key::Rouse);
        }
        Ok(())
    }

    fn refuse(&mut self, error: &ControlError) {
        tracing::warn!(
            error = error as &dyn std::error::Error,
            "The driver's set-up was refused; the device needs a reset"
        );
        self.is_broken = true;
        for lane in &self.shared.lanes {
            lock(lane).ready = false;
        }
        self.shared.transport.needs_reset();
    }

    /// Resets the device: when this returns, it has let go of all queues.
    pub fn reset(&mut self) {
        for lane in &self.shared.lanes {
            let mut lane = lock(lane);
            lane.ready = false;
            lane.queues.iter_mut().for_each(|queue| *queue = None);
            lane.device.reset();
        }
        self.configs.iter_mut().for_each(|config| *config = None);
        self.is_ready = false;
        self.is_broken = false;
    }

    /// `NotifyQueue`: has `queue` looked at as if the driver had rung its bell.
    pub fn notify(&self, queue: u16) {
        post(&self.shared.port, Key::Kick { queue });
    }

    /// Calls `f` with the device of the first lane between two rounds of work, then works on the queues it returns.
    pub fn with_device<R>(&self, f: impl FnOnce(&mut D, &Io<'_>) -> (R, QueueSet)) -> R {
        let mut lane = lock(&self.shared.lanes[0]);
        let Lane { device, queues, ready } = &mut *lane;
        let (result, touched) = f(device, &Io { queues, port: &self.shared.port, lane: 0 });
        if *ready {
            self.shared.work(0, &mut lane, touched);
            post(&self.shared.port, Key::Rouse);
        }
        result
    }
}

impl<D: Device> Drop for Worker<D> {
    fn drop(&mut self) {
        for _ in &self.threads {
            post(&self.shared.port, Key::Stop);
        }
        for thread in self.threads.drain(..) {
            // A worker that panics has ended the process already: see `AbortOnPanic`.
            let _ = thread.join();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<D: Device> Shared<D> {
    /// A worker thread: until told to stop, waits for a packet and acts on it.
    fn serve(&self, index: usize) {
        let _guard = AbortOnPanic;
        loop {
            let deadline = lock(&self.lanes[index]).deadline();
            let packet = match self.port.wait(deadline) {
                Ok(packet) => packet,
                Err(zx::Status::TIMED_OUT) => {
                    self.lane(index, D::deadline_passed);
                    continue;
                }
                Err(status) => {
                    tracing::error!(%status, "The device's port is gone");
                    return;
                }
            };
            match (Key::decode(packet.key()), packet.contents()) {
                (Some(Key::Bell), zx::PacketContents::GuestBell(bell)) => {
                    let offset = bell.addr.wrapping_sub(self.transport.trap_addr);
                    // What is beyond the last queue is not for anyone.
                    if let Ok(queue) = u16::try_from(offset / NOTIFY_STRIDE) {
                        self.kick(queue);
                    }
                }
                (Some(Key::Kick { queue }), _) => self.kick(queue),
                (Some(Key::Signal { lane, token }), contents) => {
                    let observed = match contents {
                        zx::PacketContents::SignalOne(signal) => signal.observed(),
                        _ => zx::Signals::NONE,
                    };
                    self.lane(usize::from(lane), |device, io| device.signaled(token, observed, io));
                }
                (Some(Key::Rouse), _) => {}
                (Some(Key::Stop), _) => return,
                (Some(Key::Bell) | None, _) => {
                    tracing::warn!(key = packet.key(), "An unexpected packet");
                }
            }
        }
    }

    fn kick(&self, queue: u16) {
        self.lane(usize::from(queue) % self.lanes.len(), |_, _| QueueSet::of(queue));
    }

    /// Calls `f` on the device of a lane and works on the queues it returns, if the lane is ready.
    fn lane(&self, index: usize, f: impl FnOnce(&mut D, &Io<'_>) -> QueueSet) {
        let Some(lane) = self.lanes.get(index) else { return };
        let mut lane = lock(lane);
        self.run(index, &mut lane, f);
    }

    fn run(&self, index: usize, lane: &mut Lane<D>, f: impl FnOnce(&mut D, &Io<'_>) -> QueueSet) {
        let touched =
            f(&mut lane.device, &Io { queues: &lane.queues, port: &self.port, lane: index as u8 });
        if lane.ready {
            self.work(index, lane, touched);
        }
    }

    fn work(&self, index: usize, lane: &mut Lane<D>, touched: QueueSet) {
        let Lane { device, queues, ready } = lane;
        let io = Io { queues, port: &self.port, lane: index as u8 };
        let mut broken = None;
        for (number, queue) in (0u16..).zip(queues.iter()) {
            let (Some(queue), true) = (queue, touched.contains(number)) else { continue };
            match self.rounds(device, number, queue, &io) {
                Ok(()) => {}
                Err(error) => broken = Some((number, error)),
            }
        }
        for (number, queue) in (0u16..).zip(queues.iter()) {
            if queue.as_ref().is_some_and(Queue::take_interrupt) {
                self.transport.interrupt(number);
            }
        }
        if let Some((queue, error)) = broken {
            tracing::warn!(
                queue,
                error = &error as &dyn std::error::Error,
                "The driver broke the queue protocol; the device needs a reset"
            );
            *ready = false;
            self.transport.needs_reset();
        }
    }

    /// Works on one queue until it is empty and the driver knows that it has to notify again, or the device cannot
    /// go on, or others are due.
    fn rounds(
        &self,
        device: &mut D,
        number: u16,
        queue: &Queue,
        io: &Io<'_>,
    ) -> Result<(), QueueError> {
        for _ in 0..ROUNDS {
            queue.disable_notifications();
            match device.process(number, io)? {
                Progress::Idle if !queue.enable_notifications() => return Ok(()),
                Progress::Blocked => return Ok(()),
                Progress::Idle | Progress::More => {
                    // The driver may be waiting for what is done already.
                    if queue.take_interrupt() {
                        self.transport.interrupt(number);
                    }
                }
            }
        }
        post(&self.port, Key::Kick { queue: number });
        Ok(())
    }
}

/// Ends the process when a worker thread panics: a device that answers FIDL but no longer its guest would be worse.
struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::process::abort();
        }
    }
}
