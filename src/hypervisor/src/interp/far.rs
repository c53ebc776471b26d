//! Everything that loads a segment register by a far transfer, and IRET (SDM vol. 3 §5.8, §6.12, §6.14).

use super::operand::{self, mask};
use super::{Flow, Outcome, stack};
use crate::cpu::Cpu;
use crate::exception::{Exception, Fault};
use crate::memory;
use crate::mmu::{AccessKind, is_canonical};
use crate::registers::{rflags, selector};
use crate::segment::{self, Descriptor};
use crate::state::{Segment, gpr, seg};
use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};

/// Whether a MOV has a segment register on either side.
pub(super) fn is_segment_move(instruction: &Instruction) -> bool {
    [0, 1].into_iter().any(|index| {
        instruction.op_kind(index) == OpKind::Register
            && instruction.op_register(index).is_segment_register()
    })
}

/// MOV to and from a segment register.
pub(super) fn move_segment(cpu: &mut Cpu, instruction: &Instruction) -> Outcome {
    let to_segment = instruction.op0_kind() == OpKind::Register
        && instruction.op0_register().is_segment_register();
    if !to_segment {
        // The memory form is always 16 bits wide; a wider register is zero-extended.
        let value = operand::read_register(cpu, instruction.op1_register());
        if instruction.op0_kind() == OpKind::Memory {
            operand::span(cpu, instruction, 2, AccessKind::Write)?.store(cpu, value)?;
        } else {
            operand::write_register(cpu, instruction.op0_register(), value);
        }
        return Ok(Flow::Next);
    }
    let register = instruction.op0_register();
    if register == Register::CS {
        return Err(Exception::ud().into());
    }
    let value = if instruction.op1_kind() == OpKind::Memory {
        operand::span(cpu, instruction, 2, AccessKind::Read)?.load()
    } else {
        operand::read_register(cpu, instruction.op1_register())
    };
    let index = operand::segment_index(register);
    segment::load_data(cpu, index, value as u16)?;
    if index == seg::SS {
        cpu.interrupt_shadow = Some(cpu.wrap_ip(instruction.next_ip()));
    }
    Ok(stack::finish(cpu, instruction, Flow::Jump))
}

/// LDS, LES, LFS, LGS, LSS.
pub(super) fn load_pointer(cpu: &mut Cpu, instruction: &Instruction) -> Outcome {
    let size = instruction.op0_register().size();
    let va = operand::linear(cpu, instruction, size + 2, AccessKind::Read)?;
    let offset = memory::load(cpu, va, size)?;
    let sel = memory::load(cpu, cpu.wrap_linear(va.wrapping_add(size as u64)), 2)? as u16;
    let index = match instruction.mnemonic() {
        Mnemonic::Lds => seg::DS,
        Mnemonic::Les => seg::ES,
        Mnemonic::Lfs => seg::FS,
        Mnemonic::Lgs => seg::GS,
        _ => seg::SS,
    };
    segment::load_data(cpu, index, sel)?;
    operand::write_register(cpu, instruction.op0_register(), offset);
    Ok(stack::finish(cpu, instruction, Flow::Jump))
}

/// The selector and offset of a far JMP or CALL, and the operand size in bytes.
fn far_target(cpu: &mut Cpu, instruction: &Instruction) -> Result<(u16, u64, usize), Fault> {
    Ok(match instruction.op0_kind() {
        OpKind::FarBranch16 => {
            (instruction.far_branch_selector(), instruction.far_branch16().into(), 2)
        }
        OpKind::FarBranch32 => {
            (instruction.far_branch_selector(), instruction.far_branch32().into(), 4)
        }
        _ => {
            let size = instruction.memory_size().size() - 2;
            let va = operand::linear(cpu, instruction, size + 2, AccessKind::Read)?;
            let offset = memory::load(cpu, va, size)?;
            let sel = memory::load(cpu, cpu.wrap_linear(va.wrapping_add(size as u64)), 2)?;
            (sel as u16, offset, size)
        }
    })
}

/// Far JMP and CALL.
pub(super) fn branch(cpu: &mut Cpu, instruction: &Instruction) -> Outcome {
    let (sel, offset, size) = far_target(cpu, instruction)?;
    let call = instruction.mnemonic() == Mnemonic::Call;
    let return_ip = cpu.wrap_ip(instruction.next_ip());
    if cpu.is_real_mode() {
        if segment::check_limit(&cpu.state.segments[seg::CS], offset, 1).is_err() {
            return Err(Exception::gp(0).into());
        }
        if call {
            let old = cpu.state.segments[seg::CS].selector;
            stack::push_all(cpu, &[old.into(), return_ip], size)?;
        }
        let code = &mut cpu.state.segments[seg::CS];
        code.selector = sel;
        code.base = u64::from(sel) << 4;
        cpu.state.rip = offset;
        return Ok(Flow::Jump);
    }
    if sel & !selector::RPL == 0 {
        return Err(Exception::gp(0).into());
    }
    let descriptor = Descriptor::read(cpu, sel, Exception::gp)?;
    if descriptor.is_system() {
        return through_gate(cpu, instruction, &descriptor, sel);
    }
    let cpl = cpu.cpl();
    let code = checked_code(cpu, &descriptor, sel, cpl)?;
    check_offset(cpu, &code, offset)?;
    if call {
        let old = cpu.state.segments[seg::CS].selector;
        stack::push_all(cpu, &[old.into(), return_ip], size)?;
    }
    cpu.state.segments[seg::CS] = code;
    cpu.state.rip = offset;
    Ok(Flow::Jump)
}

/// Checks a code segment for a direct transfer at the current privilege level.
fn checked_code(
    cpu: &mut Cpu,
    descriptor: &Descriptor,
    sel: u16,
    cpl: u8,
) -> Result<Segment, Exception> {
    let error = u32::from(sel & !selector::RPL);
    let rpl = (sel & selector::RPL) as u8;
    let dpl = descriptor.dpl();
    let privileged = if descriptor.is_conforming() { dpl > cpl } else { rpl > cpl || dpl != cpl };
    if !descriptor.is_code() || privileged {
        return Err(Exception::gp(error));
    }
    if !descriptor.is_present() {
        return Err(Exception::np(error));
    }
    let code = descriptor.segment(sel & !selector::RPL | u16::from(cpl));
    if cpu.is_long_mode() && code.is_long() && code.is_default_32() {
        return Err(Exception::gp(error));
    }
    descriptor.set_accessed(cpu)?;
    Ok(code)
}

/// Checks an offset against the code segment it will run in.
fn check_offset(cpu: &Cpu, code: &Segment, offset: u64) -> Result<(), Exception> {
    let ok = if cpu.is_long_mode() && code.is_long() {
        is_canonical(offset)
    } else {
        offset <= code.limit.into()
    };
    if ok { Ok(()) } else { Err(Exception::gp(0)) }
}

/// A far transfer through a call gate (SDM vol. 3 §5.8.3 to §5.8.5). Task gates and task-state segments are not offered:
/// they are #GP(selector), as every descriptor of a type that may not be called.
fn through_gate(cpu: &mut Cpu, instruction: &Instruction, gate: &Descriptor, sel: u16) -> Outcome {
    let error = u32::from(sel & !selector::RPL);
    let long = cpu.is_long_mode();
    let (size, known) = match gate.system_type() {
        0xc if long => (8, true),
        0xc => (4, true),
        0x4 if !long => (2, true),
        _ => (0, false),
    };
    let cpl = cpu.cpl();
    if !known || gate.dpl() < cpl.max((sel & selector::RPL) as u8) {
        return Err(Exception::gp(error).into());
    }
    if !gate.is_present() {
        return Err(Exception::np(error).into());
    }
    let (code_sel, low, parameters) = gate.gate();
    let offset = match size {
        8 => low | gate.read_high(cpu)? << 32,
        4 => low,
        _ => low & 0xffff,
    };
    if code_sel & !selector::RPL == 0 {
        return Err(Exception::gp(0).into());
    }
    let code_error = u32::from(code_sel & !selector::RPL);
    let descriptor = Descriptor::read(cpu, code_sel, Exception::gp)?;
    let dpl = descriptor.dpl();
    let call = instruction.mnemonic() == Mnemonic::Call;
    let allowed = dpl <= cpl && (call || descriptor.is_conforming() || dpl == cpl);
    let probe = descriptor.segment(0);
    if !descriptor.is_code() || !allowed || long && (!probe.is_long() || probe.is_default_32()) {
        return Err(Exception::gp(code_error).into());
    }
    if !descriptor.is_present() {
        return Err(Exception::np(code_error).into());
    }
    let inner = call && !descriptor.is_conforming() && dpl < cpl;
    let new_cpl = if inner { dpl } else { cpl };
    let code = descriptor.segment(code_sel & !selector::RPL | u16::from(new_cpl));
    check_offset(cpu, &code, offset)?;
    descriptor.set_accessed(cpu)?;
    if call {
        let return_ip = cpu.wrap_ip(instruction.next_ip());
        let old_code = u64::from(cpu.state.segments[seg::CS].selector);
        if inner {
            call_inner(cpu, dpl, size, parameters, [old_code, return_ip])?;
        } else {
            stack::push_all(cpu, &[old_code, return_ip], size)?;
        }
    }
    cpu.state.segments[seg::CS] = code;
    cpu.state.rip = offset;
    cpu.set_cpl(new_cpl);
    Ok(Flow::Jump)
}

/// Switches to the inner stack of a call gate and builds its frame.
fn call_inner(
    cpu: &mut Cpu,
    cpl: u8,
    size: usize,
    parameters: u8,
    frame: [u64; 2],
) -> Result<(), Fault> {
    let old_stack = cpu.state.segments[seg::SS];
    let old_rsp = cpu.state.gpr[gpr::RSP];
    let (new_stack, new_rsp) = if cpu.is_long_mode() {
        let task = cpu.state.tr;
        let offset = 4 + u64::from(cpl) * 8;
        if offset + 7 > task.limit.into() {
            return Err(Exception::ts(u32::from(task.selector & !selector::RPL)).into());
        }
        (Segment::null_stack(cpl), memory::read_system(cpu, task.base.wrapping_add(offset), 8)?)
    } else {
        segment::legacy_tss_stack(cpu, cpl, 0)?
    };
    let mut words = vec![old_stack.selector.into(), old_rsp & mask(size)];
    if !cpu.is_long_mode() {
        for index in (0..u64::from(parameters)).rev() {
            words.push(stack::peek(cpu, index * size as u64, size)?.0);
        }
    }
    words.extend(frame);
    let old_cpl = cpu.cpl();
    cpu.state.segments[seg::SS] = new_stack;
    cpu.state.gpr[gpr::RSP] = new_rsp;
    cpu.set_cpl(cpl);
    if let Err(fault) = stack::push_all(cpu, &words, size) {
        cpu.state.segments[seg::SS] = old_stack;
        cpu.state.gpr[gpr::RSP] = old_rsp;
        cpu.set_cpl(old_cpl);
        return Err(fault);
    }
    Ok(())
}

/// Operand size in bytes of RETF and IRET.
fn return_size(instruction: &Instruction) -> usize {
    match instruction.code() {
        Code::Retfw | Code::Retfw_imm16 | Code::Iretw => 2,
        Code::Retfd | Code::Retfd_imm16 | Code::Iretd => 4,
        _ => 8,
    }
}

/// What a far return or IRET pops and leaves.
struct Return {
    ip: u64,
    code_selector: u16,
    /// Stack pointer after the popped words, at the same privilege level.
    rsp: u64,
    /// Bytes that RETF's immediate releases on either stack.
    released: u64,
    /// Distance from the stack pointer to the outer stack's pointer.
    outer_depth: u64,
    /// IRET in 64-bit mode: the outer stack is popped whatever the privilege level.
    always_pops_stack: bool,
}

/// RETF.
pub(super) fn ret(cpu: &mut Cpu, instruction: &Instruction) -> Outcome {
    let size = return_size(instruction);
    let released =
        if instruction.op_count() == 1 { u64::from(instruction.immediate16()) } else { 0 };
    let (ip, _) = stack::peek(cpu, 0, size)?;
    let (code, rsp) = stack::peek(cpu, size as u64, size)?;
    if cpu.is_real_mode() {
        real_transfer(cpu, code as u16, ip)?;
        stack::set_pointer(cpu, rsp);
        stack::release(cpu, released);
        return Ok(Flow::Jump);
    }
    let plan = Return {
        ip,
        code_selector: code as u16,
        rsp,
        released,
        outer_depth: 2 * size as u64 + released,
        always_pops_stack: false,
    };
    return_to(cpu, &plan, size)?;
    Ok(Flow::Jump)
}

fn real_transfer(cpu: &mut Cpu, sel: u16, ip: u64) -> Result<(), Exception> {
    if segment::check_limit(&cpu.state.segments[seg::CS], ip, 1).is_err() {
        return Err(Exception::gp(0));
    }
    let code = &mut cpu.state.segments[seg::CS];
    code.selector = sel;
    code.base = u64::from(sel) << 4;
    cpu.state.rip = ip;
    Ok(())
}

/// IRET, IRETD, IRETQ. A return to virtual-8086 mode, which CPUID does not offer, is #GP(0); a nested task as well.
pub(super) fn interrupt_return(cpu: &mut Cpu, instruction: &Instruction) -> Outcome {
    let size = return_size(instruction);
    let step = size as u64;
    if !cpu.is_real_mode() && cpu.state.rflags & rflags::NT != 0 {
        return Err(Exception::gp(0).into());
    }
    let (ip, _) = stack::peek(cpu, 0, size)?;
    let (code, _) = stack::peek(cpu, step, size)?;
    let (flags, rsp) = stack::peek(cpu, 2 * step, size)?;
    let mut mask = stack::writable_flags(cpu, size);
    // RF suppresses an instruction breakpoint once and does nothing else; translated code would never clear it.
    if size > 2 && cpu.state.dr[7] & 0xff != 0 {
        mask |= rflags::RF;
    }
    if cpu.is_real_mode() {
        real_transfer(cpu, code as u16, ip)?;
        stack::set_pointer(cpu, rsp);
    } else {
        if !cpu.is_long_mode() && flags & rflags::VM != 0 && cpu.cpl() == 0 {
            return Err(Exception::gp(0).into());
        }
        let plan = Return {
            ip,
            code_selector: code as u16,
            rsp,
            released: 0,
            outer_depth: 3 * step,
            always_pops_stack: cpu.is_64bit(),
        };
        return_to(cpu, &plan, size)?;
    }
    cpu.nmi_blocked = false;
    stack::set_flags(cpu, flags, mask);
    cpu.interrupt_window_changed();
    Ok(Flow::Jump)
}

/// The common part of RETF and IRET outside real mode: checks everything, then transfers.
fn return_to(cpu: &mut Cpu, plan: &Return, size: usize) -> Result<(), Fault> {
    let sel = plan.code_selector;
    if sel & !selector::RPL == 0 {
        return Err(Exception::gp(0).into());
    }
    let error = u32::from(sel & !selector::RPL);
    let descriptor = Descriptor::read(cpu, sel, Exception::gp)?;
    let rpl = (sel & selector::RPL) as u8;
    let cpl = cpu.cpl();
    let dpl = descriptor.dpl();
    let privileged = if descriptor.is_conforming() { dpl > rpl } else { dpl != rpl };
    if !descriptor.is_code() || rpl < cpl || privileged {
        return Err(Exception::gp(error).into());
    }
    if !descriptor.is_present() {
        return Err(Exception::np(error).into());
    }
    let code = descriptor.segment(sel);
    if cpu.is_long_mode() && code.is_long() && code.is_default_32() {
        return Err(Exception::gp(error).into());
    }
    check_offset(cpu, &code, plan.ip)?;
    let outer = rpl > cpl;
    let new_stack = if outer || plan.always_pops_stack {
        let step = size as u64;
        let (rsp, _) = stack::peek(cpu, plan.outer_depth, size)?;
        let (stack_sel, _) = stack::peek(cpu, plan.outer_depth + step, size)?;
        let stack_sel = stack_sel as u16;
        Some((rsp, return_stack(cpu, stack_sel, rpl, &code)?))
    } else {
        None
    };
    descriptor.set_accessed(cpu)?;
    cpu.state.segments[seg::CS] = code;
    cpu.state.rip = plan.ip;
    match new_stack {
        Some((rsp, segment)) => {
            cpu.state.segments[seg::SS] = segment;
            let wide = code.is_long() && cpu.is_long_mode();
            let width = if wide {
                8
            } else if segment.is_default_32() {
                4
            } else {
                2
            };
            let old = cpu.state.gpr[gpr::RSP];
            let pointer = rsp.wrapping_add(plan.released);
            cpu.state.gpr[gpr::RSP] = match width {
                8 => pointer,
                4 => pointer & mask(4),
                // A 16-bit stack keeps the upper half of a wider popped pointer, as processors do.
                _ => old & !0xffff | pointer & 0xffff,
            };
        }
        None => {
            stack::set_pointer(cpu, plan.rsp);
            stack::release(cpu, plan.released);
        }
    }
    if outer {
        drop_inner_segments(cpu, rpl);
    }
    cpu.set_cpl(rpl);
    Ok(())
}

/// Loads SS for a return to privilege level `rpl`: null is allowed only to 64-bit code outside ring 3.
fn return_stack(cpu: &mut Cpu, sel: u16, rpl: u8, code: &Segment) -> Result<Segment, Exception> {
    if sel & !selector::RPL == 0 {
        let allowed =
            cpu.is_long_mode() && code.is_long() && rpl != 3 && (sel & selector::RPL) as u8 == rpl;
        if !allowed {
            return Err(Exception::gp(0));
        }
        return Ok(Segment { selector: sel, ..Segment::null_stack(rpl) });
    }
    segment::stack_segment(cpu, sel, rpl, Exception::gp, 0)
}

/// On a return to an outer level, data segments that it may not use become null (SDM vol. 2, RET).
fn drop_inner_segments(cpu: &mut Cpu, cpl: u8) {
    for index in [seg::ES, seg::DS, seg::FS, seg::GS] {
        let segment = &mut cpu.state.segments[index];
        let conforming = segment.is_code() && segment.attributes & 4 != 0;
        if !segment.is_unusable() && !conforming && segment.dpl() < cpl {
            *segment = Segment::null(0);
        }
    }
}

/// LAR, LSL, VERR, VERW, ARPL.
pub(super) fn examine(cpu: &mut Cpu, instruction: &Instruction) -> Outcome {
    if cpu.is_real_mode() {
        return Err(Exception::ud().into());
    }
    let mnemonic = instruction.mnemonic();
    if mnemonic == Mnemonic::Arpl {
        return adjust_rpl(cpu, instruction);
    }
    let source = if matches!(mnemonic, Mnemonic::Verr | Mnemonic::Verw) { 0 } else { 1 };
    let sel = if instruction.op_kind(source) == OpKind::Memory {
        operand::span(cpu, instruction, 2, AccessKind::Read)?.load()
    } else {
        operand::read_register(cpu, instruction.op_register(source))
    } as u16;
    let result = examine_selector(cpu, sel, mnemonic)?;
    match result {
        Some(value) => {
            cpu.state.rflags |= rflags::ZF;
            if source == 1 {
                operand::write_register(cpu, instruction.op0_register(), value.into());
            }
        }
        None => cpu.state.rflags &= !rflags::ZF,
    }
    Ok(Flow::Next)
}

/// What LAR or LSL load, or 0 for a successful VERR or VERW; `None` when the selector fails the instruction's checks.
fn examine_selector(cpu: &mut Cpu, sel: u16, mnemonic: Mnemonic) -> Result<Option<u32>, Exception> {
    if sel & !selector::RPL == 0 {
        return Ok(None);
    }
    // A selector beyond its table clears ZF; a page fault in the table is a fault.
    let descriptor = match Descriptor::read(cpu, sel, Exception::gp) {
        Ok(descriptor) => descriptor,
        Err(exception) if exception.vector == crate::exception::vector::GP => return Ok(None),
        Err(exception) => return Err(exception),
    };
    let privilege = cpu.cpl().max((sel & selector::RPL) as u8);
    let visible = descriptor.is_conforming() || descriptor.dpl() >= privilege;
    let long = cpu.is_long_mode();
    let kind = descriptor.system_type();
    let segment = descriptor.segment(sel);
    Ok(match mnemonic {
        Mnemonic::Verr => (visible && descriptor.is_readable()).then_some(0),
        Mnemonic::Verw => (visible && descriptor.is_writable_data()).then_some(0),
        Mnemonic::Lar => {
            let valid = !descriptor.is_system()
                || if long {
                    matches!(kind, 2 | 9 | 0xb | 0xc)
                } else {
                    matches!(kind, 1..=5 | 9 | 0xb | 0xc)
                };
            (visible && valid).then_some(descriptor.access_rights())
        }
        _ => {
            let valid = !descriptor.is_system()
                || if long { matches!(kind, 2 | 9 | 0xb) } else { matches!(kind, 1..=3 | 9 | 0xb) };
            (visible && valid).then_some(segment.limit)
        }
    })
}

fn adjust_rpl(cpu: &mut Cpu, instruction: &Instruction) -> Outcome {
    let source = operand::read_register(cpu, instruction.op1_register()) as u16;
    let place = operand::place(cpu, instruction, 0, AccessKind::Write)?;
    let old = place.load(cpu) as u16;
    if old & selector::RPL < source & selector::RPL {
        cpu.state.rflags |= rflags::ZF;
        place.store(cpu, u64::from(old & !selector::RPL | source & selector::RPL))?;
    } else {
        cpu.state.rflags &= !rflags::ZF;
    }
    Ok(Flow::Next)
}
