//! Host signals in translated code become guest exceptions; anywhere else they go where they went before.

use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::mem::MaybeUninit;
use std::sync::OnceLock;

use rustix::io::Errno;

use super::RunExit;
use super::handlers::{flags_from_slot, set_rip};
use crate::cpu::Cpu;
use crate::exception::Exception;
use crate::state::Rflags;

const SIGNALS: [c_int; 4] = [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL];
const STACK_SIZE: usize = 64 << 10;

thread_local! {
    /// The vCPU whose translated code this thread is running.
    static RUNNING: Cell<*mut Cpu> = const { Cell::new(std::ptr::null_mut()) };
    /// This thread's signal stack, once it has one of ours.
    static STACK: Cell<Option<SignalStack>> = const { Cell::new(None) };
    static HAS_STACK: Cell<bool> = const { Cell::new(false) };
}

/// An alternate signal stack; disabled and freed when its thread ends.
struct SignalStack(Box<[MaybeUninit<u8>]>);

impl SignalStack {
    fn install() -> Option<SignalStack> {
        let mut memory = Box::new_uninit_slice(STACK_SIZE);
        let stack =
            libc::stack_t { ss_sp: memory.as_mut_ptr().cast(), ss_flags: 0, ss_size: STACK_SIZE };
        // SAFETY: the memory stays allocated until `drop` has disabled the stack.
        let done = unsafe { libc::sigaltstack(&stack, std::ptr::null_mut()) };
        (done == 0).then_some(SignalStack(memory))
    }
}

impl Drop for SignalStack {
    fn drop(&mut self) {
        let off = libc::stack_t {
            ss_sp: std::ptr::null_mut(),
            ss_flags: libc::SS_DISABLE,
            ss_size: self.0.len(),
        };
        // SAFETY: disabling the alternate stack of this thread, which runs on its ordinary one now.
        unsafe {
            libc::sigaltstack(&off, std::ptr::null_mut());
        }
    }
}

/// Marks the span in which this thread runs translated code of a vCPU.
pub(super) struct Running;

impl Running {
    pub(super) fn new(cpu: *mut Cpu) -> Running {
        if !HAS_STACK.get() {
            HAS_STACK.set(true);
            STACK.set(SignalStack::install());
        }
        RUNNING.set(cpu);
        Running
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        RUNNING.set(std::ptr::null_mut());
    }
}

struct Previous([libc::sigaction; SIGNALS.len()]);

static PREVIOUS: OnceLock<Result<Previous, i32>> = OnceLock::new();

/// Installs the handlers, once per process.
pub(super) fn install() -> Result<(), Errno> {
    let installed = PREVIOUS.get_or_init(|| {
        // SAFETY: zero bytes are a valid `sigaction` (SIG_DFL, empty mask).
        let mut previous: [libc::sigaction; SIGNALS.len()] = unsafe { std::mem::zeroed() };
        for (signal, previous) in SIGNALS.into_iter().zip(&mut previous) {
            // SAFETY: as above.
            let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
            action.sa_sigaction = handle as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
            // SAFETY: `handle` has the signature that SA_SIGINFO asks for and is async-signal-safe.
            if unsafe { libc::sigaction(signal, &action, previous) } != 0 {
                return Err(std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EINVAL));
            }
        }
        Ok(Previous(previous))
    });
    match installed {
        Ok(_) => Ok(()),
        Err(errno) => Err(Errno::from_raw_os_error(*errno)),
    }
}

extern "C" fn handle(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    let running = RUNNING.get();
    if !running.is_null() {
        // SAFETY: the kernel passes valid pointers. Translated code was interrupted or a thunk's Rust part was; in the
        // latter case `in_translated_code` touches only the arena's bounds and nothing else of the vCPU.
        unsafe {
            let context = &mut *context.cast::<libc::ucontext_t>();
            if in_translated_code(running, signal, &*info, context) {
                return;
            }
        }
    }
    // SAFETY: forwarding to whoever had the signal before, with the arguments it expects.
    unsafe { forward(signal, info, context) }
}

/// Handles a signal if the host was executing translated code.
///
/// # Safety
/// `cpu` is the vCPU this thread is in `run` for.
unsafe fn in_translated_code(
    cpu: *mut Cpu,
    signal: c_int,
    info: &libc::siginfo_t,
    context: &mut libc::ucontext_t,
) -> bool {
    let rip = context.uc_mcontext.gregs[libc::REG_RIP as usize] as u64;
    // SAFETY: only reads immutable fields of the translator while a thunk may hold the vCPU.
    let (inside, guard, exit) = unsafe {
        let translator = &(*cpu).translator;
        (
            translator.arena.contains(rip),
            signal == libc::SIGSEGV && translator.return_stack.is_guard(info.si_addr() as u64),
            translator.stubs.exit,
        )
    };
    if !inside {
        return false;
    }
    if guard {
        let old = context.uc_mcontext.gregs[libc::REG_RSP as usize] as u64;
        // SAFETY: translated code was interrupted on its return stack, so nobody else uses it.
        let new = unsafe { (*cpu).translator.return_stack.restart(old) };
        context.uc_mcontext.gregs[libc::REG_RSP as usize] = new as i64;
        return true;
    }
    // SAFETY: translated code was interrupted, so nobody else uses the vCPU.
    let cpu = unsafe { &mut *cpu };
    let Some(exception) = exception_of(signal, info, context) else {
        return false;
    };
    // The return address of a call here would be one past; `set_rip` takes one off again.
    set_rip(cpu, rip + 1);
    let at = (rip - cpu.translator.arena.base()) as u32;
    if cpu.translator.cache.site(at).is_some_and(|site| site.parked) {
        // The exit stub takes the guest's status flags from the host's.
        flags_from_slot(cpu);
        let status = Rflags::STATUS.bits() as i64;
        let host = &mut context.uc_mcontext.gregs[libc::REG_EFL as usize];
        *host = *host & !status | cpu.state.rflags as i64 & status;
    }
    cpu.translator.exit = Some(RunExit::Exception(exception));
    context.uc_mcontext.gregs[libc::REG_RIP as usize] = exit as i64;
    true
}

fn exception_of(
    signal: c_int,
    info: &libc::siginfo_t,
    context: &libc::ucontext_t,
) -> Option<Exception> {
    match signal {
        libc::SIGFPE => Some(match info.si_code {
            // FPE_INTDIV, FPE_INTOVF
            1 | 2 => Exception::de(),
            _ if is_x87(context) => Exception::mf(),
            _ => Exception::xm(),
        }),
        libc::SIGILL => Some(Exception::ud()),
        // SI_KERNEL without an address: a general-protection fault, here from a misaligned vector access or a bad MXCSR.
        libc::SIGSEGV if info.si_code == 0x80 => Some(Exception::gp(0)),
        _ => None,
    }
}

/// An unmasked x87 exception was pending when the signal came.
fn is_x87(context: &libc::ucontext_t) -> bool {
    let state = context.uc_mcontext.fpregs;
    // SAFETY: the kernel points `fpregs` at the interrupted x87 state in the signal frame, or leaves it null.
    !state.is_null() && unsafe { (*state).swd } & 0x80 != 0
}

/// Calls the action that was there before ours.
///
/// # Safety
/// The arguments are those of a signal handler.
unsafe fn forward(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    let index = SIGNALS.iter().position(|&s| s == signal);
    let previous = match (PREVIOUS.get(), index) {
        (Some(Ok(previous)), Some(index)) => previous.0[index],
        // SAFETY: zero bytes are SIG_DFL.
        _ => unsafe { std::mem::zeroed() },
    };
    // SAFETY: the previous action's function has the signature its flags say; restoring it and returning makes the
    // instruction fault again under the default action.
    unsafe {
        match previous.sa_sigaction {
            libc::SIG_DFL | libc::SIG_IGN => {
                libc::sigaction(signal, &previous, std::ptr::null_mut());
            }
            function if previous.sa_flags & libc::SA_SIGINFO != 0 => {
                let function: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) =
                    std::mem::transmute(function);
                function(signal, info, context);
            }
            function => {
                let function: extern "C" fn(c_int) = std::mem::transmute(function);
                function(signal);
            }
        }
    }
}
