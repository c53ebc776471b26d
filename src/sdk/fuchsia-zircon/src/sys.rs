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
