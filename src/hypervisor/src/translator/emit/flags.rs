//! Where the guest's status flags are while code between two of their users clobbers the host's.
//!
//! They are in the host's RFLAGS, or *parked* in `flags_slot`, where indirect transfers, returns and transfers between
//! regions want them anyway. Parking once and fetching them back once is cheaper than keeping them across every single
//! look-up, except around a lone one.

use std::mem::offset_of;

use super::{Emitter, Insn};
use crate::state::CpuState;
use crate::translator::asm::reg;
use crate::translator::classify::{Class, memory_operand};
use crate::translator::liveness::touches_flags;

impl Emitter<'_> {
    /// Stores the status flags in the slot; clobbers S1.
    pub(super) fn flags_to_slot(&mut self) {
        let slot = self.env.field(offset_of!(CpuState, flags_slot));
        self.asm.mov_rr(reg::S1, reg::RAX);
        self.asm.flags_to_ax();
        self.asm.store32(slot, reg::RAX);
        self.asm.mov_rr(reg::RAX, reg::S1);
    }

    /// Loads the status flags from the slot; clobbers S1.
    pub(super) fn flags_from_slot(&mut self) {
        self.asm.mov_rr(reg::S1, reg::RAX);
        let slot = self.env.field(offset_of!(CpuState, flags_slot));
        self.asm.load32(reg::RAX, slot);
        self.asm.flags_from_ax();
        self.asm.mov_rr(reg::RAX, reg::S1);
    }

    pub(super) fn park(&mut self) {
        if !self.parked {
            self.flags_to_slot();
            self.parked = true;
        }
    }

    pub(super) fn unpark(&mut self) {
        if self.parked {
            self.flags_from_slot();
            self.parked = false;
        }
    }

    /// Puts the flags where `insn` needs them, and where they are cheapest for those that follow.
    pub(super) fn place_flags(&mut self, insn: &Insn) {
        if insn.live_in == 0 {
            self.parked = false;
        } else if self.wants_parked(insn) {
            self.park();
        } else if self.needs_host_flags(insn) {
            self.unpark();
        } else if !self.parked && look_ups(insn) != 0 && self.parking_pays() {
            self.park();
        }
        if let Some(site) = self.product.sites.last_mut() {
            site.2 = self.parked;
        }
    }

    /// A jump inside the block arrives with the flags in the host's RFLAGS.
    pub(super) fn flags_at_label(&mut self, insn: &Insn) {
        if insn.live_in == 0 {
            self.parked = false;
        }
        self.unpark();
    }

    fn wants_parked(&self, insn: &Insn) -> bool {
        let transfers = matches!(
            insn.form.class,
            Class::Ret | Class::JmpIndirect | Class::Call | Class::CallIndirect | Class::Iret
        );
        transfers && !self.source.single
    }

    fn needs_host_flags(&self, insn: &Insn) -> bool {
        !self.unit_enabled(insn.form.unit)
            || touches_flags(&insn.instruction)
            || !matches!(
                insn.form.class,
                Class::Copy
                    | Class::Skip
                    | Class::Lea
                    | Class::Push
                    | Class::Pop
                    | Class::Leave
                    | Class::Jmp
                    | Class::Cld
                    | Class::Std
                    | Class::Cli
                    | Class::Sti
                    | Class::Swapgs
                    | Class::Stac
                    | Class::Clac
                    | Class::StoreSegment
                    | Class::ReadBase
                    | Class::WriteBase
                    | Class::ReadControl
                    | Class::RepString
            )
    }

    /// Whether the flags, now in the host's RFLAGS and needed later, had better be parked: if the block goes on somewhere
    /// that takes them from the slot, or if there are two look-ups before they are needed back.
    fn parking_pays(&self) -> bool {
        if self.source.single {
            return false;
        }
        let mut accesses = 0;
        for (n, insn) in self.source.instructions[self.current..].iter().enumerate() {
            let jumps_inside = insn.form.class == Class::Jmp
                && self.label(insn.instruction.near_branch64()).is_some();
            if self.wants_parked(insn) {
                return true;
            }
            if n != 0 && insn.is_target || jumps_inside || self.needs_host_flags(insn) {
                return accesses >= 2;
            }
            accesses += look_ups(insn);
        }
        true
    }
}

/// TLB look-ups in the code of an instruction that does not touch flags.
fn look_ups(insn: &Insn) -> usize {
    match insn.form.class {
        Class::Push | Class::Pop | Class::Leave | Class::WriteBase => 1,
        Class::RepString => 2,
        Class::Copy | Class::StoreSegment => {
            usize::from(memory_operand(&insn.instruction).is_some())
        }
        _ => 0,
    }
}
