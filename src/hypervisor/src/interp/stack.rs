//! Stack instructions. The stack pointer is written after the last access that can fault.

use super::operand::{self, mask};
use super::{Flow, Outcome};
use crate::cpu::Cpu;
use crate::exception::Fault;
use crate::memory;
use crate::mmu::AccessKind;
use crate::registers::rflags;
use crate::segment;
use crate::state::{gpr, seg};
use iced_x86::{Code, Instruction, Mnemonic, OpKind};

/// Width in bytes of the stack pointer.
fn address_size(cpu: &Cpu) -> usize {
    if cpu.is_64bit() {
        8
    } else if cpu.state.segments[seg::SS].is_default_32() {
        4
    } else {
        2
    }
}

/// Sets the part of RSP that the stack width covers.
pub(super) fn set_pointer(cpu: &mut Cpu, value: u64) {
    let width = mask(address_size(cpu));
    let rsp = &mut cpu.state.gpr[gpr::RSP];
    *rsp = if width == mask(4) { value & width } else { *rsp & !width | value & width };
}

/// Stack pointer moved by `delta` and cut to the stack width.
fn moved(cpu: &Cpu, delta: i64) -> u64 {
    cpu.state.gpr[gpr::RSP].wrapping_add_signed(delta) & mask(address_size(cpu))
}

/// Adds `bytes` to the stack pointer.
pub(super) fn release(cpu: &mut Cpu, bytes: u64) {
    let value = moved(cpu, bytes as i64);
    set_pointer(cpu, value);
}

/// Reads the word `depth` bytes above the stack pointer. Gives it with the stack pointer past it.
pub(super) fn peek(cpu: &mut Cpu, depth: u64, size: usize) -> Result<(u64, u64), Fault> {
    let offset = moved(cpu, depth as i64);
    let va = segment::linear(cpu, seg::SS, offset, size as u64, AccessKind::Read)?;
    let value = memory::load(cpu, va, size)?;
    Ok((value, moved(cpu, (depth + size as u64) as i64)))
}

/// Writes the word `depth + size` bytes below the stack pointer, without moving it.
fn poke(cpu: &mut Cpu, depth: u64, value: u64, size: usize) -> Result<u64, Fault> {
    let offset = moved(cpu, -((depth + size as u64) as i64));
    let va = segment::linear(cpu, seg::SS, offset, size as u64, AccessKind::Write)?;
    memory::store(cpu, va, size, value)?;
    Ok(offset)
}

/// Pushes one word.
pub(super) fn push(cpu: &mut Cpu, value: u64, size: usize) -> Result<(), Fault> {
    let rsp = poke(cpu, 0, value, size)?;
    set_pointer(cpu, rsp);
    Ok(())
}

/// Pushes several words of one size, first to last, or none.
pub(super) fn push_all(cpu: &mut Cpu, values: &[u64], size: usize) -> Result<(), Fault> {
    let mut rsp = cpu.state.gpr[gpr::RSP];
    for (index, &value) in values.iter().enumerate() {
        rsp = poke(cpu, (index * size) as u64, value, size)?;
    }
    set_pointer(cpu, rsp);
    Ok(())
}

pub(super) fn execute(cpu: &mut Cpu, instruction: &Instruction) -> Outcome {
    match instruction.mnemonic() {
        Mnemonic::Push => push_operand(cpu, instruction),
        Mnemonic::Pop => pop_operand(cpu, instruction),
        Mnemonic::Pushf | Mnemonic::Pushfd | Mnemonic::Pushfq => push_flags(cpu, instruction),
        Mnemonic::Popf | Mnemonic::Popfd | Mnemonic::Popfq => pop_flags(cpu, instruction),
        Mnemonic::Pusha | Mnemonic::Pushad => push_registers(cpu, instruction),
        Mnemonic::Popa | Mnemonic::Popad => pop_registers(cpu, instruction),
        Mnemonic::Enter => enter(cpu, instruction),
        _ => leave(cpu, instruction),
    }
}

/// Operand size in bytes of a PUSH or POP.
fn transfer_size(cpu: &Cpu, instruction: &Instruction) -> usize {
    match instruction.code() {
        Code::Pushw_imm8 | Code::Push_imm16 => 2,
        Code::Pushd_imm8 | Code::Pushd_imm32 => 4,
        Code::Pushq_imm8 | Code::Pushq_imm32 => 8,
        _ if instruction.op0_kind() == OpKind::Register
            && instruction.op0_register().is_segment_register() =>
        {
            let change = instruction.stack_pointer_increment().unsigned_abs() as usize;
            if change == 0 { (cpu.code_bits() / 8) as usize } else { change }
        }
        _ => operand::size(instruction, 0),
    }
}

fn push_operand(cpu: &mut Cpu, instruction: &Instruction) -> Outcome {
    let size = transfer_size(cpu, instruction);
    let value = operand::read(cpu, instruction, 0)?;
    push(cpu, value, size)?;
    Ok(Flow::Next)
}

fn pop_operand(cpu: &mut Cpu, instruction: &Instruction) -> Outcome {
    let size = transfer_size(cpu, instruction);
    let (value, rsp) = peek(cpu, 0, size)?;
    if instruction.op0_kind() == OpKind::Register
        && instruction.op0_register().is_segment_register()
    {
        let index = operand::segment_index(instruction.op0_register());
        segment::load_data(cpu, index, value as u16)?;
        set_pointer(cpu, rsp);
        if index == seg::SS {
            cpu.interrupt_shadow = Some(cpu.wrap_ip(instruction.next_ip()));
        }
        return Ok(finish(cpu, instruction, Flow::Jump));
    }
    // An RSP-relative destination is computed with the incremented stack pointer (SDM vol. 2, POP).
    let old = cpu.state.gpr[gpr::RSP];
    set_pointer(cpu, rsp);
    if let Err(fault) = operand::write(cpu, instruction, 0, value) {
        cpu.state.gpr[gpr::RSP] = old;
        return Err(fault);
    }
    Ok(Flow::Next)
}

/// Moves RIP past the instruction for a handler that returns `Flow::Jump`.
pub(super) fn finish(cpu: &mut Cpu, instruction: &Instruction, flow: Flow) -> Flow {
    cpu.state.rip = cpu.wrap_ip(instruction.next_ip());
    flow
}

/// Operand size in bytes of PUSHF, POPF, PUSHA, POPA, ENTER and LEAVE.
fn implicit_size(instruction: &Instruction) -> usize {
    match instruction.code() {
        Code::Pushfw
        | Code::Popfw
        | Code::Pushaw
        | Code::Popaw
        | Code::Enterw_imm16_imm8
        | Code::Leavew => 2,
        Code::Pushfd
        | Code::Popfd
        | Code::Pushad
        | Code::Popad
        | Code::Enterd_imm16_imm8
        | Code::Leaved => 4,
        _ => 8,
    }
}

fn push_flags(cpu: &mut Cpu, instruction: &Instruction) -> Outcome {
    let value = cpu.state.rflags & !(rflags::VM | rflags::RF);
    push(cpu, value, implicit_size(instruction))?;
    Ok(Flow::Next)
}

/// Flags that POPF and IRET write with an operand of `size` bytes at privilege level `cpl`.
pub(super) fn writable_flags(cpu: &Cpu, size: usize) -> u64 {
    let mut mask = rflags::STATUS | rflags::TF | rflags::DF | rflags::NT;
    if size > 2 {
        mask |= rflags::AC | rflags::ID;
    }
    let cpl = cpu.cpl();
    if cpl == 0 {
        mask |= rflags::IOPL;
    }
    if u64::from(cpl) <= (cpu.state.rflags & rflags::IOPL) >> 12 {
        mask |= rflags::IF;
    }
    mask
}

fn pop_flags(cpu: &mut Cpu, instruction: &Instruction) -> Outcome {
    let size = implicit_size(instruction);
    let (value, rsp) = peek(cpu, 0, size)?;
    let mask = writable_flags(cpu, size);
    set_pointer(cpu, rsp);
    set_flags(cpu, value, mask);
    cpu.state.rflags &= !rflags::RF;
    Ok(finish(cpu, instruction, Flow::Jump))
}

/// Replaces the flags in `mask`, and acts on what they change.
pub(super) fn set_flags(cpu: &mut Cpu, value: u64, mask: u64) {
    let old = cpu.state.rflags;
    cpu.state.rflags = old & !mask | value & mask & rflags::ALL | rflags::FIXED;
    let changed = old ^ cpu.state.rflags;
    if changed & rflags::AC != 0 {
        cpu.rights_changed();
    }
    if changed & rflags::IF != 0 {
        cpu.interrupt_window_changed();
    }
}

fn push_registers(cpu: &mut Cpu, instruction: &Instruction) -> Outcome {
    let registers = cpu.state.gpr;
    push_all(cpu, &registers[..8], implicit_size(instruction))?;
    Ok(Flow::Next)
}

fn pop_registers(cpu: &mut Cpu, instruction: &Instruction) -> Outcome {
    let size = implicit_size(instruction);
    let mut values = [0; 8];
    let mut rsp = 0;
    for (index, value) in values.iter_mut().enumerate() {
        (*value, rsp) = peek(cpu, (index * size) as u64, size)?;
    }
    for (number, value) in values.into_iter().rev().enumerate() {
        // The stored stack pointer is skipped.
        if number != gpr::RSP {
            let slot = &mut cpu.state.gpr[number];
            *slot = if size == 2 { *slot & !0xffff | value } else { value };
        }
    }
    set_pointer(cpu, rsp);
    Ok(Flow::Next)
}

/// ENTER with any nesting level (SDM vol. 2).
fn enter(cpu: &mut Cpu, instruction: &Instruction) -> Outcome {
    let size = implicit_size(instruction);
    let allocation = u64::from(instruction.immediate16());
    let level = u64::from(instruction.immediate8_2nd() % 32);
    let step = size as u64;
    let frame_pointer = cpu.state.gpr[gpr::RBP];
    let width = mask(address_size(cpu));
    poke(cpu, 0, frame_pointer, size)?;
    let frame = moved(cpu, -(size as i64));
    let mut depth = step;
    for index in 1..level {
        let offset = frame_pointer.wrapping_sub(index * step) & width;
        let va = segment::linear(cpu, seg::SS, offset, step, AccessKind::Read)?;
        let display = memory::load(cpu, va, size)?;
        poke(cpu, depth, display, size)?;
        depth += step;
    }
    if level > 0 {
        poke(cpu, depth, frame, size)?;
        depth += step;
    }
    let rsp = moved(cpu, -((depth + allocation) as i64));
    // The final stack pointer is checked with a write, as SDM vol. 2 says.
    let va = segment::linear(cpu, seg::SS, rsp, step, AccessKind::Write)?;
    let access = crate::mmu::Access::current(cpu, AccessKind::Write);
    cpu.lookup(va, access)?;
    let rbp = &mut cpu.state.gpr[gpr::RBP];
    *rbp = match size {
        2 => *rbp & !0xffff | frame & 0xffff,
        4 => frame & mask(4),
        _ => frame,
    };
    set_pointer(cpu, rsp);
    Ok(Flow::Next)
}

fn leave(cpu: &mut Cpu, instruction: &Instruction) -> Outcome {
    let size = implicit_size(instruction);
    let offset = cpu.state.gpr[gpr::RBP] & mask(address_size(cpu));
    let va = segment::linear(cpu, seg::SS, offset, size as u64, AccessKind::Read)?;
    let value = memory::load(cpu, va, size)?;
    set_pointer(cpu, offset.wrapping_add(size as u64));
    let rbp = &mut cpu.state.gpr[gpr::RBP];
    *rbp = if size == 2 { *rbp & !0xffff | value } else { value };
    Ok(Flow::Next)
}
