//! The architectural state of one vCPU, laid out for translated code.
//!
//! One `CpuState` lives at an address below 2 GiB, so that translated code reaches every field with a
//! 32-bit absolute displacement and needs no register for it. Rust sees the same bytes at the same address.

use std::mem::offset_of;
use std::sync::atomic::AtomicU32;

/// Number of general-purpose registers.
pub(crate) const GPR_COUNT: usize = 16;
/// General-purpose register numbers as instructions encode them (SDM vol. 2 §2.1.5).
pub(crate) mod gpr {
    /// RAX.
    pub(crate) const RAX: usize = 0;
    /// RCX.
    pub(crate) const RCX: usize = 1;
    /// RDX.
    pub(crate) const RDX: usize = 2;
    /// RBX.
    pub(crate) const RBX: usize = 3;
    /// RSP.
    pub(crate) const RSP: usize = 4;
    /// RBP.
    pub(crate) const RBP: usize = 5;
    /// RSI.
    pub(crate) const RSI: usize = 6;
    /// RDI.
    pub(crate) const RDI: usize = 7;
    /// R11, which SYSCALL loads with RFLAGS.
    pub(crate) const R11: usize = 11;
}

/// Segment register numbers as instructions encode them (SDM vol. 2 §2.1.3).
pub(crate) mod seg {
    /// ES.
    pub(crate) const ES: usize = 0;
    /// CS.
    pub(crate) const CS: usize = 1;
    /// SS.
    pub(crate) const SS: usize = 2;
    /// DS.
    pub(crate) const DS: usize = 3;
    /// FS.
    pub(crate) const FS: usize = 4;
    /// GS.
    pub(crate) const GS: usize = 5;
}

bitflags::bitflags! {
    /// RFLAGS (SDM vol. 1 §3.4.3).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) struct Rflags: u64 {
        /// Carry.
        const CF = 1 << 0;
        /// Always one.
        const FIXED = 1 << 1;
        /// Parity.
        const PF = 1 << 2;
        /// Auxiliary carry.
        const AF = 1 << 4;
        /// Zero.
        const ZF = 1 << 6;
        /// Sign.
        const SF = 1 << 7;
        /// Single step.
        const TF = 1 << 8;
        /// Interrupts enabled.
        const IF = 1 << 9;
        /// Direction.
        const DF = 1 << 10;
        /// Overflow.
        const OF = 1 << 11;
        /// I/O privilege level.
        const IOPL = 3 << 12;
        /// Nested task.
        const NT = 1 << 14;
        /// Resume: suppresses instruction breakpoints once.
        const RF = 1 << 16;
        /// Virtual-8086 mode.
        const VM = 1 << 17;
        /// Alignment check, or access to user pages under SMAP.
        const AC = 1 << 18;
        /// Virtual interrupt flag.
        const VIF = 1 << 19;
        /// Virtual interrupt pending.
        const VIP = 1 << 20;
        /// CPUID available.
        const ID = 1 << 21;
        /// The six flags that arithmetic writes.
        const STATUS = 0x8d5;
    }
}

bitflags::bitflags! {
    /// Reasons why translated code must return to Rust soon; set by any thread, see [`CpuState::attention`].
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) struct Attention: u32 {
        /// The owner asked `enter` to return.
        const KICK = 1 << 0;
        /// An interrupt or NMI may be deliverable.
        const INTERRUPT = 1 << 1;
        /// The local APIC timer has expired.
        const TIMER = 1 << 2;
        /// Another vCPU asks for translations or write permissions to be dropped.
        const INVALIDATE = 1 << 3;
        /// An interrupt window opened, single-step or a debugger wants the run loop.
        const RUN_LOOP = 1 << 4;
    }
}

/// A segment register with its hidden part.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Segment {
    /// Linear base.
    pub(crate) base: u64,
    /// Limit in bytes, granularity applied.
    pub(crate) limit: u32,
    /// Descriptor bits 40..=55 shifted to bit 0: type 0..=3, S 4, DPL 5..=6, P 7, AVL 12, L 13, D/B 14, G 15; bit 16: unusable.
    pub(crate) attributes: u32,
    /// Visible selector.
    pub(crate) selector: u16,
    /// Explicit padding.
    pub(crate) reserved: [u16; 3],
}

impl Segment {
    /// Type is code.
    pub(crate) const CODE: u32 = 1 << 3;
    /// S: code or data, not system.
    pub(crate) const NON_SYSTEM: u32 = 1 << 4;
    /// Present.
    pub(crate) const PRESENT: u32 = 1 << 7;
    /// 64-bit code.
    pub(crate) const LONG: u32 = 1 << 13;
    /// Default operand size 32, big stack.
    pub(crate) const BIG: u32 = 1 << 14;
    /// Limit counts 4 KiB units.
    pub(crate) const GRANULARITY: u32 = 1 << 15;
    /// Holds a null selector.
    pub(crate) const UNUSABLE: u32 = 1 << 16;

    /// The descriptor privilege level.
    pub(crate) fn dpl(&self) -> u8 {
        ((self.attributes >> 5) & 3) as u8
    }
}

/// GDTR or IDTR.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct TableRegister {
    /// Linear base.
    pub(crate) base: u64,
    /// Last valid byte's offset.
    pub(crate) limit: u16,
    /// Explicit padding.
    pub(crate) reserved: [u16; 3],
}

/// A pair of code and stack segments that IRETQ loaded from the GDT, so that translated code can load them again as
/// long as nothing that decides about them has changed. A null code selector means none.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct IretCache {
    /// Selectors of code and stack segment.
    pub(crate) selectors: [u64; 2],
    /// Linear addresses of their descriptors.
    pub(crate) addresses: [u64; 2],
    /// The descriptors as they were.
    pub(crate) descriptors: [u64; 2],
    /// What they load.
    pub(crate) segments: [Segment; 2],
    /// GDTR: base; limit and padding.
    pub(crate) gdtr: [u64; 2],
    /// Limit and attributes of ES, DS, FS and GS, none of which is dropped at the new privilege level.
    pub(crate) data: [u64; 4],
}

/// Legacy FXSAVE image (SDM vol. 1 §10.5.1).
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug)]
pub(crate) struct FxsaveArea(pub [u8; 512]);

/// Stands in for guest memory that translated code cannot reach directly.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug)]
pub(crate) struct BounceBuffer(pub [u8; 1024]);

/// Everything that makes up a vCPU's registers, and the words translated code shares with Rust.
///
/// All-zero bytes are a valid value.
#[repr(C, align(4096))]
pub(crate) struct CpuState {
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8..=R15. While translated code runs only R13..=R15 are current here.
    pub(crate) gpr: [u64; GPR_COUNT],
    /// Instruction pointer; current whenever Rust code sees the state.
    pub(crate) rip: u64,
    /// RFLAGS; status flags and DF live in the host's RFLAGS while translated code runs, the rest always here.
    pub(crate) rflags: u64,
    /// Bits of [`Attention`]; non-zero makes translated code return at its next poll.
    pub(crate) attention: AtomicU32,
    /// Host MXCSR while translated code runs.
    pub(crate) host_mxcsr: u32,
    /// Guest MXCSR while Rust runs.
    pub(crate) mxcsr: u32,
    /// An interrupt waits for the guest to let it in; refreshed whenever Rust returns to translated code.
    pub(crate) interrupts_pending: u32,
    /// Translator scratch words.
    pub(crate) tmp: [u64; 16],
    /// Host stack pointer while translated code runs.
    pub(crate) host_rsp: u64,
    /// The translated code's return stack pointer while Rust runs.
    pub(crate) return_stack: u64,
    /// GS base for translated code: the TLB set of the current address space and view.
    pub(crate) tlb_set: u64,
    /// TLB set of supervisor mode with AC clear.
    pub(crate) tlb_set_protected: u64,
    /// TLB set of supervisor mode with AC set.
    pub(crate) tlb_set_open: u64,
    /// TLB set of user mode.
    pub(crate) tlb_set_user: u64,
    /// Host address where translated code continues after a thunk.
    pub(crate) resume: u64,
    /// The translator's run context, for thunks.
    pub(crate) context: u64,
    /// Status flags as AX holds them after LAHF; SETO AL, across transfers between pages and indirect ones.
    pub(crate) flags_slot: u64,

    /// Segments by [`seg`] number.
    pub(crate) segments: [Segment; 6],
    /// Local descriptor table.
    pub(crate) ldtr: Segment,
    /// Task register.
    pub(crate) tr: Segment,
    /// Global descriptor table.
    pub(crate) gdtr: TableRegister,
    /// Interrupt descriptor table.
    pub(crate) idtr: TableRegister,

    /// What IRETQ last loaded: returning to supervisor mode, to user mode.
    pub(crate) iret: [IretCache; 2],

    /// Control register 0.
    pub(crate) cr0: u64,
    /// Page-fault linear address.
    pub(crate) cr2: u64,
    /// Page-table base and PCID.
    pub(crate) cr3: u64,
    /// Control register 4.
    pub(crate) cr4: u64,
    /// Task priority.
    pub(crate) cr8: u64,
    /// Extended control register 0.
    pub(crate) xcr0: u64,
    /// Debug registers.
    pub(crate) dr: [u64; 8],

    /// IA32_EFER.
    pub(crate) efer: u64,
    /// IA32_STAR.
    pub(crate) star: u64,
    /// IA32_LSTAR.
    pub(crate) lstar: u64,
    /// IA32_CSTAR.
    pub(crate) cstar: u64,
    /// IA32_FMASK.
    pub(crate) sfmask: u64,
    /// IA32_KERNEL_GS_BASE.
    pub(crate) kernel_gs_base: u64,
    /// IA32_SYSENTER_CS.
    pub(crate) sysenter_cs: u64,
    /// IA32_SYSENTER_ESP.
    pub(crate) sysenter_esp: u64,
    /// IA32_SYSENTER_EIP.
    pub(crate) sysenter_eip: u64,
    /// IA32_PAT.
    pub(crate) pat: u64,
    /// IA32_TSC_AUX.
    pub(crate) tsc_aux: u64,
    /// Guest TSC minus host TSC.
    pub(crate) tsc_offset: u64,
    /// Instructions until interrupts open after STI or MOV SS: 1 while the shadow lasts.
    pub(crate) interrupt_shadow: u32,
    /// Current privilege level, 0..=3.
    pub(crate) cpl: u32,

    /// YMM0..=YMM15 while Rust runs.
    pub(crate) vector: [[u8; 32]; 16],
    /// x87 and MXCSR image, current only after [`crate::translator`] stored it on request.
    pub(crate) fxsave: FxsaveArea,
    /// Bounce buffer for accesses that cannot go straight to guest RAM.
    pub(crate) bounce: BounceBuffer,
}

impl CpuState {
    /// Byte offset of general-purpose register `n`.
    pub(crate) const fn gpr_offset(n: usize) -> usize {
        offset_of!(CpuState, gpr) + 8 * n
    }

    /// True in 64-bit mode: long mode active and a 64-bit code segment.
    pub(crate) fn is_64bit(&self) -> bool {
        self.efer & (1 << 10) != 0 && self.segments[seg::CS].attributes & Segment::LONG != 0
    }

    /// True if status flag or control flag `flag` is set.
    pub(crate) fn flag(&self, flag: Rflags) -> bool {
        self.rflags & flag.bits() != 0
    }
}
