//! Random page tables under every kind of access: what the guest sees must be what the manual's tables say.
#![no_main]

mod machine;

use arbitrary::{Arbitrary, Unstructured};
use hypervisor::{Exit, Guest, PHYSICAL_ADDRESS_BITS, Vcpu};
use libfuzzer_sys::fuzz_target;
use machine::{CODE, Code, DATA, FREE, KERNEL_STACK, USER, USER_CODE, USER_DATA, USER_STACK};

/// Tables under test: this many pages from [`FREE`], the first of which is the one that the third PML4 entry names.
const TABLES: u64 = 32;
/// Pages that leaf entries may name: their bytes are RET, so that they can also be executed.
const PAGES: u64 = 16;
const TESTED: u64 = 2 << 39;

#[derive(Debug, Arbitrary)]
struct Entry {
    table: u8,
    index: u8,
    target: Target,
    flags: u16,
    no_execute: bool,
}

#[derive(Debug, Arbitrary)]
enum Target {
    Table(u8),
    Page(u8),
    Any(u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Arbitrary)]
enum Kind {
    Read,
    Write,
    Execute,
}

#[derive(Debug, Arbitrary)]
struct Probe {
    indices: [u8; 3],
    offset: u16,
    kind: Kind,
    user: bool,
    write_protect: bool,
    smep: bool,
    smap: bool,
    alignment_check: bool,
}

/// What an access does: it reaches guest-physical memory or is a page fault with this error code.
type Outcome = Result<u64, u64>;

fn read_entry(guest: &Guest, at: u64) -> u64 {
    let mut bytes = [0xff; 8];
    // Outside of RAM everything reads as ones.
    let _ = guest.read_memory(at, &mut bytes);
    u64::from_le_bytes(bytes)
}

/// SDM vol. 3 §4.5 to §4.7, from its tables.
fn model(guest: &Guest, va: u64, probe: &Probe) -> Outcome {
    let fetch = probe.kind == Kind::Execute;
    let code = u64::from(probe.kind == Kind::Write) << 1
        | u64::from(probe.user) << 2
        | u64::from(fetch) << 4;
    let physical = (1_u64 << PHYSICAL_ADDRESS_BITS) - 1;
    let (mut table, mut user, mut writable, mut executable) = (0, true, true, true);
    for level in (1..=4).rev() {
        let shift = 12 + 9 * (level - 1);
        let entry = read_entry(guest, table + (va >> shift & 511) * 8);
        if entry & 1 == 0 {
            return Err(code);
        }
        let large = entry & 0x80 != 0 && level > 1;
        let reserved = (1_u64 << 52) - 1 & !physical
            | match (large, level) {
                (true, 4) => 0x80,
                (true, 3) => 0x3fff_e000,
                (true, _) => 0x1f_e000,
                _ => 0,
            };
        if entry & reserved != 0 {
            return Err(code | 9);
        }
        user &= entry & 4 != 0;
        writable &= entry & 2 != 0;
        executable &= entry >> 63 == 0;
        if large || level == 1 {
            let smap = probe.smap && user && !probe.alignment_check;
            let allowed = match (probe.kind, probe.user) {
                (Kind::Execute, true) => user && executable,
                (Kind::Execute, false) => executable && !(user && probe.smep),
                (Kind::Read, true) => user,
                (Kind::Read, false) => !smap,
                (Kind::Write, true) => user && writable,
                (Kind::Write, false) => (writable || !probe.write_protect) && !smap,
            };
            let mask = (1_u64 << shift) - 1;
            let page = entry & physical & !0xfff & !mask;
            return if allowed { Ok(page | va & mask) } else { Err(code | 1) };
        }
        table = entry & physical & !0xfff;
    }
    unreachable!("level 1 always returns")
}

/// Offsets of the routines from [`CODE`], 64 bytes each: read, write, execute; then for user mode.
const ROUTINE: u64 = 64;
const LOOP: u64 = CODE + 8 * ROUTINE;
const PORT: u8 = 0xf0;
const READY: u8 = 0xf1;

/// The guest's side: a loop that asks for a probe, and what carries it out.
fn load_routines(guest: &Guest) {
    // mov rax, [rbx] / mov [rbx], rcx / call rbx
    let accesses: [&[u8]; 3] = [&[0x48, 0x8b, 0x03], &[0x48, 0x89, 0x0b], &[0xff, 0xd3]];
    for (index, access) in accesses.into_iter().enumerate() {
        let mut kernel = Code::default();
        kernel.bytes(access).bytes(&[0xe6, PORT]).load(4, KERNEL_STACK);
        kernel.load(2, LOOP).bytes(&[0xff, 0xe2]);
        machine::write(guest, CODE + index as u64 * ROUTINE, &kernel.0);
        // ud2
        let user = [access, &[0x0f, 0x0b]].concat();
        machine::write(guest, CODE + (index as u64 + 3) * ROUTINE, &user);
    }
    // The page-fault and invalid-opcode handlers leave by the loop: the faulting code is not to run again.
    for vector in [6, 13, 14] {
        let mut handler = Code::default();
        // mov rsi, cr2; out vector, al; jmp
        handler.bytes(&[0x0f, 0x20, 0xd6, 0xe6, vector]);
        let at = 0xc000 + u64::from(vector) * 16;
        let displacement = LOOP.wrapping_sub(at + 5 + 5) as u32;
        handler.bytes(&[0xe9]).bytes(&displacement.to_le_bytes());
        machine::write(guest, at, &handler.0);
    }
    let mut next = Code::default();
    // mov rsp; mov rax, cr3; mov cr3, rax; out READY, al; then with what the monitor put into the registers:
    // mov cr0, r8; mov cr4, r9; jmp rdx
    next.load(4, KERNEL_STACK).bytes(&[0x0f, 0x20, 0xd8, 0x0f, 0x22, 0xd8, 0xe6, READY]);
    next.bytes(&[0x41, 0x0f, 0x22, 0xc0, 0x41, 0x0f, 0x22, 0xe1, 0xff, 0xe2]);
    machine::write(guest, LOOP, &next.0);
    // Into user mode at R10.
    let mut user = Code::default();
    for value in [USER_DATA, USER + USER_STACK, 2, USER_CODE] {
        user.load(0, value).bytes(&[0x50]);
    }
    user.bytes(&[0x41, 0x52, 0x48, 0xcf]);
    machine::write(guest, LOOP + 4 * ROUTINE, &user.0);
}

/// The next exit to a port.
fn port(vcpu: &mut Vcpu) -> u16 {
    loop {
        match vcpu.enter() {
            Ok(Exit::Io { port, .. }) => return port,
            Ok(other) => panic!("unexpected {other:?}"),
            Err(error) => panic!("{error}: {:x?}", vcpu.read_state()),
        }
    }
}

fn check(guest: &Guest, vcpu: &mut Vcpu, probe: &Probe) {
    let va = TESTED
        | u64::from(probe.indices[0] & 7) << 30
        | u64::from(probe.indices[1] & 7) << 21
        | u64::from(probe.indices[2] & 7) << 12
        | u64::from(probe.offset & 0xff8);
    let expected = model(guest, va, probe);
    let page = expected.ok().filter(|gpa| (DATA..DATA + PAGES * 4096).contains(gpa));
    if expected.is_ok() && page.is_none() && probe.kind != Kind::Read {
        // Writing to page tables and executing them would change what is tested.
        return;
    }
    let value = expected.ok().map(|gpa| read_entry(guest, gpa));
    let mut state = vcpu.read_state();
    let routine = probe.kind as u64 + if probe.user { 3 } else { 0 };
    state.gpr[3] = va;
    state.gpr[1] = 0xc3c3_c3c3_c3c3_c3c3;
    state.gpr[2] = if probe.user { LOOP + 4 * ROUTINE } else { CODE + routine * ROUTINE };
    state.gpr[8] = 0x8000_0033 | u64::from(probe.write_protect) << 16;
    state.gpr[9] = 0x5_0620 | u64::from(probe.smep) << 20 | u64::from(probe.smap) << 21;
    state.gpr[10] = USER + CODE + routine * ROUTINE;
    state.rflags = 2 | u64::from(probe.alignment_check) << 18;
    vcpu.write_state(&state);
    let port = port(vcpu);
    let state = vcpu.read_state();
    match expected {
        Ok(_) => {
            let success = if probe.user { 6 } else { u16::from(PORT) };
            assert_eq!(port, success, "{va:#x} {probe:?} must succeed, {state:x?}");
            if probe.kind == Kind::Read {
                assert_eq!(Some(state.gpr[0]), value, "{va:#x} {probe:?}");
            }
        }
        Err(code) => {
            assert_eq!(port, 14, "{va:#x} {probe:?} must fault with {code:#x}, {state:x?}");
            assert_eq!(state.gpr[6], va, "CR2 of {probe:?}");
            assert_eq!(read_entry(guest, state.gpr[4]), code, "error code at {va:#x} of {probe:?}");
        }
    }
    assert_eq!(self::port(vcpu), READY.into());
}

fn run(input: &mut Unstructured<'_>) -> arbitrary::Result<()> {
    let entries: Vec<Entry> = input.arbitrary()?;
    let probes: Vec<Probe> = input.arbitrary()?;
    let guest = machine::guest();
    machine::write(&guest, DATA, &[0xc3; (PAGES * 4096) as usize]);
    load_routines(&guest);
    machine::put(&guest, 16, FREE | 7);
    for entry in &entries {
        let target = match entry.target {
            Target::Table(table) => FREE + u64::from(table) % TABLES * 4096,
            Target::Page(page) => DATA + u64::from(page) % PAGES * 4096,
            Target::Any(address) => address & 0xf_ffff_ffff_f000,
        };
        let flags = u64::from(entry.flags & 0xfff) | u64::from(entry.no_execute) << 63;
        let at = FREE + u64::from(entry.table) % TABLES * 4096 + u64::from(entry.index & 7) * 8;
        machine::put(&guest, at, target | flags);
    }
    let mut start = Code::default();
    start.load(2, LOOP).bytes(&[0xff, 0xe2]);
    let mut vcpu = machine::boot(&guest, &start);
    assert_eq!(port(&mut vcpu), READY.into());
    for probe in probes.iter().take(64) {
        check(&guest, &mut vcpu, probe);
    }
    Ok(())
}

fuzz_target!(|data: &[u8]| {
    // Too short an input is no input.
    let _ = run(&mut Unstructured::new(data));
});
