//! The data image that the boot loader gives: a container of items, each with a header of 32 bytes and a payload padded
//! to eight.

use crate::println;
use core::fmt;

const HEADER: usize = 32;
const CONTAINER: u32 = u32::from_le_bytes(*b"BOOT");
const COMMAND_LINE: u32 = u32::from_le_bytes(*b"CMDL");
const KERNEL_DRIVER: u32 = u32::from_le_bytes(*b"KDRV");
const MEMORY_CONFIG: u32 = u32::from_le_bytes(*b"MEMC");
const ACPI_RSDP: u32 = u32::from_le_bytes(*b"RSDP");
const PLATFORM_ID: u32 = u32::from_le_bytes(*b"PLID");
const E820_TABLE: u32 = u32::from_le_bytes(*b"E820");
const DRIVER_I8250_PIO: u32 = u32::from_le_bytes(*b"8250");
const MAGIC: u32 = 0xb578_1729;
const CONTAINER_MAGIC: u32 = 0x868c_f7e6;
/// The type of a range in the memory map.
const RAM: u32 = 1;

/// A data image.
pub struct Image(&'static [u8]);

/// One item.
#[derive(Clone, Copy)]
pub struct Item {
    kind: u32,
    extra: u32,
    payload: &'static [u8],
}

/// A range of the memory map.
pub struct Range {
    pub start: u64,
    pub length: u64,
    kind: u32,
}

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).map_or(0, |word| u32::from_le_bytes(word.try_into().unwrap()))
}

fn quad(bytes: &[u8], at: usize) -> u64 {
    u64::from(word(bytes, at + 4)) << 32 | u64::from(word(bytes, at))
}

impl Image {
    /// The image at `address`.
    ///
    /// # Safety
    /// An image must be there, and stay.
    ///
    /// # Panics
    /// Where there is none.
    pub unsafe fn new(address: usize) -> Self {
        // SAFETY: the caller's promise.
        let header = unsafe { core::slice::from_raw_parts(address as *const u8, HEADER) };
        assert!(
            word(header, 0) == CONTAINER
                && word(header, 8) == CONTAINER_MAGIC
                && word(header, 24) == MAGIC,
            "no boot image at {address:#x}"
        );
        let len = word(header, 4) as usize + HEADER;
        // SAFETY: as above.
        Self(unsafe { core::slice::from_raw_parts(address as *const u8, len) })
    }

    /// Its size with the container's header, in bytes.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The items, in their order.
    ///
    /// # Panics
    /// Where an item's header is malformed.
    pub fn items(&self) -> impl Iterator<Item = Item> + use<> {
        let mut rest = &self.0[HEADER..];
        core::iter::from_fn(move || {
            if rest.is_empty() {
                return None;
            }
            assert!(word(rest, 24) == MAGIC, "a boot image item without magic");
            let length = word(rest, 4) as usize;
            let payload = rest.get(HEADER..HEADER + length).expect("a boot image item is cut off");
            let item = Item { kind: word(rest, 0), extra: word(rest, 8), payload };
            rest = rest.get((HEADER + length).next_multiple_of(8)..).unwrap_or_default();
            Some(item)
        })
    }

    fn find(&self, kind: u32) -> Option<Item> {
        self.items().filter(|item| item.kind == kind).last()
    }

    /// Prints every item.
    pub fn print(&self) {
        for item in self.items() {
            println!("{item}");
            for range in item.memory() {
                println!("  {range}");
            }
        }
    }

    /// Where ACPI begins.
    pub fn acpi_rsdp(&self) -> Option<usize> {
        self.find(ACPI_RSDP).map(|item| quad(item.payload, 0) as usize)
    }

    /// The memory map.
    pub fn memory(&self) -> impl Iterator<Item = Range> + use<> {
        self.find(MEMORY_CONFIG).into_iter().flat_map(|item| item.memory())
    }

    /// How much RAM there is, in bytes.
    pub fn ram(&self) -> u64 {
        self.memory().filter(|range| range.kind == RAM).map(|range| range.length).sum()
    }

    /// The kernel's command line; each item of that type adds to it.
    pub fn command_lines(&self) -> impl Iterator<Item = &'static str> + use<> {
        self.items().filter(|item| item.kind == COMMAND_LINE).map(|item| item.text())
    }

    /// Whether the command line has this word.
    pub fn command_line_has(&self, option: &str) -> bool {
        self.command_lines().flat_map(str::split_ascii_whitespace).any(|word| word == option)
    }
}

impl Item {
    fn text(&self) -> &'static str {
        let text = core::str::from_utf8(self.payload).unwrap_or("(not UTF-8)");
        text.trim_end_matches('\0')
    }

    fn memory(self) -> impl Iterator<Item = Range> {
        let payload = if self.kind == MEMORY_CONFIG { self.payload } else { &[] };
        payload.chunks_exact(24).map(|entry| Range {
            start: quad(entry, 0),
            length: quad(entry, 8),
            kind: word(entry, 16),
        })
    }
}

impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("item ")?;
        for byte in self.kind.to_le_bytes() {
            write!(f, "{}", if byte.is_ascii_graphic() { byte as char } else { '.' })?;
        }
        write!(f, ", {} bytes: ", self.payload.len())?;
        match self.kind {
            COMMAND_LINE => write!(f, "command line {:?}", self.text()),
            KERNEL_DRIVER if self.extra == DRIVER_I8250_PIO => write!(
                f,
                "8250 UART at port {:#x}, interrupt {}",
                word(self.payload, 0) & 0xffff,
                word(self.payload, 4)
            ),
            KERNEL_DRIVER => write!(f, "kernel driver {:#x}", self.extra),
            MEMORY_CONFIG => write!(f, "memory map of {} ranges", self.payload.len() / 24),
            ACPI_RSDP => write!(f, "ACPI root pointer at {:#x}", quad(self.payload, 0)),
            PLATFORM_ID => write!(
                f,
                "platform vendor {}, product {}",
                word(self.payload, 0),
                word(self.payload, 4)
            ),
            E820_TABLE => write!(f, "E820 map of {} ranges", self.payload.len() / 20),
            _ => write!(f, "type {:#x}, extra {:#x}", self.kind, self.extra),
        }
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            RAM => "RAM",
            2 => "peripheral",
            3 => "reserved",
            _ => "unknown",
        };
        write!(f, "{:#012x}..{:#012x} {kind}", self.start, self.start + self.length)
    }
}
