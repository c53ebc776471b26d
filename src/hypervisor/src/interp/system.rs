//! System instructions: control and debug registers, descriptor tables, MSRs, system calls, TLB maintenance.

use super::operand::{self, mask};
use super::{Flow, Outcome, is_code, stack};
use crate::cpu::Cpu;
use crate::cpuid::{self, Vendor, vendor};
use crate::exception::{Exception, Fault};
use crate::guest::PHYSICAL_ADDRESS_BITS;
use crate::host_access;
use crate::memory;
use crate::mmu::{AccessKind, is_canonical};
use crate::msr;
use crate::registers::{cr0, cr4, dr6, dr7, efer, rflags, selector};
use crate::segment;
use crate::state::{Segment, TableRegister, gpr, seg};
use iced_x86::{Code, Instruction, Mnemonic, OpKind};

/// KVM's answer to a hypercall that does not exist (-KVM_ENOSYS).
const KVM_NO_SUCH_CALL: u64 = (-1000_i64) as u64;

/// Whether a MOV has a control or debug register on either side.
pub(super) fn is_control_move(instruction: &Instruction) -> bool {
    [0, 1].into_iter().any(|index| {
        instruction.op_kind(index) == OpKind::Register
            && (instruction.op_register(index).is_cr() || instruction.op_register(index).is_dr())
    })
}

fn require_kernel(cpu: &Cpu) -> Result<(), Exception> {
    if cpu.cpl() == 0 { Ok(()) } else { Err(Exception::gp(0)) }
}

fn require(condition: bool) -> Result<(), Exception> {
    if condition { Ok(()) } else { Err(Exception::ud()) }
}

/// MOV to and from control and debug registers.
pub(super) fn move_control(cpu: &mut Cpu, instruction: &Instruction) -> Outcome {
    let (to, from) = (instruction.op0_register(), instruction.op1_register());
    require_kernel(cpu)?;
    let writes = to.is_cr() || to.is_dr();
    let (control, register) = if writes { (to, from) } else { (from, to) };
    let number = control.number();
    if control.is_dr() {
        let number = debug_register(cpu, number)?;
        if writes {
            write_debug(cpu, number, operand::read_register(cpu, register))?;
            return Ok(stack::finish(cpu, instruction, Flow::Jump));
        }
        let value = cpu.state.dr[number];
        operand::write_register(cpu, register, value);
        return Ok(Flow::Next);
    }
    if !writes {
        let value = match number {
            0 => cpu.state.cr0,
            2 => cpu.state.cr2,
            3 => cpu.state.cr3,
            4 => cpu.state.cr4,
            8 => cpu.apic.cr8(),
            _ => return Err(Exception::ud().into()),
        };
        operand::write_register(cpu, register, value);
        return Ok(Flow::Next);
    }
    let value = operand::read_register(cpu, register);
    match number {
        0 => write_cr0(cpu, value)?,
        2 => cpu.state.cr2 = value,
        3 => write_cr3(cpu, value)?,
        4 => write_cr4(cpu, value)?,
        8 if value > 0xf => return Err(Exception::gp(0).into()),
        8 => {
            cpu.apic.set_cr8(value);
            cpu.state.cr8 = value;
            cpu.interrupt_window_changed();
        }
        _ => return Err(Exception::ud().into()),
    }
    // RIP moves by the old code size: a change of CR0.PE leaves CS as it is until a far transfer.
    Ok(stack::finish(cpu, instruction, Flow::Jump))
}

/// CR0 (SDM vol. 2, "MOV—Move to/from Control Registers"; vol. 3 §9.8.5 for IA-32e mode).
fn write_cr0(cpu: &mut Cpu, value: u64) -> Result<(), Exception> {
    let gp = Err(Exception::gp(0));
    let old = cpu.state.cr0;
    let new = value & cr0::ALL | cr0::ET;
    let paging = new & cr0::PG != 0;
    if value >> 32 != 0
        || paging && new & cr0::PE == 0
        || new & cr0::NW != 0 && new & cr0::CD == 0
        || !paging && cpu.state.cr4 & cr4::PCIDE != 0
    {
        return gp;
    }
    let state = &mut *cpu.state;
    if paging && old & cr0::PG == 0 && state.efer & efer::LME != 0 {
        if state.cr4 & cr4::PAE == 0 || state.segments[seg::CS].is_long() {
            return gp;
        }
        state.efer |= efer::LMA;
    }
    if !paging && old & cr0::PG != 0 && state.efer & efer::LMA != 0 {
        if state.segments[seg::CS].is_long() {
            return gp;
        }
        state.efer &= !efer::LMA;
    }
    state.cr0 = new;
    if (old ^ new) & (cr0::PG | cr0::WP | cr0::PE) != 0 {
        cpu.flush_tlb();
    }
    Ok(())
}

/// CR3 (SDM vol. 3 §4.10.4.1): with PCIDs, bit 63 keeps the translations of the new PCID.
fn write_cr3(cpu: &mut Cpu, value: u64) -> Result<(), Exception> {
    let pcids = cpu.state.cr4 & cr4::PCIDE != 0;
    let keep = pcids && value >> 63 != 0;
    let value = if pcids { value & !(1 << 63) } else { value };
    if cpu.is_long_mode() && value >> PHYSICAL_ADDRESS_BITS != 0 {
        return Err(Exception::gp(0));
    }
    cpu.state.cr3 = value;
    let space = if pcids { value & 0xfff } else { 0 };
    cpu.tlb.switch_space(space, keep);
    cpu.rights_changed();
    Ok(())
}

/// CR4: a bit for a feature that CPUID does not offer is reserved.
fn write_cr4(cpu: &mut Cpu, value: u64) -> Result<(), Exception> {
    let old = cpu.state.cr4;
    let sets = |bit: u64| value & bit != 0 && old & bit == 0;
    if value & !cpuid::supported_cr4() != 0
        || cpu.is_long_mode() && value & cr4::PAE == 0
        || sets(cr4::PCIDE) && (!cpu.is_long_mode() || cpu.state.cr3 & 0xfff != 0)
    {
        return Err(Exception::gp(0));
    }
    cpu.state.cr4 = value;
    if (old ^ value) & cr4::FLUSHES_TLB != 0 {
        cpu.flush_tlb();
        if sets(cr4::PCIDE) {
            cpu.tlb.switch_space(cpu.state.cr3 & 0xfff, false);
            cpu.rights_changed();
        }
    }
    Ok(())
}

/// The debug register that an encoding means: DR4 and DR5 are aliases unless CR4.DE is set (SDM vol. 3 §17.2.2).
/// Any access while DR7.GD is set is a debug exception.
fn debug_register(cpu: &Cpu, number: usize) -> Result<usize, Exception> {
    let number = match number {
        4 | 5 if cpu.state.cr4 & cr4::DE == 0 => number + 2,
        0..=3 | 6 | 7 => number,
        _ => return Err(Exception::ud()),
    };
    if cpu.state.dr[7] & dr7::GD != 0 {
        return Err(Exception::db(dr6::BD, false));
    }
    Ok(number)
}

fn write_debug(cpu: &mut Cpu, number: usize, value: u64) -> Result<(), Exception> {
    if number >= 6 && value >> 32 != 0 {
        return Err(Exception::gp(0));
    }
    cpu.state.dr[number] = match number {
        6 => value & dr6::WRITABLE | dr6::FIXED,
        7 => value & dr7::WRITABLE | dr7::FIXED,
        _ => value,
    };
    Ok(())
}

pub(super) fn execute(cpu: &mut Cpu, instruction: &Instruction) -> Outcome {
    use Mnemonic as M;
    match instruction.mnemonic() {
        M::Cpuid => {
            let (leaf, subleaf) = (cpu.state.gpr[gpr::RAX] as u32, cpu.state.gpr[gpr::RCX] as u32);
            let result = cpuid::cpuid(cpu, leaf, subleaf);
            cpu.state.gpr[gpr::RAX] = result.eax.into();
            cpu.state.gpr[gpr::RBX] = result.ebx.into();
            cpu.state.gpr[gpr::RCX] = result.ecx.into();
            cpu.state.gpr[gpr::RDX] = result.edx.into();
            Ok(Flow::Next)
        }
        M::Rdmsr => {
            require_kernel(cpu)?;
            let value = msr::read(cpu, cpu.state.gpr[gpr::RCX] as u32)?;
            write_edx_eax(cpu, value);
            Ok(Flow::Next)
        }
        M::Wrmsr => {
            require_kernel(cpu)?;
            let exit = msr::write(cpu, cpu.state.gpr[gpr::RCX] as u32, edx_eax(cpu))?;
            Ok(exit.map_or_else(|| stack::finish(cpu, instruction, Flow::Jump), Flow::Exit))
        }
        M::Hlt => {
            require_kernel(cpu)?;
            Ok(Flow::Halt)
        }
        M::Cli | M::Sti => interrupt_flag(cpu, instruction),
        M::Clac | M::Stac => {
            require(cpu.cpl() == 0 && cpuid::supported_cr4() & cr4::SMAP != 0)?;
            let set = instruction.mnemonic() == M::Stac;
            stack::set_flags(cpu, if set { rflags::AC } else { 0 }, rflags::AC);
            Ok(stack::finish(cpu, instruction, Flow::Jump))
        }
        M::Syscall => system_call(cpu, instruction),
        M::Sysret | M::Sysretq => system_return(cpu, instruction),
        M::Sysenter => sysenter(cpu),
        M::Sysexit | M::Sysexitq => sysexit(cpu, instruction),
        M::Swapgs => {
            require(cpu.is_64bit())?;
            require_kernel(cpu)?;
            let state = &mut *cpu.state;
            std::mem::swap(&mut state.segments[seg::GS].base, &mut state.kernel_gs_base);
            Ok(Flow::Next)
        }
        M::Rdfsbase | M::Rdgsbase | M::Wrfsbase | M::Wrgsbase => segment_base(cpu, instruction),
        M::Lgdt | M::Lidt | M::Sgdt | M::Sidt => descriptor_table(cpu, instruction),
        M::Lldt | M::Ltr | M::Sldt | M::Str => system_selector(cpu, instruction),
        M::Smsw | M::Lmsw => machine_status(cpu, instruction),
        M::Clts => {
            require_kernel(cpu)?;
            cpu.state.cr0 &= !cr0::TS;
            Ok(stack::finish(cpu, instruction, Flow::Jump))
        }
        M::Invlpg => {
            require_kernel(cpu)?;
            let index = operand::segment_index(instruction.memory_segment());
            let base = if index >= seg::FS || !cpu.is_64bit() {
                cpu.state.segments[index].base
            } else {
                0
            };
            let va = cpu.wrap_linear(base.wrapping_add(operand::offset(cpu, instruction)));
            cpu.tlb.flush_page(va);
            Ok(stack::finish(cpu, instruction, Flow::Jump))
        }
        M::Invpcid => invalidate_pcid(cpu, instruction),
        M::Wbinvd | M::Invd | M::Wbnoinvd => {
            require_kernel(cpu)?;
            Ok(Flow::Next)
        }
        M::Clflush | M::Clflushopt | M::Clwb => {
            // Caches are coherent; the instruction is a one-byte load as far as paging is concerned.
            operand::span(cpu, instruction, 1, AccessKind::Read)?;
            Ok(Flow::Next)
        }
        M::Rdtsc | M::Rdtscp => {
            if cpu.state.cr4 & cr4::TSD != 0 && cpu.cpl() != 0 {
                return Err(Exception::gp(0).into());
            }
            let value = host_access::tsc().wrapping_add(cpu.state.tsc_offset);
            write_edx_eax(cpu, value);
            if instruction.mnemonic() == M::Rdtscp {
                cpu.state.gpr[gpr::RCX] = cpu.state.tsc_aux;
            }
            Ok(Flow::Next)
        }
        M::Rdpid => {
            let value = cpu.state.tsc_aux;
            operand::write(cpu, instruction, 0, value)?;
            Ok(Flow::Next)
        }
        // No counters exist, so every index is wrong.
        M::Rdpmc => Err(Exception::gp(0).into()),
        M::Xgetbv | M::Xsetbv => extended_control(cpu, instruction),
        M::Vmcall | M::Vmmcall => {
            require(cpu.is_long_mode())?;
            require_kernel(cpu)?;
            cpu.state.gpr[gpr::RAX] = KVM_NO_SUCH_CALL;
            Ok(Flow::Next)
        }
        M::Monitor
        | M::Mwait
        | M::Monitorx
        | M::Mwaitx
        | M::Umonitor
        | M::Umwait
        | M::Tpause
        | M::Rsm
        | M::Vmlaunch
        | M::Vmresume
        | M::Vmxoff
        | M::Vmxon
        | M::Vmread
        | M::Vmwrite
        | M::Vmptrld
        | M::Vmptrst
        | M::Vmclear
        | M::Vmfunc
        | M::Invept
        | M::Invvpid
        | M::Vmrun
        | M::Vmload
        | M::Vmsave
        | M::Clgi
        | M::Stgi
        | M::Skinit
        | M::Invlpga
        | M::Getsec
        | M::Encls
        | M::Enclu
        | M::Enclv
        | M::Xsaves
        | M::Xsaves64
        | M::Xrstors
        | M::Xrstors64
        | M::Rdpkru
        | M::Wrpkru
        | M::Clzero
        | M::Serialize
        | M::Xabort
        | M::Xbegin
        | M::Xend
        | M::Xtest
        | M::Invlpgb
        | M::Tlbsync
        | M::Pconfig
        | M::Ptwrite
        | M::Hreset => Err(Exception::ud().into()),
        _ => Ok(Flow::Native),
    }
}

fn edx_eax(cpu: &Cpu) -> u64 {
    cpu.state.gpr[gpr::RDX] << 32 | cpu.state.gpr[gpr::RAX] & mask(4)
}

fn write_edx_eax(cpu: &mut Cpu, value: u64) {
    cpu.state.gpr[gpr::RAX] = value & mask(4);
    cpu.state.gpr[gpr::RDX] = value >> 32;
}

/// CLI and STI. STI holds interrupts back for one more instruction if it opens the window (SDM vol. 2, STI).
fn interrupt_flag(cpu: &mut Cpu, instruction: &Instruction) -> Outcome {
    let allowed = u64::from(cpu.cpl()) <= (cpu.state.rflags & rflags::IOPL) >> 12;
    if !allowed && !cpu.is_real_mode() {
        return Err(Exception::gp(0).into());
    }
    if instruction.mnemonic() == Mnemonic::Cli {
        cpu.state.rflags &= !rflags::IF;
        return Ok(Flow::Next);
    }
    if cpu.state.rflags & rflags::IF != 0 {
        return Ok(Flow::Next);
    }
    cpu.state.rflags |= rflags::IF;
    cpu.interrupt_shadow = Some(cpu.wrap_ip(instruction.next_ip()));
    cpu.interrupt_window_changed();
    Ok(Flow::Next)
}

/// SYSCALL (SDM vol. 2; AMD APM vol. 3 for the legacy and compatibility forms, which Intel does not have).
fn system_call(cpu: &mut Cpu, instruction: &Instruction) -> Outcome {
    let from_64bit = cpu.is_64bit();
    let supported = from_64bit || vendor() == Vendor::Amd && cpu.is_long_mode();
    require(cpu.state.efer & efer::SCE != 0 && supported)?;
    let next = cpu.wrap_ip(instruction.next_ip());
    let state = &mut *cpu.state;
    state.gpr[gpr::RCX] = next;
    state.gpr[gpr::R11] = state.rflags & !rflags::RF;
    state.rip = if from_64bit { state.lstar } else { state.cstar };
    state.rflags = state.rflags & !(state.sfmask | rflags::RF) & rflags::ALL | rflags::FIXED;
    let sel = (state.star >> 32) as u16 & !selector::RPL;
    state.segments[seg::CS] = Segment::long_code(sel, 0);
    state.segments[seg::SS] = Segment::flat_data(sel.wrapping_add(8), 0);
    cpu.set_cpl(0);
    cpu.interrupt_window_changed();
    Ok(Flow::Jump)
}

/// SYSRET (SDM vol. 2).
fn system_return(cpu: &mut Cpu, instruction: &Instruction) -> Outcome {
    /// Flags that SYSRET takes from R11: all but RF and VM.
    const FLAGS: u64 = 0x003c_7fd7;
    require(cpu.state.efer & efer::SCE != 0 && (cpu.is_64bit() || vendor() == Vendor::Amd))?;
    require_kernel(cpu)?;
    let to_64bit = is_code(instruction, &[Code::Sysretq]);
    let target = cpu.state.gpr[gpr::RCX];
    if to_64bit && !is_canonical(target) {
        return Err(Exception::gp(0).into());
    }
    let base = (cpu.state.star >> 48) as u16;
    let state = &mut *cpu.state;
    let (code, rip) = if to_64bit {
        (Segment::long_code(base.wrapping_add(16) | 3, 3), target)
    } else {
        (Segment::flat_code(base | 3, 3), target & mask(4))
    };
    state.segments[seg::CS] = code;
    state.segments[seg::SS] = Segment::flat_data(base.wrapping_add(8) | 3, 3);
    state.rip = rip;
    let flags = state.gpr[gpr::R11] & FLAGS & rflags::ALL | rflags::FIXED;
    state.rflags = flags;
    cpu.set_cpl(3);
    cpu.interrupt_window_changed();
    Ok(Flow::Jump)
}

/// SYSENTER (SDM vol. 2). AMD has it in legacy mode only.
fn sysenter(cpu: &mut Cpu) -> Outcome {
    require(vendor() != Vendor::Amd || !cpu.is_long_mode())?;
    let sel = cpu.state.sysenter_cs as u16 & !selector::RPL;
    if cpu.is_real_mode() || sel == 0 {
        return Err(Exception::gp(0).into());
    }
    let long = cpu.is_long_mode();
    let width = if long { u64::MAX } else { mask(4) };
    let state = &mut *cpu.state;
    state.rflags &= !(rflags::VM | rflags::IF | rflags::RF);
    state.segments[seg::CS] =
        if long { Segment::long_code(sel, 0) } else { Segment::flat_code(sel, 0) };
    state.segments[seg::SS] = Segment::flat_data(sel.wrapping_add(8), 0);
    state.gpr[gpr::RSP] = state.sysenter_esp & width;
    state.rip = state.sysenter_eip & width;
    cpu.set_cpl(0);
    Ok(Flow::Jump)
}

/// SYSEXIT (SDM vol. 2).
fn sysexit(cpu: &mut Cpu, instruction: &Instruction) -> Outcome {
    require(vendor() != Vendor::Amd || !cpu.is_long_mode())?;
    let base = cpu.state.sysenter_cs as u16 & !selector::RPL;
    if cpu.is_real_mode() || base == 0 || cpu.cpl() != 0 {
        return Err(Exception::gp(0).into());
    }
    let to_64bit = is_code(instruction, &[Code::Sysexitq]);
    let (rip, rsp) = (cpu.state.gpr[gpr::RDX], cpu.state.gpr[gpr::RCX]);
    if to_64bit && !(is_canonical(rip) && is_canonical(rsp)) {
        return Err(Exception::gp(0).into());
    }
    let state = &mut *cpu.state;
    if to_64bit {
        state.segments[seg::CS] = Segment::long_code(base.wrapping_add(32) | 3, 3);
        state.segments[seg::SS] = Segment::flat_data(base.wrapping_add(40) | 3, 3);
        (state.rip, state.gpr[gpr::RSP]) = (rip, rsp);
    } else {
        state.segments[seg::CS] = Segment::flat_code(base.wrapping_add(16) | 3, 3);
        state.segments[seg::SS] = Segment::flat_data(base.wrapping_add(24) | 3, 3);
        (state.rip, state.gpr[gpr::RSP]) = (rip & mask(4), rsp & mask(4));
    }
    cpu.set_cpl(3);
    Ok(Flow::Jump)
}

/// RDFSBASE, RDGSBASE, WRFSBASE, WRGSBASE.
fn segment_base(cpu: &mut Cpu, instruction: &Instruction) -> Outcome {
    require(cpu.is_64bit() && cpu.state.cr4 & cr4::FSGSBASE != 0)?;
    let register = instruction.op0_register();
    let index = match instruction.mnemonic() {
        Mnemonic::Rdfsbase | Mnemonic::Wrfsbase => seg::FS,
        _ => seg::GS,
    };
    if matches!(instruction.mnemonic(), Mnemonic::Rdfsbase | Mnemonic::Rdgsbase) {
        let base = cpu.state.segments[index].base;
        operand::write_register(cpu, register, base);
        return Ok(Flow::Next);
    }
    let base = operand::read_register(cpu, register);
    if !is_canonical(base) {
        return Err(Exception::gp(0).into());
    }
    cpu.state.segments[index].base = base;
    Ok(Flow::Next)
}

/// LGDT, LIDT, SGDT, SIDT.
fn descriptor_table(cpu: &mut Cpu, instruction: &Instruction) -> Outcome {
    let stores = matches!(instruction.mnemonic(), Mnemonic::Sgdt | Mnemonic::Sidt);
    let base_size = if cpu.is_64bit() { 8 } else { 4 };
    let kind = if stores { AccessKind::Write } else { AccessKind::Read };
    if !stores {
        require_kernel(cpu)?;
    }
    let va = operand::linear(cpu, instruction, 2 + base_size, kind)?;
    let gdt = matches!(instruction.mnemonic(), Mnemonic::Sgdt | Mnemonic::Lgdt);
    if stores {
        let table = if gdt { cpu.state.gdtr } else { cpu.state.idtr };
        let mut bytes = [0; 10];
        bytes[..2].copy_from_slice(&table.limit.to_le_bytes());
        bytes[2..].copy_from_slice(&table.base.to_le_bytes());
        memory::write(cpu, va, &bytes[..2 + base_size])?;
        return Ok(Flow::Next);
    }
    let mut bytes = [0; 10];
    memory::read(cpu, va, &mut bytes[..2 + base_size])?;
    let limit = u16::from_le_bytes([bytes[0], bytes[1]]);
    let mut wide = [0; 8];
    wide.copy_from_slice(&bytes[2..]);
    let mut base = u64::from_le_bytes(wide);
    if is_code(instruction, &[Code::Lgdt_m1632_16, Code::Lidt_m1632_16]) {
        base &= 0xff_ffff;
    }
    if !is_canonical(base) {
        return Err(Exception::gp(0).into());
    }
    let table = TableRegister { base, limit, reserved: [0; 3] };
    if gdt {
        cpu.state.gdtr = table;
    } else {
        cpu.state.idtr = table;
    }
    Ok(Flow::Next)
}

/// LLDT, LTR, SLDT, STR.
fn system_selector(cpu: &mut Cpu, instruction: &Instruction) -> Outcome {
    require(!cpu.is_real_mode())?;
    let stored = match instruction.mnemonic() {
        Mnemonic::Sldt => Some(cpu.state.ldtr.selector),
        Mnemonic::Str => Some(cpu.state.tr.selector),
        _ => None,
    };
    if let Some(sel) = stored {
        if instruction.op0_kind() == OpKind::Memory {
            operand::span(cpu, instruction, 2, AccessKind::Write)?.store(cpu, sel.into())?;
        } else {
            operand::write_register(cpu, instruction.op0_register(), sel.into());
        }
        return Ok(Flow::Next);
    }
    require_kernel(cpu)?;
    let sel = if instruction.op0_kind() == OpKind::Memory {
        operand::span(cpu, instruction, 2, AccessKind::Read)?.load()
    } else {
        operand::read_register(cpu, instruction.op0_register())
    } as u16;
    if instruction.mnemonic() == Mnemonic::Lldt {
        segment::load_ldt(cpu, sel)?;
    } else {
        segment::load_task(cpu, sel)?;
    }
    Ok(Flow::Next)
}

/// SMSW and LMSW: the low word of CR0. LMSW can set PE but not clear it.
fn machine_status(cpu: &mut Cpu, instruction: &Instruction) -> Outcome {
    if instruction.mnemonic() == Mnemonic::Smsw {
        let value = cpu.state.cr0;
        if instruction.op0_kind() == OpKind::Memory {
            operand::span(cpu, instruction, 2, AccessKind::Write)?.store(cpu, value)?;
        } else {
            operand::write_register(cpu, instruction.op0_register(), value);
        }
        return Ok(Flow::Next);
    }
    require_kernel(cpu)?;
    const WRITABLE: u64 = cr0::PE | cr0::MP | cr0::EM | cr0::TS;
    let value = if instruction.op0_kind() == OpKind::Memory {
        operand::span(cpu, instruction, 2, AccessKind::Read)?.load()
    } else {
        operand::read_register(cpu, instruction.op0_register())
    };
    let old = cpu.state.cr0;
    write_cr0(cpu, old & !WRITABLE | value & WRITABLE | old & cr0::PE)?;
    Ok(stack::finish(cpu, instruction, Flow::Jump))
}

/// INVPCID (SDM vol. 2).
fn invalidate_pcid(cpu: &mut Cpu, instruction: &Instruction) -> Outcome {
    require_kernel(cpu)?;
    let kind = operand::read_register(cpu, instruction.op0_register());
    let va = operand::linear(cpu, instruction, 16, AccessKind::Read)?;
    let mut bytes = [0; 16];
    memory::read(cpu, va, &mut bytes)?;
    let descriptor = u128::from_le_bytes(bytes);
    let (low, address) = (descriptor as u64, (descriptor >> 64) as u64);
    let pcid = low & 0xfff;
    let pcids = cpu.state.cr4 & cr4::PCIDE != 0;
    let gp = Err(Fault::from(Exception::gp(0)));
    if kind > 3 || low >> 12 != 0 && kind < 2 || kind < 2 && !pcids && pcid != 0 {
        return gp;
    }
    if kind == 0 && !is_canonical(address) {
        return gp;
    }
    let current = !pcids || pcid == cpu.state.cr3 & 0xfff;
    match kind {
        0 => cpu.tlb.flush_space(pcid, current, Some(address)),
        1 => cpu.tlb.flush_space(pcid, current, None),
        2 => cpu.flush_tlb(),
        _ => cpu.tlb.flush_non_global(),
    }
    cpu.rights_changed();
    Ok(stack::finish(cpu, instruction, Flow::Jump))
}

/// XGETBV and XSETBV.
fn extended_control(cpu: &mut Cpu, instruction: &Instruction) -> Outcome {
    require(cpu.state.cr4 & cr4::OSXSAVE != 0)?;
    let index = cpu.state.gpr[gpr::RCX] as u32;
    if instruction.mnemonic() == Mnemonic::Xgetbv {
        // Index 1 (XINUSE) is a feature that CPUID does not offer.
        if index != 0 {
            return Err(Exception::gp(0).into());
        }
        let value = cpu.state.xcr0;
        write_edx_eax(cpu, value);
        return Ok(Flow::Next);
    }
    require_kernel(cpu)?;
    let value = edx_eax(cpu);
    // x87 is always on, and AVX needs SSE (SDM vol. 1 §13.3).
    if index != 0 || value & !cpuid::supported_xcr0() != 0 || value & 1 == 0 || value & 6 == 4 {
        return Err(Exception::gp(0).into());
    }
    cpu.state.xcr0 = value;
    Ok(stack::finish(cpu, instruction, Flow::Jump))
}
