//! MOVS and STOS, with and without REP, where every operand lies inside one page of RAM: the host's own instruction with
//! host addresses. All else, and DF, is the interpreter's.

use std::mem::offset_of;

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use super::{Emitter, Insn};
use crate::state::CpuState;
use crate::tlb::{TLB_OFFSET_MASK, TLB_SHIFT, TlbEntry};
use crate::translator::asm::{Alu, Mem, cc, reg};

const DF: i32 = 1 << 10;
const PAGE: i32 = 4096;

impl Emitter<'_> {
    pub(super) fn string(&mut self, insn: &Insn) {
        let instruction = &insn.instruction;
        let moves = reads_source(instruction);
        if self.source.single || !has_flat_operands(instruction) {
            return self.interpret(insn, false);
        }
        if insn.live_out != 0 {
            self.park();
        }
        let size = instruction.memory_size().size();
        let repeats = instruction.has_rep_prefix() || instruction.has_repne_prefix();
        let mut slow = Vec::new();
        let rflags = self.env.field(offset_of!(CpuState, rflags));
        self.asm.load32(reg::S0, rflags);
        self.asm.test_imm32(reg::S0, DF);
        slow.push(self.asm.jcc_forward(cc::NE));
        if repeats {
            self.asm.alu_imm(Alu::Cmp, true, reg::RCX, PAGE);
            slow.push(self.asm.jcc_forward(cc::A));
        }
        let saved = self.env.tmp(4);
        self.page_offset(reg::RDI, offset_of!(TlbEntry, write), size, repeats, &mut slow);
        if moves {
            self.asm.store(saved, reg::S0);
            self.page_offset(reg::RSI, offset_of!(TlbEntry, read), size, repeats, &mut slow);
            self.asm.mov_rr(reg::S1, reg::S0);
            self.asm.load(reg::S0, saved);
            self.asm.alu_rr(Alu::Add, reg::RSI, reg::S1);
        }
        self.asm.alu_rr(Alu::Add, reg::RDI, reg::S0);
        if repeats {
            self.asm.bytes(&[0xf3]);
        }
        match size {
            2 => self.asm.bytes(&[0x66]),
            8 => self.asm.bytes(&[0x48]),
            _ => {}
        }
        let opcode = if moves { 0xa4 } else { 0xaa };
        self.asm.bytes(&[opcode | u8::from(size != 1)]);
        self.asm.alu_rr(Alu::Sub, reg::RDI, reg::S0);
        if moves {
            self.asm.alu_rr(Alu::Sub, reg::RSI, reg::S1);
        }
        let done = self.asm.jmp_forward();
        for at in slow {
            self.asm.bind(at);
        }
        let parked = self.parked;
        self.interpret(insn, false);
        // The slot still has them as well.
        self.parked = parked;
        self.asm.bind(done);
    }

    /// Looks up the page that `pointer` points into; leaves in S0 what turns the pointer into a host address. Goes the
    /// slow way unless all elements lie in that page.
    fn page_offset(
        &mut self,
        pointer: u8,
        tag: usize,
        size: usize,
        repeats: bool,
        slow: &mut Vec<usize>,
    ) {
        if self.env.bmi2 {
            self.asm.rorx(reg::S1, pointer, TLB_SHIFT as u8);
        } else {
            self.asm.mov_rr(reg::S1, pointer);
            self.asm.shr_imm(reg::S1, TLB_SHIFT as u8);
        }
        self.asm.alu_imm(Alu::And, false, reg::S1, TLB_OFFSET_MASK as i32);
        self.asm.mov_rr(reg::S0, pointer);
        self.asm.alu_rm(Alu::Xor, reg::S0, Mem::Gs(reg::S1, tag as i32));
        if repeats {
            // A tag that differs leaves at least a page here; RCX is too small to wrap it around.
            self.asm.alu_imm(Alu::Cmp, true, reg::S0, PAGE - 1);
            slow.push(self.asm.jcc_forward(cc::A));
            let scale = size.trailing_zeros() as u8;
            self.asm.lea(reg::S0, Mem::Index(reg::S0, reg::RCX, scale, 0));
            self.asm.alu_imm(Alu::Cmp, true, reg::S0, PAGE);
        } else {
            self.asm.alu_imm(Alu::Cmp, true, reg::S0, PAGE - size as i32);
        }
        slow.push(self.asm.jcc_forward(cc::A));
        self.asm.load(reg::S0, Mem::Gs(reg::S1, offset_of!(TlbEntry, host) as i32));
        self.asm.alu_rm(Alu::Sub, reg::S0, Mem::Gs(reg::S1, tag as i32));
    }
}

fn reads_source(instruction: &Instruction) -> bool {
    matches!(
        instruction.mnemonic(),
        Mnemonic::Movsb | Mnemonic::Movsw | Mnemonic::Movsd | Mnemonic::Movsq
    )
}

/// Operands through RSI and RDI without a segment base.
fn has_flat_operands(instruction: &Instruction) -> bool {
    let flat = !matches!(instruction.memory_segment(), Register::FS | Register::GS);
    (0..instruction.op_count()).all(|n| match instruction.op_kind(n) {
        OpKind::MemorySegRSI => flat,
        OpKind::MemoryESRDI | OpKind::Register => true,
        _ => false,
    })
}
