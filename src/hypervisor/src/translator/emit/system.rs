//! Instructions that touch system state inline, and the call of the interpreter for the rest.

use std::mem::offset_of;

use iced_x86::{Mnemonic, OpKind, Register};

use super::memory::{Kind, register_number};
use super::{Emitter, Insn};
use crate::state::{CpuState, Segment, seg};
use crate::translator::asm::{Alu, Mem, cc, reg};
use crate::translator::classify::Class;
use crate::translator::thunks::host_register;

const IF: i32 = 1 << 9;
const DF: i32 = 1 << 10;
const AC: i32 = 1 << 18;

impl Emitter<'_> {
    /// Lets Rust execute the instruction; `ends` if nothing that follows can be assumed to run next.
    pub(super) fn interpret(&mut self, insn: &Insn, ends: bool) {
        self.unpark();
        let index =
            u64::from(self.source.first_interpreted) + self.product.interpreted.len() as u64;
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
        let flags_live = flags_live && !self.parked;
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

    /// STI, unless an interrupt waits; then the interpreter sees to the one instruction of delay. Nothing may come between
    /// STI and the instruction behind it, so it must not end a block here.
    pub(super) fn sti(&mut self, insn: &Insn) {
        let last = self.current + 1 == self.source.instructions.len();
        if self.source.region.mode.user || self.source.single || last {
            return self.interpret(insn, true);
        }
        let parked = self.parked;
        let live = insn.live_out != 0 && !parked;
        let pending = self.env.field(offset_of!(CpuState, interrupts_pending));
        if live {
            self.asm.mov_rr(reg::S1, reg::RAX);
            self.asm.flags_to_ax();
        }
        self.asm.alu_mem_imm32(Alu::Cmp, pending, 0);
        let none = self.asm.jcc_forward(cc::E);
        if live {
            self.asm.flags_from_ax();
            self.asm.mov_rr(reg::RAX, reg::S1);
        }
        self.interpret(insn, true);
        // The other way, they still are where they were.
        self.parked = parked;
        self.asm.bind(none);
        let rflags = self.env.field(offset_of!(CpuState, rflags));
        self.asm.alu_mem_imm32(Alu::Or, rflags, IF);
        if live {
            self.asm.flags_from_ax();
            self.asm.mov_rr(reg::RAX, reg::S1);
        }
    }

    /// MOV from a segment register.
    pub(super) fn store_segment(&mut self, insn: &Insn) {
        let instruction = &insn.instruction;
        let n = match instruction.op1_register() {
            Register::ES => seg::ES,
            Register::CS => seg::CS,
            Register::SS => seg::SS,
            Register::DS => seg::DS,
            Register::FS => seg::FS,
            _ => seg::GS,
        };
        // The selector is followed by padding that is always zero.
        let selector = self.env.field(
            offset_of!(CpuState, segments)
                + n * size_of::<Segment>()
                + offset_of!(Segment, selector),
        );
        if instruction.op0_kind() == OpKind::Memory {
            self.linear_address(instruction);
            self.look_up(Kind::Write, 2, insn.live_in != 0);
            self.asm.load32(reg::S1, selector);
            self.asm.store16(Mem::Base(reg::S0, 0), reg::S1);
            return;
        }
        let guest = register_number(instruction.op0_register());
        if instruction.op0_register().size() == 2 {
            match host_register(guest) {
                Some(host) => self.asm.load16(host, selector),
                None => {
                    self.asm.load32(reg::S0, selector);
                    let slot = self.env.gpr(guest);
                    self.asm.store16(slot, reg::S0);
                }
            }
            return;
        }
        match host_register(guest) {
            Some(host) => self.asm.load32(host, selector),
            None => {
                self.asm.load32(reg::S0, selector);
                let slot = self.env.gpr(guest);
                self.asm.store(slot, reg::S0);
            }
        }
    }

    /// SWAPGS.
    pub(super) fn swap_gs(&mut self, insn: &Insn) {
        if self.source.region.mode.user {
            return self.interpret(insn, true);
        }
        let base = offset_of!(CpuState, segments)
            + seg::GS * size_of::<Segment>()
            + offset_of!(Segment, base);
        let (base, other) =
            (self.env.field(base), self.env.field(offset_of!(CpuState, kernel_gs_base)));
        self.asm.load(reg::S0, base);
        self.asm.load(reg::S1, other);
        self.asm.store(base, reg::S1);
        self.asm.store(other, reg::S0);
    }

    /// STAC and CLAC: supervisor mode changes to the TLB set that has user pages, or has not.
    pub(super) fn access_control(&mut self, insn: &Insn) {
        if self.source.region.mode.user || !self.env.smap {
            return self.interpret(insn, true);
        }
        let (set, op, value) = if insn.form.class == Class::Stac {
            (offset_of!(CpuState, tlb_set_open), Alu::Or, AC)
        } else {
            (offset_of!(CpuState, tlb_set_protected), Alu::And, !AC)
        };
        let (set, current) = (self.env.field(set), self.env.field(offset_of!(CpuState, tlb_set)));
        self.asm.load(reg::S0, set);
        self.asm.store(current, reg::S0);
        self.asm.wrgsbase(reg::S0);
        self.change_rflags(op, value, insn.live_out != 0);
    }

    /// SYSCALL: the stub returns only if it is a case for the interpreter.
    pub(super) fn system_call(&mut self, insn: &Insn) {
        if !self.source.single {
            let next = self.next_va();
            self.asm.mov_imm(reg::S0, next);
            self.asm.call(self.stubs.syscall);
        }
        self.interpret(insn, true);
    }

    /// SYSRET to 64-bit mode, likewise.
    pub(super) fn system_return(&mut self, insn: &Insn) {
        if !self.source.single && !self.source.region.mode.user {
            self.asm.call(self.stubs.sysret);
        }
        self.interpret(insn, true);
    }

    /// IRETQ: likewise.
    pub(super) fn interrupt_return(&mut self, insn: &Insn) {
        if !self.source.single && !self.source.region.mode.user {
            self.asm.call(self.stubs.iret);
        }
        self.interpret(insn, true);
    }

    fn segment_base_of(&self, insn: &Insn) -> Mem {
        let n = match insn.instruction.mnemonic() {
            Mnemonic::Rdfsbase | Mnemonic::Wrfsbase => seg::FS,
            _ => seg::GS,
        };
        let offset = n * size_of::<Segment>() + offset_of!(Segment, base);
        self.env.field(offset_of!(CpuState, segments) + offset)
    }

    /// Loads a guest register from a word of the state.
    fn load_guest(&mut self, register: Register, from: Mem) {
        let guest = register_number(register);
        let host = host_register(guest).unwrap_or(reg::S0);
        match register.size() {
            4 => self.asm.load32(host, from),
            _ => self.asm.load(host, from),
        }
        if host == reg::S0 {
            let slot = self.env.gpr(guest);
            self.asm.store(slot, reg::S0);
        }
    }

    /// RDFSBASE and RDGSBASE.
    pub(super) fn read_base(&mut self, insn: &Insn) {
        if !self.source.region.mode.fsgsbase {
            return self.interpret(insn, true);
        }
        let base = self.segment_base_of(insn);
        self.load_guest(insn.instruction.op0_register(), base);
    }

    /// WRFSBASE and WRGSBASE. A base that is not canonical is the interpreter's.
    pub(super) fn write_base(&mut self, insn: &Insn) {
        if !self.source.region.mode.fsgsbase || self.source.single {
            return self.interpret(insn, true);
        }
        let base = self.segment_base_of(insn);
        let register = insn.instruction.op0_register();
        let host = self.read_register(register_number(register), reg::S0);
        if register.size() == 4 {
            self.asm.lea32(reg::S0, Mem::Base(host, 0));
        } else {
            if insn.live_out != 0 {
                self.park();
            }
            self.asm.mov_rr(reg::S0, host);
            self.asm.mov_rr(reg::S1, host);
            self.asm.shl_imm(reg::S1, 16);
            self.asm.sar_imm(reg::S1, 16);
            self.asm.alu_rr(Alu::Cmp, reg::S1, reg::S0);
            let canonical = self.asm.jcc_forward(cc::E);
            let parked = self.parked;
            self.interpret(insn, true);
            self.parked = parked;
            self.asm.bind(canonical);
        }
        self.asm.store(base, reg::S0);
    }

    /// MOV from a control register.
    pub(super) fn read_control(&mut self, insn: &Insn) {
        let offset = match insn.instruction.op1_register() {
            _ if self.source.region.mode.user => return self.interpret(insn, true),
            Register::CR0 => offset_of!(CpuState, cr0),
            Register::CR2 => offset_of!(CpuState, cr2),
            Register::CR3 => offset_of!(CpuState, cr3),
            Register::CR4 => offset_of!(CpuState, cr4),
            _ => return self.interpret(insn, true),
        };
        let control = self.env.field(offset);
        self.load_guest(insn.instruction.op0_register(), control);
    }

    /// RDTSC and RDTSCP plus the guest's offset, without flags.
    pub(super) fn rdtsc(&mut self, insn: &Insn) {
        if !self.source.region.mode.tsc {
            return self.interpret(insn, true);
        }
        let offset = self.env.field(offset_of!(CpuState, tsc_offset));
        if !self.env.bmi2 {
            return self.interpret(insn, false);
        }
        let with_aux = insn.instruction.mnemonic() == Mnemonic::Rdtscp;
        if with_aux {
            self.asm.bytes(&[0x0f, 0x01, 0xf9]);
            let aux = self.env.field(offset_of!(CpuState, tsc_aux));
            self.asm.load32(reg::RCX, aux);
        } else {
            self.asm.bytes(&[0x0f, 0x31]);
        }
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
