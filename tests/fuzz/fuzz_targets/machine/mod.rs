//! A small guest for the hypervisor's targets: descriptor tables, an exception handler for each vector that reports on
//! the port of its number, and its memory mapped twice, for the kernel at 0 and for user mode at [`USER`].

#![allow(dead_code, reason = "each target uses its part")]

use hypervisor::{Guest, TrapKind, Vcpu};
use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;

pub const RAM: u64 = 4 << 20;
/// Linear address at which user mode sees guest memory.
pub const USER: u64 = 1 << 39;
/// Where the code under test goes.
pub const CODE: u64 = 0x1_0000;
/// Memory for its operands.
pub const DATA: u64 = 0x4_0000;
/// Tops of the stacks of user mode and of the kernel after an exception.
pub const USER_STACK: u64 = 0x3_0000;
pub const KERNEL_STACK: u64 = 0x2_0000;
/// Free memory, up to the end of RAM.
pub const FREE: u64 = 0x10_0000;

const PML4: u64 = 0;
const GDT: u64 = 0x9000;
const IDT: u64 = 0xa000;
const TSS: u64 = 0xb000;
const TABLE_REGISTERS: u64 = 0xb800;
const HANDLERS: u64 = 0xc000;
const BOOT: u64 = 0xe000;

pub const USER_DATA: u64 = 0x23;
pub const USER_CODE: u64 = 0x2b;

/// Guests without memory to leak between them are what makes a finding repeat.
pub fn guest() -> Arc<Guest> {
    let guest = Guest::new().expect("a guest");
    let memory = memory_file();
    guest.map(0, memory.as_fd(), 0, RAM).expect("RAM");
    guest.set_trap(TrapKind::Io, 0, 0x1_0000, 1, None).expect("ports");
    put(&guest, PML4, 0x1003);
    put(&guest, PML4 + 8, 0x2007);
    put(&guest, 0x1000, 0x83);
    put(&guest, 0x2000, 0x87);
    let descriptors = [
        0,
        0x00af_9b00_0000_ffff,
        0x00cf_9300_0000_ffff,
        0x00cf_fb00_0000_ffff,
        0x00cf_f300_0000_ffff,
        0x00af_fb00_0000_ffff,
        0x0000_8900_0000_0067 | TSS << 16,
        0,
        0x0000_9b00_0000_ffff,
    ];
    for (index, descriptor) in descriptors.into_iter().enumerate() {
        put(&guest, GDT + index as u64 * 8, descriptor);
    }
    for vector in 0..256 {
        let handler = HANDLERS + vector * 16;
        // out vector, al; iretq
        write(&guest, handler, &[0xe6, vector as u8, 0x48, 0xcf]);
        let gate = handler & 0xffff | 8 << 16 | 1 << 32 | 0xee << 40 | (handler >> 16) << 48;
        put(&guest, IDT + vector * 16, gate);
        put(&guest, IDT + vector * 16 + 8, 0);
    }
    put(&guest, TSS + 4, KERNEL_STACK);
    put(&guest, TSS + 36, KERNEL_STACK);
    for (index, (base, limit)) in [(GDT, 0x47_u64), (IDT, 0xfff)].into_iter().enumerate() {
        put(&guest, TABLE_REGISTERS + index as u64 * 16, limit | base << 16);
    }
    guest
}

fn memory_file() -> File {
    let file = File::from(
        rustix::fs::memfd_create("guest", rustix::fs::MemfdFlags::CLOEXEC).expect("memfd"),
    );
    file.set_len(RAM).expect("size");
    file
}

pub fn write(guest: &Guest, gpa: u64, bytes: &[u8]) {
    guest.write_memory(gpa, bytes).expect("RAM");
}

pub fn put(guest: &Guest, gpa: u64, value: u64) {
    write(guest, gpa, &value.to_le_bytes());
}

/// Machine code, byte by byte.
#[derive(Default)]
pub struct Code(pub Vec<u8>);

impl Code {
    pub fn bytes(&mut self, bytes: &[u8]) -> &mut Code {
        self.0.extend_from_slice(bytes);
        self
    }

    fn long(&mut self, opcode: &[u8], value: u64) -> &mut Code {
        self.bytes(opcode).bytes(&(value as u32).to_le_bytes())
    }

    /// MOV to a 64-bit register.
    pub fn load(&mut self, register: u8, value: u64) -> &mut Code {
        self.bytes(&[0x48 | register >> 3, 0xb8 | register & 7]).bytes(&value.to_le_bytes())
    }
}

/// A vCPU that sets the tables up, switches every unit on and then runs `code` at [`BOOT`].
pub fn boot(guest: &Arc<Guest>, code: &Code) -> Vcpu {
    let mut start = Code::default();
    start.load(4, KERNEL_STACK);
    // lgdt, lidt
    start.long(&[0x0f, 0x01, 0x14, 0x25], TABLE_REGISTERS);
    start.long(&[0x0f, 0x01, 0x1c, 0x25], TABLE_REGISTERS + 16);
    // mov eax, 0x10; mov ds, eax; mov es, eax; mov ss, eax
    start.long(&[0xb8], 0x10).bytes(&[0x8e, 0xd8, 0x8e, 0xc0, 0x8e, 0xd0]);
    // mov eax, 0x30; ltr ax
    start.long(&[0xb8], 0x30).bytes(&[0x0f, 0x00, 0xd8]);
    // EFER: SCE, LME, NXE
    start.long(&[0xb9], 0xc000_0080).long(&[0xb8], 0x901).bytes(&[0x31, 0xd2, 0x0f, 0x30]);
    // mov rax, cr4; or eax, OSFXSR | OSXMMEXCPT | OSXSAVE | FSGSBASE; mov cr4, rax
    start.bytes(&[0x0f, 0x20, 0xe0]).long(&[0x0d], 0x5_0600).bytes(&[0x0f, 0x22, 0xe0]);
    // xor ecx, ecx; xor edx, edx; mov eax, 7; xsetbv
    start.bytes(&[0x31, 0xc9, 0x31, 0xd2]).long(&[0xb8], 7).bytes(&[0x0f, 0x01, 0xd1]);
    // CS from the table.
    let next = BOOT + start.0.len() as u64 + 11;
    start.long(&[0x6a, 0x08, 0x68], next).bytes(&[0x48, 0xcb, 0x90, 0x90]);
    start.bytes(&code.0);
    write(guest, BOOT, &start.0);
    Vcpu::new(guest, BOOT).expect("a vCPU")
}
