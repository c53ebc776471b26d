//! Zircon boot images: what loads lies in memory, everything else is an error.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vmm::arch::x64::{memory_map, zircon};
use vmm::memory::{BufferMemory, MemoryLayout};

const MEMORY: u64 = 68 << 20;

fuzz_target!(|input: (&[u8], Option<&[u8]>, &str)| {
    let (kernel, ramdisk, command_line) = input;
    let Ok(layout) = MemoryLayout::new(MEMORY, &memory_map::RESTRICTED) else { return };
    let memory = BufferMemory::new(layout.end() as usize);
    let image = zircon::ZirconImage { kernel, ramdisk, command_line };
    if let Ok(entry) = zircon::load(&memory, &layout, &[memory_map::PCI_ECAM], &image) {
        assert!(layout.contains(entry.address, 1) && layout.contains(entry.argument, 32));
    }
});
