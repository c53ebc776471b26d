//! The Rust parts of the thunks. Each gets the vCPU through the state's context word.

use iced_x86::{Decoder, DecoderOptions, Instruction, Register};

use super::classify::{Class, Unit, form};
use super::emit::{AccessInfo, Kind};
use super::thunks::answer;
use super::{PendingStore, RunExit, fpu, links, smc};
use crate::cpu::Cpu;
use crate::cpuid::{Vendor, vendor};
use std::sync::atomic::Ordering;

use crate::exception::{Event, Exception, Fault, deliver};
use crate::interp::{self, Flow};
use crate::memory::Span;
use crate::mmu::{Access, AccessKind};
use crate::registers::{cr0, cr4};
use crate::state::{IretCache, Rflags, seg};

/// The vCPU behind the context word.
///
/// # Safety
/// `context` must be the value that `run` stored for the vCPU whose translated code made the call.
unsafe fn cpu<'a>(context: u64) -> &'a mut Cpu {
    // SAFETY: `run` holds the exclusive reference that `context` was made from and does not use it before translated
    // code returns, so this is the only reference in use.
    unsafe { &mut *(context as *mut Cpu) }
}

/// Leaves translated code for `exit`.
fn leave(cpu: &mut Cpu, exit: RunExit) -> u32 {
    cpu.translator.exit = Some(exit);
    answer::EXIT
}

fn resume(cpu: &mut Cpu, code: Result<u64, RunExit>) -> u32 {
    match code {
        Ok(code) => {
            cpu.state.resume = code;
            answer::RESUME
        }
        Err(exit) => leave(cpu, exit),
    }
}

/// Delivers an exception without leaving translated code. What cannot be delivered is left to the run loop.
fn raise(cpu: &mut Cpu, exception: Exception, answer: u32) -> u32 {
    if cpu.translator.single || deliver(cpu, Event::Exception(exception)).is_err() {
        return leave(cpu, RunExit::Exception(exception));
    }
    smc::drain(cpu);
    if cpu.needs_stepping() || cpu.state.attention.load(Ordering::Relaxed) != 0 {
        return leave(cpu, RunExit::Attention);
    }
    if !cpu.is_64bit() {
        return leave(cpu, RunExit::Mode);
    }
    match resume_at_rip(cpu) {
        answer::RESUME => answer,
        other => other,
    }
}

/// Goes on at RIP.
fn resume_at_rip(cpu: &mut Cpu) -> u32 {
    cpu.publish_pending();
    let code = links::follow_indirect(cpu);
    resume(cpu, code)
}

/// A memory access that the inline look-up did not find: `va` and the packed [`AccessInfo`].
pub(super) unsafe extern "C" fn access(context: u64, va: u64, info: u64, caller: u64) -> u32 {
    // SAFETY: called by the access thunk with the context word.
    let cpu = unsafe { cpu(context) };
    let info = AccessInfo::unpack(info as u32);
    cpu.translator.note_call(caller);
    cpu.translator.counters.slow_accesses += 1;
    let size = usize::from(info.size);
    let kind = if info.kind == Kind::Read { AccessKind::Read } else { AccessKind::Write };
    let access = Access::current(cpu, kind);
    let crosses = (va & 0xfff) as usize + size > 4096;
    if !crosses {
        match cpu.lookup(va, access) {
            Ok(Some((host, gpa))) => {
                if kind == AccessKind::Read || !smc::hits_code(cpu, gpa, size) {
                    cpu.state.tmp[0] = host as u64;
                    return answer::CONTINUE;
                }
            }
            Ok(None) => {}
            Err(exception) => return fault(cpu, caller, va, info, Fault::Exception(exception)),
        }
    }
    if info.kind == Kind::Modify && is_locked(cpu, caller) {
        return step_instead(cpu, caller, info);
    }
    match bounce(cpu, va, info, access) {
        Ok(answer) => answer,
        Err(error) => fault(cpu, caller, va, info, error),
    }
}

/// Whether the instruction at a call site is a locked read-modify-write, which a bounce buffer would tear apart.
fn is_locked(cpu: &mut Cpu, caller: u64) -> bool {
    set_rip(cpu, caller);
    decode_at_rip(cpu).is_some_and(|instruction| {
        instruction.has_lock_prefix() || instruction.mnemonic() == iced_x86::Mnemonic::Xchg
    })
}

/// Leaves translated code before the instruction at a call site, and has the interpreter execute it.
fn step_instead(cpu: &mut Cpu, caller: u64, info: AccessInfo) -> u32 {
    take_flags(cpu, info);
    set_rip(cpu, caller);
    cpu.step_once = true;
    leave(cpu, RunExit::Attention)
}

/// Puts status flags and RAX back where a cold path found them.
fn take_flags(cpu: &mut Cpu, info: AccessInfo) {
    if info.flags_in_ax {
        let ax = cpu.state.gpr[0];
        set_flags_from_ax(cpu, ax);
        cpu.state.gpr[0] = cpu.state.tmp[2];
    } else if info.flags_in_slot {
        flags_from_slot(cpu);
    }
}

/// Status flags from where translated code parked them.
pub(super) fn flags_from_slot(cpu: &mut Cpu) {
    let slot = cpu.state.flags_slot;
    set_flags_from_ax(cpu, slot);
}

/// Fills the bounce buffer with the operand; a store is carried out by [`commit`] after the instruction.
fn bounce(cpu: &mut Cpu, va: u64, info: AccessInfo, access: Access) -> Result<u32, Fault> {
    let size = usize::from(info.size);
    // The same alignment as the guest's address, so that instructions that demand it fault all the same.
    let offset = (va & 63) as usize;
    let span = Span::new(cpu, va, size, access)?;
    let mut bytes = [0; 1024];
    span.read(&mut bytes[..size]);
    cpu.state.bounce.0[offset..offset + size].copy_from_slice(&bytes[..size]);
    cpu.state.tmp[0] = cpu.state.bounce.0[offset..].as_ptr() as u64;
    if info.kind == Kind::Read {
        return Ok(answer::CONTINUE);
    }
    cpu.translator.pending_store =
        Some(PendingStore { va, size, offset, transfers: info.transfers });
    Ok(answer::BOUNCE)
}

/// The instruction has written the bounce buffer: carry the store out.
pub(super) unsafe extern "C" fn commit(context: u64, _: u64, _: u64, caller: u64) -> u32 {
    // SAFETY: called by the commit thunk with the context word.
    let cpu = unsafe { cpu(context) };
    let Some(store) = cpu.translator.pending_store.take() else {
        return answer::CONTINUE;
    };
    let (rip, parked) = behind(cpu, caller);
    let access = Access::current(cpu, AccessKind::Write);
    let mut bytes = [0; 1024];
    bytes[..store.size]
        .copy_from_slice(&cpu.state.bounce.0[store.offset..store.offset + store.size]);
    let done = match Span::new(cpu, store.va, store.size, access) {
        Ok(span) => span.write(cpu, &bytes[..store.size]),
        Err(fault) => Err(fault),
    };
    let changed = smc::drain(cpu);
    if parked {
        // What the thunk took from the host's RFLAGS is not the guest's.
        flags_from_slot(cpu);
    }
    match done {
        Ok(()) if store.transfers || !changed => answer::CONTINUE,
        Ok(()) => {
            // The block itself may be what was written.
            cpu.state.rip = rip;
            resume_at_rip(cpu)
        }
        Err(Fault::BellClosed) => {
            cpu.state.rip = rip;
            leave(cpu, RunExit::BellClosed)
        }
        // The look-up succeeded just before the instruction; whatever changed since, the store was made by a CPU that
        // still had the old translation.
        Err(_) => answer::CONTINUE,
    }
}

/// RIP behind the instruction whose code made the call that returns to `caller`, and whether its flags are parked.
fn behind(cpu: &Cpu, caller: u64) -> (u64, bool) {
    let translator = &cpu.translator;
    match translator.cache.site((caller - translator.arena.base()) as u32 - 1) {
        Some(site) => {
            let block = &translator.cache.blocks[site.block];
            let va = block.va.wrapping_add(site.guest.into());
            (va.wrapping_add(site.length.into()), site.parked)
        }
        None => (cpu.state.rip, false),
    }
}

/// Leaves translated code because the instruction at the call site did not complete.
fn fault(cpu: &mut Cpu, caller: u64, va: u64, info: AccessInfo, fault: Fault) -> u32 {
    take_flags(cpu, info);
    let length = set_rip(cpu, caller);
    let exit = match fault {
        Fault::Exception(exception) => {
            let exception = precise_fault(cpu, exception, va, info);
            return raise(cpu, exception, answer::REDIRECT);
        }
        Fault::MemTrap { key, gpa } => RunExit::Exit(interp::mem_exit(cpu, key, gpa, length)),
        Fault::Exit(exit) => RunExit::Exit(exit),
        Fault::BellClosed => RunExit::BellClosed,
    };
    leave(cpu, exit)
}

/// Status flags from the form LAHF; SETO AL gives.
pub(super) fn set_flags_from_ax(cpu: &mut Cpu, ax: u64) {
    let status = ax >> 8 & 0xd5 | (ax & 1) << 11;
    let status_mask = Rflags::STATUS.bits();
    cpu.state.rflags = cpu.state.rflags & !status_mask | status;
}

/// Sets RIP to the instruction whose code made the call that returns to `caller`; gives its length.
pub(super) fn set_rip(cpu: &mut Cpu, caller: u64) -> u8 {
    let translator = &cpu.translator;
    let Some(site) = translator.cache.site((caller - translator.arena.base()) as u32 - 1) else {
        return 1;
    };
    let rip = translator.cache.blocks[site.block].va.wrapping_add(site.guest.into());
    cpu.state.rip = rip;
    site.length
}

/// What the look-up could not tell from the address alone: a non-canonical address through RSP or RBP is #SS instead of
/// #GP (SDM vol. 1 §3.3.7.1), and a misaligned operand that must be aligned is #GP before it is #PF (vol. 3 §6.9).
fn precise_fault(cpu: &mut Cpu, exception: Exception, va: u64, info: AccessInfo) -> Exception {
    let misaligned = info.size >= 16 && !va.is_multiple_of(info.size.into());
    if exception != Exception::gp(0) && !misaligned {
        return exception;
    }
    match decode_at_rip(cpu) {
        Some(instruction) if misaligned && demands_alignment(&instruction) => Exception::gp(0),
        Some(instruction) if exception == Exception::gp(0) && uses_stack_segment(&instruction) => {
            Exception::ss(0)
        }
        _ => exception,
    }
}

/// Legacy SSE operands of 16 bytes must be aligned but for a few loads; VEX ones need not but for a few moves.
pub(super) fn demands_alignment(instruction: &Instruction) -> bool {
    use iced_x86::{EncodingKind, Mnemonic as M};
    let mnemonic = instruction.mnemonic();
    if instruction.code().op_code().encoding() == EncodingKind::VEX {
        return matches!(
            mnemonic,
            M::Vmovaps
                | M::Vmovapd
                | M::Vmovdqa
                | M::Vmovntdq
                | M::Vmovntps
                | M::Vmovntpd
                | M::Vmovntdqa
        );
    }
    let unaligned = matches!(
        mnemonic,
        M::Movups
            | M::Movupd
            | M::Movdqu
            | M::Lddqu
            | M::Pcmpestri
            | M::Pcmpestri64
            | M::Pcmpestrm64
            | M::Pcmpestrm
            | M::Pcmpistri
            | M::Pcmpistrm
    );
    // AMD's processors take SHA operands anywhere, Intel's do not (SDM vol. 2, exception type 4).
    let hashes = matches!(
        mnemonic,
        M::Sha1rnds4
            | M::Sha1nexte
            | M::Sha1msg1
            | M::Sha1msg2
            | M::Sha256rnds2
            | M::Sha256msg1
            | M::Sha256msg2
    );
    if hashes && vendor() == Vendor::Amd {
        return false;
    }
    let vector = form(instruction.code()).unit == Unit::Sse;
    (vector && instruction.memory_size().size() == 16 && !unaligned) || mnemonic == M::Cmpxchg16b
}

fn uses_stack_segment(instruction: &Instruction) -> bool {
    if super::classify::memory_operand(instruction).is_some() {
        // PUSH and CALL through memory have two accesses; the operand's is checked first and is the likelier one.
        instruction.memory_segment() == Register::SS
    } else {
        instruction.is_stack_instruction()
    }
}

pub(super) fn decode_at_rip(cpu: &mut Cpu) -> Option<Instruction> {
    let mut bytes = [0; 15];
    let rip = cpu.state.rip;
    let len = crate::memory::fetch(cpu, rip, &mut bytes).ok()?;
    Some(Decoder::with_ip(64, &bytes[..len], rip, DecoderOptions::NONE).decode())
}

/// Executes instruction number `index` in Rust; bit 32 says that what follows must be looked up.
pub(super) unsafe extern "C" fn interpret(context: u64, _: u64, index: u64, caller: u64) -> u32 {
    // SAFETY: called by the interpret thunk with the context word.
    let cpu = unsafe { cpu(context) };
    cpu.translator.note_call(caller);
    cpu.translator.counters.interpreted += 1;
    let instruction = cpu.translator.cache.interpreted[index as u32];
    let ends = index >> 32 != 0;
    let single = cpu.translator.single;
    let next = instruction.next_ip();
    let outcome = execute(cpu, &instruction);
    let changed = smc::drain(cpu);
    if form(instruction.code()).class == Class::Iret && outcome.is_ok() {
        remember_return(cpu);
    }
    match outcome {
        Ok(Flow::Next | Flow::Jump) if single => leave(cpu, RunExit::Attention),
        Ok(flow @ (Flow::Next | Flow::Jump)) => {
            if cpu.state.attention.load(Ordering::Relaxed) != 0 {
                return leave(cpu, RunExit::Attention);
            }
            if cpu.needs_stepping() {
                return leave(cpu, RunExit::Attention);
            }
            if flow == Flow::Next && !ends && !changed && cpu.state.rip == next {
                cpu.publish_pending();
                return answer::CONTINUE;
            }
            if !cpu.is_64bit() {
                return leave(cpu, RunExit::Mode);
            }
            resume_at_rip(cpu)
        }
        Ok(Flow::Halt) => leave(cpu, RunExit::Halt),
        Ok(Flow::Exit(exit)) | Err(Fault::Exit(exit)) => leave(cpu, RunExit::Exit(exit)),
        Ok(Flow::Native) => leave(cpu, RunExit::Exception(Exception::ud())),
        Err(Fault::Exception(exception)) => raise(cpu, exception, answer::RESUME),
        Err(Fault::MemTrap { key, gpa }) => {
            let exit = interp::mem_exit(cpu, key, gpa, instruction.len() as u8);
            leave(cpu, RunExit::Exit(exit))
        }
        Err(Fault::BellClosed) => leave(cpu, RunExit::BellClosed),
    }
}

/// Notes the segments that IRETQ has just loaded for the inline form of it.
fn remember_return(cpu: &mut Cpu) {
    let state = &cpu.state;
    let (code, stack) = (state.segments[seg::CS], state.segments[seg::SS]);
    let selectors = [code.selector, stack.selector];
    // Null and LDT selectors are left to the interpreter, and so are privilege levels that nobody uses.
    let plain = selectors.iter().all(|sel| sel & !3 != 0 && sel & 4 == 0);
    if !plain || !cpu.is_64bit() || !matches!(cpu.cpl(), 0 | 3) {
        return;
    }
    let gdtr = state.gdtr;
    let addresses = selectors.map(|sel| gdtr.base.wrapping_add(u64::from(sel & !7)));
    let limit_and_attributes = |n: usize| {
        u64::from(state.segments[n].attributes) << 32 | u64::from(state.segments[n].limit)
    };
    let data = [seg::ES, seg::DS, seg::FS, seg::GS].map(limit_and_attributes);
    let read = |cpu: &mut Cpu, va| crate::memory::read_system(cpu, va, 8);
    let (Ok(first), Ok(second)) = (read(cpu, addresses[0]), read(cpu, addresses[1])) else {
        return;
    };
    let to_user = usize::from(cpu.cpl() == 3);
    cpu.state.iret[to_user] = IretCache {
        selectors: selectors.map(u64::from),
        addresses,
        descriptors: [first, second],
        segments: [code, stack],
        gdtr: [gdtr.base, gdtr.limit.into()],
        data,
    };
}

fn execute(cpu: &mut Cpu, instruction: &Instruction) -> Result<Flow, Fault> {
    let form = form(instruction.code());
    check_unit(cpu, form.unit)?;
    match form.class {
        Class::FpState | Class::Element => {
            match form.class {
                Class::FpState => fpu::execute(cpu, instruction)?,
                _ => fpu::element(cpu, instruction)?,
            }
            cpu.state.rip = instruction.next_ip();
            Ok(Flow::Next)
        }
        _ => interp::execute(cpu, instruction),
    }
}

/// #NM and #UD by CR0, CR4 and XCR0 (SDM vol. 3 §2.5, §13.1).
pub(super) fn check_unit(cpu: &Cpu, unit: Unit) -> Result<(), Exception> {
    let state = &cpu.state;
    let (emulate, switched) = (state.cr0 & cr0::EM != 0, state.cr0 & cr0::TS != 0);
    match unit {
        Unit::Integer => Ok(()),
        Unit::X87 if emulate || switched => Err(Exception::nm()),
        Unit::X87 => Ok(()),
        Unit::Mmx | Unit::Sse if emulate => Err(Exception::ud()),
        Unit::Sse if state.cr4 & cr4::OSFXSR == 0 => Err(Exception::ud()),
        Unit::Avx if state.cr4 & cr4::OSXSAVE == 0 || state.xcr0 & 6 != 6 => Err(Exception::ud()),
        _ if switched => Err(Exception::nm()),
        _ => Ok(()),
    }
}

/// A direct link that is not linked, or whose page check failed.
pub(super) unsafe extern "C" fn link(context: u64, _: u64, link: u64, _: u64) -> u32 {
    // SAFETY: called by the link thunk with the context word.
    let cpu = unsafe { cpu(context) };
    cpu.translator.counters.links += 1;
    let l = &cpu.translator.cache.links[link as u32];
    let (target, slot) = (l.target, l.slot);
    cpu.state.rip = target;
    if slot {
        flags_from_slot(cpu);
    }
    let code = links::follow(cpu, link as u32);
    resume(cpu, code)
}

/// An indirect transfer to `va` that the jump table did not answer.
pub(super) unsafe extern "C" fn indirect(context: u64, va: u64, _: u64, _: u64) -> u32 {
    // SAFETY: called by the indirect thunk with the context word.
    let cpu = unsafe { cpu(context) };
    cpu.translator.counters.indirect += 1;
    cpu.state.rip = va;
    flags_from_slot(cpu);
    let code = links::follow_indirect(cpu);
    resume(cpu, code)
}
