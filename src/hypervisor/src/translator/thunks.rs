//! The fixed code at the start of the arena: entry, exit and the calls into Rust.
//!
//! Rust code may use every vector register and clobbers most others, so a thunk stores the guest's registers in
//! `CpuState` first. x87 registers stay in the host: compiled Rust does not touch them.

use std::mem::offset_of;

use super::asm::{Alu, Asm, Mem, cc, reg};
use crate::state::{CpuState, IretCache, Segment, seg};
use crate::tlb::{TLB_OFFSET_MASK, TLB_SHIFT, TlbEntry};

/// Host register that holds guest register `guest`, or `None` if it lives in `CpuState`.
pub(super) const fn host_register(guest: u8) -> Option<u8> {
    match guest {
        4 => Some(reg::GUEST_SP),
        10 | 11 | 15 => None,
        _ => Some(guest),
    }
}

/// Guest registers that live in host registers.
pub(super) const LIVE: [u8; 13] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 14];

/// RFLAGS bits that translated code keeps in the host's RFLAGS.
pub(super) const STATUS_FLAGS: i32 = 0x8d5;

/// RFLAGS bits that IRETQ loads at CPL 0: the status flags, IF, DF, IOPL, NT, AC, ID.
const IRET_FLAGS: i32 = STATUS_FLAGS | 0x200 | 0x400 | 0x3000 | 0x4000 | 0x4_0000 | 0x20_0000;

/// What a thunk's Rust part answers.
pub(super) mod answer {
    /// Continue behind the thunk call.
    pub(crate) const CONTINUE: u32 = 0;
    /// Continue behind the thunk call at its second exit (the bounced store).
    pub(crate) const BOUNCE: u32 = 1;
    /// Continue at `CpuState::resume`.
    pub(crate) const RESUME: u32 = 1;
    /// As `RESUME`, from a memory access.
    pub(crate) const REDIRECT: u32 = 3;
    /// Leave translated code.
    pub(crate) const EXIT: u32 = 2;
}

/// Rust part of a thunk.
pub(super) type Handler = unsafe extern "C" fn(context: u64, s0: u64, s1: u64, caller: u64) -> u32;

/// Rust parts, by thunk.
pub(super) struct Handlers {
    pub(super) access: Handler,
    pub(super) commit: Handler,
    pub(super) interpret: Handler,
    pub(super) link: Handler,
    pub(super) indirect: Handler,
}

/// Addresses of the fixed code.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Stubs {
    pub(super) enter: u64,
    pub(super) exit: u64,
    pub(super) access: u64,
    pub(super) commit: u64,
    pub(super) interpret: u64,
    pub(super) link: u64,
    pub(super) indirect: u64,
    pub(super) dispatch: u64,
    pub(super) underflow: u64,
    pub(super) syscall: u64,
    pub(super) sysret: u64,
    pub(super) iret: u64,
}

/// Where translated code finds things.
#[derive(Clone, Copy, Debug)]
pub(super) struct Env {
    /// Address of the vCPU's `CpuState`.
    pub(super) state: u32,
    /// Address of the jump table.
    pub(super) jump_table: i32,
    /// Address of the topmost entry of the return stack.
    pub(super) return_top: u64,
    pub(super) bmi2: bool,
    /// The CPU policy offers SMAP.
    pub(super) smap: bool,
}

impl Env {
    pub(super) fn field(&self, offset: usize) -> Mem {
        Mem::Abs(self.state + offset as u32)
    }

    pub(super) fn gpr(&self, guest: u8) -> Mem {
        self.field(CpuState::gpr_offset(guest.into()))
    }

    pub(super) fn tmp(&self, n: usize) -> Mem {
        self.field(offset_of!(CpuState, tmp) + 8 * n)
    }
}

struct Builder<'a> {
    asm: &'a mut Asm,
    env: Env,
    exit_saved: u64,
    resume_all: u64,
}

/// Emits the fixed code into `asm`, which starts at the arena's base.
pub(super) fn build(asm: &mut Asm, env: Env, handlers: &Handlers) -> Stubs {
    let mut stubs = Stubs::default();
    let mut b = Builder { asm, env, exit_saved: 0, resume_all: 0 };
    stubs.enter = b.asm.here();
    b.enter();
    b.exit_saved = b.asm.here();
    b.leave();
    stubs.exit = b.asm.here();
    b.save_gprs();
    b.save_flags();
    b.save_vectors();
    let to = b.exit_saved;
    b.asm.jmp(to);
    stubs.access = b.asm.here();
    b.access(handlers.access);
    stubs.commit = b.asm.here();
    b.full(handlers.commit, true);
    stubs.interpret = b.asm.here();
    b.full(handlers.interpret, true);
    stubs.link = b.asm.here();
    b.full(handlers.link, false);
    stubs.indirect = b.asm.here();
    b.full(handlers.indirect, false);
    stubs.syscall = b.asm.here();
    b.system_call();
    stubs.sysret = b.asm.here();
    b.system_return();
    stubs.iret = b.asm.here();
    b.interrupt_return();
    stubs.underflow = b.asm.here();
    b.asm.mov_imm(reg::RSP, env.return_top);
    stubs.dispatch = b.asm.here();
    dispatch(b.asm, &env);
    stubs
}

/// Jumps to the code for the linear address in S0, flags in the slot.
pub(super) fn dispatch(asm: &mut Asm, env: &Env) {
    let target = jump_table_slot(asm, env);
    asm.jmp_mem(target);
}

/// Computes the jump table's slot for the address in S0 into S1, without flags.
pub(super) fn jump_table_slot(asm: &mut Asm, env: &Env) -> Mem {
    if env.bmi2 {
        asm.rorx(reg::S1, reg::S0, super::cache::JUMP_TABLE_SHIFT);
    } else {
        asm.mov_rr(reg::S1, reg::S0);
        asm.shr_imm(reg::S1, super::cache::JUMP_TABLE_SHIFT);
    }
    asm.movzx16(reg::S1, reg::S1);
    Mem::Scaled(reg::S1, 3, env.jump_table)
}

impl Builder<'_> {
    fn field(&self, offset: usize) -> Mem {
        self.env.field(offset)
    }

    /// `extern "C" fn(code: u64)`.
    fn enter(&mut self) {
        for r in [3, 5, 12, 13, 14, 15] {
            self.asm.push(r);
        }
        self.asm.alu_imm(Alu::Add, true, reg::RSP, -8);
        self.asm.store(self.field(offset_of!(CpuState, host_rsp)), reg::RSP);
        self.asm.store(self.field(offset_of!(CpuState, resume)), reg::RDI);
        self.asm.mxcsr(true, self.field(offset_of!(CpuState, host_mxcsr)));
        self.asm.load(reg::RSP, self.field(offset_of!(CpuState, return_stack)));
        self.asm.mxcsr(false, self.field(offset_of!(CpuState, mxcsr)));
        self.resume_all = self.asm.here();
        self.load_view();
        self.load_vectors();
        self.load_flags();
        self.load_gprs();
        self.asm.jmp_mem(self.field(offset_of!(CpuState, resume)));
    }

    /// Returns from `enter`; everything is saved and RSP is the return stack.
    fn leave(&mut self) {
        self.asm.mxcsr(true, self.field(offset_of!(CpuState, mxcsr)));
        self.asm.mxcsr(false, self.field(offset_of!(CpuState, host_mxcsr)));
        self.asm.store(self.field(offset_of!(CpuState, return_stack)), reg::RSP);
        self.asm.load(reg::RSP, self.field(offset_of!(CpuState, host_rsp)));
        self.asm.alu_imm(Alu::Add, true, reg::RSP, 8);
        for r in [15, 14, 13, 12, 5, 3] {
            self.asm.pop(r);
        }
        self.asm.ret();
    }

    fn load_view(&mut self) {
        self.asm.load(reg::S0, self.field(offset_of!(CpuState, tlb_set)));
        self.asm.wrgsbase(reg::S0);
    }

    fn save_gprs(&mut self) {
        for guest in LIVE {
            if let Some(host) = host_register(guest) {
                self.asm.store(self.env.gpr(guest), host);
            }
        }
    }

    fn load_gprs(&mut self) {
        for guest in LIVE {
            if let Some(host) = host_register(guest) {
                self.asm.load(host, self.env.gpr(guest));
            }
        }
    }

    fn save_vectors(&mut self) {
        for ymm in 0..16 {
            self.asm.vmovups(
                true,
                ymm,
                self.field(offset_of!(CpuState, vector) + 32 * ymm as usize),
            );
        }
        self.asm.vzeroupper();
    }

    fn load_vectors(&mut self) {
        for ymm in 0..16 {
            self.asm.vmovups(
                false,
                ymm,
                self.field(offset_of!(CpuState, vector) + 32 * ymm as usize),
            );
        }
    }

    /// Merges the host's status flags into `rflags`; clobbers S0 and S1.
    fn save_flags(&mut self) {
        let rflags = self.field(offset_of!(CpuState, rflags));
        self.asm.flags_to_reg(reg::S0);
        self.asm.alu_imm(Alu::And, false, reg::S0, STATUS_FLAGS);
        self.asm.load32(reg::S1, rflags);
        self.asm.alu_imm(Alu::And, false, reg::S1, !STATUS_FLAGS);
        self.asm.alu_rr(Alu::Or, reg::S0, reg::S1);
        self.asm.store32(rflags, reg::S0);
    }

    /// Loads the host's status flags from `rflags`; clobbers RAX.
    fn load_flags(&mut self) {
        let at = self.env.state + offset_of!(CpuState, rflags) as u32;
        // bt dword [rflags], 11; setc al; mov ah, [rflags]
        self.asm.bytes(&[0x0f, 0xba, 0x24, 0x25]);
        self.asm.bytes(&at.to_le_bytes());
        self.asm.bytes(&[11, 0x0f, 0x92, 0xc0, 0x8a, 0x24, 0x25]);
        self.asm.bytes(&at.to_le_bytes());
        self.asm.flags_from_ax();
    }

    fn call_rust(&mut self, handler: Handler) {
        self.asm.store(self.field(offset_of!(CpuState, return_stack)), reg::RSP);
        self.asm.load(reg::RSP, self.field(offset_of!(CpuState, host_rsp)));
        self.asm.load(reg::RDI, self.field(offset_of!(CpuState, context)));
        self.asm.mov_imm(reg::RAX, handler as usize as u64);
        // call rax
        self.asm.bytes(&[0xff, 0xd0]);
        self.asm.load(reg::RSP, self.field(offset_of!(CpuState, return_stack)));
    }

    fn drop_return_address(&mut self) {
        self.asm.lea(reg::RSP, Mem::Base(reg::RSP, 8));
    }

    /// Slow path of a memory access: S0 is the linear address, S1 the description; gives the host address in S0.
    /// Status flags are dead or kept in AX by the caller.
    fn access(&mut self, handler: Handler) {
        self.save_gprs();
        self.save_vectors();
        self.asm.mov_rr(6, reg::S0);
        self.asm.mov_rr(2, reg::S1);
        self.asm.load(reg::RCX, Mem::Base(reg::RSP, 0));
        self.call_rust(handler);
        self.asm.alu_imm(Alu::Cmp, false, reg::RAX, answer::BOUNCE as i32);
        let leave = self.asm.jcc_forward(cc::A);
        let direct = self.asm.jcc_forward(cc::NE);
        // The bounced form of the instruction follows a five-byte jump behind the call.
        self.asm.bytes(&[0x48, 0x83, 0x04, 0x24, 0x05]);
        self.asm.bind(direct);
        self.load_vectors();
        self.load_gprs();
        self.asm.load(reg::S0, self.env.tmp(0));
        self.asm.ret();
        self.asm.bind(leave);
        self.drop_return_address();
        self.asm.alu_imm(Alu::Cmp, false, reg::RAX, answer::REDIRECT as i32);
        let (resume, exit) = (self.resume_all, self.exit_saved);
        self.asm.jcc(cc::E, resume);
        self.asm.jmp(exit);
    }

    fn segment(&self, n: usize, offset: usize) -> Mem {
        self.field(offset_of!(CpuState, segments) + n * size_of::<Segment>() + offset)
    }

    /// Gives CS and SS the flat segments of SYSCALL and SYSRET; S1 is the selector of CS, and is clobbered.
    fn flat_segments(&mut self, cpl: u8, to_ss: i32) {
        for (n, segment) in
            [(seg::CS, Segment::long_code(0, cpl)), (seg::SS, Segment::flat_data(0, cpl))]
        {
            self.asm.store16(self.segment(n, offset_of!(Segment, selector)), reg::S1);
            self.asm.store_imm(self.segment(n, offset_of!(Segment, base)), 0);
            self.asm.store_imm32(self.segment(n, offset_of!(Segment, limit)), segment.limit);
            self.asm
                .store_imm32(self.segment(n, offset_of!(Segment, attributes)), segment.attributes);
            self.asm.alu_imm(Alu::Add, false, reg::S1, to_ss);
        }
        self.asm.store_imm32(self.field(offset_of!(CpuState, cpl)), cpl.into());
    }

    /// Makes S1 the current TLB set.
    fn set_view(&mut self) {
        self.asm.store(self.field(offset_of!(CpuState, tlb_set)), reg::S1);
        self.asm.wrgsbase(reg::S1);
    }

    /// Puts the status flags of the RFLAGS value in S0 into the slot; clobbers S0 and S1.
    fn status_to_slot(&mut self) {
        self.asm.mov_rr(reg::S1, reg::S0);
        self.asm.alu_imm(Alu::And, false, reg::S1, 0xd5);
        self.asm.shl_imm(reg::S1, 8);
        self.asm.shr_imm(reg::S0, 11);
        self.asm.alu_imm(Alu::And, false, reg::S0, 1);
        self.asm.alu_rr(Alu::Or, reg::S1, reg::S0);
        self.asm.store32(self.field(offset_of!(CpuState, flags_slot)), reg::S1);
    }

    /// SYSCALL in 64-bit mode (SDM vol. 2). Called with the return address in S0; returns, with flags intact, only if
    /// the instruction faults.
    fn system_call(&mut self) {
        let rflags = self.field(offset_of!(CpuState, rflags));
        self.asm.flags_to_reg(reg::S1);
        self.asm.test_bit0(self.env.state + offset_of!(CpuState, efer) as u32);
        let enabled = self.asm.jcc_forward(cc::NE);
        self.asm.push(reg::S1);
        // popfq; ret
        self.asm.bytes(&[0x9d, 0xc3]);
        self.asm.bind(enabled);
        self.asm.mov_rr(reg::RCX, reg::S0);
        self.asm.alu_imm(Alu::And, false, reg::S1, STATUS_FLAGS);
        self.asm.load32(reg::S0, rflags);
        self.asm.alu_imm(Alu::And, false, reg::S0, !(STATUS_FLAGS | 1 << 16));
        self.asm.alu_rr(Alu::Or, reg::S0, reg::S1);
        self.asm.store(self.env.gpr(11), reg::S0);
        self.asm.load(reg::S1, self.field(offset_of!(CpuState, sfmask)));
        self.asm.not(reg::S1);
        self.asm.alu_rr(Alu::And, reg::S0, reg::S1);
        self.asm.alu_imm(Alu::Or, false, reg::S0, 2);
        self.asm.store(rflags, reg::S0);
        self.asm.load(reg::S1, self.field(offset_of!(CpuState, star)));
        self.asm.shr_imm(reg::S1, 32);
        self.asm.alu_imm(Alu::And, false, reg::S1, 0xfffc);
        self.flat_segments(0, 8);
        self.asm.load(reg::S1, self.field(offset_of!(CpuState, tlb_set_protected)));
        self.asm.test_imm32(reg::S0, 1 << 18);
        self.asm.cmovne(reg::S1, self.field(offset_of!(CpuState, tlb_set_open)));
        self.set_view();
        self.status_to_slot();
        self.asm.load(reg::S0, self.field(offset_of!(CpuState, lstar)));
        self.drop_return_address();
        dispatch(self.asm, &self.env);
    }

    /// SYSRET to 64-bit mode at CPL 0 (SDM vol. 2). Returns for the interpreter to decide if it may fault, or if an
    /// interrupt or single-step may follow it.
    fn system_return(&mut self) {
        let mut slow = Vec::new();
        self.asm.test_bit0(self.env.state + offset_of!(CpuState, efer) as u32);
        slow.push(self.asm.jcc_forward(cc::E));
        self.asm.mov_rr(reg::S0, reg::RCX);
        self.asm.shl_imm(reg::S0, 16);
        self.asm.sar_imm(reg::S0, 16);
        self.asm.alu_rr(Alu::Cmp, reg::S0, reg::RCX);
        slow.push(self.asm.jcc_forward(cc::NE));
        let pending = self.field(offset_of!(CpuState, interrupts_pending));
        self.asm.alu_mem_imm32(Alu::Cmp, pending, 0);
        slow.push(self.asm.jcc_forward(cc::NE));
        self.asm.load(reg::S0, self.env.gpr(11));
        self.asm.test_imm32(reg::S0, 1 << 8);
        slow.push(self.asm.jcc_forward(cc::NE));
        self.asm.alu_imm(Alu::And, false, reg::S0, 0x3c_7fd7);
        self.asm.alu_imm(Alu::Or, false, reg::S0, 2);
        self.asm.store(self.field(offset_of!(CpuState, rflags)), reg::S0);
        self.asm.load(reg::S1, self.field(offset_of!(CpuState, star)));
        self.asm.shr_imm(reg::S1, 48);
        self.asm.alu_imm(Alu::Add, false, reg::S1, 16);
        self.asm.alu_imm(Alu::Or, false, reg::S1, 3);
        self.flat_segments(3, -8);
        self.asm.load(reg::S1, self.field(offset_of!(CpuState, tlb_set_user)));
        self.set_view();
        self.status_to_slot();
        self.asm.mov_rr(reg::S0, reg::RCX);
        self.drop_return_address();
        dispatch(self.asm, &self.env);
        for at in slow {
            self.asm.bind(at);
        }
        self.asm.ret();
    }

    /// Turns the linear address in S0 into a host address; clobbers S1. The branches taken on a miss go to `slow`.
    fn look_up(&mut self, size: i32, slow: &mut Vec<usize>) {
        self.asm.mov_rr(reg::S1, reg::S0);
        self.asm.shr_imm(reg::S1, TLB_SHIFT as u8);
        self.asm.alu_imm(Alu::And, false, reg::S1, TLB_OFFSET_MASK as i32);
        self.asm.alu_rm(Alu::Xor, reg::S0, Mem::Gs(reg::S1, offset_of!(TlbEntry, read) as i32));
        self.asm.alu_imm(Alu::Cmp, true, reg::S0, 4096 - size);
        slow.push(self.asm.jcc_forward(cc::A));
        self.asm.alu_rm(Alu::Add, reg::S0, Mem::Gs(reg::S1, offset_of!(TlbEntry, host) as i32));
    }

    /// Compares a word of the state with one of the cache for IRETQ; clobbers RAX.
    fn compare(&mut self, found: usize, remembered: usize, slow: &mut Vec<usize>) {
        self.asm.load(reg::RAX, self.field(found));
        self.asm.alu_rm(Alu::Cmp, reg::RAX, self.field(remembered));
        slow.push(self.asm.jcc_forward(cc::NE));
    }

    /// IRETQ at CPL 0 (SDM vol. 2), to segments it went to before. Returns for the interpreter to decide otherwise.
    fn interrupt_return(&mut self) {
        let mut slow = Vec::new();
        let (rax, rcx) = (self.env.tmp(4), self.env.tmp(5));
        self.asm.store(rax, reg::RAX);
        self.asm.store(rcx, reg::RCX);
        for (field, expected) in
            [(offset_of!(CpuState, interrupts_pending), 0), (offset_of!(CpuState, cpl), 0)]
        {
            self.asm.alu_mem_imm32(Alu::Cmp, self.field(field), expected);
            slow.push(self.asm.jcc_forward(cc::NE));
        }
        self.asm.load32(reg::RAX, self.field(offset_of!(CpuState, rflags)));
        self.asm.test_imm32(reg::RAX, 1 << 14);
        slow.push(self.asm.jcc_forward(cc::NE));
        self.asm.mov_rr(reg::S0, reg::GUEST_SP);
        self.look_up(40, &mut slow);
        self.asm.load(reg::RCX, Mem::Base(reg::S0, 16));
        self.asm.test_imm32(reg::RCX, 1 << 8 | 1 << 17);
        slow.push(self.asm.jcc_forward(cc::NE));
        let cache = offset_of!(CpuState, iret);
        self.asm.load(reg::RAX, Mem::Base(reg::S0, 8));
        self.asm.alu_rm(
            Alu::Cmp,
            reg::RAX,
            self.field(cache + size_of::<IretCache>() + offset_of!(IretCache, selectors)),
        );
        let to_user = self.asm.jcc_forward(cc::E);
        self.asm.alu_rm(Alu::Cmp, reg::RAX, self.field(cache + offset_of!(IretCache, selectors)));
        slow.push(self.asm.jcc_forward(cc::NE));
        self.interrupt_return_to(cache, 0, &mut slow);
        self.asm.bind(to_user);
        self.interrupt_return_to(cache + size_of::<IretCache>(), 3, &mut slow);
        for at in slow {
            self.asm.bind(at);
        }
        self.asm.load(reg::RAX, rax);
        self.asm.load(reg::RCX, rcx);
        self.asm.ret();
    }

    /// The part of IRETQ for one of the remembered pairs of segments: S0 is the frame's host address, RCX the flags.
    fn interrupt_return_to(&mut self, cache: usize, cpl: u8, slow: &mut Vec<usize>) {
        let remembered = |offset: usize, n: usize| cache + offset + 8 * n;
        self.asm.load(reg::RAX, Mem::Base(reg::S0, 32));
        let stack = remembered(offset_of!(IretCache, selectors), 1);
        self.asm.alu_rm(Alu::Cmp, reg::RAX, self.field(stack));
        slow.push(self.asm.jcc_forward(cc::NE));
        // Non-canonical targets fault here and not there.
        self.asm.load(reg::RAX, Mem::Base(reg::S0, 0));
        self.asm.mov_rr(reg::S1, reg::RAX);
        self.asm.shl_imm(reg::S1, 16);
        self.asm.sar_imm(reg::S1, 16);
        self.asm.alu_rr(Alu::Cmp, reg::S1, reg::RAX);
        slow.push(self.asm.jcc_forward(cc::NE));
        let (rip, rsp) = (self.env.tmp(6), self.env.tmp(7));
        self.asm.store(rip, reg::RAX);
        self.asm.load(reg::RAX, Mem::Base(reg::S0, 24));
        self.asm.store(rsp, reg::RAX);
        let gdtr = offset_of!(CpuState, gdtr);
        for n in 0..2 {
            self.compare(gdtr + 8 * n, remembered(offset_of!(IretCache, gdtr), n), slow);
        }
        for (n, segment) in [seg::ES, seg::DS, seg::FS, seg::GS].into_iter().enumerate() {
            let found = offset_of!(CpuState, segments)
                + segment * size_of::<Segment>()
                + offset_of!(Segment, limit);
            self.compare(found, remembered(offset_of!(IretCache, data), n), slow);
        }
        for n in 0..2 {
            let address = self.field(remembered(offset_of!(IretCache, addresses), n));
            self.asm.load(reg::S0, address);
            self.look_up(8, slow);
            self.asm.load(reg::RAX, Mem::Base(reg::S0, 0));
            let descriptor = self.field(remembered(offset_of!(IretCache, descriptors), n));
            self.asm.alu_rm(Alu::Cmp, reg::RAX, descriptor);
            slow.push(self.asm.jcc_forward(cc::NE));
        }
        // Nothing faults from here on.
        for (n, segment) in [seg::CS, seg::SS].into_iter().enumerate() {
            for word in 0..size_of::<Segment>() / 8 {
                let from = offset_of!(IretCache, segments) + n * size_of::<Segment>();
                self.asm.load(reg::RAX, self.field(remembered(from, word)));
                self.asm.store(self.segment(segment, 8 * word), reg::RAX);
            }
        }
        self.asm.store_imm32(self.field(offset_of!(CpuState, cpl)), cpl.into());
        self.asm.alu_imm(Alu::And, false, reg::RCX, IRET_FLAGS);
        self.asm.alu_imm(Alu::Or, false, reg::RCX, 2);
        self.asm.store(self.field(offset_of!(CpuState, rflags)), reg::RCX);
        if cpl == 3 {
            self.asm.load(reg::S1, self.field(offset_of!(CpuState, tlb_set_user)));
        } else {
            self.asm.load(reg::S1, self.field(offset_of!(CpuState, tlb_set_protected)));
            self.asm.test_imm32(reg::RCX, 1 << 18);
            self.asm.cmovne(reg::S1, self.field(offset_of!(CpuState, tlb_set_open)));
        }
        self.set_view();
        self.asm.mov_rr(reg::S0, reg::RCX);
        self.status_to_slot();
        self.asm.load(reg::S0, rip);
        self.asm.load(reg::GUEST_SP, rsp);
        self.asm.load(reg::RAX, self.env.tmp(4));
        self.asm.load(reg::RCX, self.env.tmp(5));
        self.drop_return_address();
        dispatch(self.asm, &self.env);
    }

    /// A thunk around which the whole state is in `CpuState`; S0 and S1 are its arguments.
    fn full(&mut self, handler: Handler, called: bool) {
        self.asm.store(self.env.tmp(0), reg::S0);
        self.asm.store(self.env.tmp(1), reg::S1);
        self.save_gprs();
        self.save_flags();
        self.save_vectors();
        let (mxcsr, host) =
            (self.field(offset_of!(CpuState, mxcsr)), self.field(offset_of!(CpuState, host_mxcsr)));
        self.asm.mxcsr(true, mxcsr);
        self.asm.mxcsr(false, host);
        self.asm.load(6, self.env.tmp(0));
        self.asm.load(2, self.env.tmp(1));
        self.asm.load(reg::RCX, Mem::Base(reg::RSP, 0));
        self.call_rust(handler);
        self.asm.mxcsr(false, mxcsr);
        if called {
            self.asm.alu_imm(Alu::Cmp, false, reg::RAX, answer::RESUME as i32);
            let continues = self.asm.jcc_forward(2); // below
            self.drop_return_address();
            let (resume, exit) = (self.resume_all, self.exit_saved);
            self.asm.jcc(cc::E, resume);
            self.asm.jmp(exit);
            self.asm.bind(continues);
            self.load_view();
            self.load_vectors();
            self.load_flags();
            self.load_gprs();
            self.asm.ret();
        } else {
            self.asm.alu_imm(Alu::Cmp, false, reg::RAX, answer::RESUME as i32);
            let (resume, exit) = (self.resume_all, self.exit_saved);
            self.asm.jcc(cc::E, resume);
            self.asm.jmp(exit);
        }
    }
}
