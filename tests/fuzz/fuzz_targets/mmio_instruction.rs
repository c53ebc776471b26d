//! The decoder and emulator of instructions on device memory: any bytes with any registers, of which only
//! those that an instruction can change do.
#![no_main]

use arbitrary::{Result, Unstructured};
use libfuzzer_sys::fuzz_target;
use std::sync::Arc;
use vmm::arch::x64::emulate::{Emulator, Registers};
use vmm::arch::x64::{instruction, page_table};
use vmm::bus::{Bus, BusDevice};
use vmm::memory::BufferMemory;

const DEVICE: u64 = 0x8000;
const PAGE: u64 = 0x1000;
/// CF, PF, AF, ZF, SF, OF.
const ARITHMETIC_FLAGS: u64 = 0x8d5;
const DIRECTION_FLAG: u64 = 1 << 10;

struct Constant;

impl BusDevice for Constant {
    fn read(&self, offset: u64, data: &mut [u8]) {
        assert!(offset < PAGE && data.len() <= 8);
        data.fill(0xa5);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        assert!(offset < PAGE && data.len() <= 8);
    }
}

/// A value that an instruction can do something with.
fn value(address: u64, input: &mut Unstructured<'_>) -> Result<u64> {
    Ok(match input.int_in_range(0..=7)? {
        0u8 => input.arbitrary()?,
        1 => address,
        2 => u64::from(input.arbitrary::<u16>()?),
        3 => u64::MAX - u64::from(input.arbitrary::<u8>()?),
        4 => 1u64.rotate_left(u32::from(input.arbitrary::<u8>()?)),
        _ => input.int_in_range(0..=16)?,
    })
}

fn run(mut input: Unstructured<'_>) -> Result<()> {
    let address = DEVICE + input.int_in_range(0..=PAGE - 1)?;
    let flags = ARITHMETIC_FLAGS | DIRECTION_FLAG;
    let mut registers = Registers { gpr: [0; 16], rflags: input.arbitrary::<u64>()? & flags };
    for register in &mut registers.gpr {
        *register = value(address, &mut input)?;
    }
    let bytes = input.take_rest();
    let bytes = &bytes[..bytes.len().min(instruction::MAX_INSTRUCTION)];
    let Ok(decoded) = instruction::decode(bytes) else { return Ok(()) };
    let mut bus = Bus::default();
    bus.insert(DEVICE..DEVICE + PAGE, Arc::new(Constant)).expect("an empty bus");
    let memory = BufferMemory::new(DEVICE as usize);
    page_table::write_identity_map(&memory, 2 * DEVICE).expect("room");
    let before = registers;
    let result =
        Emulator { bus: &bus, memory: &memory, cr3: 0, address }.run(decoded, &mut registers);
    assert_eq!(registers.rflags & !ARITHMETIC_FLAGS, before.rflags & !ARITHMETIC_FLAGS);
    if result.is_ok() {
        let changed = registers.gpr.iter().zip(&before.gpr).filter(|(new, old)| new != old).count();
        // RSI, RDI and RCX of a string instruction.
        assert!(changed <= 3, "{changed} registers changed");
    }
    Ok(())
}

fuzz_target!(|bytes: &[u8]| {
    // The input may end anywhere.
    let _ = run(Unstructured::new(bytes));
});
