//! Memory operands: effective address, TLB look-up and its out-of-line part.

use std::mem::offset_of;

use iced_x86::{Instruction, Register};

use super::Emitter;
use crate::state::{CpuState, Segment};
use crate::tlb::{TLB_OFFSET_MASK, TLB_SHIFT, TlbEntry};
use crate::translator::asm::{Alu, Mem, cc, reg};
use crate::translator::thunks::host_register;

/// What an instruction does to its memory operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(in crate::translator) enum Kind {
    Read = 0,
    Write = 1,
    Modify = 2,
}

/// Description of an access, as the slow path's Rust part receives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::translator) struct AccessInfo {
    /// Bytes, 1 to 1024.
    pub(in crate::translator) size: u16,
    pub(in crate::translator) kind: Kind,
    /// Status flags are in AX and RAX is in `tmp[2]`.
    pub(in crate::translator) flags_in_ax: bool,
    /// Status flags are in `flags_slot`.
    pub(in crate::translator) flags_in_slot: bool,
    /// A store whose instruction goes elsewhere than to the next one: no redirection after it.
    pub(in crate::translator) transfers: bool,
}

impl AccessInfo {
    pub(in crate::translator) fn pack(self) -> u32 {
        u32::from(self.size)
            | (self.kind as u32) << 12
            | u32::from(self.flags_in_ax) << 14
            | u32::from(self.transfers) << 15
            | u32::from(self.flags_in_slot) << 16
    }

    pub(in crate::translator) fn unpack(bits: u32) -> AccessInfo {
        AccessInfo {
            size: (bits & 0xfff) as u16,
            kind: match bits >> 12 & 3 {
                0 => Kind::Read,
                1 => Kind::Write,
                _ => Kind::Modify,
            },
            flags_in_ax: bits >> 14 & 1 != 0,
            transfers: bits >> 15 & 1 != 0,
            flags_in_slot: bits >> 16 & 1 != 0,
        }
    }
}

/// An access whose out-of-line part is still to be emitted.
pub(super) struct ColdAccess {
    /// Displacement of the jump to the cold part.
    jump: usize,
    /// Where S0 holds the host address.
    back: usize,
    /// End of the instruction's use of it.
    end: usize,
    info: AccessInfo,
    tag: i32,
    instruction: usize,
}

pub(super) fn register_number(register: Register) -> u8 {
    (register.full_register() as u32 - Register::RAX as u32) as u8
}

impl Emitter<'_> {
    /// Host register with the value of guest register `guest`: its own, or `scratch` loaded from the state.
    pub(super) fn read_register(&mut self, guest: u8, scratch: u8) -> u8 {
        match host_register(guest) {
            Some(host) => host,
            None => {
                let slot = self.env.gpr(guest);
                self.asm.load(scratch, slot);
                scratch
            }
        }
    }

    fn segment_base(&self, instruction: &Instruction) -> Option<Mem> {
        let n = match instruction.memory_segment() {
            Register::FS => 4,
            Register::GS => 5,
            _ => return None,
        };
        let at =
            offset_of!(CpuState, segments) + n * size_of::<Segment>() + offset_of!(Segment, base);
        Some(self.env.field(at))
    }

    /// Linear address of the memory operand into S0; may clobber S1, keeps flags.
    pub(super) fn linear_address(&mut self, instruction: &Instruction) {
        let segment = self.segment_base(instruction);
        let disp = instruction.memory_displacement64();
        let (base, index) = (instruction.memory_base(), instruction.memory_index());
        if index == Register::None && matches!(base, Register::None | Register::RIP | Register::EIP)
        {
            return self.constant_address(disp, segment);
        }
        let narrow = base.is_gpr32() || index.is_gpr32();
        let disp = disp as i32;
        if index == Register::None && !narrow {
            let guest = register_number(base);
            match (segment, host_register(guest)) {
                (Some(segment), Some(host)) => {
                    self.asm.load(reg::S0, segment);
                    return self.asm.lea(reg::S0, Mem::Index(reg::S0, host, 0, disp));
                }
                (None, Some(host)) if disp == 0 => return self.asm.mov_rr(reg::S0, host),
                _ => {}
            }
        }
        let mem = self.address_registers(instruction);
        if narrow {
            self.asm.lea32(reg::S0, mem);
        } else {
            self.asm.lea(reg::S0, mem);
        }
        if let Some(segment) = segment {
            self.asm.load(reg::S1, segment);
            self.asm.lea(reg::S0, Mem::Index(reg::S0, reg::S1, 0, 0));
        }
    }

    /// Base, index and displacement with host registers; spilled ones are loaded into S0 and S1.
    pub(super) fn address_registers(&mut self, instruction: &Instruction) -> Mem {
        let disp = instruction.memory_displacement64() as i32;
        let base = (instruction.memory_base() != Register::None)
            .then(|| self.read_register(register_number(instruction.memory_base()), reg::S0));
        let index = (instruction.memory_index() != Register::None)
            .then(|| self.read_register(register_number(instruction.memory_index()), reg::S1));
        let scale = instruction.memory_index_scale().trailing_zeros() as u8;
        match (base, index) {
            (Some(base), Some(index)) => Mem::Index(base, index, scale, disp),
            (Some(base), None) => Mem::Base(base, disp),
            (None, Some(index)) => Mem::Scaled(index, scale, disp),
            (None, None) => Mem::Abs(disp as u32),
        }
    }

    fn constant_address(&mut self, address: u64, segment: Option<Mem>) {
        match segment {
            None => self.asm.mov_imm(reg::S0, address),
            Some(segment) => {
                self.asm.load(reg::S0, segment);
                match i32::try_from(address as i64) {
                    Ok(disp) => self.asm.lea(reg::S0, Mem::Base(reg::S0, disp)),
                    Err(_) => {
                        self.asm.mov_imm(reg::S1, address);
                        self.asm.lea(reg::S0, Mem::Index(reg::S0, reg::S1, 0, 0));
                    }
                }
            }
        }
    }

    /// Turns the linear address in S0 into a host address; keeps flags only if `flags_live`, clobbers S1.
    pub(super) fn look_up(&mut self, kind: Kind, size: usize, flags_live: bool) {
        self.look_up_for(kind, size, flags_live, false);
    }

    pub(super) fn look_up_for(
        &mut self,
        kind: Kind,
        size: usize,
        flags_live: bool,
        transfers: bool,
    ) {
        self.finish_access();
        let rax = self.env.tmp(2);
        let flags_live = flags_live && !self.parked;
        if flags_live {
            self.asm.store(rax, reg::RAX);
            self.asm.flags_to_ax();
        }
        let (jump, tag) = self.search(kind, size);
        let back = self.asm.code.len();
        if flags_live {
            self.asm.flags_from_ax();
            self.asm.load(reg::RAX, rax);
        }
        let info = AccessInfo {
            size: size as u16,
            kind,
            flags_in_ax: flags_live,
            flags_in_slot: self.parked,
            transfers,
        };
        self.open_access =
            Some(ColdAccess { jump, back, end: back, info, tag, instruction: self.current });
    }

    /// The look-up proper. Gives the jump taken when the set does not have the page for all of the access, with S0 and S1
    /// then as they are after the comparison, and the offset of the tag.
    pub(super) fn search(&mut self, kind: Kind, size: usize) -> (usize, i32) {
        if self.env.bmi2 {
            self.asm.rorx(reg::S1, reg::S0, TLB_SHIFT as u8);
        } else {
            self.asm.mov_rr(reg::S1, reg::S0);
            self.asm.shr_imm(reg::S1, TLB_SHIFT as u8);
        }
        self.asm.alu_imm(Alu::And, false, reg::S1, TLB_OFFSET_MASK as i32);
        let tag = match kind {
            Kind::Read => offset_of!(TlbEntry, read),
            Kind::Write | Kind::Modify => offset_of!(TlbEntry, write),
        } as i32;
        self.asm.alu_rm(Alu::Xor, reg::S0, Mem::Gs(reg::S1, tag));
        self.asm.alu_imm(Alu::Cmp, true, reg::S0, 4096 - size as i32);
        let jump = self.asm.jcc_forward(cc::A);
        self.asm.alu_rm(Alu::Add, reg::S0, Mem::Gs(reg::S1, offset_of!(TlbEntry, host) as i32));
        (jump, tag)
    }

    /// Marks the end of the code that uses the last look-up's host address.
    pub(super) fn finish_access(&mut self) {
        if let Some(mut access) = self.open_access.take() {
            access.end = self.asm.code.len();
            self.cold_accesses.push(access);
        }
    }

    /// Emits the out-of-line parts of all look-ups.
    pub(super) fn emit_cold_accesses(&mut self) {
        for access in std::mem::take(&mut self.cold_accesses) {
            self.asm.bind(access.jump);
            self.parked = access.info.flags_in_slot;
            self.site(access.instruction);
            self.asm.alu_rm(Alu::Xor, reg::S0, Mem::Gs(reg::S1, access.tag));
            self.asm.mov_imm(reg::S1, access.info.pack().into());
            self.asm.call(self.stubs.access);
            let back = self.asm.jmp_forward();
            self.asm.bind_to(back, access.back);
            if access.info.kind != Kind::Read {
                self.asm.code.extend_from_within(access.back..access.end);
                self.asm.call(self.stubs.commit);
                let end = self.asm.jmp_forward();
                self.asm.bind_to(end, access.end);
            }
        }
    }
}
