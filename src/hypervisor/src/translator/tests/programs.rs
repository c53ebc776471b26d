//! Short programs with control flow, natively and translated.

use iced_x86::code_asm::*;

use super::harness::{CODE, DATA, DATA_SIZE, Harness, Random, Registers, difference};

fn registers() -> Registers {
    let mut registers = Random(7).registers();
    registers.gpr[4] = DATA + 0x2800;
    registers
}

fn check(build: impl FnOnce(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>) {
    let mut asm = CodeAssembler::new(64).expect("assembler");
    build(&mut asm).expect("code");
    let code = asm.assemble(CODE).expect("assemble");
    let mut harness = Harness::new();
    let data = Random(9).data();
    let (native, translated) = harness.compare(&code, &registers(), &data);
    if let Some(what) = difference(&native, &translated, 0) {
        panic!("{what}");
    }
}

#[test]
fn counted_loop() {
    check(|a| {
        let mut top = a.create_label();
        a.mov(ecx, 1000)?;
        a.xor(eax, eax)?;
        a.set_label(&mut top)?;
        a.add(rax, rcx)?;
        a.dec(ecx)?;
        a.jnz(top)
    });
}

#[test]
fn calls_and_returns() {
    check(|a| {
        let mut fib = a.create_label();
        let mut small = a.create_label();
        let mut done = a.create_label();
        a.mov(edi, 15)?;
        a.call(fib)?;
        a.jmp(done)?;
        a.set_label(&mut fib)?;
        a.cmp(edi, 2)?;
        a.jb(small)?;
        a.push(rbx)?;
        a.push(r15)?;
        a.mov(r15d, edi)?;
        a.lea(edi, dword_ptr(r15 - 1))?;
        a.call(fib)?;
        a.mov(ebx, eax)?;
        a.lea(edi, dword_ptr(r15 - 2))?;
        a.call(fib)?;
        a.add(eax, ebx)?;
        a.pop(r15)?;
        a.pop(rbx)?;
        a.ret()?;
        a.set_label(&mut small)?;
        a.mov(eax, edi)?;
        a.ret()?;
        a.set_label(&mut done)?;
        a.nop()
    });
}

#[test]
fn flags_survive_calls_returns_and_memory() {
    check(|a| {
        let mut f = a.create_label();
        let mut done = a.create_label();
        a.mov(rax, u64::MAX)?;
        a.add(rax, 1)?;
        a.mov(rbx, qword_ptr(DATA))?;
        a.call(f)?;
        a.adc(rdx, 0)?;
        a.setz(cl)?;
        a.stc()?;
        a.push(rax)?;
        a.pop(r11)?;
        a.adc(r11, 5)?;
        a.jmp(done)?;
        a.set_label(&mut f)?;
        a.mov(qword_ptr(DATA + 64), rbx)?;
        a.ret()?;
        a.set_label(&mut done)?;
        a.nop()
    });
}

#[test]
fn deep_recursion_overflows_the_return_stack() {
    check(|a| {
        let mut f = a.create_label();
        let mut leaf = a.create_label();
        let mut done = a.create_label();
        let mut outer = a.create_label();
        a.xor(eax, eax)?;
        a.mov(r12d, 20)?;
        a.set_label(&mut outer)?;
        a.mov(edi, 1000)?;
        a.call(f)?;
        a.dec(r12d)?;
        a.jnz(outer)?;
        a.jmp(done)?;
        a.set_label(&mut f)?;
        a.inc(eax)?;
        a.dec(edi)?;
        a.jz(leaf)?;
        a.call(f)?;
        a.set_label(&mut leaf)?;
        a.ret()?;
        a.set_label(&mut done)?;
        a.nop()
    });
}

#[test]
fn indirect_jumps_through_a_table() {
    check(|a| {
        let mut targets: Vec<CodeLabel> = (0..4).map(|_| a.create_label()).collect();
        let mut top = a.create_label();
        let mut next = a.create_label();
        let mut done = a.create_label();
        a.mov(ecx, 100)?;
        for (n, label) in targets.iter().enumerate() {
            a.lea(rax, qword_ptr(*label))?;
            a.mov(qword_ptr(DATA + 8 * n as u64), rax)?;
        }
        a.xor(edx, edx)?;
        a.set_label(&mut top)?;
        a.mov(eax, ecx)?;
        a.and(eax, 3)?;
        a.cmp(ecx, 50)?;
        a.jmp(qword_ptr(DATA + rax * 8))?;
        for (n, label) in targets.iter_mut().enumerate() {
            a.set_label(label)?;
            a.adc(edx, n as u32 * 3 + 1)?;
            a.jmp(next)?;
        }
        a.set_label(&mut next)?;
        a.dec(ecx)?;
        a.jnz(top)?;
        a.set_label(&mut done)?;
        a.nop()
    });
}

#[test]
fn mismatched_returns() {
    check(|a| {
        let mut one = a.create_label();
        let mut two = a.create_label();
        a.lea(rax, qword_ptr(two))?;
        a.push(rax)?;
        a.lea(rax, qword_ptr(one))?;
        a.push(rax)?;
        a.ret()?;
        a.ud2()?;
        a.set_label(&mut one)?;
        a.mov(ebx, 77)?;
        a.ret()?;
        a.ud2()?;
        a.set_label(&mut two)?;
        a.mov(ebp, 78)
    });
}

#[test]
fn runs_of_pushes_and_pops_cross_pages_and_stop_at_faults_like_single_ones() {
    let mut harness = Harness::new();
    let code = {
        let mut a = CodeAssembler::new(64).expect("assembler");
        let mut build = || -> Result<(), iced_x86::IcedError> {
            // The flags live through both runs.
            a.cmp(rax, rcx)?;
            for register in [rbx, rbp, r10, r12, r15] {
                a.push(register)?;
            }
            a.setb(al)?;
            a.add(rsp, 8)?;
            a.cmp(rax, rcx)?;
            for register in [r15, r12, r11, rbp, rbx, rsi, rdi] {
                a.pop(register)?;
            }
            a.setb(ah)
        };
        build().expect("code");
        a.assemble(CODE).expect("assemble")
    };
    let mut random = Random(21);
    for page in [0, 0x1000, DATA_SIZE] {
        for word in -12..12 {
            let mut registers = random.registers();
            registers.gpr[4] = (DATA + page).wrapping_add_signed(8 * word);
            let data = random.data();
            let (native, translated) = harness.compare(&code, &registers, &data);
            let found = difference(&native, &translated, 0);
            assert_eq!(found, None, "stack pointer at {:#x}", registers.gpr[4]);
        }
    }
}
