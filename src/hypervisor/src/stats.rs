//! Counters of a vCPU.

/// What a vCPU did since it was created. All counters only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VcpuStats {
    /// Returns from `enter` with [`crate::Exit::Mem`].
    pub mem_exits: u64,
    /// Returns from `enter` with [`crate::Exit::Io`].
    pub io_exits: u64,
    /// Returns from `enter` with [`crate::Exit::Interrupt`] or [`crate::Exit::Startup`].
    pub ipi_exits: u64,
    /// Returns from `enter` because of a kick.
    pub kicks: u64,
    /// Bells rung.
    pub bells: u64,
    /// Accesses to memory or ports where there is neither RAM nor a trap.
    pub open_bus: u64,
    /// Exceptions delivered to the guest.
    pub exceptions: u64,
    /// Interrupts and NMIs delivered to the guest.
    pub interrupts: u64,
    /// Times the vCPU slept in HLT.
    pub halts: u64,
    /// Expirations of the local APIC timer.
    pub timer_expirations: u64,
    /// Instructions executed by the interpreter.
    pub interpreted: u64,
    /// Returns from translated code to the run loop.
    pub translated_exits: u64,
    /// Blocks translated.
    pub blocks: u64,
    /// Times the code cache was emptied or evicted from.
    pub cache_flushes: u64,
    /// TLB fills.
    pub tlb_fills: u64,
    /// TLB flushes of any kind.
    pub tlb_flushes: u64,
    /// RDMSR or WRMSR of a register that does not exist here (#GP).
    pub unknown_msrs: u64,
}
