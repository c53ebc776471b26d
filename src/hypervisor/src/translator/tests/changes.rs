//! Code that changes under the translator's feet.

use iced_x86::code_asm::*;

use super::harness::{CODE, DATA, Harness, Random, difference};
use crate::translator::arena::SEGMENTS;

fn assemble(build: impl FnOnce(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>) -> Vec<u8> {
    let mut asm = CodeAssembler::new(64).expect("assembler");
    build(&mut asm).expect("code");
    asm.assemble(CODE).expect("assemble")
}

/// Runs `code` translated only: native code pages are not writable.
fn run(code: &[u8]) -> [u64; 16] {
    let mut harness = Harness::new();
    let mut registers = Random(3).registers();
    registers.gpr[4] = DATA + 0x2800;
    harness.run_translated(code, &registers, &Random(4).data()).registers.gpr
}

#[test]
fn a_store_to_a_later_instruction_of_the_same_block_takes_effect() {
    // MOV EAX, imm32 with its immediate overwritten two instructions earlier.
    let gpr = run(&assemble(|a| {
        let mut patched = a.create_label();
        a.lea(rbx, qword_ptr(patched))?;
        a.mov(dword_ptr(rbx + 1), 0x1234)?;
        a.nop()?;
        a.set_label(&mut patched)?;
        a.mov(eax, 0x7777_7777)
    }));
    assert_eq!(gpr[0], 0x1234);
}

#[test]
fn a_function_rewritten_between_calls_runs_as_rewritten() {
    let gpr = run(&assemble(|a| {
        let mut f = a.create_label();
        let mut top = a.create_label();
        let mut done = a.create_label();
        a.xor(edx, edx)?;
        a.mov(ecx, 50)?;
        a.set_label(&mut top)?;
        a.call(f)?;
        a.add(edx, eax)?;
        a.lea(rbx, qword_ptr(f))?;
        a.add(dword_ptr(rbx + 1), 1)?;
        a.dec(ecx)?;
        a.jnz(top)?;
        a.jmp(done)?;
        a.set_label(&mut f)?;
        a.mov(eax, 0x1000_0000)?;
        a.ret()?;
        a.set_label(&mut done)?;
        a.nop()
    }));
    let expected = (0..50u32).fold(0u32, |sum, n| sum.wrapping_add(0x1000_0000 + n));
    assert_eq!(gpr[2] as u32, expected);
}

#[test]
fn a_return_into_rewritten_code_runs_what_is_there_now() {
    // The callee overwrites the instruction behind the call: the return site is on the return stack by then.
    let gpr = run(&assemble(|a| {
        let mut f = a.create_label();
        let mut after = a.create_label();
        let mut done = a.create_label();
        a.call(f)?;
        a.set_label(&mut after)?;
        a.mov(eax, 0x7777_7777)?;
        a.jmp(done)?;
        a.set_label(&mut f)?;
        a.lea(rbx, qword_ptr(after))?;
        a.mov(dword_ptr(rbx + 1), 0x55)?;
        a.ret()?;
        a.set_label(&mut done)?;
        a.nop()
    }));
    assert_eq!(gpr[0], 0x55);
}

#[test]
fn data_beside_code_does_not_drop_the_code() {
    let mut harness = Harness::new();
    let code = assemble(|a| {
        let mut top = a.create_label();
        a.mov(ecx, 100)?;
        a.set_label(&mut top)?;
        a.mov(qword_ptr(CODE + 0x800), rcx)?;
        a.dec(ecx)?;
        a.jnz(top)
    });
    let before = harness.cpu().translator.counters;
    let mut registers = Random(3).registers();
    registers.gpr[4] = DATA + 0x2800;
    harness.run_translated(&code, &registers, &Random(4).data());
    let after = harness.cpu().translator.counters;
    assert_eq!(after.invalidated, before.invalidated);
}

#[test]
fn room_is_made_again_and_again_and_everything_still_runs() {
    let mut harness = Harness::new();
    let program = |first: u32| {
        assemble(|a| {
            let mut f = a.create_label();
            let mut done = a.create_label();
            a.mov(eax, first)?;
            a.call(f)?;
            a.add(eax, 2)?;
            a.jmp(done)?;
            a.set_label(&mut f)?;
            a.add(eax, 4)?;
            a.ret()?;
            a.set_label(&mut done)?;
            a.nop()
        })
    };
    let mut registers = Random(3).registers();
    registers.gpr[4] = DATA + 0x2800;
    let data = Random(4).data();
    let flushes = harness.cpu().translator.counters.flushes;
    for round in 0..6 * SEGMENTS as u32 {
        let code = program(round / 2);
        let (native, translated) = harness.compare(&code, &registers, &data);
        assert_eq!(difference(&native, &translated, 0), None);
        harness.cpu().translator.fill_for_test();
    }
    assert!(harness.cpu().translator.counters.flushes >= flushes + SEGMENTS as u64);
}

#[test]
fn code_larger_than_the_cache_runs_as_it_should() {
    const FUNCTIONS: usize = 350;
    let mut harness = Harness::new();
    // Leaves about an eighth of what the translated functions take.
    harness.cpu().translator.limit_cache_for_test(2 << 10);
    let code = assemble(|a| {
        let mut functions: Vec<_> = (0..FUNCTIONS).map(|_| a.create_label()).collect();
        let (mut top, mut done) = (a.create_label(), a.create_label());
        a.mov(ecx, 4)?;
        a.set_label(&mut top)?;
        for (n, function) in functions.iter().enumerate() {
            a.call(*function)?;
            if n % 8 == 0 {
                // Hot among the cold.
                a.call(functions[0])?;
            }
        }
        a.dec(ecx)?;
        a.jnz(top)?;
        a.jmp(done)?;
        for (n, function) in functions.iter_mut().enumerate() {
            a.set_label(function)?;
            a.add(rax, qword_ptr(DATA + n as u64 * 8))?;
            a.rol(rax, 7)?;
            a.ret()?;
        }
        a.set_label(&mut done)?;
        a.nop()
    });
    let mut registers = Random(3).registers();
    registers.gpr[4] = DATA + 0x2800;
    let data = Random(4).data();
    let before = harness.cpu().translator.counters;
    let (native, translated) = harness.compare(&code, &registers, &data);
    assert_eq!(difference(&native, &translated, 0), None);
    let after = harness.cpu().translator.counters;
    assert!(after.flushes >= before.flushes + SEGMENTS as u64, "the cache was large enough");
    assert!(after.blocks > before.blocks + FUNCTIONS as u64, "nothing was translated twice");
}

#[test]
fn code_memory_is_never_writable_and_executable_through_one_mapping() {
    let mut harness = Harness::new();
    let base = harness.cpu().translator.code_base_for_test();
    let maps = std::fs::read_to_string("/proc/self/maps").expect("maps");
    let mut found = false;
    for line in maps.lines() {
        let mut fields = line.split_ascii_whitespace();
        let (range, rights) =
            (fields.next().unwrap_or_default(), fields.next().unwrap_or_default());
        assert!(!(rights.contains('w') && rights.contains('x')), "{line}");
        let start = range.split('-').next().and_then(|at| u64::from_str_radix(at, 16).ok());
        found |= start == Some(base) && rights.starts_with("r-x");
    }
    assert!(found, "the executable mapping is listed");
}
