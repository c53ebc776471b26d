//! The decoder and emulator of instructions on device memory: any bytes with any registers.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::sync::Arc;
use vmm::arch::x64::emulate::{Emulator, Registers};
use vmm::arch::x64::{instruction, page_table};
use vmm::bus::{Bus, BusDevice};
use vmm::memory::BufferMemory;

const DEVICE: u64 = 0x8000;

struct Constant;

impl BusDevice for Constant {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0xa5);
    }
    fn write(&self, _offset: u64, _data: &[u8]) {}
}

fuzz_target!(|input: (&[u8], [u64; 16], u64, u16)| {
    let (bytes, gpr, rflags, offset) = input;
    let bytes = &bytes[..bytes.len().min(instruction::MAX_INSTRUCTION)];
    let Ok(decoded) = instruction::decode(bytes) else { return };
    let mut bus = Bus::default();
    if bus.insert(DEVICE..DEVICE + 0x1000, Arc::new(Constant)).is_err() {
        return;
    }
    let memory = BufferMemory::new(0x8000);
    if page_table::write_identity_map(&memory, 0x10000).is_err() {
        return;
    }
    let address = DEVICE + u64::from(offset % 0x1000);
    let mut registers = Registers { gpr, rflags };
    let _ = Emulator { bus: &bus, memory: &memory, cr3: 0, address }.run(decoded, &mut registers);
    // Only the arithmetic flags may change.
    assert_eq!(registers.rflags & !0x8d5, rflags & !0x8d5);
});
