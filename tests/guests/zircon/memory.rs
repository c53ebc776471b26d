//! Page tables, and the functions on memory that compiled code calls.

use crate::sync::Shared;
use core::arch::{asm, naked_asm};

type Table = [u64; 512];

static PML4: Shared<Table> = Shared::new([0; 512]);
static PDPT: Shared<Table> = Shared::new([0; 512]);
static DIRECTORIES: Shared<[Table; 4]> = Shared::new([[0; 512]; 4]);

const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const LARGE: u64 = 1 << 7;

/// Maps the first 4 GiB to themselves: those of the boot loader have only memory in them, and devices are needed, too.
pub fn initialize() {
    // SAFETY: no other CPU runs, and the hardware does not know these tables yet.
    let (pml4, pdpt, directories) =
        unsafe { (&mut *PML4.get(), &mut *PDPT.get(), &mut *DIRECTORIES.get()) };
    for (gigabyte, directory) in directories.iter_mut().enumerate() {
        for (index, entry) in directory.iter_mut().enumerate() {
            *entry = ((gigabyte << 30 | index << 21) as u64) | PRESENT | WRITABLE | LARGE;
        }
        pdpt[gigabyte] = directory.as_ptr() as u64 | PRESENT | WRITABLE;
    }
    pml4[0] = PDPT.get() as u64 | PRESENT | WRITABLE;
    // SAFETY: what the kernel uses stays where it is.
    unsafe { asm!("mov cr3, {}", in(reg) root(), options(nostack)) };
}

/// The physical address of the page tables.
pub fn root() -> u64 {
    PML4.get() as u64
}

/// See C. Assembly, because a compiler would make a call of itself of any loop.
///
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
#[unsafe(naked)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, count: usize) -> *mut u8 {
    naked_asm!("mov rax, rdi", "mov rcx, rdx", "rep movsb", "ret")
}

/// See C.
///
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
#[unsafe(naked)]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, count: usize) -> *mut u8 {
    naked_asm!(
        "mov rax, rdi",
        "mov rcx, rdx",
        "mov r8, rdi",
        "sub r8, rsi",
        "cmp r8, rdx",
        "jb 2f",
        "rep movsb",
        "ret",
        "2:",
        "lea rdi, [rdi + rcx - 1]",
        "lea rsi, [rsi + rcx - 1]",
        "std",
        "rep movsb",
        "cld",
        "ret",
    )
}

/// See C.
///
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
#[unsafe(naked)]
unsafe extern "C" fn memset(to: *mut u8, byte: i32, count: usize) -> *mut u8 {
    naked_asm!("mov r8, rdi", "mov eax, esi", "mov rcx, rdx", "rep stosb", "mov rax, r8", "ret")
}

/// See C.
///
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
#[unsafe(naked)]
unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, count: usize) -> i32 {
    naked_asm!(
        "xor eax, eax",
        "mov rcx, rdx",
        // Nothing to compare leaves these flags: equal.
        "cmp eax, eax",
        "repe cmpsb",
        "je 2f",
        "movzx eax, byte ptr [rdi - 1]",
        "movzx ecx, byte ptr [rsi - 1]",
        "sub eax, ecx",
        "2:",
        "ret",
    )
}

/// See C.
///
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
#[unsafe(naked)]
unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, count: usize) -> i32 {
    naked_asm!("jmp {}", sym memcmp)
}

/// See C.
///
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
#[unsafe(naked)]
unsafe extern "C" fn strlen(text: *const u8) -> usize {
    naked_asm!(
        "xor eax, eax",
        "2:",
        "cmp byte ptr [rdi + rax], 0",
        "je 3f",
        "inc rax",
        "jmp 2b",
        "3:",
        "ret"
    )
}
