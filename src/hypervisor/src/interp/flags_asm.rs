//! Arithmetic on the host CPU, with the guest's flags going in and coming out: the same results, and the same values of
//! flags that the manuals leave undefined, as when the translator copies the instruction through.

use crate::registers::rflags;
use std::arch::asm;

/// Values of the six status flags, for POPFQ: everything else as the ABI wants it.
fn input(flags: u64) -> u64 {
    flags & rflags::STATUS | rflags::FIXED | rflags::IF
}

/// One instruction between a POPFQ of `flags` and a PUSHFQ into them.
macro_rules! flagged {
    ($flags:ident, $instruction:expr, $($operands:tt)*) => {
        asm!("push {f}", "popfq", $instruction, "pushfq", "pop {f}", f = inout(reg) $flags, $($operands)*)
    };
}

macro_rules! two_operands {
    ($($name:ident = $mnemonic:literal;)*) => {$(
        /// Result and status flags of the instruction on the low `size` bytes.
        pub(super) fn $name(size: usize, a: u64, b: u64, flags: u64) -> (u64, u64) {
            let mut flags = input(flags);
            let mut a = a;
            // SAFETY: register-only arithmetic between a POPFQ of status flags and a PUSHFQ; the stack is balanced.
            unsafe {
                match size {
                    1 => {
                        let mut low = a as u8;
                        flagged!(flags, concat!($mnemonic, " {a}, {b}"), a = inout(reg_byte) low, b = in(reg_byte) b as u8);
                        a = low.into();
                    }
                    2 => flagged!(flags, concat!($mnemonic, " {a:x}, {b:x}"), a = inout(reg) a, b = in(reg) b),
                    4 => flagged!(flags, concat!($mnemonic, " {a:e}, {b:e}"), a = inout(reg) a, b = in(reg) b),
                    _ => flagged!(flags, concat!($mnemonic, " {a}, {b}"), a = inout(reg) a, b = in(reg) b),
                }
            }
            (a, flags & rflags::STATUS)
        }
    )*};
}

two_operands! {
    add = "add";
    or = "or";
    adc = "adc";
    sbb = "sbb";
    and = "and";
    sub = "sub";
    xor = "xor";
}

macro_rules! one_operand {
    ($($name:ident = $mnemonic:literal;)*) => {$(
        /// Result and status flags of the instruction on the low `size` bytes.
        pub(super) fn $name(size: usize, a: u64, flags: u64) -> (u64, u64) {
            let mut flags = input(flags);
            let mut a = a;
            // SAFETY: as in `two_operands`.
            unsafe {
                match size {
                    1 => {
                        let mut low = a as u8;
                        flagged!(flags, concat!($mnemonic, " {a}"), a = inout(reg_byte) low);
                        a = low.into();
                    }
                    2 => flagged!(flags, concat!($mnemonic, " {a:x}"), a = inout(reg) a),
                    4 => flagged!(flags, concat!($mnemonic, " {a:e}"), a = inout(reg) a),
                    _ => flagged!(flags, concat!($mnemonic, " {a}"), a = inout(reg) a),
                }
            }
            (a, flags & rflags::STATUS)
        }
    )*};
}

one_operand! {
    inc = "inc";
    dec = "dec";
    not = "not";
    neg = "neg";
}

macro_rules! shifts {
    ($($name:ident = $mnemonic:literal;)*) => {$(
        /// Result and status flags of the instruction on the low `size` bytes by `count`.
        pub(super) fn $name(size: usize, a: u64, count: u8, flags: u64) -> (u64, u64) {
            let mut flags = input(flags);
            let mut a = a;
            // SAFETY: as in `two_operands`.
            unsafe {
                match size {
                    1 => {
                        let mut low = a as u8;
                        flagged!(flags, concat!($mnemonic, " {a}, cl"), a = inout(reg_byte) low, in("cl") count);
                        a = low.into();
                    }
                    2 => flagged!(flags, concat!($mnemonic, " {a:x}, cl"), a = inout(reg) a, in("cl") count),
                    4 => flagged!(flags, concat!($mnemonic, " {a:e}, cl"), a = inout(reg) a, in("cl") count),
                    _ => flagged!(flags, concat!($mnemonic, " {a}, cl"), a = inout(reg) a, in("cl") count),
                }
            }
            (a, flags & rflags::STATUS)
        }
    )*};
}

shifts! {
    rol = "rol";
    ror = "ror";
    rcl = "rcl";
    rcr = "rcr";
    shl = "shl";
    shr = "shr";
    sar = "sar";
}

macro_rules! wide_operands {
    ($($name:ident = $mnemonic:literal $(, $count:literal)?;)*) => {$(
        /// Result and status flags of the instruction on the low 2, 4 or 8 bytes.
        pub(super) fn $name(size: usize, a: u64, b: u64, count: u8, flags: u64) -> (u64, u64) {
            let mut flags = input(flags);
            let mut a = a;
            // SAFETY: as in `two_operands`.
            unsafe {
                match size {
                    2 => flagged!(flags, concat!($mnemonic, " {a:x}, {b:x}" $(, $count)?), a = inout(reg) a, b = in(reg) b, in("cl") count),
                    4 => flagged!(flags, concat!($mnemonic, " {a:e}, {b:e}" $(, $count)?), a = inout(reg) a, b = in(reg) b, in("cl") count),
                    _ => flagged!(flags, concat!($mnemonic, " {a}, {b}" $(, $count)?), a = inout(reg) a, b = in(reg) b, in("cl") count),
                }
            }
            (a, flags & rflags::STATUS)
        }
    )*};
}

wide_operands! {
    shld = "shld", ", cl";
    shrd = "shrd", ", cl";
    imul2 = "imul";
    bsf = "bsf";
    bsr = "bsr";
    tzcnt = "tzcnt";
    lzcnt = "lzcnt";
    popcnt = "popcnt";
}

macro_rules! accumulator {
    ($($name:ident = $mnemonic:literal;)*) => {$(
        /// (RAX, RDX, flags) after the instruction with the low `size` bytes of `source`. For division the caller has
        /// made sure that the quotient fits.
        pub(super) fn $name(size: usize, rax: u64, rdx: u64, source: u64, flags: u64) -> (u64, u64, u64) {
            let (mut rax, mut rdx, mut flags) = (rax, rdx, input(flags));
            // SAFETY: as in `two_operands`; a divide error is excluded by the caller.
            unsafe {
                match size {
                    1 => flagged!(flags, concat!($mnemonic, " {s}"), s = in(reg_byte) source as u8, inout("rax") rax),
                    2 => flagged!(flags, concat!($mnemonic, " {s:x}"), s = in(reg) source, inout("rax") rax, inout("rdx") rdx),
                    4 => flagged!(flags, concat!($mnemonic, " {s:e}"), s = in(reg) source, inout("rax") rax, inout("rdx") rdx),
                    _ => flagged!(flags, concat!($mnemonic, " {s}"), s = in(reg) source, inout("rax") rax, inout("rdx") rdx),
                }
            }
            (rax, rdx, flags & rflags::STATUS)
        }
    )*};
}

accumulator! {
    mul = "mul";
    imul = "imul";
    div = "div";
    idiv = "idiv";
}
