//! x87 state between runs, the FXSAVE and XSAVE families, and vector instructions that access memory by element.
//!
//! While the guest runs, its x87 registers are the host's, also inside thunks, because compiled Rust does not touch
//! them. [`load`] and [`store`] bracket a run.

use std::arch::asm;

use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};

use super::classify::memory_operand;
use crate::cpu::Cpu;
use crate::exception::{Exception, Fault};
use crate::memory;
use crate::registers::{cr0, cr4};
use crate::state::{FxsaveArea, seg};

const X87: u64 = 1;
const SSE: u64 = 2;
const AVX: u64 = 4;
const FCW_INIT: u16 = 0x37f;
const MXCSR_INIT: u32 = 0x1f80;
/// MXCSR bits that every processor with SSE2 has.
const MXCSR_MASK: u32 = 0xffff;
const HEADER: usize = 512;
const AVX_OFFSET: usize = 576;
/// Bytes of the standard-format XSAVE area for x87, SSE and AVX.
const XSAVE_SIZE: usize = 832;

/// Stores the host's x87 and SSE registers.
fn fxsave(area: &mut FxsaveArea) {
    // SAFETY: the area is 512 bytes, aligned to 64.
    unsafe { asm!("fxsave64 [{}]", in(reg) area.0.as_mut_ptr(), options(nostack, preserves_flags)) }
}

/// Loads the host's x87 registers; SSE registers are restored to nothing in particular.
fn fxrstor(area: &FxsaveArea) {
    // SAFETY: the area is 512 bytes, aligned to 64, with a valid MXCSR; the vector registers are declared clobbered.
    unsafe {
        asm!(
            "fxrstor64 [{}]", in(reg) area.0.as_ptr(),
            out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _,
            out("xmm4") _, out("xmm5") _, out("xmm6") _, out("xmm7") _,
            out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _,
            out("xmm12") _, out("xmm13") _, out("xmm14") _, out("xmm15") _,
            options(nostack, preserves_flags)
        );
    }
}

fn put<const N: usize>(area: &mut [u8], at: usize, bytes: [u8; N]) {
    area[at..at + N].copy_from_slice(&bytes);
}

fn word<const N: usize>(area: &[u8], at: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&area[at..at + N]);
    bytes
}

/// Makes the host's x87 registers the guest's.
pub(super) fn load(cpu: &mut Cpu) {
    if !cpu.translator.fpu_loaded {
        cpu.translator.fpu_loaded = true;
        put(&mut cpu.state.fxsave.0, 0, FCW_INIT.to_le_bytes());
    }
    put(&mut cpu.state.fxsave.0, 24, MXCSR_INIT.to_le_bytes());
    fxrstor(&cpu.state.fxsave);
}

/// Stores the guest's x87 registers and leaves the host's usable.
pub(super) fn store(cpu: &mut Cpu) {
    fxsave(&mut cpu.state.fxsave);
    // SAFETY: FNINIT changes x87 control state only, which compiled code expects in this state.
    unsafe { asm!("fninit", options(nomem, nostack, preserves_flags)) }
}

/// FXSAVE, FXRSTOR, XSAVE, XSAVEOPT, XRSTOR, FNSTENV, FNSAVE.
pub(super) fn execute(cpu: &mut Cpu, instruction: &Instruction) -> Result<(), Fault> {
    use Mnemonic as M;
    if matches!(instruction.mnemonic(), M::Fnstenv | M::Fnsave) {
        return store_environment(cpu, instruction);
    }
    let extended =
        !matches!(instruction.mnemonic(), M::Fxsave | M::Fxsave64 | M::Fxrstor | M::Fxrstor64);
    if extended && cpu.state.cr4 & cr4::OSXSAVE == 0 {
        return Err(Exception::ud().into());
    }
    if cpu.state.cr0 & (cr0::TS | cr0::EM) != 0 {
        return Err(Exception::nm().into());
    }
    let va = address(cpu, instruction, 0);
    if va & if extended { 63 } else { 15 } != 0 {
        return Err(Exception::gp(0).into());
    }
    let requested = cpu.state.gpr[2] << 32 | cpu.state.gpr[0] & 0xffff_ffff;
    let mask = requested & cpu.state.xcr0;
    match instruction.mnemonic() {
        M::Fxsave | M::Fxsave64 => fxsave_guest(cpu, va),
        M::Fxrstor | M::Fxrstor64 => fxrstor_guest(cpu, va),
        M::Xrstor | M::Xrstor64 => xrstor_guest(cpu, va, mask),
        _ => xsave_guest(cpu, va, mask),
    }
}

/// The legacy part of the image; instruction and operand pointers are the host's, so they are left out.
fn legacy(cpu: &Cpu) -> FxsaveArea {
    let mut area = FxsaveArea([0; 512]);
    fxsave(&mut area);
    area.0[6..24].fill(0);
    put(&mut area.0, 24, cpu.state.mxcsr.to_le_bytes());
    put(&mut area.0, 28, MXCSR_MASK.to_le_bytes());
    for (n, ymm) in cpu.state.vector.iter().enumerate() {
        area.0[160 + 16 * n..176 + 16 * n].copy_from_slice(&ymm[..16]);
    }
    area
}

fn fxsave_guest(cpu: &mut Cpu, va: u64) -> Result<(), Fault> {
    let area = legacy(cpu);
    memory::write(cpu, va, &area.0[..160 + 16 * vector_count(cpu)])
}

/// FNSTENV and FNSAVE in the formats of protected mode (SDM vol. 1 figures 8-9 and 8-11).
fn store_environment(cpu: &mut Cpu, instruction: &Instruction) -> Result<(), Fault> {
    // Registers follow the environment; the format has 16- or 32-bit fields.
    let saves = instruction.mnemonic() == Mnemonic::Fnsave;
    let short = matches!(instruction.code(), Code::Fnstenv_m14byte | Code::Fnsave_m94byte);
    let mut environment = [0_u8; 28];
    let mut area = FxsaveArea([0; 512]);
    fxsave(&mut area);
    let tag_word = {
        // SAFETY: FNSTENV writes 28 bytes, masks all exceptions and changes nothing else.
        unsafe { asm!("fnstenv [{}]", in(reg) environment.as_mut_ptr(), options(nostack)) }
        u16::from_le_bytes(word(&environment, 8))
    };
    // The pointers are the host's, so they are left out.
    let field = if short { 2 } else { 4 };
    let mut image = [0; 108];
    let header = field * 7;
    let words =
        [u16::from_le_bytes(word(&area.0, 0)), u16::from_le_bytes(word(&area.0, 2)), tag_word];
    for (n, value) in words.into_iter().enumerate() {
        put(&mut image, n * field, value.to_le_bytes());
        if !short {
            // Reserved halves read as ones.
            put(&mut image, n * field + 2, [0xff; 2]);
        }
    }
    if !short {
        put(&mut image, 26, [0xff; 2]);
    }
    if !saves {
        let done = write_operand(cpu, instruction, &image[..header]);
        if done.is_err() {
            fxrstor_x87(&area);
        }
        return done;
    }
    for n in 0..8 {
        let register: [u8; 10] = word(&area.0, 32 + 16 * n);
        put(&mut image, header + 10 * n, register);
    }
    let done = write_operand(cpu, instruction, &image[..header + 80]);
    if done.is_err() {
        fxrstor_x87(&area);
    } else {
        init_x87();
    }
    done
}

/// Puts back the x87 state of an instruction that did not complete.
fn fxrstor_x87(area: &FxsaveArea) {
    load_x87(&area.0[..160]);
}

fn write_operand(cpu: &mut Cpu, instruction: &Instruction, bytes: &[u8]) -> Result<(), Fault> {
    let va = address(cpu, instruction, 0);
    memory::write(cpu, va, bytes)
}

fn check_mxcsr(mxcsr: u32) -> Result<u32, Fault> {
    if mxcsr & !MXCSR_MASK != 0 { Err(Exception::gp(0).into()) } else { Ok(mxcsr) }
}

fn load_x87(image: &[u8]) {
    let mut area = FxsaveArea([0; 512]);
    area.0[..160].copy_from_slice(&image[..160]);
    put(&mut area.0, 24, MXCSR_INIT.to_le_bytes());
    fxrstor(&area);
}

fn init_x87() {
    let mut image = [0; 160];
    put(&mut image, 0, FCW_INIT.to_le_bytes());
    load_x87(&image);
}

fn fxrstor_guest(cpu: &mut Cpu, va: u64) -> Result<(), Fault> {
    let mut image = [0; 512];
    memory::read(cpu, va, &mut image)?;
    let mxcsr = check_mxcsr(u32::from_le_bytes(word(&image, 24)))?;
    load_x87(&image);
    if cpu.state.cr4 & cr4::OSFXSR != 0 {
        cpu.state.mxcsr = mxcsr;
        for n in 0..vector_count(cpu) {
            cpu.state.vector[n][..16].copy_from_slice(&image[160 + 16 * n..176 + 16 * n]);
        }
    }
    Ok(())
}

fn xsave_guest(cpu: &mut Cpu, va: u64, mask: u64) -> Result<(), Fault> {
    let size = if mask & AVX != 0 { XSAVE_SIZE } else { AVX_OFFSET };
    let mut image = [0; XSAVE_SIZE];
    // Parts outside the mask keep their contents.
    memory::read(cpu, va, &mut image[..size])?;
    let area = legacy(cpu);
    if mask & X87 != 0 {
        image[..24].copy_from_slice(&area.0[..24]);
        image[32..160].copy_from_slice(&area.0[32..160]);
    }
    if mask & (SSE | AVX) != 0 {
        image[24..32].copy_from_slice(&area.0[24..32]);
    }
    if mask & SSE != 0 {
        let registers = 160..160 + 16 * vector_count(cpu);
        image[registers.clone()].copy_from_slice(&area.0[registers]);
    }
    if mask & AVX != 0 {
        let count = vector_count(cpu);
        for (n, ymm) in cpu.state.vector.iter().enumerate().take(count) {
            let at = AVX_OFFSET + 16 * n;
            image[at..at + 16].copy_from_slice(&ymm[16..]);
        }
    }
    let present = u64::from_le_bytes(word(&image, HEADER));
    put(&mut image, HEADER, (present | mask).to_le_bytes());
    memory::write(cpu, va, &image[..size])
}

fn xrstor_guest(cpu: &mut Cpu, va: u64, mask: u64) -> Result<(), Fault> {
    let size = if mask & AVX != 0 { XSAVE_SIZE } else { AVX_OFFSET };
    let mut image = [0; XSAVE_SIZE];
    memory::read(cpu, va, &mut image[..size])?;
    let present = u64::from_le_bytes(word(&image, HEADER));
    let reserved = image[HEADER + 8..HEADER + 24].iter().any(|&byte| byte != 0);
    if present & !cpu.state.xcr0 != 0 || reserved {
        return Err(Exception::gp(0).into());
    }
    if mask & (SSE | AVX) != 0 {
        cpu.state.mxcsr = check_mxcsr(u32::from_le_bytes(word(&image, 24)))?;
    }
    let (from_image, to_init) = (mask & present, mask & !present);
    if from_image & X87 != 0 {
        load_x87(&image);
    } else if to_init & X87 != 0 {
        init_x87();
    }
    for n in 0..vector_count(cpu) {
        let low = &mut cpu.state.vector[n][..16];
        if from_image & SSE != 0 {
            low.copy_from_slice(&image[160 + 16 * n..176 + 16 * n]);
        } else if to_init & SSE != 0 {
            low.fill(0);
        }
        let high = &mut cpu.state.vector[n][16..];
        if from_image & AVX != 0 {
            high.copy_from_slice(&image[AVX_OFFSET + 16 * n..AVX_OFFSET + 16 * n + 16]);
        } else if to_init & AVX != 0 {
            high.fill(0);
        }
    }
    Ok(())
}

/// Vector registers that exist in the current mode.
fn vector_count(cpu: &Cpu) -> usize {
    if cpu.is_64bit() { 16 } else { 8 }
}

/// Linear address of the memory operand, for one element of a vector of addresses. Outside 64-bit mode segments have
/// their bases; their limits, which flat programs do not use, are not checked.
fn address(cpu: &Cpu, instruction: &Instruction, element: usize) -> u64 {
    let operand = memory_operand(instruction).unwrap_or(0);
    instruction
        .virtual_address(operand, element, |register, index, size| {
            Some(register_value(cpu, register, index, size))
        })
        .map_or(0, |va| if cpu.is_64bit() { va } else { va & 0xffff_ffff })
}

fn register_value(cpu: &Cpu, register: Register, index: usize, size: usize) -> u64 {
    match register {
        Register::FS => cpu.state.segments[seg::FS].base,
        Register::GS => cpu.state.segments[seg::GS].base,
        _ if register.is_segment_register() && cpu.is_64bit() => 0,
        _ if register.is_segment_register() => {
            cpu.state.segments[(register as usize - Register::ES as usize) % 6].base
        }
        _ if register.is_gpr16() => cpu.state.gpr[register.number()] & 0xffff,
        _ if register.is_gpr64() => cpu.state.gpr[register.number()],
        _ if register.is_gpr32() => cpu.state.gpr[register.number()] & 0xffff_ffff,
        _ if register.is_vector_register() => {
            let bytes = &cpu.state.vector[register.number() & 15];
            match size {
                4 => i64::from(i32::from_le_bytes(word(bytes, index * 4))) as u64,
                _ => u64::from_le_bytes(word(bytes, index * 8)),
            }
        }
        _ => 0,
    }
}

/// VMASKMOV, VPMASKMOV, MASKMOVQ, MASKMOVDQU and gathers.
pub(super) fn element(cpu: &mut Cpu, instruction: &Instruction) -> Result<(), Fault> {
    use Mnemonic as M;
    match instruction.mnemonic() {
        M::Maskmovdqu | M::Vmaskmovdqu => mask_move_bytes(cpu, instruction),
        M::Maskmovq => mask_move_mmx(cpu, instruction),
        _ if instruction.op1_kind() == OpKind::Memory && instruction.is_vsib() => {
            gather(cpu, instruction)
        }
        _ => mask_move(cpu, instruction),
    }
}

fn mask_move(cpu: &mut Cpu, instruction: &Instruction) -> Result<(), Fault> {
    let size = match instruction.mnemonic() {
        Mnemonic::Vmaskmovps | Mnemonic::Vpmaskmovd => 4,
        _ => 8,
    };
    let va = address(cpu, instruction, 0);
    let mask = cpu.state.vector[instruction.op1_register().number() & 15];
    let store = instruction.op0_kind() == OpKind::Memory;
    let register = if store { instruction.op2_register() } else { instruction.op0_register() };
    let length = register.size().min(32);
    let source = cpu.state.vector[register.number() & 15];
    let mut result = [0; 32];
    for at in (0..length).step_by(size) {
        if mask[at + size - 1] & 0x80 == 0 {
            continue;
        }
        let element = va.wrapping_add(at as u64);
        if store {
            memory::write(cpu, element, &source[at..at + size])?;
        } else {
            memory::read(cpu, element, &mut result[at..at + size])?;
        }
    }
    if !store {
        cpu.state.vector[register.number() & 15] = result;
    }
    Ok(())
}

fn mask_address(cpu: &Cpu, instruction: &Instruction) -> u64 {
    let base = register_value(cpu, instruction.memory_segment(), 0, 8);
    let rdi = cpu.state.gpr[7];
    let offset = match instruction.op0_kind() {
        OpKind::MemorySegDI => rdi & 0xffff,
        OpKind::MemorySegEDI => rdi & 0xffff_ffff,
        _ => rdi,
    };
    let va = base.wrapping_add(offset);
    if cpu.is_64bit() { va } else { va & 0xffff_ffff }
}

fn store_masked(cpu: &mut Cpu, va: u64, data: &[u8], mask: &[u8]) -> Result<(), Fault> {
    for (at, (byte, mask)) in data.iter().zip(mask).enumerate() {
        if mask & 0x80 != 0 {
            memory::write(cpu, va.wrapping_add(at as u64), &[*byte])?;
        }
    }
    Ok(())
}

fn mask_move_bytes(cpu: &mut Cpu, instruction: &Instruction) -> Result<(), Fault> {
    let va = mask_address(cpu, instruction);
    let data = cpu.state.vector[instruction.op1_register().number() & 15];
    let mask = cpu.state.vector[instruction.op2_register().number() & 15];
    store_masked(cpu, va, &data[..16], &mask[..16])
}

fn mask_move_mmx(cpu: &mut Cpu, instruction: &Instruction) -> Result<(), Fault> {
    let va = mask_address(cpu, instruction);
    let mut area = FxsaveArea([0; 512]);
    fxsave(&mut area);
    // FXSAVE stores ST(i); MMi is physical register i, at ST((i - TOP) mod 8).
    let top = usize::from(u16::from_le_bytes(word(&area.0, 2)) >> 11 & 7);
    let register = |n: usize| 32 + 16 * ((n + 8 - top) % 8);
    let data: [u8; 8] = word(&area.0, register(instruction.op1_register().number() & 7));
    let mask: [u8; 8] = word(&area.0, register(instruction.op2_register().number() & 7));
    store_masked(cpu, va, &data, &mask)?;
    // As every MMX instruction does: TOP becomes 0 and all registers valid (SDM vol. 1 §9.5.1).
    // SAFETY: reads a register that compiled Rust does not use.
    unsafe { asm!("movd eax, mm0", out("eax") _, options(nomem, nostack, preserves_flags)) }
    Ok(())
}

/// VGATHER and VPGATHER: a fault leaves the elements before it done and their masks clear.
fn gather(cpu: &mut Cpu, instruction: &Instruction) -> Result<(), Fault> {
    let (to, mask) = (instruction.op0_register(), instruction.op2_register());
    let index = instruction.memory_index();
    // #UD unless all three differ (SDM vol. 2, VGATHERDPD).
    let number = |register: Register| register.number() & 15;
    if number(to) == number(mask) || number(to) == number(index) || number(mask) == number(index) {
        return Err(Exception::ud().into());
    }
    use Mnemonic as M;
    let (size, index_size) = match instruction.mnemonic() {
        M::Vgatherdps | M::Vpgatherdd => (4, 4),
        M::Vgatherqps | M::Vpgatherqd => (4, 8),
        M::Vgatherdpd | M::Vpgatherdq => (8, 4),
        _ => (8, 8),
    };
    let count = (to.size().min(32) / size).min(index.size() / index_size);
    for n in 0..count {
        let at = n * size;
        if cpu.state.vector[number(mask)][at + size - 1] & 0x80 != 0 {
            let va = address(cpu, instruction, n);
            let mut value = [0; 8];
            memory::read(cpu, va, &mut value[..size])?;
            cpu.state.vector[number(to)][at..at + size].copy_from_slice(&value[..size]);
        }
        cpu.state.vector[number(mask)][at..at + size].fill(0);
    }
    cpu.state.vector[number(to)][count * size..].fill(0);
    cpu.state.vector[number(mask)].fill(0);
    Ok(())
}
