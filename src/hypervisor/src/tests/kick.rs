//! A kick ends every state a vCPU can be in. Each test waits until the guest is in its state, kicks once, and hangs if
//! that does not end the call; how long it takes is measured by `benches/kick.rs`.

use super::machine::*;
use crate::{Error, Guest, Vcpu};
use iced_x86::code_asm::*;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

/// The guest sets the byte here when it is about to enter its state.
const REACHED: u64 = 0x38_0000;

fn reached(a: &mut CodeAssembler) {
    a.mov(byte_ptr(REACHED), 1).unwrap();
}

/// Enters the guest and kicks it once it has come to its state and had time to go round.
fn kick(guest: &Arc<Guest>, vcpu: &mut Vcpu) {
    let (remote, guest) = (vcpu.remote(), Arc::clone(guest));
    let kicker = thread::spawn(move || {
        while read_u64(&guest, REACHED) == 0 {
            thread::sleep(Duration::from_micros(100));
        }
        thread::sleep(Duration::from_millis(2));
        remote.kick();
    });
    let result = vcpu.enter();
    assert!(matches!(result, Err(Error::Canceled)), "{result:?}, {:x?}", vcpu.read_state());
    kicker.join().unwrap();
}

/// Kicks a guest in endless repetition of `body`.
fn kick_loop(body: impl Fn(&mut CodeAssembler)) {
    let guest = program(|a| {
        reached(a);
        let mut top = a.create_label();
        a.set_label(&mut top).unwrap();
        body(a);
        a.jmp(top).unwrap();
    });
    kick(&guest, &mut boot(&guest));
}

/// Kicks a guest whose handler for `vector` drops `dropped` bytes and returns to the instruction that faulted.
fn kick_storm(vector: u8, dropped: i32, fault: impl FnOnce(&mut CodeAssembler)) {
    let system = System::new();
    load_at(&system.guest, handler(vector), |a| {
        reached(a);
        a.add(rsp, dropped).unwrap();
        a.iretq().unwrap();
    });
    let mut vcpu = system.boot(fault);
    kick(&system.guest, &mut vcpu);
}

#[test]
fn loops() {
    kick_loop(|_| {});
    kick_loop(|a| {
        let mut function = a.create_label();
        let mut after = a.create_label();
        a.call(function).unwrap();
        a.jmp(after).unwrap();
        a.set_label(&mut function).unwrap();
        a.ret().unwrap();
        a.set_label(&mut after).unwrap();
    });
    kick_loop(|a| {
        let mut target = a.create_label();
        a.lea(rax, ptr(target)).unwrap();
        a.jmp(rax).unwrap();
        a.set_label(&mut target).unwrap();
    });
}

#[test]
fn a_halt_with_interrupts_disabled() {
    kick_loop(|a| {
        a.cli().unwrap();
        a.hlt().unwrap();
    });
}

#[test]
fn long_string_instructions() {
    let rounds = |a: &mut CodeAssembler| a.mov(rcx, 0x4000_0000_0000_u64).unwrap();
    // One page again and again: the destination wraps around a stretch that is mapped.
    kick_loop(|a| {
        a.mov(rdi, DATA).unwrap();
        a.mov(ecx, 0x7_0000).unwrap();
        a.rep().stosb().unwrap();
        a.mov(rsi, DATA).unwrap();
        a.lea(rdi, ptr(rsi + 1)).unwrap();
        a.mov(ecx, 0x7_0000).unwrap();
        a.rep().movsb().unwrap();
        a.std().unwrap();
        a.mov(rdi, DATA + 0x7_0000).unwrap();
        a.mov(ecx, 0x7_0000).unwrap();
        a.repne().scasb().unwrap();
        a.cld().unwrap();
    });
    // Beyond RAM, where stores are dropped and loads are all ones, for as long as an address space lasts.
    kick_loop(|a| {
        a.mov(rdi, MEMORY).unwrap();
        rounds(a);
        a.rep().stosb().unwrap();
    });
    kick_loop(|a| {
        a.mov(rdi, MEMORY).unwrap();
        a.mov(al, 0).unwrap();
        rounds(a);
        a.repne().scasb().unwrap();
    });
}

#[test]
fn exception_storms() {
    // A page fault on data, one on a fetch, an invalid opcode, a divide error.
    kick_storm(14, 8, |a| a.mov(rax, qword_ptr(1_u64 << 40)).unwrap());
    kick_storm(14, 8, |a| {
        a.mov(rax, 1_u64 << 40).unwrap();
        a.jmp(rax).unwrap();
    });
    kick_storm(6, 0, |a| a.ud2().unwrap());
    kick_storm(0, 0, |a| {
        a.xor(ecx, ecx).unwrap();
        a.div(ecx).unwrap();
    });
}

#[test]
fn single_steps() {
    kick_storm(1, 0, |a| {
        let mut top = a.create_label();
        a.pushfq().unwrap();
        a.or(qword_ptr(rsp), 0x100).unwrap();
        a.popfq().unwrap();
        a.set_label(&mut top).unwrap();
        a.jmp(top).unwrap();
    });
}

#[test]
fn interpreted_and_system_instructions() {
    kick_loop(|a| {
        a.cpuid().unwrap();
        a.mov(rax, cr3).unwrap();
        a.mov(cr3, rax).unwrap();
        a.mov(ecx, 0xc000_0080_u32).unwrap();
        a.rdmsr().unwrap();
        a.mov(eax, dword_ptr(MEMORY)).unwrap();
    });
}

#[test]
fn code_that_rewrites_itself() {
    kick_loop(|a| {
        let mut immediate = a.create_label();
        a.lea(rbx, ptr(immediate)).unwrap();
        a.inc(dword_ptr(rbx + 1)).unwrap();
        a.set_label(&mut immediate).unwrap();
        a.mov(eax, 1).unwrap();
    });
}

#[test]
fn an_interrupt_storm() {
    let system = System::new();
    load_at(&system.guest, handler(0x40), |a| a.jmp(DATA).unwrap());
    load_at(&system.guest, DATA, |a| {
        reached(a);
        write_msr(a, 0x80b, 0);
        a.iretq().unwrap();
    });
    let mut vcpu = system.boot(|a| {
        write_msr(a, 0x80f, 0x1ff);
        write_msr(a, 0x832, 0x2_0040);
        write_msr(a, 0x838, 1);
        a.sti().unwrap();
        let mut top = a.create_label();
        a.set_label(&mut top).unwrap();
        a.jmp(top).unwrap();
    });
    kick(&system.guest, &mut vcpu);
}

#[test]
fn compatibility_and_real_mode() {
    let system = System::new();
    system.open_to_user();
    let mut code = CodeAssembler::new(32).unwrap();
    let mut top = code.create_label();
    code.mov(byte_ptr(REACHED as u32), 1).unwrap();
    code.set_label(&mut top).unwrap();
    code.inc(eax).unwrap();
    code.jmp(top).unwrap();
    system.guest.write_memory(DATA, &code.assemble(DATA).unwrap()).unwrap();
    let mut vcpu = system.boot(|a| enter_compatibility(a, DATA));
    kick(&system.guest, &mut vcpu);

    let guest = guest();
    let _bootstrap = Vcpu::new(&guest, CODE).unwrap();
    // mov ax, 0x3000; mov ds, ax; inc byte [0x8000]; jmp to it
    let code = [0xb8, 0x00, 0x30, 0x8e, 0xd8, 0xfe, 0x06, 0x00, 0x80, 0xeb, 0xfa];
    guest.write_memory(0x8000, &code).unwrap();
    let mut vcpu = Vcpu::new(&guest, 0x8000).unwrap();
    let remote = vcpu.remote();
    let watched = Arc::clone(&guest);
    let kicker = thread::spawn(move || {
        while read_u64(&watched, 0x3_8000) == 0 {
            thread::sleep(Duration::from_micros(100));
        }
        remote.kick();
    });
    assert!(matches!(vcpu.enter(), Err(Error::Canceled)));
    kicker.join().unwrap();
}
