//! Linux kernels, packed and unpacked: what loads lies in memory, everything else is an error.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vmm::arch::x64::{linux, memory_map};
use vmm::memory::{BufferMemory, MemoryLayout};

const MEMORY: u64 = 32 << 20;
/// Where a bzImage's header says that its payload is.
const PAYLOAD: usize = 0x800;

/// Puts `payload` into a bzImage whose header the fuzzer does not have to find, with `patches` of it.
fn bzimage(payload: &[u8], patches: &[u8]) -> Vec<u8> {
    let mut image = vec![0; PAYLOAD];
    let fields: [(usize, &[u8]); 12] = [
        // One sector of setup code, so that the rest starts at 0x400.
        (0x1f1, &[1]),
        (0x1fe, &[0x55, 0xaa, 0, 0x6a]),
        (0x202, b"HdrS"),
        (0x206, &[0x0f, 0x02]),
        (0x211, &[1]),
        (0x230, &(2u32 << 20).to_le_bytes()),
        (0x234, &[1, 0, 3, 0]),
        (0x238, &2047u32.to_le_bytes()),
        (0x248, &(PAYLOAD as u32 - 0x400).to_le_bytes()),
        (0x24c, &(payload.len() as u32).to_le_bytes()),
        (0x258, &0x100_0000u64.to_le_bytes()),
        (0x260, &(1u32 << 20).to_le_bytes()),
    ];
    for (offset, bytes) in fields {
        image[offset..][..bytes.len()].copy_from_slice(bytes);
    }
    for patch in patches.chunks_exact(2) {
        image[0x1f0 + usize::from(patch[0]) % 0x80] = patch[1];
    }
    image.extend_from_slice(payload);
    image
}

/// An LZ4 frame that has `bytes` as they are, so that a change of one is a change of the other.
fn lz4(bytes: &[u8]) -> Vec<u8> {
    let mut block = vec![0xf0];
    let mut left = bytes.len().saturating_sub(15);
    while left >= 255 {
        block.push(255);
        left -= 255;
    }
    block.push(left as u8);
    block.extend_from_slice(bytes);
    let mut frame = vec![0x02, 0x21, 0x4c, 0x18];
    frame.extend((block.len() as u32).to_le_bytes());
    frame.extend(block);
    frame.extend((bytes.len() as u32).to_le_bytes());
    frame
}

fuzz_target!(|bytes: &[u8]| {
    let Some(([kind, ramdisk, tree, line], rest)) = bytes.split_first_chunk() else { return };
    let (patches, file) = rest.split_at(rest.len().min(usize::from(kind >> 4) * 2));
    let kernel = match kind & 3 {
        0 => file.to_vec(),
        1 => bzimage(file, patches),
        _ if file.len() >= 15 => bzimage(&lz4(file), patches),
        _ => return,
    };
    // Sizes matter, bytes do not, but for a device tree's first.
    let ramdisk = (*ramdisk > 0).then(|| vec![0; usize::from(*ramdisk) << 17]);
    let mut device_tree = (*tree > 0).then(|| vec![0; usize::from(*tree) << 9]);
    if let Some(tree) = &mut device_tree {
        tree[..4].copy_from_slice(&[0xd0, 0x0d, 0xfe, 0xed]);
        let declared =
            patches.get(..4).map_or(0, |size| u32::from_be_bytes([0, size[1], size[2], size[3]]));
        tree[4..8].copy_from_slice(&declared.to_be_bytes());
    }
    let command_line = "x".repeat(usize::from(*line) * 17);

    let Ok(layout) = MemoryLayout::new(MEMORY, &memory_map::RESTRICTED) else { return };
    let memory = BufferMemory::new(layout.end() as usize);
    let e820 = memory_map::e820(&layout, &[memory_map::PCI_ECAM]);
    let image = linux::LinuxImage {
        kernel: &kernel,
        ramdisk: ramdisk.as_deref(),
        device_tree: device_tree.as_deref(),
        command_line: &command_line,
    };
    if let Ok(entry) = linux::load(&memory, &layout, &e820, &image) {
        assert!(layout.contains(entry.address, 1) && layout.contains(entry.argument, 4096));
    }
});
