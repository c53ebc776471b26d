//! Guests that do anything: random code with random state, and random page tables against a model.
//!
//! A fixed seed and a few hundred rounds by default; `HYPERVISOR_ROUNDS` asks for more, `HYPERVISOR_SEED` for others.

use super::machine::*;
use crate::exception::Exception;
use crate::mmu::{Access, AccessKind, Mapping, walk};
use crate::registers::{cr0, cr4, efer};
use crate::{Exit, Guest};
use std::thread;
use std::time::Duration;

/// xorshift64*: enough to be different each time and the same each run.
struct Random(u64);

impl Random {
    fn new() -> Random {
        Random(setting("HYPERVISOR_SEED", 0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn chance(&mut self, one_in: u64) -> bool {
        self.below(one_in) == 0
    }
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

/// Interesting values for registers: addresses that exist, their edges, and anything.
fn value(random: &mut Random) -> u64 {
    match random.below(6) {
        0 => DATA + random.below(0x10_0000),
        1 => CODE + random.below(256),
        2 => random.below(0x1000),
        3 => (1_u64 << random.below(64)).wrapping_sub(random.below(16)),
        4 => u64::MAX - random.below(0x1_0000),
        _ => random.next(),
    }
}

/// Whatever code a guest runs, `enter` comes back with an exit, an error or after a kick, and nothing else happens.
#[test]
fn random_code_never_hurts_the_host() {
    let mut random = Random::new();
    for round in 0..setting("HYPERVISOR_ROUNDS", 150) {
        let system = System::new();
        if random.chance(2) {
            system.open_to_user();
        }
        let mut bytes: Vec<u8> = (0..256).map(|_| random.next() as u8).collect();
        for _ in 0..32 {
            // Prefixes and escapes that lead to the odd parts of the map more often than chance does.
            let at = random.below(256) as usize;
            bytes[at] = [0x0f, 0xf0, 0xf3, 0x66, 0x67, 0x48, 0xc5, 0xc4, 0x65, 0xcf, 0xcb]
                [random.below(11) as usize];
        }
        let mut vcpu = system.boot(|a| {
            if random.chance(3) {
                enter_user(a);
            }
            a.db(&bytes).unwrap();
        });
        let mut state = vcpu.read_state();
        for (number, register) in state.gpr.iter_mut().enumerate() {
            if number != 4 {
                *register = value(&mut random);
            }
        }
        vcpu.write_state(&state);
        let remote = vcpu.remote();
        thread::scope(|scope| {
            let (done, finished) = std::sync::mpsc::channel::<()>();
            scope.spawn(move || {
                // The guest may well be in a loop: kick it until the round is over.
                while finished
                    .recv_timeout(Duration::from_millis(10))
                    .is_err_and(|error| error == std::sync::mpsc::RecvTimeoutError::Timeout)
                {
                    remote.kick();
                }
            });
            for _ in 0..20 {
                match vcpu.enter() {
                    Ok(Exit::Io { input: true, access_size, .. }) => {
                        vcpu.write_io(access_size, [0x5a; 4]).unwrap();
                    }
                    Ok(_) => {}
                    Err(_) => break,
                }
            }
            drop(done);
        });
        assert!(vcpu.stats().kicks <= 20, "round {round}");
    }
}

/// Fills the pages at 8 to 12 MiB with page-table entries that point at each other, at memory and at nothing.
fn random_tables(guest: &Guest, random: &mut Random) {
    for _ in 0..3000 {
        let at = 0x80_0000 + random.below(0x40_0000 / 8) / 512 % 64 * 4096 + random.below(16) * 8;
        let target = match random.below(8) {
            0 => random.next() & 0xf_ffff_ffff_f000,
            1 => DATA & !0xfff,
            _ => 0x80_0000 + random.below(64) * 4096,
        };
        let mut flags = random.next() & 0xfff;
        if !random.chance(8) {
            flags |= PRESENT;
        }
        if !random.chance(4) {
            flags &= !LARGE;
        }
        let nx = if random.chance(4) { 1 << 63 } else { 0 };
        write_u64(guest, at, target | flags | nx);
    }
}

/// What the manual says about a translation (SDM vol. 3 §4.5, §4.6, §4.7), straight from its tables.
fn model(
    guest: &Guest,
    cr3: u64,
    va: u64,
    access: Access,
    controls: (bool, bool, bool),
) -> Result<u64, u32> {
    let (write_protect, smep, nxe) = controls;
    let mut code = u32::from(access.kind == AccessKind::Write) << 1 | u32::from(access.user) << 2;
    if access.kind == AccessKind::Execute && (nxe || smep) {
        code |= 1 << 4;
    }
    let (mut table, mut user, mut writable, mut executable) = (cr3 & !0xfff, true, true, true);
    for level in [4, 3, 2, 1] {
        let shift = 12 + 9 * (level - 1);
        let at = table + (va >> shift & 511) * 8;
        let entry = if at < MEMORY { read_u64(guest, at) } else { u64::MAX };
        if entry & 1 == 0 {
            return Err(code);
        }
        let large = entry & 0x80 != 0 && level > 1;
        let mut reserved = ((1_u64 << 52) - 1) & !((1 << 40) - 1);
        reserved |= if nxe { 0 } else { 1 << 63 };
        reserved |= match (large, level) {
            (true, 4) => 0x80,
            (true, 3) => 0x3fff_e000,
            (true, 2) => 0x1f_e000,
            _ => 0,
        };
        if entry & reserved != 0 {
            return Err(code | 9);
        }
        user &= entry & 4 != 0;
        writable &= entry & 2 != 0;
        executable &= entry >> 63 == 0;
        if large || level == 1 {
            let offset_mask = (1_u64 << shift) - 1;
            let allowed = match (access.kind, access.user) {
                (AccessKind::Execute, true) => user && executable,
                (AccessKind::Execute, false) => executable && !(user && smep),
                (AccessKind::Read, true) => user,
                (AccessKind::Read, false) => !(user && access.smap),
                (AccessKind::Write, true) => user && writable,
                (AccessKind::Write, false) => {
                    (writable || !write_protect) && !(user && access.smap)
                }
            };
            let page = entry & 0xff_ffff_f000 & !offset_mask;
            return if allowed { Ok(page | va & offset_mask) } else { Err(code | 1) };
        }
        table = entry & 0xff_ffff_f000;
    }
    unreachable!("level 1 always returns")
}

#[test]
fn random_page_tables_translate_as_the_manual_says() {
    let mut random = Random::new();
    let mut mapped = 0;
    for round in 0..setting("HYPERVISOR_ROUNDS", 150) {
        let guest = guest();
        random_tables(&guest, &mut random);
        let mut vcpu = boot(&guest);
        let cpu = vcpu.cpu_mut();
        for _ in 0..100 {
            let controls = (random.chance(2), random.chance(2), !random.chance(4));
            let set = |on: bool, bit: u64| if on { bit } else { 0 };
            let state = &mut cpu.state;
            state.cr0 = state.cr0 & !cr0::WP | set(controls.0, cr0::WP);
            state.cr4 = state.cr4 & !cr4::SMEP | set(controls.1, cr4::SMEP);
            state.efer = state.efer & !efer::NXE | set(controls.2, efer::NXE);
            state.cr3 = 0x80_0000 + random.below(64) * 4096;
            // Only the first entries of each table are filled.
            let va = random.below(16) << 39
                | random.below(16) << 30
                | random.below(16) << 21
                | random.below(16) << 12
                | random.below(4096);
            let kind = [AccessKind::Read, AccessKind::Write, AccessKind::Execute]
                [random.below(3) as usize];
            let user = random.chance(2);
            let access = Access { kind, user, smap: !user && random.chance(2) };
            let expected = model(&guest, cpu.state.cr3, va, access, controls);
            let found: Result<Mapping, Exception> = walk(cpu, va, access);
            mapped += u32::from(found.is_ok());
            let found =
                found.map(|mapping| mapping.gpa).map_err(|exception| exception.error_code.unwrap());
            assert_eq!(found, expected, "round {round} va {va:#x} {access:?} {controls:?}");
        }
    }
    assert!(mapped > 300, "the tables were of no use: {mapped}");
}
