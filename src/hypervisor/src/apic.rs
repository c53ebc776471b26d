//! The local APIC in x2APIC mode (SDM vol. 3 §10).
//!
//! Registers are MSRs only; there is no page of them. Interprocessor interrupts to other vCPUs become exits.

use crate::cpu::Cpu;
use crate::exception::Exception;
use crate::exit::Exit;
use crate::host_access;
use crate::startup;
use crate::state::Attention;
use crate::time::{monotonic_ns, tsc_to_ns};

/// The first and last x2APIC MSR (SDM vol. 3 table 10-6).
pub(crate) const MSR_FIRST: u32 = 0x800;
pub(crate) const MSR_LAST: u32 = 0x8ff;

/// Ticks of the timer before division: one a nanosecond.
pub(crate) const TIMER_HZ: u64 = 1_000_000_000;
/// Shortest period of a periodic timer in nanoseconds: a guest that asks for less does not occupy its host thread.
const MIN_PERIOD_NS: u64 = 20_000;

/// IA32_APIC_BASE bits (SDM vol. 3 §10.12.1).
const BASE_BSP: u64 = 1 << 8;
const BASE_X2APIC: u64 = 1 << 10;
const BASE_ENABLE: u64 = 1 << 11;
const BASE_ADDRESS: u64 = 0xfee0_0000;

/// Integrated APIC, version 0x15, six LVT entries.
const VERSION: u64 = 0x5_0015;
const SVR_ENABLE: u32 = 1 << 8;
/// ICR bits (SDM vol. 3 figure 10-12).
const ICR_LEVEL_ASSERT: u64 = 1 << 14;
const ICR_TRIGGER_LEVEL: u64 = 1 << 15;
const LVT_MASKED: u32 = 1 << 16;
const LVT_COUNT: usize = 6;
const LVT_TIMER: usize = 0;
/// Writable bits of the LVT entries: timer, thermal, performance, LINT0, LINT1, error.
const LVT_WRITABLE: [u32; LVT_COUNT] = [0x7_00ff, 0x1_07ff, 0x1_07ff, 0x1_a7ff, 0x1_a7ff, 0x1_00ff];

#[derive(Clone, Copy, PartialEq, Eq)]
enum TimerMode {
    OneShot,
    Periodic,
    TscDeadline,
    Reserved,
}

/// A set of the 256 interrupt vectors.
#[derive(Clone, Copy, Default)]
struct VectorSet([u64; 4]);

impl VectorSet {
    fn insert(&mut self, vector: u8) {
        self.0[usize::from(vector / 64)] |= 1 << (vector % 64);
    }

    fn remove(&mut self, vector: u8) {
        self.0[usize::from(vector / 64)] &= !(1 << (vector % 64));
    }

    fn highest(&self) -> Option<u8> {
        (0..4_u8).rev().find_map(|word| {
            let bits = self.0[usize::from(word)];
            (bits != 0).then(|| word * 64 + 63 - bits.leading_zeros() as u8)
        })
    }

    fn register(&self, index: u32) -> u64 {
        self.0[(index / 2) as usize & 3] >> (32 * (index % 2)) & 0xffff_ffff
    }
}

/// A vCPU's local APIC.
pub(crate) struct Apic {
    id: u32,
    base: u64,
    /// Task priority, 0 to 255.
    tpr: u8,
    spurious: u32,
    lvt: [u32; LVT_COUNT],
    requests: VectorSet,
    in_service: VectorSet,
    error_status: u32,
    command: u64,
    initial_count: u32,
    divide: u32,
    /// When the timer expires, in CLOCK_MONOTONIC nanoseconds.
    deadline_ns: Option<u64>,
    /// IA32_TSC_DEADLINE; 0 when disarmed.
    tsc_deadline: u64,
    nmi: bool,
    /// Vectors below 16 that the monitor injected: delivered without the APIC's priorities.
    low_vectors: u32,
}

impl Apic {
    /// An APIC after reset, in x2APIC mode and software-disabled.
    pub(crate) fn new(id: u32) -> Apic {
        let bootstrap = if id == 0 { BASE_BSP } else { 0 };
        Apic {
            id,
            base: BASE_ADDRESS | BASE_ENABLE | BASE_X2APIC | bootstrap,
            tpr: 0,
            spurious: 0xff,
            lvt: [LVT_MASKED; LVT_COUNT],
            requests: VectorSet::default(),
            in_service: VectorSet::default(),
            error_status: 0,
            command: 0,
            initial_count: 0,
            divide: 0,
            deadline_ns: None,
            tsc_deadline: 0,
            nmi: false,
            low_vectors: 0,
        }
    }

    /// The state after INIT (SDM vol. 3 §10.4.7.3): as after reset, but for IA32_APIC_BASE.
    pub(crate) fn init(&mut self) {
        *self = Apic { base: self.base, ..Apic::new(self.id) };
    }

    pub(crate) fn id(&self) -> u32 {
        self.id
    }

    /// Queues an interrupt from the monitor. Vector 2 is the NMI.
    pub(crate) fn request(&mut self, vector: u8) {
        match vector {
            2 => self.nmi = true,
            0..16 => self.low_vectors |= 1 << vector,
            _ => self.requests.insert(vector),
        }
    }

    /// Whether an NMI waits; taking it is up to [`Apic::take_nmi`].
    pub(crate) fn has_nmi(&self) -> bool {
        self.nmi
    }

    pub(crate) fn take_nmi(&mut self) {
        self.nmi = false;
    }

    /// The vector that would be delivered next if RFLAGS.IF were set (SDM vol. 3 §10.8.3).
    pub(crate) fn deliverable(&self) -> Option<u8> {
        if self.low_vectors != 0 {
            return Some(self.low_vectors.trailing_zeros() as u8);
        }
        self.requests.highest().filter(|vector| vector >> 4 > self.processor_priority() >> 4)
    }

    /// Whether anything waits that an open interrupt window would let in.
    pub(crate) fn has_pending(&self) -> bool {
        self.nmi || self.deliverable().is_some()
    }

    /// Moves a vector from requested to in service.
    pub(crate) fn acknowledge(&mut self, vector: u8) {
        if vector < 16 {
            self.low_vectors &= !(1 << vector);
        } else {
            self.requests.remove(vector);
            self.in_service.insert(vector);
        }
    }

    fn processor_priority(&self) -> u8 {
        let service = self.in_service.highest().unwrap_or(0) & 0xf0;
        if self.tpr & 0xf0 >= service { self.tpr } else { service }
    }

    /// CR8: bits 7:4 of the task priority.
    pub(crate) fn cr8(&self) -> u64 {
        u64::from(self.tpr >> 4)
    }

    pub(crate) fn set_cr8(&mut self, value: u64) {
        self.tpr = (value as u8 & 0xf) << 4;
    }

    pub(crate) fn base(&self) -> u64 {
        self.base
    }

    /// Writes IA32_APIC_BASE. Only x2APIC mode can be on; xAPIC mode has no register page here, so leaving x2APIC mode
    /// disables the APIC, as the state machine of SDM vol. 3 figure 10-27 demands.
    pub(crate) fn set_base(&mut self, value: u64) -> Result<(), Exception> {
        let mode = value & (BASE_ENABLE | BASE_X2APIC);
        if value & !(BASE_ENABLE | BASE_X2APIC | BASE_BSP | 0xff_ffff_f000) != 0
            || mode == BASE_X2APIC
            || (mode == BASE_ENABLE && self.base & BASE_X2APIC != 0)
        {
            return Err(Exception::gp(0));
        }
        self.base = value & !BASE_BSP | self.base & BASE_BSP;
        Ok(())
    }

    fn timer_mode(&self) -> TimerMode {
        match self.lvt[LVT_TIMER] >> 17 & 3 {
            0 => TimerMode::OneShot,
            1 => TimerMode::Periodic,
            2 => TimerMode::TscDeadline,
            _ => TimerMode::Reserved,
        }
    }

    /// Divisor of the timer clock (SDM vol. 3 figure 10-10).
    fn divisor(&self) -> u64 {
        let code = self.divide & 3 | self.divide >> 1 & 4;
        1 << ((code + 1) & 7)
    }

    fn period_ns(&self) -> u64 {
        u64::from(self.initial_count) * self.divisor()
    }

    /// When [`Apic::expire`] wants to be called next, in CLOCK_MONOTONIC nanoseconds.
    pub(crate) fn deadline(&self) -> Option<u64> {
        self.deadline_ns
    }

    /// Fires the timer if its time has come. Returns whether it did.
    pub(crate) fn expire(&mut self, now_ns: u64) -> bool {
        let Some(deadline) = self.deadline_ns.filter(|&deadline| deadline <= now_ns) else {
            return false;
        };
        self.deadline_ns = None;
        if self.timer_mode() == TimerMode::Periodic && self.initial_count != 0 {
            let period = self.period_ns().max(MIN_PERIOD_NS);
            // Periods that passed while the vCPU did not run are merged into this one.
            let next = deadline.saturating_add(period);
            self.deadline_ns =
                Some(if next > now_ns { next } else { now_ns.saturating_add(period) });
        }
        self.tsc_deadline = 0;
        let entry = self.lvt[LVT_TIMER];
        if entry & LVT_MASKED == 0 && self.spurious & SVR_ENABLE != 0 {
            self.requests.insert(entry as u8);
        }
        true
    }

    fn current_count(&self) -> u64 {
        if self.timer_mode() == TimerMode::TscDeadline {
            return 0;
        }
        let left = self.deadline_ns.map_or(0, |deadline| deadline.saturating_sub(monotonic_ns()));
        (left / self.divisor()).min(u64::from(self.initial_count))
    }

    fn start_count(&mut self) {
        self.deadline_ns = match self.timer_mode() {
            TimerMode::OneShot | TimerMode::Periodic if self.initial_count != 0 => {
                Some(monotonic_ns().saturating_add(self.period_ns()))
            }
            _ => None,
        };
    }

    pub(crate) fn tsc_deadline(&self) -> u64 {
        if self.timer_mode() == TimerMode::TscDeadline { self.tsc_deadline } else { 0 }
    }

    /// Writes IA32_TSC_DEADLINE (SDM vol. 3 §10.5.4.1): ignored in other timer modes, 0 disarms.
    fn set_tsc_deadline(&mut self, value: u64) {
        if self.timer_mode() != TimerMode::TscDeadline {
            return;
        }
        self.tsc_deadline = value;
        self.deadline_ns = (value != 0).then(|| {
            let ticks = value.saturating_sub(host_access::tsc());
            monotonic_ns().saturating_add(tsc_to_ns(ticks))
        });
    }

    fn set_lvt(&mut self, index: usize, value: u64) -> Result<(), Exception> {
        if value & !u64::from(LVT_WRITABLE[index] | 1 << 12 | 1 << 14) != 0 {
            return Err(Exception::gp(0));
        }
        let old = self.timer_mode();
        self.lvt[index] = value as u32 & LVT_WRITABLE[index];
        if self.spurious & SVR_ENABLE == 0 {
            self.lvt[index] |= LVT_MASKED;
        }
        if index == LVT_TIMER
            && (old == TimerMode::TscDeadline) != (self.timer_mode() == TimerMode::TscDeadline)
        {
            // SDM vol. 3 §10.5.4.1: a switch between the modes disarms the timer.
            self.deadline_ns = None;
            self.tsc_deadline = 0;
        }
        Ok(())
    }

    fn set_spurious(&mut self, value: u64) -> Result<(), Exception> {
        if value & !0x1fff != 0 {
            return Err(Exception::gp(0));
        }
        self.spurious = value as u32 & 0x3ff;
        if self.spurious & SVR_ENABLE == 0 {
            for entry in &mut self.lvt {
                *entry |= LVT_MASKED;
            }
        }
        Ok(())
    }

    /// Logical x2APIC ID (SDM vol. 3 §10.12.10.2).
    fn logical_id(&self) -> u64 {
        u64::from(self.id >> 4) << 16 | 1 << (self.id & 0xf)
    }

    fn read(&self, msr: u32) -> Result<u64, Exception> {
        if self.base & BASE_X2APIC == 0 {
            return Err(Exception::gp(0));
        }
        Ok(match msr {
            0x802 => self.id.into(),
            0x803 => VERSION,
            0x808 => self.tpr.into(),
            0x80a => self.processor_priority().into(),
            0x80d => self.logical_id(),
            0x80f => self.spurious.into(),
            0x810..=0x817 => self.in_service.register(msr - 0x810),
            // Every interrupt here is edge-triggered.
            0x818..=0x81f => 0,
            0x820..=0x827 => self.requests.register(msr - 0x820),
            0x828 => self.error_status.into(),
            0x830 => self.command,
            0x832..=0x837 => self.lvt[(msr - 0x832) as usize].into(),
            0x838 => self.initial_count.into(),
            0x839 => self.current_count(),
            0x83e => self.divide.into(),
            _ => return Err(Exception::gp(0)),
        })
    }
}

/// RDMSR of an x2APIC register.
pub(crate) fn read_msr(cpu: &Cpu, msr: u32) -> Result<u64, Exception> {
    cpu.apic.read(msr)
}

/// WRMSR of an x2APIC register. Reserved bits are #GP(0) (SDM vol. 3 §10.12.1.3).
pub(crate) fn write_msr(cpu: &mut Cpu, msr: u32, value: u64) -> Result<Option<Exit>, Exception> {
    let apic = &mut cpu.apic;
    let wide = value >> 32 != 0 && msr != 0x830;
    if apic.base & BASE_X2APIC == 0 || wide {
        return Err(Exception::gp(0));
    }
    match msr {
        0x808 if value <= 0xff => {
            apic.tpr = value as u8;
            cpu.interrupt_window_changed();
        }
        0x80b if value == 0 => {
            if let Some(vector) = apic.in_service.highest() {
                apic.in_service.remove(vector);
            }
            cpu.interrupt_window_changed();
        }
        0x80f => apic.set_spurious(value)?,
        0x828 if value == 0 => apic.error_status = 0,
        0x830 => return send_ipi(cpu, value),
        0x832..=0x837 => {
            apic.set_lvt((msr - 0x832) as usize, value)?;
            update_alarm(cpu);
        }
        0x838 => {
            apic.initial_count = value as u32;
            if apic.timer_mode() != TimerMode::TscDeadline {
                apic.start_count();
                update_alarm(cpu);
            }
        }
        0x83e if value & !0xb == 0 => apic.divide = value as u32,
        0x83f if value <= 0xff => send_self(cpu, value as u8),
        _ => return Err(Exception::gp(0)),
    }
    Ok(None)
}

/// WRMSR of IA32_TSC_DEADLINE.
pub(crate) fn write_tsc_deadline(cpu: &mut Cpu, value: u64) {
    cpu.apic.set_tsc_deadline(value);
    update_alarm(cpu);
}

/// Makes the alarm clock follow the APIC's deadline.
pub(crate) fn update_alarm(cpu: &mut Cpu) {
    match cpu.apic.deadline() {
        Some(deadline) if deadline <= monotonic_ns() => cpu.request_attention(Attention::TIMER),
        Some(deadline) => cpu.guest.alarm_clock.set(&cpu.remote, deadline),
        None => cpu.guest.alarm_clock.cancel(cpu.apic.id),
    }
}

fn send_self(cpu: &mut Cpu, vector: u8) {
    if vector < 16 {
        cpu.apic.error_status |= 1 << 5;
        return;
    }
    cpu.apic.request(vector);
    cpu.interrupt_window_changed();
}

/// The vCPUs that an ICR value addresses, as a mask (SDM vol. 3 §10.12.9, §10.12.10).
fn destinations(own_id: u32, command: u64) -> u64 {
    let own = 1_u64 << (own_id & 63);
    let destination = (command >> 32) as u32;
    match command >> 18 & 3 {
        1 => own,
        2 => u64::MAX,
        3 => !own,
        _ if destination == u32::MAX => u64::MAX,
        _ if command & 1 << 11 != 0 => {
            let cluster = destination >> 16;
            if cluster < 4 { u64::from(destination & 0xffff) << (cluster * 16) } else { 0 }
        }
        _ => 1_u64.checked_shl(destination).unwrap_or(0),
    }
}

/// A write of the interrupt command register (SDM vol. 3 §10.6.1).
fn send_ipi(cpu: &mut Cpu, command: u64) -> Result<Option<Exit>, Exception> {
    if command & 0xfff3_2000 != 0 {
        return Err(Exception::gp(0));
    }
    cpu.apic.command = command;
    let own = 1_u64 << (cpu.apic.id & 63);
    let mask = destinations(cpu.apic.id, command);
    let vector = command as u8;
    let vector = match command >> 8 & 7 {
        // Fixed, and lowest priority, which without arbitration goes to all of its destinations.
        0 | 1 if vector < 16 => {
            cpu.apic.error_status |= 1 << 5;
            return Ok(None);
        }
        0 | 1 => vector,
        4 => 2,
        5 => {
            // The level de-assert form does nothing (SDM vol. 3 §10.6.1).
            if command & (ICR_LEVEL_ASSERT | ICR_TRIGGER_LEVEL) != ICR_TRIGGER_LEVEL {
                startup::send_init(cpu, mask & !own);
            }
            return Ok(None);
        }
        6 => {
            let missing = startup::send_start(cpu, mask & !own, vector);
            return Ok(missing.map(|id| Exit::Startup { id, entry: u64::from(vector) << 12 }));
        }
        _ => return Ok(None),
    };
    if mask & own != 0 {
        cpu.apic.request(vector);
        cpu.interrupt_window_changed();
    }
    let others = mask & !own;
    Ok((others != 0).then_some(Exit::Interrupt { mask: others, vector }))
}
