//! What a debugger asks of a vCPU. Requests run on the vCPU's own thread, which is the only one that may touch its state;
//! a vCPU that the debugger holds stays inside `enter` and serves them there.

use crate::cpu::Cpu;
use crate::guest::lock;
use crate::state::Attention;
use crate::vcpu::VcpuRemote;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Mutex, PoisonError, RwLock};
use std::time::Duration;

/// INT3.
pub(crate) const BREAKPOINT_OPCODE: u8 = 0xcc;
/// How long a request waits for a vCPU whose monitor is busy between two calls of `enter`.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a vCPU stopped for the debugger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StopCause {
    /// The debugger asked.
    Interrupted,
    /// It met one of the debugger's breakpoints.
    Breakpoint,
    /// It finished a single step.
    Step,
}

/// A stop, as the debugger hears of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StopEvent {
    pub(crate) vcpu: u32,
    pub(crate) cause: StopCause,
}

type Request = Box<dyn FnOnce(&mut Cpu) + Send>;

/// Requests to a vCPU, and whether its thread is where it serves them.
#[derive(Default)]
struct Requests {
    waiting: Vec<Request>,
    /// The thread is inside `enter`.
    served: bool,
}

/// The debugger's side of one vCPU.
#[derive(Default)]
pub(crate) struct DebugPort {
    requests: Mutex<Requests>,
    /// The vCPU stops before its next instruction and stays stopped.
    hold: AtomicBool,
    /// The vCPU runs one instruction and then holds.
    step: AtomicBool,
}

impl DebugPort {
    pub(crate) fn is_held(&self) -> bool {
        self.hold.load(Ordering::Acquire)
    }

    pub(crate) fn is_stepping(&self) -> bool {
        self.step.load(Ordering::Acquire)
    }

    /// Holds the vCPU from its own thread.
    pub(crate) fn hold(&self) {
        self.step.store(false, Ordering::Release);
        self.hold.store(true, Ordering::Release);
    }

    pub(crate) fn take_requests(&self) -> Vec<Request> {
        std::mem::take(&mut lock(&self.requests).waiting)
    }

    /// Says that the vCPU's thread enters the guest, or leaves it after having served what this gives.
    pub(crate) fn set_served(&self, served: bool) -> Vec<Request> {
        let mut requests = lock(&self.requests);
        requests.served = served;
        std::mem::take(&mut requests.waiting)
    }
}

impl VcpuRemote {
    /// Stops the vCPU soon; it reports a stop event when it has.
    pub(crate) fn debug_stop(&self) {
        self.debug.hold();
        self.request_attention(Attention::RUN_LOOP);
    }

    /// Lets the vCPU run on, for one instruction only if `step`.
    pub(crate) fn debug_resume(&self, step: bool) {
        self.debug.step.store(step, Ordering::Release);
        self.debug.hold.store(false, Ordering::Release);
        self.request_attention(Attention::RUN_LOOP);
    }

    /// Runs `f` on the vCPU's thread. `None` when the vCPU did not come by in time.
    pub(crate) fn run_on_cpu<T: Send + 'static>(
        &self,
        f: impl FnOnce(&mut Cpu) -> T + Send + 'static,
    ) -> Option<T> {
        self.send_request(false, f)?.recv_timeout(REQUEST_TIMEOUT).ok()
    }

    /// As [`VcpuRemote::run_on_cpu`], but `None` at once when the vCPU is not in the guest.
    pub(crate) fn run_inside<T: Send + 'static>(
        &self,
        f: impl FnOnce(&mut Cpu) -> T + Send + 'static,
    ) -> Option<T> {
        // A vCPU that leaves the guest serves what was sent before.
        self.send_request(true, f)?.recv().ok()
    }

    fn send_request<T: Send + 'static>(
        &self,
        only_inside: bool,
        f: impl FnOnce(&mut Cpu) -> T + Send + 'static,
    ) -> Option<Receiver<T>> {
        let (reply, answer) = mpsc::sync_channel(1);
        let mut requests = lock(&self.debug.requests);
        if only_inside && !requests.served {
            return None;
        }
        requests.waiting.push(Box::new(move |cpu| {
            // The debugger may have given up waiting.
            let _ = reply.send(f(cpu));
        }));
        drop(requests);
        self.request_attention(Attention::RUN_LOOP);
        Some(answer)
    }
}

/// A software breakpoint: an INT3 in guest memory. It belongs to the memory that its linear address meant when it was
/// set; another address space may have something else there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Breakpoint {
    /// Guest-physical address of the INT3.
    pub(crate) gpa: u64,
    /// The byte that it replaced.
    pub(crate) original: u8,
}

/// The debugger's side of a guest.
#[derive(Default)]
pub(crate) struct Debugger {
    breakpoints: RwLock<BTreeMap<u64, Breakpoint>>,
    events: Mutex<Option<Sender<StopEvent>>>,
}

impl Debugger {
    /// Attaches a debugger; false when one is attached already.
    pub(crate) fn attach(&self, events: Sender<StopEvent>) -> bool {
        let mut slot = lock(&self.events);
        let free = slot.is_none();
        if free {
            *slot = Some(events);
        }
        free
    }

    pub(crate) fn detach(&self) {
        *lock(&self.events) = None;
    }

    pub(crate) fn report(&self, event: StopEvent) {
        if let Some(events) = &*lock(&self.events) {
            // A debugger that is just going away releases every vCPU after it has detached.
            let _ = events.send(event);
        }
    }

    /// The breakpoint at a linear address, in whichever address space it was set.
    pub(crate) fn breakpoint(&self, address: u64) -> Option<Breakpoint> {
        self.breakpoints.read().unwrap_or_else(PoisonError::into_inner).get(&address).copied()
    }

    /// Records a breakpoint.
    pub(crate) fn add_breakpoint(&self, address: u64, breakpoint: Breakpoint) {
        let mut breakpoints = self.breakpoints.write().unwrap_or_else(PoisonError::into_inner);
        breakpoints.insert(address, breakpoint);
    }

    /// Forgets a breakpoint.
    pub(crate) fn remove_breakpoint(&self, address: u64) -> Option<Breakpoint> {
        self.breakpoints.write().unwrap_or_else(PoisonError::into_inner).remove(&address)
    }

    /// Every breakpoint, by linear address.
    pub(crate) fn breakpoints(&self) -> Vec<(u64, Breakpoint)> {
        let breakpoints = self.breakpoints.read().unwrap_or_else(PoisonError::into_inner);
        breakpoints.iter().map(|(address, breakpoint)| (*address, *breakpoint)).collect()
    }
}
