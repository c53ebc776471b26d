//! Runs code natively at fixed addresses, and through a vCPU that maps the same addresses, from the same state.

use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError};

use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect};

use crate::exit::Exit;
use crate::guest::{Guest, TrapKind};
use crate::state::{Segment, seg};
use crate::translator::asm::{Asm, Mem};
use crate::translator::{RunExit, run};
use crate::vcpu::Vcpu;

pub(super) const CODE: u64 = 0x3000_0000;
pub(super) const CODE_SIZE: u64 = 0x4000;
pub(super) const DATA: u64 = 0x3100_0000;
/// Mapped bytes of data; the page behind them is not mapped.
pub(super) const DATA_SIZE: u64 = 0x3000;
/// A page where the guest has neither RAM nor a trap; natively it is all ones before each run.
pub(super) const VOID: u64 = 0x3200_0000;
/// A page of the guest with a MEM trap.
pub(super) const TRAP: u64 = 0x3300_0000;
const PHYSICAL_VOID: u64 = 0x4000_0000;
const PHYSICAL_TRAP: u64 = 0x4100_0000;
const TRAP_KEY: u64 = 5;
const PHYSICAL_CODE: u64 = 0x10_0000;
const PHYSICAL_DATA: u64 = 0x12_0000;

/// Registers of user code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Registers {
    pub(super) gpr: [u64; 16],
    pub(super) flags: u64,
    pub(super) mxcsr: u32,
    pub(super) vector: [[u8; 32]; 16],
    /// The first 160 bytes of an FXSAVE image, without pointers and MXCSR.
    pub(super) x87: [u8; 160],
}

impl Default for Registers {
    fn default() -> Registers {
        let mut x87 = [0; 160];
        x87[..2].copy_from_slice(&0x37fu16.to_le_bytes());
        Registers { gpr: [0; 16], flags: 2, mxcsr: 0x1f80, vector: [[0; 32]; 16], x87 }
    }
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// At the end of the code.
    Finished,
    /// With an exception, at this address.
    Exception { vector: u8, rip: u64 },
    /// At a MEM trap, this far into its page.
    Trap { offset: u64 },
}

/// Everything a run leaves behind.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Outcome {
    pub(super) end: End,
    pub(super) registers: Registers,
    pub(super) data: Vec<u8>,
}

/// Native side: layout of the context at GS.
#[repr(C, align(64))]
struct Context {
    gpr: [u64; 16],
    flags: u64,
    host_rsp: u64,
    code: u64,
    mxcsr: u32,
    host_mxcsr: u32,
    vector: [[u8; 32]; 16],
    fxsave: [u8; 512],
}

const OFFSET_FLAGS: u32 = 128;
const OFFSET_HOST_RSP: u32 = 136;
const OFFSET_CODE: u32 = 144;
const OFFSET_MXCSR: u32 = 152;
const OFFSET_HOST_MXCSR: u32 = 156;
const OFFSET_VECTOR: u32 = 160;
const OFFSET_FXSAVE: u32 = 672;

struct NativeStubs {
    enter: u64,
    leave: u64,
}

static NATIVE: Mutex<Option<NativeStubs>> = Mutex::new(None);
thread_local! {
    static IN_NATIVE: Cell<u64> = const { Cell::new(0) };
    static FAULT: Cell<Option<(u8, u64)>> = const { Cell::new(None) };
}

fn protect(at: u64, len: u64, flags: MprotectFlags) {
    // SAFETY: only ever called for the harness's own fixed mappings.
    unsafe { mprotect(at as *mut c_void, len as usize, flags) }.expect("mprotect");
}

fn map_fixed(at: u64, len: u64) {
    // SAFETY: fails instead of replacing anything that is already there.
    let got = unsafe {
        mmap_anonymous(
            at as *mut c_void,
            len as usize,
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::PRIVATE | MapFlags::FIXED_NOREPLACE,
        )
    };
    assert_eq!(got.expect("the harness's address range is free") as u64, at);
}

fn build_native() -> NativeStubs {
    assert_eq!(std::mem::offset_of!(Context, fxsave), OFFSET_FXSAVE as usize);
    assert_eq!(std::mem::offset_of!(Context, vector), OFFSET_VECTOR as usize);
    map_fixed(CODE, CODE_SIZE);
    map_fixed(DATA, DATA_SIZE);
    map_fixed(VOID, 0x1000);
    let stubs_at = CODE - 0x1000;
    map_fixed(stubs_at, 0x1000);
    let mut asm = Asm::new();
    asm.reset(stubs_at);
    let enter = asm.here();
    for r in [3, 5, 12, 13, 14, 15] {
        asm.push(r);
    }
    // wrgsbase rdi
    asm.wrgsbase(7);
    asm.store(Mem::GsAbs(OFFSET_HOST_RSP), 4);
    asm.mxcsr(true, Mem::GsAbs(OFFSET_HOST_MXCSR));
    // fxrstor64 gs:[fxsave]
    asm.bytes(&[0x65, 0x48, 0x0f, 0xae, 0x0c, 0x25]);
    asm.bytes(&OFFSET_FXSAVE.to_le_bytes());
    asm.mxcsr(false, Mem::GsAbs(OFFSET_MXCSR));
    for n in 0..16 {
        asm.bytes(&[0x65]);
        asm.vmovups(false, n, Mem::Abs(OFFSET_VECTOR + 32 * u32::from(n)));
    }
    // push gs:[flags]; popfq
    asm.bytes(&[0x65, 0xff, 0x34, 0x25]);
    asm.bytes(&OFFSET_FLAGS.to_le_bytes());
    asm.bytes(&[0x9d]);
    for n in 0..16 {
        asm.load(n, Mem::GsAbs(u32::from(n) * 8));
    }
    asm.jmp_mem(Mem::GsAbs(OFFSET_CODE));
    let leave = asm.here();
    for n in 0..16 {
        asm.store(Mem::GsAbs(u32::from(n) * 8), n);
    }
    asm.load(4, Mem::GsAbs(OFFSET_HOST_RSP));
    // pushfq; pop gs:[flags]; cld
    asm.bytes(&[0x9c, 0x65, 0x8f, 0x04, 0x25]);
    asm.bytes(&OFFSET_FLAGS.to_le_bytes());
    asm.bytes(&[0xfc]);
    for n in 0..16 {
        asm.bytes(&[0x65]);
        asm.vmovups(true, n, Mem::Abs(OFFSET_VECTOR + 32 * u32::from(n)));
    }
    asm.vzeroupper();
    asm.mxcsr(true, Mem::GsAbs(OFFSET_MXCSR));
    asm.mxcsr(false, Mem::GsAbs(OFFSET_HOST_MXCSR));
    // fxsave64 gs:[fxsave]; fninit
    asm.bytes(&[0x65, 0x48, 0x0f, 0xae, 0x04, 0x25]);
    asm.bytes(&OFFSET_FXSAVE.to_le_bytes());
    asm.bytes(&[0xdb, 0xe3]);
    for r in [15, 14, 13, 12, 5, 3] {
        asm.pop(r);
    }
    asm.ret();
    write_native(stubs_at, &asm.code);
    protect(stubs_at, 0x1000, MprotectFlags::READ | MprotectFlags::EXEC);
    NativeStubs { enter, leave }
}

fn write_native(at: u64, bytes: &[u8]) {
    // SAFETY: the harness's own writable mapping, long enough, used by one test at a time.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), at as *mut u8, bytes.len()) }
}

fn read_native(at: u64, len: u64) -> Vec<u8> {
    // SAFETY: the harness's own mapping, initialized by the kernel.
    unsafe { std::slice::from_raw_parts(at as *const u8, len as usize) }.to_vec()
}

static mut PREVIOUS: [std::mem::MaybeUninit<libc::sigaction>; 4] =
    [const { std::mem::MaybeUninit::uninit() }; 4];
const SIGNALS: [c_int; 4] = [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL];

extern "C" fn on_signal(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    let leave = IN_NATIVE.get();
    if leave != 0 {
        // SAFETY: the kernel passes valid pointers.
        let (info, context) = unsafe { (&*info, &mut *context.cast::<libc::ucontext_t>()) };
        let rip = context.uc_mcontext.gregs[libc::REG_RIP as usize] as u64;
        // SAFETY: the kernel's pointer to the interrupted x87 state.
        let x87 = unsafe { (*context.uc_mcontext.fpregs).swd } & 0x80 != 0;
        let vector = match signal {
            libc::SIGFPE if info.si_code <= 2 => 0,
            libc::SIGFPE if x87 => 16,
            libc::SIGFPE => 19,
            libc::SIGILL => 6,
            // A non-canonical address through RSP or RBP.
            libc::SIGBUS => 12,
            libc::SIGSEGV if info.si_code == 0x80 => 13,
            _ => 14,
        };
        FAULT.set(Some((vector, rip)));
        context.uc_mcontext.gregs[libc::REG_RIP as usize] = leave as i64;
        return;
    }
    let index = SIGNALS.iter().position(|&s| s == signal).unwrap_or(0);
    // SAFETY: written once before this handler was installed.
    unsafe {
        let previous = (*std::ptr::addr_of!(PREVIOUS))[index].assume_init_ref();
        if previous.sa_sigaction == libc::SIG_DFL || previous.sa_sigaction == libc::SIG_IGN {
            libc::sigaction(signal, previous, std::ptr::null_mut());
            return;
        }
        let function: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) =
            std::mem::transmute(previous.sa_sigaction);
        function(signal, info, context);
    }
}

fn install_handler() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        for (index, signal) in SIGNALS.into_iter().enumerate() {
            // SAFETY: zero is a valid action; the handler has the right signature; PREVIOUS is written before use.
            unsafe {
                let slot = (*std::ptr::addr_of_mut!(PREVIOUS))[index].as_mut_ptr();
                libc::sigaction(signal, std::ptr::null(), slot);
                let mut action: libc::sigaction = std::mem::zeroed();
                action.sa_sigaction = on_signal as *const () as usize;
                action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
                libc::sigaction(signal, &action, std::ptr::null_mut());
            }
        }
    });
}

/// Both sides. Holds the lock on the fixed addresses.
pub(super) struct Harness {
    native: MutexGuard<'static, Option<NativeStubs>>,
    guest: Arc<Guest>,
    vcpu: Vcpu,
}

impl Harness {
    pub(super) fn new() -> Harness {
        let mut native = NATIVE.lock().unwrap_or_else(PoisonError::into_inner);
        let guest = Guest::new().expect("guest");
        let ram =
            rustix::fs::memfd_create("test-ram", rustix::fs::MemfdFlags::CLOEXEC).expect("memfd");
        rustix::fs::ftruncate(&ram, 4 << 20).expect("ftruncate");
        guest.map(0, ram.as_fd(), 0, 4 << 20).expect("map");
        build_page_tables(&guest);
        guest.set_trap(TrapKind::Mem, PHYSICAL_TRAP, 0x1000, TRAP_KEY, None).expect("trap");
        let mut vcpu = Vcpu::new(&guest, CODE).expect("vcpu");
        // After the translator's: it forwards what is not native, whichever came first.
        install_handler();
        native.get_or_insert_with(build_native);
        start_state(vcpu.cpu_mut());
        Harness { native, guest, vcpu }
    }

    /// Runs `code`, which falls off its end, on both sides.
    pub(super) fn compare(
        &mut self,
        code: &[u8],
        registers: &Registers,
        data: &[u8],
    ) -> (Outcome, Outcome) {
        let native = self.run_native(code, registers, data);
        let translated = self.run_translated(code, registers, data);
        (native, translated)
    }

    fn run_native(&mut self, code: &[u8], registers: &Registers, data: &[u8]) -> Outcome {
        let stubs = self.native.as_ref().expect("built in new");
        protect(CODE, CODE_SIZE, MprotectFlags::READ | MprotectFlags::WRITE);
        write_native(CODE, &vec![0xf4; CODE_SIZE as usize]);
        write_native(CODE, code);
        let mut asm = Asm::new();
        asm.reset(CODE + code.len() as u64);
        asm.jmp(stubs.leave);
        write_native(CODE + code.len() as u64, &asm.code);
        protect(CODE, CODE_SIZE, MprotectFlags::READ | MprotectFlags::EXEC);
        write_native(DATA, data);
        write_native(VOID, &[0xff; 0x1000]);
        let mut context = Context {
            gpr: registers.gpr,
            flags: registers.flags,
            host_rsp: 0,
            code: CODE,
            mxcsr: registers.mxcsr,
            host_mxcsr: 0,
            vector: registers.vector,
            fxsave: [0; 512],
        };
        context.fxsave[..160].copy_from_slice(&registers.x87);
        context.fxsave[24..28].copy_from_slice(&0x1f80u32.to_le_bytes());
        FAULT.set(None);
        IN_NATIVE.set(stubs.leave);
        // SAFETY: the stub saves what the calling convention asks for; the code runs in the harness's own mappings.
        let enter: extern "C" fn(*mut Context) = unsafe { std::mem::transmute(stubs.enter) };
        enter(&mut context);
        IN_NATIVE.set(0);
        let end = match FAULT.get() {
            Some((vector, rip)) => End::Exception { vector, rip },
            None => End::Finished,
        };
        let mut x87 = [0; 160];
        x87.copy_from_slice(&context.fxsave[..160]);
        x87[6..32].fill(0);
        Outcome {
            end,
            registers: Registers {
                gpr: context.gpr,
                flags: context.flags & 0xcd5,
                mxcsr: context.mxcsr,
                vector: context.vector,
                x87,
            },
            data: read_native(DATA, DATA_SIZE),
        }
    }

    pub(super) fn run_translated(
        &mut self,
        code: &[u8],
        registers: &Registers,
        data: &[u8],
    ) -> Outcome {
        self.write_code(code);
        self.guest.write_memory(PHYSICAL_DATA, data).expect("data");
        let cpu = self.vcpu.cpu_mut();
        cpu.flush_tlb();
        cpu.state.gpr = registers.gpr;
        cpu.state.rflags = registers.flags & 0xcd5 | 2;
        cpu.state.mxcsr = registers.mxcsr;
        cpu.state.vector = registers.vector;
        cpu.state.fxsave.0[..160].copy_from_slice(&registers.x87);
        cpu.translator.fpu_loaded = true;
        cpu.state.rip = CODE;
        let mut turns = 0;
        let end = loop {
            match run(cpu) {
                RunExit::Halt => break End::Finished,
                RunExit::Exception(exception) => {
                    break End::Exception { vector: exception.vector, rip: cpu.state.rip };
                }
                RunExit::Attention => {
                    cpu.state.attention.store(0, std::sync::atomic::Ordering::SeqCst);
                    if std::mem::take(&mut cpu.step_once) {
                        // As the run loop does.
                        let stepped = crate::interp::fetch(cpu)
                            .and_then(|instruction| crate::interp::execute(cpu, &instruction));
                        match stepped {
                            Err(crate::exception::Fault::Exception(exception)) => {
                                let (vector, rip) = (exception.vector, cpu.state.rip);
                                break End::Exception { vector, rip };
                            }
                            Ok(crate::interp::Flow::Exit(Exit::Mem { addr, .. })) => {
                                break End::Trap { offset: addr - PHYSICAL_TRAP };
                            }
                            _ => {}
                        }
                    }
                    turns += 1;
                    assert!(
                        turns < 1000,
                        "the run loop spins at {:#x} in {code:02x?}, stepping {}",
                        cpu.state.rip,
                        cpu.needs_stepping()
                    );
                }
                RunExit::Exit(Exit::Mem { key: TRAP_KEY, addr, .. }) => {
                    break End::Trap { offset: addr - PHYSICAL_TRAP };
                }
                other => panic!("unexpected exit {other:?}"),
            }
        };
        let cpu = self.vcpu.cpu_mut();
        let mut x87 = [0; 160];
        x87.copy_from_slice(&cpu.state.fxsave.0[..160]);
        x87[6..32].fill(0);
        let registers = Registers {
            gpr: cpu.state.gpr,
            flags: cpu.state.rflags & 0xcd5,
            mxcsr: cpu.state.mxcsr,
            vector: cpu.state.vector,
            x87,
        };
        let mut data = vec![0; DATA_SIZE as usize];
        self.guest.read_memory(PHYSICAL_DATA, &mut data).expect("data");
        Outcome { end, registers, data }
    }

    /// Puts code where the vCPU finds it; the rest of the area is HLT.
    pub(super) fn write_code(&mut self, code: &[u8]) {
        let mut image = code.to_vec();
        image.resize(CODE_SIZE as usize, 0xf4);
        self.guest.write_memory(PHYSICAL_CODE, &image).expect("code");
    }

    /// Undoes what privileged random code may have done.
    pub(super) fn reset_system_state(&mut self) {
        build_page_tables(&self.guest);
        start_state(self.vcpu.cpu_mut());
    }

    pub(super) fn cpu(&mut self) -> &mut crate::cpu::Cpu {
        self.vcpu.cpu_mut()
    }
}

/// 64-bit supervisor mode with paging and all vector units enabled.
fn start_state(cpu: &mut crate::cpu::Cpu) {
    let state = &mut *cpu.state;
    state.cr3 = 0x1000;
    state.cr0 = 1 << 31 | 1 << 16 | 1 << 5 | 1 << 4 | 1;
    state.cr4 = 1 << 5 | 1 << 9 | 1 << 10 | 1 << 18;
    state.efer = 1 << 8 | 1 << 10;
    state.xcr0 = 7;
    state.dr[7] = 0x400;
    state.segments = [Segment::flat_data(0, 0); 6];
    state.segments[seg::CS] = Segment::long_code(0, 0);
    cpu.interrupt_shadow = None;
    cpu.set_cpl(0);
    cpu.flush_tlb();
}

/// Maps code, data and a hole behind the data with 4 KiB pages.
fn build_page_tables(guest: &Guest) {
    let entry =
        |at: u64, value: u64| guest.write_memory(at, &value.to_le_bytes()).expect("page table");
    entry(0x1000, 0x2003);
    entry(0x2000, 0x3003);
    let pages = [
        (CODE, PHYSICAL_CODE, CODE_SIZE),
        (DATA, PHYSICAL_DATA, DATA_SIZE),
        (VOID, PHYSICAL_VOID, 0x1000),
        (TRAP, PHYSICAL_TRAP, 0x1000),
    ];
    for (va, gpa, len) in pages {
        let directory = 0x3000 + (va >> 21 & 511) * 8;
        let table = 0x4000 + (va >> 21 & 511) * 0x1000 % 0x10_0000;
        entry(directory, table | 3);
        for page in 0..len / 4096 {
            let at = va + page * 4096;
            entry(table + (at >> 12 & 511) * 8, (gpa + page * 4096) | 3);
        }
    }
}

/// A small deterministic generator.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    pub(super) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    /// A value with edge cases more often than chance has them.
    pub(super) fn value(&mut self) -> u64 {
        match self.below(8) {
            0 => 0,
            1 => u64::MAX,
            2 => 1 << self.below(64),
            3 => self.below(256),
            4 => i64::from(self.next() as i32) as u64,
            _ => self.next(),
        }
    }

    /// Any rounding mode, flush to zero and denormals-are-zero now and then, some exceptions unmasked rarely, some flags
    /// set.
    pub(super) fn mxcsr(&mut self) -> u32 {
        let modes = self.next() as u32 & 0xe07f;
        let masks = if self.below(8) == 0 { self.next() as u32 & 0x1f80 } else { 0x1f80 };
        if self.below(2) == 0 { 0x1f80 } else { modes | masks }
    }

    pub(super) fn registers(&mut self) -> Registers {
        let mut registers = Registers::default();
        for gpr in &mut registers.gpr {
            *gpr = self.value();
        }
        registers.flags = self.next() & 0x8d5 | 2;
        for vector in &mut registers.vector {
            for lane in vector.chunks_mut(8) {
                let value = match self.below(4) {
                    0 => (self.next() as i32 as f64).to_bits(),
                    1 => {
                        u64::from((self.next() as i16 as f32).to_bits())
                            | u64::from((1.5f32).to_bits()) << 32
                    }
                    _ => self.value(),
                };
                lane.copy_from_slice(&value.to_le_bytes());
            }
        }
        registers
    }

    pub(super) fn data(&mut self) -> Vec<u8> {
        let mut data = vec![0; DATA_SIZE as usize];
        for chunk in data.chunks_mut(8) {
            chunk.copy_from_slice(&self.value().to_le_bytes());
        }
        data
    }
}

/// Describes the first difference, if any, outside the given flags.
pub(super) fn difference(
    native: &Outcome,
    translated: &Outcome,
    ignored_flags: u64,
) -> Option<String> {
    if native.end != translated.end {
        return Some(format!("end: native {:?}, translated {:?}", native.end, translated.end));
    }
    let (a, b) = (&native.registers, &translated.registers);
    for n in 0..16 {
        if a.gpr[n] != b.gpr[n] {
            return Some(format!("gpr {n}: native {:#x}, translated {:#x}", a.gpr[n], b.gpr[n]));
        }
        if a.vector[n] != b.vector[n] {
            return Some(format!(
                "ymm{n}: native {:x?}, translated {:x?}",
                a.vector[n], b.vector[n]
            ));
        }
    }
    let ignored = if native.end == End::Finished { ignored_flags } else { 0x8d5 };
    if (a.flags ^ b.flags) & !ignored != 0 {
        return Some(format!("flags: native {:#x}, translated {:#x}", a.flags, b.flags));
    }
    if a.mxcsr != b.mxcsr {
        return Some(format!("mxcsr: native {:#x}, translated {:#x}", a.mxcsr, b.mxcsr));
    }
    if a.x87 != b.x87 {
        return Some(format!("x87: native {:x?}, translated {:x?}", a.x87, b.x87));
    }
    let at = native.data.iter().zip(&translated.data).position(|(a, b)| a != b)?;
    Some(format!(
        "data at {at:#x}: native {:#x}, translated {:#x}",
        native.data[at], translated.data[at]
    ))
}
