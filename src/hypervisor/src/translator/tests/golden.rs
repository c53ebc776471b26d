//! How many host instructions each guest instruction costs: exact, so that a change shows as a difference of
//! `tests/golden/instructions.txt`. Set `UPDATE_GOLDEN` to write the file anew.

use iced_x86::{Decoder, DecoderOptions, code_asm::*};

use super::harness::{CODE, DATA, Harness, Random};

type Build = fn(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>;

const CASES: &[(&str, Build)] = &[
    ("add rax, rbx", |a| a.add(rax, rbx)),
    ("add r15, rbx", |a| a.add(r15, rbx)),
    ("add rsp, 8; and rsp, -16", |a| {
        a.add(rsp, 8)?;
        a.and(rsp, -16)
    }),
    ("mov rax, [rbx]; test rax, rax", |a| {
        a.mov(rax, qword_ptr(rbx))?;
        a.test(rax, rax)
    }),
    ("mov [rbx+rcx*8+16], eax; test rax, rax", |a| {
        a.mov(dword_ptr(rbx + rcx * 8 + 16), eax)?;
        a.test(rax, rax)
    }),
    ("lock add [rbx], eax", |a| a.lock().add(dword_ptr(rbx), eax)),
    ("cmp rax, rcx; mov rdx, [rbx]; setb al; xor ecx, ecx", |a| {
        a.cmp(rax, rcx)?;
        a.mov(rdx, qword_ptr(rbx))?;
        a.setb(al)?;
        a.xor(ecx, ecx)
    }),
    ("push rbx; pop rbx; xor ecx, ecx", |a| {
        a.push(rbx)?;
        a.pop(rbx)?;
        a.xor(ecx, ecx)
    }),
    ("push rbx; push rbp; push r12; pop r12; pop rbp; pop rbx; ret", |a| {
        a.push(rbx)?;
        a.push(rbp)?;
        a.push(r12)?;
        a.pop(r12)?;
        a.pop(rbp)?;
        a.pop(rbx)?;
        a.ret()
    }),
    ("call; ret", |a| {
        let mut f = a.create_label();
        a.call(f)?;
        a.xor(eax, eax)?;
        a.set_label(&mut f)?;
        a.ret()
    }),
    ("jmp rax", |a| a.jmp(rax)),
    ("loop: add rax, rcx; dec rcx; jnz loop", |a| {
        let mut top = a.create_label();
        a.set_label(&mut top)?;
        a.add(rax, rcx)?;
        a.dec(rcx)?;
        a.jnz(top)
    }),
    ("loop: add eax, [rbx]; add rbx, 4; cmp rbx, rdx; jne loop", |a| {
        let mut top = a.create_label();
        a.set_label(&mut top)?;
        a.add(eax, dword_ptr(rbx))?;
        a.add(rbx, 4)?;
        a.cmp(rbx, rdx)?;
        a.jne(top)
    }),
    ("vfmadd213pd ymm0, ymm1, [rbx]; xor eax, eax", |a| {
        a.vfmadd213pd(ymm0, ymm1, ymmword_ptr(rbx))?;
        a.xor(eax, eax)
    }),
    ("syscall", |a| a.syscall()),
    ("rdtsc", |a| a.rdtsc()),
];

/// Host instructions emitted in line and in all for a block that starts at CODE.
fn count(build: Build) -> (usize, usize) {
    let mut asm = CodeAssembler::new(64).expect("assembler");
    build(&mut asm).expect("code");
    asm.hlt().expect("hlt");
    let code = asm.assemble(CODE).expect("assemble");
    let mut harness = Harness::new();
    harness.write_code(&code);
    let _ = DATA;
    let cpu = harness.cpu();
    cpu.state.gpr = Random(1).registers().gpr;
    cpu.state.rip = CODE;
    let (host, in_line) = crate::translator::emitted_for_test(cpu);
    let mut decoder = Decoder::new(64, &host, DecoderOptions::NONE);
    let (mut total, mut hot) = (0, 0);
    while decoder.can_decode() {
        let at = decoder.position();
        let instruction = decoder.decode();
        total += 1;
        hot += usize::from(at < in_line);
        assert!(!instruction.is_invalid(), "emitted code decodes");
    }
    (hot, total)
}

#[test]
fn emitted_instruction_counts_are_as_recorded() {
    let mut text = String::from(
        "# guest instructions (and the HLT that ends the block): host instructions in line, in all\n",
    );
    for (name, build) in CASES {
        let (hot, total) = count(*build);
        text.push_str(&format!("{name}: {hot} {total}\n"));
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/instructions.txt");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(path, &text).expect("golden file");
    }
    let golden = std::fs::read_to_string(path).unwrap_or_default();
    assert_eq!(text, golden, "emitted code changed; if that is meant, run with UPDATE_GOLDEN=1");
}
