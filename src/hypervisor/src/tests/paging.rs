//! Paging: permissions, accessed and dirty flags, page sizes, TLB maintenance, against what the manual says.

use super::machine::*;
use crate::cpu::{Cpu, StateBox};
use crate::exception::{Exception, vector};
use crate::mmu::{Access, AccessKind, walk};
use crate::registers::{cr0, cr4, efer};
use crate::vcpu::Vcpu;
use iced_x86::code_asm::*;

const NX: u64 = 1 << 63;
const VA: u64 = 0x0000_1234_5678_9000;
const PAGE: u64 = DATA;

/// Page-table entry addresses of [`VA`] in the test tables, from level 4 down to 1.
const ENTRIES: [u64; 4] = [
    0x80_0000 + (VA >> 39 & 0x1ff) * 8,
    0x80_1000 + (VA >> 30 & 0x1ff) * 8,
    0x80_2000 + (VA >> 21 & 0x1ff) * 8,
    0x80_3000 + (VA >> 12 & 0x1ff) * 8,
];

/// A vCPU whose CR3 points at four tables that map [`VA`] with the given rights in each level.
fn mapped(rights: [u64; 4]) -> Vcpu {
    let guest = guest();
    for level in 0..4 {
        let target = if level == 3 { PAGE } else { 0x80_1000 + level as u64 * 0x1000 };
        write_u64(&guest, ENTRIES[level], target | rights[level]);
    }
    let mut vcpu = boot(&guest);
    let state = &mut vcpu.cpu_mut().state;
    state.cr3 = 0x80_0000;
    state.efer |= efer::NXE;
    state.cr0 |= cr0::WP;
    vcpu
}

const RIGHTS: u64 = PRESENT | WRITABLE | USER;
const ALL: [u64; 4] = [RIGHTS; 4];

fn access(kind: AccessKind, user: bool) -> Access {
    Access { kind, user, smap: false }
}

fn fault(code: u32) -> Exception {
    Exception::page_fault(VA + 0x123, code)
}

fn entry(vcpu: &mut Vcpu, level: usize) -> u64 {
    read_u64(&vcpu.cpu_mut().guest, ENTRIES[level])
}

#[test]
fn the_cpu_state_is_reachable_with_32_bit_displacements() {
    let (state, _) = StateBox::new().unwrap();
    assert!((&raw const *state).addr() < 1 << 31);
}

#[test]
fn a_walk_gives_the_page_and_marks_it() {
    let mut vcpu = mapped(ALL);
    let cpu: &Cpu = vcpu.cpu_mut();
    let mapping = walk(cpu, VA + 0x123, access(AccessKind::Read, true)).unwrap();
    assert_eq!((mapping.gpa, mapping.page_size), (PAGE + 0x123, 4096));
    assert!(mapping.user && mapping.writable && !mapping.nx && !mapping.dirty);
    for level in 0..4 {
        assert_eq!(entry(&mut vcpu, level) & 0x60, 0x20, "accessed and not dirty");
    }
    let mapping = walk(vcpu.cpu_mut(), VA, access(AccessKind::Write, true)).unwrap();
    assert!(mapping.dirty);
    assert_eq!(entry(&mut vcpu, 3) & 0x60, 0x60);
    assert_eq!(entry(&mut vcpu, 2) & 0x60, 0x20, "only the last level has a dirty flag");
}

#[test]
fn a_denied_access_marks_nothing() {
    let mut vcpu = mapped([RIGHTS, RIGHTS, RIGHTS, PRESENT | USER]);
    let result = walk(vcpu.cpu_mut(), VA + 0x123, access(AccessKind::Write, true));
    assert_eq!(result, Err(fault(7)));
    for level in 0..4 {
        assert_eq!(entry(&mut vcpu, level) & 0x60, 0);
    }
}

/// Every combination of rights in one level, of access and of control bits, against the table of SDM vol. 3 §4.6.1.
#[test]
fn rights_follow_the_manual() {
    for level in 0..4 {
        for bits in 0..16_u64 {
            let entry_rights = bits & 7 | (bits >> 3) << 63;
            let mut rights = ALL;
            rights[level] = entry_rights;
            for control in 0..8_u32 {
                let (write_protect, smep, smap) =
                    (control & 1 != 0, control & 2 != 0, control & 4 != 0);
                let mut vcpu = mapped(rights);
                let cpu = vcpu.cpu_mut();
                if !write_protect {
                    cpu.state.cr0 &= !cr0::WP;
                }
                if smep {
                    cpu.state.cr4 |= cr4::SMEP;
                }
                for (kind, user) in [AccessKind::Read, AccessKind::Write, AccessKind::Execute]
                    .into_iter()
                    .flat_map(|kind| [(kind, false), (kind, true)])
                {
                    let request = Access { kind, user, smap: smap && !user };
                    let result = walk(cpu, VA + 0x123, request).map(|mapping| mapping.gpa);
                    let present = entry_rights & PRESENT != 0;
                    let writable = entry_rights & WRITABLE != 0;
                    let user_page = entry_rights & USER != 0;
                    let no_execute = entry_rights & NX != 0;
                    let allowed = present
                        && (!user || user_page)
                        && match kind {
                            AccessKind::Read => user || !(user_page && smap),
                            AccessKind::Write => {
                                (writable || !user && !write_protect)
                                    && (user || !(user_page && smap))
                            }
                            AccessKind::Execute => !no_execute && (user || !(user_page && smep)),
                        };
                    let mut code = u32::from(present) | u32::from(user) << 2;
                    code |= u32::from(kind == AccessKind::Write) << 1;
                    code |= u32::from(kind == AccessKind::Execute) << 4;
                    let expected = if allowed { Ok(PAGE + 0x123) } else { Err(fault(code)) };
                    assert_eq!(
                        result, expected,
                        "level {level} rights {bits:#x} control {control} {request:?}"
                    );
                }
            }
        }
    }
}

#[test]
fn reserved_bits_fault() {
    let reserved = [(0, 0x80), (0, 1 << 45), (1, 1 << 51), (2, 1 << 40), (3, 1 << 41)];
    for (level, bit) in reserved {
        let mut rights = ALL;
        rights[level] |= bit;
        let mut vcpu = mapped(rights);
        let result = walk(vcpu.cpu_mut(), VA + 0x123, access(AccessKind::Read, true));
        assert_eq!(result, Err(fault(0xd)), "level {level} bit {bit:#x}");
    }
    let mut vcpu = mapped([RIGHTS, RIGHTS, RIGHTS, RIGHTS | NX]);
    vcpu.cpu_mut().state.efer &= !efer::NXE;
    let result = walk(vcpu.cpu_mut(), VA + 0x123, access(AccessKind::Read, true));
    assert_eq!(result, Err(fault(0xd)), "NX without EFER.NXE is reserved");
}

#[test]
fn large_pages() {
    for (level, size) in [(1_usize, 1_u64 << 30), (2, 2 << 20)] {
        let vcpu = &mut mapped(ALL);
        let guest = vcpu.cpu_mut().guest.clone();
        write_u64(&guest, ENTRIES[level], RIGHTS | LARGE);
        let va = VA & !(size - 1) | 0x12_3456;
        let mapping = walk(vcpu.cpu_mut(), va, access(AccessKind::Read, false)).unwrap();
        assert_eq!((mapping.gpa, mapping.page_size), (0x12_3456, size));
        // Address bits below the page size are reserved, but for the PAT flag.
        write_u64(&guest, ENTRIES[level], RIGHTS | LARGE | 1 << 12);
        assert!(walk(vcpu.cpu_mut(), va, access(AccessKind::Read, false)).is_ok());
        write_u64(&guest, ENTRIES[level], RIGHTS | LARGE | 1 << 13);
        let result = walk(vcpu.cpu_mut(), va, access(AccessKind::Read, false));
        assert_eq!(result, Err(Exception::page_fault(va, 9)));
    }
}

#[test]
fn tables_outside_memory_and_loops_fault_and_end() {
    let vcpu = &mut mapped(ALL);
    let guest = vcpu.cpu_mut().guest.clone();
    write_u64(&guest, ENTRIES[1], 0x50_0000_0000 | RIGHTS);
    let result = walk(vcpu.cpu_mut(), VA + 0x123, access(AccessKind::Read, false));
    assert_eq!(result, Err(fault(9)));
    // A table that is its own child ends after four levels.
    write_u64(&guest, ENTRIES[0], 0x80_0000 | RIGHTS);
    let _ = walk(vcpu.cpu_mut(), VA, access(AccessKind::Read, false));
}

#[test]
fn non_canonical_addresses_are_a_general_protection_fault() {
    let vcpu = &mut mapped(ALL);
    for va in [1 << 47, 0xffff_0000_0000_0000, 1 << 63] {
        let error = walk(vcpu.cpu_mut(), va, access(AccessKind::Read, false)).unwrap_err();
        assert_eq!(error.vector, vector::GP);
    }
}

/// Remaps a page behind the TLB's back, then runs `invalidate`: the old contents may be seen before, never after.
fn after_invalidation(global: bool, invalidate: impl FnOnce(&mut CodeAssembler)) -> (u32, u32) {
    let system = System::new();
    let guest = &system.guest;
    let at = 0x4000_0000_u64;
    let flags = if global { 0x100 } else { 0 };
    write_u64(guest, TABLES + 0x1008, 0x80_2000 | RIGHTS);
    write_u64(guest, 0x80_2000, 0x80_3000 | RIGHTS);
    write_u64(guest, 0x80_3000, DATA | RIGHTS | flags);
    write_u64(guest, DATA, 1);
    write_u64(guest, DATA + 0x1000, 2);
    let mut vcpu = system.boot(|a| {
        a.mov(rax, cr4).unwrap();
        a.or(rax, 0x80).unwrap();
        a.mov(cr4, rax).unwrap();
        a.mov(rbx, at).unwrap();
        a.mov(eax, dword_ptr(rbx)).unwrap();
        a.mov(qword_ptr(0x80_3000), (DATA as i32 + 0x1000) | 7 | flags as i32).unwrap();
        invalidate(a);
        a.mov(ecx, dword_ptr(rbx)).unwrap();
        a.out(0xf0, eax).unwrap();
        a.mov(eax, ecx).unwrap();
        a.out(0xf1, eax).unwrap();
    });
    (output(&mut vcpu).1, output(&mut vcpu).1)
}

#[test]
fn invlpg_drops_a_page() {
    for global in [false, true] {
        let seen = after_invalidation(global, |a| a.invlpg(ptr(rbx)).unwrap());
        assert_eq!(seen, (1, 2));
    }
}

#[test]
fn a_cr3_write_drops_what_is_not_global() {
    let reload = |a: &mut CodeAssembler| {
        a.mov(rdx, cr3).unwrap();
        a.mov(cr3, rdx).unwrap();
    };
    assert_eq!(after_invalidation(false, reload), (1, 2));
    assert_eq!(after_invalidation(true, reload), (1, 1), "a global translation stays");
}

#[test]
fn clearing_cr4_pge_drops_everything() {
    let seen = after_invalidation(true, |a| {
        a.mov(rdx, cr4).unwrap();
        a.and(rdx, !0x80).unwrap();
        a.mov(cr4, rdx).unwrap();
    });
    assert_eq!(seen, (1, 2));
}

#[test]
fn page_faults_report_cr2_and_code_to_the_guest() {
    let system = System::new();
    system.open_to_user();
    write_u64(&system.guest, TABLES + 0x1008, PRESENT | WRITABLE | LARGE);
    system.gate(14, 0x8e, 1);
    let mut vcpu = system.boot(|a| {
        enter_user(a);
        a.mov(rbx, 0x4000_1234_u64).unwrap();
        a.mov(byte_ptr(rbx), 1).unwrap();
    });
    let (port, frame) = system.exception(&mut vcpu);
    assert_eq!((port, frame.error), (14, Some(7)));
    assert_eq!(vcpu.cpu_mut().state.cr2, 0x4000_1234);
}

#[test]
fn smap_needs_the_ac_flag() {
    let system = System::new();
    write_u64(&system.guest, TABLES + 0x1008, PRESENT | WRITABLE | USER | LARGE);
    system.gate(14, 0x8e, 1);
    let mut vcpu = system.boot(|a| {
        a.mov(rax, cr4).unwrap();
        a.or(rax, 1 << 21).unwrap();
        a.mov(cr4, rax).unwrap();
        a.mov(rbx, 0x4000_0000_u64).unwrap();
        a.stac().unwrap();
        a.mov(eax, dword_ptr(rbx)).unwrap();
        a.out(0xf0, al).unwrap();
        a.clac().unwrap();
        a.mov(eax, dword_ptr(rbx)).unwrap();
    });
    assert_eq!(output(&mut vcpu).0, 0xf0);
    let (port, frame) = system.exception(&mut vcpu);
    assert_eq!((port, frame.error), (14, Some(1)));
}

#[test]
fn an_access_across_two_pages_faults_on_the_second_and_changes_nothing() {
    let system = System::new();
    write_u64(&system.guest, TABLES + 0x1008, 0x80_2000 | RIGHTS);
    write_u64(&system.guest, 0x80_2000, 0x80_3000 | RIGHTS);
    write_u64(&system.guest, 0x80_3000, DATA | RIGHTS);
    write_u64(&system.guest, 0x80_3008, 0);
    system.gate(14, 0x8e, 1);
    write_u64(&system.guest, DATA + 0xff8, u64::MAX);
    let mut vcpu = system.boot(|a| {
        a.mov(rbx, 0x4000_0ffc_u64).unwrap();
        a.mov(qword_ptr(rbx), 0).unwrap();
    });
    let (port, frame) = system.exception(&mut vcpu);
    assert_eq!((port, frame.error), (14, Some(2)));
    assert_eq!(vcpu.cpu_mut().state.cr2, 0x4000_1000);
    assert_eq!(read_u64(&system.guest, DATA + 0xff8), u64::MAX);
}
