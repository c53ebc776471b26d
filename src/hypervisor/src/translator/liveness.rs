//! Backward liveness of the status flags over a decoded run of instructions.
//!
//! The emitter's TLB look-ups clobber the host flags, so it must know where the guest's are still needed. An instruction
//! that faults in a place where they are not exposes whatever is in them to the fault handler: the one documented
//! deviation from the architecture, and invisible to code that does not read flags it has not set.

use iced_x86::{Code, Instruction, Mnemonic, OpKind};

/// Bits of iced-x86's `RflagsBits` that the host's RFLAGS carry for the guest: OF SF ZF AF CF PF.
pub(super) const STATUS: u8 = 0x3f;

/// What an instruction does to the status flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FlagUse {
    pub(super) reads: u8,
    pub(super) kills: u8,
}

/// The flags `instruction` reads and the ones whose old value cannot be seen after it.
pub(super) fn flag_use(instruction: &Instruction) -> FlagUse {
    let reads = instruction.rflags_read() as u8 & STATUS;
    let mut kills = instruction.rflags_modified() as u8 & STATUS;
    if keeps_flags_sometimes(instruction) {
        kills = 0;
    }
    FlagUse { reads, kills }
}

/// True if `instruction` reads a status flag or may change one.
pub(super) fn touches_flags(instruction: &Instruction) -> bool {
    (instruction.rflags_read() | instruction.rflags_modified()) as u8 & STATUS != 0
}

/// Shifts and rotates leave all flags alone when the masked count is zero; repeated string instructions when RCX is.
fn keeps_flags_sometimes(instruction: &Instruction) -> bool {
    use Mnemonic as M;
    match instruction.mnemonic() {
        M::Shl
        | M::Shr
        | M::Sar
        | M::Sal
        | M::Rol
        | M::Ror
        | M::Rcl
        | M::Rcr
        | M::Shld
        | M::Shrd => {
            let last = instruction.op_count() - 1;
            match instruction.op_kind(last) {
                OpKind::Immediate8 => {
                    let wide = instruction.op0_kind() == OpKind::Register
                        && instruction.op0_register().is_gpr64()
                        || instruction.op0_kind() == OpKind::Memory
                            && instruction.memory_size().size() == 8;
                    instruction.immediate8() & if wide { 63 } else { 31 } == 0
                }
                _ => true,
            }
        }
        M::Cmpsb | M::Cmpsw | M::Cmpsd | M::Cmpsq | M::Scasb | M::Scasw | M::Scasd | M::Scasq => {
            true
        }
        // A conditional write in some vendors' manuals: flags other than ZF are undefined, and hosts differ.
        M::Bsf | M::Bsr => false,
        _ => matches!(instruction.code(), Code::INVALID),
    }
}
