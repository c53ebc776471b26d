//! The architecture seam: everything above this module is the same on every architecture.
//!
//! An architecture gives a [`Platform`]: the machine around PCI and virtio, with its interrupt controller, serial port and
//! loaders, and what a vCPU's packets mean there.

pub mod arm64;
pub mod x64;

#[cfg(target_arch = "aarch64")]
pub use arm64::{Platform, vcpu};
#[cfg(target_arch = "x86_64")]
pub use x64::{Platform, vcpu};

use std::ops::Range;

/// Where the first vCPU starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Guest-physical address of its first instruction.
    pub address: u64,
    /// What the boot protocol hands over: on x64 in RSI, on arm64 in X0.
    pub argument: u64,
}

/// A kernel and what goes with it.
#[derive(Clone, Copy)]
pub enum Kernel<'a> {
    /// Linux.
    Linux {
        /// The kernel image.
        image: &'a [u8],
        /// The initial RAM disk.
        ramdisk: Option<&'a [u8]>,
        /// A device tree blob to hand over or merge.
        device_tree: Option<&'a [u8]>,
        /// The command line, without a NUL.
        command_line: &'a str,
    },
    /// Zircon.
    Zircon {
        /// A boot image that starts with the kernel.
        image: &'a [u8],
        /// A boot image of further items.
        ramdisk: Option<&'a [u8]>,
        /// The command line, without a NUL.
        command_line: &'a str,
    },
}

/// Why a platform cannot be built or cannot load its kernel.
#[derive(Debug, thiserror::Error)]
pub enum PlatformError {
    /// Devices collide; the VMM is at fault.
    #[error(transparent)]
    Bus(#[from] crate::bus::BusConflict),
    /// The page tables do not fit; the memory size is at fault.
    #[error(transparent)]
    PageTable(#[from] x64::page_table::PageTableError),
    /// The ACPI tables could not be written.
    #[error(transparent)]
    Acpi(#[from] x64::acpi::AcpiError),
    /// The Linux image is at fault.
    #[error(transparent)]
    Linux(#[from] x64::linux::LinuxError),
    /// The Zircon image is at fault.
    #[error(transparent)]
    Zircon(#[from] x64::zircon::ZirconError),
    /// This architecture's machine is not there yet.
    #[error("Guests are not supported on {0} hosts yet")]
    Unsupported(&'static str),
}

/// What an architecture says about memory before anything exists.
#[derive(Debug, Clone)]
pub struct AddressSpace {
    /// Where RAM is never placed; ascending and disjoint.
    pub restricted: &'static [Range<u64>],
    /// Ranges that are no RAM but backed by memory the VMM fills.
    pub firmware: &'static [Range<u64>],
    /// Where PCI base addresses are placed.
    pub pci_mmio: Range<u64>,
    /// PCI configuration space.
    pub pci_ecam: Range<u64>,
    /// Most vCPUs of a guest.
    pub max_cpus: u8,
}
