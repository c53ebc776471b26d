//! One vCPU as Rust code sees it: the architectural state and everything around it that only its own thread touches.

use crate::apic::Apic;
use crate::debug::StopCause;
use crate::debug_registers;
use crate::error::Error;
use crate::exception::Exception;
use crate::guest::Guest;
use crate::interp::io::PendingInput;
use crate::mmu::{self, Access, AccessKind};
use crate::msr::Msrs;
use crate::pvclock::PvClock;
use crate::registers::{cr0, cr4, efer};
use crate::state::{Attention, CpuState, Rflags, Segment, TableRegister, gpr, seg};
use crate::stats::VcpuStats;
use crate::tlb::{Fill, Tlb, View};
use crate::translator::Translator;
use crate::vcpu::VcpuRemote;
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use std::ops::{Deref, DerefMut};
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// The memory of a [`CpuState`], below 2 GiB so that translated code reaches it with 32-bit displacements.
pub(crate) struct StateMemory(NonNull<CpuState>);

// SAFETY: the mapping lives as long as the value; through a shared reference only `attention`, an atomic, is reached.
unsafe impl Send for StateMemory {}
// SAFETY: as above.
unsafe impl Sync for StateMemory {}

impl StateMemory {
    fn new() -> Result<StateMemory, Error> {
        // SAFETY: a fresh anonymous mapping at an address of the kernel's choice overlaps nothing.
        let address = unsafe {
            mmap_anonymous(
                ptr::null_mut(),
                size_of::<CpuState>(),
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::from_bits_retain(libc::MAP_32BIT as u32),
            )?
        };
        Ok(StateMemory(NonNull::new(address.cast()).ok_or(Error::BadState("mmap returned null"))?))
    }

    /// The word that asks translated code to return; see [`Attention`].
    pub(crate) fn attention(&self) -> &AtomicU32 {
        // SAFETY: the field is an initialised atomic in a live mapping. It is the one field that other threads reach.
        unsafe { &*ptr::addr_of!((*self.0.as_ptr()).attention) }
    }
}

impl Drop for StateMemory {
    fn drop(&mut self) {
        // SAFETY: the mapping was made in `new` with this length and nothing borrows from it any more.
        // A failure would leak address space and nothing else.
        let _ = unsafe { munmap(self.0.as_ptr().cast(), size_of::<CpuState>()) };
    }
}

/// The owning handle of a vCPU's state: one exists for each [`StateMemory`].
pub(crate) struct StateBox(Arc<StateMemory>);

impl StateBox {
    /// Zeroed state, and a reference with which others reach its attention word.
    pub(crate) fn new() -> Result<(StateBox, Arc<StateMemory>), Error> {
        let memory = Arc::new(StateMemory::new()?);
        Ok((StateBox(Arc::clone(&memory)), memory))
    }
}

impl Deref for StateBox {
    type Target = CpuState;
    fn deref(&self) -> &CpuState {
        // SAFETY: the mapping is live and zero bytes are a valid `CpuState`; other threads touch only the atomic.
        unsafe { self.0.0.as_ref() }
    }
}

impl DerefMut for StateBox {
    fn deref_mut(&mut self) -> &mut CpuState {
        // SAFETY: as above, and `self` is the only handle that gives references to the whole state.
        unsafe { &mut *self.0.0.as_ptr() }
    }
}

/// A vCPU: architectural state, TLB, local APIC and the guest it belongs to.
pub(crate) struct Cpu {
    /// Registers and the words shared with translated code.
    pub(crate) state: StateBox,
    /// Translations of linear pages to host pages.
    pub(crate) tlb: Tlb,
    /// Guest memory and traps.
    pub(crate) guest: Arc<Guest>,
    /// Counters.
    pub(crate) stats: VcpuStats,
    /// Translated code and what finds it.
    pub(crate) translator: Box<Translator>,
    pub(crate) remote: Arc<VcpuRemote>,
    pub(crate) apic: Apic,
    pub(crate) msrs: Msrs,
    pub(crate) pvclock: PvClock,
    /// NMIs are held back from the delivery of one until the next IRET (SDM vol. 3 §6.7.1).
    pub(crate) nmi_blocked: bool,
    /// RIP of the instruction after STI, MOV SS or POP SS: nothing is delivered before it completes.
    pub(crate) interrupt_shadow: Option<u64>,
    /// An input instruction whose data the monitor has not given yet.
    pub(crate) pending_input: Option<PendingInput>,
    /// The next instruction runs in the interpreter, which can do what translated code cannot.
    pub(crate) step_once: bool,
    /// The debugger is to hear of a stop at the current instruction.
    pub(crate) debug_stop: Option<StopCause>,
}

/// Value of CR0 after reset: caching disabled, and the ET bit (SDM vol. 3 table 9-1).
const CR0_RESET: u64 = cr0::CD | cr0::NW | cr0::ET;
const PAT_RESET: u64 = 0x0007_0406_0007_0406;
const MXCSR_RESET: u32 = 0x1f80;

impl Cpu {
    /// A vCPU in its start state: the bootstrap processor in 64-bit mode with CR3 = 0 at `entry`, others in real mode.
    pub(crate) fn new(
        guest: Arc<Guest>,
        state: StateBox,
        remote: Arc<VcpuRemote>,
        entry: u64,
    ) -> Result<Cpu, Error> {
        let id = remote.id();
        let address = u32::try_from(ptr::from_ref::<CpuState>(&state).addr())
            .map_err(|_| Error::NotSupported("no memory below 4 GiB of address space"))?;
        let translator = Box::new(Translator::new(address)?);
        let mut cpu = Cpu {
            state,
            tlb: Tlb::new()?,
            guest,
            stats: VcpuStats::default(),
            translator,
            apic: Apic::new(id),
            msrs: Msrs::default(),
            pvclock: PvClock::default(),
            nmi_blocked: false,
            interrupt_shadow: None,
            pending_input: None,
            step_once: false,
            debug_stop: None,
            remote,
        };
        cpu.state.pat = PAT_RESET;
        cpu.state.mxcsr = MXCSR_RESET;
        cpu.state.xcr0 = 1;
        cpu.reset_registers();
        if id == 0 {
            cpu.start_long_mode(entry);
        } else {
            cpu.start_real_mode(entry);
        }
        cpu.rights_changed();
        Ok(cpu)
    }

    /// What reset and INIT have in common (SDM vol. 3 table 9-1).
    fn reset_registers(&mut self) {
        let state = &mut *self.state;
        state.gpr = [0; 16];
        state.gpr[gpr::RDX] = u64::from(crate::cpuid::signature());
        state.rflags = Rflags::FIXED.bits();
        state.dr = [0; 8];
        state.dr[6] = crate::registers::dr6::FIXED;
        state.dr[7] = crate::registers::dr7::FIXED;
        (state.cr2, state.cr3, state.cr4, state.cr8, state.efer) = (0, 0, 0, 0, 0);
        state.ldtr = Segment { attributes: 0x82, limit: 0xffff, ..Segment::null(0) };
        state.tr = Segment { attributes: 0x8b, limit: 0xffff, ..Segment::null(0) };
        state.gdtr = TableRegister { limit: 0xffff, ..TableRegister::default() };
        state.idtr = state.gdtr;
        state.cpl = 0;
    }

    /// INIT: registers and local APIC as after reset; x87 and vector registers, the caching bits of CR0, the TSC and
    /// the other MSRs keep their values. The vCPU then waits for a start-up IPI.
    pub(crate) fn init(&mut self) {
        let caching = self.state.cr0 & (cr0::CD | cr0::NW);
        self.reset_registers();
        self.start_real_mode(0);
        self.state.cr0 = caching | cr0::ET;
        self.apic.init();
        self.guest.alarm_clock.cancel(self.apic.id());
        self.nmi_blocked = false;
        self.interrupt_shadow = None;
        self.pending_input = None;
        self.step_once = false;
        self.flush_tlb();
    }

    /// Enters the code that a start-up IPI names, in the state that INIT left.
    pub(crate) fn start_up(&mut self, vector: u8) {
        let state = &mut *self.state;
        state.segments[seg::CS] = Segment::real_mode(u16::from(vector) << 8, true);
        state.rip = 0;
    }

    /// 64-bit mode with flat segments and CR3 = 0.
    pub(crate) fn start_long_mode(&mut self, entry: u64) {
        let state = &mut *self.state;
        state.cr0 = cr0::PE | cr0::ET | cr0::NE | cr0::PG;
        state.cr4 = cr4::PAE;
        state.efer = efer::LME | efer::LMA;
        state.segments = [Segment::flat_data(0, 0); 6];
        state.segments[seg::CS] = Segment::long_code(0, 0);
        state.rip = entry;
    }

    fn start_real_mode(&mut self, entry: u64) {
        let state = &mut *self.state;
        state.cr0 = CR0_RESET;
        state.segments = [Segment::real_mode(0, false); 6];
        state.segments[seg::CS] = Segment::real_mode((entry >> 4) as u16, true);
        state.rip = entry & 0xf;
    }

    /// Current privilege level.
    #[inline]
    pub(crate) fn cpl(&self) -> u8 {
        self.state.cpl as u8
    }

    /// Changes the privilege level, and with it the view of memory.
    pub(crate) fn set_cpl(&mut self, cpl: u8) {
        self.state.cpl = cpl.into();
        self.rights_changed();
    }

    /// IA-32e mode is active: 64-bit or compatibility mode.
    #[inline]
    pub(crate) fn is_long_mode(&self) -> bool {
        self.state.efer & efer::LMA != 0
    }

    /// 64-bit mode.
    #[inline]
    pub(crate) fn is_64bit(&self) -> bool {
        self.state.is_64bit()
    }

    /// Real mode.
    pub(crate) fn is_real_mode(&self) -> bool {
        self.state.cr0 & cr0::PE == 0
    }

    /// Default operand size of the code segment in bits: what a decoder needs to know.
    pub(crate) fn code_bits(&self) -> u32 {
        if self.is_64bit() {
            64
        } else if self.state.segments[seg::CS].is_default_32() {
            32
        } else {
            16
        }
    }

    /// RIP cut to the width of the current mode.
    pub(crate) fn wrap_ip(&self, ip: u64) -> u64 {
        match self.code_bits() {
            64 => ip,
            32 => ip & 0xffff_ffff,
            _ => ip & 0xffff,
        }
    }

    /// Cuts a linear address to 32 bits outside IA-32e mode.
    #[inline]
    pub(crate) fn wrap_linear(&self, va: u64) -> u64 {
        if self.is_long_mode() { va } else { va & 0xffff_ffff }
    }

    /// Linear address of the current instruction.
    pub(crate) fn linear_ip(&self) -> u64 {
        if self.is_64bit() {
            self.state.rip
        } else {
            self.state.segments[seg::CS].base.wrapping_add(self.state.rip) & 0xffff_ffff
        }
    }

    /// Tells the TLB that CPL, RFLAGS.AC or CR4.SMAP may have changed.
    pub(crate) fn rights_changed(&mut self) {
        self.tlb.publish(&mut self.state);
    }

    /// Drops every cached translation.
    pub(crate) fn flush_tlb(&mut self) {
        self.tlb.flush_all();
        self.rights_changed();
    }

    /// Translates one byte's address and fills the TLB. `None` is a page that is not RAM. The host address is good to
    /// the end of the 4 KiB page.
    pub(crate) fn lookup(
        &mut self,
        va: u64,
        access: Access,
    ) -> Result<Option<(*mut u8, u64)>, Exception> {
        let base = self.guest.ram_base();
        let view = match (access.user, access.smap) {
            (true, _) => View::User,
            (false, true) => View::Protected,
            (false, false) => View::Open,
        };
        let write = access.kind == AccessKind::Write;
        let data = access.kind != AccessKind::Execute;
        if data && let Some(host) = self.tlb.lookup(view, va, write) {
            return Ok(Some((host as *mut u8, host.wrapping_sub(base as u64))));
        }
        let mapping = mmu::walk(self, va, access)?;
        let Some(host) = self.guest.host(mapping.gpa) else {
            return Ok(None);
        };
        if data {
            let writable = mapping.allows(self, Access { kind: AccessKind::Write, ..access });
            let write = writable && self.guest.code.may_store_inline(mapping.gpa >> 12);
            self.tlb.insert(
                view,
                &Fill {
                    va,
                    gpa: mapping.gpa & !0xfff,
                    host: host as u64 & !0xfff,
                    write,
                    global: mapping.global,
                    page_size: mapping.page_size,
                },
            );
        }
        Ok(Some((host, mapping.gpa)))
    }

    /// To be called before Rust code writes guest RAM, inside one page: code translated from there becomes stale.
    #[inline]
    pub(crate) fn before_store(&mut self, gpa: u64, len: usize) {
        if self.guest.code.is_watched(gpa >> 12) {
            self.translator.before_store(&self.guest, gpa, len);
        }
    }

    /// Makes the run loop stop for the debugger before the current instruction.
    pub(crate) fn stop_for_debugger(&mut self, cause: StopCause) {
        self.debug_stop = Some(cause);
        self.request_attention(Attention::RUN_LOOP);
    }

    /// Counters since creation.
    pub(crate) fn stats(&self) -> VcpuStats {
        let translator = &self.translator.counters;
        VcpuStats {
            tlb_flushes: self.tlb.flushes,
            tlb_fills: self.tlb.fills,
            blocks: translator.blocks,
            cache_flushes: translator.flushes,
            ..self.stats
        }
    }

    /// Tells translated code whether STI, SYSRET and IRET may let something in.
    pub(crate) fn publish_pending(&mut self) {
        self.state.interrupts_pending = (self.apic.has_pending() || self.nmi_blocked).into();
    }

    /// Whether the next instruction must run on its own: single-stepping, an interrupt shadow with something waiting,
    /// or armed debug registers.
    pub(crate) fn needs_stepping(&self) -> bool {
        let state = &self.state;
        state.flag(Rflags::TF)
            || self.step_once
            || debug_registers::are_armed(self)
            || self.remote.debug.is_stepping()
            || self.interrupt_shadow == Some(state.rip) && self.apic.has_pending()
    }

    /// Makes translated code return at its next poll.
    pub(crate) fn request_attention(&self, bits: Attention) {
        self.state.attention.fetch_or(bits.bits(), Ordering::SeqCst);
    }

    /// To be called after anything that may have opened the window for interrupts: IF set, TPR lowered, EOI, IRET.
    pub(crate) fn interrupt_window_changed(&self) {
        if self.apic.has_pending() {
            self.request_attention(Attention::INTERRUPT);
        }
    }
}
