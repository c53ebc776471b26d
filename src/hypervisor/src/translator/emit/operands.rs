//! Instructions that are copied: registers mapped, memory operands replaced by host addresses.

use iced_x86::{Code, Instruction, OpAccess, OpKind, Register};

use super::memory::{Kind, register_number};
use super::{Emitter, Insn};
use crate::translator::asm::{Alu, Mem, reg};
use crate::translator::classify::memory_operand;
use crate::translator::thunks::host_register;

/// A guest register operand that needs another host register.
#[derive(Clone, Copy)]
struct Substitute {
    guest: u8,
    host: u8,
    reads: bool,
    writes: bool,
    /// The host register belongs to another guest register whose value waits in `tmp[4 + n]`.
    borrowed: Option<usize>,
}

impl Emitter<'_> {
    /// Copies an instruction through.
    pub(super) fn copy(&mut self, insn: &Insn) {
        let mut instruction = insn.instruction;
        let memory = memory_operand(&instruction);
        if memory.is_none() && !needs_mapping(&instruction) {
            let bytes = self.source.bytes;
            return self.asm.bytes(&bytes[insn.offset..insn.offset + usize::from(insn.length)]);
        }
        let high = uses_high_byte(&instruction);
        if high && memory.is_none() {
            // MOVZX ESP, AH and the like: no host encoding has both registers.
            return self.interpret(insn, false);
        }
        if let Some(operand) = memory {
            self.translate_memory(insn, operand);
            modrm_form(&mut instruction);
        }
        let mut free = if memory.is_some() { vec![reg::S1] } else { vec![reg::S1, reg::S0] };
        let substitutes = self.substitutes(&instruction, &mut free);
        for s in &substitutes {
            if let Some(n) = s.borrowed {
                let slot = self.env.tmp(4 + n);
                self.asm.store(slot, s.host);
            }
            if s.reads {
                let slot = self.env.gpr(s.guest);
                self.asm.load(s.host, slot);
            }
        }
        map_registers(&mut instruction, &substitutes);
        let mut pointer = reg::S0;
        if high {
            // A high byte register excludes REX, so the pointer moves to RDI for the moment.
            self.asm.mov_rr(reg::S1, reg::RDI);
            self.asm.mov_rr(reg::RDI, reg::S0);
            pointer = reg::RDI;
        }
        if memory.is_some() {
            set_pointer(&mut instruction, pointer);
        }
        self.encode(&instruction);
        if high {
            self.asm.mov_rr(reg::RDI, reg::S1);
        }
        for s in &substitutes {
            if s.writes {
                let slot = self.env.gpr(s.guest);
                self.asm.store(slot, s.host);
            }
            if let Some(n) = s.borrowed {
                let slot = self.env.tmp(4 + n);
                self.asm.load(s.host, slot);
            }
        }
    }

    /// Host address of the memory operand into S0.
    fn translate_memory(&mut self, insn: &Insn, operand: u32) {
        let instruction = &insn.instruction;
        let size = match instruction.memory_size().size() {
            0 => 1,
            size => size,
        };
        let kind = match self.access(instruction, operand) {
            OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess | OpAccess::None => {
                Kind::Read
            }
            OpAccess::Write => Kind::Write,
            _ => Kind::Modify,
        };
        self.linear_address(instruction);
        self.look_up(kind, size, insn.live_in != 0);
    }

    /// How `instruction` accesses operand `n`.
    pub(super) fn access(&mut self, instruction: &Instruction, n: u32) -> OpAccess {
        use iced_x86::InstructionInfoOptions as O;
        self.infos.info_options(instruction, O::NO_MEMORY_USAGE | O::NO_REGISTER_USAGE).op_access(n)
    }

    fn substitutes(&mut self, instruction: &Instruction, free: &mut Vec<u8>) -> Vec<Substitute> {
        let mut list: Vec<Substitute> = Vec::new();
        for n in 0..instruction.op_count() {
            if instruction.op_kind(n) != OpKind::Register || !instruction.op_register(n).is_gpr() {
                continue;
            }
            let register = instruction.op_register(n);
            let guest = register_number(register);
            if host_register(guest).is_some() {
                continue;
            }
            let access = self.access(instruction, n);
            let partial = register.size() < 4;
            let writes = !matches!(access, OpAccess::Read | OpAccess::CondRead | OpAccess::None);
            let reads = !matches!(access, OpAccess::Write) || partial;
            if let Some(known) = list.iter_mut().find(|s| s.guest == guest) {
                known.reads |= reads;
                known.writes |= writes;
                continue;
            }
            let (host, borrowed) = match free.pop() {
                Some(host) => (host, None),
                None => {
                    let n = list.iter().filter(|s| s.borrowed.is_some()).count();
                    (borrow(instruction, &list), Some(n))
                }
            };
            list.push(Substitute { guest, host, reads, writes, borrowed });
        }
        list
    }

    /// Encodes an instruction that has no RIP-relative operand.
    pub(super) fn encode(&mut self, instruction: &Instruction) {
        self.encoder.set_buffer(std::mem::take(&mut self.asm.code));
        let result = self.encoder.encode(instruction, 0);
        self.asm.code = self.encoder.take_buffer();
        if result.is_err() {
            // Every form was found encodable by the differential tests; a trap is the safe answer to a new one.
            self.asm.bytes(&[0x0f, 0x0b]);
        }
    }

    /// LEA.
    pub(super) fn load_address(&mut self, insn: &Insn) {
        let instruction = &insn.instruction;
        let to = instruction.op0_register();
        let guest = register_number(to);
        let (base, index) = (instruction.memory_base(), instruction.memory_index());
        let target = host_register(guest).unwrap_or(reg::S0);
        let narrow = base.is_gpr32() || index.is_gpr32();
        if to.size() == 8
            && index == Register::None
            && matches!(base, Register::RIP | Register::None)
        {
            self.asm.mov_imm(target, instruction.memory_displacement64());
        } else if to.size() == 2
            || matches!(base, Register::RIP | Register::EIP | Register::None)
                && index == Register::None
        {
            self.address_without_segment(instruction);
            match to.size() {
                2 => return self.store_word(guest),
                4 => self.asm.lea32(target, Mem::Base(reg::S0, 0)),
                _ => self.asm.mov_rr(target, reg::S0),
            }
        } else {
            let mem = self.address_registers(instruction);
            if narrow || to.size() == 4 {
                self.asm.lea32(target, mem);
            } else {
                self.asm.lea(target, mem);
            }
        }
        if host_register(guest).is_none() {
            let slot = self.env.gpr(guest);
            self.asm.store(slot, reg::S0);
        }
    }

    fn address_without_segment(&mut self, instruction: &Instruction) {
        let mut plain = *instruction;
        plain.set_segment_prefix(Register::None);
        self.linear_address(&plain);
    }

    /// Stores S0's low word into a guest register.
    fn store_word(&mut self, guest: u8) {
        match host_register(guest) {
            // mov r16, r10w
            Some(host) => {
                self.asm.bytes(&[
                    0x66,
                    0x41 | (host >> 3 & 1) << 2,
                    0x8b,
                    0xc0 | (host & 7) << 3 | (reg::S0 & 7),
                ]);
            }
            None => {
                let slot = self.env.state + crate::state::CpuState::gpr_offset(guest.into()) as u32;
                self.asm.bytes(&[0x66, 0x44, 0x89, 4 | (reg::S0 & 7) << 3, 0x25]);
                self.asm.bytes(&slot.to_le_bytes());
            }
        }
    }

    /// BT and its kin with a register bit offset: the offset reaches beyond the operand at the effective address.
    pub(super) fn bit_string(&mut self, insn: &Insn) {
        let Some(operand) = memory_operand(&insn.instruction) else {
            return self.copy(insn);
        };
        let mut instruction = insn.instruction;
        let register = instruction.op1_register();
        let size = register.size();
        let guest = register_number(register);
        let flags_live = insn.live_out != 0;
        self.linear_address(&instruction);
        let ax = self.env.tmp(5);
        if flags_live {
            self.asm.store(ax, reg::RAX);
            self.asm.flags_to_ax();
            let saved = self.env.tmp(6);
            self.asm.store(saved, reg::RAX);
            self.asm.load(reg::RAX, ax);
        }
        let source = self.read_register(guest, reg::S1);
        match size {
            2 => self.asm.bytes(&[0x4c, 0x0f, 0xbf]),
            4 => self.asm.bytes(&[0x4c, 0x63]),
            _ => self.asm.bytes(&[0x4c, 0x8b]),
        }
        if source >= 8 {
            let at = self.asm.code.len() - if size == 2 { 3 } else { 2 };
            self.asm.code[at] |= 1;
        }
        self.asm.bytes(&[0xc0 | (reg::S1 & 7) << 3 | (source & 7)]);
        // SAR S1, log2(bits); then scale by the operand's bytes.
        self.asm.bytes(&[0x49, 0xc1, 0xf8 | (reg::S1 & 7), size.trailing_zeros() as u8 + 3]);
        self.asm.lea(reg::S0, Mem::Index(reg::S0, reg::S1, size.trailing_zeros() as u8, 0));
        let kind = match self.access(&instruction, operand) {
            OpAccess::Read => Kind::Read,
            _ => Kind::Modify,
        };
        self.look_up(kind, size, false);
        let source = self.read_register(guest, reg::S1);
        self.asm.mov_rr(reg::S1, source);
        self.asm.alu_imm(Alu::And, false, reg::S1, size as i32 * 8 - 1);
        if flags_live {
            self.asm.store(ax, reg::RAX);
            let saved = self.env.tmp(6);
            self.asm.load(reg::RAX, saved);
            self.asm.flags_from_ax();
            self.asm.load(reg::RAX, ax);
        }
        instruction.set_op1_register(sized(register, reg::S1));
        set_pointer(&mut instruction, reg::S0);
        self.encode(&instruction);
    }
}

/// Points the memory operand at a host register.
fn set_pointer(instruction: &mut Instruction, host: u8) {
    instruction.set_memory_base(sized(Register::RAX, host));
    instruction.set_memory_index(Register::None);
    instruction.set_memory_index_scale(1);
    instruction.set_memory_displacement64(0);
    instruction.set_memory_displ_size(0);
    instruction.set_segment_prefix(Register::None);
}

/// Turns MOV with an absolute 64-bit address into the ModRM form.
fn modrm_form(instruction: &mut Instruction) {
    let code = match instruction.code() {
        Code::Mov_AL_moffs8 => Code::Mov_r8_rm8,
        Code::Mov_AX_moffs16 => Code::Mov_r16_rm16,
        Code::Mov_EAX_moffs32 => Code::Mov_r32_rm32,
        Code::Mov_RAX_moffs64 => Code::Mov_r64_rm64,
        Code::Mov_moffs8_AL => Code::Mov_rm8_r8,
        Code::Mov_moffs16_AX => Code::Mov_rm16_r16,
        Code::Mov_moffs32_EAX => Code::Mov_rm32_r32,
        Code::Mov_moffs64_RAX => Code::Mov_rm64_r64,
        _ => return,
    };
    instruction.set_code(code);
}

/// A host register that the instruction does not use, explicitly or implicitly.
fn borrow(instruction: &Instruction, taken: &[Substitute]) -> u8 {
    [reg::RBP, 9, 12, 13, 14]
        .into_iter()
        .find(|&host| {
            taken.iter().all(|s| s.host != host)
                && (0..instruction.op_count()).all(|n| {
                    instruction.op_kind(n) != OpKind::Register
                        || !instruction.op_register(n).is_gpr()
                        || register_number(instruction.op_register(n)) != host
                })
        })
        .unwrap_or(14)
}

fn needs_mapping(instruction: &Instruction) -> bool {
    (0..instruction.op_count()).any(|n| {
        instruction.op_kind(n) == OpKind::Register && {
            let register = instruction.op_register(n);
            register.is_gpr() && {
                let guest = register_number(register);
                host_register(guest) != Some(guest)
            }
        }
    })
}

fn uses_high_byte(instruction: &Instruction) -> bool {
    (0..instruction.op_count()).any(|n| {
        instruction.op_kind(n) == OpKind::Register
            && matches!(
                instruction.op_register(n),
                Register::AH | Register::CH | Register::DH | Register::BH
            )
    })
}

fn map_registers(instruction: &mut Instruction, substitutes: &[Substitute]) {
    for n in 0..instruction.op_count() {
        if instruction.op_kind(n) != OpKind::Register {
            continue;
        }
        let register = instruction.op_register(n);
        if !register.is_gpr()
            || matches!(register, Register::AH | Register::CH | Register::DH | Register::BH)
        {
            continue;
        }
        let guest = register_number(register);
        let host =
            substitutes.iter().find(|s| s.guest == guest).map(|s| s.host).or(host_register(guest));
        if let Some(host) = host.filter(|&host| host != guest) {
            instruction.set_op_register(n, sized(register, host));
        }
    }
}

/// Host register `n` in the size of `like`.
fn sized(like: Register, n: u8) -> Register {
    match like.size() {
        1 => [
            Register::AL,
            Register::CL,
            Register::DL,
            Register::BL,
            Register::SPL,
            Register::BPL,
            Register::SIL,
            Register::DIL,
            Register::R8L,
            Register::R9L,
            Register::R10L,
            Register::R11L,
            Register::R12L,
            Register::R13L,
            Register::R14L,
            Register::R15L,
        ][usize::from(n)],
        2 => Register::AX + u32::from(n),
        4 => Register::EAX + u32::from(n),
        _ => Register::RAX + u32::from(n),
    }
}
