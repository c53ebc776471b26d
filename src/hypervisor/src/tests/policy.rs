//! What CPUID offers, and that the rest of the processor agrees with it.

use super::machine::*;
use crate::cpuid::{Leaf, cpuid};
use crate::registers::cr4;
use crate::{Vcpu, state::seg};
use iced_x86::code_asm::*;

fn leaf(vcpu: &mut Vcpu, number: u32, subleaf: u32) -> Leaf {
    cpuid(vcpu.cpu_mut(), number, subleaf)
}

#[test]
fn what_cannot_work_is_hidden() {
    let mut vcpu = boot(&guest());
    let basic = leaf(&mut vcpu, 1, 0);
    // MONITOR, VMX, SMX, EIST, TM2, PDCM.
    assert_eq!(basic.ecx & (1 << 3 | 1 << 5 | 1 << 6 | 1 << 7 | 1 << 8 | 1 << 15), 0);
    // VME, MCE, MCA, thermal control.
    assert_eq!(basic.edx & (1 << 1 | 1 << 7 | 1 << 14 | 1 << 22 | 1 << 29), 0);
    let structured = leaf(&mut vcpu, 7, 0);
    // TSC_ADJUST, HLE, RTM, AVX-512 foundation and its relatives, processor trace.
    let avx512 = 1 << 16 | 1 << 17 | 1 << 21 | 1 << 26 | 1 << 27 | 1 << 28 | 1 << 30 | 1 << 31;
    assert_eq!(structured.ebx & (1 << 1 | 1 << 4 | 1 << 11 | 1 << 25 | avx512), 0);
    // UMIP, PKU, WAITPKG, CET, LA57.
    assert_eq!(structured.ecx & (1 << 2 | 1 << 3 | 1 << 5 | 1 << 7 | 1 << 16), 0);
    // Speculation control.
    assert_eq!(structured.edx & (1 << 26 | 1 << 27 | 1 << 28 | 1 << 29 | 1 << 31), 0);
    assert_eq!(leaf(&mut vcpu, 5, 0), Leaf::default(), "MWAIT");
    assert_eq!(leaf(&mut vcpu, 0xa, 0), Leaf::default(), "performance monitoring");
    assert_eq!(leaf(&mut vcpu, 0xd, 1).eax & 0xa, 0, "XSAVEC and XSAVES");
    // SVM.
    assert_eq!(leaf(&mut vcpu, 0x8000_0001, 0).ecx & 1 << 2, 0);
}

#[test]
fn what_is_ours_is_offered() {
    let mut vcpu = boot(&guest());
    let basic = leaf(&mut vcpu, 1, 0);
    // x2APIC, TSC deadline, hypervisor.
    assert_eq!(!basic.ecx & (1 << 21 | 1 << 24 | 1 << 31), 0);
    let signature = leaf(&mut vcpu, 0x4000_0000, 0);
    let name: Vec<u8> = [signature.ebx, signature.ecx, signature.edx]
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .collect();
    assert_eq!(name, b"KVMKVMKVM\0\0\0");
    let features = leaf(&mut vcpu, 0x4000_0001, 0).eax;
    assert_eq!(!features & (1 << 3 | 1 << 24), 0, "clock source 2, stable");
    assert_ne!(leaf(&mut vcpu, 0x8000_0007, 0).edx & 1 << 8, 0, "invariant TSC");
    assert_eq!(leaf(&mut vcpu, 0x8000_0008, 0).eax & 0xffff, 40 | 48 << 8);
}

#[test]
fn topology_is_one_package_of_cores_numbered_by_apic_id() {
    let guest = guest();
    let mut vcpus: Vec<_> = (0..3).map(|_| Vcpu::new(&guest, 0x8000).unwrap()).collect();
    for (id, vcpu) in vcpus.iter_mut().enumerate() {
        let id = id as u32;
        assert_eq!(leaf(vcpu, 1, 0).ebx >> 24, id);
        assert_eq!(leaf(vcpu, 0xb, 0), Leaf { eax: 0, ebx: 1, ecx: 1 << 8, edx: id });
        assert_eq!(leaf(vcpu, 0xb, 1), Leaf { eax: 6, ebx: 64, ecx: 1 | 2 << 8, edx: id });
        assert_eq!(leaf(vcpu, 0xb, 2), Leaf { eax: 0, ebx: 0, ecx: 2, edx: id });
    }
}

#[test]
fn osxsave_follows_cr4_and_sizes_follow_xcr0() {
    let mut vcpu = boot(&guest());
    if leaf(&mut vcpu, 1, 0).ecx & 1 << 26 == 0 {
        return;
    }
    assert_eq!(leaf(&mut vcpu, 1, 0).ecx & 1 << 27, 0);
    assert_eq!(leaf(&mut vcpu, 0xd, 0).ebx, 576);
    vcpu.cpu_mut().state.cr4 |= cr4::OSXSAVE;
    assert_ne!(leaf(&mut vcpu, 1, 0).ecx & 1 << 27, 0);
    if leaf(&mut vcpu, 0xd, 0).eax & 4 != 0 {
        vcpu.cpu_mut().state.xcr0 = 7;
        assert_eq!(leaf(&mut vcpu, 0xd, 0).ebx, 832);
    }
}

#[test]
fn reserved_control_bits_fault() {
    // VME, UMIP, LA57, VMXE, SMXE, PKE, CET; and CR4.PAE cannot go in long mode.
    for bit in [0, 11, 12, 13, 14, 22, 23] {
        let system = System::new();
        let mut vcpu = system.boot(|a| {
            a.mov(rax, cr4).unwrap();
            a.bts(rax, bit).unwrap();
            a.mov(cr4, rax).unwrap();
        });
        let (vector, frame) = system.exception(&mut vcpu);
        assert_eq!((vector, frame.error), (13, Some(0)), "CR4 bit {bit}");
    }
    let system = System::new();
    let mut vcpu = system.boot(|a| {
        a.mov(rax, cr4).unwrap();
        a.btr(rax, 5).unwrap();
        a.mov(cr4, rax).unwrap();
    });
    assert_eq!(system.exception(&mut vcpu).0, 13);
    assert_eq!(vcpu.cpu_mut().state.segments[seg::CS].selector, CODE_SELECTOR);
}

#[test]
fn xsetbv_checks_its_components() {
    for value in [0_u32, 2, 5, 1 << 5 | 7] {
        let system = System::new();
        let mut vcpu = system.boot(|a| {
            a.mov(rax, cr4).unwrap();
            a.bts(rax, 18).unwrap();
            a.mov(cr4, rax).unwrap();
            a.xor(ecx, ecx).unwrap();
            a.xor(edx, edx).unwrap();
            a.mov(eax, value).unwrap();
            a.xsetbv().unwrap();
        });
        assert_eq!(system.exception(&mut vcpu).0, 13, "{value:#x}");
    }
}
