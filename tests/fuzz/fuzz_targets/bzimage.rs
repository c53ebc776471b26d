//! Linux kernels, packed and unpacked: what loads lies in memory, everything else is an error.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vmm::arch::x64::{linux, memory_map};
use vmm::memory::{BufferMemory, MemoryLayout};

const MEMORY: u64 = 32 << 20;

fuzz_target!(|input: (&[u8], Option<&[u8]>, Option<&[u8]>, &str)| {
    let (kernel, ramdisk, device_tree, command_line) = input;
    let Ok(layout) = MemoryLayout::new(MEMORY, &memory_map::RESTRICTED) else { return };
    let memory = BufferMemory::new(layout.end() as usize);
    let e820 = memory_map::e820(&layout, &[memory_map::PCI_ECAM]);
    let image = linux::LinuxImage { kernel, ramdisk, device_tree, command_line };
    if let Ok(entry) = linux::load(&memory, &layout, &e820, &image) {
        assert!(layout.contains(entry.address, 1) && layout.contains(entry.argument, 4096));
    }
});
