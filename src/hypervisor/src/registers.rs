//! Names of the bits of the architectural control registers (SDM vol. 1 §3.4.3, vol. 3 §2.3 and §2.5).

/// RFLAGS as plain words, for arithmetic on a saved flags image.
pub(crate) mod rflags {
    use crate::state::Rflags;

    pub(crate) const CF: u64 = Rflags::CF.bits();
    pub(crate) const FIXED: u64 = Rflags::FIXED.bits();
    pub(crate) const PF: u64 = Rflags::PF.bits();
    pub(crate) const AF: u64 = Rflags::AF.bits();
    pub(crate) const ZF: u64 = Rflags::ZF.bits();
    pub(crate) const SF: u64 = Rflags::SF.bits();
    pub(crate) const TF: u64 = Rflags::TF.bits();
    pub(crate) const IF: u64 = Rflags::IF.bits();
    pub(crate) const DF: u64 = Rflags::DF.bits();
    pub(crate) const OF: u64 = Rflags::OF.bits();
    pub(crate) const IOPL: u64 = Rflags::IOPL.bits();
    pub(crate) const NT: u64 = Rflags::NT.bits();
    pub(crate) const RF: u64 = Rflags::RF.bits();
    pub(crate) const VM: u64 = Rflags::VM.bits();
    pub(crate) const AC: u64 = Rflags::AC.bits();
    pub(crate) const ID: u64 = Rflags::ID.bits();
    pub(crate) const STATUS: u64 = Rflags::STATUS.bits();
    /// Every flag that exists.
    pub(crate) const ALL: u64 = Rflags::all().bits();
}

/// CR0.
pub(crate) mod cr0 {
    pub(crate) const PE: u64 = 1 << 0;
    pub(crate) const MP: u64 = 1 << 1;
    pub(crate) const EM: u64 = 1 << 2;
    pub(crate) const TS: u64 = 1 << 3;
    /// Extension type: always one.
    pub(crate) const ET: u64 = 1 << 4;
    pub(crate) const NE: u64 = 1 << 5;
    pub(crate) const WP: u64 = 1 << 16;
    pub(crate) const AM: u64 = 1 << 18;
    pub(crate) const NW: u64 = 1 << 29;
    pub(crate) const CD: u64 = 1 << 30;
    pub(crate) const PG: u64 = 1 << 31;
    pub(crate) const ALL: u64 = PE | MP | EM | TS | ET | NE | WP | AM | NW | CD | PG;
}

/// CR4: the bits that exist here. Every other bit is reserved, and setting it is #GP(0).
pub(crate) mod cr4 {
    pub(crate) const TSD: u64 = 1 << 2;
    pub(crate) const DE: u64 = 1 << 3;
    pub(crate) const PSE: u64 = 1 << 4;
    pub(crate) const PAE: u64 = 1 << 5;
    pub(crate) const MCE: u64 = 1 << 6;
    pub(crate) const PGE: u64 = 1 << 7;
    pub(crate) const PCE: u64 = 1 << 8;
    pub(crate) const OSFXSR: u64 = 1 << 9;
    pub(crate) const OSXMMEXCPT: u64 = 1 << 10;
    pub(crate) const FSGSBASE: u64 = 1 << 16;
    pub(crate) const PCIDE: u64 = 1 << 17;
    pub(crate) const OSXSAVE: u64 = 1 << 18;
    pub(crate) const SMEP: u64 = 1 << 20;
    pub(crate) const SMAP: u64 = 1 << 21;
    /// Bits whose change drops all translations (SDM vol. 3 §4.10.4.1).
    pub(crate) const FLUSHES_TLB: u64 = PSE | PAE | PGE | PCIDE | SMEP | SMAP;
}

/// IA32_EFER.
pub(crate) mod efer {
    pub(crate) const SCE: u64 = 1 << 0;
    pub(crate) const LME: u64 = 1 << 8;
    pub(crate) const LMA: u64 = 1 << 10;
    pub(crate) const NXE: u64 = 1 << 11;
    /// AMD's automatic IBRS. A promise that costs nothing to accept: see the CPUID policy.
    pub(crate) const AUTOIBRS: u64 = 1 << 21;
}

/// DR6 (SDM vol. 3 §17.2.3).
pub(crate) mod dr6 {
    pub(crate) const BD: u64 = 1 << 13;
    pub(crate) const BS: u64 = 1 << 14;
    /// Bits that always read as one.
    pub(crate) const FIXED: u64 = 0xffff_0ff0;
    pub(crate) const WRITABLE: u64 = 0xe00f;
}

/// DR7 (SDM vol. 3 §17.2.4).
pub(crate) mod dr7 {
    pub(crate) const GD: u64 = 1 << 13;
    /// Bit 10 always reads as one.
    pub(crate) const FIXED: u64 = 0x400;
    pub(crate) const WRITABLE: u64 = 0xffff_2bff;
}

/// Selector bits (SDM vol. 3 §3.4.2).
pub(crate) mod selector {
    pub(crate) const RPL: u16 = 3;
    pub(crate) const TI: u16 = 4;
}
