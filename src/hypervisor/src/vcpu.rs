//! The vCPU: its remote control, and the run loop that turns events into guest execution and exits.

use crate::apic;
use crate::code_map::CodeMailbox;
use crate::cpu::{Cpu, StateBox, StateMemory};
use crate::debug::{DebugPort, StopCause, StopEvent};
use crate::debug_registers;
use crate::error::Error;
use crate::exception::{self, Event, Exception, Fault, Shutdown};
use crate::exit::{Exit, IoData, VcpuState};
use crate::guest::{Guest, lock};
use crate::interp::{self, Flow};
use crate::registers::{dr6, rflags};
use crate::startup::StartupMailbox;
use crate::state::Attention;
use crate::stats::VcpuStats;
use crate::time::{minimize_timer_slack, monotonic_ns};
use crate::translator::{self, RunExit};
use iced_x86::Mnemonic;
use rustix::thread::futex;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// The side of a vCPU that other threads hold.
pub struct VcpuRemote {
    id: u32,
    state: Arc<StateMemory>,
    /// Vectors injected and not yet seen by the vCPU's thread.
    injected: [AtomicU64; 4],
    /// The vCPU's thread sleeps in HLT, or is about to.
    sleeping: AtomicBool,
    /// The whole TLB is to be dropped before the guest runs on.
    flush: AtomicBool,
    pub(crate) startup: StartupMailbox,
    pub(crate) debug: DebugPort,
    pub(crate) code: CodeMailbox,
    /// Counters as of the last return from the guest.
    left: Mutex<VcpuStats>,
}

impl VcpuRemote {
    /// Number of the vCPU in its guest, and its APIC ID.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Makes the current [`Vcpu::enter`], or the next one if none is under way, return [`Error::Canceled`] within a
    /// millisecond.
    pub fn kick(&self) {
        self.request_attention(Attention::KICK);
    }

    /// Counters since creation, from any thread: asks the vCPU's thread if it is in the guest, which takes as long as a
    /// kick does.
    pub fn stats(&self) -> VcpuStats {
        self.run_inside(|cpu| cpu.stats()).unwrap_or_else(|| *lock(&self.left))
    }

    /// Queues an interrupt. Vector 2 is the NMI. A vector that is already queued stays queued once.
    ///
    /// Errors: [`Error::OutOfRange`] for a vector above 255.
    pub fn interrupt(&self, vector: u32) -> Result<(), Error> {
        let word = self
            .injected
            .get((vector / 64) as usize)
            .ok_or(Error::OutOfRange("interrupt vector"))?;
        word.fetch_or(1 << (vector % 64), Ordering::SeqCst);
        self.request_attention(Attention::INTERRUPT);
        Ok(())
    }

    pub(crate) fn request_flush(&self) {
        self.flush.store(true, Ordering::SeqCst);
        self.request_attention(Attention::RUN_LOOP);
    }

    /// Sets attention bits and wakes the vCPU's thread if it sleeps.
    pub(crate) fn request_attention(&self, bits: Attention) {
        let word = self.note_attention(bits);
        if self.sleeping.load(Ordering::SeqCst) {
            // A failure would mean a bad address, and the word lives as long as `self`.
            let _ = futex::wake(word, futex::Flags::PRIVATE, 1);
        }
    }

    /// Sets attention bits without waking the vCPU's thread.
    pub(crate) fn note_attention(&self, bits: Attention) -> &AtomicU32 {
        let word = self.state.attention();
        word.fetch_or(bits.bits(), Ordering::SeqCst);
        word
    }

    /// Sleeps until an attention bit is set or `deadline` (CLOCK_MONOTONIC nanoseconds) has come.
    fn sleep(&self, deadline: Option<u64>) {
        let word = self.state.attention();
        self.sleeping.store(true, Ordering::SeqCst);
        let until = deadline.map(|ns| rustix::thread::futex::Timespec {
            tv_sec: (ns / 1_000_000_000) as i64,
            tv_nsec: (ns % 1_000_000_000) as _,
        });
        // Invalidation requests do not end a sleep: they are served before guest code runs again.
        let expected = word.load(Ordering::SeqCst) & Attention::INVALIDATE.bits();
        // FUTEX_WAIT_BITSET takes an absolute deadline. Every return, early or late, is followed by a new look at
        // the attention word and the clock, so its reason does not matter.
        let _ = futex::wait_bitset(
            word,
            futex::Flags::PRIVATE,
            expected,
            until.as_ref(),
            std::num::NonZeroU32::MAX,
        );
        self.sleeping.store(false, Ordering::SeqCst);
    }
}

/// A virtual CPU. It belongs to the thread that created it.
pub struct Vcpu {
    cpu: Box<Cpu>,
    activity: Activity,
    /// The guest shut down; nothing can run any more.
    stopped: bool,
    /// The debugger knows that it holds this vCPU.
    reported: bool,
    not_send: PhantomData<*mut ()>,
}

/// Whether a vCPU executes instructions (SDM vol. 3 §24.4.2, "activity state").
#[derive(Clone, Copy, PartialEq, Eq)]
enum Activity {
    Active,
    /// HLT: until an interrupt.
    Halted,
    /// After INIT: until a start-up IPI.
    WaitForStartup,
}

/// What the run loop does after a step.
enum Next {
    Continue,
    Return(Result<Exit, Error>),
}

impl Vcpu {
    /// Creates the next vCPU of a guest. The first is the bootstrap processor and starts in 64-bit mode at `entry`
    /// with CR3 = 0 and flat segments; the others start in real mode at the guest-physical address `entry`.
    ///
    /// Errors: [`Error::OutOfRange`] for the 65th vCPU, or a real-mode entry beyond 1 MiB.
    pub fn new(guest: &Arc<Guest>, entry: u64) -> Result<Vcpu, Error> {
        let id = guest.allocate_vcpu_id()?;
        if id != 0 && entry >= 1 << 20 {
            return Err(Error::OutOfRange("a start-up vector lies below 1 MiB"));
        }
        let (state, memory) = StateBox::new()?;
        let remote = Arc::new(VcpuRemote {
            id,
            state: memory,
            injected: [const { AtomicU64::new(0) }; 4],
            sleeping: AtomicBool::new(false),
            flush: AtomicBool::new(false),
            startup: StartupMailbox::default(),
            debug: DebugPort::default(),
            code: CodeMailbox::new(),
            left: Mutex::default(),
        });
        minimize_timer_slack();
        let cpu = Box::new(Cpu::new(Arc::clone(guest), state, Arc::clone(&remote), entry)?);
        guest.add_vcpu(&remote);
        Ok(Vcpu {
            cpu,
            activity: Activity::Active,
            stopped: false,
            reported: false,
            not_send: PhantomData,
        })
    }

    /// The handle with which other threads kick and interrupt this vCPU.
    pub fn remote(&self) -> Arc<VcpuRemote> {
        Arc::clone(&self.cpu.remote)
    }

    /// The vCPU's inside, for tests of its parts.
    #[cfg(test)]
    pub(crate) fn cpu_mut(&mut self) -> &mut Cpu {
        &mut self.cpu
    }

    /// Counters since creation.
    pub fn stats(&self) -> VcpuStats {
        self.cpu.stats()
    }

    /// The general-purpose registers and flags.
    pub fn read_state(&self) -> VcpuState {
        VcpuState { gpr: self.cpu.state.gpr, rflags: self.cpu.state.rflags }
    }

    /// Writes the general-purpose registers, and of the flags those that user code can change.
    pub fn write_state(&mut self, new: &VcpuState) {
        const USER_FLAGS: u64 = rflags::STATUS
            | rflags::TF
            | rflags::DF
            | rflags::NT
            | rflags::RF
            | rflags::AC
            | rflags::ID;
        let state = &mut self.cpu.state;
        state.gpr = new.gpr;
        state.rflags = state.rflags & !USER_FLAGS | new.rflags & USER_FLAGS;
        self.cpu.rights_changed();
    }

    /// Gives the data of the port input that the last exit asked for.
    ///
    /// Errors: [`Error::BadState`] if no input waits, [`Error::InvalidArgs`] if the size is not the asked one.
    pub fn write_io(&mut self, access_size: u8, data: IoData) -> Result<(), Error> {
        interp::io::complete_input(&mut self.cpu, access_size, data)
    }

    /// Runs the guest until it does something that the monitor must handle.
    ///
    /// Errors: [`Error::Canceled`] after a kick, [`Error::Shutdown`] after a triple fault, [`Error::BadState`] when a
    /// bell's receiver is gone.
    pub fn enter(&mut self) -> Result<Exit, Error> {
        if self.stopped {
            return Err(Error::Shutdown { rip: self.cpu.state.rip });
        }
        // An input that the monitor did not answer reads as open bus.
        interp::io::abandon_input(&mut self.cpu);
        translator::after_sleep(&mut self.cpu);
        self.serve_requests(true);
        let result = loop {
            if let Next::Return(result) = self.step() {
                break result;
            }
        };
        // Requests of other vCPUs come before what the monitor does next, such as passing on an interrupt.
        translator::before_sleep(&mut self.cpu);
        self.count(&result);
        *lock(&self.cpu.remote.left) = self.cpu.stats();
        self.serve_requests(false);
        result
    }

    /// Runs the requests that came before a change of side.
    fn serve_requests(&mut self, inside: bool) {
        let remote = Arc::clone(&self.cpu.remote);
        for request in remote.debug.set_served(inside) {
            request(&mut self.cpu);
        }
    }

    /// One turn of the run loop: events, then sleep or execution.
    fn step(&mut self) -> Next {
        if let Err(error) = self.take_attention() {
            return Next::Return(Err(error));
        }
        if let Err(error) = self.serve_debugger() {
            return Next::Return(Err(error));
        }
        if let Err(Shutdown) = self.deliver_interrupts() {
            return self.shutdown();
        }
        if self.activity != Activity::Active {
            self.sleep();
            return Next::Continue;
        }
        if self.cpu.needs_stepping() {
            return self.single_step();
        }
        match translator::run(&mut self.cpu) {
            RunExit::Attention => Next::Continue,
            RunExit::Exception(exception) => self.deliver_exception(exception),
            RunExit::Mode => self.single_step(),
            RunExit::Exit(exit) => Next::Return(Ok(exit)),
            RunExit::Halt => {
                self.activity = Activity::Halted;
                Next::Continue
            }
            RunExit::BellClosed => {
                Next::Return(Err(Error::BadState("the bell's receiver is gone")))
            }
        }
    }

    /// Acts on the attention word.
    fn take_attention(&mut self) -> Result<(), Error> {
        let cpu = &mut *self.cpu;
        let bits = Attention::from_bits_retain(cpu.state.attention.swap(0, Ordering::SeqCst));
        if bits.is_empty() {
            return Ok(());
        }
        if cpu.remote.flush.swap(false, Ordering::SeqCst) {
            cpu.flush_tlb();
        }
        if bits.contains(Attention::INVALIDATE) {
            translator::serve_requests(cpu);
        }
        let startup = cpu.remote.startup.take();
        if startup.init {
            cpu.init();
            self.activity = Activity::WaitForStartup;
        }
        if let Some(vector) = startup.vector
            && self.activity == Activity::WaitForStartup
        {
            cpu.start_up(vector);
            self.activity = Activity::Active;
        }
        if bits.contains(Attention::INTERRUPT) {
            for (index, word) in cpu.remote.injected.iter().enumerate() {
                let mut vectors = word.swap(0, Ordering::SeqCst);
                while vectors != 0 {
                    cpu.guest.count_device_event();
                    cpu.apic.request((index * 64) as u8 + vectors.trailing_zeros() as u8);
                    vectors &= vectors - 1;
                }
            }
        }
        if bits.contains(Attention::TIMER) {
            self.expire_timer();
        }
        if bits.contains(Attention::KICK) {
            return Err(Error::Canceled);
        }
        Ok(())
    }

    /// Runs the debugger's requests, and stays here while it holds the vCPU. A kick ends the stay, not the hold.
    fn serve_debugger(&mut self) -> Result<(), Error> {
        let cpu = &mut *self.cpu;
        let remote = Arc::clone(&cpu.remote);
        if let Some(cause) = cpu.debug_stop.take() {
            remote.debug.hold();
            cpu.guest.debugger.report(StopEvent { vcpu: remote.id, cause });
        } else if remote.debug.is_held() && !self.reported {
            cpu.guest.debugger.report(StopEvent { vcpu: remote.id, cause: StopCause::Interrupted });
        }
        let mut deferred = 0;
        loop {
            for request in remote.debug.take_requests() {
                request(cpu);
            }
            self.reported = remote.debug.is_held();
            if !self.reported {
                break;
            }
            let bits = cpu.state.attention.swap(0, Ordering::SeqCst);
            deferred |= bits & !Attention::RUN_LOOP.bits();
            if deferred & Attention::KICK.bits() != 0 {
                break;
            }
            if bits & Attention::INVALIDATE.bits() != 0 {
                translator::serve_requests(cpu);
                deferred &= !Attention::INVALIDATE.bits();
            }
            if bits == 0 {
                translator::before_sleep(cpu);
                remote.sleep(None);
                translator::after_sleep(cpu);
            }
        }
        let kicked = deferred & Attention::KICK.bits() != 0;
        cpu.state.attention.fetch_or(deferred & !Attention::KICK.bits(), Ordering::SeqCst);
        if kicked { Err(Error::Canceled) } else { Ok(()) }
    }

    fn expire_timer(&mut self) {
        let cpu = &mut *self.cpu;
        if cpu.apic.expire(monotonic_ns()) {
            cpu.stats.timer_expirations += 1;
        }
        apic::update_alarm(cpu);
    }

    /// Delivers one pending NMI or interrupt if the guest's state lets it in.
    fn deliver_interrupts(&mut self) -> Result<(), Shutdown> {
        let cpu = &mut *self.cpu;
        if !cpu.apic.has_pending() || self.activity == Activity::WaitForStartup {
            return Ok(());
        }
        if let Some(rip) = cpu.interrupt_shadow {
            if rip == cpu.state.rip && self.activity == Activity::Active {
                // One instruction first; `needs_stepping` sees to it.
                return Ok(());
            }
            cpu.interrupt_shadow = None;
        }
        if cpu.apic.has_nmi() && !cpu.nmi_blocked {
            cpu.apic.take_nmi();
            cpu.stats.interrupts += 1;
            self.activity = Activity::Active;
            return exception::deliver(cpu, Event::Nmi);
        }
        if cpu.state.rflags & rflags::IF != 0
            && let Some(vector) = cpu.apic.deliverable()
        {
            cpu.apic.acknowledge(vector);
            cpu.stats.interrupts += 1;
            self.activity = Activity::Active;
            return exception::deliver(cpu, Event::External(vector));
        }
        Ok(())
    }

    /// HLT: waits for attention or for the APIC timer, whose alarm this thread takes over meanwhile.
    fn sleep(&mut self) {
        let cpu = &mut *self.cpu;
        let deadline = cpu.apic.deadline();
        if deadline.is_some_and(|deadline| deadline <= monotonic_ns()) {
            self.expire_timer();
            return;
        }
        cpu.stats.halts += 1;
        if deadline.is_some() {
            cpu.guest.alarm_clock.cancel(cpu.apic.id());
        }
        translator::before_sleep(cpu);
        cpu.remote.sleep(deadline);
        translator::after_sleep(cpu);
        self.expire_timer();
    }

    /// Executes one instruction in the interpreter.
    fn single_step(&mut self) -> Next {
        let cpu = &mut *self.cpu;
        let traps = cpu.state.rflags & rflags::TF != 0;
        let shadow = cpu.interrupt_shadow;
        cpu.step_once = false;
        let mut watched = 0;
        let result = match interp::fetch(cpu) {
            Ok(instruction) => {
                if debug_registers::are_armed(cpu) {
                    let hit = debug_registers::instruction_matches(cpu);
                    if hit != 0 {
                        return self.deliver_exception(Exception::db(hit, false));
                    }
                    watched = debug_registers::data_matches(cpu, &instruction);
                    if !matches!(
                        instruction.mnemonic(),
                        Mnemonic::Iret | Mnemonic::Iretd | Mnemonic::Iretq
                    ) {
                        cpu.state.rflags &= !rflags::RF;
                    }
                }
                interp::execute(cpu, &instruction)
            }
            Err(fault) => Err(fault),
        };
        if cpu.interrupt_shadow == shadow {
            cpu.interrupt_shadow = None;
        }
        let finished = match result {
            Ok(Flow::Next | Flow::Jump) => Next::Continue,
            Ok(Flow::Halt) => {
                self.activity = Activity::Halted;
                Next::Continue
            }
            Ok(Flow::Exit(exit)) | Err(Fault::Exit(exit)) => Next::Return(Ok(exit)),
            Ok(Flow::Native) => match translator::step(cpu) {
                RunExit::Exception(exception) => return self.deliver_exception(exception),
                RunExit::Exit(exit) => Next::Return(Ok(exit)),
                RunExit::BellClosed => {
                    return Next::Return(Err(Error::BadState("the bell's receiver is gone")));
                }
                RunExit::Mode => return self.deliver_exception(Exception::ud()),
                RunExit::Attention | RunExit::Halt => Next::Continue,
            },
            Err(Fault::Exception(exception)) => return self.deliver_exception(exception),
            Err(Fault::MemTrap { .. }) => Next::Continue,
            Err(Fault::BellClosed) => {
                return Next::Return(Err(Error::BadState("the bell's receiver is gone")));
            }
        };
        if self.cpu.remote.debug.is_stepping() && self.cpu.debug_stop.is_none() {
            self.cpu.stop_for_debugger(StopCause::Step);
        }
        // SDM vol. 3 §17.3.1.4: the trap comes after the instruction; one that an exit interrupts has completed too.
        if traps || watched != 0 {
            let step = if traps { dr6::BS } else { 0 };
            let trap = Event::Exception(Exception::db(step | watched, true));
            if exception::deliver(&mut self.cpu, trap).is_err() {
                return self.shutdown();
            }
        }
        finished
    }

    fn deliver_exception(&mut self, exception: Exception) -> Next {
        if self.cpu.remote.debug.is_stepping() {
            // A step into a handler ends at its first instruction.
            self.cpu.stop_for_debugger(StopCause::Step);
        }
        match exception::deliver(&mut self.cpu, Event::Exception(exception)) {
            Ok(()) => Next::Continue,
            Err(Shutdown) => self.shutdown(),
        }
    }

    fn shutdown(&mut self) -> Next {
        self.stopped = true;
        Next::Return(Err(Error::Shutdown { rip: self.cpu.state.rip }))
    }

    fn count(&mut self, result: &Result<Exit, Error>) {
        let stats = &mut self.cpu.stats;
        let counter = match result {
            Ok(Exit::Mem { .. }) => &mut stats.mem_exits,
            Ok(Exit::Io { .. }) => &mut stats.io_exits,
            Ok(Exit::Interrupt { .. } | Exit::Startup { .. }) => &mut stats.ipi_exits,
            Err(Error::Canceled) => &mut stats.kicks,
            Err(_) => return,
        };
        *counter += 1;
    }
}

impl Drop for Vcpu {
    fn drop(&mut self) {
        self.cpu.guest.alarm_clock.cancel(self.cpu.apic.id());
        self.cpu.guest.code.forget(self.cpu.apic.id());
    }
}
