//! Data movement, conversions, conditional moves and sets, single flags.

use super::operand::{self, mask, sign_extend};
use super::{Flow, Outcome};
use crate::cpu::Cpu;
use crate::exception::Exception;
use crate::memory;
use crate::mmu::AccessKind;
use crate::registers::rflags;
use crate::segment;
use crate::state::gpr;
use iced_x86::{ConditionCode, Instruction, Mnemonic, OpKind, Register};

/// MOV between registers, memory and immediates, and its relatives.
pub(super) fn execute(cpu: &mut Cpu, instruction: &Instruction) -> Outcome {
    let size = operand::size(instruction, 0);
    match instruction.mnemonic() {
        Mnemonic::Movsx | Mnemonic::Movsxd => {
            let value = operand::read(cpu, instruction, 1)?;
            let value = sign_extend(value, operand::size(instruction, 1));
            operand::write(cpu, instruction, 0, value)?;
        }
        Mnemonic::Movbe => {
            let value = operand::read(cpu, instruction, 1)?;
            operand::write(cpu, instruction, 0, swap_bytes(value, size))?;
        }
        Mnemonic::Bswap => {
            let value = operand::read(cpu, instruction, 0)?;
            // SDM vol. 2 leaves a 16-bit BSWAP undefined; processors store zero.
            let swapped = if size == 2 { 0 } else { swap_bytes(value, size) };
            operand::write(cpu, instruction, 0, swapped)?;
        }
        Mnemonic::Lea => {
            let value = operand::offset(cpu, instruction);
            operand::write(cpu, instruction, 0, value)?;
        }
        Mnemonic::Xchg => exchange(cpu, instruction)?,
        Mnemonic::Xlatb => {
            let index = operand::segment_index(instruction.memory_segment());
            // The index register AL is part of the operand.
            let offset = operand::offset(cpu, instruction);
            let va = segment::linear(cpu, index, offset, 1, AccessKind::Read)?;
            let value = memory::load(cpu, va, 1)?;
            operand::write_register(cpu, Register::AL, value);
        }
        _ => {
            let value = operand::read(cpu, instruction, 1)?;
            operand::write(cpu, instruction, 0, value)?;
        }
    }
    Ok(Flow::Next)
}

fn swap_bytes(value: u64, size: usize) -> u64 {
    value.swap_bytes() >> (64 - 8 * size as u32)
}

/// XCHG: locked when it has a memory operand, with or without the prefix.
fn exchange(cpu: &mut Cpu, instruction: &Instruction) -> Result<(), crate::exception::Fault> {
    let (memory, register) = if instruction.op1_kind() == OpKind::Memory { (1, 0) } else { (0, 1) };
    let register = instruction.op_register(register);
    let value = operand::read_register(cpu, register);
    let place = operand::place(cpu, instruction, memory, AccessKind::Write)?;
    let mut found = 0;
    place.update(cpu, true, |old| {
        found = old;
        value
    })?;
    operand::write_register(cpu, register, found);
    Ok(())
}

/// CBW to CQO, LAHF, SAHF, SALC.
pub(super) fn convert(cpu: &mut Cpu, instruction: &Instruction) -> Outcome {
    let rax = cpu.state.gpr[gpr::RAX];
    let sign = |size: usize| if sign_extend(rax, size) >> 63 != 0 { u64::MAX } else { 0 };
    let (register, value) = match instruction.mnemonic() {
        Mnemonic::Cbw => (Register::AX, sign_extend(rax, 1)),
        Mnemonic::Cwde => (Register::EAX, sign_extend(rax, 2)),
        Mnemonic::Cdqe => (Register::RAX, sign_extend(rax, 4)),
        Mnemonic::Cwd => (Register::DX, sign(2)),
        Mnemonic::Cdq => (Register::EDX, sign(4)),
        Mnemonic::Cqo => (Register::RDX, sign(8)),
        Mnemonic::Lahf => (Register::AH, cpu.state.rflags & 0xd5 | rflags::FIXED),
        Mnemonic::Salc => (Register::AL, if cpu.state.rflags & rflags::CF != 0 { 0xff } else { 0 }),
        _ => {
            cpu.state.rflags = cpu.state.rflags & !0xd5 | rax >> 8 & 0xd5;
            return Ok(Flow::Next);
        }
    };
    operand::write_register(cpu, register, value);
    Ok(Flow::Next)
}

/// CLC, STC, CMC, CLD, STD.
pub(super) fn flag(cpu: &mut Cpu, instruction: &Instruction) -> Outcome {
    let flags = &mut cpu.state.rflags;
    match instruction.mnemonic() {
        Mnemonic::Clc => *flags &= !rflags::CF,
        Mnemonic::Stc => *flags |= rflags::CF,
        Mnemonic::Cmc => *flags ^= rflags::CF,
        Mnemonic::Cld => *flags &= !rflags::DF,
        _ => *flags |= rflags::DF,
    }
    Ok(Flow::Next)
}

/// Whether a condition holds for the current flags (SDM vol. 1 appendix B).
pub(super) fn condition_holds(cpu: &Cpu, condition: ConditionCode) -> bool {
    let flags = cpu.state.rflags;
    let is = |flag: u64| flags & flag != 0;
    let less = is(rflags::SF) != is(rflags::OF);
    match condition {
        ConditionCode::o => is(rflags::OF),
        ConditionCode::no => !is(rflags::OF),
        ConditionCode::b => is(rflags::CF),
        ConditionCode::ae => !is(rflags::CF),
        ConditionCode::e => is(rflags::ZF),
        ConditionCode::ne => !is(rflags::ZF),
        ConditionCode::be => is(rflags::CF) || is(rflags::ZF),
        ConditionCode::a => !is(rflags::CF) && !is(rflags::ZF),
        ConditionCode::s => is(rflags::SF),
        ConditionCode::ns => !is(rflags::SF),
        ConditionCode::p => is(rflags::PF),
        ConditionCode::np => !is(rflags::PF),
        ConditionCode::l => less,
        ConditionCode::ge => !less,
        ConditionCode::le => less || is(rflags::ZF),
        ConditionCode::g => !less && !is(rflags::ZF),
        ConditionCode::None => true,
    }
}

/// Whether the instruction is a SETcc or CMOVcc.
pub(super) fn is_conditional(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        mnemonic,
        M::Seto
            | M::Setno
            | M::Setb
            | M::Setae
            | M::Sete
            | M::Setne
            | M::Setbe
            | M::Seta
            | M::Sets
            | M::Setns
            | M::Setp
            | M::Setnp
            | M::Setl
            | M::Setge
            | M::Setle
            | M::Setg
            | M::Cmovo
            | M::Cmovno
            | M::Cmovb
            | M::Cmovae
            | M::Cmove
            | M::Cmovne
            | M::Cmovbe
            | M::Cmova
            | M::Cmovs
            | M::Cmovns
            | M::Cmovp
            | M::Cmovnp
            | M::Cmovl
            | M::Cmovge
            | M::Cmovle
            | M::Cmovg
    )
}

/// SETcc, CMOVcc. CMOV reads its source, and clears the upper half of a 32-bit destination, in both outcomes.
pub(super) fn conditional(cpu: &mut Cpu, instruction: &Instruction) -> Outcome {
    let holds = condition_holds(cpu, instruction.condition_code());
    if instruction.op_count() == 1 {
        operand::write(cpu, instruction, 0, holds.into())?;
        return Ok(Flow::Next);
    }
    let source = operand::read(cpu, instruction, 1)?;
    let value = if holds { source } else { operand::read(cpu, instruction, 0)? };
    operand::write(cpu, instruction, 0, value)?;
    Ok(Flow::Next)
}

/// BOUND.
pub(super) fn bound(cpu: &mut Cpu, instruction: &Instruction) -> Outcome {
    let size = operand::size(instruction, 0);
    let index = sign_extend(operand::read(cpu, instruction, 0)?, size) as i64;
    let va = operand::linear(cpu, instruction, 2 * size, AccessKind::Read)?;
    let lower = sign_extend(memory::load(cpu, va, size)?, size) as i64;
    let upper =
        sign_extend(memory::load(cpu, va.wrapping_add(size as u64) & mask(4), size)?, size) as i64;
    if index < lower || index > upper { Err(Exception::br().into()) } else { Ok(Flow::Next) }
}
