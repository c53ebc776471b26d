//! Real, protected and compatibility mode, and the way from one to the next.

use super::machine::*;
use crate::{Exit, Vcpu};
use iced_x86::code_asm::*;

/// A second vCPU that starts in real mode at `entry`, with 16-bit code loaded there.
fn real_mode(build: impl FnOnce(&mut CodeAssembler)) -> (System, Vcpu) {
    let system = System::new();
    let mut assembler = CodeAssembler::new(16).unwrap();
    build(&mut assembler);
    system.guest.write_memory(0x8000, &assembler.assemble(0).unwrap()).unwrap();
    let _bootstrap = Vcpu::new(&system.guest, CODE).unwrap();
    let vcpu = Vcpu::new(&system.guest, 0x8000).unwrap();
    (system, vcpu)
}

#[test]
fn real_mode_addresses_are_segment_times_sixteen() {
    let (system, mut vcpu) = real_mode(|a| {
        a.mov(ax, 0x1234_u32).unwrap();
        a.mov(ds, ax).unwrap();
        a.mov(bx, 0x10_u32).unwrap();
        a.mov(word_ptr(bx), 0x5678_u32).unwrap();
        a.mov(ax, cs).unwrap();
        a.out(0xf0, ax).unwrap();
    });
    assert_eq!(output(&mut vcpu), (0xf0, 0x800));
    assert_eq!(read_u64(&system.guest, 0x1_2350) & 0xffff, 0x5678);
}

#[test]
fn real_mode_interrupts_use_the_vector_table() {
    let (system, mut vcpu) = real_mode(|a| {
        a.xor(ax, ax).unwrap();
        a.mov(ss, ax).unwrap();
        a.mov(sp, 0x7000_u32).unwrap();
        a.int(0x21).unwrap();
        a.out(0xf1, al).unwrap();
    });
    // IVT entry 0x21: 0x0700:0x0000. It replaces an entry of the page tables, which this vCPU does not use.
    system.guest.write_memory(0x21 * 4, &[0, 0, 0, 7]).unwrap();
    let mut assembler = CodeAssembler::new(16).unwrap();
    assembler.out(0xf0, al).unwrap();
    assembler.iret().unwrap();
    system.guest.write_memory(0x7000, &assembler.assemble(0).unwrap()).unwrap();
    assert_eq!(output(&mut vcpu).0, 0xf0);
    assert_eq!(vcpu.read_state().gpr[4], 0x7000 - 6);
    assert_eq!(output(&mut vcpu).0, 0xf1);
}

#[test]
fn sixteen_bit_arithmetic_keeps_upper_halves() {
    let (_, mut vcpu) = real_mode(|a| {
        a.mov(eax, 0x1234_ffff_u32).unwrap();
        a.inc(ax).unwrap();
        a.mov(ebx, eax).unwrap();
        a.mov(al, 0x7f_u32).unwrap();
        a.add(al, 1).unwrap();
        a.seto(ah).unwrap();
        a.out(0xf0, ax).unwrap();
    });
    assert_eq!(output(&mut vcpu), (0xf0, 0x0180));
    assert_eq!(vcpu.read_state().gpr[3], 0x1234_0000);
}

#[test]
fn string_moves_wrap_at_sixteen_bits() {
    let (system, mut vcpu) = real_mode(|a| {
        a.mov(ax, 0x3000_u32).unwrap();
        a.mov(es, ax).unwrap();
        a.mov(di, 0xffff_u32).unwrap();
        a.mov(cx, 2_u32).unwrap();
        a.mov(al, 0x5a_u32).unwrap();
        a.rep().stosb().unwrap();
        a.mov(ax, di).unwrap();
        a.out(0xf0, ax).unwrap();
    });
    assert_eq!(output(&mut vcpu), (0xf0, 1));
    assert_eq!(read_u64(&system.guest, 0x3_ffff) & 0xff, 0x5a);
    assert_eq!(read_u64(&system.guest, 0x3_0000) & 0xff, 0x5a);
}

/// The way that a kernel's start-up code for secondary processors takes: real, protected, compatibility, 64-bit.
#[test]
fn a_secondary_processor_reaches_64_bit_mode() {
    let (system, mut vcpu) = real_mode(|a| {
        // LGDT from the System's table register image, then PE and a far jump to 32-bit code.
        a.mov(bx, 0xb800_u32).unwrap();
        a.lgdt(ptr(bx)).unwrap();
        a.mov(eax, cr0).unwrap();
        a.or(eax, 1).unwrap();
        a.mov(cr0, eax).unwrap();
        // jmp 0x48:0x0000_8100
        a.db(&[0x66, 0xea, 0x00, 0x81, 0, 0, 0x48, 0]).unwrap();
    });
    // A ring-0 32-bit code segment behind the System's descriptors.
    write_u64(&system.guest, GDT + 0x48, 0x00cf_9b00_0000_ffff);
    write_u64(&system.guest, 0xb800, 0x4f | GDT << 16);
    let mut a = CodeAssembler::new(32).unwrap();
    a.mov(eax, u32::from(DATA_SELECTOR)).unwrap();
    a.mov(ds, eax).unwrap();
    a.mov(ss, eax).unwrap();
    a.mov(eax, 0x20_u32).unwrap();
    a.mov(cr4, eax).unwrap();
    a.xor(eax, eax).unwrap();
    a.mov(cr3, eax).unwrap();
    a.mov(ecx, 0xc000_0080_u32).unwrap();
    a.rdmsr().unwrap();
    a.or(eax, 0x100).unwrap();
    a.wrmsr().unwrap();
    a.mov(eax, cr0).unwrap();
    a.or(eax, 0x8000_0000_u32 as i32).unwrap();
    a.mov(cr0, eax).unwrap();
    // Compatibility mode now; jmp 8:0x8200 enters 64-bit mode.
    a.db(&[0xea, 0x00, 0x82, 0, 0, 0x08, 0]).unwrap();
    system.guest.write_memory(0x8100, &a.assemble(0x8100).unwrap()).unwrap();
    load_at(&system.guest, 0x8200, |a| {
        a.mov(rax, 0x1_0000_0001_u64).unwrap();
        a.mov(r15, rax).unwrap();
        a.mov(ecx, 0xc000_0080_u32).unwrap();
        a.rdmsr().unwrap();
        a.out(0xf0, eax).unwrap();
    });
    assert_eq!(output(&mut vcpu), (0xf0, 0x500), "LME and LMA are set");
    assert_eq!(vcpu.read_state().gpr[15], 0x1_0000_0001);
}

#[test]
fn compatibility_mode_runs_32_bit_user_code() {
    let system = System::new();
    system.open_to_user();
    system.gate(0x80, 0xee, 0);
    let mut code = CodeAssembler::new(32).unwrap();
    code.mov(eax, 0xffff_ffff_u32).unwrap();
    code.inc(eax).unwrap();
    code.push(0x1234_5678_u32 as i32).unwrap();
    code.pop(ebx).unwrap();
    code.int(0x80).unwrap();
    system.guest.write_memory(DATA, &code.assemble(DATA).unwrap()).unwrap();
    let mut vcpu = system.boot(|a| {
        a.mov(rbx, u64::MAX).unwrap();
        enter_compatibility(a, DATA);
    });
    let (vector, frame) = system.exception(&mut vcpu);
    assert_eq!((vector, frame.cs, frame.rsp), (0x80, USER_CODE_32.into(), STACK));
    let state = vcpu.read_state();
    assert_eq!((state.gpr[0], state.gpr[3]), (0, 0x1234_5678));
}

/// Boots 32-bit user code with every vector unit on.
fn vector_code(system: &System, build: impl FnOnce(&mut CodeAssembler)) -> Vcpu {
    system.open_to_user();
    system.gate(0x80, 0xee, 0);
    let mut code = CodeAssembler::new(32).unwrap();
    build(&mut code);
    code.int(0x80).unwrap();
    system.guest.write_memory(DATA, &code.assemble(DATA).unwrap()).unwrap();
    system.boot(|a| {
        a.mov(rax, cr4).unwrap();
        a.or(eax, 0x4_0600).unwrap();
        a.mov(cr4, rax).unwrap();
        a.xor(ecx, ecx).unwrap();
        a.xor(edx, edx).unwrap();
        a.mov(eax, 7).unwrap();
        a.xsetbv().unwrap();
        enter_compatibility(a, DATA);
    })
}

/// An operand that crosses into the next page.
const CROSSING: u64 = DATA + 0x2000 - 12;

#[test]
fn vector_x87_and_bit_instructions_run_in_compatibility_mode() {
    let system = System::new();
    let lanes: [f32; 8] = [1.5, -2.25, 3.0, 1e10, 0.1, -0.2, 7.75, 8.0];
    system.guest.write_memory(CROSSING, lanes.map(f32::to_le_bytes).as_flattened()).unwrap();
    let crossing = CROSSING as u32;
    let mut vcpu = vector_code(&system, |a| {
        a.mov(eax, 2.0_f32.to_bits()).unwrap();
        a.movd(xmm0, eax).unwrap();
        a.vbroadcastss(ymm1, xmm0).unwrap();
        a.vmulps(ymm2, ymm1, ymmword_ptr(crossing)).unwrap();
        a.vmovups(ymmword_ptr(crossing), ymm2).unwrap();
        a.fld(dword_ptr(crossing + 4)).unwrap();
        a.fsqrt().unwrap();
        a.fld1().unwrap();
        a.fadd_2(st0, st0).unwrap();
        a.fsqrt().unwrap();
        a.fstp(qword_ptr(DATA as u32 + 0x800)).unwrap();
        a.fnstsw(ax).unwrap();
        // ESP as an operand, and a high byte beside it.
        a.mov(edi, esp).unwrap();
        a.movd(esp, xmm0).unwrap();
        a.mov(ecx, 0x1234).unwrap();
        a.crc32(esp, ch).unwrap();
        a.mov(esi, esp).unwrap();
        a.mov(esp, edi).unwrap();
        a.mov(edx, 0x0ff0).unwrap();
        a.andn(ebp, edx, ecx).unwrap();
    });
    let (vector, frame) = system.exception(&mut vcpu);
    assert_eq!((vector, frame.rsp), (0x80, STACK));
    let mut bytes = [0; 32];
    system.guest.read_memory(CROSSING, &mut bytes).unwrap();
    assert_eq!(bytes, lanes.map(|lane| (lane * 2.0).to_le_bytes()).as_flattened());
    assert_eq!(read_u64(&system.guest, DATA + 0x800), 2.0_f64.sqrt().to_bits());
    let state = vcpu.read_state();
    assert_eq!(state.gpr[0] & 1, 1, "the square root of a negative number is invalid");
    assert_eq!(state.gpr[5], 0x1234 & !0x0ff0);
    // SAFETY: every host that runs the tests' vector instructions has SSE4.2.
    let crc = unsafe { std::arch::x86_64::_mm_crc32_u8(2.0_f32.to_bits(), 0x12) };
    assert_eq!(state.gpr[6], u64::from(crc));
}

#[test]
fn vector_instructions_fault_in_compatibility_mode_as_the_manual_says() {
    let at = DATA as u32;
    type Build = Box<dyn Fn(&mut CodeAssembler)>;
    let cases: [(u16, Build); 5] = [
        (14, Box::new(|a| a.movups(xmm0, xmmword_ptr(0x4000_0000_u32 - 8)).unwrap())),
        (14, Box::new(|a| a.movups(xmmword_ptr(0x4000_0000_u32), xmm0).unwrap())),
        (13, Box::new(move |a| a.movaps(xmm0, xmmword_ptr(at + 0x808)).unwrap())),
        (6, Box::new(|a| a.db(&[0x0f, 0x01, 0xfc]).unwrap())),
        (
            19,
            Box::new(move |a| {
                a.mov(dword_ptr(at + 0x800), 0x1f00).unwrap();
                a.ldmxcsr(dword_ptr(at + 0x800)).unwrap();
                a.pxor(xmm0, xmm0).unwrap();
                a.divss(xmm0, xmm0).unwrap();
            }),
        ),
    ];
    for (vector, build) in cases {
        let system = System::new();
        let mut vcpu = vector_code(&system, |a| build(a));
        let (found, frame) = system.exception(&mut vcpu);
        assert_eq!(found, vector);
        assert_eq!(frame.cs, USER_CODE_32.into());
    }
}

#[test]
fn port_io_from_user_mode_obeys_the_permission_bitmap() {
    let system = System::new();
    system.open_to_user();
    // The bitmap begins beyond the TSS limit: no port is allowed.
    system.guest.write_memory(0xb000 + 102, &0x68_u16.to_le_bytes()).unwrap();
    let mut vcpu = system.boot(|a| {
        enter_user(a);
        a.out(0xf0, al).unwrap();
    });
    let (vector, frame) = system.exception(&mut vcpu);
    assert_eq!((vector, frame.error), (13, Some(0)));
}

#[test]
fn a_monitor_sees_the_width_of_16_bit_code() {
    let (system, mut vcpu) = real_mode(|a| {
        a.mov(ax, 0x4000_u32).unwrap();
        a.mov(ds, ax).unwrap();
        a.mov(al, byte_ptr(0x20)).unwrap();
    });
    system.guest.set_trap(crate::TrapKind::Mem, 0x4_0000, 0x1000, 5, None).unwrap();
    let exit = vcpu.enter().unwrap();
    let Exit::Mem { key: 5, addr: 0x4_0020, rip: at, default_operand_size: 2, .. } = exit else {
        panic!("unexpected exit {exit:x?}");
    };
    assert!((0x8000..0x8010).contains(&at), "the instruction's linear address");
}
