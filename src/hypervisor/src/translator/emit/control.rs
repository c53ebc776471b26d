//! Transfers of control.
//!
//! Inside a region a direct transfer needs no check. Into another region it checks that the target page still is what
//! it was when the transfer was linked; the check clobbers flags, so they travel in `flags_slot`, as they do through
//! indirect transfers (`flags`). A call pushes its return site on the host's return stack as well, and the return jumps there
//! without knowing whether that is right: the return site compares the guest's address with its own.

use iced_x86::{Mnemonic, OpKind};

use super::memory::{Kind, register_number};
use super::{Cold, Emitter, Insn, code_identity};
use crate::translator::asm::{Alu, Mem, cc, reg};
use crate::translator::cache::Link;
use crate::translator::classify::Class;
use crate::translator::thunks;

impl Emitter<'_> {
    /// Index of the instruction at `target`, if it is in this block.
    pub(super) fn label(&self, target: u64) -> Option<usize> {
        if self.source.single {
            return None;
        }
        self.source.instructions.binary_search_by_key(&target, |insn| insn.va).ok()
    }

    /// Binds the displacement at offset `at` to an instruction of this block.
    fn bind_label(&mut self, at: usize, index: usize) {
        match self.labels.get(index) {
            Some(&label) => self.asm.bind_to(at, label),
            None => self.pending.push((at, index)),
        }
    }

    /// Registers a link whose displacement is at offset `at`.
    fn link(&mut self, at: usize, target: u64, slot: bool, region_immediate: u64) {
        let link = self.product.links.len();
        let insn = &self.source.instructions[self.current];
        // Every cycle of transfers has one that is not of this kind, and that one's target polls.
        let forward = region_immediate == 0
            && target > insn.va
            && !matches!(insn.form.class, Class::Call | Class::CallIndirect);
        self.product.links.push(Link {
            displacement: self.asm.base + at as u64,
            region_immediate,
            stub: 0,
            target,
            from: self.source.block,
            to: None,
            slot,
            forward,
        });
        self.cold.push(Cold::Link { displacement: at, link });
    }

    fn is_near(&self, target: u64) -> bool {
        self.source.region.contains(target)
    }

    /// Unconditional transfer to a known address.
    pub(super) fn jump(&mut self, target: u64, flags_live: bool) {
        if self.source.single {
            self.finish_access();
            self.unpark();
            self.set_rip(target);
            self.asm.jmp(self.stubs.exit);
        } else if let Some(index) = self.label(target) {
            if flags_live {
                self.unpark();
            }
            let at = self.asm.jmp_forward();
            self.bind_label(at, index);
        } else if self.is_near(target) {
            let at = self.asm.jmp_forward();
            self.link(at, target, flags_live && self.parked, 0);
        } else {
            self.far_jump(target, flags_live);
        }
    }

    /// Checked transfer to another region.
    pub(super) fn far_jump(&mut self, target: u64, flags_live: bool) {
        if flags_live {
            self.park();
        }
        let immediate = self.check_region(target);
        let at = self.asm.jmp_forward();
        self.link_checked(at, target, immediate);
    }

    /// Compares the identity of the page of `target`; gives the immediate's address and the branch taken on mismatch.
    fn check_region(&mut self, target: u64) -> (u64, usize) {
        let immediate = self.asm.alu_mem_imm32_patchable(Alu::Cmp, code_identity(target), u32::MAX);
        (immediate, self.asm.jcc_forward(cc::NE))
    }

    fn link_checked(&mut self, at: usize, target: u64, (immediate, mismatch): (u64, usize)) {
        let link = self.product.links.len();
        self.link(at, target, true, immediate);
        self.cold.push(Cold::Link { displacement: mismatch, link });
    }

    pub(super) fn jump_conditional(&mut self, insn: &Insn) {
        let target = insn.instruction.near_branch64();
        let code = jcc_code(insn);
        let live = insn.live_out != 0;
        if self.source.single {
            let at = self.asm.jcc_forward(code);
            self.jump(self.next_va(), live);
            self.parked = false;
            self.asm.bind(at);
            self.jump(target, live);
        } else if let Some(index) = self.label(target) {
            let at = self.asm.jcc_forward(code);
            self.bind_label(at, index);
        } else if self.is_near(target) {
            let at = self.asm.jcc_forward(code);
            self.link(at, target, false, 0);
        } else {
            let jump = self.asm.jcc_forward(code);
            self.cold.push(Cold::FarJump { jump, target, flags_live: live });
        }
    }

    /// LOOP, LOOPE, LOOPNE, JRCXZ and JECXZ: a short jump to a long one.
    pub(super) fn jump_loop(&mut self, insn: &Insn) {
        let narrow = matches!(
            insn.instruction.code(),
            iced_x86::Code::Jecxz_rel8_64
                | iced_x86::Code::Loop_rel8_64_ECX
                | iced_x86::Code::Loope_rel8_64_ECX
                | iced_x86::Code::Loopne_rel8_64_ECX
        );
        let opcode = match insn.instruction.mnemonic() {
            Mnemonic::Loopne => 0xe0,
            Mnemonic::Loope => 0xe1,
            Mnemonic::Loop => 0xe2,
            _ => 0xe3,
        };
        if narrow {
            self.asm.bytes(&[0x67]);
        }
        self.asm.bytes(&[opcode, 5]);
        let skip = self.asm.jmp_forward();
        self.jump(insn.instruction.near_branch64(), insn.live_out != 0);
        // The other way, the flags still are in the host's RFLAGS.
        self.parked = false;
        self.asm.bind(skip);
        if self.source.single {
            self.jump(self.next_va(), insn.live_out != 0);
        }
    }

    /// Loads the target of an indirect jump or call into S0; may clobber S1 and, unless live, flags.
    fn indirect_target(&mut self, insn: &Insn) {
        if insn.instruction.op0_kind() == OpKind::Register {
            let register =
                self.read_register(register_number(insn.instruction.op0_register()), reg::S0);
            self.asm.mov_rr(reg::S0, register);
        } else {
            self.linear_address(&insn.instruction);
            self.look_up(Kind::Read, 8, false);
            self.asm.load(reg::S0, Mem::Base(reg::S0, 0));
            self.finish_access();
        }
    }

    pub(super) fn jump_indirect(&mut self, insn: &Insn) {
        if self.source.single {
            return self.interpret(insn, true);
        }
        self.indirect_target(insn);
        let slot = thunks::jump_table_slot(self.asm, &self.env);
        self.asm.jmp_mem(slot);
    }

    /// Pushes the return address on the guest's stack; clobbers S0, S1 and flags.
    fn push_return_address(&mut self) {
        let next = self.next_va();
        self.asm.lea(reg::S0, Mem::Base(reg::GUEST_SP, -8));
        self.look_up_for(Kind::Write, 8, false, true);
        match i32::try_from(next as i64) {
            Ok(imm) => self.asm.store_imm(Mem::Base(reg::S0, 0), imm),
            Err(_) => {
                self.asm.mov_imm(reg::S1, next);
                self.asm.store(Mem::Base(reg::S0, 0), reg::S1);
            }
        }
        self.finish_access();
        self.asm.lea(reg::GUEST_SP, Mem::Base(reg::GUEST_SP, -8));
    }

    pub(super) fn call(&mut self, insn: &Insn) {
        let target = insn.instruction.near_branch64();
        if self.source.single {
            self.push_return_address();
            return self.jump(target, false);
        }
        self.push_return_address();
        if self.is_near(target) {
            let at = self.asm.call_forward();
            self.link(at, target, true, 0);
        } else {
            let (immediate, mismatch) = self.check_region(target);
            let at = self.asm.call_forward();
            self.link(at, target, true, immediate);
            let link = self.product.links.len() - 1;
            let back = self.asm.code.len();
            self.cold.push(Cold::FarCall { jump: mismatch, link, back });
        }
        self.return_site(insn);
    }

    pub(super) fn call_indirect(&mut self, insn: &Insn) {
        if self.source.single {
            return self.interpret(insn, true);
        }
        let target = self.env.tmp(3);
        self.indirect_target(insn);
        self.asm.store(target, reg::S0);
        self.push_return_address();
        self.asm.load(reg::S0, target);
        let slot = thunks::jump_table_slot(self.asm, &self.env);
        self.asm.call_mem(slot);
        self.return_site(insn);
    }

    /// Where the host returns to: S0 holds the address the guest returned to, flags are in the slot.
    fn return_site(&mut self, insn: &Insn) {
        let next = self.next_va();
        self.product.return_sites.push(self.asm.here());
        match i32::try_from(next as i64) {
            // Always the four-byte form: invalidation overwrites five bytes.
            Ok(imm) => {
                self.asm.bytes(&[0x49, 0x81, 0xf8 | (reg::S0 & 7)]);
                self.asm.bytes(&imm.to_le_bytes());
            }
            Err(_) => {
                self.asm.mov_imm(reg::S1, next);
                self.asm.alu_rr(Alu::Cmp, reg::S0, reg::S1);
            }
        }
        let jump = self.asm.jcc_forward(cc::NE);
        self.cold.push(Cold::Mismatch { jump });
        if self.is_near(next) {
            let id = self.source.region_id;
            self.asm.alu_mem_imm32_patchable(Alu::Cmp, code_identity(next), id);
            let jump = self.asm.jcc_forward(cc::NE);
            self.cold.push(Cold::Mismatch { jump });
            self.parked = insn.live_out != 0;
        } else {
            // The call ends its page: the next instruction is another region's, found as an indirect target.
            self.asm.jmp(self.stubs.dispatch);
        }
    }

    pub(super) fn ret(&mut self, insn: &Insn) {
        let pop = released_by_return(insn);
        if self.source.single {
            return self.interpret(insn, true);
        }
        self.asm.mov_rr(reg::S0, reg::GUEST_SP);
        self.look_up(Kind::Read, 8, false);
        self.asm.load(reg::S0, Mem::Base(reg::S0, 0));
        self.finish_access();
        self.asm.lea(reg::GUEST_SP, Mem::Base(reg::GUEST_SP, pop));
        self.asm.ret();
    }
}

/// Bytes that RET takes off the stack.
pub(super) fn released_by_return(insn: &Insn) -> i32 {
    match insn.instruction.op_count() {
        0 => 8,
        _ => 8 + i32::from(insn.instruction.immediate16()),
    }
}

fn jcc_code(insn: &Insn) -> u8 {
    use iced_x86::ConditionCode as C;
    match insn.instruction.condition_code() {
        C::o => 0,
        C::no => 1,
        C::b => 2,
        C::ae => 3,
        C::e => 4,
        C::ne => 5,
        C::be => 6,
        C::a => 7,
        C::s => 8,
        C::ns => 9,
        C::p => 10,
        C::np => 11,
        C::l => 12,
        C::ge => 13,
        C::le => 14,
        _ => 15,
    }
}
