//! Random bytes as code: whatever they are, the host survives and the run ends.

use super::harness::{CODE, CODE_SIZE, DATA, Harness, Random};
use crate::translator::{RunExit, run};
use std::sync::atomic::Ordering;

fn rounds() -> u64 {
    std::env::var("RANDOM_CODE_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(300)
}

#[test]
fn random_code_bytes_never_hurt_the_host() {
    let mut harness = Harness::new();
    let mut random =
        Random(std::env::var("RANDOM_CODE_SEED").ok().and_then(|n| n.parse().ok()).unwrap_or(11));
    for _ in 0..rounds() {
        let bytes: Vec<u8> = (0..CODE_SIZE).map(|_| random.next() as u8).collect();
        harness.write_code(&bytes);
        let mut registers = random.registers();
        for gpr in &mut registers.gpr {
            if random.below(2) == 0 {
                *gpr = DATA + random.below(0x3000);
            }
        }
        let cpu = harness.cpu();
        cpu.flush_tlb();
        cpu.state.gpr = registers.gpr;
        cpu.state.rflags = registers.flags & 0xcd5 | 2;
        cpu.state.vector = registers.vector;
        cpu.state.rip = CODE + random.below(CODE_SIZE - 64);
        for _ in 0..50 {
            // A kick is always pending, so a loop leaves at its first poll.
            cpu.state.attention.store(1, Ordering::SeqCst);
            match run(cpu) {
                RunExit::Attention => {}
                _ => break,
            }
            if !(CODE..CODE + CODE_SIZE).contains(&cpu.state.rip) {
                break;
            }
        }
        harness.reset_system_state();
    }
}
