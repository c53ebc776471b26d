//! Zircon boot images: what loads lies in memory, everything else is an error.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vmm::arch::x64::{memory_map, zircon};
use vmm::loader::zbi;
use vmm::memory::{BufferMemory, GuestMemory as _, MemoryLayout};

const MEMORY: u64 = 68 << 20;

fuzz_target!(|bytes: &[u8]| {
    let Some(([len, line], rest)) = bytes.split_first_chunk() else { return };
    let (ramdisk, kernel) = rest.split_at(rest.len().min(usize::from(*len) * 8));
    let Ok(layout) = MemoryLayout::new(MEMORY, &memory_map::RESTRICTED) else { return };
    let memory = BufferMemory::new(layout.end() as usize);
    let command_line = "x".repeat((*line).into());
    let ramdisk = (!ramdisk.is_empty()).then_some(ramdisk);
    let image = zircon::ZirconImage { kernel, ramdisk, command_line: &command_line };
    if let Ok(entry) = zircon::load(&memory, &layout, &[memory_map::PCI_ECAM], &image) {
        assert!(layout.contains(entry.address, 1) && layout.contains(entry.argument, 32));
        // What the kernel gets has every item of both images but itself.
        let mut header = [0; zbi::HEADER_SIZE];
        memory.read(entry.argument, &mut header).expect("in memory");
        let len = u32::from_le_bytes([header[4], header[5], header[6], header[7]]);
        let mut data = vec![0; zbi::HEADER_SIZE + len as usize];
        memory.read(entry.argument, &mut data).expect("in memory");
        let count = |image| zbi::parse(image).expect("it was loaded").len();
        assert_eq!(count(&data), ramdisk.map_or(0, count) + count(kernel) - 1 + 4);
    }
});
