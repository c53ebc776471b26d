//! Delivery of exceptions and interrupts: frames, error codes, stacks, priorities, double and triple faults.

use super::machine::*;
use crate::{Error, Vcpu};
use iced_x86::code_asm::*;
use std::thread;
use std::time::Duration;

/// Bytes of code at the faulting RIP.
fn code_at<const N: usize>(system: &System, at: u64) -> [u8; N] {
    let mut bytes = [0; N];
    system.guest.read_memory(at, &mut bytes).unwrap();
    bytes
}

#[test]
fn divide_error_points_at_the_instruction() {
    let system = System::new();
    let mut vcpu = system.boot(|a| {
        a.xor(ecx, ecx).unwrap();
        a.div(ecx).unwrap();
    });
    let (vector, frame) = system.exception(&mut vcpu);
    assert_eq!(vector, 0);
    assert_eq!(code_at(&system, frame.rip), [0xf7, 0xf1]);
    assert_eq!((frame.cs, frame.ss, frame.rsp), (8, 16, STACK));
    assert_eq!(frame.error, None);
    assert_ne!(frame.rflags & 1 << 16, 0, "a fault pushes RF set");
}

#[test]
fn invalid_opcode() {
    let system = System::new();
    let mut vcpu = system.boot(|a| a.ud2().unwrap());
    let (vector, frame) = system.exception(&mut vcpu);
    assert_eq!((vector, code_at(&system, frame.rip)), (6, [0x0f, 0x0b]));
}

#[test]
fn breakpoint_is_a_trap() {
    let system = System::new();
    let mut vcpu = system.boot(|a| {
        a.int3().unwrap();
        a.ud2().unwrap();
    });
    let (vector, frame) = system.exception(&mut vcpu);
    assert_eq!((vector, code_at(&system, frame.rip)), (3, [0x0f, 0x0b]));
    // IRET continues behind it.
    assert_eq!(system.exception(&mut vcpu).0, 6);
}

#[test]
fn bad_selectors_carry_their_error_code() {
    for (selector, expected) in
        [(0x7b_u32, (13, 0x78)), (ABSENT_SELECTOR.into(), (11, 0x40)), (0x8, (13, 0x8))]
    {
        let system = System::new();
        let mut vcpu = system.boot(|a| {
            a.mov(eax, selector).unwrap();
            // A code segment that is readable may be loaded; use SS for the one that may not.
            if selector == 8 { a.mov(ss, eax).unwrap() } else { a.mov(ds, eax).unwrap() }
        });
        let (vector, frame) = system.exception(&mut vcpu);
        assert_eq!((vector, frame.error), (expected.0, Some(expected.1)), "selector {selector:#x}");
    }
}

#[test]
fn non_canonical_addresses() {
    let system = System::new();
    let mut vcpu = system.boot(|a| {
        a.mov(rbx, 1_u64 << 47).unwrap();
        a.mov(al, ptr(rbx)).unwrap();
    });
    let (vector, frame) = system.exception(&mut vcpu);
    assert_eq!((vector, frame.error), (13, Some(0)));

    let system = System::new();
    system.gate(12, 0x8e, 1);
    let mut vcpu = system.boot(|a| {
        a.mov(rsp, 1_u64 << 47).unwrap();
        a.pop(rax).unwrap();
    });
    let (vector, frame) = system.exception(&mut vcpu);
    assert_eq!((vector, frame.error, frame.rsp), (12, Some(0), 1 << 47));
}

#[test]
fn user_mode_enters_the_kernel_through_the_tss() {
    let system = System::new();
    system.open_to_user();
    system.gate(0x80, 0xee, 0);
    let mut vcpu = system.boot(|a| {
        enter_user(a);
        a.int(0x80).unwrap();
        a.hlt().unwrap();
    });
    let (vector, frame) = system.exception(&mut vcpu);
    assert_eq!(vector, 0x80);
    assert_eq!(vcpu.read_state().gpr[4], KERNEL_STACK - 40);
    assert_eq!((frame.cs, frame.ss, frame.rsp), (USER_CODE.into(), USER_DATA.into(), STACK));
    let (vector, frame) = system.exception(&mut vcpu);
    assert_eq!(
        (vector, frame.error, frame.cs),
        (13, Some(0), USER_CODE.into()),
        "HLT in user mode"
    );
}

#[test]
fn software_interrupts_check_the_gate_privilege() {
    let system = System::new();
    system.open_to_user();
    let mut vcpu = system.boot(|a| {
        enter_user(a);
        a.int(0x81).unwrap();
    });
    let (vector, frame) = system.exception(&mut vcpu);
    assert_eq!((vector, frame.error), (13, Some(0x81 * 8 + 2)));
    assert_eq!(code_at(&system, frame.rip), [0xcd, 0x81]);
}

#[test]
fn an_ist_stack_is_used_without_a_privilege_change() {
    let system = System::new();
    system.gate(6, 0x8e, 1);
    let mut vcpu = system.boot(|a| a.ud2().unwrap());
    let (_, frame) = system.exception(&mut vcpu);
    assert_eq!(vcpu.read_state().gpr[4], INTERRUPT_STACK - 40);
    assert_eq!(frame.rsp, STACK);
}

#[test]
fn a_contributory_fault_during_delivery_is_a_double_fault() {
    let system = System::new();
    // #GP's gate is not present: #NP while delivering #GP.
    system.gate(13, 0x0e, 0);
    let mut vcpu = system.boot(|a| {
        a.mov(eax, 0x78_u32).unwrap();
        a.mov(ds, eax).unwrap();
    });
    let (vector, frame) = system.exception(&mut vcpu);
    assert_eq!((vector, frame.error), (8, Some(0)));
}

#[test]
fn a_fault_after_a_benign_exception_is_delivered_on_its_own() {
    let system = System::new();
    system.gate(6, 0x0e, 0);
    let mut vcpu = system.boot(|a| a.ud2().unwrap());
    let (vector, frame) = system.exception(&mut vcpu);
    assert_eq!((vector, frame.error), (11, Some(6 * 8 + 2 + 1)));
}

#[test]
fn a_fault_in_the_double_fault_stops_the_machine() {
    let system = System::new();
    for vector in [8, 11, 13] {
        system.gate(vector, 0x0e, 0);
    }
    let mut vcpu = system.boot(|a| {
        a.mov(eax, 0x78_u32).unwrap();
        a.mov(ds, eax).unwrap();
    });
    assert!(matches!(vcpu.enter(), Err(Error::Shutdown { .. })));
    assert!(matches!(vcpu.enter(), Err(Error::Shutdown { .. })), "a stopped vCPU stays stopped");
}

#[test]
fn single_step_traps_after_each_instruction() {
    let system = System::new();
    let mut vcpu = system.boot(|a| {
        a.pushfq().unwrap();
        a.or(dword_ptr(rsp), 0x100).unwrap();
        a.popfq().unwrap();
        a.nop().unwrap();
        a.mov(rax, dr6).unwrap();
        a.ud2().unwrap();
    });
    let (vector, frame) = system.exception(&mut vcpu);
    assert_eq!(
        (vector, code_at(&system, frame.rip)),
        (1, [0x0f, 0x21]),
        "the trap comes after the NOP"
    );
    assert_ne!(frame.rflags & 0x100, 0);
    let (vector, frame) = system.exception(&mut vcpu);
    assert_eq!((vector, code_at(&system, frame.rip)), (1, [0x0f, 0x0b]));
    assert_eq!(vcpu.read_state().gpr[0], 0xffff_4ff0, "DR6.BS was set by the trap before");
    // The fault comes instead of a trap.
    assert_eq!(system.exception(&mut vcpu).0, 6);
}

#[test]
fn interrupts_wait_for_the_flag_and_for_the_instruction_after_sti() {
    let system = System::new();
    let mut vcpu = system.boot(|a| {
        a.out(0xf0, al).unwrap();
        a.nop().unwrap();
        a.sti().unwrap();
        a.mov(ebx, 1).unwrap();
        a.mov(ebx, 2).unwrap();
        a.cli().unwrap();
        a.out(0xf1, al).unwrap();
    });
    assert_eq!(output(&mut vcpu).0, 0xf0);
    vcpu.remote().interrupt(0x50).unwrap();
    let (vector, frame) = system.exception(&mut vcpu);
    assert_eq!(vector, 0x50);
    assert_ne!(vcpu.read_state().gpr[3], 0, "the instruction after STI ran first");
    assert_ne!(frame.rflags & 0x200, 0);
    assert_eq!(vcpu.read_state().rflags & 0x200, 0, "an interrupt gate clears IF");
    assert_eq!(output(&mut vcpu).0, 0xf1);
}

#[test]
fn nothing_comes_between_a_stack_segment_and_its_pointer() {
    let system = System::new();
    let mut vcpu = system.boot(|a| {
        a.mov(eax, u32::from(DATA_SELECTOR)).unwrap();
        a.sti().unwrap();
        a.nop().unwrap();
        a.out(0xf0, al).unwrap();
        a.mov(ss, eax).unwrap();
        a.mov(rsp, KERNEL_STACK).unwrap();
        a.out(0xf1, al).unwrap();
    });
    assert_eq!(output(&mut vcpu).0, 0xf0);
    // Waits at the boundary after OUT; MOV SS then holds back what comes while it runs.
    let cpu = vcpu.cpu_mut();
    let instruction = crate::interp::fetch(cpu).unwrap();
    crate::interp::execute(cpu, &instruction).unwrap();
    vcpu.remote().interrupt(0x51).unwrap();
    vcpu.remote().interrupt(2).unwrap();
    let (vector, frame) = system.exception(&mut vcpu);
    assert_eq!((vector, frame.rsp), (2, KERNEL_STACK), "the NMI came after the pointer");
    assert_eq!(system.exception(&mut vcpu).0, 0x51);
    assert_eq!(output(&mut vcpu).0, 0xf1);
}

/// Boots code with the vector units on and the exceptions of both units unmasked.
fn unmasked(system: &System, build: impl FnOnce(&mut CodeAssembler)) -> Vcpu {
    let at = DATA + 0x100;
    system.boot(|a| {
        a.mov(rax, cr4).unwrap();
        a.or(eax, 0x600).unwrap();
        a.mov(cr4, rax).unwrap();
        a.mov(dword_ptr(at), 0x1f00).unwrap();
        a.ldmxcsr(dword_ptr(at)).unwrap();
        a.mov(dword_ptr(at), 0x37e).unwrap();
        a.fldcw(word_ptr(at)).unwrap();
        build(a);
    })
}

#[test]
fn an_x87_exception_comes_at_the_next_waiting_instruction() {
    let system = System::new();
    let mut vcpu = unmasked(&system, |a| {
        a.fldz().unwrap();
        a.fldz().unwrap();
        a.fdivp(st1, st0).unwrap();
        // Neither an integer instruction nor one that does not wait.
        a.mov(ebx, 1).unwrap();
        a.fnstsw(ax).unwrap();
        a.wait().unwrap();
    });
    let (vector, frame) = system.exception(&mut vcpu);
    assert_eq!(vector, 16);
    assert_eq!(code_at::<1>(&system, frame.rip), [0x9b]);
    let state = vcpu.read_state();
    assert_eq!((state.gpr[3], state.gpr[0] & 0x81), (1, 0x81), "invalid, and summary");
}

#[test]
fn a_simd_exception_comes_at_its_instruction_and_changes_nothing() {
    let system = System::new();
    let mut vcpu = unmasked(&system, |a| {
        a.pxor(xmm0, xmm0).unwrap();
        a.divss(xmm0, xmm0).unwrap();
    });
    let (vector, frame) = system.exception(&mut vcpu);
    assert_eq!(vector, 19);
    assert_eq!(code_at::<2>(&system, frame.rip), [0xf3, 0x0f]);
}

#[test]
fn a_unit_that_is_switched_off_is_not_available() {
    let system = System::new();
    let mut vcpu = unmasked(&system, |a| {
        a.mov(rax, cr0).unwrap();
        a.or(eax, 8).unwrap();
        a.mov(cr0, rax).unwrap();
        a.fldz().unwrap();
    });
    assert_eq!(system.exception(&mut vcpu).0, 7);
    let system = System::new();
    let mut vcpu = system.boot(|a| a.movaps(xmm0, xmm1).unwrap());
    assert_eq!(system.exception(&mut vcpu).0, 6, "CR4.OSFXSR is clear");
}

#[test]
fn the_highest_vector_comes_first_and_the_rest_waits_for_eoi() {
    let system = System::new();
    let mut vcpu = system.boot(|a| {
        a.out(0xf0, al).unwrap();
        a.sti().unwrap();
        a.nop().unwrap();
        a.nop().unwrap();
        a.cli().unwrap();
        a.out(0xf1, al).unwrap();
        a.mov(ecx, 0x80b).unwrap();
        a.xor(eax, eax).unwrap();
        a.xor(edx, edx).unwrap();
        a.wrmsr().unwrap();
        a.sti().unwrap();
        a.nop().unwrap();
        a.nop().unwrap();
        a.out(0xf2, al).unwrap();
    });
    assert_eq!(output(&mut vcpu).0, 0xf0);
    for vector in [0x51, 0x61, 0x41] {
        vcpu.remote().interrupt(vector).unwrap();
    }
    let ports: Vec<_> = (0..4).map(|_| output(&mut vcpu).0).collect();
    assert_eq!(ports, [0x61, 0xf1, 0x51, 0xf2]);
}

#[test]
fn cr8_holds_interrupts_back() {
    let system = System::new();
    let mut vcpu = system.boot(|a| {
        a.mov(eax, 5_u32).unwrap();
        a.mov(cr8, rax).unwrap();
        a.sti().unwrap();
        a.out(0xf0, al).unwrap();
        a.nop().unwrap();
        a.mov(rbx, cr8).unwrap();
        a.out(0xf1, al).unwrap();
        a.mov(eax, 4_u32).unwrap();
        a.mov(cr8, rax).unwrap();
        a.nop().unwrap();
        a.out(0xf2, al).unwrap();
    });
    assert_eq!(output(&mut vcpu).0, 0xf0);
    vcpu.remote().interrupt(0x5f).unwrap();
    let ports: Vec<_> = (0..3).map(|_| output(&mut vcpu).0).collect();
    assert_eq!(ports, [0xf1, 0x5f, 0xf2]);
    assert_eq!(vcpu.read_state().gpr[3], 5);
}

#[test]
fn an_nmi_ignores_the_flag_and_blocks_the_next_until_iret() {
    let system = System::new();
    let mut vcpu = system.boot(|a| {
        a.out(0xf0, al).unwrap();
        a.nop().unwrap();
        a.out(0xf1, al).unwrap();
    });
    assert_eq!(output(&mut vcpu).0, 0xf0);
    vcpu.remote().interrupt(2).unwrap();
    assert_eq!(output(&mut vcpu).0, 2);
    let depth = vcpu.read_state().gpr[4];
    vcpu.remote().interrupt(2).unwrap();
    assert_eq!(output(&mut vcpu).0, 2);
    assert_eq!(vcpu.read_state().gpr[4], depth, "the second came after the first one's IRET");
    assert_eq!(output(&mut vcpu).0, 0xf1);
}

#[test]
fn an_interrupt_wakes_a_halted_vcpu() {
    let system = System::new();
    let mut vcpu = system.boot(|a| {
        a.sti().unwrap();
        a.hlt().unwrap();
        a.out(0xf1, al).unwrap();
    });
    let remote = vcpu.remote();
    let injector = thread::spawn(move || {
        thread::sleep(Duration::from_millis(5));
        remote.interrupt(0x33).unwrap();
    });
    assert_eq!(output(&mut vcpu).0, 0x33);
    assert_eq!(output(&mut vcpu).0, 0xf1);
    injector.join().unwrap();
}

#[test]
fn the_timer_counts_down_once() {
    let system = System::new();
    let mut vcpu = system.boot(|a| {
        write_msr(a, 0x80f, 0x1ff);
        write_msr(a, 0x83e, 0xb);
        write_msr(a, 0x832, 0x70);
        write_msr(a, 0x838, 1_000_000);
        a.sti().unwrap();
        a.hlt().unwrap();
        a.mov(ecx, 0x839).unwrap();
        a.rdmsr().unwrap();
        a.out(0xf1, eax).unwrap();
    });
    assert_eq!(output(&mut vcpu).0, 0x70);
    assert_eq!(output(&mut vcpu), (0xf1, 0));
    assert_eq!(vcpu.stats().timer_expirations, 1);
}

#[test]
fn the_timer_repeats() {
    let system = System::new();
    let mut vcpu = system.boot(|a| {
        write_msr(a, 0x80f, 0x1ff);
        write_msr(a, 0x83e, 0xb);
        write_msr(a, 0x832, 0x2_0071);
        write_msr(a, 0x838, 100_000);
        let mut top = a.create_label();
        a.set_label(&mut top).unwrap();
        a.sti().unwrap();
        a.hlt().unwrap();
        a.cli().unwrap();
        write_msr(a, 0x80b, 0);
        a.jmp(top).unwrap();
    });
    for _ in 0..5 {
        assert_eq!(output(&mut vcpu).0, 0x71);
    }
}

#[test]
fn the_tsc_deadline_interrupts_a_loop() {
    let system = System::new();
    let mut vcpu = system.boot(|a| {
        write_msr(a, 0x80f, 0x1ff);
        write_msr(a, 0x832, 0x4_0072);
        a.rdtsc().unwrap();
        a.shl(rdx, 32).unwrap();
        a.or(rax, rdx).unwrap();
        a.add(rax, 1_000_000).unwrap();
        a.mov(rsi, rax).unwrap();
        a.mov(rdx, rax).unwrap();
        a.shr(rdx, 32).unwrap();
        a.mov(ecx, 0x6e0).unwrap();
        a.wrmsr().unwrap();
        a.sti().unwrap();
        let mut top = a.create_label();
        a.set_label(&mut top).unwrap();
        a.inc(rbx).unwrap();
        a.jmp(top).unwrap();
    });
    assert_eq!(output(&mut vcpu).0, 0x72);
    let now = crate::host_access::tsc();
    assert!(now >= vcpu.read_state().gpr[6], "the interrupt came early");
}

#[test]
fn syscall_and_sysret_switch_rings() {
    let system = System::new();
    system.open_to_user();
    let mut vcpu = system.boot(|a| {
        let mut entry = a.create_label();
        a.mov(ecx, 0xc000_0080_u32).unwrap();
        a.rdmsr().unwrap();
        a.or(eax, 1).unwrap();
        a.wrmsr().unwrap();
        a.mov(ecx, 0xc000_0081_u32).unwrap();
        a.xor(eax, eax).unwrap();
        a.mov(edx, 0x0018_0008_u32).unwrap();
        a.wrmsr().unwrap();
        a.lea(rax, ptr(entry)).unwrap();
        a.xor(edx, edx).unwrap();
        a.mov(ecx, 0xc000_0082_u32).unwrap();
        a.wrmsr().unwrap();
        write_msr(a, 0xc000_0084, 0x200);
        enter_user(a);
        a.mov(ebx, 1).unwrap();
        a.syscall().unwrap();
        // Back in user mode: HLT is #GP there.
        a.hlt().unwrap();
        a.set_label(&mut entry).unwrap();
        a.mov(rsi, cs).unwrap();
        a.mov(rdi, ss).unwrap();
        a.out(0xf1, al).unwrap();
        a.sysretq().unwrap();
    });
    assert_eq!(output(&mut vcpu).0, 0xf1);
    let state = vcpu.read_state();
    assert_eq!((state.gpr[6], state.gpr[7]), (8, 16));
    assert_eq!(state.gpr[11] & !0xffd, 2, "R11 is RFLAGS");
    assert_eq!(code_at(&system, state.gpr[1]), [0xf4], "RCX is the return address");
    let (vector, frame) = system.exception(&mut vcpu);
    assert_eq!((vector, frame.cs, frame.ss), (13, USER_CODE.into(), USER_DATA.into()));
}

#[test]
fn unknown_msrs_are_a_general_protection_fault() {
    for (read, msr) in
        [(true, 0x1234_u32), (true, 0x3b), (false, 0x48), (true, 0xc001_0200), (false, 0x801)]
    {
        let system = System::new();
        let mut vcpu = system.boot(|a| {
            a.mov(ecx, msr).unwrap();
            a.xor(eax, eax).unwrap();
            a.xor(edx, edx).unwrap();
            if read { a.rdmsr().unwrap() } else { a.wrmsr().unwrap() }
        });
        let (vector, frame) = system.exception(&mut vcpu);
        assert_eq!((vector, frame.error), (13, Some(0)), "{msr:#x}");
    }
}

#[test]
fn string_instructions_fault_with_their_progress_in_the_registers() {
    let system = System::new();
    // The second GiB is not mapped: the store that reaches it faults.
    write_u64(&system.guest, TABLES + 0x1008, 0);
    system.gate(14, 0x8e, 1);
    let end = 1_u64 << 30;
    let mut vcpu = system.boot(|a| {
        a.mov(rdi, end - 16).unwrap();
        a.mov(ecx, 5).unwrap();
        a.mov(rax, 0x1122_u64).unwrap();
        a.rep().stosq().unwrap();
    });
    let (vector, frame) = system.exception(&mut vcpu);
    let state = vcpu.read_state();
    assert_eq!((vector, frame.error), (14, Some(2)));
    assert_eq!((state.gpr[7], state.gpr[1]), (end, 3), "two of five elements are done");
    assert_eq!(code_at(&system, frame.rip), [0xf3, 0x48, 0xab]);
}

#[test]
fn instruction_breakpoints_fault_once_and_then_let_the_instruction_run() {
    let system = System::new();
    let mut vcpu = system.boot(|a| {
        let mut target = a.create_label();
        a.lea(rax, ptr(target)).unwrap();
        a.mov(dr0, rax).unwrap();
        a.mov(eax, 1).unwrap();
        a.mov(dr7, rax).unwrap();
        a.xor(ebx, ebx).unwrap();
        a.set_label(&mut target).unwrap();
        a.inc(ebx).unwrap();
        a.ud2().unwrap();
    });
    let (vector, frame) = system.exception(&mut vcpu);
    assert_eq!((vector, code_at(&system, frame.rip)), (1, [0xff, 0xc3]));
    assert_eq!((vcpu.read_state().gpr[3], vcpu.cpu_mut().state.dr[6] & 0xf), (0, 1));
    let (vector, _) = system.exception(&mut vcpu);
    assert_eq!((vector, vcpu.read_state().gpr[3]), (6, 1), "IRET set RF, so the instruction ran");
}

#[test]
fn data_breakpoints_trap_after_the_access() {
    let system = System::new();
    let mut vcpu = system.boot(|a| {
        a.mov(rax, DATA + 4).unwrap();
        a.mov(dr1, rax).unwrap();
        // L1, write, four bytes.
        a.mov(eax, 0x00d0_0004).unwrap();
        a.mov(dr7, rax).unwrap();
        a.mov(ebx, dword_ptr(DATA + 4)).unwrap();
        a.mov(dword_ptr(DATA), 1).unwrap();
        a.mov(byte_ptr(DATA + 7), 2).unwrap();
        a.ud2().unwrap();
    });
    let (vector, frame) = system.exception(&mut vcpu);
    assert_eq!(
        (vector, code_at(&system, frame.rip)),
        (1, [0x0f, 0x0b]),
        "only the last store touches it"
    );
    assert_eq!(vcpu.cpu_mut().state.dr[6] & 0xf, 2);
    assert_eq!(read_u64(&system.guest, DATA) >> 56, 2);
}

/// Emits an IRETQ to the code behind it.
fn return_to_next(a: &mut CodeAssembler, code: i32, flags: i32) {
    let mut next = a.create_label();
    a.mov(rcx, rsp).unwrap();
    a.push(i32::from(DATA_SELECTOR)).unwrap();
    a.push(rcx).unwrap();
    a.push(flags).unwrap();
    a.push(code).unwrap();
    a.lea(rax, ptr(next)).unwrap();
    a.push(rax).unwrap();
    a.iretq().unwrap();
    a.set_label(&mut next).unwrap();
}

#[test]
fn repeated_returns_load_what_the_frame_says() {
    const ROUNDS: u32 = 100;
    // Everything but TF, IF and NT; then nothing.
    const FLAGS: i32 = 0x24_3cd7;
    let system = System::new();
    let mut vcpu = system.boot(|a| {
        let mut top = a.create_label();
        a.xor(esi, esi).unwrap();
        a.mov(ebx, ROUNDS).unwrap();
        a.set_label(&mut top).unwrap();
        for flags in [FLAGS, 2] {
            return_to_next(a, CODE_SELECTOR.into(), flags);
            a.pushfq().unwrap();
            a.pop(rdx).unwrap();
            a.xor(rdx, flags).unwrap();
            a.or(rsi, rdx).unwrap();
            a.sub(rcx, rsp).unwrap();
            a.or(rsi, rcx).unwrap();
        }
        a.dec(ebx).unwrap();
        a.jnz(top).unwrap();
        a.ud2().unwrap();
    });
    assert_eq!(system.exception(&mut vcpu).0, 6);
    assert_eq!(vcpu.read_state().gpr[6], 0, "flags or stack pointer came back different");
    let interpreted = vcpu.cpu_mut().translator.counters.interpreted;
    assert!(interpreted < u64::from(ROUNDS), "{interpreted} instructions were interpreted");
}

#[test]
fn a_return_sees_that_its_descriptor_has_changed() {
    const OTHER: u64 = GDT + ABSENT_SELECTOR as u64;
    let system = System::new();
    let mut vcpu = system.boot(|a| {
        let mut top = a.create_label();
        a.mov(rax, 0x00af_9b00_0000_ffff_u64).unwrap();
        a.mov(qword_ptr(OTHER), rax).unwrap();
        a.mov(ebx, 10).unwrap();
        a.set_label(&mut top).unwrap();
        return_to_next(a, ABSENT_SELECTOR.into(), 2);
        a.dec(ebx).unwrap();
        // Not present for the last round.
        a.cmp(ebx, 1).unwrap();
        a.setne(al).unwrap();
        a.movzx(eax, al).unwrap();
        a.shl(eax, 7).unwrap();
        a.or(eax, 0x1b).unwrap();
        a.mov(byte_ptr(OTHER + 5), al).unwrap();
        a.jmp(top).unwrap();
    });
    let (vector, frame) = system.exception(&mut vcpu);
    assert_eq!((vector, frame.error), (11, Some(ABSENT_SELECTOR.into())));
    assert_eq!((vcpu.read_state().gpr[3], frame.cs), (1, ABSENT_SELECTOR.into()));
}

#[test]
fn a_system_call_gate_is_left_the_same_way_every_time() {
    let system = System::new();
    system.open_to_user();
    system.gate(0x80, 0xee, 0);
    let mut vcpu = system.boot(|a| {
        enter_user(a);
        let mut top = a.create_label();
        a.mov(ebx, 5).unwrap();
        a.set_label(&mut top).unwrap();
        a.int(0x80).unwrap();
        a.dec(ebx).unwrap();
        a.jnz(top).unwrap();
        a.hlt().unwrap();
    });
    for _ in 0..5 {
        let (vector, frame) = system.exception(&mut vcpu);
        assert_eq!((vector, frame.cs, frame.ss), (0x80, USER_CODE.into(), USER_DATA.into()));
        assert_eq!(frame.rsp, STACK);
    }
    assert_eq!(system.exception(&mut vcpu).0, 13, "HLT is still privileged");
}
