//! The software hypervisor: runs x86-64 guests on an x86-64 host without KVM.
