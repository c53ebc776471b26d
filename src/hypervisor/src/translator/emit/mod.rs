//! Emission of one block: a straight run of guest instructions with side exits.

mod control;
mod flags;
mod memory;
mod operands;
mod stack;
mod string;
mod system;

use std::mem::offset_of;

use iced_x86::{Encoder, Instruction, InstructionInfoFactory};

use super::asm::{Alu, Asm, Mem, cc, reg};
use super::cache::{BlockId, Link, LinkId, Region, RegionId};
use super::classify::{Class, Form, Unit};
use super::thunks::{Env, Stubs};
use crate::state::CpuState;
use crate::tlb::{TlbSet, code_index};
use memory::ColdAccess;
pub(super) use memory::{AccessInfo, Kind};
use stack::ColdGroup;

/// Most guest instructions in a block.
pub(super) const MAX_INSTRUCTIONS: usize = 64;

/// A decoded guest instruction.
#[derive(Clone, Copy)]
pub(super) struct Insn {
    pub(super) instruction: Instruction,
    pub(super) form: Form,
    pub(super) va: u64,
    /// Offset of its bytes in the block's bytes.
    pub(super) offset: usize,
    pub(super) length: u8,
    /// Status flags needed at its start and behind it.
    pub(super) live_in: u8,
    pub(super) live_out: u8,
    /// Some jump inside the block goes here.
    pub(super) is_target: bool,
    /// A backward jump inside the block goes here.
    pub(super) is_loop: bool,
}

/// What a block is made from.
pub(super) struct Source<'a> {
    pub(super) region: Region,
    pub(super) region_id: RegionId,
    pub(super) block: BlockId,
    pub(super) first_link: LinkId,
    pub(super) first_interpreted: u32,
    pub(super) bytes: &'a [u8],
    pub(super) instructions: &'a [Insn],
    /// Linear address and region of the page that the only instruction continues in.
    pub(super) second: Option<(u64, RegionId)>,
    /// Leave after the instruction.
    pub(super) single: bool,
}

/// What emission produced besides the code.
#[derive(Default)]
pub(super) struct Product {
    pub(super) main: usize,
    pub(super) slot: usize,
    pub(super) forward: usize,
    pub(super) links: Vec<Link>,
    /// Code offset, instruction index and whether flags are parked there; offsets ascend.
    pub(super) sites: Vec<(u32, u16, bool)>,
    pub(super) return_sites: Vec<u64>,
    pub(super) interpreted: Vec<Instruction>,
}

/// An out-of-line part other than a memory access's.
enum Cold {
    /// Leave for the run loop with RIP at this instruction.
    Poll { jump: usize, instruction: usize, parked: bool },
    /// A jump that is not linked yet.
    Link { displacement: usize, link: usize },
    /// A conditional jump to another region.
    FarJump { jump: usize, target: u64, flags_live: bool },
    /// A call to another region whose check failed; it returns to offset `back`.
    FarCall { jump: usize, link: usize, back: usize },
    /// A return that went elsewhere.
    Mismatch { jump: usize },
    /// The second page of a crossing instruction changed.
    Second { jump: usize },
}

/// Emits one block.
pub(super) struct Emitter<'a> {
    pub(super) asm: &'a mut Asm,
    pub(super) env: Env,
    stubs: Stubs,
    encoder: &'a mut Encoder,
    infos: &'a mut InstructionInfoFactory,
    source: Source<'a>,
    product: Product,
    /// Index of the instruction being emitted.
    current: usize,
    /// The guest's status flags are in `flags_slot` instead of the host's RFLAGS: see `flags`.
    parked: bool,
    open_access: Option<ColdAccess>,
    cold_accesses: Vec<ColdAccess>,
    cold: Vec<Cold>,
    cold_groups: Vec<ColdGroup>,
    /// Code offset of each emitted instruction.
    labels: Vec<usize>,
    /// Displacements that wait for the label of an instruction.
    pending: Vec<(usize, usize)>,
}

impl<'a> Emitter<'a> {
    pub(super) fn new(
        asm: &'a mut Asm,
        env: Env,
        stubs: Stubs,
        encoder: &'a mut Encoder,
        infos: &'a mut InstructionInfoFactory,
        source: Source<'a>,
    ) -> Emitter<'a> {
        Emitter {
            asm,
            env,
            stubs,
            encoder,
            infos,
            source,
            product: Product::default(),
            current: 0,
            parked: false,
            open_access: None,
            cold_accesses: Vec::new(),
            cold: Vec::new(),
            cold_groups: Vec::new(),
            labels: Vec::new(),
            pending: Vec::new(),
        }
    }

    /// Emits everything.
    pub(super) fn emit(mut self) -> Product {
        let instructions = self.source.instructions;
        let mut index = 0;
        while let Some(insn) = instructions.get(index) {
            self.current = index;
            if index == 0 {
                self.entries(insn);
            } else {
                if insn.is_target {
                    self.flags_at_label(insn);
                }
                self.labels.push(self.asm.code.len());
                self.site(index);
                if insn.is_loop {
                    self.poll(insn.live_in != 0);
                }
            }
            self.place_flags(insn);
            let together = self.stack_run(index);
            if together > 1 {
                self.stack_group(index, together);
            } else {
                self.instruction(insn);
                self.finish_access();
            }
            index += together;
        }
        self.finish_block();
        self.emit_cold_groups();
        self.emit_cold_accesses();
        self.emit_cold();
        for (at, index) in std::mem::take(&mut self.pending) {
            let target = self.labels[index];
            self.asm.bind_to(at, target);
        }
        self.product
    }

    /// The block's entries: `main` with the flags in the host's RFLAGS, `slot` with the flags in the slot, and `forward`
    /// as `main` but without a poll.
    fn entries(&mut self, insn: &Insn) {
        let live = insn.live_in != 0;
        let single = self.source.single;
        // Parked flags make the poll cheap, unless jumps of the block itself go here, with the flags in the host's.
        let park = live && !insn.is_target && !single;
        self.product.main = self.asm.code.len();
        if park {
            self.park();
        } else if live {
            self.product.slot = self.asm.code.len();
            self.flags_from_slot();
            self.product.main = self.asm.code.len();
        }
        if park || !live {
            self.product.slot = self.asm.code.len();
        }
        self.labels.push(self.asm.code.len());
        self.site(0);
        self.check_second(live);
        if !single {
            self.poll(live);
        }
        self.product.forward = if live { self.product.main } else { self.asm.code.len() };
    }

    fn instruction(&mut self, insn: &Insn) {
        if !self.unit_enabled(insn.form.unit) {
            return self.interpret(insn, true);
        }
        match insn.form.class {
            Class::Copy => self.copy(insn),
            Class::Skip => {}
            Class::Lea => self.load_address(insn),
            Class::Push => self.push(insn),
            Class::Pop => self.pop(insn),
            Class::Leave => self.leave(insn),
            Class::Pushf => self.push_flags(insn),
            Class::Jcc => self.jump_conditional(insn),
            Class::Loop => self.jump_loop(insn),
            Class::Jmp => self.jump(insn.instruction.near_branch64(), insn.live_out != 0),
            Class::JmpIndirect => self.jump_indirect(insn),
            Class::Call => self.call(insn),
            Class::CallIndirect => self.call_indirect(insn),
            Class::Ret => self.ret(insn),
            Class::BitString => self.bit_string(insn),
            Class::Cld | Class::Std => self.direction(insn),
            Class::Cli => self.cli(insn),
            Class::Sti => self.sti(insn),
            Class::Swapgs => self.swap_gs(insn),
            Class::Stac | Class::Clac => self.access_control(insn),
            Class::Syscall => self.system_call(insn),
            Class::Sysret => self.system_return(insn),
            Class::Iret => self.interrupt_return(insn),
            Class::ReadBase => self.read_base(insn),
            Class::WriteBase => self.write_base(insn),
            Class::ReadControl => self.read_control(insn),
            Class::RepString => self.string(insn),
            Class::Rdtsc => self.rdtsc(insn),
            Class::StoreSegment => self.store_segment(insn),
            Class::FpState | Class::Element | Class::Interpret => {
                self.interpret(insn, false);
            }
            Class::InterpretEnd => self.interpret(insn, true),
        }
    }

    fn unit_enabled(&self, unit: Unit) -> bool {
        unit == Unit::Integer || self.source.region.mode.units >> unit as u8 & 1 != 0
    }

    /// After the last instruction: go on at the next one unless the last one never falls through.
    fn finish_block(&mut self) {
        let Some(last) = self.source.instructions.last() else {
            return;
        };
        if !ends_block(last.form.class) {
            let next = last.va.wrapping_add(last.length.into());
            self.jump(next, last.live_out != 0);
        }
    }

    /// Records that the code from here belongs to instruction `index`.
    fn site(&mut self, index: usize) {
        self.product.sites.push((self.asm.code.len() as u32, index as u16, self.parked));
    }

    fn next_va(&self) -> u64 {
        let insn = &self.source.instructions[self.current];
        insn.va.wrapping_add(insn.length.into())
    }

    /// Returns to the run loop if another thread asked for it.
    fn poll(&mut self, flags_live: bool) {
        let attention = self.env.field(offset_of!(CpuState, attention));
        if flags_live && !self.parked {
            // MOV S1, attention; then a test that needs the flags saved.
            self.asm.mov_rr(reg::S1, reg::RAX);
            self.asm.flags_to_ax();
            self.asm.alu_mem_imm32(Alu::Cmp, attention, 0);
            let none = self.asm.jcc_forward(cc::E);
            self.asm.flags_from_ax();
            self.asm.mov_rr(reg::RAX, reg::S1);
            let jump = self.asm.jmp_forward();
            self.cold.push(Cold::Poll { jump, instruction: self.current, parked: false });
            self.asm.bind(none);
            self.asm.flags_from_ax();
            self.asm.mov_rr(reg::RAX, reg::S1);
        } else {
            self.asm.alu_mem_imm32(Alu::Cmp, attention, 0);
            let jump = self.asm.jcc_forward(cc::NE);
            let parked = self.parked;
            self.cold.push(Cold::Poll { jump, instruction: self.current, parked });
        }
    }

    /// Checks that the page an instruction continues in is still the one it was translated from.
    fn check_second(&mut self, flags_live: bool) {
        let Some((va, region)) = self.source.second else {
            return;
        };
        let in_host = flags_live && !self.parked;
        if in_host {
            self.flags_to_slot();
        }
        self.asm.alu_mem_imm32_patchable(Alu::Cmp, code_identity(va), region);
        let jump = self.asm.jcc_forward(cc::NE);
        self.cold.push(Cold::Second { jump });
        if in_host {
            self.flags_from_slot();
        }
    }

    /// Stores a guest address as RIP.
    fn set_rip(&mut self, va: u64) {
        let rip = self.env.field(offset_of!(CpuState, rip));
        match i32::try_from(va as i64) {
            Ok(imm) => self.asm.store_imm(rip, imm),
            Err(_) => {
                self.asm.mov_imm(reg::S1, va);
                self.asm.store(rip, reg::S1);
            }
        }
    }

    fn emit_cold(&mut self) {
        let mut index = 0;
        self.parked = false;
        // Far jumps add links while this runs.
        while index < self.cold.len() {
            match self.cold[index] {
                Cold::Poll { jump, instruction, parked } => {
                    self.asm.bind(jump);
                    self.site(instruction);
                    if parked {
                        self.flags_from_slot();
                    }
                    let va = self.source.instructions[instruction].va;
                    self.set_rip(va);
                    self.asm.jmp(self.stubs.exit);
                }
                Cold::Second { jump } => {
                    self.asm.bind(jump);
                    self.site(0);
                    let va = self.source.instructions[0].va;
                    self.asm.mov_imm(reg::S0, va);
                    self.asm.jmp(self.stubs.indirect);
                }
                Cold::Link { displacement, link } => {
                    let at = self.asm.code.len();
                    self.asm.bind_to(displacement, at);
                    self.product.links[link].stub = self.asm.here();
                    self.asm.mov_imm(reg::S1, u64::from(self.source.first_link) + link as u64);
                    self.asm.jmp(self.stubs.link);
                }
                Cold::FarJump { jump, target, flags_live } => {
                    self.asm.bind(jump);
                    self.parked = false;
                    self.far_jump(target, flags_live);
                    self.parked = false;
                }
                Cold::FarCall { jump, link, back } => {
                    self.asm.bind(jump);
                    let displacement = self.asm.call_forward();
                    self.cold.push(Cold::Link { displacement, link });
                    let to = self.asm.jmp_forward();
                    self.asm.bind_to(to, back);
                }
                Cold::Mismatch { jump } => {
                    self.asm.bind(jump);
                    self.asm.jmp(self.stubs.dispatch);
                }
            }
            index += 1;
        }
        self.cold.clear();
    }
}

/// The word that identifies the code page at `va` in the current TLB set.
pub(super) fn code_identity(va: u64) -> Mem {
    Mem::GsAbs((offset_of!(TlbSet, code) + 4 * code_index(va)) as u32)
}

/// True if nothing falls through an instruction of this class.
pub(super) fn ends_block(class: Class) -> bool {
    matches!(
        class,
        Class::Jmp
            | Class::JmpIndirect
            | Class::Ret
            | Class::Syscall
            | Class::Sysret
            | Class::Iret
            | Class::InterpretEnd
    )
}
