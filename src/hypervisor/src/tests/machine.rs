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
        Exit::Io { key: PORT_KEY, port, input: false, data, .. } => (port, u32::from_le_bytes(data)),
        other => panic!("unexpected exit {other:x?}, state {:x?}", vcpu.read_state()),
    }
}

/// Runs a program to its first output.
pub(super) fn run(build: impl FnOnce(&mut CodeAssembler)) -> (u16, u32) {
    let guest = program(build);
    output(&mut boot(&guest))
}
