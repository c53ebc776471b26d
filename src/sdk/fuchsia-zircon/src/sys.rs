//! The raw system calls, their types, and what a process starts with.

#[cfg(target_os = "fuchsia")]
pub use fuchsia_zircon_sys::*;
#[cfg(target_os = "linux")]
pub use fuchsia_zircon_types::*;
#[cfg(target_os = "fuchsia")]
pub use sys_fuchsia::*;
#[cfg(target_os = "linux")]
pub use sys_linux::*;
#[cfg(target_os = "linux")]
pub use zircon::*;

#[cfg(target_os = "fuchsia")]
#[path = "sys_fuchsia.rs"]
mod sys_fuchsia;
#[cfg(target_os = "linux")]
#[path = "sys_linux.rs"]
mod sys_linux;

/// What a vCPU did since it was created. All counters only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VcpuStats {
    /// Exits for a MEM trap.
    pub mem_exits: u64,
    /// Exits for an IO trap.
    pub io_exits: u64,
    /// Exits for an interprocessor interrupt or start-up.
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

/// A process to be started, in raw parts.
#[derive(Debug)]
pub struct ProcessStart {
    /// What it is called.
    pub name: String,
    /// The job to make it in, which stays the caller's.
    pub job: zx_handle_t,
    /// The program's VMO, which stays the caller's.
    pub executable: zx_handle_t,
    /// All arguments; the first is the program's own name.
    pub arguments: Vec<String>,
    /// The environment, each `NAME=value`.
    pub environment: Vec<String>,
    /// Startup handles by `PA_HND` number, consumed.
    pub handles: Vec<(u32, zx_handle_t)>,
    /// Namespace paths; the argument of a `PA_NS_DIR` handle is an index into them.
    pub names: Vec<String>,
}
