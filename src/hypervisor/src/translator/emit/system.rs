//! Instructions that touch system state inline, and the call of the interpreter for the rest.

use std::mem::offset_of;

use super::{Emitter, Insn};
use crate::state::CpuState;
use crate::translator::asm::{Alu, Mem, reg};
use crate::translator::classify::Class;

const IF: i32 = 1 << 9;
const DF: i32 = 1 << 10;

impl Emitter<'_> {
    /// Lets Rust execute the instruction; `ends` if nothing that follows can be assumed to run next.
    pub(super) fn interpret(&mut self, insn: &Insn, ends: bool) {
        let index = u64::from(self.source.first_interpreted) + self.product.interpreted.len() as u64;
        self.product.interpreted.push(insn.instruction);
        let rip = self.env.field(offset_of!(CpuState, rip));
        self.asm.mov_imm(reg::S0, insn.va);
        self.asm.store(rip, reg::S0);
        self.asm.mov_imm(reg::S1, index | u64::from(ends || self.source.single) << 32);
        self.asm.call(self.stubs.interpret);
        if self.source.single && !super::ends_block(insn.form.class) {
            return;
        }
        if ends {
            // Never reached: the thunk resumes elsewhere or leaves.
            self.asm.bytes(&[0x0f, 0x0b]);
        }
    }

    /// Ands or ors a constant into `rflags`, which holds what the host's RFLAGS do not.
    fn change_rflags(&mut self, op: Alu, value: i32, flags_live: bool) {
        let rflags = self.env.field(offset_of!(CpuState, rflags));
        if flags_live {
            self.asm.mov_rr(reg::S1, reg::RAX);
            self.asm.flags_to_ax();
        }
        self.asm.alu_mem_imm32(op, rflags, value);
        if flags_live {
            self.asm.flags_from_ax();
            self.asm.mov_rr(reg::RAX, reg::S1);
        }
    }

    /// CLD and STD: the host's DF stays clear, because no string instruction is copied.
    pub(super) fn direction(&mut self, insn: &Insn) {
        let (op, value) =
            if insn.form.class == Class::Std { (Alu::Or, DF) } else { (Alu::And, !DF) };
        self.change_rflags(op, value, insn.live_out != 0);
    }

    /// CLI. IOPL and the virtual-interrupt modes matter only to user mode.
    pub(super) fn cli(&mut self, insn: &Insn) {
        if self.source.region.mode.user {
            return self.interpret(insn, true);
        }
        self.change_rflags(Alu::And, !IF, insn.live_out != 0);
    }

    /// RDTSC plus the guest's offset, without flags.
    pub(super) fn rdtsc(&mut self, insn: &Insn) {
        if !self.source.region.mode.tsc {
            return self.interpret(insn, true);
        }
        let offset = self.env.field(offset_of!(CpuState, tsc_offset));
        if !self.env.bmi2 {
            return self.interpret(insn, false);
        }
        self.asm.bytes(&[0x0f, 0x31]);
        self.asm.rorx(2, 2, 32);
        self.asm.lea(0, Mem::Index(0, 2, 0, 0));
        self.asm.load(reg::S0, offset);
        self.asm.lea(2, Mem::Index(0, reg::S0, 0, 0));
        // mov eax, edx; rorx rdx, rdx, 32; mov edx, edx
        self.asm.bytes(&[0x89, 0xd0]);
        self.asm.rorx(2, 2, 32);
        self.asm.bytes(&[0x89, 0xd2]);
    }
}
