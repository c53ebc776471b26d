//! Litmus tests of memory ordering (SDM vol. 3 §8.2.3): what two vCPUs may see of each other's stores and loads, and what
//! they never see. An outcome that is allowed need not happen.

use super::machine::*;
use super::smp::{repeat, report, run_all};
use iced_x86::code_asm::*;
use std::collections::BTreeMap;

/// The two variables, in cache lines and pages of their own.
const X: u64 = DATA + 0x1000;
const Y: u64 = DATA + 0x2000;
const RENDEZVOUS: u64 = DATA + 0x100;
/// Results of each vCPU, a doubleword a round.
const RESULTS: [u64; 2] = [DATA + 0x1_0000, DATA + 0x2_0000];
const ROUNDS: u32 = 4_000;

/// Waits for the other vCPU on a counter that only grows. Clobbers R8.
fn rendezvous(a: &mut CodeAssembler) {
    let mut wait = a.create_label();
    a.add(r8d, 2).unwrap();
    a.lock().inc(dword_ptr(RENDEZVOUS)).unwrap();
    a.set_label(&mut wait).unwrap();
    a.cmp(dword_ptr(RENDEZVOUS), r8d).unwrap();
    a.jb(wait).unwrap();
}

/// Runs the two bodies against each other, with X and Y 0 before each round. A body's result is in ECX. Gives how often
/// each pair of results came out.
fn outcomes(bodies: [&dyn Fn(&mut CodeAssembler); 2]) -> BTreeMap<(u32, u32), u32> {
    let guest = guest();
    let entries = [CODE, CODE + 0x1000];
    for ((entry, body), results) in entries.into_iter().zip(bodies).zip(RESULTS) {
        load_at(&guest, entry, |a| {
            a.mov(r9d, results as u32).unwrap();
            repeat(a, ROUNDS, |a| {
                a.mov(dword_ptr(X), 0).unwrap();
                a.mov(dword_ptr(Y), 0).unwrap();
                rendezvous(a);
                body(a);
                a.mov(dword_ptr(r9), ecx).unwrap();
                a.add(r9d, 4).unwrap();
                rendezvous(a);
            });
            report(a);
        });
    }
    run_all(&guest, &entries);
    let read = |index: usize, round: u32| {
        let mut bytes = [0; 4];
        guest.read_memory(RESULTS[index] + u64::from(round) * 4, &mut bytes).unwrap();
        u32::from_le_bytes(bytes)
    };
    let mut counts = BTreeMap::new();
    for round in 0..ROUNDS {
        *counts.entry((read(0, round), read(1, round))).or_default() += 1;
    }
    counts
}

fn only(found: &BTreeMap<(u32, u32), u32>, allowed: &[(u32, u32)]) {
    assert!(found.keys().all(|pair| allowed.contains(pair)), "{found:?}, allowed {allowed:?}");
}

/// Dekker's core: a store, something between, a load of the other's variable.
fn dekker(between: fn(&mut CodeAssembler)) -> BTreeMap<(u32, u32), u32> {
    let side = |mine: u64, other: u64| {
        move |a: &mut CodeAssembler| {
            a.mov(dword_ptr(mine), 1).unwrap();
            between(a);
            a.mov(ecx, dword_ptr(other)).unwrap();
        }
    };
    outcomes([&side(X, Y), &side(Y, X)])
}

#[test]
fn a_load_may_pass_an_older_store() {
    only(&dekker(|_| {}), &[(0, 0), (0, 1), (1, 0), (1, 1)]);
}

#[test]
fn a_fence_orders_a_store_before_a_load() {
    let allowed = [(0, 1), (1, 0), (1, 1)];
    only(&dekker(|a| a.mfence().unwrap()), &allowed);
    only(&dekker(|a| a.lock().add(dword_ptr(rsp - 8), 0).unwrap()), &allowed);
    let side = |mine: u64, other: u64| {
        move |a: &mut CodeAssembler| {
            a.mov(eax, 1).unwrap();
            a.xchg(dword_ptr(mine), eax).unwrap();
            a.mov(ecx, dword_ptr(other)).unwrap();
        }
    };
    only(&outcomes([&side(X, Y), &side(Y, X)]), &allowed);
}

#[test]
fn stores_are_seen_in_order() {
    let writer = |a: &mut CodeAssembler| {
        a.mov(dword_ptr(X), 1).unwrap();
        a.mov(dword_ptr(Y), 1).unwrap();
        a.xor(ecx, ecx).unwrap();
    };
    let reader = |a: &mut CodeAssembler| {
        a.mov(ecx, dword_ptr(Y)).unwrap();
        a.mov(edx, dword_ptr(X)).unwrap();
        a.lea(ecx, ptr(rcx + rdx * 2)).unwrap();
    };
    // Not 1: the second store without the first.
    only(&outcomes([&writer, &reader]), &[(0, 0), (0, 2), (0, 3)]);
}

#[test]
fn a_store_does_not_pass_an_older_load() {
    let side = |mine: u64, other: u64| {
        move |a: &mut CodeAssembler| {
            a.mov(ecx, dword_ptr(other)).unwrap();
            a.mov(dword_ptr(mine), 1).unwrap();
        }
    };
    only(&outcomes([&side(X, Y), &side(Y, X)]), &[(0, 0), (0, 1), (1, 0)]);
}

#[test]
fn a_vcpu_sees_its_own_stores_first() {
    let side = |mine: u64, other: u64| {
        move |a: &mut CodeAssembler| {
            a.mov(dword_ptr(mine), 1).unwrap();
            a.mov(ecx, dword_ptr(mine)).unwrap();
            a.mov(edx, dword_ptr(other)).unwrap();
            a.lea(ecx, ptr(rcx + rdx * 2)).unwrap();
        }
    };
    only(&outcomes([&side(X, Y), &side(Y, X)]), &[(1, 1), (1, 3), (3, 1), (3, 3)]);
}
