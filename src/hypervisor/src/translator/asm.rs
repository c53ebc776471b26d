//! A small x86-64 byte emitter for the fixed sequences between guest instructions.

/// Host register numbers as instructions encode them.
pub(super) mod reg {
    pub(crate) const RAX: u8 = 0;
    pub(crate) const RCX: u8 = 1;
    pub(crate) const RSP: u8 = 4;
    pub(crate) const RSI: u8 = 6;
    pub(crate) const RBP: u8 = 5;
    pub(crate) const RDI: u8 = 7;
    /// First scratch register: effective address, then host address.
    pub(crate) const S0: u8 = 10;
    /// Second scratch register: TLB index, then spilled operands.
    pub(crate) const S1: u8 = 11;
    /// Holds the guest's RSP.
    pub(crate) const GUEST_SP: u8 = 15;
}

/// A host memory operand.
#[derive(Clone, Copy, Debug)]
pub(super) enum Mem {
    /// Absolute address below 2 GiB.
    Abs(u32),
    /// Base register and displacement.
    Base(u8, i32),
    /// Base, index, log2 of the scale, displacement.
    Index(u8, u8, u8, i32),
    /// Index, log2 of the scale, displacement.
    Scaled(u8, u8, i32),
    /// GS segment base plus register and displacement.
    Gs(u8, i32),
    /// GS segment base plus displacement.
    GsAbs(u32),
}

/// Condition codes as Jcc encodes them.
pub(super) mod cc {
    pub(crate) const E: u8 = 4;
    pub(crate) const NE: u8 = 5;
    pub(crate) const A: u8 = 7;
}

/// ALU operation numbers as the 0x80..=0x83 group encodes them.
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
pub(super) enum Alu {
    Add = 0,
    Or = 1,
    And = 4,
    Sub = 5,
    Xor = 6,
    Cmp = 7,
}

/// Code being assembled for a known executable address.
pub(super) struct Asm {
    pub(super) code: Vec<u8>,
    /// Executable address of the first byte.
    pub(super) base: u64,
}

impl Asm {
    pub(super) fn new() -> Asm {
        Asm { code: Vec::with_capacity(16 << 10), base: 0 }
    }

    /// Starts over for code that will live at `base`.
    pub(super) fn reset(&mut self, base: u64) {
        self.code.clear();
        self.base = base;
    }

    /// Executable address of the next byte.
    pub(super) fn here(&self) -> u64 {
        self.base + self.code.len() as u64
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        self.code.extend_from_slice(bytes);
    }

    fn imm32(&mut self, value: i32) {
        self.code.extend_from_slice(&value.to_le_bytes());
    }

    /// REX, opcode and ModRM for a memory operand. `prefix` is a mandatory prefix or 0.
    fn op_mem(&mut self, prefix: u8, wide: bool, opcode: &[u8], r: u8, mem: Mem) {
        if matches!(mem, Mem::Gs(..) | Mem::GsAbs(_)) {
            self.code.push(0x65);
        }
        if prefix != 0 {
            self.code.push(prefix);
        }
        let (b, x) = match mem {
            Mem::Abs(_) | Mem::GsAbs(_) => (0, 0),
            Mem::Base(b, _) | Mem::Gs(b, _) => (b, 0),
            Mem::Index(b, x, _, _) => (b, x),
            Mem::Scaled(x, _, _) => (0, x),
        };
        let rex = 0x40 | u8::from(wide) << 3 | (r >> 3 & 1) << 2 | (x >> 3 & 1) << 1 | (b >> 3 & 1);
        if rex != 0x40 {
            self.code.push(rex);
        }
        self.bytes(opcode);
        self.modrm_mem(r, mem);
    }

    fn modrm_mem(&mut self, r: u8, mem: Mem) {
        let r = (r & 7) << 3;
        match mem {
            Mem::Abs(at) | Mem::GsAbs(at) => {
                self.bytes(&[r | 4, 0x25]);
                self.imm32(at as i32);
            }
            Mem::Base(b, disp) | Mem::Gs(b, disp) => {
                let low = b & 7;
                let mode = disp_mode(low, disp);
                self.code.push(mode << 6 | r | low);
                if low == 4 {
                    self.code.push(0x24);
                }
                self.disp(mode, disp);
            }
            Mem::Index(b, x, scale, disp) => {
                let mode = disp_mode(b & 7, disp);
                self.bytes(&[mode << 6 | r | 4, scale << 6 | (x & 7) << 3 | (b & 7)]);
                self.disp(mode, disp);
            }
            Mem::Scaled(x, scale, disp) => {
                self.bytes(&[r | 4, scale << 6 | (x & 7) << 3 | 5]);
                self.imm32(disp);
            }
        }
    }

    fn disp(&mut self, mode: u8, disp: i32) {
        match mode {
            0 => {}
            1 => self.code.push(disp as u8),
            _ => self.imm32(disp),
        }
    }

    fn op_reg(&mut self, wide: bool, opcode: &[u8], r: u8, rm: u8) {
        let rex = 0x40 | u8::from(wide) << 3 | (r >> 3 & 1) << 2 | (rm >> 3 & 1);
        if rex != 0x40 {
            self.code.push(rex);
        }
        self.bytes(opcode);
        self.code.push(0xc0 | (r & 7) << 3 | (rm & 7));
    }

    pub(super) fn mov_rr(&mut self, to: u8, from: u8) {
        if to != from {
            self.op_reg(true, &[0x8b], to, from);
        }
    }

    pub(super) fn load(&mut self, to: u8, mem: Mem) {
        self.op_mem(0, true, &[0x8b], to, mem);
    }

    pub(super) fn load32(&mut self, to: u8, mem: Mem) {
        self.op_mem(0, false, &[0x8b], to, mem);
    }

    pub(super) fn store(&mut self, mem: Mem, from: u8) {
        self.op_mem(0, true, &[0x89], from, mem);
    }

    pub(super) fn store32(&mut self, mem: Mem, from: u8) {
        self.op_mem(0, false, &[0x89], from, mem);
    }

    pub(super) fn load16(&mut self, to: u8, mem: Mem) {
        self.op_mem(0x66, false, &[0x8b], to, mem);
    }

    /// Stores a sign-extended immediate.
    pub(super) fn store_imm(&mut self, mem: Mem, value: i32) {
        self.op_mem(0, true, &[0xc7], 0, mem);
        self.imm32(value);
    }

    pub(super) fn store_imm32(&mut self, mem: Mem, value: u32) {
        self.op_mem(0, false, &[0xc7], 0, mem);
        self.imm32(value as i32);
    }

    pub(super) fn lea(&mut self, to: u8, mem: Mem) {
        self.op_mem(0, true, &[0x8d], to, mem);
    }

    pub(super) fn lea32(&mut self, to: u8, mem: Mem) {
        self.op_mem(0, false, &[0x8d], to, mem);
    }

    /// Loads any constant by the shortest encoding, without touching flags.
    pub(super) fn mov_imm(&mut self, to: u8, value: u64) {
        if let Ok(value) = u32::try_from(value) {
            if to >= 8 {
                self.code.push(0x41);
            }
            self.code.push(0xb8 | (to & 7));
            self.imm32(value as i32);
        } else if let Ok(value) = i32::try_from(value as i64) {
            self.op_reg(true, &[0xc7], 0, to);
            self.imm32(value);
        } else {
            self.bytes(&[0x48 | (to >> 3 & 1), 0xb8 | (to & 7)]);
            self.bytes(&value.to_le_bytes());
        }
    }

    pub(super) fn movzx16(&mut self, to: u8, from: u8) {
        self.op_reg(false, &[0x0f, 0xb7], to, from);
    }

    pub(super) fn alu_rm(&mut self, op: Alu, r: u8, mem: Mem) {
        self.op_mem(0, true, &[(op as u8) << 3 | 3], r, mem);
    }

    pub(super) fn alu_rr(&mut self, op: Alu, r: u8, rm: u8) {
        self.op_reg(true, &[(op as u8) << 3 | 3], r, rm);
    }

    pub(super) fn alu_imm(&mut self, op: Alu, wide: bool, r: u8, value: i32) {
        if let Ok(value) = i8::try_from(value) {
            self.op_reg(wide, &[0x83], op as u8, r);
            self.code.push(value as u8);
        } else {
            self.op_reg(wide, &[0x81], op as u8, r);
            self.imm32(value);
        }
    }

    /// ALU operation of a 32-bit memory operand and an immediate.
    pub(super) fn alu_mem_imm32(&mut self, op: Alu, mem: Mem, value: i32) {
        if let Ok(value) = i8::try_from(value) {
            self.op_mem(0, false, &[0x83], op as u8, mem);
            self.code.push(value as u8);
        } else {
            self.op_mem(0, false, &[0x81], op as u8, mem);
            self.imm32(value);
        }
    }

    /// As [`Asm::alu_mem_imm32`] but always with a four-byte immediate; returns the immediate's address for patching.
    pub(super) fn alu_mem_imm32_patchable(&mut self, op: Alu, mem: Mem, value: u32) -> u64 {
        self.op_mem(0, false, &[0x81], op as u8, mem);
        let at = self.here();
        self.imm32(value as i32);
        at
    }

    pub(super) fn shr_imm(&mut self, r: u8, count: u8) {
        self.op_reg(true, &[0xc1], 5, r);
        self.code.push(count);
    }

    pub(super) fn shl_imm(&mut self, r: u8, count: u8) {
        self.op_reg(true, &[0xc1], 4, r);
        self.code.push(count);
    }

    pub(super) fn sar_imm(&mut self, r: u8, count: u8) {
        self.op_reg(true, &[0xc1], 7, r);
        self.code.push(count);
    }

    pub(super) fn not(&mut self, r: u8) {
        self.op_reg(true, &[0xf7], 2, r);
    }

    pub(super) fn store16(&mut self, mem: Mem, from: u8) {
        self.op_mem(0x66, false, &[0x89], from, mem);
    }

    pub(super) fn cmovne(&mut self, to: u8, mem: Mem) {
        self.op_mem(0, true, &[0x0f, 0x45], to, mem);
    }

    /// TEST of a 32-bit register.
    pub(super) fn test_imm32(&mut self, r: u8, value: i32) {
        self.op_reg(false, &[0xf7], 0, r);
        self.imm32(value);
    }

    /// TEST of bit 0 of the byte at an absolute address.
    pub(super) fn test_bit0(&mut self, at: u32) {
        self.op_mem(0, false, &[0xf6], 0, Mem::Abs(at));
        self.code.push(1);
    }

    /// RORX: a rotation that leaves flags alone (BMI2).
    pub(super) fn rorx(&mut self, to: u8, from: u8, count: u8) {
        let byte1 = 0x03 | (!(to >> 3) & 1) << 7 | 1 << 6 | (!(from >> 3) & 1) << 5;
        self.bytes(&[0xc4, byte1, 0xfb, 0xf0, 0xc0 | (to & 7) << 3 | (from & 7), count]);
    }

    /// Jcc to a known address.
    pub(super) fn jcc(&mut self, cc: u8, target: u64) {
        self.bytes(&[0x0f, 0x80 | cc]);
        self.rel32(target);
    }

    pub(super) fn jmp(&mut self, target: u64) {
        self.code.push(0xe9);
        self.rel32(target);
    }

    pub(super) fn call(&mut self, target: u64) {
        self.code.push(0xe8);
        self.rel32(target);
    }

    fn rel32(&mut self, target: u64) {
        let rel = target.wrapping_sub(self.here() + 4) as i32;
        self.imm32(rel);
    }

    /// Jcc whose target is bound later; returns the offset of the displacement.
    pub(super) fn jcc_forward(&mut self, cc: u8) -> usize {
        self.bytes(&[0x0f, 0x80 | cc, 0, 0, 0, 0]);
        self.code.len() - 4
    }

    pub(super) fn jmp_forward(&mut self) -> usize {
        self.bytes(&[0xe9, 0, 0, 0, 0]);
        self.code.len() - 4
    }

    pub(super) fn call_forward(&mut self) -> usize {
        self.bytes(&[0xe8, 0, 0, 0, 0]);
        self.code.len() - 4
    }

    /// Binds a forward displacement to the current position.
    pub(super) fn bind(&mut self, at: usize) {
        self.bind_to(at, self.code.len());
    }

    /// Binds a displacement at offset `at` to offset `target`.
    pub(super) fn bind_to(&mut self, at: usize, target: usize) {
        let rel = (target as i64 - (at as i64 + 4)) as i32;
        self.code[at..at + 4].copy_from_slice(&rel.to_le_bytes());
    }

    /// JMP through memory.
    pub(super) fn jmp_mem(&mut self, mem: Mem) {
        self.op_mem(0, false, &[0xff], 4, mem);
    }

    /// CALL through memory.
    pub(super) fn call_mem(&mut self, mem: Mem) {
        self.op_mem(0, false, &[0xff], 2, mem);
    }

    pub(super) fn ret(&mut self) {
        self.code.push(0xc3);
    }

    /// LAHF; SETO AL: status flags into AX.
    pub(super) fn flags_to_ax(&mut self) {
        self.bytes(&[0x9f, 0x0f, 0x90, 0xc0]);
    }

    /// ADD AL, 127; SAHF: the inverse of [`Asm::flags_to_ax`].
    pub(super) fn flags_from_ax(&mut self) {
        self.bytes(&[0x04, 0x7f, 0x9e]);
    }

    /// PUSHFQ; POP reg.
    pub(super) fn flags_to_reg(&mut self, to: u8) {
        self.code.push(0x9c);
        if to >= 8 {
            self.code.push(0x41);
        }
        self.code.push(0x58 | (to & 7));
    }

    pub(super) fn push(&mut self, r: u8) {
        if r >= 8 {
            self.code.push(0x41);
        }
        self.code.push(0x50 | (r & 7));
    }

    pub(super) fn pop(&mut self, r: u8) {
        if r >= 8 {
            self.code.push(0x41);
        }
        self.code.push(0x58 | (r & 7));
    }

    /// VMOVUPS between a YMM register and memory.
    pub(super) fn vmovups(&mut self, store: bool, ymm: u8, mem: Mem) {
        debug_assert!(matches!(mem, Mem::Abs(_)));
        self.bytes(&[0xc5, if ymm >= 8 { 0x7c } else { 0xfc }, if store { 0x11 } else { 0x10 }]);
        self.modrm_mem(ymm, mem);
    }

    pub(super) fn vzeroupper(&mut self) {
        self.bytes(&[0xc5, 0xf8, 0x77]);
    }

    /// LDMXCSR or STMXCSR.
    pub(super) fn mxcsr(&mut self, store: bool, mem: Mem) {
        self.op_mem(0, false, &[0x0f, 0xae], if store { 3 } else { 2 }, mem);
    }

    /// WRGSBASE.
    pub(super) fn wrgsbase(&mut self, r: u8) {
        self.bytes(&[0xf3, 0x48 | (r >> 3 & 1), 0x0f, 0xae, 0xd8 | (r & 7)]);
    }
}

fn disp_mode(low: u8, disp: i32) -> u8 {
    if disp == 0 && low != 5 {
        0
    } else if i8::try_from(disp).is_ok() {
        1
    } else {
        2
    }
}
