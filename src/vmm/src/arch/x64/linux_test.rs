use super::*;
use crate::loader::elf::tests::executable;
use crate::memory::BufferMemory;

const SIZE: u64 = 32 << 20;
const PREFERRED: u64 = 0x100_0000;

fn layout() -> MemoryLayout {
    MemoryLayout::new(SIZE, &memory_map::RESTRICTED).unwrap()
}

/// A bzImage of protocol 2.15 with `payload`.
fn bzimage(payload: &[u8]) -> Vec<u8> {
    let mut image = vec![0; 0x1000];
    let mut put =
        |offset: usize, bytes: &[u8]| image[offset..offset + bytes.len()].copy_from_slice(bytes);
    put(offset::SETUP_SECTS, &[1]);
    put(offset::BOOT_FLAG, &BOOT_FLAG.to_le_bytes());
    put(offset::JUMP_LENGTH, &[0x6a]);
    put(offset::HEADER, &HEADER_MAGIC.to_le_bytes());
    put(offset::VERSION, &0x020fu16.to_le_bytes());
    put(offset::LOAD_FLAGS, &[LOADED_HIGH]);
    put(offset::KERNEL_ALIGNMENT, &(2u32 << 20).to_le_bytes());
    put(offset::RELOCATABLE, &[1]);
    put(offset::XLOADFLAGS, &(XLF_KERNEL_64 | XLF_CAN_BE_LOADED_ABOVE_4G).to_le_bytes());
    put(offset::COMMAND_LINE_SIZE, &2047u32.to_le_bytes());
    put(offset::PAYLOAD_OFFSET, &(0x1000u32 - 0x400).to_le_bytes());
    put(offset::PAYLOAD_LENGTH, &(payload.len() as u32).to_le_bytes());
    put(offset::PREF_ADDRESS, &PREFERRED.to_le_bytes());
    put(offset::INIT_SIZE, &(1u32 << 20).to_le_bytes());
    image.extend_from_slice(payload);
    image
}

fn lz4(data: &[u8]) -> Vec<u8> {
    let block = lz4_flex::block::compress(data);
    let mut frame = vec![0x02, 0x21, 0x4c, 0x18];
    frame.extend_from_slice(&(block.len() as u32).to_le_bytes());
    frame.extend_from_slice(&block);
    frame.extend_from_slice(&(data.len() as u32).to_le_bytes());
    frame
}

fn image<'a>(kernel: &'a [u8]) -> LinuxImage<'a> {
    LinuxImage { kernel, ramdisk: None, command_line: "console=ttyS0", device_tree: None }
}

fn try_load(image: &LinuxImage<'_>) -> Result<(BufferMemory, Entry), LinuxError> {
    let memory = BufferMemory::new(layout().end() as usize);
    let e820 = memory_map::e820(&layout(), &[]);
    let entry = load(&memory, &layout(), &e820, image)?;
    Ok((memory, entry))
}

fn bytes(memory: &BufferMemory, address: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    memory.read(address, &mut bytes).unwrap();
    bytes
}

fn zero_page_u32(memory: &BufferMemory, offset: usize) -> u32 {
    u32::from_le_bytes(bytes(memory, ZERO_PAGE + offset as u64, 4).try_into().unwrap())
}

#[test]
fn payload_is_unpacked_to_its_preferred_address() {
    let vmlinux = executable(PREFERRED + 4, PREFERRED, b"startup_64", 0x8_0000);
    let (memory, entry) = try_load(&image(&bzimage(&lz4(&vmlinux)))).unwrap();
    assert_eq!(entry, Entry { address: PREFERRED + 4, argument: ZERO_PAGE });
    assert_eq!(bytes(&memory, PREFERRED, 10), b"startup_64");
}

#[test]
fn unknown_payload_is_entered_as_it_is() {
    for payload in
        [&b"\x89LZO"[..], &lz4(b"no ELF"), &lz4(&executable(0, 0x20_0000, b"elsewhere", 0x1000))]
    {
        let kernel = bzimage(payload);
        let (memory, entry) = try_load(&image(&kernel)).unwrap();
        assert_eq!(entry.address, PLAIN_ADDRESS + ENTRY_64);
        assert_eq!(bytes(&memory, PLAIN_ADDRESS, kernel.len() - 0x400), kernel[0x400..]);
    }
}

#[test]
fn zero_page_describes_the_machine() {
    let kernel = bzimage(&lz4(&executable(PREFERRED, PREFERRED, b"x", 1)));
    let (memory, _) = try_load(&image(&kernel)).unwrap();
    assert_eq!(zero_page_u32(&memory, offset::HEADER), HEADER_MAGIC);
    assert_eq!(bytes(&memory, ZERO_PAGE + offset::LOADER as u64, 1), [0xff]);
    assert_eq!(zero_page_u32(&memory, offset::ACPI_RSDP), 0xe_0000);
    assert_eq!(bytes(&memory, ZERO_PAGE + offset::E820_COUNT as u64, 1), [4]);
    assert_eq!(bytes(&memory, ZERO_PAGE + offset::E820_TABLE as u64 + 16, 4), [2, 0, 0, 0]);
    let line = zero_page_u32(&memory, offset::COMMAND_LINE);
    assert_eq!(bytes(&memory, u64::from(line), 14), b"console=ttyS0\0");
}

#[test]
fn ramdisk_moves_down_in_a_small_guest() {
    let kernel = bzimage(&lz4(&executable(PREFERRED, PREFERRED, b"x", 1)));
    let ramdisk = vec![0x5a; 0x1234];
    let (memory, _) = try_load(&LinuxImage { ramdisk: Some(&ramdisk), ..image(&kernel) }).unwrap();
    let address = zero_page_u32(&memory, offset::RAMDISK_IMAGE);
    assert_eq!(zero_page_u32(&memory, offset::RAMDISK_SIZE), 0x1234);
    assert_eq!(u64::from(address), (layout().end() - 0x1234) / PAGE_SIZE * PAGE_SIZE);
    assert_eq!(bytes(&memory, u64::from(address), 0x1234), ramdisk);
}

#[test]
fn ramdisk_that_does_not_fit_is_an_error() {
    let kernel = bzimage(&lz4(&executable(PREFERRED, PREFERRED, b"x", 1)));
    let ramdisk = vec![0; 20 << 20];
    let result = try_load(&LinuxImage { ramdisk: Some(&ramdisk), ..image(&kernel) });
    assert!(matches!(result, Err(LinuxError::NoRoom { what: "Initial RAM disk", .. })));
}

#[test]
fn device_tree_becomes_setup_data() {
    let kernel = bzimage(&lz4(&executable(PREFERRED, PREFERRED, b"x", 1)));
    let mut tree = FDT_MAGIC.to_vec();
    tree.extend_from_slice(&40u32.to_be_bytes());
    tree.resize(40, 0);
    let (memory, _) = try_load(&LinuxImage { device_tree: Some(&tree), ..image(&kernel) }).unwrap();
    let node = u64::from(zero_page_u32(&memory, offset::SETUP_DATA));
    assert_eq!(bytes(&memory, node, 16), [0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 40, 0, 0, 0]);
    assert_eq!(bytes(&memory, node + 16, 40), tree);
    for bad in [&b"not a tree"[..], &FDT_MAGIC, b""] {
        let result = try_load(&LinuxImage { device_tree: Some(bad), ..image(&kernel) });
        assert!(matches!(result, Err(LinuxError::DeviceTree)));
    }
}

#[test]
fn vmlinux_is_loaded_directly() {
    let vmlinux = executable(PREFERRED, PREFERRED, b"startup_64", 0x8_0000);
    let (memory, entry) = try_load(&image(&vmlinux)).unwrap();
    assert_eq!(entry.address, PREFERRED);
    assert_eq!(zero_page_u32(&memory, offset::HEADER), HEADER_MAGIC);
}

#[test]
fn command_line_limits_are_kept() {
    let kernel = bzimage(&lz4(&executable(PREFERRED, PREFERRED, b"x", 1)));
    let long = "x".repeat(2048);
    let result = try_load(&LinuxImage { command_line: &long, ..image(&kernel) });
    assert!(matches!(result, Err(LinuxError::CommandLine { len: 2048, limit: 2047 })));
    let result = try_load(&LinuxImage { command_line: "a\0b", ..image(&kernel) });
    assert!(matches!(result, Err(LinuxError::CommandLineNul)));
}

#[test]
fn unsuitable_kernels_are_refused() {
    let good = bzimage(&lz4(&executable(PREFERRED, PREFERRED, b"x", 1)));
    for (at, value) in [
        (offset::LOAD_FLAGS, 0),
        (offset::RELOCATABLE, 0),
        (offset::XLOADFLAGS, 0),
        (offset::VERSION, 0),
        (offset::KERNEL_ALIGNMENT, 3),
    ] {
        let mut kernel = good.clone();
        kernel[at] = value;
        assert!(
            matches!(try_load(&image(&kernel)), Err(LinuxError::Unsupported { .. })),
            "{at:#x}"
        );
    }
    assert!(matches!(try_load(&image(b"")), Err(LinuxError::Format)));
    assert!(matches!(try_load(&image(b"\x7fELF")), Err(LinuxError::Format)));
}

#[test]
fn damaged_headers_never_panic() {
    let good = bzimage(&lz4(&executable(PREFERRED, PREFERRED, b"x", 1)));
    for at in 0x1f1..0x268 {
        for value in [0, 1, 0x7f, 0xff] {
            let mut kernel = good.clone();
            kernel[at] = value;
            let _ = try_load(&image(&kernel));
        }
    }
    for len in (0..good.len()).step_by(61) {
        let _ = try_load(&image(&good[..len]));
    }
}

#[test]
fn kernels_larger_than_memory_are_errors() {
    let mut kernel = bzimage(b"\x89LZO");
    kernel[offset::INIT_SIZE..offset::INIT_SIZE + 4].fill(0xff);
    assert!(matches!(try_load(&image(&kernel)), Err(LinuxError::NoRoom { what: "Kernel", .. })));
}
