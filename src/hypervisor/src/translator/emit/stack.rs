//! PUSH, POP, LEAVE, PUSHFQ: the guest's stack pointer is an ordinary host register, so each is a look-up and a move.

use std::mem::offset_of;

use iced_x86::OpKind;

use super::memory::{Kind, register_number};
use super::{Emitter, Insn};
use crate::state::CpuState;
use crate::translator::asm::{Alu, Mem, reg};
use crate::translator::thunks::{STATUS_FLAGS, host_register};

impl Emitter<'_> {
    pub(super) fn push(&mut self, insn: &Insn) {
        let instruction = &insn.instruction;
        let live = insn.live_in != 0;
        let top = Mem::Base(reg::S0, 0);
        match instruction.op0_kind() {
            OpKind::Register => {
                let guest = register_number(instruction.op0_register());
                self.asm.lea(reg::S0, Mem::Base(reg::GUEST_SP, -8));
                self.look_up(Kind::Write, 8, live);
                let host = self.read_register(guest, reg::S1);
                self.asm.store(top, host);
            }
            OpKind::Memory => {
                let value = self.env.tmp(4);
                self.linear_address(instruction);
                self.look_up(Kind::Read, 8, live);
                self.asm.load(reg::S0, top);
                self.asm.store(value, reg::S0);
                self.finish_access();
                self.asm.lea(reg::S0, Mem::Base(reg::GUEST_SP, -8));
                self.look_up(Kind::Write, 8, live);
                self.asm.load(reg::S1, value);
                self.asm.store(top, reg::S1);
            }
            _ => {
                self.asm.lea(reg::S0, Mem::Base(reg::GUEST_SP, -8));
                self.look_up(Kind::Write, 8, live);
                self.asm.store_imm(top, instruction.immediate(0) as i32);
            }
        }
        self.asm.lea(reg::GUEST_SP, Mem::Base(reg::GUEST_SP, -8));
    }

    pub(super) fn pop(&mut self, insn: &Insn) {
        let guest = register_number(insn.instruction.op0_register());
        self.asm.mov_rr(reg::S0, reg::GUEST_SP);
        self.look_up(Kind::Read, 8, insn.live_in != 0);
        let host = host_register(guest).unwrap_or(reg::S1);
        self.asm.load(host, Mem::Base(reg::S0, 0));
        if host == reg::S1 {
            let slot = self.env.gpr(guest);
            self.asm.store(slot, reg::S1);
        }
        if host != reg::GUEST_SP {
            self.asm.lea(reg::GUEST_SP, Mem::Base(reg::GUEST_SP, 8));
        }
    }

    pub(super) fn leave(&mut self, insn: &Insn) {
        self.asm.mov_rr(reg::S0, reg::RBP);
        self.look_up(Kind::Read, 8, insn.live_in != 0);
        self.asm.load(reg::S1, Mem::Base(reg::S0, 0));
        self.asm.lea(reg::GUEST_SP, Mem::Base(reg::RBP, 8));
        self.asm.mov_rr(reg::RBP, reg::S1);
    }

    /// PUSHFQ.
    pub(super) fn push_flags(&mut self, insn: &Insn) {
        if insn.instruction.code() != iced_x86::Code::Pushfq {
            return self.interpret(insn, false);
        }
        let live = insn.live_out != 0;
        let (value, saved) = (self.env.tmp(4), self.env.tmp(5));
        let rflags = self.env.field(offset_of!(CpuState, rflags));
        self.asm.flags_to_reg(reg::S0);
        if live {
            self.asm.store(saved, reg::S0);
        }
        self.asm.load32(reg::S1, rflags);
        self.asm.alu_imm(Alu::And, false, reg::S0, STATUS_FLAGS);
        self.asm.alu_imm(Alu::And, false, reg::S1, !(STATUS_FLAGS | 3 << 16));
        self.asm.alu_rr(Alu::Or, reg::S0, reg::S1);
        self.asm.store(value, reg::S0);
        if live {
            // Before the look-up: a fault there must find them.
            self.asm.load(reg::S0, saved);
            self.asm.push(reg::S0);
            self.asm.bytes(&[0x9d]);
        }
        self.asm.lea(reg::S0, Mem::Base(reg::GUEST_SP, -8));
        self.look_up(Kind::Write, 8, live);
        self.asm.load(reg::S1, value);
        self.asm.store(Mem::Base(reg::S0, 0), reg::S1);
        self.asm.lea(reg::GUEST_SP, Mem::Base(reg::GUEST_SP, -8));
    }
}
