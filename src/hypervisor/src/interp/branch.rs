//! Near branches.

use super::operand::{self, mask};
use super::{Flow, Outcome, data, stack};
use crate::cpu::Cpu;
use crate::exception::Exception;
use crate::mmu::is_canonical;
use crate::registers::rflags;
use crate::segment;
use crate::state::{gpr, seg};
use iced_x86::{Code, Instruction, Mnemonic, OpKind};

/// Whether a JMP or CALL loads CS.
pub(super) fn is_far(instruction: &Instruction) -> bool {
    instruction.is_jmp_far()
        || instruction.is_jmp_far_indirect()
        || instruction.is_call_far()
        || instruction.is_call_far_indirect()
}

/// Checks a branch target in the current code segment: canonical in 64-bit mode, inside the limit elsewhere.
pub(super) fn check_target(cpu: &Cpu, target: u64) -> Result<(), Exception> {
    let ok = if cpu.is_64bit() {
        is_canonical(target)
    } else {
        segment::check_limit(&cpu.state.segments[seg::CS], target, 1).is_ok()
    };
    if ok { Ok(()) } else { Err(Exception::gp(0)) }
}

fn jump(cpu: &mut Cpu, target: u64) -> Outcome {
    check_target(cpu, target)?;
    cpu.state.rip = target;
    Ok(Flow::Jump)
}

/// Operand size in bytes of a near branch.
fn branch_size(cpu: &Cpu, instruction: &Instruction) -> usize {
    match instruction.code() {
        Code::Retnw | Code::Retnw_imm16 => return 2,
        Code::Retnd | Code::Retnd_imm16 => return 4,
        Code::Retnq | Code::Retnq_imm16 => return 8,
        _ => {}
    }
    match instruction.op0_kind() {
        OpKind::NearBranch16 => 2,
        OpKind::NearBranch32 => 4,
        OpKind::NearBranch64 => 8,
        OpKind::Register | OpKind::Memory => operand::size(instruction, 0),
        _ => (cpu.code_bits() / 8) as usize,
    }
}

/// JMP, CALL and RET inside the code segment.
pub(super) fn near(cpu: &mut Cpu, instruction: &Instruction) -> Outcome {
    let size = branch_size(cpu, instruction);
    if instruction.mnemonic() == Mnemonic::Ret {
        let (target, rsp) = stack::peek(cpu, 0, size)?;
        check_target(cpu, target)?;
        stack::set_pointer(cpu, rsp);
        if instruction.op_count() == 1 {
            stack::release(cpu, instruction.immediate16().into());
        }
        cpu.state.rip = target;
        return Ok(Flow::Jump);
    }
    let target = match instruction.op0_kind() {
        OpKind::Register | OpKind::Memory => operand::read(cpu, instruction, 0)?,
        _ => instruction.near_branch_target(),
    } & mask(size);
    check_target(cpu, target)?;
    if instruction.mnemonic() == Mnemonic::Call {
        let next = cpu.wrap_ip(instruction.next_ip());
        stack::push(cpu, next, size)?;
    }
    jump(cpu, target)
}

/// Jcc.
pub(super) fn conditional(cpu: &mut Cpu, instruction: &Instruction) -> Outcome {
    if data::condition_holds(cpu, instruction.condition_code()) {
        jump(cpu, instruction.near_branch_target())
    } else {
        Ok(Flow::Next)
    }
}

/// LOOP, LOOPE, LOOPNE, JCXZ and wider forms. The counter's width is the address size.
pub(super) fn counted(cpu: &mut Cpu, instruction: &Instruction) -> Outcome {
    let code = instruction.code();
    let size = if code.is_jcx_short() {
        match instruction.mnemonic() {
            Mnemonic::Jcxz => 2,
            Mnemonic::Jecxz => 4,
            _ => 8,
        }
    } else {
        loop_counter_size(code)
    };
    let counter = cpu.state.gpr[gpr::RCX] & mask(size);
    let zero_flag = cpu.state.rflags & rflags::ZF != 0;
    let (left, taken) = match instruction.mnemonic() {
        Mnemonic::Loop | Mnemonic::Loope | Mnemonic::Loopne => {
            let left = counter.wrapping_sub(1) & mask(size);
            let condition = match instruction.mnemonic() {
                Mnemonic::Loope => zero_flag,
                Mnemonic::Loopne => !zero_flag,
                _ => true,
            };
            (left, left != 0 && condition)
        }
        _ => (counter, counter == 0),
    };
    let target = instruction.near_branch_target();
    if taken {
        check_target(cpu, target)?;
    }
    if !code.is_jcx_short() {
        let register = [iced_x86::Register::CX, iced_x86::Register::ECX, iced_x86::Register::RCX];
        operand::write_register(cpu, register[size.ilog2() as usize - 1], left);
    }
    if taken {
        cpu.state.rip = target;
        Ok(Flow::Jump)
    } else {
        Ok(Flow::Next)
    }
}

/// Width of the counter of LOOP and friends.
fn loop_counter_size(code: Code) -> usize {
    match code {
        Code::Loop_rel8_16_CX
        | Code::Loop_rel8_32_CX
        | Code::Loope_rel8_16_CX
        | Code::Loope_rel8_32_CX
        | Code::Loopne_rel8_16_CX
        | Code::Loopne_rel8_32_CX => 2,
        Code::Loop_rel8_16_RCX
        | Code::Loop_rel8_64_RCX
        | Code::Loope_rel8_16_RCX
        | Code::Loope_rel8_64_RCX
        | Code::Loopne_rel8_16_RCX
        | Code::Loopne_rel8_64_RCX => 8,
        _ => 4,
    }
}
