//! Kernel objects as one process sees them: identity, kind, signals and who waits for them here.

use crate::channel::Channel;
use crate::event::{Event, Snapshot};
use crate::fifo::Fifo;
use crate::guest::{Guest, Vcpu};
use crate::port::{Number, Port};
use crate::resource::Resource;
use crate::socket::Socket;
use crate::status::{Result, WRONG_TYPE};
use crate::task::{Job, Process, Thread};
use crate::timer::Timer;
use crate::vmar::Vmar;
use crate::vmo::Vmo;
use fuchsia_zircon_types::*;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fd::{BorrowedFd, OwnedFd};
use rustix::time::Timespec;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// What an object is.
pub(crate) enum Kind {
    Channel(Channel),
    Event(Event),
    Fifo(Fifo),
    Guest(Guest),
    Job(Job),
    Port(Port),
    Process(Process),
    Resource(Resource),
    Socket(Socket),
    Thread(Thread),
    Timer(Timer),
    Vcpu(Vcpu),
    Vmar(Vmar),
    Vmo(Vmo),
}

/// A file descriptor that tells about a change of signals.
pub(crate) struct Source<'a> {
    pub(crate) fd: BorrowedFd<'a>,
    pub(crate) events: PollFlags,
    /// Whether only the arrival of readiness means something: the descriptor stays ready for ever after.
    pub(crate) edge: bool,
}

/// The descriptors to watch for a set of signals; never more than two.
pub(crate) type Sources<'a> = [Option<Source<'a>>; 2];

/// Someone in this process who has to look again when signals change that no descriptor tells about.
pub(crate) enum Waiter {
    Port { port: Weak<Object>, registration: Number },
    Thread { wake: Arc<OwnedFd> },
}

/// A kernel object.
pub(crate) struct Object {
    pub(crate) koid: zx_koid_t,
    /// Koid of the peer, parent job or parent VMO; 0 when there is none.
    pub(crate) related: zx_koid_t,
    pub(crate) kind: Kind,
    pub(crate) name: Mutex<[u8; ZX_MAX_NAME_LEN]>,
    /// Handles to it in this process.
    pub(crate) handles: AtomicU32,
    /// User signals, and for tasks object signals, that live in this process only.
    local_signals: AtomicU32,
    has_waiters: AtomicBool,
    waiters: Mutex<Vec<Waiter>>,
    /// The object's number in the port that last looked for it there; for ports to check.
    pub(crate) registration: AtomicU64,
}

/// Locks, also after a panic of another holder: every critical section here leaves its data valid.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Defines the access to one kind: the payload, or `ZX_ERR_WRONG_TYPE`.
macro_rules! as_kind {
    ($($method:ident: $kind:ident),* $(,)?) => {
        $(pub(crate) fn $method(&self) -> Result<&$kind> {
            match &self.kind {
                Kind::$kind(payload) => Ok(payload),
                _ => Err(WRONG_TYPE),
            }
        })*
    };
}

impl Object {
    /// An object with a new koid.
    pub(crate) fn new(kind: Kind) -> Arc<Object> {
        Self::with_koid(kind, crate::koid::allocate(), ZX_KOID_INVALID)
    }

    /// An object that another process, or a peer, already knows by its koid.
    pub(crate) fn with_koid(kind: Kind, koid: zx_koid_t, related: zx_koid_t) -> Arc<Object> {
        Arc::new(Object {
            koid,
            related,
            kind,
            name: Mutex::new([0; ZX_MAX_NAME_LEN]),
            handles: AtomicU32::new(0),
            local_signals: AtomicU32::new(0),
            has_waiters: AtomicBool::new(false),
            waiters: Mutex::new(Vec::new()),
            registration: AtomicU64::new(0),
        })
    }

    as_kind! {
        channel: Channel, event: Event, fifo: Fifo, guest: Guest, job: Job, port: Port, process: Process, resource: Resource,
        socket: Socket, timer: Timer, vcpu: Vcpu, vmar: Vmar, vmo: Vmo,
    }

    /// The `ZX_OBJ_TYPE_*` of this object.
    pub(crate) fn object_type(&self) -> zx_obj_type_t {
        match &self.kind {
            Kind::Channel(_) => ZX_OBJ_TYPE_CHANNEL,
            Kind::Event(event) => event.object_type(),
            Kind::Fifo(_) => ZX_OBJ_TYPE_FIFO,
            Kind::Guest(_) => ZX_OBJ_TYPE_GUEST,
            Kind::Job(_) => ZX_OBJ_TYPE_JOB,
            Kind::Port(_) => ZX_OBJ_TYPE_PORT,
            Kind::Process(_) => ZX_OBJ_TYPE_PROCESS,
            Kind::Resource(_) => ZX_OBJ_TYPE_RESOURCE,
            Kind::Socket(_) => ZX_OBJ_TYPE_SOCKET,
            Kind::Thread(_) => ZX_OBJ_TYPE_THREAD,
            Kind::Timer(_) => ZX_OBJ_TYPE_TIMER,
            Kind::Vcpu(_) => ZX_OBJ_TYPE_VCPU,
            Kind::Vmar(_) => ZX_OBJ_TYPE_VMAR,
            Kind::Vmo(_) => ZX_OBJ_TYPE_VMO,
        }
    }

    /// What to watch for a change of any signal in `interest`.
    pub(crate) fn sources(&self, interest: zx_signals_t) -> Result<Sources<'_>> {
        Ok(match &self.kind {
            Kind::Channel(channel) => {
                if interest & ZX_USER_SIGNAL_ALL != 0 {
                    self.look_for_user_signals(channel);
                }
                channel.sources(interest)?
            }
            Kind::Event(event) => event.sources(interest)?,
            Kind::Fifo(fifo) => fifo.sources(interest)?,
            Kind::Job(job) => job.sources(interest),
            Kind::Process(process) => process.sources(interest),
            Kind::Socket(socket) => socket.sources(interest)?,
            Kind::Thread(thread) => thread.sources(interest),
            Kind::Timer(timer) => timer.sources(interest),
            _ => [None, None],
        })
    }

    /// As [`Channel::look_for_user_signals`] for this object, which is that channel.
    pub(crate) fn look_for_user_signals(&self, channel: &Channel) {
        if channel.look_for_user_signals() {
            self.notify_later();
        }
    }

    /// Takes note of what the source with this index reported, where it cannot be asked again later.
    pub(crate) fn observe(&self, index: usize, revents: PollFlags) {
        match &self.kind {
            Kind::Event(event) => event.observe(index, revents),
            Kind::Fifo(fifo) => fifo.observe(index, revents),
            _ => {}
        }
    }

    /// The signals, given what the first source reported.
    pub(crate) fn signals_given(&self, revents: PollFlags) -> zx_signals_t {
        let object = match &self.kind {
            Kind::Channel(channel) if channel.may_be_mistaken(revents) => {
                self.look_for_user_signals(channel);
                channel.signals(channel.poll_again().unwrap_or(revents))
            }
            Kind::Channel(channel) => channel.signals(revents),
            Kind::Event(event) => event.signals(),
            Kind::Fifo(fifo) => fifo.signals(),
            Kind::Job(job) => job.signals(revents),
            Kind::Process(process) => process.signals(revents),
            Kind::Socket(socket) => socket.signals(revents),
            Kind::Thread(thread) => thread.signals(revents),
            Kind::Timer(timer) => timer.signals(revents),
            Kind::Vmo(vmo) => vmo.signals(),
            _ => 0,
        };
        object | self.local_signals.load(Ordering::SeqCst)
    }

    /// As [`Object::signals_given`], for a channel whose descriptor says all.
    #[inline]
    pub(crate) fn channel_signals(&self, revents: PollFlags) -> Option<zx_signals_t> {
        match &self.kind {
            Kind::Channel(channel) if !channel.may_be_mistaken(revents) => {
                Some(channel.signals(revents) | self.local_signals.load(Ordering::SeqCst))
            }
            _ => None,
        }
    }

    /// As [`Object::signals_given`], for who takes it for granted that a readable channel has a message.
    pub(crate) fn signals_settled(&self, revents: PollFlags) -> zx_signals_t {
        match &self.kind {
            Kind::Channel(channel)
                if revents.contains(PollFlags::IN) && channel.take_announcement() =>
            {
                self.signals_given(channel.poll_again().unwrap_or(revents))
            }
            _ => self.signals_given(revents),
        }
    }

    /// The signals as they are now; complete for the bits in `interest`.
    pub(crate) fn signals(&self, interest: zx_signals_t) -> Result<zx_signals_t> {
        let mut first = PollFlags::empty();
        for (index, source) in self.sources(interest)?.iter().enumerate() {
            let Some(source) = source.as_ref().filter(|source| !source.edge) else { continue };
            let mut fds = [PollFd::from_borrowed_fd(source.fd, source.events)];
            poll_now(&mut fds)?;
            self.observe(index, fds[0].revents());
            if index == 0 {
                first = fds[0].revents();
            }
        }
        Ok(self.signals_settled(first))
    }

    /// Marks how often signals were asserted so far, for objects that count it.
    pub(crate) fn snapshot(&self) -> Result<Option<Snapshot>> {
        match &self.kind {
            Kind::Event(event) => event.snapshot().map(Some),
            _ => Ok(None),
        }
    }

    /// Signals that were asserted since the snapshot, even if they are clear again.
    pub(crate) fn asserted_since(&self, snapshot: Option<&Snapshot>) -> zx_signals_t {
        match (&self.kind, snapshot) {
            (Kind::Event(event), Some(snapshot)) => event.asserted_since(snapshot),
            _ => 0,
        }
    }

    /// How often this process has seen the object empty, or full: a signal that is active now and was active before then
    /// has been inactive in between, which an edge-triggered wait must know.
    pub(crate) fn drains(&self) -> u32 {
        match &self.kind {
            Kind::Channel(channel) => channel.drains(),
            Kind::Fifo(fifo) => fifo.drains(),
            _ => 0,
        }
    }

    /// Changes the signals that live in this process and tells who waits for them here.
    pub(crate) fn change_local_signals(self: &Arc<Self>, clear: zx_signals_t, set: zx_signals_t) {
        let change = |old| Some((old & !clear) | set);
        let old = self
            .local_signals
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, change)
            .unwrap_or(0);
        if set & !old != 0 {
            self.notify();
        }
    }

    /// Makes everyone in this process who waits for this object look at its signals again.
    pub(crate) fn notify(&self) {
        if !self.has_waiters.load(Ordering::SeqCst) {
            return;
        }
        let mut ports = Vec::new();
        for waiter in &*lock(&self.waiters) {
            match waiter {
                Waiter::Port { port, registration } => ports.push((port.clone(), *registration)),
                Waiter::Thread { wake } => ring(wake),
            }
        }
        for (port, registration) in ports {
            if let Some(port) = port.upgrade()
                && let Ok(port) = port.port()
            {
                port.evaluate(registration);
            }
        }
    }

    /// As [`Object::notify`] for callers that hold the lock of a port: its waits look again in `zx_port_wait`.
    fn notify_later(&self) {
        if !self.has_waiters.load(Ordering::SeqCst) {
            return;
        }
        for waiter in &*lock(&self.waiters) {
            match waiter {
                Waiter::Port { port, registration } => {
                    if let Some(port) = port.upgrade()
                        && let Ok(port) = port.port()
                    {
                        port.evaluate_later(*registration);
                    }
                }
                Waiter::Thread { wake } => ring(wake),
            }
        }
    }

    /// Adds someone to tell about changes.
    pub(crate) fn add_waiter(&self, waiter: Waiter) {
        let mut waiters = lock(&self.waiters);
        waiters.retain(
            |waiter| !matches!(waiter, Waiter::Port { port, .. } if port.strong_count() == 0),
        );
        waiters.push(waiter);
        self.has_waiters.store(true, Ordering::SeqCst);
    }

    /// Removes the waiters for which `gone` holds.
    pub(crate) fn remove_waiters(&self, gone: impl Fn(&Waiter) -> bool) {
        let mut waiters = lock(&self.waiters);
        waiters.retain(|waiter| !gone(waiter));
        self.has_waiters.store(!waiters.is_empty(), Ordering::SeqCst);
    }

    /// A handle is gone: ends the asynchronous waits made through it, and with the last handle all of them. Whether it was
    /// the last handle of this process.
    pub(crate) fn release(&self, handle: zx_handle_t) -> bool {
        let last = self.handles.fetch_sub(1, Ordering::SeqCst) == 1;
        if self.has_waiters.load(Ordering::SeqCst) {
            let mut ports = Vec::new();
            for waiter in &*lock(&self.waiters) {
                if let Waiter::Port { port, registration } = waiter {
                    ports.push((port.clone(), *registration));
                }
            }
            for (port, registration) in ports {
                if let Some(port) = port.upgrade()
                    && let Ok(port) = port.port()
                {
                    port.handle_closed(self, registration, handle, last);
                }
            }
            if last {
                self.remove_waiters(|waiter| matches!(waiter, Waiter::Port { .. }));
            }
        }
        if let (true, Kind::Port(port)) = (last, &self.kind) {
            port.retire();
        }
        last
    }

    /// The last handle in this process was closed, and not because the object went to another process.
    pub(crate) fn retire(&self) {
        if let Kind::Channel(channel) = &self.kind {
            channel.retire();
        }
    }
}

/// Adds one to an eventfd. It is never full: its other writers add one as well.
pub(crate) fn ring(wake: &OwnedFd) {
    // A failure would mean a full counter, which is readable as well.
    let _ = rustix::io::write(wake, &1_u64.to_ne_bytes());
}

/// Asks descriptors for their state without waiting.
pub(crate) fn poll_now(fds: &mut [PollFd<'_>]) -> Result<()> {
    loop {
        match poll(fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) {
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}
