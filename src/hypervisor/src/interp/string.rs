//! String instructions. Every completed element is visible in the registers before the next begins, so a fault or an
//! interrupt in the middle restarts the instruction where it stopped (SDM vol. 1 §7.3.9.1).

use super::io::{self, InputTarget, PendingInput};
use super::operand::{self, mask, segment_index};
use super::{Flow, Outcome, flags_asm};
use crate::cpu::Cpu;
use crate::exception::Fault;
use crate::exit::Exit;
use crate::memory::{self, Span};
use crate::mmu::{Access, AccessKind};
use crate::registers::rflags;
use crate::segment;
use crate::state::{gpr, seg};
use iced_x86::{Instruction, Mnemonic, OpKind, Register};
use std::arch::asm;
use std::sync::atomic::Ordering;

const PAGE_SIZE: u64 = crate::guest::PAGE_SIZE;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Operation {
    Move,
    Store,
    Load,
    Scan,
    Compare,
    Input,
    Output,
}

/// A string instruction's fixed parameters.
struct Plan {
    operation: Operation,
    /// Element size in bytes.
    size: usize,
    /// Address size in bytes.
    width: usize,
    /// Segment of the source.
    source: usize,
    repeats: bool,
    /// REPNE for SCAS and CMPS: stop when equal.
    until_equal: bool,
}

fn plan(instruction: &Instruction) -> Option<Plan> {
    use Mnemonic as M;
    let operation = match instruction.mnemonic() {
        M::Movsb | M::Movsw | M::Movsd | M::Movsq => Operation::Move,
        M::Stosb | M::Stosw | M::Stosd | M::Stosq => Operation::Store,
        M::Lodsb | M::Lodsw | M::Lodsd | M::Lodsq => Operation::Load,
        M::Scasb | M::Scasw | M::Scasd | M::Scasq => Operation::Scan,
        M::Cmpsb | M::Cmpsw | M::Cmpsd | M::Cmpsq => Operation::Compare,
        M::Insb | M::Insw | M::Insd => Operation::Input,
        M::Outsb | M::Outsw | M::Outsd => Operation::Output,
        _ => return None,
    };
    let width = (0..instruction.op_count()).find_map(|index| match instruction.op_kind(index) {
        OpKind::MemorySegSI | OpKind::MemorySegDI | OpKind::MemoryESDI => Some(2),
        OpKind::MemorySegESI | OpKind::MemorySegEDI | OpKind::MemoryESEDI => Some(4),
        OpKind::MemorySegRSI | OpKind::MemorySegRDI | OpKind::MemoryESRDI => Some(8),
        _ => None,
    })?;
    Some(Plan {
        operation,
        size: instruction.memory_size().size(),
        width,
        source: segment_index(instruction.memory_segment()),
        repeats: instruction.has_rep_prefix() || instruction.has_repne_prefix(),
        until_equal: instruction.has_repne_prefix(),
    })
}

impl Plan {
    fn register(&self, cpu: &Cpu, number: usize) -> u64 {
        cpu.state.gpr[number] & mask(self.width)
    }

    fn set_register(&self, cpu: &mut Cpu, number: usize, value: u64) {
        let slot = &mut cpu.state.gpr[number];
        *slot = match self.width {
            2 => *slot & !0xffff | value & 0xffff,
            4 => value & 0xffff_ffff,
            _ => value,
        };
    }

    fn source_address(&self, cpu: &Cpu, bytes: u64) -> Result<u64, Fault> {
        let offset = self.register(cpu, gpr::RSI);
        Ok(segment::linear(cpu, self.source, offset, bytes, AccessKind::Read)?)
    }

    fn target_address(&self, cpu: &Cpu, bytes: u64, kind: AccessKind) -> Result<u64, Fault> {
        let offset = self.register(cpu, gpr::RDI);
        Ok(segment::linear(cpu, seg::ES, offset, bytes, kind)?)
    }

    fn uses_source(&self) -> bool {
        matches!(
            self.operation,
            Operation::Move | Operation::Load | Operation::Compare | Operation::Output
        )
    }

    fn uses_target(&self) -> bool {
        !matches!(self.operation, Operation::Load | Operation::Output)
    }

    /// Moves the index registers by `elements` and counts them.
    fn advance(&self, cpu: &mut Cpu, elements: u64) {
        let bytes = elements.wrapping_mul(self.size as u64);
        let step = if cpu.state.rflags & rflags::DF != 0 { bytes.wrapping_neg() } else { bytes };
        if self.uses_source() {
            let value = self.register(cpu, gpr::RSI).wrapping_add(step);
            self.set_register(cpu, gpr::RSI, value);
        }
        if self.uses_target() {
            let value = self.register(cpu, gpr::RDI).wrapping_add(step);
            self.set_register(cpu, gpr::RDI, value);
        }
        if self.repeats {
            let value = self.register(cpu, gpr::RCX).wrapping_sub(elements);
            self.set_register(cpu, gpr::RCX, value);
        }
    }
}

pub(super) fn execute(cpu: &mut Cpu, instruction: &Instruction) -> Outcome {
    let Some(plan) = plan(instruction) else {
        return Err(crate::exception::Exception::ud().into());
    };
    loop {
        if plan.repeats && plan.register(cpu, gpr::RCX) == 0 {
            return Ok(Flow::Next);
        }
        let bulk = plan.repeats && matches!(plan.operation, Operation::Move | Operation::Store);
        if !bulk || !run_bulk(cpu, &plan)? {
            match run_element(cpu, &plan)? {
                Element::Done => {}
                Element::Stop => return Ok(Flow::Next),
                Element::Exit(exit) => {
                    let again = plan.repeats && plan.register(cpu, gpr::RCX) != 0;
                    // With more to do RIP stays at the instruction, so the next entry goes on with it.
                    return if again { Err(Fault::Exit(exit)) } else { Ok(Flow::Exit(exit)) };
                }
            }
        }
        if !plan.repeats {
            return Ok(Flow::Next);
        }
        if cpu.state.attention.load(Ordering::Relaxed) != 0 && plan.register(cpu, gpr::RCX) != 0 {
            return Ok(Flow::Jump);
        }
    }
}

/// Runs as many elements as lie in one page of RAM on either side, with the host's own string instruction. False when
/// the next element needs the careful path.
fn run_bulk(cpu: &mut Cpu, plan: &Plan) -> Result<bool, Fault> {
    if cpu.state.rflags & rflags::DF != 0 {
        return Ok(false);
    }
    let size = plan.size as u64;
    let room = |offset: u64| (PAGE_SIZE - offset % PAGE_SIZE) / size;
    let to = plan.target_address(cpu, size, AccessKind::Write)?;
    let mut count = plan.register(cpu, gpr::RCX).min(room(to));
    let mut from = None;
    if plan.operation == Operation::Move {
        let va = plan.source_address(cpu, size)?;
        count = count.min(room(va));
        from = Some(va);
    }
    let bytes = count * size;
    let in_limits = count != 0
        && plan.target_address(cpu, bytes, AccessKind::Write).is_ok()
        && (from.is_none() || plan.source_address(cpu, bytes).is_ok())
        && plan
            .register(cpu, gpr::RDI)
            .checked_add(bytes)
            .is_some_and(|end| end <= mask(plan.width))
        && plan
            .register(cpu, gpr::RSI)
            .checked_add(bytes)
            .is_some_and(|end| end <= mask(plan.width));
    if !in_limits {
        return Ok(false);
    }
    let read = Access::current(cpu, AccessKind::Read);
    let write = Access::current(cpu, AccessKind::Write);
    let source = match from {
        Some(va) => match cpu.lookup(va, read)? {
            Some((host, _)) => Some(host),
            None => return Ok(false),
        },
        None => None,
    };
    let Some((target, gpa)) = cpu.lookup(to, write)? else {
        return Ok(false);
    };
    cpu.before_store(gpa, bytes as usize);
    match source {
        // SAFETY: both sides are guest RAM for `count` elements, each inside one page; overlap has the guest's meaning.
        Some(source) => unsafe { host_move(target, source, count, plan.size) },
        // SAFETY: the target is guest RAM for `count` elements inside one page.
        None => unsafe { host_fill(target, cpu.state.gpr[gpr::RAX], count, plan.size) },
    }
    plan.advance(cpu, count);
    Ok(true)
}

/// # Safety
/// `target` must be writable and `source` readable for `count` elements of `size` bytes.
unsafe fn host_move(target: *mut u8, source: *const u8, count: u64, size: usize) {
    // SAFETY: the caller vouches for the memory; the ABI keeps DF clear, and the registers are declared.
    unsafe {
        match size {
            1 => {
                asm!("rep movsb", inout("rdi") target => _, inout("rsi") source => _, inout("rcx") count => _, options(nostack, preserves_flags));
            }
            2 => {
                asm!("rep movsw", inout("rdi") target => _, inout("rsi") source => _, inout("rcx") count => _, options(nostack, preserves_flags));
            }
            4 => {
                asm!("rep movsd", inout("rdi") target => _, inout("rsi") source => _, inout("rcx") count => _, options(nostack, preserves_flags));
            }
            _ => {
                asm!("rep movsq", inout("rdi") target => _, inout("rsi") source => _, inout("rcx") count => _, options(nostack, preserves_flags));
            }
        }
    }
}

/// # Safety
/// `target` must be writable for `count` elements of `size` bytes.
unsafe fn host_fill(target: *mut u8, value: u64, count: u64, size: usize) {
    // SAFETY: as in `host_move`.
    unsafe {
        match size {
            1 => {
                asm!("rep stosb", inout("rdi") target => _, in("rax") value, inout("rcx") count => _, options(nostack, preserves_flags));
            }
            2 => {
                asm!("rep stosw", inout("rdi") target => _, in("rax") value, inout("rcx") count => _, options(nostack, preserves_flags));
            }
            4 => {
                asm!("rep stosd", inout("rdi") target => _, in("rax") value, inout("rcx") count => _, options(nostack, preserves_flags));
            }
            _ => {
                asm!("rep stosq", inout("rdi") target => _, in("rax") value, inout("rcx") count => _, options(nostack, preserves_flags));
            }
        }
    }
}

enum Element {
    Done,
    /// The condition of REPE or REPNE ended the instruction.
    Stop,
    Exit(Exit),
}

fn accumulator(size: usize) -> Register {
    match size {
        1 => Register::AL,
        2 => Register::AX,
        4 => Register::EAX,
        _ => Register::RAX,
    }
}

/// Runs one element with every check.
fn run_element(cpu: &mut Cpu, plan: &Plan) -> Result<Element, Fault> {
    let size = plan.size;
    let bytes = size as u64;
    match plan.operation {
        Operation::Move => {
            let from = plan.source_address(cpu, bytes)?;
            let to = plan.target_address(cpu, bytes, AccessKind::Write)?;
            let value = memory::load(cpu, from, size)?;
            memory::store(cpu, to, size, value)?;
        }
        Operation::Store => {
            let to = plan.target_address(cpu, bytes, AccessKind::Write)?;
            memory::store(cpu, to, size, cpu.state.gpr[gpr::RAX])?;
        }
        Operation::Load => {
            let from = plan.source_address(cpu, bytes)?;
            let value = memory::load(cpu, from, size)?;
            operand::write_register(cpu, accumulator(size), value);
        }
        Operation::Scan => {
            let at = plan.target_address(cpu, bytes, AccessKind::Read)?;
            let value = memory::load(cpu, at, size)?;
            let left = cpu.state.gpr[gpr::RAX] & mask(size);
            return Ok(compare(cpu, plan, left, value));
        }
        Operation::Compare => {
            let from = plan.source_address(cpu, bytes)?;
            let at = plan.target_address(cpu, bytes, AccessKind::Read)?;
            let left = memory::load(cpu, from, size)?;
            let right = memory::load(cpu, at, size)?;
            return Ok(compare(cpu, plan, left, right));
        }
        Operation::Input => return input(cpu, plan),
        Operation::Output => return output(cpu, plan),
    }
    plan.advance(cpu, 1);
    Ok(Element::Done)
}

/// Compares two elements, and ends the instruction when its condition says so.
fn compare(cpu: &mut Cpu, plan: &Plan, left: u64, right: u64) -> Element {
    let (_, status) = flags_asm::sub(plan.size, left, right, cpu.state.rflags);
    cpu.state.rflags = cpu.state.rflags & !rflags::STATUS | status;
    plan.advance(cpu, 1);
    let equal = status & rflags::ZF != 0;
    if plan.repeats && equal == plan.until_equal { Element::Stop } else { Element::Done }
}

fn input(cpu: &mut Cpu, plan: &Plan) -> Result<Element, Fault> {
    let port = cpu.state.gpr[gpr::RDX] as u16;
    io::check_port(cpu, port, plan.size)?;
    let to = plan.target_address(cpu, plan.size as u64, AccessKind::Write)?;
    // Faults come before the port is read.
    let access = Access::current(cpu, AccessKind::Write);
    let span = Span::new(cpu, to, plan.size, access)?;
    let exit = io::exit(cpu, port, plan.size, None);
    match exit {
        Some(exit) => {
            cpu.pending_input =
                Some(PendingInput { size: plan.size as u8, target: InputTarget::Memory(to) });
            plan.advance(cpu, 1);
            Ok(Element::Exit(exit))
        }
        None => {
            span.store(cpu, u64::MAX)?;
            plan.advance(cpu, 1);
            Ok(Element::Done)
        }
    }
}

fn output(cpu: &mut Cpu, plan: &Plan) -> Result<Element, Fault> {
    let port = cpu.state.gpr[gpr::RDX] as u16;
    io::check_port(cpu, port, plan.size)?;
    let from = plan.source_address(cpu, plan.size as u64)?;
    let value = memory::load(cpu, from, plan.size)?;
    let exit = io::exit(cpu, port, plan.size, Some(value));
    plan.advance(cpu, 1);
    Ok(exit.map_or(Element::Done, Element::Exit))
}
