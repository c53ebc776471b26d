//! The translator: guest x86-64 code becomes host x86-64 code.
//!
//! What the rest of the crate needs to know:
//! * [`crate::cpu::Cpu`] owns `state: StateBox`, `tlb: Tlb`, `translator: Box<Translator>` and `guest: Arc<Guest>`.
//! * [`run`] executes 64-bit code until something needs the run loop; the state is complete and precise on return,
//!   except that the x87 registers stay in the host's (see [`Translator`]).
//! * Whoever writes guest RAM on behalf of this vCPU calls [`Translator::before_store`] first.
//! * Whoever changes CPL, CR0, CR3, CR4, EFER, XCR0 or RFLAGS.AC flushes through [`crate::tlb::Tlb`] as the architecture
//!   says; `run` and the instruction thunks publish the TLB sets and look the next block up afresh after every
//!   interpreted instruction that can change them.

use crate::exception::Exception;
use crate::exit::Exit;
use crate::guest::Guest;

/// Why [`run`] returned.
#[derive(Debug)]
pub enum RunExit {
    /// Deliver this exception; RIP is at the instruction, or past it for a trap.
    Exception(Exception),
    /// Look at `attention`, pending interrupts, timers and RFLAGS.TF.
    Attention,
    /// The current mode is not 64-bit any more.
    Mode,
    /// Return to the owner of the vCPU.
    Exit(Exit),
    /// HLT: RIP is past it.
    Halt,
    /// A bell's receiver is gone.
    BellClosed,
}

/// Code cache and lookup structures of one vCPU.
pub struct Translator {}

impl Translator {
    /// Allocates the code cache for the vCPU whose state lives at `state_address`.
    pub fn new(state_address: u32) -> Result<Translator, rustix::io::Errno> {
        let _ = state_address;
        Ok(Translator {})
    }

    /// Must be called before Rust code on this vCPU stores to `size` bytes of guest RAM at `gpa`, within one page.
    pub(crate) fn before_store(&mut self, guest: &Guest, gpa: u64, size: usize) {
        let _ = (guest, gpa, size);
    }
}

/// Runs 64-bit code from `cpu.state.rip` until something needs the run loop.
pub(crate) fn run(cpu: &mut crate::cpu::Cpu) -> RunExit {
    let _ = cpu;
    RunExit::Mode
}
