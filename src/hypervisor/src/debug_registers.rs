//! Hardware breakpoints of the guest (SDM vol. 3 §17.2). While one is armed the vCPU runs one instruction at a time, so
//! that matches are found by looking at each instruction before it runs.

use crate::cpu::Cpu;
use crate::state::{Rflags, gpr, seg};
use iced_x86::{Instruction, InstructionInfoFactory, OpAccess, Register};

/// DR7 R/W fields.
const EXECUTE: u64 = 0;
const WRITE: u64 = 1;
const READ_WRITE: u64 = 3;

/// An armed breakpoint.
struct Breakpoint {
    /// Its bit in DR6.
    bit: u64,
    address: u64,
    length: u64,
    kind: u64,
}

/// Whether DR7 enables any breakpoint.
pub(crate) fn are_armed(cpu: &Cpu) -> bool {
    cpu.state.dr[7] & 0xff != 0
}

fn armed(cpu: &Cpu) -> impl Iterator<Item = Breakpoint> {
    let dr = cpu.state.dr;
    (0..4_usize).filter(move |index| dr[7] >> (2 * index) & 3 != 0).map(move |index| {
        let length = [1, 2, 8, 4][(dr[7] >> (18 + 4 * index) & 3) as usize];
        Breakpoint {
            bit: 1 << index,
            // Address bits below the length are ignored (SDM vol. 3 §17.2.5).
            address: dr[index] & !(length - 1),
            length,
            kind: dr[7] >> (16 + 4 * index) & 3,
        }
    })
}

/// DR6 bits of the instruction breakpoints at RIP; none while RFLAGS.RF is set.
pub(crate) fn instruction_matches(cpu: &Cpu) -> u64 {
    if cpu.state.flag(Rflags::RF) {
        return 0;
    }
    let at = cpu.linear_ip();
    armed(cpu)
        .filter(|breakpoint| breakpoint.kind == EXECUTE && breakpoint.address == at)
        .fold(0, |bits, breakpoint| bits | breakpoint.bit)
}

/// DR6 bits of the data breakpoints that an instruction is about to touch. A repeated string instruction counts with all
/// the elements it may reach.
pub(crate) fn data_matches(cpu: &Cpu, instruction: &Instruction) -> u64 {
    let repeats = instruction.has_rep_prefix() || instruction.has_repne_prefix();
    let mut factory = InstructionInfoFactory::new();
    let mut bits = 0;
    for memory in factory.info(instruction).used_memory() {
        let writes = matches!(
            memory.access(),
            OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite
        );
        if memory.access() == OpAccess::NoMemAccess {
            continue;
        }
        let Some(address) =
            memory.virtual_address(0, |register, _, _| register_value(cpu, register))
        else {
            continue;
        };
        let mut size = memory.memory_size().size().max(1) as u64;
        let mut start = address;
        if repeats && instruction.is_string_instruction() {
            let more = size.saturating_mul(cpu.state.gpr[gpr::RCX].saturating_sub(1));
            if cpu.state.flag(Rflags::DF) {
                start = start.wrapping_sub(more);
            }
            size = size.saturating_add(more);
        }
        for breakpoint in armed(cpu) {
            let kind = breakpoint.kind == READ_WRITE || breakpoint.kind == WRITE && writes;
            let below = breakpoint.address.wrapping_sub(start) < size;
            let inside = start.wrapping_sub(breakpoint.address) < breakpoint.length;
            if kind && (below || inside) {
                bits |= breakpoint.bit;
            }
        }
    }
    bits
}

/// A register's value, or a segment register's base.
fn register_value(cpu: &Cpu, register: Register) -> Option<u64> {
    let base = |index: usize| {
        let flat = cpu.is_64bit() && index < seg::FS;
        Some(if flat { 0 } else { cpu.state.segments[index].base })
    };
    match register {
        Register::ES => base(seg::ES),
        Register::CS => base(seg::CS),
        Register::SS => base(seg::SS),
        Register::DS => base(seg::DS),
        Register::FS => base(seg::FS),
        Register::GS => base(seg::GS),
        _ if register.is_gpr() => Some(crate::interp::register_value(cpu, register)),
        // Vector indices: a gather or scatter watches nothing.
        _ => None,
    }
}
