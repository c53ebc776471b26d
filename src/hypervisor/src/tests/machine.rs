//! A guest with some memory, identity page tables and an assembled program.

use crate::{Exit, Guest, TrapKind, Vcpu};
use iced_x86::code_asm::CodeAssembler;
use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;

/// Size of the test guest's memory.
pub(super) const MEMORY: u64 = 16 << 20;
/// Where programs are loaded and entered.
pub(super) const CODE: u64 = 0x10_0000;
/// A stack top.
pub(super) const STACK: u64 = 0x20_0000;
/// Free memory for test data.
pub(super) const DATA: u64 = 0x30_0000;
/// Guest-physical address of the page tables: the PML4 of the start state.
pub(super) const TABLES: u64 = 0;
/// Port on which programs report; every port is trapped with this key.
pub(super) const PORT_KEY: u64 = 7;

pub(super) const PRESENT: u64 = 1;
pub(super) const WRITABLE: u64 = 2;
pub(super) const USER: u64 = 4;
pub(super) const LARGE: u64 = 0x80;

/// A memory file of `size` bytes.
pub(super) fn memory_file(size: u64) -> File {
    let fd = rustix::fs::memfd_create("guest", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let file = File::from(fd);
    file.set_len(size).unwrap();
    file
}

/// A guest with memory at 0, the first 4 GiB identity-mapped for the supervisor, and all ports trapped.
pub(super) fn guest() -> Arc<Guest> {
    let guest = Guest::new().unwrap();
    guest.map(0, memory_file(MEMORY).as_fd(), 0, MEMORY).unwrap();
    guest.set_trap(TrapKind::Io, 0, 0x1_0000, PORT_KEY, None).unwrap();
    write_u64(&guest, TABLES, 0x1000 | PRESENT | WRITABLE | USER);
    for gigabyte in 0..4 {
        write_u64(&guest, 0x1000 + gigabyte * 8, gigabyte << 30 | PRESENT | WRITABLE | LARGE);
    }
    guest
}

pub(super) fn write_u64(guest: &Guest, gpa: u64, value: u64) {
    guest.write_memory(gpa, &value.to_le_bytes()).unwrap();
}

pub(super) fn read_u64(guest: &Guest, gpa: u64) -> u64 {
    let mut bytes = [0; 8];
    guest.read_memory(gpa, &mut bytes).unwrap();
    u64::from_le_bytes(bytes)
}

/// Assembles a 64-bit program at `address` and loads it there.
pub(super) fn load_at(guest: &Guest, address: u64, build: impl FnOnce(&mut CodeAssembler)) {
    let mut assembler = CodeAssembler::new(64).unwrap();
    build(&mut assembler);
    guest.write_memory(address, &assembler.assemble(address).unwrap()).unwrap();
}

/// A guest with a 64-bit program at [`CODE`].
pub(super) fn program(build: impl FnOnce(&mut CodeAssembler)) -> Arc<Guest> {
    let guest = guest();
    load_at(&guest, CODE, build);
    guest
}

/// A bootstrap vCPU at [`CODE`] with its stack at [`STACK`].
pub(super) fn boot(guest: &Arc<Guest>) -> Vcpu {
    let mut vcpu = Vcpu::new(guest, CODE).unwrap();
    let mut state = vcpu.read_state();
    state.gpr[4] = STACK;
    vcpu.write_state(&state);
    vcpu
}

/// Runs until the guest writes to a port; gives port and value.
pub(super) fn output(vcpu: &mut Vcpu) -> (u16, u32) {
    match vcpu.enter().unwrap() {
        Exit::Io { key: PORT_KEY, port, input: false, data, .. } => {
            (port, u32::from_le_bytes(data))
        }
        other => panic!("unexpected exit {other:x?}, state {:x?}", vcpu.read_state()),
    }
}

/// Runs a program to its first output.
pub(super) fn run(build: impl FnOnce(&mut CodeAssembler)) -> (u16, u32) {
    let guest = program(build);
    output(&mut boot(&guest))
}

/// Global descriptor table of [`System`].
pub(super) const GDT: u64 = 0x9000;
const IDT: u64 = 0xa000;
const TSS: u64 = 0xb000;
const TABLE_REGISTERS: u64 = 0xb800;
const HANDLERS: u64 = 0xc000;
/// Stack that the TSS gives ring 0.
pub(super) const KERNEL_STACK: u64 = 0x28_0000;
/// Stack of IST 1.
pub(super) const INTERRUPT_STACK: u64 = 0x29_0000;

pub(super) const CODE_SELECTOR: u16 = 0x08;
pub(super) const DATA_SELECTOR: u16 = 0x10;
pub(super) const USER_CODE_32: u16 = 0x1b;
pub(super) const USER_DATA: u16 = 0x23;
pub(super) const USER_CODE: u16 = 0x2b;
pub(super) const TASK_SELECTOR: u16 = 0x30;
/// A data segment that is not present.
pub(super) const ABSENT_SELECTOR: u16 = 0x40;

/// A guest with descriptor tables and a handler for each vector: it writes AL to the port with the vector's number and
/// returns.
pub(super) struct System {
    pub(super) guest: Arc<Guest>,
}

/// Where the handler of a vector lies: 16 bytes.
pub(super) fn handler(vector: u8) -> u64 {
    HANDLERS + u64::from(vector) * 16
}

/// What an exception handler finds on its stack.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) error: Option<u64>,
    pub(super) rip: u64,
    pub(super) cs: u64,
    pub(super) rflags: u64,
    pub(super) rsp: u64,
    pub(super) ss: u64,
}

impl System {
    pub(super) fn new() -> System {
        let guest = guest();
        let descriptors = [
            0,
            0x00af_9b00_0000_ffff,
            0x00cf_9300_0000_ffff,
            0x00cf_fb00_0000_ffff,
            0x00cf_f300_0000_ffff,
            0x00af_fb00_0000_ffff,
            0x0000_8900_0000_0067 | TSS << 16,
            0,
            0x00cf_1300_0000_ffff,
        ];
        for (index, descriptor) in descriptors.into_iter().enumerate() {
            write_u64(&guest, GDT + index as u64 * 8, descriptor);
        }
        let system = System { guest };
        for vector in 0..=255 {
            load_at(&system.guest, handler(vector), |a| {
                a.out(u32::from(vector), iced_x86::code_asm::registers::gpr8::al).unwrap();
                a.iretq().unwrap();
            });
            system.gate(vector, 0x8e, 0);
        }
        write_u64(&system.guest, TSS + 4, KERNEL_STACK);
        write_u64(&system.guest, TSS + 36, INTERRUPT_STACK);
        let register = |base: u64, limit: u16| [u64::from(limit) | base << 16, base >> 48];
        for (index, word) in
            [register(GDT, 0x47), register(IDT, 0xfff)].as_flattened().iter().enumerate()
        {
            write_u64(&system.guest, TABLE_REGISTERS + index as u64 * 8, *word);
        }
        system
    }

    /// Writes an IDT entry with its handler at the usual place.
    pub(super) fn gate(&self, vector: u8, attributes: u64, ist: u64) {
        let handler = handler(vector);
        let low = handler & 0xffff
            | u64::from(CODE_SELECTOR) << 16
            | ist << 32
            | attributes << 40
            | (handler >> 16 & 0xffff) << 48;
        write_u64(&self.guest, IDT + u64::from(vector) * 16, low);
        write_u64(&self.guest, IDT + u64::from(vector) * 16 + 8, handler >> 32);
    }

    /// Lets user mode reach the first GiB.
    pub(super) fn open_to_user(&self) {
        write_u64(&self.guest, TABLES + 0x1000, PRESENT | WRITABLE | USER | LARGE);
    }

    /// Loads a program behind the code that sets the tables up, and gives a vCPU that will run it.
    pub(super) fn boot(&self, build: impl FnOnce(&mut CodeAssembler)) -> Vcpu {
        use iced_x86::code_asm::*;
        load_at(&self.guest, CODE, |a| {
            a.lgdt(ptr(TABLE_REGISTERS)).unwrap();
            a.lidt(ptr(TABLE_REGISTERS + 16)).unwrap();
            a.mov(eax, u32::from(DATA_SELECTOR)).unwrap();
            a.mov(ss, eax).unwrap();
            a.mov(ds, eax).unwrap();
            a.mov(es, eax).unwrap();
            let mut reload = a.create_label();
            a.push(i32::from(CODE_SELECTOR)).unwrap();
            a.lea(rax, ptr(reload)).unwrap();
            a.push(rax).unwrap();
            a.db(&[0x48, 0xcb]).unwrap(); // RETFQ
            a.set_label(&mut reload).unwrap();
            a.mov(eax, u32::from(TASK_SELECTOR)).unwrap();
            a.ltr(ax).unwrap();
            build(a);
        });
        boot(&self.guest)
    }

    /// Runs until a handler reports; gives the vector and what is on its stack.
    pub(super) fn exception(&self, vcpu: &mut Vcpu) -> (u16, Frame) {
        let (port, _) = output(vcpu);
        let has_error = matches!(port, 8 | 10..=14 | 17);
        let stack = vcpu.read_state().gpr[4];
        let mut words = (0..6).map(|index| read_u64(&self.guest, stack + index * 8));
        let mut next = || words.next().unwrap();
        let error = has_error.then(&mut next);
        (port, Frame { error, rip: next(), cs: next(), rflags: next(), rsp: next(), ss: next() })
    }
}

/// Emits a jump to user-mode code that follows it, with its stack at [`STACK`].
pub(super) fn enter_user(a: &mut CodeAssembler) {
    use iced_x86::code_asm::*;
    let mut target = a.create_label();
    a.push(i32::from(USER_DATA)).unwrap();
    a.push(STACK as i32).unwrap();
    a.push(0x2).unwrap();
    a.push(i32::from(USER_CODE)).unwrap();
    a.lea(rax, ptr(target)).unwrap();
    a.push(rax).unwrap();
    a.iretq().unwrap();
    a.set_label(&mut target).unwrap();
}

/// Emits a jump to 32-bit user code at `target`, with its stack at [`STACK`].
pub(super) fn enter_compatibility(a: &mut CodeAssembler, target: u64) {
    use iced_x86::code_asm::*;
    a.mov(eax, u32::from(USER_DATA)).unwrap();
    a.mov(ds, eax).unwrap();
    a.mov(es, eax).unwrap();
    a.push(i32::from(USER_DATA)).unwrap();
    a.push(STACK as i32).unwrap();
    a.push(2).unwrap();
    a.push(i32::from(USER_CODE_32)).unwrap();
    a.push(target as i32).unwrap();
    a.iretq().unwrap();
}

/// Emits a write of an MSR.
pub(super) fn write_msr(a: &mut CodeAssembler, msr: u32, value: u32) {
    use iced_x86::code_asm::*;
    a.mov(ecx, msr).unwrap();
    a.mov(eax, value).unwrap();
    a.xor(edx, edx).unwrap();
    a.wrmsr().unwrap();
}
