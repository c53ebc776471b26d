//! The vCPU calls: enter, kick, interrupt, traps, state. The cases are those of Zircon's hypervisor tests.

use super::machine::*;
use crate::{BellClosed, BellSink, Error, Exit, Guest, TrapKind, Vcpu};
use iced_x86::code_asm::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

const TRAP: u64 = 0x40_0000;

#[test]
fn enter_runs_a_loop_to_an_output() {
    let (port, value) = run(|a| {
        a.xor(eax, eax).unwrap();
        a.mov(ecx, 1000).unwrap();
        let mut top = a.create_label();
        a.set_label(&mut top).unwrap();
        a.add(eax, ecx).unwrap();
        a.dec(ecx).unwrap();
        a.jnz(top).unwrap();
        a.mov(dx, 0x3f8).unwrap();
        a.out(dx, eax).unwrap();
    });
    assert_eq!((port, value), (0x3f8, 500_500));
}

#[test]
fn registers_can_be_read_and_written() {
    let guest = program(|a| {
        a.add(rax, rbx).unwrap();
        a.lea(r15, ptr(r14 + 8)).unwrap();
        a.out(0x10, al).unwrap();
    });
    let mut vcpu = boot(&guest);
    let mut state = vcpu.read_state();
    state.gpr[0] = 0x1_0000_0000;
    state.gpr[3] = 5;
    state.gpr[14] = 0x77;
    state.rflags |= 1 << 9 | 1;
    vcpu.write_state(&state);
    assert_eq!(output(&mut vcpu), (0x10, 5));
    let after = vcpu.read_state();
    assert_eq!(after.gpr[0], 0x1_0000_0005);
    assert_eq!(after.gpr[15], 0x7f);
    assert_eq!(after.rflags & 1 << 9, 0, "the interrupt flag is not the monitor's to write");
}

#[test]
fn a_kick_cancels_the_next_enter_and_then_is_used_up() {
    let guest = program(|a| {
        a.mov(eax, 1).unwrap();
        a.out(0x10, eax).unwrap();
    });
    let mut vcpu = boot(&guest);
    vcpu.remote().kick();
    assert!(matches!(vcpu.enter(), Err(Error::Canceled)));
    assert_eq!(output(&mut vcpu), (0x10, 1));
    assert_eq!(vcpu.stats().kicks, 1);
}

/// A vCPU that is in this program returns when it is kicked.
fn assert_kick_ends(emit: impl FnOnce(&mut CodeAssembler)) {
    let guest = program(emit);
    let mut vcpu = boot(&guest);
    let remote = vcpu.remote();
    let kicker = thread::spawn(move || {
        thread::sleep(Duration::from_millis(5));
        remote.kick();
    });
    assert!(matches!(vcpu.enter(), Err(Error::Canceled)));
    kicker.join().unwrap();
}

#[test]
fn a_kick_ends_an_endless_loop() {
    assert_kick_ends(|a| {
        let mut top = a.create_label();
        a.set_label(&mut top).unwrap();
        a.jmp(top).unwrap();
    });
}

#[test]
fn a_kick_ends_a_halt() {
    assert_kick_ends(|a| {
        a.hlt().unwrap();
    });
}

#[test]
fn a_kick_ends_a_string_instruction() {
    assert_kick_ends(|a| {
        let mut top = a.create_label();
        a.set_label(&mut top).unwrap();
        a.mov(rdi, DATA).unwrap();
        a.mov(ecx, 0x10_0000).unwrap();
        a.rep().stosb().unwrap();
        a.jmp(top).unwrap();
    });
}

#[test]
fn an_interrupt_vector_out_of_bounds_is_refused() {
    let guest = guest();
    let vcpu = Vcpu::new(&guest, CODE).unwrap();
    assert!(matches!(vcpu.remote().interrupt(256), Err(Error::OutOfRange(_))));
    assert!(matches!(vcpu.remote().interrupt(u32::MAX), Err(Error::OutOfRange(_))));
    vcpu.remote().interrupt(255).unwrap();
}

#[test]
fn a_memory_trap_exits_past_the_instruction() {
    let guest = program(|a| {
        a.mov(rbx, TRAP + 0x10).unwrap();
        a.mov(dword_ptr(rbx), eax).unwrap();
        a.mov(eax, 3).unwrap();
        a.out(0x10, eax).unwrap();
    });
    guest.set_trap(TrapKind::Mem, TRAP, 0x1000, 99, None).unwrap();
    let mut vcpu = boot(&guest);
    let exit = vcpu.enter().unwrap();
    let Exit::Mem { key, addr, cr3: table, rip: at, instruction_size, default_operand_size } = exit
    else {
        panic!("unexpected exit {exit:x?}");
    };
    assert_eq!((key, addr, table), (99, TRAP + 0x10, 0));
    assert_eq!((instruction_size, default_operand_size), (2, 4));
    let mut code = [0; 2];
    guest.read_memory(at, &mut code).unwrap();
    assert_eq!(code, [0x89, 0x03]);
    assert_eq!(output(&mut vcpu), (0x10, 3));
    assert_eq!(vcpu.stats().mem_exits, 1);
}

#[test]
fn a_memory_trap_wins_over_ram_and_reads_exit_too() {
    let guest = program(|a| {
        a.mov(rbx, DATA).unwrap();
        a.mov(eax, dword_ptr(rbx)).unwrap();
        a.mov(eax, dword_ptr(rbx)).unwrap();
        a.out(0x10, eax).unwrap();
    });
    let mut vcpu = boot(&guest);
    guest.set_trap(TrapKind::Mem, DATA, 0x1000, 1, None).unwrap();
    for _ in 0..2 {
        assert!(matches!(vcpu.enter().unwrap(), Exit::Mem { addr: DATA, .. }));
    }
    let mut state = vcpu.read_state();
    state.gpr[0] = 0x1234;
    vcpu.write_state(&state);
    assert_eq!(output(&mut vcpu), (0x10, 0x1234));
}

struct Counter(Arc<AtomicU64>, bool);

impl BellSink for Counter {
    fn ring(&self, key: u64, addr: u64) -> Result<(), BellClosed> {
        if self.1 {
            return Err(BellClosed);
        }
        self.0.fetch_add(key + (addr & 0xfff), Ordering::SeqCst);
        Ok(())
    }
}

#[test]
fn bells_ring_without_an_exit() {
    let guest = program(|a| {
        a.mov(rbx, TRAP).unwrap();
        a.mov(ecx, 10).unwrap();
        let mut top = a.create_label();
        a.set_label(&mut top).unwrap();
        a.mov(word_ptr(rbx + 4), cx).unwrap();
        a.dec(ecx).unwrap();
        a.jnz(top).unwrap();
        a.mov(eax, 1).unwrap();
        a.out(0x10, eax).unwrap();
    });
    let rings = Arc::new(AtomicU64::new(0));
    let sink = Box::new(Counter(Arc::clone(&rings), false));
    guest.set_trap(TrapKind::Bell, TRAP, 0x1000, 100, Some(sink)).unwrap();
    let mut vcpu = boot(&guest);
    assert_eq!(output(&mut vcpu), (0x10, 1));
    assert_eq!(rings.load(Ordering::SeqCst), 10 * 104);
    assert_eq!(vcpu.stats().bells, 10);
}

#[test]
fn a_bell_without_a_receiver_stops_the_vcpu() {
    let guest = program(|a| {
        a.mov(rbx, TRAP).unwrap();
        a.mov(dword_ptr(rbx), eax).unwrap();
        a.out(0x10, eax).unwrap();
    });
    let sink = Box::new(Counter(Arc::default(), true));
    guest.set_trap(TrapKind::Bell, TRAP, 0x1000, 1, Some(sink)).unwrap();
    assert!(matches!(boot(&guest).enter(), Err(Error::BadState(_))));
}

#[test]
fn traps_check_their_ranges() {
    let guest = Guest::new().unwrap();
    let bell = || Some(Box::new(Counter(Arc::default(), false)) as Box<dyn BellSink>);
    let set = |kind, addr, size, sink| guest.set_trap(kind, addr, size, 0, sink);
    assert!(matches!(set(TrapKind::Mem, 0x1000, 0x1000, bell()), Err(Error::InvalidArgs(_))));
    assert!(matches!(set(TrapKind::Bell, 0x1000, 0x1000, None), Err(Error::InvalidArgs(_))));
    assert!(matches!(set(TrapKind::Io, 0x10, 1, bell()), Err(Error::InvalidArgs(_))));
    assert!(matches!(set(TrapKind::Mem, 0x1000, 0, None), Err(Error::InvalidArgs(_))));
    assert!(matches!(set(TrapKind::Mem, 0x1001, 0x1000, None), Err(Error::InvalidArgs(_))));
    assert!(matches!(set(TrapKind::Mem, 0x1000, 0x10, None), Err(Error::InvalidArgs(_))));
    assert!(matches!(set(TrapKind::Mem, !0xfff, 0x1000, None), Err(Error::OutOfRange(_))));
    assert!(matches!(set(TrapKind::Mem, 1 << 40, 0x1000, None), Err(Error::OutOfRange(_))));
    assert!(matches!(set(TrapKind::Io, 0xffff, 2, None), Err(Error::OutOfRange(_))));
    set(TrapKind::Mem, 0x2000, 0x2000, None).unwrap();
    assert!(matches!(set(TrapKind::Bell, 0x3000, 0x1000, bell()), Err(Error::AlreadyExists)));
    assert!(matches!(set(TrapKind::Mem, 0x1000, 0x2000, None), Err(Error::AlreadyExists)));
    set(TrapKind::Bell, 0x4000, 0x1000, bell()).unwrap();
    set(TrapKind::Io, 0x2000, 1, None).unwrap();
    assert!(matches!(set(TrapKind::Io, 0x1ff0, 0x20, None), Err(Error::AlreadyExists)));
}

#[test]
fn port_input_takes_its_data_from_the_monitor() {
    let guest = program(|a| {
        a.mov(rax, u64::MAX).unwrap();
        a.in_(al, 0x60).unwrap();
        a.mov(rbx, rax).unwrap();
        a.mov(rax, u64::MAX).unwrap();
        a.mov(dx, 0x1234).unwrap();
        a.in_(eax, dx).unwrap();
        a.out(0x10, al).unwrap();
    });
    let mut vcpu = boot(&guest);
    let exit = vcpu.enter().unwrap();
    assert!(matches!(exit, Exit::Io { port: 0x60, access_size: 1, input: true, .. }));
    assert!(matches!(vcpu.write_io(4, [0; 4]), Err(Error::InvalidArgs(_))));
    vcpu.write_io(1, [0x5a, 0, 0, 0]).unwrap();
    assert!(matches!(vcpu.write_io(1, [0; 4]), Err(Error::BadState(_))));
    let exit = vcpu.enter().unwrap();
    assert!(matches!(exit, Exit::Io { port: 0x1234, access_size: 4, input: true, .. }));
    vcpu.write_io(4, [1, 2, 3, 4]).unwrap();
    assert_eq!(output(&mut vcpu), (0x10, 1));
    let state = vcpu.read_state();
    assert_eq!(state.gpr[3], 0xffff_ffff_ffff_ff5a);
    assert_eq!(state.gpr[0], 0x0403_0201, "a 32-bit input is zero-extended");
}

#[test]
fn string_io_moves_memory() {
    let guest = program(|a| {
        a.mov(rsi, DATA).unwrap();
        a.mov(ecx, 3).unwrap();
        a.mov(dx, 0x20).unwrap();
        a.rep().outsb().unwrap();
        a.mov(rdi, DATA + 0x100).unwrap();
        a.mov(ecx, 2).unwrap();
        a.rep().insw().unwrap();
        a.mov(eax, dword_ptr(rdi - 4)).unwrap();
        a.out(0x10, eax).unwrap();
    });
    guest.write_memory(DATA, b"abc").unwrap();
    let mut vcpu = boot(&guest);
    for byte in b"abc" {
        assert_eq!(output(&mut vcpu), (0x20, u32::from(*byte)));
    }
    for word in [0x1122_u32, 0x3344] {
        let exit = vcpu.enter().unwrap();
        assert!(matches!(exit, Exit::Io { port: 0x20, access_size: 2, input: true, .. }));
        vcpu.write_io(2, word.to_le_bytes()).unwrap();
    }
    assert_eq!(output(&mut vcpu), (0x10, 0x3344_1122));
}

#[test]
fn untrapped_space_is_open_bus() {
    let guest = program(|a| {
        a.mov(rbx, 0x8000_0000_u64).unwrap();
        a.mov(dword_ptr(rbx), 5).unwrap();
        a.mov(eax, dword_ptr(rbx)).unwrap();
        a.out(0x10, eax).unwrap();
    });
    let mut vcpu = boot(&guest);
    assert_eq!(output(&mut vcpu), (0x10, u32::MAX));
    assert!(vcpu.stats().open_bus >= 2);
}

#[test]
fn unmapping_turns_ram_into_open_bus() {
    let guest = program(|a| {
        a.mov(rbx, DATA).unwrap();
        a.mov(eax, dword_ptr(rbx)).unwrap();
        a.out(0x10, eax).unwrap();
        a.mov(eax, dword_ptr(rbx)).unwrap();
        a.out(0x10, eax).unwrap();
    });
    guest.write_memory(DATA, &77_u32.to_le_bytes()).unwrap();
    let mut vcpu = boot(&guest);
    assert_eq!(output(&mut vcpu), (0x10, 77));
    guest.unmap(DATA, 0x1000).unwrap();
    assert_eq!(output(&mut vcpu), (0x10, u32::MAX));
}

#[test]
fn a_guest_has_at_most_64_vcpus() {
    let guest = guest();
    let vcpus: Vec<_> = (0..64).map(|_| Vcpu::new(&guest, 0x8000).unwrap()).collect();
    assert!(matches!(Vcpu::new(&guest, 0x8000), Err(Error::OutOfRange(_))));
    assert_eq!(vcpus[63].remote().id(), 63);
}

#[test]
fn interprocessor_interrupts_exit_with_their_targets() {
    let icr = |a: &mut CodeAssembler, value: u64| {
        a.mov(ecx, 0x830).unwrap();
        a.mov(eax, value as u32).unwrap();
        a.mov(edx, (value >> 32) as u32).unwrap();
        a.wrmsr().unwrap();
    };
    let guest = program(|a| {
        icr(a, 3 << 32 | 0x41);
        icr(a, 0xc_0042);
        icr(a, 2 << 32 | 0x400);
        icr(a, 1 << 32 | 0x4500);
        icr(a, 1 << 32 | 0x4608);
        icr(a, 0x0001_0003 << 32 | 0x843);
        a.out(0x10, al).unwrap();
    });
    let mut vcpu = boot(&guest);
    assert_eq!(vcpu.enter().unwrap(), Exit::Interrupt { mask: 8, vector: 0x41 });
    assert_eq!(vcpu.enter().unwrap(), Exit::Interrupt { mask: !1, vector: 0x42 });
    assert_eq!(vcpu.enter().unwrap(), Exit::Interrupt { mask: 4, vector: 2 });
    assert_eq!(vcpu.enter().unwrap(), Exit::Startup { id: 1, entry: 0x8000 });
    assert_eq!(vcpu.enter().unwrap(), Exit::Interrupt { mask: 0x3_0000, vector: 0x43 });
    assert_eq!(output(&mut vcpu).0, 0x10);
}
