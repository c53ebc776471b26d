//! Segmentation: descriptors, their checks on load, and the linear address of an access (SDM vol. 3 §3.4, §5).

use crate::cpu::Cpu;
use crate::exception::Exception;
use crate::memory;
use crate::mmu::{Access, AccessKind, is_canonical};
use crate::registers::{cr0, selector};
use crate::state::{Segment, seg};

/// Attribute bits of [`Segment::attributes`] beyond those that `state` names.
const ACCESSED: u32 = 1 << 0;
const WRITABLE_OR_READABLE: u32 = 1 << 1;
const EXPAND_DOWN_OR_CONFORMING: u32 = 1 << 2;
const ATTRIBUTES: u32 = 0xf0ff;

impl Segment {
    /// A flat 64-bit code segment of privilege level `cpl`.
    pub(crate) fn long_code(selector: u16, cpl: u8) -> Segment {
        Segment {
            attributes: 0xb
                | Self::NON_SYSTEM
                | Self::PRESENT
                | Self::LONG
                | Self::GRANULARITY
                | u32::from(cpl) << 5,
            ..Segment::flat_data(selector, cpl)
        }
    }

    /// A flat 32-bit code segment of privilege level `cpl`.
    pub(crate) fn flat_code(selector: u16, cpl: u8) -> Segment {
        Segment {
            attributes: 0xb
                | Self::NON_SYSTEM
                | Self::PRESENT
                | Self::BIG
                | Self::GRANULARITY
                | u32::from(cpl) << 5,
            ..Segment::flat_data(selector, cpl)
        }
    }

    /// A flat writable data segment of privilege level `cpl`.
    pub(crate) fn flat_data(selector: u16, cpl: u8) -> Segment {
        Segment {
            base: 0,
            limit: u32::MAX,
            attributes: 0x3
                | Self::NON_SYSTEM
                | Self::PRESENT
                | Self::BIG
                | Self::GRANULARITY
                | u32::from(cpl) << 5,
            selector,
            reserved: [0; 3],
        }
    }

    /// A segment as reset and real mode have it: 64 KiB at `selector` times 16.
    pub(crate) fn real_mode(selector: u16, code: bool) -> Segment {
        let kind = if code { 0xb } else { 0x3 };
        Segment {
            base: u64::from(selector) << 4,
            limit: 0xffff,
            attributes: kind | Self::NON_SYSTEM | Self::PRESENT,
            selector,
            reserved: [0; 3],
        }
    }

    /// A data segment register that holds a null selector.
    pub(crate) fn null(selector: u16) -> Segment {
        Segment { base: 0, limit: 0, attributes: Self::UNUSABLE, selector, reserved: [0; 3] }
    }

    /// SS after a change of privilege in IA-32e mode: a null selector with the new privilege level.
    pub(crate) fn null_stack(cpl: u8) -> Segment {
        Segment { attributes: Self::UNUSABLE | u32::from(cpl) << 5, ..Segment::null(cpl.into()) }
    }

    pub(crate) fn is_code(&self) -> bool {
        self.attributes & Self::CODE != 0
    }

    /// L bit: 64-bit code.
    pub(crate) fn is_long(&self) -> bool {
        self.attributes & Self::LONG != 0
    }

    /// D/B bit: 32-bit default operand size or stack pointer.
    pub(crate) fn is_default_32(&self) -> bool {
        self.attributes & Self::BIG != 0
    }

    pub(crate) fn is_unusable(&self) -> bool {
        self.attributes & Self::UNUSABLE != 0
    }

    fn is_expand_down(&self) -> bool {
        !self.is_code() && self.attributes & EXPAND_DOWN_OR_CONFORMING != 0
    }

    fn is_writable(&self) -> bool {
        !self.is_code() && self.attributes & WRITABLE_OR_READABLE != 0
    }

    fn is_readable(&self) -> bool {
        !self.is_code() || self.attributes & WRITABLE_OR_READABLE != 0
    }
}

/// A descriptor read from the GDT or LDT.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Descriptor {
    low: u64,
    address: u64,
}

impl Descriptor {
    /// Reads the descriptor that `sel` names. `error` is the exception for a selector beyond its table.
    pub(crate) fn read(
        cpu: &mut Cpu,
        sel: u16,
        error: impl Fn(u32) -> Exception,
    ) -> Result<Descriptor, Exception> {
        let code = u32::from(sel & !selector::RPL);
        let offset = u32::from(sel & !7);
        let (base, limit) = if sel & selector::TI != 0 {
            if cpu.state.ldtr.is_unusable() {
                return Err(error(code));
            }
            (cpu.state.ldtr.base, cpu.state.ldtr.limit)
        } else {
            (cpu.state.gdtr.base, u32::from(cpu.state.gdtr.limit))
        };
        if offset + 7 > limit {
            return Err(error(code));
        }
        let address = cpu.wrap_linear(base.wrapping_add(offset.into()));
        let low = memory::read_system(cpu, address, 8)?;
        Ok(Descriptor { low, address })
    }

    fn attributes(&self) -> u32 {
        (self.low >> 40) as u32 & ATTRIBUTES
    }

    pub(crate) fn dpl(&self) -> u8 {
        (self.low >> 45 & 3) as u8
    }

    pub(crate) fn is_present(&self) -> bool {
        self.attributes() & Segment::PRESENT != 0
    }

    /// S bit clear: a gate, TSS or LDT.
    pub(crate) fn is_system(&self) -> bool {
        self.attributes() & Segment::NON_SYSTEM == 0
    }

    /// Type field of a system descriptor (SDM vol. 3 table 3-2).
    pub(crate) fn system_type(&self) -> u32 {
        self.attributes() & 0xf
    }

    pub(crate) fn is_code(&self) -> bool {
        !self.is_system() && self.attributes() & Segment::CODE != 0
    }

    pub(crate) fn is_conforming(&self) -> bool {
        self.is_code() && self.attributes() & EXPAND_DOWN_OR_CONFORMING != 0
    }

    pub(crate) fn is_readable(&self) -> bool {
        !self.is_system() && self.segment(0).is_readable()
    }

    pub(crate) fn is_writable_data(&self) -> bool {
        !self.is_system() && self.segment(0).is_writable()
    }

    /// The second doubleword of the descriptor as LAR loads it.
    pub(crate) fn access_rights(&self) -> u32 {
        (self.low >> 32) as u32 & 0x00f0_ff00
    }

    /// The segment register that holds this descriptor.
    pub(crate) fn segment(&self, sel: u16) -> Segment {
        let low = self.low;
        let raw_limit = (low & 0xffff | low >> 32 & 0xf_0000) as u32;
        let attributes = self.attributes();
        let limit = if attributes & Segment::GRANULARITY != 0 {
            raw_limit << 12 | 0xfff
        } else {
            raw_limit
        };
        Segment {
            base: low >> 16 & 0xff_ffff | low >> 32 & 0xff00_0000,
            limit,
            attributes,
            selector: sel,
            reserved: [0; 3],
        }
    }

    /// The two halves of a call gate's contents: selector, offset and parameter count.
    pub(crate) fn gate(&self) -> (u16, u64, u8) {
        let offset = self.low & 0xffff | self.low >> 32 & 0xffff_0000;
        ((self.low >> 16) as u16, offset, (self.low >> 32 & 0x1f) as u8)
    }

    /// Upper 8 bytes of a 16-byte system descriptor of IA-32e mode.
    pub(crate) fn read_high(&self, cpu: &mut Cpu) -> Result<u64, Exception> {
        memory::read_system(cpu, cpu.wrap_linear(self.address.wrapping_add(8)), 8)
    }

    /// Sets the accessed bit of a code or data descriptor in its table.
    pub(crate) fn set_accessed(&self, cpu: &mut Cpu) -> Result<(), Exception> {
        if self.attributes() & ACCESSED != 0 {
            return Ok(());
        }
        self.write_type(cpu, self.attributes() | ACCESSED)
    }

    /// Marks a TSS descriptor busy.
    fn set_busy(&self, cpu: &mut Cpu) -> Result<(), Exception> {
        self.write_type(cpu, self.attributes() | 2)
    }

    fn write_type(&self, cpu: &mut Cpu, attributes: u32) -> Result<(), Exception> {
        let access = Access::system(cpu, AccessKind::Write);
        memory::write_as(cpu, self.address.wrapping_add(5), 1, u64::from(attributes & 0xff), access)
    }
}

/// Loads ES, SS, DS, FS or GS as MOV, POP and LDS and friends do (SDM vol. 2, MOV, "Protected Mode Exceptions").
pub(crate) fn load_data(cpu: &mut Cpu, index: usize, sel: u16) -> Result<(), Exception> {
    if cpu.state.cr0 & cr0::PE == 0 {
        let segment = &mut cpu.state.segments[index];
        segment.selector = sel;
        segment.base = u64::from(sel) << 4;
        return Ok(());
    }
    let segment = if index == seg::SS { checked_stack(cpu, sel)? } else { checked_data(cpu, sel)? };
    cpu.state.segments[index] = segment;
    Ok(())
}

/// SS at the current privilege level.
fn checked_stack(cpu: &mut Cpu, sel: u16) -> Result<Segment, Exception> {
    let cpl = cpu.cpl();
    stack_segment(cpu, sel, cpl, Exception::gp, 0)
}

/// Checks a selector for SS at privilege level `cpl`; `error` builds the exception of a bad selector.
pub(crate) fn stack_segment(
    cpu: &mut Cpu,
    sel: u16,
    cpl: u8,
    error: impl Fn(u32) -> Exception,
    external: u32,
) -> Result<Segment, Exception> {
    let rpl = (sel & selector::RPL) as u8;
    if sel & !selector::RPL == 0 {
        if cpu.is_long_mode() && cpl != 3 && rpl == cpl {
            return Ok(Segment { selector: sel, ..Segment::null_stack(cpl) });
        }
        return Err(error(external));
    }
    let code = u32::from(sel & !selector::RPL) | external;
    let descriptor = Descriptor::read(cpu, sel, |_| error(code))?;
    if rpl != cpl || !descriptor.is_writable_data() || descriptor.dpl() != cpl {
        return Err(error(code));
    }
    if !descriptor.is_present() {
        return Err(Exception::ss(code));
    }
    descriptor.set_accessed(cpu)?;
    Ok(descriptor.segment(sel))
}

fn checked_data(cpu: &mut Cpu, sel: u16) -> Result<Segment, Exception> {
    if sel & !selector::RPL == 0 {
        return Ok(Segment::null(sel));
    }
    let code = u32::from(sel & !selector::RPL);
    let descriptor = Descriptor::read(cpu, sel, Exception::gp)?;
    if !descriptor.is_readable() {
        return Err(Exception::gp(code));
    }
    let privilege = cpu.cpl().max((sel & selector::RPL) as u8);
    if !descriptor.is_conforming() && privilege > descriptor.dpl() {
        return Err(Exception::gp(code));
    }
    if !descriptor.is_present() {
        return Err(Exception::np(code));
    }
    descriptor.set_accessed(cpu)?;
    Ok(descriptor.segment(sel))
}

/// LLDT.
pub(crate) fn load_ldt(cpu: &mut Cpu, sel: u16) -> Result<(), Exception> {
    if sel & !selector::RPL == 0 {
        cpu.state.ldtr = Segment::null(sel);
        return Ok(());
    }
    cpu.state.ldtr = system_segment(cpu, sel, &[2])?.0;
    Ok(())
}

/// LTR: loads the task register and marks its TSS busy.
pub(crate) fn load_task(cpu: &mut Cpu, sel: u16) -> Result<(), Exception> {
    if sel & !selector::RPL == 0 {
        return Err(Exception::gp(0));
    }
    let types: &[u32] = if cpu.is_long_mode() { &[9] } else { &[1, 9] };
    let (mut task, descriptor) = system_segment(cpu, sel, types)?;
    descriptor.set_busy(cpu)?;
    task.attributes |= 2;
    cpu.state.tr = task;
    Ok(())
}

fn system_segment(
    cpu: &mut Cpu,
    sel: u16,
    types: &[u32],
) -> Result<(Segment, Descriptor), Exception> {
    let code = u32::from(sel & !selector::RPL);
    if sel & selector::TI != 0 {
        return Err(Exception::gp(code));
    }
    let descriptor = Descriptor::read(cpu, sel, Exception::gp)?;
    if !descriptor.is_system() || !types.contains(&descriptor.system_type()) {
        return Err(Exception::gp(code));
    }
    if !descriptor.is_present() {
        return Err(Exception::np(code));
    }
    let mut segment = descriptor.segment(sel);
    if cpu.is_long_mode() {
        if u32::from(sel & !7) + 15 > cpu.state.gdtr.limit.into() {
            return Err(Exception::gp(code));
        }
        segment.base |= descriptor.read_high(cpu)? << 32;
        if !is_canonical(segment.base) {
            return Err(Exception::gp(code));
        }
    }
    Ok((segment, descriptor))
}

/// Stack segment and pointer of privilege level `cpl` from a 32-bit or 16-bit TSS (SDM vol. 3 §7.2.1, §7.6).
pub(crate) fn legacy_tss_stack(
    cpu: &mut Cpu,
    cpl: u8,
    external: u32,
) -> Result<(Segment, u64), Exception> {
    let task = cpu.state.tr;
    let wide = task.attributes & 8 != 0;
    let (offset, size) =
        if wide { (4 + u32::from(cpl) * 8, 4) } else { (2 + u32::from(cpl) * 4, 2) };
    let code = u32::from(task.selector & !selector::RPL) | external;
    if offset + size + 1 > task.limit {
        return Err(Exception::ts(code));
    }
    let base = task.base.wrapping_add(offset.into());
    let pointer = memory::read_system(cpu, cpu.wrap_linear(base), size as usize)?;
    let sel = memory::read_system(cpu, cpu.wrap_linear(base.wrapping_add(size.into())), 2)? as u16;
    Ok((stack_segment(cpu, sel, cpl, Exception::ts, external)?, pointer))
}

/// Whether `size` bytes at `offset` lie inside a legacy-mode segment (SDM vol. 3 §5.3).
pub(crate) fn check_limit(segment: &Segment, offset: u64, size: u64) -> Result<(), ()> {
    let last = offset.checked_add(size - 1).ok_or(())?;
    let limit = u64::from(segment.limit);
    let ok = if segment.is_expand_down() {
        let top = if segment.is_default_32() { 0xffff_ffff } else { 0xffff };
        offset > limit && last <= top
    } else {
        last <= limit
    };
    if ok { Ok(()) } else { Err(()) }
}

/// Linear address of a data access, with the checks of the current mode: canonical form in 64-bit mode, type and limit
/// elsewhere. Stack accesses fail with #SS(0), others with #GP(0).
pub(crate) fn linear(
    cpu: &Cpu,
    index: usize,
    offset: u64,
    size: u64,
    kind: AccessKind,
) -> Result<u64, Exception> {
    let fault = || if index == seg::SS { Exception::ss(0) } else { Exception::gp(0) };
    let segment = &cpu.state.segments[index];
    if cpu.is_64bit() {
        let base = if index >= seg::FS { segment.base } else { 0 };
        let address = base.wrapping_add(offset);
        let last = address.wrapping_add(size - 1);
        if !is_canonical(address) || !is_canonical(last) {
            return Err(fault());
        }
        return Ok(address);
    }
    if cpu.state.cr0 & cr0::PE != 0 {
        if segment.is_unusable() {
            return Err(fault());
        }
        let allowed = match kind {
            AccessKind::Write => segment.is_writable(),
            AccessKind::Read => segment.is_readable(),
            AccessKind::Execute => segment.is_code(),
        };
        if !allowed {
            return Err(fault());
        }
    }
    check_limit(segment, offset, size).map_err(|()| fault())?;
    Ok(segment.base.wrapping_add(offset) & 0xffff_ffff)
}
