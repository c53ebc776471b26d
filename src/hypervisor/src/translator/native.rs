//! Vector, x87 and bit-manipulation instructions outside 64-bit mode: 32-bit programs under a 64-bit kernel, and
//! protected- and real-mode code.
//!
//! The interpreter has the integer instructions of those modes and leaves the rest to the host CPU. Each runs here on
//! its own: its memory operand is copied to the bounce buffer and, if written, back. Without the operand's address an
//! instruction means the same in 64-bit mode, so one piece of code per distinct instruction serves every execution.

use std::mem::offset_of;

use iced_x86::{Encoder, Instruction, InstructionInfoOptions, OpAccess, OpKind, Register};

use super::cache::{NO_BLOCK, Site};
use super::classify::{Class, form, memory_operand};
use super::emit::Kind;
use super::{RunExit, asm::reg, enter, evict, fpu, handlers};
use crate::cpu::Cpu;
use crate::exception::{Exception, Fault};
use crate::interp;
use crate::memory::Span;
use crate::mmu::AccessKind;
use crate::state::{CpuState, gpr};

/// Runs the instruction at RIP, which is not in 64-bit mode.
pub(super) fn step(cpu: &mut Cpu) -> RunExit {
    let instruction = match interp::fetch(cpu) {
        Ok(instruction) => instruction,
        Err(fault) => return exit(cpu, fault, 0),
    };
    match execute(cpu, &instruction) {
        Ok(()) => {
            cpu.state.rip = cpu.wrap_ip(instruction.next_ip());
            RunExit::Attention
        }
        Err(fault) => exit(cpu, fault, instruction.len() as u8),
    }
}

fn exit(cpu: &mut Cpu, fault: Fault, length: u8) -> RunExit {
    match fault {
        Fault::Exception(exception) => RunExit::Exception(exception),
        Fault::MemTrap { key, gpa } => RunExit::Exit(interp::mem_exit(cpu, key, gpa, length)),
        Fault::Exit(exit) => RunExit::Exit(exit),
        Fault::BellClosed => RunExit::BellClosed,
    }
}

fn execute(cpu: &mut Cpu, instruction: &Instruction) -> Result<(), Fault> {
    let form = form(instruction.code());
    handlers::check_unit(cpu, form.unit)?;
    match form.class {
        Class::Copy => copy(cpu, instruction),
        Class::FpState | Class::Element => {
            fpu::load(cpu);
            let done = match form.class {
                Class::FpState => fpu::execute(cpu, instruction),
                _ => fpu::element(cpu, instruction),
            };
            fpu::store(cpu);
            done
        }
        _ => Err(Exception::ud().into()),
    }
}

/// A memory operand in the bounce buffer.
struct Operand {
    span: Span,
    offset: usize,
    size: usize,
    kind: Kind,
}

impl Operand {
    /// Translates the operand and copies it in, at the guest address's alignment.
    fn fetch(cpu: &mut Cpu, instruction: &Instruction, operand: u32) -> Result<Operand, Fault> {
        let size = instruction.memory_size().size().max(1);
        let options =
            InstructionInfoOptions::NO_MEMORY_USAGE | InstructionInfoOptions::NO_REGISTER_USAGE;
        let infos = &mut cpu.translator.infos;
        let kind = match infos.info_options(instruction, options).op_access(operand) {
            OpAccess::Write => Kind::Write,
            OpAccess::ReadWrite | OpAccess::ReadCondWrite | OpAccess::CondWrite => Kind::Modify,
            _ => Kind::Read,
        };
        let access = if kind == Kind::Read { AccessKind::Read } else { AccessKind::Write };
        let va = interp::linear_address(cpu, instruction, size, access)?;
        if !va.is_multiple_of(size as u64) && handlers::demands_alignment(instruction) {
            return Err(Exception::gp(0).into());
        }
        let span = interp::operand_span(cpu, instruction, size, access)?;
        let mut bytes = [0; 1024];
        span.read(&mut bytes[..size]);
        let offset = (va & 63) as usize;
        cpu.state.bounce.0[offset..offset + size].copy_from_slice(&bytes[..size]);
        Ok(Operand { span, offset, size, kind })
    }

    /// Copies the operand out if the instruction wrote it.
    fn finish(&self, cpu: &mut Cpu) -> Result<(), Fault> {
        if self.kind == Kind::Read {
            return Ok(());
        }
        let mut bytes = [0; 1024];
        bytes[..self.size]
            .copy_from_slice(&cpu.state.bounce.0[self.offset..self.offset + self.size]);
        self.span.write(cpu, &bytes[..self.size])
    }
}

fn copy(cpu: &mut Cpu, instruction: &Instruction) -> Result<(), Fault> {
    let mut host = *instruction;
    let operand = match memory_operand(instruction) {
        Some(index) => {
            let operand = Operand::fetch(cpu, instruction, index)?;
            cpu.state.tmp[0] = cpu.state.bounce.0[operand.offset..].as_ptr() as u64;
            point_to_bounce(&mut host);
            Some(operand)
        }
        None => None,
    };
    map_registers(cpu, &mut host);
    let code = code_for(cpu, &host).ok_or_else(Exception::ud)?;
    let rip = cpu.state.rip;
    let exit = enter(cpu, code);
    // The code has no site of its own from which a fault could have set RIP.
    cpu.state.rip = rip;
    if let Some(RunExit::Exception(exception)) = exit {
        return Err(exception.into());
    }
    match operand {
        Some(operand) => operand.finish(cpu),
        None => Ok(()),
    }
}

/// The memory operand becomes `[S0]`.
fn point_to_bounce(host: &mut Instruction) {
    host.set_memory_base(Register::R10);
    host.set_memory_index(Register::None);
    host.set_memory_index_scale(1);
    host.set_memory_displacement64(0);
    host.set_memory_displ_size(0);
    host.set_segment_prefix(Register::None);
}

/// ESP lives in host R15; AH to BH, which have no encoding beside R10 or R15, are read from S1. No instruction that
/// comes here writes one of them.
fn map_registers(cpu: &mut Cpu, host: &mut Instruction) {
    for n in 0..host.op_count() {
        if host.op_kind(n) != OpKind::Register {
            continue;
        }
        let mapped = match host.op_register(n) {
            Register::ESP => Register::R15D,
            Register::SP => Register::R15W,
            register @ (Register::AH | Register::CH | Register::DH | Register::BH) => {
                let full = gpr::RAX + (register as usize - Register::AH as usize);
                cpu.state.tmp[1] = cpu.state.gpr[full] >> 8 & 0xff;
                Register::R11L
            }
            _ => continue,
        };
        host.set_op_register(n, mapped);
    }
}

/// Code that loads the scratch registers, executes `host` and leaves. `None` for what has no 64-bit encoding.
fn code_for(cpu: &mut Cpu, host: &Instruction) -> Option<u64> {
    if let Some(&code) = cpu.translator.cache.native.get(host) {
        return Some(code);
    }
    evict::make_room(cpu);
    let translator = &mut *cpu.translator;
    let mut encoder = Encoder::new(64);
    encoder.encode(host, 0).ok()?;
    let asm = &mut translator.asm;
    asm.reset(translator.arena.cursor());
    let tmp = |n: usize| translator.env.field(offset_of!(CpuState, tmp) + 8 * n);
    asm.load(reg::S0, tmp(0));
    asm.load(reg::S1, tmp(1));
    asm.bytes(&encoder.take_buffer());
    asm.jmp(translator.stubs.exit);
    let segment = translator.arena.current();
    let offset = translator.arena.offset() as u32;
    let code = translator.arena.append(&translator.asm.code)?;
    let site = Site { offset, block: NO_BLOCK, guest: 0, length: 0, parked: false };
    translator.cache.sites.push(segment, site);
    translator.cache.native.insert(*host, code);
    Some(code)
}
