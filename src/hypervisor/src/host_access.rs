//! Single machine instructions on guest memory. Other vCPUs and devices change the same bytes at the same time, which
//! is a data race for Rust references but plain x86 memory semantics for these instructions: an aligned access is one
//! access, and a locked one is atomic whatever its alignment.

use std::arch::asm;
use std::arch::x86_64::CpuidResult;
use std::sync::OnceLock;

/// Loads 1, 2, 4 or 8 bytes, zero-extended.
///
/// # Safety
/// `host` must be readable for `size` bytes.
#[inline]
pub(crate) unsafe fn load(host: *const u8, size: usize) -> u64 {
    let value: u64;
    // SAFETY: the caller vouches for the bytes; the instructions touch nothing else.
    unsafe {
        match size {
            1 => {
                asm!("movzx {0:e}, byte ptr [{1}]", out(reg) value, in(reg) host, options(nostack, preserves_flags, readonly));
            }
            2 => {
                asm!("movzx {0:e}, word ptr [{1}]", out(reg) value, in(reg) host, options(nostack, preserves_flags, readonly));
            }
            4 => {
                asm!("mov {0:e}, dword ptr [{1}]", out(reg) value, in(reg) host, options(nostack, preserves_flags, readonly));
            }
            _ => {
                asm!("mov {0}, qword ptr [{1}]", out(reg) value, in(reg) host, options(nostack, preserves_flags, readonly));
            }
        }
    }
    value
}

/// Stores the low 1, 2, 4 or 8 bytes of `value`.
///
/// # Safety
/// `host` must be writable for `size` bytes.
#[inline]
pub(crate) unsafe fn store(host: *mut u8, size: usize, value: u64) {
    // SAFETY: the caller vouches for the bytes; the instructions touch nothing else.
    unsafe {
        match size {
            1 => {
                asm!("mov byte ptr [{0}], {1}", in(reg) host, in(reg_byte) value as u8, options(nostack, preserves_flags));
            }
            2 => {
                asm!("mov word ptr [{0}], {1:x}", in(reg) host, in(reg) value, options(nostack, preserves_flags));
            }
            4 => {
                asm!("mov dword ptr [{0}], {1:e}", in(reg) host, in(reg) value, options(nostack, preserves_flags));
            }
            _ => {
                asm!("mov qword ptr [{0}], {1}", in(reg) host, in(reg) value, options(nostack, preserves_flags));
            }
        }
    }
}

/// LOCK CMPXCHG of 1, 2, 4 or 8 bytes. Returns the value found; the store happened if it equals `old`.
///
/// # Safety
/// `host` must be writable for `size` bytes.
#[inline]
pub(crate) unsafe fn compare_exchange(host: *mut u8, size: usize, old: u64, new: u64) -> u64 {
    let mut found = old;
    // SAFETY: the caller vouches for the bytes; RAX and the flags are declared.
    unsafe {
        match size {
            1 => {
                asm!("lock cmpxchg byte ptr [{0}], {1}", in(reg) host, in(reg_byte) new as u8, inout("rax") found, options(nostack));
            }
            2 => {
                asm!("lock cmpxchg word ptr [{0}], {1:x}", in(reg) host, in(reg) new, inout("rax") found, options(nostack));
            }
            4 => {
                asm!("lock cmpxchg dword ptr [{0}], {1:e}", in(reg) host, in(reg) new, inout("rax") found, options(nostack));
            }
            _ => {
                asm!("lock cmpxchg qword ptr [{0}], {1}", in(reg) host, in(reg) new, inout("rax") found, options(nostack));
            }
        }
    }
    if size == 8 { found } else { found & ((1 << (size * 8)) - 1) }
}

/// LOCK CMPXCHG16B. Returns the value found; the store happened if it equals `old`.
///
/// # Safety
/// `host` must be writable for 16 bytes and aligned to 16, and the host CPU must have CMPXCHG16B.
#[inline]
pub(crate) unsafe fn compare_exchange_128(host: *mut u8, old: u128, new: u128) -> u128 {
    let (mut low, mut high) = (old as u64, (old >> 64) as u64);
    // SAFETY: the caller vouches for the bytes. RBX is reserved by LLVM, so it is swapped in and out around the use.
    unsafe {
        asm!(
            "xchg rbx, {new_low}",
            "lock cmpxchg16b [{host}]",
            "mov rbx, {new_low}",
            host = in(reg) host,
            new_low = inout(reg) new as u64 => _,
            inout("rax") low,
            inout("rdx") high,
            in("rcx") (new >> 64) as u64,
            options(nostack)
        );
    }
    u128::from(low) | u128::from(high) << 64
}

/// The host's CPUID, as it was when this leaf was first asked for: on a virtual host each execution is an exit of
/// several microseconds, and guest programs execute dozens. Nothing in use here differs between the host's CPUs.
pub(crate) fn cpuid(leaf: u32, subleaf: u32) -> CpuidResult {
    const LEAVES: usize = 0x24;
    const SUBLEAVES: usize = 8;
    type Leaves = [[OnceLock<CpuidResult>; SUBLEAVES]; LEAVES];
    static BASIC: Leaves = [const { [const { OnceLock::new() }; SUBLEAVES] }; LEAVES];
    static EXTENDED: Leaves = [const { [const { OnceLock::new() }; SUBLEAVES] }; LEAVES];
    let leaves = if leaf >> 31 == 0 { &BASIC } else { &EXTENDED };
    let ask = || std::arch::x86_64::__cpuid_count(leaf, subleaf);
    match leaves.get((leaf & 0x7fff_ffff) as usize).and_then(|leaf| leaf.get(subleaf as usize)) {
        Some(known) => *known.get_or_init(ask),
        None => ask(),
    }
}

/// EAX of the host's CPUID leaf with subleaf 0.
pub(crate) fn cpuid_max(leaf: u32) -> u32 {
    cpuid(leaf, 0).eax
}

/// The host's time-stamp counter, read after all earlier loads.
pub(crate) fn tsc() -> u64 {
    // SAFETY: every x86-64 processor has LFENCE and RDTSC, and Linux does not disable them for user code.
    unsafe {
        std::arch::x86_64::_mm_lfence();
        std::arch::x86_64::_rdtsc()
    }
}
