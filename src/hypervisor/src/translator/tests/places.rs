//! Every form with a memory operand where the operand is not RAM: open bus against a native page of ones, and a MEM trap,
//! which must leave the guest before the instruction had any effect.

use iced_x86::{Code, Encoder, Instruction, Register};

use super::forms::{aim_at, build, excluded, undefined_flags};
use super::harness::{CODE, End, Harness, Random, Registers, TRAP, VOID, difference};
use crate::translator::classify::{Class, form, memory_operand};

/// Forms with a memory operand, encoded, aimed at a place in the page at `page`.
fn each_operand(
    page: u64,
    seed: u64,
    elements: bool,
    mut check: impl FnMut(&Instruction, &[u8], &Registers, &mut Random) -> Option<String>,
) {
    let mut random = Random(seed);
    let mut failures = Vec::new();
    let mut tested = 0;
    for code in Code::values() {
        let class = form(code).class;
        let wanted =
            matches!(class, Class::Copy | Class::BitString) || elements && class == Class::Element;
        if !wanted || excluded(code) {
            continue;
        }
        for _ in 0..4 {
            let Some(mut instruction) = build(code, &mut random) else {
                break;
            };
            let by_register = instruction.memory_base() != Register::None && !instruction.is_vsib();
            if memory_operand(&instruction).is_none() || !by_register {
                continue;
            }
            if code.op_code().can_use_lock_prefix() && random.below(3) == 0 {
                instruction.set_has_lock_prefix(true);
            }
            let mut encoder = Encoder::new(64);
            if encoder.encode(&instruction, CODE).is_err() {
                continue;
            }
            let bytes = encoder.take_buffer();
            let mut registers = random.registers();
            let size = instruction.memory_size().size().max(1) as u64;
            let room = if class == Class::BitString { 1024 } else { 4096 - size };
            let align = size.next_power_of_two().min(64);
            let target = page + 1024 + random.below(room.min(2048)) / align * align;
            aim_at(target, &instruction, &mut registers, &mut random);
            tested += 1;
            if let Some(what) = check(&instruction, &bytes, &registers, &mut random) {
                failures.push(format!("{code:?} {instruction} {bytes:02x?}: {what}"));
                break;
            }
        }
        if failures.len() > 40 {
            break;
        }
    }
    assert!(failures.is_empty(), "{} of {tested} differ:\n{}", failures.len(), failures.join("\n"));
    assert!(tested > 2000, "only {tested} instructions were tested");
}

#[test]
fn open_bus_reads_ones_and_drops_stores() {
    let mut harness = Harness::new();
    let data = Random(3).data();
    each_operand(VOID, 21, true, |instruction, bytes, registers, _| {
        let (native, translated) = harness.compare(bytes, registers, &data);
        difference(&native, &translated, undefined_flags(instruction))
    });
}

#[test]
fn a_trap_comes_before_any_effect() {
    let mut harness = Harness::new();
    let data = Random(4).data();
    each_operand(TRAP, 22, false, |_, bytes, registers, _| {
        let after = harness.run_translated(bytes, registers, &data);
        match after.end {
            End::Trap { .. } if after.registers.gpr != registers.gpr => {
                Some(format!("registers {:x?} became {:x?}", registers.gpr, after.registers.gpr))
            }
            End::Trap { .. } if after.registers.flags & 0x8d5 != registers.flags & 0x8d5 => {
                Some(format!("flags {:#x} became {:#x}", registers.flags, after.registers.flags))
            }
            End::Trap { .. } if after.registers.vector != registers.vector => {
                Some("a vector register changed".to_owned())
            }
            End::Trap { .. } if after.registers.x87 != registers.x87 => {
                Some("an x87 register changed".to_owned())
            }
            End::Trap { .. } if after.data != data => Some("memory changed".to_owned()),
            End::Trap { .. } => None,
            end => Some(format!("no trap: {end:?}")),
        }
    });
}
