//! The virtual machine monitor: the component behind `fuchsia.virtualization/GuestLifecycle`. It builds a machine around
//! a Zircon guest (memory, platform devices, PCI, ACPI), loads a kernel, runs the vCPUs, and connects each virtio
//! device, which is a component of its own, to PCI. What may enter is the machine as a guest sees it and its life
//! cycle; what a virtio device does is its component's, what vCPUs execute is the hypervisor's.
#![forbid(unsafe_code)]

pub mod arch;
pub mod bus;
pub mod interrupt;
pub mod loader;
pub mod memory;
pub mod pci;
pub mod serial;
pub mod vcpu;
pub mod virtio_pci;
pub mod vm;
