//! Model-specific registers (SDM vol. 4, and AMD's processor programming reference for the 0xc001_xxxx range).
//!
//! Registers that kernels read without asking CPUID first exist and read as a quiet machine has them; every other
//! one is #GP(0), as on a processor that lacks it.

use crate::apic;
use crate::cpu::Cpu;
use crate::cpuid::{Vendor, vendor};
use crate::exception::Exception;
use crate::exit::Exit;
use crate::host_access;
use crate::mmu::is_canonical;
use crate::pvclock;
use crate::registers::{cr0, efer};
use crate::state::seg;

/// Registers without effect on execution: they keep what the guest writes.
pub(crate) struct Msrs {
    misc_enable: u64,
    debug_control: u64,
    mtrr_default: u64,
    mtrr_variable: [u64; 16],
    mtrr_fixed: [u64; 11],
    hwcr: u64,
    syscfg: u64,
}

impl Default for Msrs {
    fn default() -> Msrs {
        Msrs {
            misc_enable: MISC_ENABLE_RESET,
            debug_control: 0,
            // As firmware leaves them: all memory write-back.
            mtrr_default: MTRR_ENABLE | MTRR_FIXED_ENABLE | MTRR_WRITE_BACK,
            mtrr_variable: [0; 16],
            mtrr_fixed: [0x0606_0606_0606_0606; 11],
            hwcr: HWCR_TSC_FREQ_SEL,
            syscfg: 0,
        }
    }
}

const TSC: u32 = 0x10;
const KVM_WALL_CLOCK: u32 = 0x11;
const KVM_SYSTEM_TIME: u32 = 0x12;
const PLATFORM_ID: u32 = 0x17;
const APIC_BASE: u32 = 0x1b;
const EBL_CR_POWERON: u32 = 0x2a;
const SMI_COUNT: u32 = 0x34;
const FEATURE_CONTROL: u32 = 0x3a;
const UCODE_WRITE: u32 = 0x79;
const UCODE_REV: u32 = 0x8b;
const FSB_FREQ: u32 = 0xcd;
const PLATFORM_INFO: u32 = 0xce;
const MTRR_CAP: u32 = 0xfe;
const BBL_CR_CTL3: u32 = 0x11e;
const MISC_FEATURES_ENABLES: u32 = 0x140;
const SYSENTER_CS: u32 = 0x174;
const SYSENTER_ESP: u32 = 0x175;
const SYSENTER_EIP: u32 = 0x176;
const MCG_CAP: u32 = 0x179;
const MCG_STATUS: u32 = 0x17a;
const MISC_ENABLE: u32 = 0x1a0;
const DEBUG_CONTROL: u32 = 0x1d9;
const MTRR_VARIABLE: u32 = 0x200;
const MTRR_VARIABLE_LAST: u32 = 0x20f;
const MTRR_FIXED: [u32; 11] =
    [0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f];
const PAT: u32 = 0x277;
const MTRR_DEFAULT: u32 = 0x2ff;
const TSC_DEADLINE: u32 = 0x6e0;
const KVM_WALL_CLOCK_NEW: u32 = 0x4b56_4d00;
const KVM_SYSTEM_TIME_NEW: u32 = 0x4b56_4d01;
const EFER: u32 = 0xc000_0080;
const STAR: u32 = 0xc000_0081;
const LSTAR: u32 = 0xc000_0082;
const CSTAR: u32 = 0xc000_0083;
const FMASK: u32 = 0xc000_0084;
const FS_BASE: u32 = 0xc000_0100;
const GS_BASE: u32 = 0xc000_0101;
const KERNEL_GS_BASE: u32 = 0xc000_0102;
const TSC_AUX: u32 = 0xc000_0103;
const SYSCFG: u32 = 0xc001_0010;
const HWCR: u32 = 0xc001_0015;
const PATCH_LOADER: u32 = 0xc001_0020;
const VM_CR: u32 = 0xc001_0114;
const DE_CFG: u32 = 0xc001_1029;

/// Fast strings on; branch trace and precise sampling unavailable.
const MISC_ENABLE_RESET: u64 = 1 | 1 << 11 | 1 << 12;
const MTRR_ENABLE: u64 = 1 << 11;
const MTRR_FIXED_ENABLE: u64 = 1 << 10;
const MTRR_WRITE_BACK: u64 = 6;
/// Eight variable ranges, fixed ranges, write combining.
const MTRR_CAPABILITIES: u64 = 8 | 1 << 8 | 1 << 10;
/// The TSC counts at the P0 frequency.
const HWCR_TSC_FREQ_SEL: u64 = 1 << 24;
/// SVM is disabled and the setting locked.
const VM_CR_SVM_DISABLED: u64 = 1 << 3 | 1 << 4;
/// LFENCE is dispatch serializing.
const DE_CFG_LFENCE_SERIALIZE: u64 = 1 << 1;

/// AMD registers that read as zero and ignore writes: memory configuration, power states, erratum work-arounds.
fn is_quiet_amd(msr: u32) -> bool {
    matches!(
        msr,
        0xc001_0016..=0xc001_001f
            | 0xc001_0022
            | 0xc001_0055
            | 0xc001_0058
            | 0xc001_0061..=0xc001_006b
            | 0xc001_0112..=0xc001_0113
            | 0xc001_0117
            | 0xc001_0140..=0xc001_0141
            | 0xc001_1000..=0xc001_1005
            | 0xc001_1020..=0xc001_1023
            | 0xc001_102a..=0xc001_102d
            | 0xc001_10e3
    )
}

/// Machine-check banks and registers with no events to report, on both makers.
fn is_quiet(msr: u32) -> bool {
    matches!(
        msr,
        EBL_CR_POWERON | SMI_COUNT | FSB_FREQ | PLATFORM_INFO | BBL_CR_CTL3 | MISC_FEATURES_ENABLES
    ) || matches!(msr, PLATFORM_ID | MCG_CAP | MCG_STATUS | 0x17b | 0x400..=0x47f | 0x1db..=0x1de)
        || vendor() == Vendor::Amd && is_quiet_amd(msr)
}

/// RDMSR.
pub(crate) fn read(cpu: &mut Cpu, msr: u32) -> Result<u64, Exception> {
    let state = &cpu.state;
    let amd = vendor() == Vendor::Amd;
    Ok(match msr {
        TSC => host_access::tsc().wrapping_add(state.tsc_offset),
        KVM_WALL_CLOCK | KVM_WALL_CLOCK_NEW => cpu.pvclock.wall_clock,
        KVM_SYSTEM_TIME | KVM_SYSTEM_TIME_NEW => cpu.pvclock.system_time,
        APIC_BASE => cpu.apic.base(),
        // Locked, with VMX off.
        FEATURE_CONTROL => 1,
        UCODE_REV if amd => 0x0100_0065,
        UCODE_REV => 1 << 32,
        MTRR_CAP => MTRR_CAPABILITIES,
        SYSENTER_CS => state.sysenter_cs,
        SYSENTER_ESP => state.sysenter_esp,
        SYSENTER_EIP => state.sysenter_eip,
        MISC_ENABLE => cpu.msrs.misc_enable,
        DEBUG_CONTROL => cpu.msrs.debug_control,
        MTRR_VARIABLE..=MTRR_VARIABLE_LAST => {
            cpu.msrs.mtrr_variable[(msr - MTRR_VARIABLE) as usize & 15]
        }
        PAT => state.pat,
        MTRR_DEFAULT => cpu.msrs.mtrr_default,
        TSC_DEADLINE => cpu.apic.tsc_deadline(),
        apic::MSR_FIRST..=apic::MSR_LAST => return apic::read_msr(cpu, msr),
        EFER => state.efer,
        STAR => state.star,
        LSTAR => state.lstar,
        CSTAR => state.cstar,
        FMASK => state.sfmask,
        FS_BASE => state.segments[seg::FS].base,
        GS_BASE => state.segments[seg::GS].base,
        KERNEL_GS_BASE => state.kernel_gs_base,
        TSC_AUX => state.tsc_aux,
        SYSCFG if amd => cpu.msrs.syscfg,
        HWCR if amd => cpu.msrs.hwcr,
        VM_CR if amd => VM_CR_SVM_DISABLED,
        DE_CFG if amd => DE_CFG_LFENCE_SERIALIZE,
        _ => match MTRR_FIXED.iter().position(|&fixed| fixed == msr) {
            Some(index) => cpu.msrs.mtrr_fixed[index],
            None if is_quiet(msr) => 0,
            None => return Err(unknown(cpu, msr, "RDMSR")),
        },
    })
}

/// WRMSR. The exit is that of an interprocessor interrupt.
pub(crate) fn write(cpu: &mut Cpu, msr: u32, value: u64) -> Result<Option<Exit>, Exception> {
    let amd = vendor() == Vendor::Amd;
    match msr {
        // The TSC is the host's, which cannot be written.
        TSC | UCODE_WRITE | UCODE_REV => {}
        KVM_WALL_CLOCK | KVM_WALL_CLOCK_NEW => pvclock::set_wall_clock(cpu, value)?,
        KVM_SYSTEM_TIME | KVM_SYSTEM_TIME_NEW => pvclock::set_system_time(cpu, value)?,
        APIC_BASE => cpu.apic.set_base(value)?,
        SYSENTER_CS => cpu.state.sysenter_cs = value & 0xffff_ffff,
        SYSENTER_ESP => cpu.state.sysenter_esp = canonical(value)?,
        SYSENTER_EIP => cpu.state.sysenter_eip = canonical(value)?,
        MISC_ENABLE => cpu.msrs.misc_enable = value & !(1 << 11 | 1 << 12) | 1 << 11 | 1 << 12,
        DEBUG_CONTROL if value & !3 == 0 => cpu.msrs.debug_control = value,
        MTRR_VARIABLE..=MTRR_VARIABLE_LAST => {
            cpu.msrs.mtrr_variable[(msr - MTRR_VARIABLE) as usize & 15] = value;
        }
        PAT => write_pat(cpu, value)?,
        MTRR_DEFAULT if value & !0xcff == 0 => cpu.msrs.mtrr_default = value,
        TSC_DEADLINE => apic::write_tsc_deadline(cpu, value),
        apic::MSR_FIRST..=apic::MSR_LAST => return apic::write_msr(cpu, msr, value),
        EFER => write_efer(cpu, value)?,
        STAR => cpu.state.star = value,
        LSTAR => cpu.state.lstar = canonical(value)?,
        CSTAR => cpu.state.cstar = canonical(value)?,
        FMASK => cpu.state.sfmask = value & 0xffff_ffff,
        FS_BASE => cpu.state.segments[seg::FS].base = canonical(value)?,
        GS_BASE => cpu.state.segments[seg::GS].base = canonical(value)?,
        KERNEL_GS_BASE => cpu.state.kernel_gs_base = canonical(value)?,
        TSC_AUX if value >> 32 == 0 => cpu.state.tsc_aux = value,
        SYSCFG if amd => cpu.msrs.syscfg = value,
        HWCR if amd => cpu.msrs.hwcr = value | HWCR_TSC_FREQ_SEL,
        PATCH_LOADER | VM_CR | DE_CFG if amd => {}
        _ => match MTRR_FIXED.iter().position(|&fixed| fixed == msr) {
            Some(index) => cpu.msrs.mtrr_fixed[index] = value,
            None if is_quiet(msr) => {}
            None => return Err(unknown(cpu, msr, "WRMSR")),
        },
    }
    Ok(None)
}

fn unknown(cpu: &mut Cpu, msr: u32, instruction: &str) -> Exception {
    cpu.stats.unknown_msrs += 1;
    tracing::debug!("{instruction} of unknown register {msr:#x} at rip {:#x}", cpu.state.rip);
    Exception::gp(0)
}

fn canonical(value: u64) -> Result<u64, Exception> {
    if is_canonical(value) { Ok(value) } else { Err(Exception::gp(0)) }
}

/// Each byte is a memory type: 0, 1, 4, 5, 6 or 7 (SDM vol. 3 §11.12.2).
fn write_pat(cpu: &mut Cpu, value: u64) -> Result<(), Exception> {
    if value.to_le_bytes().iter().any(|kind| !matches!(kind, 0 | 1 | 4..=7)) {
        return Err(Exception::gp(0));
    }
    cpu.state.pat = value;
    Ok(())
}

/// IA32_EFER: LMA follows CR0.PG; LME cannot change while paging is on (SDM vol. 3 §4.1.1).
fn write_efer(cpu: &mut Cpu, value: u64) -> Result<(), Exception> {
    let amd = if vendor() == Vendor::Amd { efer::AUTOIBRS } else { 0 };
    let writable = efer::SCE | efer::LME | efer::NXE | amd;
    let old = cpu.state.efer;
    let lme_changes = (old ^ value) & efer::LME != 0;
    if value & !(writable | efer::LMA) != 0 || lme_changes && cpu.state.cr0 & cr0::PG != 0 {
        return Err(Exception::gp(0));
    }
    cpu.state.efer = old & !writable | value & writable;
    if (old ^ cpu.state.efer) & efer::NXE != 0 {
        cpu.flush_tlb();
    }
    Ok(())
}
