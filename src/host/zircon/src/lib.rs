//! Zircon on Linux: the zx_* system calls over Linux kernel objects.
#![cfg(target_os = "linux")]

pub mod linux;
mod unwritten;

pub use unwritten::*;
