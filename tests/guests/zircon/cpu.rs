//! CPUs: each has descriptor tables and stacks of its own, a timer that ticks, and runs what the first gives it.

use crate::sync::Shared;
use crate::{acpi, apic, clock, hardware, interrupt, memory, println};
use core::arch::asm;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};

/// The most CPUs that are used.
pub const MAX_CPUS: usize = 64;
/// Where another CPU begins: a page of RAM below 1 MiB that nothing else uses.
const TRAMPOLINE: usize = 0x8000;
const STACK: usize = 16384;
/// How often each CPU's timer interrupts, in nanoseconds.
const TICK: u64 = 100_000_000;
/// How long a CPU may take to start, in nanoseconds of the guest.
const START_PATIENCE: u64 = 10_000_000_000;
const GS_BASE: u32 = 0xc000_0101;

const CODE: u16 = 0x08;
const DATA: u16 = 0x10;
const TASK: u16 = 0x18;

/// The task state segment: the stacks for interrupts (SDM vol. 3 §8.7).
#[repr(C, packed)]
struct TaskState {
    _reserved: u32,
    stacks: [u64; 3],
    _reserved2: u64,
    interrupt_stacks: [u64; 7],
    _reserved3: [u16; 5],
    io_map: u16,
}

/// What a CPU alone writes to while it starts.
#[repr(C, align(16))]
struct Tables {
    gdt: [u64; 5],
    task: TaskState,
    stack: [u8; STACK],
    exception_stack: [u8; STACK],
    interrupt_stack: [u8; STACK],
}

/// A CPU, as the others see it.
pub struct Cpu {
    index: AtomicUsize,
    /// Its APIC id.
    pub apic_id: AtomicU32,
    online: AtomicBool,
    /// Timer interrupts.
    pub ticks: AtomicU64,
    /// Interrupts by other CPUs.
    pub calls: AtomicU64,
    work: AtomicU64,
}

static TABLES: Shared<[Tables; MAX_CPUS]> = Shared::new([const { Tables::new() }; MAX_CPUS]);
static CPUS: [Cpu; MAX_CPUS] = [const { Cpu::new() }; MAX_CPUS];
/// Incremented by all in [`work`].
static COUNTER: AtomicU64 = AtomicU64::new(0);

unsafe extern "C" {
    static trampoline_start: u8;
    static trampoline_values: u8;
    static trampoline_end: u8;
}

impl Tables {
    const fn new() -> Self {
        Self {
            gdt: [0; 5],
            task: TaskState {
                _reserved: 0,
                stacks: [0; 3],
                _reserved2: 0,
                interrupt_stacks: [0; 7],
                _reserved3: [0; 5],
                io_map: 0,
            },
            stack: [0; STACK],
            exception_stack: [0; STACK],
            interrupt_stack: [0; STACK],
        }
    }
}

impl Cpu {
    const fn new() -> Self {
        Self {
            index: AtomicUsize::new(0),
            apic_id: AtomicU32::new(0),
            online: AtomicBool::new(false),
            ticks: AtomicU64::new(0),
            calls: AtomicU64::new(0),
            work: AtomicU64::new(0),
        }
    }
}

/// The CPUs that run, by number.
pub fn all() -> impl Iterator<Item = (usize, &'static Cpu)> {
    CPUS.iter().enumerate().filter(|(_, cpu)| cpu.online.load(Ordering::Acquire))
}

/// How many CPUs run.
pub fn online() -> usize {
    all().count()
}

/// The CPU that this runs on.
pub fn current() -> &'static Cpu {
    let cpu: *const Cpu;
    // SAFETY: GS points to the slot that has the CPU's address, since the CPU was set up.
    unsafe {
        asm!("mov {}, gs:[0]", out(reg) cpu, options(nostack, readonly, preserves_flags));
        &*cpu
    }
}

/// Where each CPU's GS points to.
static SELVES: Shared<[usize; MAX_CPUS]> = Shared::new([0; MAX_CPUS]);

fn top(stack: *mut [u8; STACK]) -> u64 {
    stack as u64 + STACK as u64
}

/// Sets up the CPU that this runs on.
fn initialize(index: usize) {
    // SAFETY: each CPU has its own entry, and uses it here only.
    unsafe {
        let tables = &raw mut (*TABLES.get())[index];
        let task = &raw mut (*tables).task;
        // Interrupts never use the interrupted stack, which may have a red zone.
        let mut stacks = [0; 7];
        stacks[0] = top(&raw mut (*tables).exception_stack);
        stacks[1] = top(&raw mut (*tables).interrupt_stack);
        (&raw mut (*task).interrupt_stacks).write_unaligned(stacks);
        (&raw mut (*task).io_map).write_unaligned(size_of::<TaskState>() as u16);
        let base = task as u64;
        let limit = size_of::<TaskState>() as u64 - 1;
        let descriptor = limit | (base & 0xff_ffff) << 16 | 0x89 << 40 | (base >> 24 & 0xff) << 56;
        (*tables).gdt = [0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff, descriptor, base >> 32];
        load_segments(&raw const (*tables).gdt);
        let this = &raw mut (*SELVES.get())[index];
        this.write(&raw const CPUS[index] as usize);
        hardware::write_msr(GS_BASE, this as u64);
    }
    interrupt::load();
    apic::initialize(interrupt::SPURIOUS, interrupt::TIMER);
    let cpu = &CPUS[index];
    cpu.index.store(index, Ordering::Relaxed);
    cpu.apic_id.store(apic::id(), Ordering::Relaxed);
}

/// Loads descriptor table, segment registers and task register.
///
/// # Safety
/// The table must stay, with the segments at the places that the constants name.
unsafe fn load_segments(gdt: *const [u64; 5]) {
    #[repr(C, packed)]
    struct Pointer(u16, u64);
    let pointer = Pointer(size_of::<[u64; 5]>() as u16 - 1, gdt as u64);
    // SAFETY: the caller's promise; the code segment is the same kind as before.
    unsafe {
        asm!(
            "lgdt [{pointer}]",
            "push {code}",
            "lea {scratch}, [rip + 2f]",
            "push {scratch}",
            "retfq",
            "2:",
            "mov ds, {data:e}",
            "mov es, {data:e}",
            "mov ss, {data:e}",
            "mov gs, {data:e}",
            "ltr {task:x}",
            pointer = in(reg) &raw const pointer,
            code = const CODE,
            data = in(reg) u32::from(DATA),
            task = in(reg) TASK,
            scratch = out(reg) _,
        );
    }
}

/// Sets up the CPU that the boot loader started.
pub fn initialize_first() {
    interrupt::initialize();
    initialize(0);
    CPUS[0].online.store(true, Ordering::Release);
}

/// Starts the timer of the CPU that this runs on.
fn start_ticking() {
    apic::set_deadline(clock::tsc_after(TICK));
}

/// The timer has interrupted.
pub fn tick() {
    current().ticks.fetch_add(1, Ordering::Relaxed);
    start_ticking();
}

/// Starts all CPUs that ACPI names, one after the other, and then this one's timer.
pub fn start_others(acpi: &acpi::Tables) {
    // SAFETY: the symbols are the bounds of the code, and the page is RAM that nobody else uses.
    unsafe {
        let code = &raw const trampoline_start;
        let len = &raw const trampoline_end as usize - code as usize;
        core::ptr::copy_nonoverlapping(code, TRAMPOLINE as *mut u8, len);
    }
    let own = apic::id();
    let others = acpi.cpus().filter(|id| *id != own).take(MAX_CPUS - 1);
    for (index, apic_id) in (1..).zip(others) {
        // SAFETY: the page has the code; the CPU before this one has left it.
        unsafe { fill_in_trampoline(index) };
        apic::start(apic_id, (TRAMPOLINE >> 12) as u8);
        let deadline = clock::nanos() + START_PATIENCE;
        while !CPUS[index].online.load(Ordering::Acquire) {
            if clock::nanos() > deadline {
                println!("CPU {index} (APIC id {apic_id}) does not start");
                return;
            }
            core::hint::spin_loop();
        }
    }
    start_ticking();
}

/// Says in the trampoline's last words what the next CPU is to load.
///
/// # Safety
/// No CPU may be in the trampoline.
unsafe fn fill_in_trampoline(index: usize) {
    // SAFETY: the caller's promise; the layout is that of `start.s`.
    unsafe {
        let offset = &raw const trampoline_values as usize - &raw const trampoline_start as usize;
        let values = (TRAMPOLINE + offset) as *mut u8;
        if index == 1 {
            // Addresses in the page, which until now count from its start.
            for at in [2, 8] {
                let value = values.add(at).cast::<u32>();
                value.write_unaligned(value.read_unaligned() + TRAMPOLINE as u32);
            }
        }
        let words = values.add(16).cast::<u64>();
        let tables = &raw mut (*TABLES.get())[index];
        words.write_volatile(memory::root());
        words.add(1).write_volatile(top(&raw mut (*tables).stack));
        words.add(2).write_volatile(index as u64);
        words.add(3).write_volatile(secondary_main as extern "C" fn(usize) -> ! as usize as u64);
    }
}

/// What every CPU but the first runs.
extern "C" fn secondary_main(index: usize) -> ! {
    initialize(index);
    start_ticking();
    CPUS[index].online.store(true, Ordering::Release);
    loop {
        hardware::wait_for_interrupt();
        let cpu = current();
        let count = cpu.work.load(Ordering::Acquire);
        if count > 0 {
            hardware::enable_interrupts();
            count_up(count);
            hardware::disable_interrupts();
            cpu.work.store(0, Ordering::Release);
        }
    }
}

/// Another CPU wants something: its loop looks when it goes on.
pub fn called() {
    current().calls.fetch_add(1, Ordering::Relaxed);
}

fn count_up(count: u64) {
    for _ in 0..count {
        COUNTER.fetch_add(1, Ordering::Relaxed);
    }
}

/// Makes all CPUs at once add one to the same word, each `count` times, and returns what comes of it.
pub fn work(count: u64) -> u64 {
    COUNTER.store(0, Ordering::SeqCst);
    for (_, cpu) in all().skip(1) {
        cpu.work.store(count, Ordering::Release);
        apic::interrupt(cpu.apic_id.load(Ordering::Relaxed), interrupt::CALL);
    }
    count_up(count);
    while all().any(|(_, cpu)| cpu.work.load(Ordering::Acquire) > 0) {
        core::hint::spin_loop();
    }
    COUNTER.load(Ordering::SeqCst)
}
