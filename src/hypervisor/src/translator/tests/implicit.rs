//! Instructions whose operands are not in their bytes: stack, string and flag instructions, natively and translated.

use super::harness::{CODE, DATA, DATA_SIZE, End, Harness, Random, difference};

/// Encodings without prefixes. All of them are legal in user mode.
const FORMS: &[&[u8]] = &[
    // PUSH and POP of registers, immediates and memory at RBX, with both operand sizes.
    &[0x50],
    &[0x54],
    &[0x41, 0x57],
    &[0x66, 0x50],
    &[0x66, 0x54],
    &[0x6a, 0x85],
    &[0x66, 0x6a, 0x85],
    &[0x68, 1, 2, 3, 0x84],
    &[0x66, 0x68, 1, 0x82],
    &[0xff, 0x33],
    &[0x66, 0xff, 0x33],
    &[0xff, 0x34, 0x24],
    &[0x58],
    &[0x5c],
    &[0x41, 0x5f],
    &[0x66, 0x59],
    &[0x66, 0x5c],
    &[0x8f, 0x03],
    &[0x66, 0x8f, 0x03],
    &[0x8f, 0x04, 0x24],
    &[0x8f, 0x44, 0x24, 0x10],
    // PUSH FS, PUSH GS; PUSHF; LEAVE; ENTER with nesting.
    &[0x0f, 0xa0],
    &[0x0f, 0xa8],
    &[0x66, 0x0f, 0xa0],
    &[0x9c],
    &[0x66, 0x9c],
    &[0xc9],
    &[0x66, 0xc9],
    &[0xc8, 16, 0, 0],
    &[0xc8, 32, 0, 1],
    &[0xc8, 8, 0, 3],
    &[0x66, 0xc8, 8, 0, 2],
    // POPF, of a value that is made harmless.
    &[0x9d],
    &[0x66, 0x9d],
    // XLAT, LAHF, SAHF, single flags, conversions.
    &[0xd7],
    &[0x67, 0xd7],
    &[0x9f],
    &[0x9e],
    &[0xf5],
    &[0xf8],
    &[0xf9],
    &[0xfc],
    &[0xfd],
    &[0x98],
    &[0x66, 0x98],
    &[0x48, 0x98],
    &[0x99],
    &[0x66, 0x99],
    &[0x48, 0x99],
    // MOVS, CMPS, STOS, LODS, SCAS in all sizes; bare, with REP, with REPNE, with 32-bit addresses.
    &[0xa4],
    &[0xa5],
    &[0x66, 0xa5],
    &[0x48, 0xa5],
    &[0xa6],
    &[0xa7],
    &[0x66, 0xa7],
    &[0x48, 0xa7],
    &[0xaa],
    &[0xab],
    &[0x66, 0xab],
    &[0x48, 0xab],
    &[0xac],
    &[0xad],
    &[0x66, 0xad],
    &[0x48, 0xad],
    &[0xae],
    &[0xaf],
    &[0x66, 0xaf],
    &[0x48, 0xaf],
    &[0xf3, 0xa4],
    &[0xf3, 0xa5],
    &[0xf3, 0x66, 0xa5],
    &[0xf3, 0x48, 0xa5],
    &[0xf3, 0xa6],
    &[0xf3, 0x48, 0xa7],
    &[0xf3, 0xaa],
    &[0xf3, 0xab],
    &[0xf3, 0x66, 0xab],
    &[0xf3, 0x48, 0xab],
    &[0xf3, 0xac],
    &[0xf3, 0x48, 0xad],
    &[0xf3, 0xae],
    &[0xf3, 0xaf],
    &[0xf2, 0xa6],
    &[0xf2, 0xa7],
    &[0xf2, 0xae],
    &[0xf2, 0x48, 0xaf],
    &[0xf2, 0xa4],
    &[0xf2, 0xab],
    &[0x67, 0xa4],
    &[0x67, 0xf3, 0xab],
    &[0x67, 0xf3, 0xa7],
    // NOPs and hints.
    &[0x90],
    &[0x0f, 0x1f, 0x03],
    &[0x66, 0x0f, 0x1f, 0x44, 0, 0],
    &[0x0f, 0x18, 0x03],
    &[0x0f, 0x0d, 0x0b],
    &[0xf3, 0x0f, 0x1e, 0xfa],
    &[0x0f, 0xae, 0xe8],
    &[0x0f, 0xae, 0xf0],
    &[0x0f, 0xae, 0xf8],
    &[0xd9, 0xd0],
    // LOOP, LOOPE, LOOPNE, JRCXZ, JECXZ over a NOP.
    &[0xe2, 1, 0x90],
    &[0xe1, 1, 0x90],
    &[0xe0, 1, 0x90],
    &[0xe3, 1, 0x90],
    &[0x67, 0xe3, 1, 0x90],
];

#[test]
fn implicit_operands_are_what_the_host_takes_them_for() {
    let mut harness = Harness::new();
    let mut random = Random(5);
    let mut failures = Vec::new();
    for form in FORMS {
        for _ in 0..24 {
            let mut registers = random.registers();
            // Near the middle, across a page boundary, or up against the end of what is mapped.
            let place = |random: &mut Random| match random.below(4) {
                0 => DATA + 4096 - random.below(24),
                1 => DATA + DATA_SIZE - random.below(40),
                _ => DATA + 0x800 + random.below(0x1000),
            };
            for number in [3, 4, 5, 6, 7] {
                registers.gpr[number] = place(&mut random);
            }
            registers.gpr[1] = random.below(40);
            if random.below(4) == 0 {
                registers.flags |= 0x400;
            }
            let mut data = random.data();
            if matches!(form, [.., 0x9d]) {
                // No trap flag, no alignment checks, nothing that user mode cannot change.
                let at = (registers.gpr[4] - DATA) as usize;
                for (byte, value) in data[at.min(DATA_SIZE as usize)..].iter_mut().zip([
                    random.next() as u8,
                    random.next() as u8 & 0xc,
                    0,
                    0,
                    0,
                    0,
                    0,
                    0,
                ]) {
                    *byte = value;
                }
            }
            let (native, translated) = harness.compare(form, &registers, &data);
            let mut what = difference(&native, &translated, 0);
            if matches!(form, [.., 0x9c]) && native.end == End::Finished {
                // The pushed image differs in IF, which the guest's kernel mode has clear.
                what = (native.end != translated.end || native.registers != translated.registers)
                    .then(|| "PUSHF".to_owned());
            }
            if let Some(what) = what {
                failures.push(format!("{form:02x?}: {what}, from {:x?}", registers.gpr));
                break;
            }
        }
    }
    let _ = CODE;
    assert!(failures.is_empty(), "{} differ:\n{}", failures.len(), failures.join("\n"));
}
