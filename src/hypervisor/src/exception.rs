//! Exceptions and interrupts: what they are and how they are delivered through the IDT (SDM vol. 3 §6).

use crate::cpu::Cpu;
use crate::exit::Exit;
use crate::memory;
use crate::mmu::{Access, AccessKind, is_canonical};
use crate::registers::{cr0, dr7, rflags, selector};
use crate::segment::{self, Descriptor};
use crate::state::{Segment, gpr, seg};

/// Exception vectors (SDM vol. 3 table 6-1).
pub(crate) mod vector {
    /// Divide error.
    pub(crate) const DE: u8 = 0;
    /// Debug.
    pub(crate) const DB: u8 = 1;
    /// Non-maskable interrupt.
    pub(crate) const NMI: u8 = 2;
    /// Breakpoint.
    pub(crate) const BP: u8 = 3;
    /// Overflow.
    pub(crate) const OF: u8 = 4;
    /// BOUND range exceeded.
    pub(crate) const BR: u8 = 5;
    /// Invalid opcode.
    pub(crate) const UD: u8 = 6;
    /// Device not available.
    pub(crate) const NM: u8 = 7;
    /// Double fault.
    pub(crate) const DF: u8 = 8;
    /// Invalid TSS.
    pub(crate) const TS: u8 = 10;
    /// Segment not present.
    pub(crate) const NP: u8 = 11;
    /// Stack-segment fault.
    pub(crate) const SS: u8 = 12;
    /// General protection.
    pub(crate) const GP: u8 = 13;
    /// Page fault.
    pub(crate) const PF: u8 = 14;
    /// x87 floating-point error.
    pub(crate) const MF: u8 = 16;
    /// SIMD floating-point exception.
    pub(crate) const XM: u8 = 19;
}

/// A processor exception, not yet delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Exception {
    /// Vector, 0 to 31.
    pub(crate) vector: u8,
    /// Error code, for the vectors that have one.
    pub(crate) error_code: Option<u32>,
    /// Faulting linear address of a page fault; the bits to set in DR6 of a debug exception.
    pub(crate) payload: u64,
    /// A trap: RIP already points past the instruction, and RF is not set in the pushed flags.
    pub(crate) is_trap: bool,
}

macro_rules! exceptions {
    ($($(#[$doc:meta])* $name:ident = $vector:ident;)*) => {
        $($(#[$doc])* pub(crate) fn $name() -> Exception { Exception::new(vector::$vector, None) })*
    };
}

macro_rules! exceptions_with_code {
    ($($(#[$doc:meta])* $name:ident = $vector:ident;)*) => {
        $($(#[$doc])* pub(crate) fn $name(code: u32) -> Exception { Exception::new(vector::$vector, Some(code)) })*
    };
}

impl Exception {
    fn new(vector: u8, error_code: Option<u32>) -> Exception {
        Exception { vector, error_code, payload: 0, is_trap: false }
    }

    exceptions! {
        /// #DE.
        de = DE;
        /// #BR.
        br = BR;
        /// #UD.
        ud = UD;
        /// #NM.
        nm = NM;
        /// #MF.
        mf = MF;
        /// #XM.
        xm = XM;
    }

    exceptions_with_code! {
        /// #DF; the code is always 0.
        df = DF;
        /// #TS(selector).
        ts = TS;
        /// #NP(selector).
        np = NP;
        /// #SS(selector).
        ss = SS;
        /// #GP(selector).
        gp = GP;
    }

    /// #PF at a linear address. CR2 is written on delivery.
    pub(crate) fn page_fault(address: u64, code: u32) -> Exception {
        Exception { payload: address, ..Exception::new(vector::PF, Some(code)) }
    }

    /// #DB that sets `cause` in DR6. Single-step and data breakpoints are traps; instruction breakpoints and
    /// general detect are faults.
    pub(crate) fn db(cause: u64, is_trap: bool) -> Exception {
        Exception { payload: cause, is_trap, ..Exception::new(vector::DB, None) }
    }

    fn class(self) -> Class {
        match self.vector {
            vector::DE | vector::TS | vector::NP | vector::SS | vector::GP => Class::Contributory,
            vector::PF => Class::PageFault,
            vector::DF => Class::DoubleFault,
            _ => Class::Benign,
        }
    }
}

/// Why an instruction did not complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The guest gets an exception. Nothing of the instruction took effect that may not be repeated.
    Exception(Exception),
    /// A data access hit a MEM trap. RIP still points at the instruction.
    MemTrap {
        /// Key of the trap.
        key: u64,
        /// Guest-physical address of the access.
        gpa: u64,
    },
    /// The vCPU leaves the guest; RIP already points past the instruction.
    Exit(Exit),
    /// The guest rang a bell whose receiver is gone.
    BellClosed,
}

impl From<Exception> for Fault {
    fn from(exception: Exception) -> Fault {
        Fault::Exception(exception)
    }
}

/// The vCPU is in the shutdown state (a triple fault).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shutdown;

/// Classes that decide what a second exception during delivery becomes (SDM vol. 3 table 6-4).
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Benign,
    Contributory,
    PageFault,
    DoubleFault,
}

/// Something to deliver through the IDT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// A fault or trap of the current instruction.
    Exception(Exception),
    /// INT n, INT3, INTO: checked against the gate's DPL. RIP of the next instruction is pushed.
    Software {
        /// Vector of the instruction.
        vector: u8,
        /// Length of the instruction.
        length: u8,
    },
    /// INT1: like an interrupt from hardware with vector 1.
    PrivilegedSoftware {
        /// Length of the instruction.
        length: u8,
    },
    /// A maskable interrupt.
    External(u8),
    /// The non-maskable interrupt.
    Nmi,
}

/// What a delivery pushes and checks, whatever the event was.
struct Frame {
    vector: u8,
    error_code: Option<u32>,
    software: bool,
    /// EXT bit of error codes of exceptions met on the way.
    external: u32,
    rip: u64,
    flags: u64,
}

/// Delivers an event. Exceptions on the way are delivered in its place, combined to #DF as table 6-5 of SDM vol. 3
/// says; a fault in #DF is the shutdown state. The machine state changes only when a delivery succeeds.
pub(crate) fn deliver(cpu: &mut Cpu, event: Event) -> Result<(), Shutdown> {
    let mut event = event;
    loop {
        let first = match event {
            Event::Exception(exception) => {
                note_cause(cpu, exception);
                exception.class()
            }
            _ => Class::Benign,
        };
        let Err(second) = try_deliver(cpu, event) else {
            cpu.stats.exceptions += u64::from(matches!(event, Event::Exception(_)));
            return Ok(());
        };
        let escalates = matches!(
            (first, second.class()),
            (Class::Contributory, Class::Contributory)
                | (Class::PageFault, Class::Contributory | Class::PageFault)
        );
        if first == Class::DoubleFault && second.class() != Class::Benign {
            return Err(Shutdown);
        }
        event = Event::Exception(if escalates { Exception::df(0) } else { second });
    }
}

/// CR2 and DR6 tell the cause of an exception from the moment it is raised.
fn note_cause(cpu: &mut Cpu, exception: Exception) {
    match exception.vector {
        vector::PF => cpu.state.cr2 = exception.payload,
        vector::DB => {
            cpu.state.dr[6] = cpu.state.dr[6] & !0xf | exception.payload;
            cpu.state.dr[7] &= !dr7::GD;
        }
        _ => {}
    }
}

fn try_deliver(cpu: &mut Cpu, event: Event) -> Result<(), Exception> {
    let state = &cpu.state;
    let flags = state.rflags;
    let rip = state.rip;
    let frame = match event {
        Event::Exception(exception) => {
            // SDM vol. 3 §6.8.3: fault-class exceptions push RF set, so that the restarted instruction does not
            // meet its instruction breakpoint again. #DB faults set it too on current processors.
            let restarts = !exception.is_trap && exception.vector != vector::DF;
            let flags = if restarts { flags | rflags::RF } else { flags };
            Frame {
                vector: exception.vector,
                error_code: exception.error_code,
                software: false,
                external: 1,
                rip,
                flags,
            }
        }
        Event::Software { vector, length } => Frame {
            vector,
            error_code: None,
            software: true,
            external: 0,
            rip: rip.wrapping_add(length.into()),
            flags,
        },
        Event::PrivilegedSoftware { length } => Frame {
            vector: vector::DB,
            error_code: None,
            software: false,
            external: 1,
            rip: rip.wrapping_add(length.into()),
            flags,
        },
        Event::External(vector) => {
            Frame { vector, error_code: None, software: false, external: 1, rip, flags }
        }
        Event::Nmi => Frame {
            vector: vector::NMI,
            error_code: None,
            software: false,
            external: 1,
            rip,
            flags,
        },
    };
    if cpu.state.cr0 & cr0::PE == 0 {
        deliver_real(cpu, &frame)?;
    } else if cpu.is_long_mode() {
        deliver_long(cpu, &frame)?;
    } else {
        deliver_protected(cpu, &frame)?;
    }
    if event == Event::Nmi {
        cpu.nmi_blocked = true;
    }
    cpu.interrupt_shadow = None;
    Ok(())
}

/// Real mode: the interrupt vector table of far pointers (SDM vol. 3 §20.1.4).
fn deliver_real(cpu: &mut Cpu, frame: &Frame) -> Result<(), Exception> {
    let offset = u64::from(frame.vector) * 4;
    if offset + 3 > cpu.state.idtr.limit.into() {
        return Err(Exception::gp(0));
    }
    let entry = memory::read_system(cpu, cpu.state.idtr.base.wrapping_add(offset), 4)? as u32;
    let mut stack = StackWriter::on(
        cpu.state.segments[seg::SS],
        cpu.state.gpr[gpr::RSP],
        Access::system(cpu, AccessKind::Write),
    );
    stack.push(cpu, frame.flags & 0xffff, 2)?;
    stack.push(cpu, cpu.state.segments[seg::CS].selector.into(), 2)?;
    stack.push(cpu, frame.rip & 0xffff, 2)?;
    cpu.state.gpr[gpr::RSP] = stack.merged(cpu.state.gpr[gpr::RSP]);
    let code = &mut cpu.state.segments[seg::CS];
    code.selector = (entry >> 16) as u16;
    code.base = u64::from(entry >> 16) << 4;
    cpu.state.rip = u64::from(entry & 0xffff);
    cpu.state.rflags &= !(rflags::IF | rflags::TF | rflags::AC | rflags::RF);
    Ok(())
}

/// IA-32e mode: 16-byte gates, 64-bit handlers, optional IST (SDM vol. 3 §6.14).
fn deliver_long(cpu: &mut Cpu, frame: &Frame) -> Result<(), Exception> {
    let idt_error = u32::from(frame.vector) << 3 | 2;
    let offset = u64::from(frame.vector) * 16;
    if offset + 15 > cpu.state.idtr.limit.into() {
        return Err(Exception::gp(idt_error | frame.external));
    }
    let gate = cpu.state.idtr.base.wrapping_add(offset);
    let low = memory::read_system(cpu, gate, 8)?;
    let high = memory::read_system(cpu, gate.wrapping_add(8), 8)?;
    let kind = low >> 40 & 0x1f;
    let gate_dpl = (low >> 45 & 3) as u8;
    if kind != 0xe && kind != 0xf {
        return Err(Exception::gp(idt_error | frame.external));
    }
    if frame.software && gate_dpl < cpu.cpl() {
        return Err(Exception::gp(idt_error));
    }
    if low >> 47 & 1 == 0 {
        return Err(Exception::np(idt_error | frame.external));
    }
    let target = low & 0xffff | low >> 32 & 0xffff_0000 | high << 32;
    let (code, cpl) = handler_segment(cpu, (low >> 16) as u16, frame.external)?;
    if !code.is_long() || code.is_default_32() {
        return Err(Exception::gp(u32::from(code.selector & !3) | frame.external));
    }
    let ist = low >> 32 & 7;
    let inner = cpl < cpu.cpl();
    let stack_top = if ist != 0 {
        tss_stack(cpu, 36 + (ist as u32 - 1) * 8, 8, frame.external)?
    } else if inner {
        tss_stack(cpu, 4 + u32::from(cpl) * 8, 8, frame.external)?
    } else {
        cpu.state.gpr[gpr::RSP]
    };
    let mut rsp = stack_top & !0xf;
    let mut access = Access::system(cpu, AccessKind::Write);
    access.user = cpl == 3;
    let words = [
        u64::from(cpu.state.segments[seg::SS].selector),
        cpu.state.gpr[gpr::RSP],
        frame.flags,
        u64::from(cpu.state.segments[seg::CS].selector),
        frame.rip,
    ];
    let error = frame.error_code.map(u64::from);
    for word in words.into_iter().chain(error) {
        rsp = rsp.wrapping_sub(8);
        if !is_canonical(rsp) {
            return Err(Exception::ss(frame.external));
        }
        memory::write_as(cpu, rsp, 8, word, access)?;
    }
    if !is_canonical(target) {
        return Err(Exception::gp(frame.external));
    }
    if inner {
        cpu.state.segments[seg::SS] = Segment::null_stack(cpl);
    }
    cpu.state.gpr[gpr::RSP] = rsp;
    enter_handler(cpu, code, cpl, target, kind == 0xe);
    Ok(())
}

/// Protected mode: 8-byte interrupt and trap gates of 16 or 32 bits (SDM vol. 3 §6.12). Task gates are not offered:
/// they answer #GP, as a gate of an unknown type does.
fn deliver_protected(cpu: &mut Cpu, frame: &Frame) -> Result<(), Exception> {
    let idt_error = u32::from(frame.vector) << 3 | 2;
    let offset = u64::from(frame.vector) * 8;
    if offset + 7 > cpu.state.idtr.limit.into() {
        return Err(Exception::gp(idt_error | frame.external));
    }
    let gate = memory::read_system(cpu, cpu.state.idtr.base.wrapping_add(offset), 8)?;
    let kind = gate >> 40 & 0x1f;
    let gate_dpl = (gate >> 45 & 3) as u8;
    if !matches!(kind, 0x6 | 0x7 | 0xe | 0xf) {
        return Err(Exception::gp(idt_error | frame.external));
    }
    if frame.software && gate_dpl < cpu.cpl() {
        return Err(Exception::gp(idt_error));
    }
    if gate >> 47 & 1 == 0 {
        return Err(Exception::np(idt_error | frame.external));
    }
    let size = if kind & 8 != 0 { 4 } else { 2 };
    let target = if size == 4 { gate & 0xffff | gate >> 32 & 0xffff_0000 } else { gate & 0xffff };
    let (code, cpl) = handler_segment(cpu, (gate >> 16) as u16, frame.external)?;
    let inner = cpl < cpu.cpl();
    let old_stack = cpu.state.segments[seg::SS];
    let old_rsp = cpu.state.gpr[gpr::RSP];
    let (stack_segment, stack_pointer) = if inner {
        segment::legacy_tss_stack(cpu, cpl, frame.external)?
    } else {
        (old_stack, old_rsp)
    };
    let mut access = Access::system(cpu, AccessKind::Write);
    access.user = cpl == 3;
    let mut stack = StackWriter::on(stack_segment, stack_pointer, access);
    if inner {
        stack.push(cpu, old_stack.selector.into(), size)?;
        stack.push(cpu, old_rsp, size)?;
    }
    stack.push(cpu, frame.flags, size)?;
    stack.push(cpu, cpu.state.segments[seg::CS].selector.into(), size)?;
    stack.push(cpu, frame.rip, size)?;
    if let Some(error) = frame.error_code {
        stack.push(cpu, error.into(), size)?;
    }
    if target > code.limit.into() {
        return Err(Exception::gp(frame.external));
    }
    cpu.state.gpr[gpr::RSP] = stack.merged(stack_pointer);
    cpu.state.segments[seg::SS] = stack_segment;
    enter_handler(cpu, code, cpl, target, kind & 1 == 0);
    Ok(())
}

/// Loads and checks a gate's code segment. Gives it with the CPL of the handler.
fn handler_segment(cpu: &mut Cpu, sel: u16, external: u32) -> Result<(Segment, u8), Exception> {
    if sel & !selector::RPL == 0 {
        return Err(Exception::gp(external));
    }
    let error = u32::from(sel & !selector::RPL) | external;
    let descriptor = Descriptor::read(cpu, sel, |_| Exception::gp(error))?;
    let dpl = descriptor.dpl();
    if !descriptor.is_code() || dpl > cpu.cpl() {
        return Err(Exception::gp(error));
    }
    if !descriptor.is_present() {
        return Err(Exception::np(error));
    }
    let cpl = if descriptor.is_conforming() { cpu.cpl() } else { dpl };
    descriptor.set_accessed(cpu)?;
    Ok((descriptor.segment(sel & !selector::RPL | u16::from(cpl)), cpl))
}

/// Reads a stack pointer of the 64-bit TSS.
fn tss_stack(cpu: &mut Cpu, offset: u32, size: u32, external: u32) -> Result<u64, Exception> {
    let task = cpu.state.tr;
    if offset + size - 1 > task.limit {
        return Err(Exception::ts(u32::from(task.selector & !selector::RPL) | external));
    }
    let pointer = memory::read_system(cpu, task.base.wrapping_add(offset.into()), 8)?;
    if is_canonical(pointer) { Ok(pointer) } else { Err(Exception::ss(external)) }
}

fn enter_handler(cpu: &mut Cpu, code: Segment, cpl: u8, target: u64, masks_interrupts: bool) {
    let state = &mut cpu.state;
    state.segments[seg::CS] = code;
    state.rip = target;
    state.rflags &= !(rflags::TF | rflags::NT | rflags::RF | rflags::VM);
    if masks_interrupts {
        state.rflags &= !rflags::IF;
    }
    cpu.set_cpl(cpl);
}

/// Pushes onto a stack whose pointer is committed only when everything is written.
pub(crate) struct StackWriter {
    segment: Segment,
    pointer: u64,
    mask: u64,
    access: Access,
}

impl StackWriter {
    /// A stack in a legacy-mode segment.
    pub(crate) fn on(segment: Segment, pointer: u64, access: Access) -> StackWriter {
        let mask = if segment.is_default_32() { 0xffff_ffff } else { 0xffff };
        StackWriter { segment, pointer, mask, access }
    }

    pub(crate) fn push(&mut self, cpu: &mut Cpu, value: u64, size: usize) -> Result<(), Exception> {
        let offset = self.pointer.wrapping_sub(size as u64) & self.mask;
        segment::check_limit(&self.segment, offset, size as u64).map_err(|()| Exception::ss(0))?;
        let linear = self.segment.base.wrapping_add(offset) & 0xffff_ffff;
        memory::write_as(cpu, linear, size, value, self.access)?;
        self.pointer = offset;
        Ok(())
    }

    /// The new stack pointer; bits above the stack's width come from `old`.
    pub(crate) fn merged(&self, old: u64) -> u64 {
        old & !self.mask | self.pointer & self.mask
    }
}
