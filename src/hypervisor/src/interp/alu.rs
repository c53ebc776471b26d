//! Integer arithmetic, shifts, bit operations and the read-modify-write exchanges.

use super::operand::{self, Place, mask, sign_extend};
use super::{Flow, Outcome, flags_asm};
use crate::cpu::Cpu;
use crate::exception::Exception;
use crate::memory::Span;
use crate::mmu::{Access, AccessKind};
use crate::registers::rflags;
use crate::state::gpr;
use iced_x86::{Instruction, Mnemonic, OpKind, Register};

fn set_status(cpu: &mut Cpu, status: u64) {
    cpu.state.rflags = cpu.state.rflags & !rflags::STATUS | status;
}

/// Size, operands and flags to result and flags.
type Binary = fn(usize, u64, u64, u64) -> (u64, u64);

/// ADD, OR, ADC, SBB, AND, SUB, XOR, CMP, TEST.
pub(super) fn binary(cpu: &mut Cpu, instruction: &Instruction) -> Outcome {
    let size = operand::size(instruction, 0);
    let (operation, writes): (Binary, bool) = match instruction.mnemonic() {
        Mnemonic::Add => (flags_asm::add, true),
        Mnemonic::Or => (flags_asm::or, true),
        Mnemonic::Adc => (flags_asm::adc, true),
        Mnemonic::Sbb => (flags_asm::sbb, true),
        Mnemonic::And => (flags_asm::and, true),
        Mnemonic::Sub => (flags_asm::sub, true),
        Mnemonic::Xor => (flags_asm::xor, true),
        Mnemonic::Cmp => (flags_asm::sub, false),
        _ => (flags_asm::and, false),
    };
    let source = operand::read(cpu, instruction, 1)?;
    let kind = if writes { AccessKind::Write } else { AccessKind::Read };
    let place = operand::place(cpu, instruction, 0, kind)?;
    let flags = cpu.state.rflags;
    let mut status = 0;
    if writes {
        place.update(cpu, instruction.has_lock_prefix(), |old| {
            let (new, after) = operation(size, old, source, flags);
            status = after;
            new
        })?;
    } else {
        status = operation(size, place.load(cpu), source, flags).1;
    }
    set_status(cpu, status);
    Ok(Flow::Next)
}

/// INC, DEC, NOT, NEG.
pub(super) fn unary(cpu: &mut Cpu, instruction: &Instruction) -> Outcome {
    let size = operand::size(instruction, 0);
    let operation = match instruction.mnemonic() {
        Mnemonic::Inc => flags_asm::inc,
        Mnemonic::Dec => flags_asm::dec,
        Mnemonic::Not => flags_asm::not,
        _ => flags_asm::neg,
    };
    let place = operand::place(cpu, instruction, 0, AccessKind::Write)?;
    let flags = cpu.state.rflags;
    let mut status = 0;
    place.update(cpu, instruction.has_lock_prefix(), |old| {
        let (new, after) = operation(size, old, flags);
        status = after;
        new
    })?;
    set_status(cpu, status);
    Ok(Flow::Next)
}

/// Shifts and rotates by an immediate or CL.
pub(super) fn shift(cpu: &mut Cpu, instruction: &Instruction) -> Outcome {
    let size = operand::size(instruction, 0);
    let operation = match instruction.mnemonic() {
        Mnemonic::Rol => flags_asm::rol,
        Mnemonic::Ror => flags_asm::ror,
        Mnemonic::Rcl => flags_asm::rcl,
        Mnemonic::Rcr => flags_asm::rcr,
        Mnemonic::Shr => flags_asm::shr,
        Mnemonic::Sar => flags_asm::sar,
        _ => flags_asm::shl,
    };
    let count = operand::read(cpu, instruction, 1)? as u8;
    let place = operand::place(cpu, instruction, 0, AccessKind::Write)?;
    let (value, status) = operation(size, place.load(cpu), count, cpu.state.rflags);
    place.store(cpu, value)?;
    set_status(cpu, status);
    Ok(Flow::Next)
}

/// SHLD, SHRD.
pub(super) fn double_shift(cpu: &mut Cpu, instruction: &Instruction) -> Outcome {
    let size = operand::size(instruction, 0);
    let operation =
        if instruction.mnemonic() == Mnemonic::Shld { flags_asm::shld } else { flags_asm::shrd };
    let source = operand::read(cpu, instruction, 1)?;
    let count = operand::read(cpu, instruction, 2)? as u8;
    let place = operand::place(cpu, instruction, 0, AccessKind::Write)?;
    let (value, status) = operation(size, place.load(cpu), source, count, cpu.state.rflags);
    place.store(cpu, value)?;
    set_status(cpu, status);
    Ok(Flow::Next)
}

/// MUL and the one-, two- and three-operand forms of IMUL.
pub(super) fn multiply(cpu: &mut Cpu, instruction: &Instruction) -> Outcome {
    let size = operand::size(instruction, 0);
    let flags = cpu.state.rflags;
    if instruction.op_count() == 1 {
        let source = operand::read(cpu, instruction, 0)?;
        let operation =
            if instruction.mnemonic() == Mnemonic::Mul { flags_asm::mul } else { flags_asm::imul };
        let (rax, rdx) = (cpu.state.gpr[gpr::RAX], cpu.state.gpr[gpr::RDX]);
        let (rax, rdx, status) = operation(size, rax, rdx, source, flags);
        write_accumulators(cpu, size, rax, rdx);
        set_status(cpu, status);
        return Ok(Flow::Next);
    }
    let (a, b) = if instruction.op_count() == 2 {
        (operand::read(cpu, instruction, 0)?, operand::read(cpu, instruction, 1)?)
    } else {
        (operand::read(cpu, instruction, 1)?, operand::read(cpu, instruction, 2)?)
    };
    let (value, status) = flags_asm::imul2(size, a, b, 0, flags);
    operand::write(cpu, instruction, 0, value)?;
    set_status(cpu, status);
    Ok(Flow::Next)
}

/// Stores the AX or (R|E)DX:(R|E)AX result of a multiplication or division.
fn write_accumulators(cpu: &mut Cpu, size: usize, rax: u64, rdx: u64) {
    let (low, high) = match size {
        1 => return operand::write_register(cpu, Register::AX, rax),
        2 => (Register::AX, Register::DX),
        4 => (Register::EAX, Register::EDX),
        _ => (Register::RAX, Register::RDX),
    };
    operand::write_register(cpu, low, rax);
    operand::write_register(cpu, high, rdx);
}

/// DIV, IDIV: #DE for a zero divisor or a quotient that does not fit.
pub(super) fn divide(cpu: &mut Cpu, instruction: &Instruction) -> Outcome {
    let size = operand::size(instruction, 0);
    let signed = instruction.mnemonic() == Mnemonic::Idiv;
    let source = operand::read(cpu, instruction, 0)?;
    let (rax, rdx) = (cpu.state.gpr[gpr::RAX], cpu.state.gpr[gpr::RDX]);
    let bits = size as u32 * 8;
    let dividend = if size == 1 {
        u128::from(rax & 0xffff)
    } else {
        u128::from(rdx & mask(size)) << bits | u128::from(rax & mask(size))
    };
    let fits = if signed {
        let shift = 128 - 2 * bits;
        let dividend = (dividend << shift) as i128 >> shift;
        let divisor = i128::from(sign_extend(source, size) as i64);
        let limit = 1_i128 << (bits - 1);
        dividend.checked_div(divisor).is_some_and(|quotient| (-limit..limit).contains(&quotient))
    } else {
        let divisor = u128::from(source & mask(size));
        dividend.checked_div(divisor).is_some_and(|quotient| quotient >> bits == 0)
    };
    if !fits {
        return Err(Exception::de().into());
    }
    let operation = if signed { flags_asm::idiv } else { flags_asm::div };
    let (rax, rdx, status) = operation(size, rax, rdx, source, cpu.state.rflags);
    write_accumulators(cpu, size, rax, rdx);
    set_status(cpu, status);
    Ok(Flow::Next)
}

/// BT, BTS, BTR, BTC. A register bit offset reaches memory beyond the operand.
pub(super) fn bit_test(cpu: &mut Cpu, instruction: &Instruction) -> Outcome {
    let size = operand::size(instruction, 0);
    let mnemonic = instruction.mnemonic();
    let kind = if mnemonic == Mnemonic::Bt { AccessKind::Read } else { AccessKind::Write };
    let selected = operand::read(cpu, instruction, 1)?;
    let bit = selected & (size as u64 * 8 - 1);
    let place =
        if instruction.op0_kind() == OpKind::Memory && instruction.op1_kind() == OpKind::Register {
            let displacement =
                (sign_extend(selected, size) as i64 >> (size as u32 * 8).ilog2()) * size as i64;
            let index = operand::segment_index(instruction.memory_segment());
            let offset = operand::bit_offset(cpu, instruction, displacement as u64);
            let va = crate::segment::linear(cpu, index, offset, size as u64, kind)?;
            let access = Access::current(cpu, kind);
            Place::Memory(Span::new(cpu, va, size, access)?)
        } else {
            operand::place(cpu, instruction, 0, kind)?
        };
    let mut old_bit = 0;
    if mnemonic == Mnemonic::Bt {
        old_bit = place.load(cpu) >> bit & 1;
    } else {
        place.update(cpu, instruction.has_lock_prefix(), |old| {
            old_bit = old >> bit & 1;
            match mnemonic {
                Mnemonic::Bts => old | 1 << bit,
                Mnemonic::Btr => old & !(1 << bit),
                _ => old ^ 1 << bit,
            }
        })?;
    }
    cpu.state.rflags = cpu.state.rflags & !rflags::CF | old_bit;
    Ok(Flow::Next)
}

/// BSF, BSR, TZCNT, LZCNT, POPCNT.
pub(super) fn bit_scan(cpu: &mut Cpu, instruction: &Instruction) -> Outcome {
    let size = operand::size(instruction, 0);
    let source = operand::read(cpu, instruction, 1)?;
    let old = operand::read_register(cpu, instruction.op0_register().full_register());
    let operation = match instruction.mnemonic() {
        Mnemonic::Bsf => flags_asm::bsf,
        Mnemonic::Bsr => flags_asm::bsr,
        Mnemonic::Tzcnt => flags_asm::tzcnt,
        Mnemonic::Lzcnt => flags_asm::lzcnt,
        _ => flags_asm::popcnt,
    };
    let (value, status) = operation(size, old, source, 0, cpu.state.rflags);
    let keeps = matches!(instruction.mnemonic(), Mnemonic::Bsf | Mnemonic::Bsr) && source == 0;
    if !keeps {
        operand::write(cpu, instruction, 0, value)?;
    } else if size == 4 {
        // A zero source leaves the register, upper half included, as the host's instruction left it.
        operand::write_register(cpu, instruction.op0_register().full_register(), value);
    }
    set_status(cpu, status);
    Ok(Flow::Next)
}

/// XADD.
pub(super) fn exchange_add(cpu: &mut Cpu, instruction: &Instruction) -> Outcome {
    let size = operand::size(instruction, 0);
    let addend = operand::read(cpu, instruction, 1)?;
    let place = operand::place(cpu, instruction, 0, AccessKind::Write)?;
    let flags = cpu.state.rflags;
    let (mut found, mut status) = (0, 0);
    // With one register twice the destination is written last and keeps the sum.
    let mut sum = 0;
    place.update(cpu, instruction.has_lock_prefix(), |old| {
        found = old;
        (sum, status) = flags_asm::add(size, old, addend, flags);
        sum
    })?;
    operand::write_register(cpu, instruction.op1_register(), found);
    if let Place::Register(register) = place {
        operand::write_register(cpu, register, sum);
    }
    set_status(cpu, status);
    Ok(Flow::Next)
}

/// CMPXCHG. The destination is written in both outcomes, as the processor does.
pub(super) fn compare_exchange(cpu: &mut Cpu, instruction: &Instruction) -> Outcome {
    let size = operand::size(instruction, 0);
    let source = operand::read(cpu, instruction, 1)?;
    let place = operand::place(cpu, instruction, 0, AccessKind::Write)?;
    let expected = cpu.state.gpr[gpr::RAX] & mask(size);
    let flags = cpu.state.rflags;
    let mut found = 0;
    place.update(cpu, instruction.has_lock_prefix(), |old| {
        found = old;
        if old == expected { source } else { old }
    })?;
    let (_, status) = flags_asm::sub(size, expected, found, flags);
    if found != expected {
        let accumulator = match size {
            1 => Register::AL,
            2 => Register::AX,
            4 => Register::EAX,
            _ => Register::RAX,
        };
        operand::write_register(cpu, accumulator, found);
    }
    set_status(cpu, status);
    Ok(Flow::Next)
}

/// CMPXCHG8B, CMPXCHG16B.
pub(super) fn compare_exchange_wide(cpu: &mut Cpu, instruction: &Instruction) -> Outcome {
    let half = instruction.memory_size().size() / 2;
    let state = &cpu.state;
    let pair = |high: usize, low: usize| {
        let (high, low) = (state.gpr[high] & mask(half), state.gpr[low] & mask(half));
        u128::from(high) << (half * 8) | u128::from(low)
    };
    let expected = pair(gpr::RDX, gpr::RAX);
    let replacement = pair(gpr::RCX, gpr::RBX);
    let found = if half == 8 {
        let va = operand::linear(cpu, instruction, 16, AccessKind::Write)?;
        if !va.is_multiple_of(16) {
            return Err(Exception::gp(0).into());
        }
        let span = operand::span(cpu, instruction, 16, AccessKind::Write)?;
        span.compare_exchange_128(cpu, expected, replacement)?
    } else {
        let span = operand::span(cpu, instruction, 8, AccessKind::Write)?;
        let mut found = 0;
        span.update(cpu, instruction.has_lock_prefix(), |old| {
            found = old;
            if u128::from(old) == expected { replacement as u64 } else { old }
        })?;
        found.into()
    };
    if found == expected {
        cpu.state.rflags |= rflags::ZF;
    } else {
        cpu.state.rflags &= !rflags::ZF;
        cpu.state.gpr[gpr::RAX] = found as u64 & mask(half);
        cpu.state.gpr[gpr::RDX] = (found >> (half * 8)) as u64 & mask(half);
    }
    Ok(Flow::Next)
}

fn parity_sign_zero(value: u8) -> u64 {
    let mut flags = 0;
    if value.count_ones().is_multiple_of(2) {
        flags |= rflags::PF;
    }
    if value & 0x80 != 0 {
        flags |= rflags::SF;
    }
    if value == 0 {
        flags |= rflags::ZF;
    }
    flags
}

/// AAA, AAS, AAM, AAD, DAA, DAS (SDM vol. 2).
pub(super) fn decimal(cpu: &mut Cpu, instruction: &Instruction) -> Outcome {
    let ax = cpu.state.gpr[gpr::RAX] as u16;
    let al = ax as u8;
    let flags = cpu.state.rflags;
    let (carry, adjust) = (flags & rflags::CF != 0, flags & rflags::AF != 0);
    let low_digit = al & 0xf > 9 || adjust;
    let (value, status) = match instruction.mnemonic() {
        Mnemonic::Aaa | Mnemonic::Aas => {
            let changed = match (low_digit, instruction.mnemonic()) {
                (false, _) => ax,
                (true, Mnemonic::Aaa) => ax.wrapping_add(0x106),
                (true, _) => ax.wrapping_sub(6).wrapping_sub(0x100),
            };
            let value = changed & 0xff0f;
            let status = if low_digit { rflags::CF | rflags::AF } else { 0 };
            (value, status | parity_sign_zero(value as u8))
        }
        Mnemonic::Aam => {
            let base = instruction.immediate8();
            let (Some(high), Some(low)) = (al.checked_div(base), al.checked_rem(base)) else {
                return Err(Exception::de().into());
            };
            (u16::from(high) << 8 | u16::from(low), parity_sign_zero(low))
        }
        Mnemonic::Aad => {
            let low = al.wrapping_add(((ax >> 8) as u8).wrapping_mul(instruction.immediate8()));
            (u16::from(low), parity_sign_zero(low))
        }
        mnemonic => {
            let adds = mnemonic == Mnemonic::Daa;
            let apply = |value: u8, by: u8| {
                if adds { value.wrapping_add(by) } else { value.wrapping_sub(by) }
            };
            let high_digit = al > 0x99 || carry;
            let mut value = al;
            let mut status = 0;
            if low_digit {
                status |= rflags::AF;
                let borrows = !adds && al < 6;
                if carry || borrows {
                    status |= rflags::CF;
                }
                value = apply(value, 6);
            }
            if high_digit {
                status |= rflags::CF;
                value = apply(value, 0x60);
            }
            (ax & 0xff00 | u16::from(value), status | parity_sign_zero(value))
        }
    };
    operand::write_register(cpu, Register::AX, value.into());
    set_status(cpu, status);
    Ok(Flow::Next)
}
