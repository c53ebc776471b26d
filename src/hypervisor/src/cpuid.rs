//! The CPUID policy: the host's processor, less what this hypervisor does not carry through.
//!
//! Hidden on purpose: AVX-512 and AMX (no state for them), VMX and SVM, MONITOR/MWAIT, performance monitoring, processor
//! trace, TSC_ADJUST, the speculation-control MSRs, 5-level paging, UMIP, protection keys, CET, XSAVES, virtual-8086
//! extensions, machine-check banks. Forced on: the hypervisor bit, x2APIC, TSC deadline, invariant TSC.

use crate::cpu::Cpu;
use crate::guest::{MAX_VCPUS, PHYSICAL_ADDRESS_BITS};
use crate::host_access::{cpuid as host_cpuid, cpuid_max};
use crate::registers::cr4;
use crate::time::tsc_hz;
use std::sync::OnceLock;

/// Registers that CPUID returns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Leaf {
    pub(crate) eax: u32,
    pub(crate) ebx: u32,
    pub(crate) ecx: u32,
    pub(crate) edx: u32,
}

/// The host processor's maker, where behaviour of the instruction set depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Vendor {
    Intel,
    /// AMD and Hygon.
    Amd,
    Other,
}

/// First leaf of the hypervisor range: "KVMKVMKVM" (Linux, Documentation/virt/kvm/x86/cpuid.rst).
const HYPERVISOR_BASE: u32 = 0x4000_0000;
const KVM_FEATURES: u32 = 0x4000_0001;
/// TSC and APIC timer frequency in kHz, as VMware defined it and FreeBSD and Zircon read it.
const HYPERVISOR_TIMING: u32 = 0x4000_0010;
const KVM_FEATURE_CLOCKSOURCE: u32 = 1 << 0;
const KVM_FEATURE_NOP_IO_DELAY: u32 = 1 << 1;
const KVM_FEATURE_CLOCKSOURCE2: u32 = 1 << 3;
const KVM_FEATURE_CLOCKSOURCE_STABLE: u32 = 1 << 24;

/// A word with the given bits set.
const fn bits<const N: usize>(numbers: [u32; N]) -> u32 {
    let mut word = 0;
    let mut index = 0;
    while index < N {
        word |= 1 << numbers[index];
        index += 1;
    }
    word
}

/// Leaf 1 ECX: SSE3, PCLMULQDQ, SSSE3, FMA, CX16, PCID, SSE4.1, SSE4.2, MOVBE, POPCNT, AES, XSAVE, AVX, F16C, RDRAND.
const LEAF1_ECX: u32 = bits([0, 1, 9, 12, 13, 17, 19, 20, 22, 23, 25, 26, 28, 29, 30]);
const LEAF1_ECX_X2APIC: u32 = 1 << 21;
const LEAF1_ECX_TSC_DEADLINE: u32 = 1 << 24;
const LEAF1_ECX_XSAVE: u32 = 1 << 26;
const LEAF1_ECX_OSXSAVE: u32 = 1 << 27;
const LEAF1_ECX_AVX: u32 = 1 << 28;
const LEAF1_ECX_HYPERVISOR: u32 = 1 << 31;
/// Leaf 1 EDX: FPU, DE, PSE, TSC, MSR, PAE, CX8, SEP, PGE, CMOV, PSE-36, CLFSH, MMX, FXSR, SSE, SSE2, SS.
const LEAF1_EDX: u32 = bits([0, 2, 3, 4, 5, 6, 8, 11, 13, 15, 17, 19, 23, 24, 25, 26, 27]);
/// APIC, MTRR, PAT and HTT, which are ours and not the host's.
const LEAF1_EDX_FORCED: u32 = bits([9, 12, 16, 28]);
/// Leaf 7 EBX: FSGSBASE, BMI1, AVX2, FDP_EXCPTN_ONLY, SMEP, BMI2, ERMS, INVPCID, no FCS/FDS, RDSEED, ADX, SMAP,
/// CLFLUSHOPT, CLWB, SHA.
const LEAF7_EBX: u32 = bits([0, 3, 5, 6, 7, 8, 9, 10, 13, 18, 19, 20, 23, 24, 29]);
const LEAF7_EBX_AVX2: u32 = 1 << 5;
/// Leaf 7 ECX: GFNI, VAES, VPCLMULQDQ, RDPID.
const LEAF7_ECX: u32 = bits([8, 9, 10, 22]);
/// Leaf 7 EDX: FSRM.
const LEAF7_EDX: u32 = 1 << 4;
/// Leaf 7.1 EAX: FZRM, FSRS, FSRCS.
const LEAF7_1_EAX: u32 = bits([10, 11, 12]);
/// Leaf 0xd.1 EAX: XSAVEOPT. The compacted format is not offered.
const LEAF_D1_EAX: u32 = 0x1;
/// Leaf 0x80000001 ECX: LAHF, ABM, MISALIGNSSE, 3DNOWPREFETCH, TOPOEXT.
const EXTENDED1_ECX: u32 = bits([0, 5, 7, 8, 22]);
/// Leaf 0x80000001 EDX: SYSCALL, NX, MMXEXT, 1 GiB pages, RDTSCP, LM. The AMD copies of leaf 1 bits are added.
const EXTENDED1_EDX: u32 = bits([11, 20, 22, 26, 27, 29]);
/// Leaf 1 EDX bits that AMD repeats in leaf 0x80000001 EDX.
const EXTENDED1_EDX_COPIES: u32 = 0x0183_f3ff;
/// Leaf 0x80000021 EAX: LFENCE serializes.
const EXTENDED21_EAX: u32 = bits([2]);
/// Null selectors clear the base, as ours do. Automatic IBRS and no SRSO: retpolines and untrained returns steer the
/// predictions of a processor that executes guest branches as they are. Here a guest's indirect branches and unmatched
/// returns are look-ups in a table, so those sequences would cost time on every kernel entry and protect nothing.
const EXTENDED21_EAX_FORCED: u32 = bits([6, 8, 29]);

const XCR0_X87: u64 = 1 << 0;
const XCR0_SSE: u64 = 1 << 1;
const XCR0_AVX: u64 = 1 << 2;

/// log2 of [`MAX_VCPUS`]: bits of an APIC ID that number cores in the one package.
const CORE_BITS: u32 = MAX_VCPUS.ilog2();

/// Maker of the host processor.
pub(crate) fn vendor() -> Vendor {
    static VENDOR: OnceLock<Vendor> = OnceLock::new();
    *VENDOR.get_or_init(|| {
        let leaf = host_cpuid(0, 0);
        let mut name = [0; 12];
        for (bytes, word) in name.chunks_exact_mut(4).zip([leaf.ebx, leaf.edx, leaf.ecx]) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        match &name {
            b"GenuineIntel" => Vendor::Intel,
            b"AuthenticAMD" | b"HygonGenuine" => Vendor::Amd,
            _ => Vendor::Other,
        }
    })
}

/// Family, model and stepping as leaf 1 EAX gives them; also EDX after reset.
pub(crate) fn signature() -> u32 {
    static SIGNATURE: OnceLock<u32> = OnceLock::new();
    *SIGNATURE.get_or_init(|| host_cpuid(1, 0).eax)
}

/// The bits of XCR0 that a guest may set.
pub(crate) fn supported_xcr0() -> u64 {
    static SUPPORTED: OnceLock<u64> = OnceLock::new();
    *SUPPORTED.get_or_init(|| {
        let features = host_cpuid(1, 0).ecx;
        let mut bits = XCR0_X87;
        if features & LEAF1_ECX_XSAVE != 0 {
            bits |= XCR0_SSE;
            if features & LEAF1_ECX_AVX != 0 {
                bits |= XCR0_AVX;
            }
        }
        bits
    })
}

/// The bits of CR4 that exist, from the features that CPUID offers.
pub(crate) fn supported_cr4() -> u64 {
    static SUPPORTED: OnceLock<u64> = OnceLock::new();
    *SUPPORTED.get_or_init(|| {
        let ecx = host_cpuid(1, 0).ecx;
        let ebx7 = if cpuid_max(0) >= 7 { host_cpuid(7, 0).ebx } else { 0 };
        let mut bits = cr4::TSD
            | cr4::DE
            | cr4::PSE
            | cr4::PAE
            | cr4::MCE
            | cr4::PGE
            | cr4::PCE
            | cr4::OSFXSR
            | cr4::OSXMMEXCPT;
        let optional = [
            (ecx & 1 << 17, cr4::PCIDE),
            (ecx & LEAF1_ECX_XSAVE, cr4::OSXSAVE),
            (ebx7 & 1, cr4::FSGSBASE),
            (ebx7 & 1 << 7, cr4::SMEP),
            (ebx7 & 1 << 20, cr4::SMAP),
        ];
        for (present, bit) in optional {
            if present != 0 {
                bits |= bit;
            }
        }
        bits
    })
}

/// Highest basic leaf: on Intel up to the frequencies, elsewhere up to the extended state.
fn max_basic() -> u32 {
    match vendor() {
        Vendor::Intel => 0x16,
        _ => cpuid_max(0).clamp(0xd, 0x10),
    }
}

fn max_extended() -> u32 {
    let host = cpuid_max(0x8000_0000);
    if vendor() == Vendor::Intel { host.min(0x8000_0008) } else { host.min(0x8000_0021) }
}

fn host_leaf(leaf: u32, subleaf: u32) -> Leaf {
    let result = host_cpuid(leaf, subleaf);
    Leaf { eax: result.eax, ebx: result.ebx, ecx: result.ecx, edx: result.edx }
}

/// CPUID as the guest sees it.
pub(crate) fn cpuid(cpu: &Cpu, leaf: u32, subleaf: u32) -> Leaf {
    match leaf {
        HYPERVISOR_BASE..=0x4000_00ff => hypervisor_leaf(leaf),
        0x8000_0000..=0x8fff_ffff => {
            if leaf > max_extended() {
                Leaf::default()
            } else {
                extended_leaf(cpu, leaf, subleaf)
            }
        }
        _ if leaf <= max_basic() => basic_leaf(cpu, leaf, subleaf),
        // SDM vol. 2 "CPUID": Intel answers a leaf beyond the end with the highest basic leaf; AMD with zeros.
        _ if vendor() == Vendor::Intel => basic_leaf(cpu, max_basic(), subleaf),
        _ => Leaf::default(),
    }
}

fn hypervisor_leaf(leaf: u32) -> Leaf {
    match leaf {
        HYPERVISOR_BASE => Leaf {
            eax: HYPERVISOR_TIMING,
            ebx: u32::from_le_bytes(*b"KVMK"),
            ecx: u32::from_le_bytes(*b"VMKV"),
            edx: u32::from_le_bytes(*b"M\0\0\0"),
        },
        KVM_FEATURES => Leaf {
            eax: KVM_FEATURE_CLOCKSOURCE
                | KVM_FEATURE_NOP_IO_DELAY
                | KVM_FEATURE_CLOCKSOURCE2
                | KVM_FEATURE_CLOCKSOURCE_STABLE,
            ..Leaf::default()
        },
        HYPERVISOR_TIMING => Leaf {
            eax: (tsc_hz() / 1000) as u32,
            ebx: (crate::apic::TIMER_HZ / 1000) as u32,
            ..Leaf::default()
        },
        _ => Leaf::default(),
    }
}

fn basic_leaf(cpu: &Cpu, leaf: u32, subleaf: u32) -> Leaf {
    let host = host_leaf(leaf, subleaf);
    let none = Leaf::default();
    match leaf {
        0 => Leaf { eax: max_basic(), ..host },
        1 => features(cpu, host),
        2 => host,
        4 if vendor() == Vendor::Intel => cache_leaf(host),
        // Always-running APIC timer: it does not stop in any C-state.
        6 => Leaf { eax: 1 << 2, ..none },
        7 => match subleaf {
            0 => Leaf {
                eax: host.eax.min(1),
                ebx: host.ebx & LEAF7_EBX,
                ecx: host.ecx & LEAF7_ECX,
                edx: host.edx & LEAF7_EDX,
            },
            1 if host_leaf(7, 0).ebx & LEAF7_EBX_AVX2 != 0 => {
                Leaf { eax: host.eax & LEAF7_1_EAX, ..none }
            }
            _ => none,
        },
        0xb => topology_leaf(cpu, subleaf),
        0xd => extended_state_leaf(cpu, subleaf),
        0x15 => {
            // A crystal of 1 GHz, which is also the APIC timer's clock, and the TSC as a ratio to it in kHz.
            let khz = (tsc_hz() / 1000) as u32;
            Leaf { eax: 1_000_000, ebx: khz, ecx: crate::apic::TIMER_HZ as u32, edx: 0 }
        }
        0x16 => {
            let mhz = (tsc_hz() / 1_000_000) as u32 & 0xffff;
            Leaf { eax: mhz, ebx: mhz, ecx: 100, edx: 0 }
        }
        _ => none,
    }
}

/// Leaf 1: family and features.
fn features(cpu: &Cpu, host: Leaf) -> Leaf {
    let mut ecx =
        host.ecx & LEAF1_ECX | LEAF1_ECX_X2APIC | LEAF1_ECX_TSC_DEADLINE | LEAF1_ECX_HYPERVISOR;
    if cpu.state.cr4 & cr4::OSXSAVE != 0 {
        ecx |= LEAF1_ECX_OSXSAVE;
    }
    let id = cpu.apic.id();
    Leaf {
        eax: host.eax,
        // CLFLUSH line size in units of 8 bytes, addressable logical processors, initial APIC ID.
        ebx: host.ebx & 0xff00 | (MAX_VCPUS as u32) << 16 | id << 24,
        ecx,
        edx: host.edx & LEAF1_EDX | LEAF1_EDX_FORCED,
    }
}

/// Cache parameters: first- and second-level caches are a core's own, the third is everyone's.
fn cache_leaf(host: Leaf) -> Leaf {
    if host.eax & 0x1f == 0 {
        return Leaf::default();
    }
    let level = host.eax >> 5 & 7;
    let sharing = if level >= 3 { MAX_VCPUS as u32 - 1 } else { 0 };
    let cores = MAX_VCPUS as u32 - 1;
    Leaf { eax: host.eax & 0x3fff | sharing << 14 | cores << 26, ..host }
}

/// Leaf 0xb: one thread a core, all cores in one package (SDM vol. 3 §8.9.1).
fn topology_leaf(cpu: &Cpu, subleaf: u32) -> Leaf {
    let id = cpu.apic.id();
    let (eax, ebx, kind) = match subleaf {
        0 => (0, 1, 1),
        1 => (CORE_BITS, MAX_VCPUS as u32, 2),
        _ => (0, 0, 0),
    };
    Leaf { eax, ebx, ecx: subleaf & 0xff | kind << 8, edx: id }
}

/// Leaf 0xd: x87, SSE and AVX state, in the standard layout (SDM vol. 1 §13.2).
fn extended_state_leaf(cpu: &Cpu, subleaf: u32) -> Leaf {
    if host_cpuid(1, 0).ecx & LEAF1_ECX_XSAVE == 0 {
        return Leaf::default();
    }
    const LEGACY_AND_HEADER: u32 = 512 + 64;
    let avx = host_leaf(0xd, 2);
    let size = |bits: u64| if bits & XCR0_AVX != 0 { avx.ebx + avx.eax } else { LEGACY_AND_HEADER };
    let supported = supported_xcr0();
    match subleaf {
        0 => {
            Leaf { eax: supported as u32, ebx: size(cpu.state.xcr0), ecx: size(supported), edx: 0 }
        }
        1 => Leaf {
            eax: host_leaf(0xd, 1).eax & LEAF_D1_EAX,
            ebx: if cpu.state.xcr0 & XCR0_AVX != 0 {
                LEGACY_AND_HEADER + avx.eax
            } else {
                LEGACY_AND_HEADER
            },
            ..Leaf::default()
        },
        2 if supported & XCR0_AVX != 0 => avx,
        _ => Leaf::default(),
    }
}

fn extended_leaf(cpu: &Cpu, leaf: u32, subleaf: u32) -> Leaf {
    let host = host_leaf(leaf, subleaf);
    let none = Leaf::default();
    let amd = vendor() == Vendor::Amd;
    match leaf {
        0x8000_0000 => Leaf { eax: max_extended(), ..host },
        0x8000_0001 => {
            let mut edx = host.edx & EXTENDED1_EDX;
            if amd {
                let leaf1 = features(cpu, host_leaf(1, 0));
                edx |= leaf1.edx & EXTENDED1_EDX_COPIES & !(1 << 11);
            }
            Leaf { eax: host.eax, ebx: host.ebx, ecx: host.ecx & EXTENDED1_ECX, edx }
        }
        // Brand string and the old cache leaves.
        0x8000_0002..=0x8000_0006 | 0x8000_0019 | 0x8000_001a => host,
        // Invariant TSC.
        0x8000_0007 => Leaf { edx: 1 << 8, ..none },
        0x8000_0008 => Leaf {
            eax: PHYSICAL_ADDRESS_BITS | 48 << 8,
            // XRSTOR loads the error pointers always: a property of the host's FXRSTOR.
            ebx: if amd { host.ebx & 1 << 2 } else { 0 },
            ecx: if amd { CORE_BITS << 12 | (MAX_VCPUS as u32 - 1) } else { 0 },
            edx: 0,
        },
        0x8000_001d if amd && host.eax & 0x1f != 0 => {
            let level = host.eax >> 5 & 7;
            let sharing = if level >= 3 { MAX_VCPUS as u32 - 1 } else { 0 };
            Leaf { eax: host.eax & 0x3fff | sharing << 14, ..host }
        }
        // Extended APIC ID; core ID with one thread a core; node 0 of one.
        0x8000_001e if amd => Leaf { eax: cpu.apic.id(), ebx: cpu.apic.id() & 0xff, ..none },
        0x8000_0021 => Leaf { eax: host.eax & EXTENDED21_EAX | EXTENDED21_EAX_FORCED, ..none },
        _ => none,
    }
}
