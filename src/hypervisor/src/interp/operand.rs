//! Operands: registers, immediates and memory, in any mode.

use crate::cpu::Cpu;
use crate::exception::{Exception, Fault};
use crate::memory::Span;
use crate::mmu::{Access, AccessKind};
use crate::segment;
use crate::state::seg;
use iced_x86::{Instruction, OpKind, Register};

/// Where an operand lies, translated and checked once for reading and writing.
pub(super) enum Place {
    Register(Register),
    Immediate(u64),
    Memory(Span),
}

/// Bits of an operand of `size` bytes.
pub(super) fn mask(size: usize) -> u64 {
    if size >= 8 { u64::MAX } else { (1 << (size * 8)) - 1 }
}

/// Sign-extends the low `size` bytes.
pub(super) fn sign_extend(value: u64, size: usize) -> u64 {
    let shift = 64 - 8 * size.min(8) as u32;
    ((value << shift) as i64 >> shift) as u64
}

/// Index of the segment register that a `Register` names.
pub(super) fn segment_index(register: Register) -> usize {
    match register {
        Register::ES => seg::ES,
        Register::CS => seg::CS,
        Register::SS => seg::SS,
        Register::FS => seg::FS,
        Register::GS => seg::GS,
        _ => seg::DS,
    }
}

fn is_high_byte(register: Register) -> bool {
    matches!(register, Register::AH | Register::CH | Register::DH | Register::BH)
}

/// Reads a general-purpose register of any size, zero-extended.
pub(super) fn read_register(cpu: &Cpu, register: Register) -> u64 {
    if register.is_segment_register() {
        return cpu.state.segments[segment_index(register)].selector.into();
    }
    if !register.is_gpr() {
        return 0;
    }
    let value = cpu.state.gpr[register.full_register().number() & 15];
    if is_high_byte(register) { value >> 8 & 0xff } else { value & mask(register.size()) }
}

/// Writes a general-purpose register: 32-bit writes clear the upper half, narrower ones keep the rest.
pub(super) fn write_register(cpu: &mut Cpu, register: Register, value: u64) {
    let slot = &mut cpu.state.gpr[register.full_register().number() & 15];
    *slot = match register.size() {
        8 => value,
        4 => value & 0xffff_ffff,
        2 => *slot & !0xffff | value & 0xffff,
        _ if is_high_byte(register) => *slot & !0xff00 | (value & 0xff) << 8,
        _ => *slot & !0xff | value & 0xff,
    };
}

/// Size in bytes of the addresses that a memory operand computes.
fn address_size(cpu: &Cpu, instruction: &Instruction) -> usize {
    for register in [instruction.memory_base(), instruction.memory_index()] {
        match register {
            Register::None => {}
            Register::EIP => return 4,
            Register::RIP => return 8,
            register if register.is_gpr() => return register.size(),
            _ => {}
        }
    }
    match instruction.memory_displ_size() {
        size @ (2 | 4 | 8) => size as usize,
        _ => (cpu.code_bits() / 8) as usize,
    }
}

/// Offset of an explicit memory operand inside its segment.
pub(super) fn offset(cpu: &Cpu, instruction: &Instruction) -> u64 {
    let base = instruction.memory_base();
    let mut address = instruction.memory_displacement64();
    // The displacement of an instruction-relative operand is already its target.
    if base != Register::None && !instruction.is_ip_rel_memory_operand() {
        address = address.wrapping_add(read_register(cpu, base));
    }
    let index = instruction.memory_index();
    if index != Register::None {
        let scaled =
            read_register(cpu, index).wrapping_mul(instruction.memory_index_scale().into());
        address = address.wrapping_add(scaled);
    }
    address & mask(address_size(cpu, instruction))
}

/// Linear address of an explicit memory operand.
pub(super) fn linear(
    cpu: &Cpu,
    instruction: &Instruction,
    size: usize,
    kind: AccessKind,
) -> Result<u64, Exception> {
    let index = segment_index(instruction.memory_segment());
    segment::linear(cpu, index, offset(cpu, instruction), size as u64, kind)
}

/// Translates an explicit memory operand of `size` bytes.
pub(super) fn span(
    cpu: &mut Cpu,
    instruction: &Instruction,
    size: usize,
    kind: AccessKind,
) -> Result<Span, Fault> {
    let va = linear(cpu, instruction, size, kind)?;
    let access = Access::current(cpu, kind);
    Span::new(cpu, va, size, access)
}

/// Size in bytes of operand `index`.
pub(super) fn size(instruction: &Instruction, index: u32) -> usize {
    match instruction.op_kind(index) {
        OpKind::Register => instruction.op_register(index).size(),
        OpKind::Memory => instruction.memory_size().size(),
        _ => 0,
    }
}

/// Finds operand `index`, for an access of this kind.
pub(super) fn place(
    cpu: &mut Cpu,
    instruction: &Instruction,
    index: u32,
    kind: AccessKind,
) -> Result<Place, Fault> {
    Ok(match instruction.op_kind(index) {
        OpKind::Register => Place::Register(instruction.op_register(index)),
        OpKind::Memory => Place::Memory(span(cpu, instruction, size(instruction, index), kind)?),
        _ => Place::Immediate(instruction.immediate(index)),
    })
}

/// Reads operand `index`, zero-extended; immediates come sign-extended to 64 bits.
pub(super) fn read(cpu: &mut Cpu, instruction: &Instruction, index: u32) -> Result<u64, Fault> {
    Ok(place(cpu, instruction, index, AccessKind::Read)?.load(cpu))
}

/// Writes operand `index`.
pub(super) fn write(
    cpu: &mut Cpu,
    instruction: &Instruction,
    index: u32,
    value: u64,
) -> Result<(), Fault> {
    place(cpu, instruction, index, AccessKind::Write)?.store(cpu, value)
}

impl Place {
    pub(super) fn load(&self, cpu: &Cpu) -> u64 {
        match self {
            Place::Register(register) => read_register(cpu, *register),
            Place::Immediate(value) => *value,
            Place::Memory(span) => span.load(),
        }
    }

    pub(super) fn store(&self, cpu: &mut Cpu, value: u64) -> Result<(), Fault> {
        match self {
            Place::Register(register) => write_register(cpu, *register, value),
            Place::Immediate(_) => {}
            Place::Memory(span) => span.store(cpu, value)?,
        }
        Ok(())
    }

    /// Replaces the value by `f` of it; atomically when `locked` and in memory.
    pub(super) fn update(
        &self,
        cpu: &mut Cpu,
        locked: bool,
        mut f: impl FnMut(u64) -> u64,
    ) -> Result<(), Fault> {
        match self {
            Place::Memory(span) => span.update(cpu, locked, f),
            _ => {
                let value = f(self.load(cpu));
                self.store(cpu, value)
            }
        }
    }
}

/// Offset of a bit string's element: the operand's offset moved by `displacement` bytes.
pub(super) fn bit_offset(cpu: &Cpu, instruction: &Instruction, displacement: u64) -> u64 {
    offset(cpu, instruction).wrapping_add(displacement) & mask(address_size(cpu, instruction))
}
