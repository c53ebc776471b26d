//! The translator: guest x86-64 code becomes host x86-64 code.
//!
//! Guest and host have the same instruction set, so instructions are copied. RAX to RDI, R8, R9 and R12 to R14 of the guest
//! are the same host registers, the guest's RSP is R15, and its R10, R11 and R15 live in [`crate::state::CpuState`], which
//! leaves the host's R10 and R11 as scratch registers and its RSP as a stack of return sites (`return_stack`). A memory
//! operand becomes an inline look-up in the TLB set at the GS base and a host pointer (`emit`); status flags stay in the
//! host's RFLAGS and are kept across look-ups only where something still reads them (`liveness`). Blocks are found by
//! page identity and linear address (`cache`, `resolve`), connected on first use (`links`), and dropped when their
//! bytes change (`smc`) or when room is needed and they are not (`evict`). What is not worth copying is interpreted from a thunk (`thunks`, `handlers`); host signals in
//! copied instructions become guest exceptions (`signals`).
//!
//! What the rest of the crate needs to know:
//! * [`run`] executes 64-bit code until something needs the run loop; the state is complete and precise on return, the
//!   x87 registers being in `CpuState::fxsave`.
//! * Whoever writes guest RAM on behalf of this vCPU calls [`Translator::before_store`] first.
//! * Whoever changes CPL, CR0, CR3, CR4, EFER, XCR0 or RFLAGS.AC flushes and publishes through [`crate::tlb::Tlb`] as the
//!   architecture says; after every interpreted instruction that can change them the next block is looked up afresh.

mod arena;
mod asm;
mod cache;
mod classify;
mod emit;
mod evict;
mod fpu;
mod handlers;
mod links;
mod liveness;
mod native;
mod resolve;
mod return_stack;
mod signals;
mod smc;
mod thunks;

use iced_x86::{Encoder, InstructionInfoFactory};

#[cfg(test)]
mod tests;

use crate::cpu::Cpu;
use crate::exception::Exception;
use crate::exit::Exit;
use crate::guest::Guest;
use arena::Arena;
use asm::Asm;
use cache::{Cache, JumpTable};
use return_stack::ReturnStack;
use thunks::{Env, Handlers, Stubs};

pub(crate) use smc::{after_sleep, before_sleep, serve_requests};

/// Why [`run`] returned.
#[derive(Debug)]
pub(crate) enum RunExit {
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

/// A store that went to the bounce buffer and waits for its instruction to have executed.
#[derive(Clone, Copy)]
struct PendingStore {
    va: u64,
    size: usize,
    /// Offset in the bounce buffer, which keeps the alignment of the linear address.
    offset: usize,
    transfers: bool,
}

/// Code cache and lookup structures of one vCPU.
pub(crate) struct Translator {
    arena: Arena,
    asm: Asm,
    encoder: Encoder,
    infos: InstructionInfoFactory,
    cache: Cache,
    jump_table: JumpTable,
    return_stack: ReturnStack,
    env: Env,
    stubs: Stubs,
    /// Bytes of fixed code at the arena's start.
    fixed: usize,
    heat: evict::Heat,
    /// Stores by Rust code to pages with translated code, not yet acted on.
    code_writes: Vec<(u64, usize)>,
    pending_store: Option<PendingStore>,
    /// Why translated code is being left; a poll leaves it empty.
    exit: Option<RunExit>,
    /// Mode of the block looked up last: a change makes every known code page another region.
    mode: Option<cache::Mode>,
    /// Translate and run one instruction at a time.
    single: bool,
    /// The x87 image in the state has been initialized.
    fpu_loaded: bool,
    /// Blocks translated, guest instructions in them, bytes emitted for them.
    pub(crate) counters: Counters,
}

/// What the translator has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counters {
    /// Blocks translated.
    pub(crate) blocks: u64,
    /// Guest instructions in them.
    pub(crate) instructions: u64,
    /// Host bytes emitted for them.
    pub(crate) bytes: u64,
    /// Memory accesses that left the inline path.
    pub(crate) slow_accesses: u64,
    /// Instructions that thunks interpreted.
    pub(crate) interpreted: u64,
    /// Transfers resolved by Rust: first uses of direct links, misses of the jump table.
    pub(crate) links: u64,
    /// As `links`, for indirect transfers.
    pub(crate) indirect: u64,
    /// Blocks invalidated because their bytes changed.
    pub(crate) invalidated: u64,
    /// Times a part of the code cache was emptied.
    pub(crate) flushes: u64,
}

impl Translator {
    /// Allocates the code cache for the vCPU whose state lives at `state_address`.
    ///
    /// Errors: what allocating memory gives. [`crate::host_features`] has checked the host.
    pub(crate) fn new(state_address: u32) -> Result<Translator, rustix::io::Errno> {
        signals::install()?;
        let arena = Arena::new()?;
        let jump_table = JumpTable::new()?;
        let return_stack = ReturnStack::new()?;
        let env = Env {
            state: state_address,
            jump_table: jump_table.address(),
            return_top: return_stack.top(),
            smap: crate::cpuid::supported_cr4() & crate::registers::cr4::SMAP != 0,
            bmi2: std::arch::is_x86_feature_detected!("bmi2"),
        };
        let mut asm = Asm::new();
        asm.reset(arena.base());
        let stubs = thunks::build(
            &mut asm,
            env,
            &Handlers {
                access: handlers::access,
                commit: handlers::commit,
                interpret: handlers::interpret,
                link: handlers::link,
                indirect: handlers::indirect,
            },
        );
        let mut translator = Translator {
            arena,
            asm,
            encoder: Encoder::new(64),
            infos: InstructionInfoFactory::new(),
            cache: Cache::new(),
            jump_table,
            return_stack,
            env,
            stubs,
            fixed: 0,
            heat: evict::Heat::default(),
            code_writes: Vec::new(),
            pending_store: None,
            exit: None,
            mode: None,
            single: false,
            fpu_loaded: false,
            counters: Counters::default(),
        };
        translator.arena.append(&translator.asm.code).ok_or(rustix::io::Errno::NOMEM)?;
        translator.fixed = translator.arena.offset();
        translator.jump_table.clear(stubs.indirect);
        translator.return_stack.reset(stubs.underflow);
        Ok(translator)
    }

    /// Counts a call of Rust from translated code.
    fn note_call(&mut self, caller: u64) {
        self.heat.note_call(self.arena.segment_of(caller));
    }

    /// Must be called before Rust code on this vCPU stores to `size` bytes of guest RAM at `gpa`, within one page.
    pub(crate) fn before_store(&mut self, guest: &Guest, gpa: u64, size: usize) {
        if guest.code.is_watched(gpa >> 12) {
            self.code_writes.push((gpa, size));
        }
    }
}

#[cfg(test)]
impl Translator {
    /// Leaves no room for another block in the current segment.
    fn fill_for_test(&mut self) {
        while self.arena.has_room() {
            assert!(self.arena.append(&[0xcc; 4096]).is_some());
        }
    }

    /// Uses little more than `bytes` of each segment of the code cache.
    fn limit_cache_for_test(&mut self, bytes: usize) {
        let fixed = self.fixed;
        self.arena.limit_for_test(fixed + bytes + arena::BLOCK_ROOM);
    }

    fn code_base_for_test(&self) -> u64 {
        self.arena.base()
    }
}

/// The code of the block at RIP, and how many of its bytes come before the first out-of-line part.
#[cfg(test)]
fn emitted_for_test(cpu: &mut Cpu) -> (Vec<u8>, usize) {
    let before = cpu.translator.arena.offset();
    let block = resolve::block(cpu).expect("a block");
    let code = cpu.translator.asm.code.clone();
    let sites = cpu.translator.cache.sites.of(cpu.translator.arena.current());
    let mine: Vec<_> = sites.iter().filter(|site| site.block == block).collect();
    // Guest offsets ascend in line; the first that does not is out of line.
    let cold =
        mine.windows(2).find(|pair| pair[1].guest <= pair[0].guest).map(|pair| pair[1].offset);
    let in_line = cold.map_or(code.len(), |offset| offset as usize - before);
    (code, in_line)
}

/// Runs 64-bit code from `cpu.state.rip` until something needs the run loop.
pub(crate) fn run(cpu: &mut Cpu) -> RunExit {
    run_with(cpu, false)
}

/// Runs exactly one instruction, of any kind that [`crate::interp`] leaves to the host CPU, in any mode.
pub(crate) fn step(cpu: &mut Cpu) -> RunExit {
    if cpu.is_64bit() { run_with(cpu, true) } else { native::step(cpu) }
}

fn run_with(cpu: &mut Cpu, single: bool) -> RunExit {
    if !cpu.is_64bit() {
        return RunExit::Mode;
    }
    cpu.translator.single = single;
    smc::drain(cpu);
    let block = match resolve::block(cpu) {
        Ok(block) => block,
        Err(exit) => return exit,
    };
    let code = cpu.translator.cache.blocks[block].main;
    cpu.translator.heat.note_entry(cache::segment_of(block));
    let exit = enter(cpu, code);
    cpu.stats.translated_exits += 1;
    smc::drain(cpu);
    exit.unwrap_or(RunExit::Attention)
}

/// Runs code of the arena until it leaves, and says why if the code does not know.
fn enter(cpu: &mut Cpu, code: u64) -> Option<RunExit> {
    cpu.translator.exit = None;
    let top = cpu.translator.return_stack.top();
    if cpu.state.return_stack == 0 {
        cpu.state.return_stack = top;
    }
    cpu.rights_changed();
    cpu.publish_pending();
    cpu.state.context = std::ptr::from_mut(cpu) as u64;
    fpu::load(cpu);
    let enter = cpu.translator.stubs.enter;
    // SAFETY: `enter` is the address of code that `thunks::build` emitted with this signature and that keeps the
    // System V calling convention. The state it works on is `cpu`'s, reached through the address given at creation
    // and through `context`; no Rust reference to it is used before the call returns.
    let enter: extern "C" fn(u64) =
        unsafe { std::mem::transmute::<u64, extern "C" fn(u64)>(enter) };
    let guard = signals::Running::new(cpu);
    enter(code);
    drop(guard);
    fpu::store(cpu);
    cpu.translator.exit.take()
}
