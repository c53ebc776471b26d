//! The software hypervisor: runs x86-64 guests on an x86-64 Linux host without KVM.
//!
//! Guest memory, the vCPU with its MMU, exceptions, local APIC and time, the translator that copies guest instructions
//! into host code, and an interpreter for what is not worth translating. Device models, machine layout, file formats
//! and FIDL stay outside: a caller sees [`Guest`], [`Vcpu`] and the exits that the Zircon kernel interface defines.
//!
//! The host must have AVX and FSGSBASE, and a kernel that lets programs use both: Intel Core and Xeon since 2012, AMD Zen, under
//! Linux 5.9 or later. Elsewhere [`Guest::new`] fails with [`Error::NotSupported`], which says what is missing. Every
//! other extension is optional: a guest is offered what its host has.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

pub mod gdb;
mod state;
mod tlb;
mod translator;

mod apic;
mod code_map;
mod cpu;
mod cpuid;
mod debug;
mod debug_registers;
mod error;
mod exception;
mod exit;
mod guest;
mod host_access;
mod host_features;
mod interp;
mod memory;
mod mmu;
mod msr;
mod page_bitmap;
mod pvclock;
mod registers;
mod segment;
mod startup;
mod stats;
#[cfg(test)]
mod tests;
mod time;
mod vcpu;

pub use error::Error;
pub use exit::{Exit, IoData, VcpuState};
pub use guest::{BellClosed, BellSink, Guest, MAX_VCPUS, PHYSICAL_ADDRESS_BITS, TrapKind};
pub use stats::VcpuStats;
pub use vcpu::{Vcpu, VcpuRemote};
