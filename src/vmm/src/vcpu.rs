//! vCPUs: a thread each, the loop around entering the guest, and how a machine comes to an end.

use crate::arch::{self, Entry, Platform};
use crate::bus::Bus;
use crate::interrupt::{InterruptSink, PowerControl, PowerRequest};
use crate::memory::GuestMemory;
use fuchsia_zircon as zx;
use futures::channel::oneshot;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::thread::{self, JoinHandle};

/// How a machine ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The guest turned itself off, or its last vCPU off.
    PowerOff,
    /// The guest asked for a reset.
    Reset,
    /// A vCPU could not go on; the log has the reason.
    VcpuFailure {
        /// Which vCPU.
        cpu: u32,
    },
    /// A vCPU could not be created.
    VcpuStartFailure {
        /// Which vCPU.
        cpu: u32,
        /// What creating it, or its thread, failed with.
        status: zx::Status,
    },
    /// The host stopped the machine.
    ForcedHalt,
}

/// The handles of the running vCPUs, which interrupts and kicks go to.
pub struct VcpuHandles(Box<[OnceLock<zx::Vcpu>]>);

impl VcpuHandles {
    /// Room for `count` vCPUs.
    pub fn new(count: u8) -> Self {
        Self((0..count).map(|_| OnceLock::new()).collect())
    }

    /// What a running vCPU did so far; `None` where the system does not count, or nothing runs.
    pub fn stats(&self, cpu: u32) -> Option<zx::VcpuStats> {
        self.get(cpu)?.stats().ok()
    }

    fn get(&self, cpu: u32) -> Option<&zx::Vcpu> {
        self.0.get(cpu as usize)?.get()
    }

    fn kick_all(&self) {
        for vcpu in self.0.iter().filter_map(OnceLock::get) {
            // Only a lack of rights makes it fail, and this process made the handle.
            let _ = vcpu.kick();
        }
    }
}

impl InterruptSink for VcpuHandles {
    fn interrupt(&self, cpu: u32, vector: u8) {
        if let Some(Err(status)) = self.get(cpu).map(|vcpu| vcpu.interrupt(u32::from(vector))) {
            tracing::debug!(cpu, vector, %status, "Interrupt was refused");
        }
    }

    fn cpu_count(&self) -> u32 {
        self.0.len() as u32
    }
}

/// The end of the machine: the first reason wins, the last vCPU thread reports it.
pub struct Ending {
    outcome: Mutex<Option<Outcome>>,
    stopping: AtomicBool,
    running: AtomicUsize,
    report: Mutex<Option<oneshot::Sender<Outcome>>>,
    vcpus: Arc<VcpuHandles>,
}

impl Ending {
    /// The end of a machine with `vcpus`, and where it is reported.
    pub fn new(vcpus: Arc<VcpuHandles>) -> (Self, oneshot::Receiver<Outcome>) {
        let (sender, receiver) = oneshot::channel();
        let ending = Self {
            outcome: Mutex::default(),
            stopping: AtomicBool::new(false),
            running: AtomicUsize::new(0),
            report: Mutex::new(Some(sender)),
            vcpus,
        };
        (ending, receiver)
    }

    /// Ends the machine with `outcome`, unless it is ending already: every vCPU leaves the guest.
    pub fn end(&self, outcome: Outcome) {
        lock(&self.outcome).get_or_insert(outcome);
        self.stopping.store(true, Ordering::SeqCst);
        self.vcpus.kick_all();
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    fn thread_started(&self) {
        self.running.fetch_add(1, Ordering::SeqCst);
    }

    fn thread_ended(&self) {
        if self.running.fetch_sub(1, Ordering::SeqCst) != 1 {
            return;
        }
        // All vCPUs turned off one by one: nothing can run any more.
        let outcome = *lock(&self.outcome).get_or_insert(Outcome::PowerOff);
        self.stopping.store(true, Ordering::SeqCst);
        if let Some(sender) = lock(&self.report).take() {
            // Whoever wanted to know may be gone.
            let _ = sender.send(outcome);
        }
    }
}

impl PowerControl for Ending {
    fn request(&self, request: PowerRequest) {
        self.end(match request {
            PowerRequest::Off => Outcome::PowerOff,
            PowerRequest::Reset => Outcome::Reset,
        });
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What vCPU threads share.
pub struct VcpuContext {
    /// The guest they belong to.
    pub guest: zx::Guest,
    /// Guest memory.
    pub memory: Arc<dyn GuestMemory>,
    /// Memory-mapped devices.
    pub mmio: Bus,
    /// The platform.
    pub platform: Platform,
    /// Their handles.
    pub handles: Arc<VcpuHandles>,
    /// The machine's end.
    pub ending: Arc<Ending>,
}

/// The vCPU threads of a machine.
pub struct VcpuThreads {
    context: VcpuContext,
    started: Box<[AtomicBool]>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl VcpuThreads {
    /// No thread runs yet.
    pub fn new(context: VcpuContext) -> Arc<Self> {
        let count = context.handles.0.len();
        let started = (0..count).map(|_| AtomicBool::new(false)).collect();
        Arc::new(Self { context, started, threads: Mutex::default() })
    }

    /// Starts the first vCPU.
    pub fn start(self: &Arc<Self>, entry: Entry) {
        self.spawn(0, entry.address, Some(entry));
    }

    /// Starts vCPU `cpu` at `address`. A vCPU that was started before is left alone: start-up messages come in pairs.
    fn spawn(self: &Arc<Self>, cpu: u32, address: u64, first: Option<Entry>) {
        let Some(started) = self.started.get(cpu as usize) else {
            tracing::warn!(cpu, "The guest started a vCPU that does not exist");
            return;
        };
        if self.context.ending.is_stopping() || started.swap(true, Ordering::SeqCst) {
            return;
        }
        self.context.ending.thread_started();
        let threads = Arc::downgrade(self);
        let body = move || {
            if let Some(threads) = Weak::upgrade(&threads) {
                threads.run(cpu, address, first);
                threads.context.ending.thread_ended();
            }
        };
        match thread::Builder::new().name(format!("vcpu-{cpu}")).spawn(body) {
            Ok(handle) => lock(&self.threads).push(handle),
            Err(error) => {
                tracing::error!(cpu, %error, "Could not start a vCPU thread");
                self.context
                    .ending
                    .end(Outcome::VcpuStartFailure { cpu, status: zx::Status::NO_RESOURCES });
                self.context.ending.thread_ended();
            }
        }
    }

    fn run(self: &Arc<Self>, cpu: u32, address: u64, first: Option<Entry>) {
        let context = &self.context;
        let created = zx::Vcpu::create(&context.guest, address).and_then(|vcpu| {
            if let Some(entry) = first {
                arch::vcpu::prepare(&vcpu, entry)?;
            }
            Ok(vcpu)
        });
        let vcpu = match created {
            Ok(vcpu) => vcpu,
            Err(status) => {
                tracing::error!(cpu, %status, "Could not create a vCPU");
                context.ending.end(Outcome::VcpuStartFailure { cpu, status });
                return;
            }
        };
        let Some(slot) = context.handles.0.get(cpu as usize) else { return };
        let vcpu = slot.get_or_init(|| vcpu);
        // Whoever ends the machine sets the flag first and then kicks the handles it finds, so one of us sees the other.
        while !context.ending.is_stopping() {
            match vcpu.enter() {
                Ok(packet) => self.handle(cpu, vcpu, &packet),
                Err(status) => {
                    self.left(cpu, status);
                    return;
                }
            }
        }
    }

    /// The vCPU left the guest for good.
    fn left(&self, cpu: u32, status: zx::Status) {
        if let Some(stats) = self.context.handles.stats(cpu) {
            tracing::debug!(cpu, ?stats, "vCPU left the guest");
        }
        let ending = &self.context.ending;
        match status {
            // This vCPU is off, the others go on.
            zx::Status::STOP => tracing::debug!(cpu, "vCPU turned off"),
            zx::Status::UNAVAILABLE => ending.end(Outcome::PowerOff),
            // A kick, which is only sent when the machine ends; or a reset that the kernel handled.
            zx::Status::CANCELED => ending.end(Outcome::Reset),
            zx::Status::BAD_STATE => {
                tracing::error!(cpu, "vCPU failed: it notified a device whose component is gone");
                ending.end(Outcome::VcpuFailure { cpu });
            }
            status => {
                tracing::error!(cpu, %status, "vCPU failed");
                ending.end(Outcome::VcpuFailure { cpu });
            }
        }
    }

    fn handle(self: &Arc<Self>, cpu: u32, vcpu: &zx::Vcpu, packet: &zx::Packet) {
        let context = &self.context;
        let result = match packet.contents() {
            zx::PacketContents::GuestMem(packet) => {
                arch::vcpu::handle_mem(&context.mmio, context.memory.as_ref(), vcpu, &packet)
            }
            zx::PacketContents::GuestIo(packet) => {
                arch::vcpu::handle_io(&context.platform, vcpu, &packet)
            }
            zx::PacketContents::GuestVcpu(zx::GuestVcpuPacket::Interrupt { mask, vector }) => {
                for target in (0..u64::BITS).filter(|bit| mask & (1 << bit) != 0) {
                    context.handles.interrupt(target, vector);
                }
                Ok(())
            }
            zx::PacketContents::GuestVcpu(zx::GuestVcpuPacket::Startup { id, entry }) => {
                self.spawn(u32::try_from(id).unwrap_or(u32::MAX), entry, None);
                Ok(())
            }
            other => Err(arch::vcpu::TrapError::Packet(other)),
        };
        if let Err(error) = result {
            tracing::error!(cpu, %error, "vCPU cannot go on");
            context.ending.end(Outcome::VcpuFailure { cpu });
        }
    }

    /// Ends the machine if it still runs, and waits for its threads.
    pub fn join(&self) {
        self.context.ending.end(Outcome::ForcedHalt);
        loop {
            // A thread that is being joined may have just started another.
            let threads = std::mem::take(&mut *lock(&self.threads));
            if threads.is_empty() {
                return;
            }
            for thread in threads {
                if thread.join().is_err() {
                    tracing::error!("A vCPU thread panicked");
                }
            }
        }
    }

    /// What the threads share.
    pub fn context(&self) -> &VcpuContext {
        &self.context
    }
}
