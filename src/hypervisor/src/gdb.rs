//! A GDB remote stub for a whole guest: its vCPUs are GDB's threads, all stopped or all running.
//!
//! `target remote` of a stock gdb with `set architecture i386:x86-64`. Memory is seen through the page tables of the
//! vCPU that is selected. `monitor stats` prints the counters of every vCPU.

use crate::cpu::Cpu;
use crate::debug::{BREAKPOINT_OPCODE, Breakpoint, StopCause, StopEvent};
use crate::error::Error;
use crate::guest::Guest;
use crate::memory;
use crate::state::{Rflags, gpr, seg};
use crate::vcpu::VcpuRemote;
use gdbstub::common::{Signal, Tid};
use gdbstub::conn::{Connection, ConnectionExt};
use gdbstub::stub::run_blocking::{BlockingEventLoop, Event, WaitForStopReasonError};
use gdbstub::stub::{GdbStub, MultiThreadStopReason};
use gdbstub::target::ext::base::BaseOps;
use gdbstub::target::ext::base::multithread::{
    MultiThreadBase, MultiThreadResume, MultiThreadResumeOps, MultiThreadSchedulerLocking,
    MultiThreadSchedulerLockingOps, MultiThreadSingleStep, MultiThreadSingleStepOps,
};
use gdbstub::target::ext::breakpoints::{
    Breakpoints, BreakpointsOps, SwBreakpoint, SwBreakpointOps,
};
use gdbstub::target::ext::monitor_cmd::{ConsoleOutput, MonitorCmd, MonitorCmdOps, outputln};
use gdbstub::target::{Target, TargetError, TargetResult};
use gdbstub_arch::x86::X86_64_SSE;
use gdbstub_arch::x86::reg::X86_64CoreRegs;
use std::collections::HashMap;
use std::io;
use std::marker::PhantomData;
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::Duration;

/// General-purpose registers in GDB's order, as numbers of the instruction encoding.
const GDB_ORDER: [usize; 16] = [
    gpr::RAX,
    gpr::RBX,
    gpr::RCX,
    gpr::RDX,
    gpr::RSI,
    gpr::RDI,
    gpr::RBP,
    gpr::RSP,
    8,
    9,
    10,
    11,
    12,
    13,
    14,
    15,
];

/// How often the loop that waits for a stop looks for bytes from GDB.
const POLL: Duration = Duration::from_millis(10);

/// Serves one GDB connection until GDB detaches, kills or goes away, then lets the guest run on.
///
/// Errors: [`Error::BadState`] if a debugger is attached already, [`Error::Host`] if the connection fails.
pub fn serve_tcp(guest: &Arc<Guest>, stream: TcpStream) -> Result<(), Error> {
    stream.set_nodelay(true)?;
    serve(guest, stream)
}

/// As [`serve_tcp`], on a Unix-domain socket.
pub fn serve_unix(guest: &Arc<Guest>, stream: UnixStream) -> Result<(), Error> {
    serve(guest, stream)
}

fn serve<C>(guest: &Arc<Guest>, connection: C) -> Result<(), Error>
where
    C: ConnectionExt + Connection<Error = io::Error>,
{
    let (sender, events) = mpsc::channel();
    if !guest.debugger.attach(sender) {
        return Err(Error::BadState("a debugger is attached already"));
    }
    let mut session =
        Session { guest: Arc::clone(guest), events, steps: HashMap::new(), locked: false };
    session.stop_all();
    let result = GdbStub::new(connection).run_blocking::<EventLoop<C>>(&mut session);
    drop(session);
    match result {
        Ok(_) => Ok(()),
        Err(error) => {
            tracing::warn!(%error, "The debugger's connection failed");
            Err(Error::Host(io::Error::other(error.to_string())))
        }
    }
}

/// One attached debugger.
struct Session {
    guest: Arc<Guest>,
    events: Receiver<StopEvent>,
    /// vCPUs that the next resume steps.
    steps: HashMap<u32, bool>,
    /// The next resume is for those only, the other vCPUs stay: how GDB steps over a breakpoint.
    locked: bool,
}

impl Session {
    fn vcpus(&self) -> Vec<Arc<VcpuRemote>> {
        self.guest.vcpus()
    }

    fn vcpu(&self, tid: Tid) -> Option<Arc<VcpuRemote>> {
        self.vcpus().into_iter().find(|vcpu| self::tid(vcpu.id()) == tid)
    }

    fn stop_all(&self) {
        for vcpu in self.vcpus() {
            vcpu.debug_stop();
        }
    }

    fn on_cpu<T: Send + 'static>(
        &self,
        tid: Tid,
        f: impl FnOnce(&mut Cpu) -> T + Send + 'static,
    ) -> TargetResult<T, Self> {
        let vcpu = self.vcpu(tid).ok_or(TargetError::NonFatal)?;
        vcpu.run_on_cpu(f).ok_or(TargetError::NonFatal)
    }

    /// Runs `f` on some vCPU, the bootstrap processor if it can be had.
    fn on_any_cpu<T: Send + 'static>(
        &self,
        f: impl FnOnce(&mut Cpu) -> T + Send + 'static,
    ) -> TargetResult<T, Self> {
        let vcpu = self.vcpus().into_iter().next().ok_or(TargetError::NonFatal)?;
        vcpu.run_on_cpu(f).ok_or(TargetError::NonFatal)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        for (address, _) in self.guest.debugger.breakpoints() {
            // GDB went away without removing it.
            let _ = self.remove_sw_breakpoint(address, 1);
        }
        self.guest.debugger.detach();
        for vcpu in self.vcpus() {
            vcpu.debug_resume(false);
        }
    }
}

/// GDB's thread ids begin at 1.
fn tid(vcpu: u32) -> Tid {
    Tid::new(vcpu as usize + 1).unwrap_or(Tid::MIN)
}

impl Target for Session {
    type Arch = X86_64_SSE;
    type Error = &'static str;

    fn base_ops(&mut self) -> BaseOps<'_, X86_64_SSE, &'static str> {
        BaseOps::MultiThread(self)
    }

    fn support_breakpoints(&mut self) -> Option<BreakpointsOps<'_, Self>> {
        Some(self)
    }

    fn support_monitor_cmd(&mut self) -> Option<MonitorCmdOps<'_, Self>> {
        Some(self)
    }
}

fn read_registers(cpu: &Cpu) -> X86_64CoreRegs {
    let state = &cpu.state;
    let area = &state.fxsave.0;
    let mut registers =
        X86_64CoreRegs { rip: state.rip, eflags: state.rflags as u32, ..Default::default() };
    for (slot, number) in registers.regs.iter_mut().zip(GDB_ORDER) {
        *slot = state.gpr[number];
    }
    let selector = |index: usize| u32::from(state.segments[index].selector);
    registers.segments.cs = selector(seg::CS);
    registers.segments.ss = selector(seg::SS);
    registers.segments.ds = selector(seg::DS);
    registers.segments.es = selector(seg::ES);
    registers.segments.fs = selector(seg::FS);
    registers.segments.gs = selector(seg::GS);
    // The FXSAVE image (SDM vol. 1 table 10-2).
    let word = |offset: usize| u32::from(u16::from_le_bytes([area[offset], area[offset + 1]]));
    registers.fpu.fctrl = word(0);
    registers.fpu.fstat = word(2);
    registers.fpu.fop = word(6);
    for (index, register) in registers.st.iter_mut().enumerate() {
        register.copy_from_slice(&area[32 + index * 16..32 + index * 16 + 10]);
    }
    for (register, vector) in registers.xmm.iter_mut().zip(&state.vector) {
        let mut low = [0; 16];
        low.copy_from_slice(&vector[..16]);
        *register = u128::from_le_bytes(low);
    }
    registers.mxcsr = state.mxcsr;
    registers
}

/// Writes what a debugger may change: general-purpose registers, RIP, flags and vector registers. Segment selectors and
/// x87 registers keep their values, because a selector without its descriptor means nothing.
fn write_registers(cpu: &mut Cpu, registers: &X86_64CoreRegs) {
    let state = &mut *cpu.state;
    for (value, number) in registers.regs.iter().zip(GDB_ORDER) {
        state.gpr[number] = *value;
    }
    state.rip = registers.rip;
    let writable = (Rflags::all() - Rflags::VM).bits();
    state.rflags = u64::from(registers.eflags) & writable | Rflags::FIXED.bits();
    for (value, vector) in registers.xmm.iter().zip(&mut state.vector) {
        vector[..16].copy_from_slice(&value.to_le_bytes());
    }
    cpu.rights_changed();
}

impl MultiThreadBase for Session {
    fn read_registers(
        &mut self,
        registers: &mut X86_64CoreRegs,
        tid: Tid,
    ) -> TargetResult<(), Self> {
        *registers = self.on_cpu(tid, |cpu| read_registers(cpu))?;
        Ok(())
    }

    fn write_registers(&mut self, registers: &X86_64CoreRegs, tid: Tid) -> TargetResult<(), Self> {
        let registers = registers.clone();
        self.on_cpu(tid, move |cpu| write_registers(cpu, &registers))
    }

    fn read_addrs(&mut self, address: u64, data: &mut [u8], tid: Tid) -> TargetResult<usize, Self> {
        let len = data.len();
        let read = self.on_cpu(tid, move |cpu| {
            let mut bytes = vec![0; len];
            if !memory::peek(cpu, address, &mut bytes) {
                return None;
            }
            // GDB sees the program, not its own breakpoints.
            let guest = Arc::clone(&cpu.guest);
            for (at, breakpoint) in guest.debugger.breakpoints() {
                let offset = at.wrapping_sub(address) as usize;
                if offset < len && memory::physical(cpu, at) == Some(breakpoint.gpa) {
                    bytes[offset] = breakpoint.original;
                }
            }
            Some(bytes)
        })?;
        data.copy_from_slice(&read.ok_or(TargetError::NonFatal)?);
        Ok(len)
    }

    fn write_addrs(&mut self, address: u64, data: &[u8], tid: Tid) -> TargetResult<(), Self> {
        let bytes = data.to_vec();
        let written = self.on_cpu(tid, move |cpu| memory::poke(cpu, address, &bytes))?;
        if written { Ok(()) } else { Err(TargetError::NonFatal) }
    }

    fn list_active_threads(&mut self, active: &mut dyn FnMut(Tid)) -> Result<(), &'static str> {
        for vcpu in self.vcpus() {
            active(tid(vcpu.id()));
        }
        Ok(())
    }

    fn support_resume(&mut self) -> Option<MultiThreadResumeOps<'_, Self>> {
        Some(self)
    }
}

impl MultiThreadResume for Session {
    fn resume(&mut self) -> Result<(), &'static str> {
        // Stops that nobody asked about yet belong to the time before.
        while self.events.try_recv().is_ok() {}
        for vcpu in self.vcpus() {
            match self.steps.get(&vcpu.id()) {
                Some(&step) => vcpu.debug_resume(step),
                None if self.locked => {}
                None => vcpu.debug_resume(false),
            }
        }
        Ok(())
    }

    fn clear_resume_actions(&mut self) -> Result<(), &'static str> {
        self.steps.clear();
        self.locked = false;
        Ok(())
    }

    fn set_resume_action_continue(
        &mut self,
        tid: Tid,
        _: Option<Signal>,
    ) -> Result<(), &'static str> {
        self.steps.insert(tid.get() as u32 - 1, false);
        Ok(())
    }

    fn support_single_step(&mut self) -> Option<MultiThreadSingleStepOps<'_, Self>> {
        Some(self)
    }

    fn support_scheduler_locking(&mut self) -> Option<MultiThreadSchedulerLockingOps<'_, Self>> {
        Some(self)
    }
}

impl MultiThreadSchedulerLocking for Session {
    fn set_resume_action_scheduler_lock(&mut self) -> Result<(), &'static str> {
        self.locked = true;
        Ok(())
    }
}

impl MultiThreadSingleStep for Session {
    fn set_resume_action_step(&mut self, tid: Tid, _: Option<Signal>) -> Result<(), &'static str> {
        self.steps.insert(tid.get() as u32 - 1, true);
        Ok(())
    }
}

impl Breakpoints for Session {
    fn support_sw_breakpoint(&mut self) -> Option<SwBreakpointOps<'_, Self>> {
        Some(self)
    }
}

impl SwBreakpoint for Session {
    fn add_sw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        if self.guest.debugger.breakpoint(address).is_some() {
            return Ok(false);
        }
        let breakpoint = self.on_any_cpu(move |cpu| {
            let mut byte = [0];
            let gpa = memory::physical(cpu, address)?;
            let set = memory::peek(cpu, address, &mut byte)
                && memory::poke_physical(cpu, gpa, BREAKPOINT_OPCODE);
            set.then_some(Breakpoint { gpa, original: byte[0] })
        })?;
        if let Some(breakpoint) = breakpoint {
            self.guest.debugger.add_breakpoint(address, breakpoint);
        }
        Ok(breakpoint.is_some())
    }

    fn remove_sw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        let Some(Breakpoint { gpa, original }) = self.guest.debugger.remove_breakpoint(address)
        else {
            return Ok(false);
        };
        self.on_any_cpu(move |cpu| memory::poke_physical(cpu, gpa, original))
    }
}

impl MonitorCmd for Session {
    fn handle_monitor_cmd(
        &mut self,
        command: &[u8],
        mut out: ConsoleOutput<'_>,
    ) -> Result<(), &'static str> {
        if command != b"stats" {
            outputln!(out, "commands: stats");
            return Ok(());
        }
        for vcpu in self.vcpus() {
            match vcpu.run_on_cpu(|cpu| cpu.stats()) {
                Some(stats) => outputln!(out, "vCPU {}: {stats:#?}", vcpu.id()),
                None => outputln!(out, "vCPU {}: its monitor is busy", vcpu.id()),
            }
        }
        Ok(())
    }
}

/// Waits for whichever comes first: a stop, or bytes from GDB.
struct EventLoop<C>(PhantomData<C>);

impl<C> BlockingEventLoop for EventLoop<C>
where
    C: ConnectionExt + Connection<Error = io::Error>,
{
    type Target = Session;
    type Connection = C;
    type StopReason = MultiThreadStopReason<u64>;

    fn wait_for_stop_reason(
        target: &mut Session,
        connection: &mut C,
    ) -> Result<Event<MultiThreadStopReason<u64>>, WaitForStopReasonError<&'static str, io::Error>>
    {
        loop {
            match target.events.recv_timeout(POLL) {
                Ok(event) => {
                    // All-stop: the others stop too, and their reports of it are not news.
                    target.stop_all();
                    let tid = tid(event.vcpu);
                    return Ok(Event::TargetStopped(match event.cause {
                        StopCause::Breakpoint => MultiThreadStopReason::SwBreak(tid),
                        StopCause::Step => {
                            MultiThreadStopReason::SignalWithThread { tid, signal: Signal::SIGTRAP }
                        }
                        StopCause::Interrupted => {
                            MultiThreadStopReason::SignalWithThread { tid, signal: Signal::SIGINT }
                        }
                    }));
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(WaitForStopReasonError::Target("the guest is gone"));
                }
            }
            if connection.peek().map_err(WaitForStopReasonError::Connection)?.is_some() {
                let byte = connection.read().map_err(WaitForStopReasonError::Connection)?;
                return Ok(Event::IncomingData(byte));
            }
        }
    }

    fn on_interrupt(
        target: &mut Session,
    ) -> Result<Option<MultiThreadStopReason<u64>>, &'static str> {
        // The first vCPU that has stopped reports it.
        target.stop_all();
        Ok(None)
    }
}
