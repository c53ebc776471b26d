//! Port I/O.

use super::operand::mask;
use super::{Flow, Outcome};
use crate::cpu::Cpu;
use crate::error::Error;
use crate::exception::{Exception, Fault};
use crate::exit::{Exit, IoData};
use crate::memory;
use crate::mmu::{Access, AccessKind};
use crate::registers::rflags;
use crate::state::gpr;
use iced_x86::{Instruction, OpKind, Register};

/// An input whose data the monitor owes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PendingInput {
    pub(crate) size: u8,
    pub(crate) target: InputTarget,
}

/// Where the data of an input goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum InputTarget {
    /// AL, AX or EAX.
    Accumulator,
    /// INS: a linear address that was checked for writing when the instruction ran.
    Memory(u64),
}

/// Checks IOPL and the TSS's permission bitmap (SDM vol. 1 §18.5).
pub(super) fn check_port(cpu: &mut Cpu, port: u16, size: usize) -> Result<(), Fault> {
    if cpu.is_real_mode() || u64::from(cpu.cpl()) <= (cpu.state.rflags & rflags::IOPL) >> 12 {
        return Ok(());
    }
    let gp = Exception::gp(0);
    let task = cpu.state.tr;
    if task.limit < 103 {
        return Err(gp.into());
    }
    let map = memory::read_system(cpu, task.base.wrapping_add(102), 2)?;
    let byte = map + u64::from(port / 8);
    if byte + 1 > task.limit.into() {
        return Err(gp.into());
    }
    let bits = memory::read_system(cpu, task.base.wrapping_add(byte), 2)? >> (port % 8);
    if bits & ((1 << size) - 1) != 0 { Err(gp.into()) } else { Ok(()) }
}

/// Builds the exit of an access, or `None` when no trap covers the port.
pub(super) fn exit(cpu: &mut Cpu, port: u16, size: usize, output: Option<u64>) -> Option<Exit> {
    let Some(key) = cpu.guest.port_trap(port) else {
        cpu.stats.open_bus += 1;
        return None;
    };
    let mut data = IoData::default();
    if let Some(value) = output {
        data[..size].copy_from_slice(&value.to_le_bytes()[..size]);
    }
    Some(Exit::Io { key, port, access_size: size as u8, input: output.is_none(), data })
}

/// IN and OUT.
pub(super) fn port(cpu: &mut Cpu, instruction: &Instruction) -> Outcome {
    let input =
        instruction.op0_kind() == OpKind::Register && instruction.op0_register() != Register::DX;
    let (port_operand, data_operand) = if input { (1, 0) } else { (0, 1) };
    let register = instruction.op_register(data_operand);
    let size = register.size();
    let port = if instruction.op_kind(port_operand) == OpKind::Register {
        cpu.state.gpr[gpr::RDX] as u16
    } else {
        u16::from(instruction.immediate8())
    };
    check_port(cpu, port, size)?;
    let value = cpu.state.gpr[gpr::RAX] & mask(size);
    let exit = exit(cpu, port, size, (!input).then_some(value));
    if input {
        if exit.is_some() {
            cpu.pending_input =
                Some(PendingInput { size: size as u8, target: InputTarget::Accumulator });
        } else {
            super::operand::write_register(cpu, register, u64::MAX);
        }
    }
    Ok(exit.map_or(Flow::Next, Flow::Exit))
}

/// Takes the monitor's answer to an input.
pub(crate) fn complete_input(cpu: &mut Cpu, size: u8, data: IoData) -> Result<(), Error> {
    let pending = cpu.pending_input.ok_or(Error::BadState("no port input waits for data"))?;
    if pending.size != size {
        return Err(Error::InvalidArgs("the size is not that of the access"));
    }
    cpu.pending_input = None;
    finish_input(cpu, pending, u32::from_le_bytes(data).into());
    Ok(())
}

/// Answers an input that the monitor left open with all ones.
pub(crate) fn abandon_input(cpu: &mut Cpu) {
    if let Some(pending) = cpu.pending_input.take() {
        finish_input(cpu, pending, u64::MAX);
    }
}

fn finish_input(cpu: &mut Cpu, pending: PendingInput, value: u64) {
    match pending.target {
        InputTarget::Accumulator => {
            let register = match pending.size {
                1 => Register::AL,
                2 => Register::AX,
                _ => Register::EAX,
            };
            super::operand::write_register(cpu, register, value);
        }
        InputTarget::Memory(va) => {
            // The page was checked when the instruction ran; if the guest has unmapped it since, the data is lost,
            // as it is when an unmapping races with the instruction.
            let access = Access::current(cpu, AccessKind::Write);
            let _ = memory::write_as(cpu, va, pending.size.into(), value, access);
        }
    }
}
