//! Several vCPUs in one guest: atomics, memory ordering, code that another vCPU changes, interrupts between them.

use super::machine::*;
use crate::{Exit, Guest, Vcpu, VcpuRemote};
use iced_x86::code_asm::*;
use std::sync::{Arc, Barrier, Mutex};
use std::thread;

/// Runs one 64-bit program a vCPU, each on a thread of its own, until all have written to a port. Gives what they wrote.
///
/// Every vCPU starts with its number in RDI. Interprocessor interrupts are passed on.
pub(super) fn run_all(guest: &Arc<Guest>, entries: &[u64]) -> Vec<u32> {
    let remotes: Mutex<Vec<Arc<VcpuRemote>>> = Mutex::default();
    let ready = Barrier::new(entries.len());
    // The bootstrap processor's registers are what the others start with too.
    let turn = Mutex::new(());
    thread::scope(|scope| {
        let threads: Vec<_> = entries
            .iter()
            .enumerate()
            .map(|(index, &entry)| {
                let (remotes, ready, turn) = (&remotes, &ready, &turn);
                scope.spawn(move || {
                    let mut vcpu = {
                        let _turn = turn.lock().unwrap();
                        let vcpu = Vcpu::new(guest, 0).unwrap();
                        remotes.lock().unwrap().push(vcpu.remote());
                        vcpu
                    };
                    vcpu.cpu_mut().start_long_mode(entry);
                    vcpu.cpu_mut().rights_changed();
                    let mut state = vcpu.read_state();
                    state.gpr[4] = STACK - index as u64 * 0x1000;
                    state.gpr[7] = index as u64;
                    vcpu.write_state(&state);
                    ready.wait();
                    run_to_output(&mut vcpu, remotes)
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

fn run_to_output(vcpu: &mut Vcpu, remotes: &Mutex<Vec<Arc<VcpuRemote>>>) -> u32 {
    loop {
        match vcpu.enter().unwrap() {
            Exit::Io { input: false, data, .. } => return u32::from_le_bytes(data),
            Exit::Interrupt { mask, vector } => {
                for remote in
                    remotes.lock().unwrap().iter().filter(|remote| mask >> remote.id() & 1 != 0)
                {
                    remote.interrupt(vector.into()).unwrap();
                }
            }
            other => panic!("unexpected exit {other:x?}"),
        }
    }
}

/// Emits a rendezvous of `count` vCPUs on the counter at `address`, which starts at 0.
fn meet(a: &mut CodeAssembler, address: u64, count: u32) {
    let mut wait = a.create_label();
    a.lock().inc(dword_ptr(address)).unwrap();
    a.set_label(&mut wait).unwrap();
    a.pause().unwrap();
    a.cmp(dword_ptr(address), count as i32).unwrap();
    a.jb(wait).unwrap();
}

pub(super) fn report(a: &mut CodeAssembler) {
    a.out(0x10, eax).unwrap();
}

/// The same program on `count` vCPUs.
fn run_same(count: usize, build: impl FnOnce(&mut CodeAssembler)) -> (Arc<Guest>, Vec<u32>) {
    let guest = program(build);
    let results = run_all(&guest, &vec![CODE; count]);
    (guest, results)
}

/// Emits `body` in a loop of `count` rounds in ESI.
pub(super) fn repeat(a: &mut CodeAssembler, count: u32, body: impl FnOnce(&mut CodeAssembler)) {
    let mut top = a.create_label();
    a.mov(esi, count).unwrap();
    a.set_label(&mut top).unwrap();
    body(a);
    a.dec(esi).unwrap();
    a.jnz(top).unwrap();
}

const ROUNDS: u32 = 20_000;

#[test]
fn sixty_four_vcpus_run() {
    let count = crate::MAX_VCPUS;
    let guest = program(|a| {
        a.lock().inc(qword_ptr(DATA)).unwrap();
        report(a);
    });
    run_all(&guest, &vec![CODE; count]);
    assert_eq!(read_u64(&guest, DATA), count as u64);
}

/// Emits a write of the x2APIC interrupt command register: to vCPU 1.
fn command(a: &mut CodeAssembler, low: u32) {
    a.mov(ecx, 0x830).unwrap();
    a.mov(eax, low).unwrap();
    a.mov(edx, 1).unwrap();
    a.wrmsr().unwrap();
}

/// Emits a wait until the byte at `address` is `value`.
fn wait_for(a: &mut CodeAssembler, address: u64, value: u32) {
    let mut again = a.create_label();
    a.set_label(&mut again).unwrap();
    a.pause().unwrap();
    a.cmp(byte_ptr(address), value as i32).unwrap();
    a.jne(again).unwrap();
}

#[test]
fn init_and_a_start_up_ipi_restart_a_vcpu() {
    const COUNT: u64 = 0x3_8000;
    let guest = guest();
    // At two vectors: mov ax, 0x3000; mov ds, ax; inc byte [0x8000] or add byte [0x8000], 16; then what must not last.
    let start = [0xb8, 0x00, 0x30, 0x8e, 0xd8];
    let rest: [&[u8]; 2] =
        [&[0xfe, 0x06, 0x00, 0x80, 0xeb, 0xfe], &[0x80, 0x06, 0x00, 0x80, 0x10, 0xfa, 0xf4]];
    for (vector, rest) in [0x8000, 0x9000].into_iter().zip(rest) {
        guest.write_memory(vector, &[&start, rest].concat()).unwrap();
    }
    load_at(&guest, CODE, |a| {
        command(a, 0x608);
        wait_for(a, COUNT, 1);
        // A start-up IPI to a vCPU that runs is ignored; INIT stops it, and de-asserting INIT does nothing.
        command(a, 0x609);
        command(a, 0xc500);
        command(a, 0x8500);
        command(a, 0x609);
        wait_for(a, COUNT, 0x11);
        command(a, 0x4500);
        command(a, 0x608);
        command(a, 0x609);
        wait_for(a, COUNT, 0x12);
        a.mov(eax, 7).unwrap();
        report(a);
    });
    let mut bootstrap = boot(&guest);
    let (second, started) = std::sync::mpsc::channel();
    match bootstrap.enter().unwrap() {
        Exit::Startup { id: 1, entry: 0x8000 } => {}
        other => panic!("unexpected exit {other:x?}"),
    }
    thread::scope(|scope| {
        let guest = &guest;
        scope.spawn(move || {
            let mut vcpu = Vcpu::new(guest, 0x8000).unwrap();
            second.send(vcpu.remote()).unwrap();
            assert!(matches!(vcpu.enter(), Err(crate::Error::Canceled)));
        });
        let remote = started.recv().unwrap();
        assert_eq!(output(&mut bootstrap), (0x10, 7));
        remote.kick();
    });
    assert_eq!(read_u64(&guest, COUNT) & 0xff, 0x12);
}

#[test]
fn locked_increments_are_never_lost() {
    let (guest, _) = run_same(3, |a| {
        meet(a, DATA + 0x100, 3);
        repeat(a, ROUNDS, |a| {
            a.lock().inc(qword_ptr(DATA)).unwrap();
            a.mov(eax, 1).unwrap();
            a.lock().xadd(dword_ptr(DATA + 0x40), eax).unwrap();
            a.lock().add(word_ptr(DATA + 0x80), 1).unwrap();
        });
        report(a);
    });
    assert_eq!(read_u64(&guest, DATA), 3 * u64::from(ROUNDS));
    assert_eq!(read_u64(&guest, DATA + 0x40), 3 * u64::from(ROUNDS));
    assert_eq!(read_u64(&guest, DATA + 0x80) & 0xffff, (3 * u64::from(ROUNDS)) & 0xffff);
}

#[test]
fn locked_increments_across_a_page_are_never_lost() {
    let rounds = 2_000;
    let (guest, _) = run_same(2, |a| {
        meet(a, DATA + 0x100, 2);
        repeat(a, rounds, |a| {
            a.lock().inc(qword_ptr(DATA + 0xffc)).unwrap();
        });
        report(a);
    });
    assert_eq!(read_u64(&guest, DATA + 0xffc), 2 * u64::from(rounds));
}

#[test]
fn sixteen_byte_exchanges_are_whole() {
    // Each vCPU adds 1 to both halves; a torn exchange makes them differ.
    let (guest, results) = run_same(2, |a| {
        meet(a, DATA + 0x100, 2);
        a.xor(r9d, r9d).unwrap();
        repeat(a, ROUNDS, |a| {
            let mut again = a.create_label();
            a.mov(rax, qword_ptr(DATA)).unwrap();
            a.mov(rdx, qword_ptr(DATA + 8)).unwrap();
            a.set_label(&mut again).unwrap();
            a.lea(rbx, ptr(rax + 1)).unwrap();
            a.lea(rcx, ptr(rdx + 1)).unwrap();
            a.lock().cmpxchg16b(xmmword_ptr(DATA)).unwrap();
            a.jnz(again).unwrap();
        });
        a.mov(eax, r9d).unwrap();
        report(a);
    });
    assert_eq!(results, [0, 0]);
    assert_eq!(read_u64(&guest, DATA), 2 * u64::from(ROUNDS));
    assert_eq!(read_u64(&guest, DATA + 8), 2 * u64::from(ROUNDS));
}

#[test]
fn messages_arrive_after_their_data() {
    let guest = guest();
    let (data, flag) = (DATA, DATA + 0x1000);
    load_at(&guest, CODE, |a| {
        meet(a, DATA + 0x100, 2);
        repeat(a, ROUNDS, |a| {
            a.mov(dword_ptr(data), esi).unwrap();
            a.mov(dword_ptr(flag), esi).unwrap();
        });
        report(a);
    });
    load_at(&guest, CODE + 0x1000, |a| {
        let mut top = a.create_label();
        let mut fine = a.create_label();
        meet(a, DATA + 0x100, 2);
        a.xor(eax, eax).unwrap();
        a.set_label(&mut top).unwrap();
        a.mov(ecx, dword_ptr(flag)).unwrap();
        a.mov(edx, dword_ptr(data)).unwrap();
        a.test(ecx, ecx).unwrap();
        a.jz(top).unwrap();
        // The counter goes down: data older than the flag is greater than it.
        a.cmp(edx, ecx).unwrap();
        a.jbe(fine).unwrap();
        a.inc(eax).unwrap();
        a.set_label(&mut fine).unwrap();
        a.cmp(ecx, 1).unwrap();
        a.jne(top).unwrap();
        report(a);
    });
    assert_eq!(run_all(&guest, &[CODE, CODE + 0x1000])[1], 0);
}

#[test]
fn code_changed_by_another_vcpu_is_seen() {
    // One vCPU rewrites the immediate of a MOV that the other runs, and waits until the other has seen it.
    let guest = guest();
    let target = CODE + 0x2000;
    load_at(&guest, target, |a| {
        a.mov(eax, 0).unwrap();
        a.ret().unwrap();
    });
    let rounds = 200;
    let seen = DATA + 0x1000;
    load_at(&guest, CODE, |a| {
        a.xor(ecx, ecx).unwrap();
        repeat(a, rounds, |a| {
            let mut wait = a.create_label();
            a.inc(ecx).unwrap();
            a.mov(dword_ptr(target + 1), ecx).unwrap();
            a.set_label(&mut wait).unwrap();
            a.pause().unwrap();
            a.cmp(dword_ptr(seen), ecx).unwrap();
            a.jne(wait).unwrap();
        });
        a.mov(eax, ecx).unwrap();
        report(a);
    });
    load_at(&guest, CODE + 0x1000, |a| {
        let mut top = a.create_label();
        a.set_label(&mut top).unwrap();
        a.call(target).unwrap();
        a.mov(dword_ptr(seen), eax).unwrap();
        a.cmp(eax, rounds as i32).unwrap();
        a.jne(top).unwrap();
        report(a);
    });
    assert_eq!(run_all(&guest, &[CODE, CODE + 0x1000]), [rounds, rounds]);
}

#[test]
fn interrupts_between_vcpus_arrive() {
    // vCPU 0 halts until vCPU 1's interrupt has been handled; handlers of the System report AL on port 0x66.
    let system = System::new();
    let guest = &system.guest;
    drop(system.boot(|a| {
        a.mov(eax, 0x1234).unwrap();
        a.sti().unwrap();
        a.hlt().unwrap();
    }));
    let guest = Arc::clone(guest);
    // `boot` above only loaded the program; take fresh vCPU numbers from a guest whose tables are the same.
    load_at(&guest, CODE + 0x1000, |a| {
        a.mov(ecx, 0x830).unwrap();
        a.mov(eax, 0x66).unwrap();
        a.mov(edx, 1).unwrap();
        a.wrmsr().unwrap();
        a.mov(eax, 7).unwrap();
        report(a);
    });
    let results = run_all(&guest, &[CODE, CODE + 0x1000]);
    assert_eq!(results, [0x34, 7]);
}
