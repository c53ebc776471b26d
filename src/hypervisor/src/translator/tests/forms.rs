//! Every instruction form the translator copies, with random operands and state.

use iced_x86::{
    Code, Encoder, Instruction, MemoryOperand, Mnemonic, OpCodeOperandKind as K, OpKind, Register,
};

use super::harness::{CODE, DATA, DATA_SIZE, End, Harness, Random, Registers, difference};
use crate::translator::classify::{Class, form, memory_operand};

fn gpr(base: Register, random: &mut Random) -> Register {
    base + random.below(16) as u32
}

fn gpr8(random: &mut Random) -> Register {
    Register::AL + random.below(20) as u32
}

/// Builds an instruction of the given form; `None` for operand kinds that user code does not have.
pub(super) fn build(code: Code, random: &mut Random) -> Option<Instruction> {
    let info = code.op_code();
    let mut instruction = Instruction::default();
    instruction.set_code(code);
    for n in 0..info.op_count() {
        let kind = info.op_kind(n);
        let use_memory = random.below(4) != 0;
        let register = match kind {
            K::r8_or_mem if !use_memory => gpr8(random),
            K::r16_or_mem | K::r16_rm if kind == K::r16_rm || !use_memory => {
                gpr(Register::AX, random)
            }
            K::r32_or_mem | K::r32_rm if kind == K::r32_rm || !use_memory => {
                gpr(Register::EAX, random)
            }
            K::r64_or_mem | K::r64_rm if kind == K::r64_rm || !use_memory => {
                gpr(Register::RAX, random)
            }
            K::xmm_or_mem | K::xmm_rm if kind == K::xmm_rm || !use_memory => {
                gpr(Register::XMM0, random)
            }
            K::ymm_or_mem | K::ymm_rm if kind == K::ymm_rm || !use_memory => {
                gpr(Register::YMM0, random)
            }
            K::mm_or_mem | K::mm_rm if kind == K::mm_rm || !use_memory => {
                Register::MM0 + random.below(8) as u32
            }
            K::mem
            | K::mem_offs
            | K::r8_or_mem
            | K::r16_or_mem
            | K::r32_or_mem
            | K::r64_or_mem
            | K::xmm_or_mem
            | K::ymm_or_mem
            | K::mm_or_mem => {
                set_memory(&mut instruction, n, kind, random);
                continue;
            }
            K::mem_vsib32x | K::mem_vsib64x | K::mem_vsib32y | K::mem_vsib64y => {
                let first = match kind {
                    K::mem_vsib32x | K::mem_vsib64x => Register::XMM0,
                    _ => Register::YMM0,
                };
                instruction.set_op_kind(n, OpKind::Memory);
                instruction.set_memory_base(gpr(Register::RAX, random));
                instruction.set_memory_index(gpr(first, random));
                instruction.set_memory_index_scale(1 << random.below(4));
                instruction.set_memory_displacement64(i64::from(random.next() as i8) as u64);
                instruction.set_memory_displ_size(1);
                continue;
            }
            K::seg_rDI => {
                instruction.set_op_kind(n, OpKind::MemorySegRDI);
                continue;
            }
            K::r8_reg | K::r8_opcode => gpr8(random),
            K::r16_reg | K::r16_opcode => gpr(Register::AX, random),
            K::r32_reg | K::r32_opcode | K::r32_vvvv => gpr(Register::EAX, random),
            K::r64_reg | K::r64_opcode | K::r64_vvvv => gpr(Register::RAX, random),
            K::xmm_reg | K::xmm_vvvv | K::xmm_is4 | K::xmm_is5 => gpr(Register::XMM0, random),
            K::ymm_reg | K::ymm_vvvv | K::ymm_is4 | K::ymm_is5 => gpr(Register::YMM0, random),
            K::mm_reg => Register::MM0 + random.below(8) as u32,
            K::sti_opcode => Register::ST0 + random.below(8) as u32,
            K::al => Register::AL,
            K::cl => Register::CL,
            K::ax => Register::AX,
            K::dx => Register::DX,
            K::eax => Register::EAX,
            K::rax => Register::RAX,
            K::st0 => Register::ST0,
            K::imm4_m2z
            | K::imm8
            | K::imm8_const_1
            | K::imm16
            | K::imm32
            | K::imm64
            | K::imm8sex16
            | K::imm8sex32
            | K::imm8sex64
            | K::imm32sex64 => {
                set_immediate(&mut instruction, n, kind, random);
                continue;
            }
            _ => return None,
        };
        instruction.set_op_kind(n, OpKind::Register);
        instruction.set_op_register(n, register);
    }
    Some(instruction)
}

fn set_memory(instruction: &mut Instruction, n: u32, kind: K, random: &mut Random) {
    instruction.set_op_kind(n, OpKind::Memory);
    if kind == K::mem_offs {
        instruction.set_memory_base(Register::None);
        instruction.set_memory_displacement64(DATA + random.below(DATA_SIZE));
        instruction.set_memory_displ_size(8);
        return;
    }
    let base = gpr(Register::RAX, random);
    let index = match random.below(3) {
        0 => loop {
            let index = gpr(Register::RAX, random);
            if index != Register::RSP && index != base {
                break index;
            }
        },
        _ => Register::None,
    };
    let operand = match random.below(8) {
        0 => MemoryOperand::with_displ(DATA + random.below(DATA_SIZE), 8),
        _ => MemoryOperand::with_base_index_scale_displ_size(
            base,
            index,
            1 << random.below(4),
            i64::from(random.next() as i8),
            1,
        ),
    };
    instruction.set_memory_base(operand.base);
    instruction.set_memory_index(operand.index);
    instruction.set_memory_index_scale(operand.scale);
    instruction.set_memory_displacement64(operand.displacement as u64);
    instruction.set_memory_displ_size(operand.displ_size);
}

fn set_immediate(instruction: &mut Instruction, n: u32, kind: K, random: &mut Random) {
    let value = random.value();
    let small = i64::from(value as i8) as u64;
    let (op, value) = match kind {
        K::imm8_const_1 => (OpKind::Immediate8, 1),
        K::imm4_m2z => (OpKind::Immediate8, value & 0xf),
        K::imm8 => (OpKind::Immediate8, value & 0xff),
        K::imm16 => (OpKind::Immediate16, value & 0xffff),
        K::imm32 => (OpKind::Immediate32, value & 0xffff_ffff),
        K::imm64 => (OpKind::Immediate64, value),
        K::imm8sex16 => (OpKind::Immediate8to16, small & 0xffff),
        K::imm8sex32 => (OpKind::Immediate8to32, small & 0xffff_ffff),
        K::imm8sex64 => (OpKind::Immediate8to64, small),
        _ => (OpKind::Immediate32to64, i64::from(value as i32) as u64),
    };
    instruction.set_op_kind(n, op);
    match op {
        OpKind::Immediate8 => instruction.set_immediate8(value as u8),
        OpKind::Immediate16 => instruction.set_immediate16(value as u16),
        OpKind::Immediate32 => instruction.set_immediate32(value as u32),
        OpKind::Immediate64 => instruction.set_immediate64(value),
        OpKind::Immediate8to16 => instruction.set_immediate8to16(value as i8 as i16),
        OpKind::Immediate8to32 => instruction.set_immediate8to32(value as i8 as i32),
        OpKind::Immediate8to64 => instruction.set_immediate8to64(value as i8 as i64),
        _ => instruction.set_immediate32to64(value as i32 as i64),
    }
}

/// Gives the memory operand's registers values that put it into the data, or across its end now and then.
fn aim(instruction: &Instruction, registers: &mut Registers, random: &mut Random) {
    let size = instruction.memory_size().size().max(1) as u64;
    let align = if random.below(2) == 0 { size.next_power_of_two().min(64) } else { 1 };
    let limit = if random.below(16) == 0 { DATA_SIZE } else { DATA_SIZE - size.min(DATA_SIZE) };
    let target = match random.below(6) {
        // Across a page boundary.
        0 => DATA + 4096 - random.below(size.max(2)),
        _ => DATA + random.below(limit) / align * align,
    };
    aim_at(target, instruction, registers, random);
}

/// Gives the memory operand's registers values that make its address `target`.
pub(super) fn aim_at(
    target: u64,
    instruction: &Instruction,
    registers: &mut Registers,
    random: &mut Random,
) {
    let disp = instruction.memory_displacement64();
    let (base, index) = (instruction.memory_base(), instruction.memory_index());
    if base == Register::None && index == Register::None {
        return;
    }
    let scale = u64::from(instruction.memory_index_scale());
    let mut rest = target.wrapping_sub(disp);
    if instruction.is_vsib() {
        // Indices of either width that stay inside the data: those of 64 bits have a zero upper half.
        let wide = matches!(
            instruction.code().mnemonic(),
            Mnemonic::Vgatherqps
                | Mnemonic::Vgatherqpd
                | Mnemonic::Vpgatherqd
                | Mnemonic::Vpgatherqq
        );
        for lane in registers.vector[index.number()].chunks_mut(if wide { 8 } else { 4 }) {
            lane.fill(0);
            lane[0] = random.below(100) as u8;
        }
        registers.gpr[base.number()] = (DATA + 0x1000 + random.below(0x800)).wrapping_sub(disp);
        return;
    }
    if index != Register::None {
        let value = random.below(64);
        registers.gpr[index.number()] = value;
        rest = rest.wrapping_sub(value.wrapping_mul(scale));
    }
    if base != Register::None {
        registers.gpr[base.number()] = rest;
    }
    // The bit offset of a bit string reaches beyond the operand: keep it inside the data.
    if form(instruction.code()).class == Class::BitString {
        let number = instruction.op1_register().number();
        // `Register::None` has a number, too.
        let addresses =
            |register: Register| register != Register::None && register.number() == number;
        if !addresses(base) && !addresses(index) {
            registers.gpr[number] = random.below(200);
        }
    }
}

pub(super) fn undefined_flags(instruction: &Instruction) -> u64 {
    use iced_x86::RflagsBits as R;
    let bits = instruction.rflags_undefined();
    // Also undefined by any count but 1, where the result of processors depends on more than the operands.
    let rotates = matches!(instruction.mnemonic(), Mnemonic::Rcl | Mnemonic::Rcr);
    let bits = if rotates { bits | R::OF } else { bits };
    let map = [(R::OF, 11), (R::SF, 7), (R::ZF, 6), (R::AF, 4), (R::CF, 0), (R::PF, 2)];
    map.iter().filter(|(bit, _)| bits & bit != 0).fold(0, |flags, (_, n)| flags | 1 << n)
}

/// Forms whose result differs from run to run, or that a fault handler cannot tell apart.
pub(super) fn excluded(code: Code) -> bool {
    use iced_x86::Mnemonic as M;
    matches!(
        code.mnemonic(),
        M::Rdrand
            | M::Rdseed
            | M::Fnstenv
            | M::Fldenv
            | M::Fnsave
            | M::Frstor
            | M::Clflush
            | M::Clflushopt
            | M::Clwb
            | M::Pause
            | M::Ldmxcsr
            | M::Fsave
            | M::Fstenv
            | M::Fldcw
    )
}

fn check_forms(seed: u64, rounds: u64) {
    let mut harness = Harness::new();
    let mut random = Random(seed);
    let mut tested = 0;
    let mut failures = Vec::new();
    for code in Code::values() {
        if !matches!(form(code).class, Class::Copy | Class::Lea | Class::BitString | Class::Element)
            || excluded(code)
        {
            continue;
        }
        let mut encodable = false;
        for _ in 0..rounds {
            let Some(mut instruction) = build(code, &mut random) else {
                break;
            };
            if code.op_code().can_use_lock_prefix()
                && memory_operand(&instruction) == Some(0)
                && random.below(3) == 0
            {
                instruction.set_has_lock_prefix(true);
            }
            let mut encoder = Encoder::new(64);
            if encoder.encode(&instruction, CODE).is_err() {
                continue;
            }
            let bytes = encoder.take_buffer();
            encodable = true;
            let mut registers = random.registers();
            registers.mxcsr = random.mxcsr();
            if instruction.op0_kind() == OpKind::MemorySegRDI {
                registers.gpr[7] = DATA + random.below(DATA_SIZE - 16);
            }
            if memory_operand(&instruction).is_some() {
                aim(&instruction, &mut registers, &mut random);
            }
            let mut data = random.data();
            let (native, translated) = harness.compare(&bytes, &registers, &data);
            tested += 1;
            let ignored = undefined_flags(&instruction);
            if let Some(what) = difference(&native, &translated, ignored) {
                failures.push(format!("{code:?} {instruction} {bytes:02x?}: {what}"));
                break;
            }
            data.clear();
            if native.end != End::Finished && random.below(2) == 0 {
                continue;
            }
        }
        let _ = encodable;
        if failures.len() > 40 {
            break;
        }
    }
    assert!(failures.is_empty(), "{} of {tested} differ:\n{}", failures.len(), failures.join("\n"));
    assert!(tested > 5000, "only {tested} instructions were tested");
}

#[test]
fn every_copied_form_does_what_the_host_does() {
    let rounds =
        std::env::var("DIFFERENTIAL_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(6);
    let seed = std::env::var("DIFFERENTIAL_SEED").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
    check_forms(seed, rounds);
}
