//! PUSH, POP, LEAVE, PUSHFQ: the guest's stack pointer is an ordinary host register, so each is a look-up and a move.
//! Runs of PUSH, and runs of POP with the RET behind them, share one look-up for all their words; where that misses, or
//! the words are not all in one page, they are executed one by one out of line.

use std::mem::offset_of;

use iced_x86::OpKind;

use super::memory::{Kind, register_number};
use super::{Emitter, Insn};
use crate::state::{CpuState, gpr};
use crate::translator::asm::{Alu, Mem, reg};
use crate::translator::classify::Class;
use crate::translator::thunks::{STATUS_FLAGS, host_register};

/// Most words that share a look-up.
const MOST_WORDS: usize = 16;

/// The out-of-line part of a run of PUSH or POP: every instruction on its own.
pub(super) struct ColdGroup {
    jump: usize,
    first: usize,
    count: usize,
    /// Where to go on.
    end: usize,
    parked: bool,
}

impl Emitter<'_> {
    /// Number of instructions from `first` on that share a look-up: 1 where none do.
    pub(super) fn stack_run(&self, first: usize) -> usize {
        let instructions = &self.source.instructions[first..];
        let class = instructions[0].form.class;
        if self.source.single || !matches!(class, Class::Push | Class::Pop) {
            return 1;
        }
        let alike = |insn: &Insn| {
            insn.form.class == class
                && insn.instruction.op0_kind() == OpKind::Register
                && register_number(insn.instruction.op0_register()) != gpr::RSP as u8
        };
        let together = |(n, insn): (usize, &Insn)| (n == 0 || !insn.is_target) && alike(insn);
        let mut count = 0;
        for pair in instructions.iter().take(MOST_WORDS).enumerate() {
            if !together(pair) {
                break;
            }
            count += 1;
        }
        let returns = |insn: &Insn| insn.form.class == Class::Ret && !insn.is_target;
        if class == Class::Pop && count != 0 && instructions.get(count).is_some_and(returns) {
            count += 1;
        }
        count.max(1)
    }

    /// Emits such a run.
    pub(super) fn stack_group(&mut self, first: usize, count: usize) {
        let instructions = &self.source.instructions[first..first + count];
        if instructions[0].live_in != 0 {
            self.park();
        }
        // Nobody jumps to the others.
        let label = self.asm.code.len();
        self.labels.resize(first + count, label);
        let bytes = 8 * count as i32;
        let ends = instructions[count - 1].form.class == Class::Ret;
        let pushes = instructions[0].form.class == Class::Push;
        let kind = if pushes { Kind::Write } else { Kind::Read };
        if pushes {
            self.asm.lea(reg::S0, Mem::Base(reg::GUEST_SP, -bytes));
        } else {
            self.asm.mov_rr(reg::S0, reg::GUEST_SP);
        }
        let (jump, _) = self.search(kind, bytes as usize);
        for (n, insn) in instructions.iter().enumerate() {
            let at = 8 * n as i32;
            match insn.form.class {
                Class::Push => {
                    let guest = register_number(insn.instruction.op0_register());
                    let host = self.read_register(guest, reg::S1);
                    self.asm.store(Mem::Base(reg::S0, bytes - 8 - at), host);
                }
                Class::Pop => {
                    let guest = register_number(insn.instruction.op0_register());
                    let host = host_register(guest).unwrap_or(reg::S1);
                    self.asm.load(host, Mem::Base(reg::S0, at));
                    if host == reg::S1 {
                        let slot = self.env.gpr(guest);
                        self.asm.store(slot, reg::S1);
                    }
                }
                _ => self.asm.load(reg::S0, Mem::Base(reg::S0, at)),
            }
        }
        let moved = match &instructions[count - 1] {
            _ if pushes => -bytes,
            last if ends => bytes - 8 + super::control::released_by_return(last),
            _ => bytes,
        };
        self.asm.lea(reg::GUEST_SP, Mem::Base(reg::GUEST_SP, moved));
        if ends {
            self.asm.ret();
        }
        let end = self.asm.code.len();
        self.cold_groups.push(ColdGroup { jump, first, count, end, parked: self.parked });
    }

    pub(super) fn emit_cold_groups(&mut self) {
        for group in std::mem::take(&mut self.cold_groups) {
            self.asm.bind(group.jump);
            self.parked = group.parked;
            for index in group.first..group.first + group.count {
                self.current = index;
                self.site(index);
                let insn = &self.source.instructions[index];
                self.instruction(insn);
                self.finish_access();
            }
            let end = self.asm.jmp_forward();
            self.asm.bind_to(end, group.end);
        }
    }

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
