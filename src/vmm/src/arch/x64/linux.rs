//! Loading Linux by the x86 boot protocol's 64-bit entry (kernel documentation, "The Linux/x86 Boot Protocol").
//!
//! A bzImage is a small decompressor around a compressed `vmlinux`. Unpacking it here, at native speed, saves the guest
//! seconds; where anything about the payload is unknown, the bzImage is entered as it is and unpacks itself.

use super::memory_map::{self, E820Entry};
use crate::arch::Entry;
use crate::loader::elf::{Elf, MACHINE_X86_64, Segment};
use crate::loader::{payload, u16_at, u32_at, u64_at};
use crate::memory::{GuestMemory, MemoryError, MemoryLayout, PAGE_SIZE};
use std::io;
use std::ops::Range;

/// Where a bzImage that unpacks itself is put.
const PLAIN_ADDRESS: u64 = 0x20_0000;
/// Boot parameters ("zero page"), in low RAM, where nothing else is yet.
const ZERO_PAGE: u64 = 0x1_0000;
/// The command line, one page.
const COMMAND_LINE: u64 = 0x1_1000;
/// Where the initial RAM disk goes if there is room.
const PREFERRED_RAMDISK: u64 = 0x800_0000;
/// Default of `init_size` for a `vmlinux` without a setup header: what follows its segments.
const ELF_SLACK: u64 = 1 << 20;

const SECTOR: usize = 512;
const BOOT_FLAG: u16 = 0xaa55;
const HEADER_MAGIC: u32 = 0x5372_6448; // "HdrS"
const LOADED_HIGH: u8 = 1 << 0;
const XLF_KERNEL_64: u16 = 1 << 0;
const XLF_CAN_BE_LOADED_ABOVE_4G: u16 = 1 << 1;
/// Offset of the 64-bit entry from the start of the protected-mode code.
const ENTRY_64: u64 = 0x200;
const MIN_VERSION: u16 = 0x020c;
const MAX_RAMDISK_ADDRESS: u64 = 0x7fff_ffff;
const SETUP_DTB: u32 = 2;
const SETUP_DATA_HEADER: usize = 16;
const FDT_MAGIC: [u8; 4] = [0xd0, 0x0d, 0xfe, 0xed];
/// A bootloader without an assigned identifier.
const LOADER_UNDEFINED: u8 = 0xff;

/// Offsets in the zero page ("The real-mode kernel header"; `struct boot_params`).
mod offset {
    pub(super) const ACPI_RSDP: usize = 0x070;
    pub(super) const EXT_RAMDISK_IMAGE: usize = 0x0c0;
    pub(super) const EXT_RAMDISK_SIZE: usize = 0x0c4;
    pub(super) const E820_COUNT: usize = 0x1e8;
    pub(super) const SETUP_SECTS: usize = 0x1f1;
    pub(super) const BOOT_FLAG: usize = 0x1fe;
    pub(super) const JUMP_LENGTH: usize = 0x201;
    pub(super) const HEADER: usize = 0x202;
    pub(super) const VERSION: usize = 0x206;
    pub(super) const LOADER: usize = 0x210;
    pub(super) const LOAD_FLAGS: usize = 0x211;
    pub(super) const RAMDISK_IMAGE: usize = 0x218;
    pub(super) const RAMDISK_SIZE: usize = 0x21c;
    pub(super) const COMMAND_LINE: usize = 0x228;
    pub(super) const KERNEL_ALIGNMENT: usize = 0x230;
    pub(super) const RELOCATABLE: usize = 0x234;
    pub(super) const XLOADFLAGS: usize = 0x236;
    pub(super) const COMMAND_LINE_SIZE: usize = 0x238;
    pub(super) const PAYLOAD_OFFSET: usize = 0x248;
    pub(super) const PAYLOAD_LENGTH: usize = 0x24c;
    pub(super) const SETUP_DATA: usize = 0x250;
    pub(super) const PREF_ADDRESS: usize = 0x258;
    pub(super) const INIT_SIZE: usize = 0x260;
    pub(super) const E820_TABLE: usize = 0x2d0;
}

/// Why Linux could not be loaded. The images are at fault, or memory is too small for them.
#[derive(Debug, thiserror::Error)]
pub enum LinuxError {
    /// Neither a bzImage nor a `vmlinux`.
    #[error("Kernel is neither an x86 bzImage nor an x86-64 ELF file")]
    Format,
    /// The file ends inside its headers or its code.
    #[error("Kernel image is truncated")]
    Truncated,
    /// The bzImage cannot be entered in 64-bit mode, is not relocatable, or too old.
    #[error("Kernel of boot protocol {version:#x} cannot be booted: {reason}")]
    Unsupported {
        /// The boot protocol version.
        version: u16,
        /// What is missing.
        reason: &'static str,
    },
    /// A piece has no place in RAM.
    #[error("{what} of {len:#x} bytes does not fit into guest memory")]
    NoRoom {
        /// Which piece.
        what: &'static str,
        /// Its size in bytes.
        len: u64,
    },
    /// The command line is longer than the kernel takes.
    #[error("Command line of {len} bytes exceeds the kernel's limit of {limit}")]
    CommandLine {
        /// Its length without the final NUL.
        len: usize,
        /// The limit.
        limit: usize,
    },
    /// The command line contains a NUL.
    #[error("Command line contains a NUL byte")]
    CommandLineNul,
    /// The device tree overlay is not a flattened device tree.
    #[error("Device tree overlay is not a flattened device tree")]
    DeviceTree,
    /// Guest memory did not take a piece.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

/// What to boot.
pub struct LinuxImage<'a> {
    /// A bzImage, or a `vmlinux`.
    pub kernel: &'a [u8],
    /// The initial RAM disk.
    pub ramdisk: Option<&'a [u8]>,
    /// The command line, without a NUL.
    pub command_line: &'a str,
    /// A flattened device tree, handed over as setup data.
    pub device_tree: Option<&'a [u8]>,
}

/// Loads `image` into `memory`, which must be fresh (zero-filled), and returns where the first vCPU starts.
///
/// # Errors
///
/// [`LinuxError`]
pub fn load(
    memory: &dyn GuestMemory,
    layout: &MemoryLayout,
    e820: &[E820Entry],
    image: &LinuxImage<'_>,
) -> Result<Entry, LinuxError> {
    let mut loader = Loader { memory, layout, zero_page: [0; PAGE_SIZE as usize] };
    let kernel = if Elf::detect(image.kernel) {
        loader.load_elf(image.kernel)?
    } else {
        loader.load_bzimage(image.kernel)?
    };
    loader.load_command_line(image.command_line, kernel.command_line_limit)?;
    let ramdisk = loader.load_ramdisk(image.ramdisk, &kernel)?;
    loader.load_device_tree(image.device_tree, &kernel, ramdisk)?;
    loader.finish(e820)?;
    Ok(Entry { address: kernel.entry, argument: ZERO_PAGE })
}

struct LoadedKernel {
    entry: u64,
    /// Memory the kernel uses before it knows about its surroundings.
    occupied: Range<u64>,
    command_line_limit: usize,
    max_ramdisk_address: u64,
}

/// The setup header of a bzImage, checked.
struct SetupHeader<'a> {
    bytes: &'a [u8],
    protected_mode: usize,
    preferred: u64,
    init_size: u64,
    command_line_limit: usize,
    max_ramdisk_address: u64,
}

impl<'a> SetupHeader<'a> {
    fn parse(image: &'a [u8]) -> Result<Self, LinuxError> {
        if u16_at(image, offset::BOOT_FLAG) != Some(BOOT_FLAG)
            || u32_at(image, offset::HEADER) != Some(HEADER_MAGIC)
        {
            return Err(LinuxError::Format);
        }
        let byte = |offset: usize| image.get(offset).copied().ok_or(LinuxError::Truncated);
        let version = u16_at(image, offset::VERSION).ok_or(LinuxError::Truncated)?;
        let require = |condition: bool, reason| {
            if condition { Ok(()) } else { Err(LinuxError::Unsupported { version, reason }) }
        };
        require(version >= MIN_VERSION, "64-bit entry needs protocol 2.12")?;
        require(byte(offset::LOAD_FLAGS)? & LOADED_HIGH != 0, "not loaded high")?;
        require(byte(offset::RELOCATABLE)? != 0, "not relocatable")?;
        let xloadflags = u16_at(image, offset::XLOADFLAGS).ok_or(LinuxError::Truncated)?;
        require(xloadflags & XLF_KERNEL_64 != 0, "no 64-bit entry")?;
        let alignment = u32_at(image, offset::KERNEL_ALIGNMENT).ok_or(LinuxError::Truncated)?;
        require(alignment.is_power_of_two(), "alignment is not a power of two")?;
        let sectors = match byte(offset::SETUP_SECTS)? {
            0 => 4,
            sectors => usize::from(sectors),
        };
        let end = offset::HEADER + usize::from(byte(offset::JUMP_LENGTH)?);
        let bytes = image.get(offset::SETUP_SECTS..end).ok_or(LinuxError::Truncated)?;
        let above_4g = xloadflags & XLF_CAN_BE_LOADED_ABOVE_4G != 0;
        Ok(Self {
            bytes,
            protected_mode: (sectors + 1) * SECTOR,
            preferred: u64_at(image, offset::PREF_ADDRESS).ok_or(LinuxError::Truncated)?,
            init_size: u64::from(u32_at(image, offset::INIT_SIZE).ok_or(LinuxError::Truncated)?),
            command_line_limit: u32_at(image, offset::COMMAND_LINE_SIZE)
                .ok_or(LinuxError::Truncated)? as usize,
            max_ramdisk_address: if above_4g { u64::MAX } else { MAX_RAMDISK_ADDRESS },
        })
    }

    /// The compressed kernel inside `image`.
    fn payload(&self, image: &'a [u8]) -> Option<&'a [u8]> {
        let start =
            self.protected_mode.checked_add(u32_at(image, offset::PAYLOAD_OFFSET)? as usize)?;
        let end = start.checked_add(u32_at(image, offset::PAYLOAD_LENGTH)? as usize)?;
        image.get(start..end)
    }
}

struct Loader<'a> {
    memory: &'a dyn GuestMemory,
    layout: &'a MemoryLayout,
    zero_page: [u8; PAGE_SIZE as usize],
}

impl Loader<'_> {
    fn load_bzimage(&mut self, image: &[u8]) -> Result<LoadedKernel, LinuxError> {
        let header = SetupHeader::parse(image)?;
        self.put(offset::SETUP_SECTS, header.bytes)?;
        let entry = match self.load_payload(image, &header) {
            Ok(entry) => entry,
            Err(reason) => {
                tracing::info!(%reason, "The kernel will unpack itself");
                self.load_plain(image, &header)?
            }
        };
        let start = header.preferred.min(PLAIN_ADDRESS);
        let plain_end = PLAIN_ADDRESS.saturating_add(image.len() as u64);
        let end = header.preferred.saturating_add(header.init_size).max(plain_end);
        Ok(LoadedKernel {
            entry,
            occupied: start..end,
            command_line_limit: header.command_line_limit,
            max_ramdisk_address: header.max_ramdisk_address,
        })
    }

    /// Unpacks the payload to the address the kernel was linked for, and returns the address of `startup_64`. What it left
    /// there when it fails does not disturb a kernel that unpacks itself to the same place.
    fn load_payload(&self, image: &[u8], header: &SetupHeader<'_>) -> Result<u64, String> {
        let payload = header.payload(image).ok_or("its payload lies outside the file")?;
        let mut segments = SegmentWriter { loader: self, header, elf: None, position: 0 };
        payload::unpack(payload, &mut segments).map_err(|error| error.to_string())?;
        segments.finish()
    }

    /// Checks that the segments have a place and the entry is among them.
    fn check_segments(&self, elf: &Elf) -> Result<(), LinuxError> {
        if !elf.physical_range().contains(&elf.entry) {
            return Err(LinuxError::Format);
        }
        let lost = |segment: &&Segment| !self.layout.contains(segment.address, segment.memory_size);
        match elf.segments.iter().find(lost) {
            Some(segment) => {
                Err(LinuxError::NoRoom { what: "Kernel segment", len: segment.memory_size })
            }
            None => Ok(()),
        }
    }

    /// Puts `data`, which is at `position` of the file, where the segments want it.
    fn load_segments(&self, elf: &Elf, position: usize, data: &[u8]) -> Result<(), MemoryError> {
        for segment in &elf.segments {
            let start = segment.file.start.max(position);
            let end = segment.file.end.min(position + data.len());
            if start < end {
                let address = segment.address + (start - segment.file.start) as u64;
                self.memory.write(address, &data[start - position..end - position])?;
            }
        }
        Ok(())
    }

    fn load_plain(&self, image: &[u8], header: &SetupHeader<'_>) -> Result<u64, LinuxError> {
        let code = image.get(header.protected_mode..).filter(|code| code.len() as u64 > ENTRY_64);
        let code = code.ok_or(LinuxError::Truncated)?;
        let len = code.len() as u64;
        let target_fits = self.layout.contains(header.preferred, header.init_size);
        if !self.layout.contains(PLAIN_ADDRESS, len) || !target_fits {
            return Err(LinuxError::NoRoom { what: "Kernel", len: len.max(header.init_size) });
        }
        self.memory.write(PLAIN_ADDRESS, code)?;
        Ok(PLAIN_ADDRESS + ENTRY_64)
    }

    /// A `vmlinux` has no setup header, so one is made up.
    fn load_elf(&mut self, image: &[u8]) -> Result<LoadedKernel, LinuxError> {
        let elf = Elf::parse(image).map_err(|_| LinuxError::Format)?;
        if elf.machine != MACHINE_X86_64 {
            return Err(LinuxError::Format);
        }
        self.check_segments(&elf)?;
        self.load_segments(&elf, 0, image)?;
        let range = elf.physical_range();
        self.put(offset::BOOT_FLAG, &BOOT_FLAG.to_le_bytes())?;
        self.put(offset::HEADER, &HEADER_MAGIC.to_le_bytes())?;
        self.put(offset::VERSION, &MIN_VERSION.to_le_bytes())?;
        self.put(offset::LOAD_FLAGS, &[LOADED_HIGH])?;
        self.put(offset::KERNEL_ALIGNMENT, &(1u32 << 24).to_le_bytes())?;
        Ok(LoadedKernel {
            entry: elf.entry,
            occupied: range.start..range.end.saturating_add(ELF_SLACK),
            command_line_limit: 2047,
            max_ramdisk_address: u64::MAX,
        })
    }

    fn load_command_line(&mut self, line: &str, kernel_limit: usize) -> Result<(), LinuxError> {
        let limit = kernel_limit.min(PAGE_SIZE as usize - 1);
        if line.len() > limit {
            return Err(LinuxError::CommandLine { len: line.len(), limit });
        }
        if line.as_bytes().contains(&0) {
            return Err(LinuxError::CommandLineNul);
        }
        let mut bytes = line.as_bytes().to_vec();
        bytes.push(0);
        self.memory.write(COMMAND_LINE, &bytes)?;
        self.put(offset::COMMAND_LINE, &(COMMAND_LINE as u32).to_le_bytes())
    }

    /// Places the RAM disk at its usual address, or as high as it fits, and returns that address (or the usual one).
    fn load_ramdisk(
        &mut self,
        ramdisk: Option<&[u8]>,
        kernel: &LoadedKernel,
    ) -> Result<u64, LinuxError> {
        let Some(ramdisk) = ramdisk.filter(|ramdisk| !ramdisk.is_empty()) else {
            return Ok(PREFERRED_RAMDISK);
        };
        let len = ramdisk.len() as u64;
        let what = "Initial RAM disk";
        let address =
            self.place(len, PREFERRED_RAMDISK, kernel).ok_or(LinuxError::NoRoom { what, len })?;
        self.memory.write(address, ramdisk)?;
        self.put(offset::RAMDISK_IMAGE, &(address as u32).to_le_bytes())?;
        self.put(offset::RAMDISK_SIZE, &(len as u32).to_le_bytes())?;
        self.put(offset::EXT_RAMDISK_IMAGE, &((address >> 32) as u32).to_le_bytes())?;
        self.put(offset::EXT_RAMDISK_SIZE, &((len >> 32) as u32).to_le_bytes())?;
        Ok(address)
    }

    /// A page-aligned place for `len` bytes outside the kernel: at `preferred`, or at the end of a RAM region.
    fn place(&self, len: u64, preferred: u64, kernel: &LoadedKernel) -> Option<u64> {
        let free = |start: u64| {
            start.checked_add(len).is_some_and(|end| {
                let clear_of_kernel = end <= kernel.occupied.start || start >= kernel.occupied.end;
                clear_of_kernel
                    && start >= memory_map::BIOS_RESERVED.end
                    && end - 1 <= kernel.max_ramdisk_address
                    && self.layout.contains(start, len)
            })
        };
        if free(preferred) {
            return Some(preferred);
        }
        let ends = self
            .layout
            .ram()
            .iter()
            .map(|region| region.end.min(kernel.max_ramdisk_address.saturating_add(1)));
        ends.filter_map(|end| Some(end.checked_sub(len)? / PAGE_SIZE * PAGE_SIZE))
            .find(|start| free(*start))
    }

    /// Puts the device tree in front of the RAM disk, as a node of the setup data list.
    fn load_device_tree(
        &mut self,
        tree: Option<&[u8]>,
        kernel: &LoadedKernel,
        ramdisk: u64,
    ) -> Result<(), LinuxError> {
        let Some(tree) = tree else { return Ok(()) };
        let declared = tree
            .get(4..)
            .and_then(<[u8]>::first_chunk)
            .map(|size| u32::from_be_bytes(*size) as usize);
        if !tree.starts_with(&FDT_MAGIC) || declared.is_none_or(|size| size > tree.len()) {
            return Err(LinuxError::DeviceTree);
        }
        let len = (tree.len() + SETUP_DATA_HEADER) as u64;
        let below_ramdisk = ramdisk.saturating_sub(len) / PAGE_SIZE * PAGE_SIZE;
        let what = "Device tree";
        let address =
            self.place(len, below_ramdisk, kernel).ok_or(LinuxError::NoRoom { what, len })?;
        let mut node = vec![0; 8];
        node.extend_from_slice(&SETUP_DTB.to_le_bytes());
        node.extend_from_slice(&(tree.len() as u32).to_le_bytes());
        node.extend_from_slice(tree);
        self.memory.write(address, &node)?;
        self.put(offset::SETUP_DATA, &address.to_le_bytes())
    }

    fn finish(&mut self, e820: &[E820Entry]) -> Result<(), LinuxError> {
        self.put(offset::LOADER, &[LOADER_UNDEFINED])?;
        self.put(offset::ACPI_RSDP, &memory_map::ACPI_RSDP.to_le_bytes())?;
        self.put(offset::E820_COUNT, &[e820.len() as u8])?;
        for (index, entry) in e820.iter().enumerate() {
            self.put(offset::E820_TABLE + index * 20, &entry.to_bytes())?;
        }
        Ok(self.memory.write(ZERO_PAGE, &self.zero_page)?)
    }

    fn put(&mut self, offset: usize, bytes: &[u8]) -> Result<(), LinuxError> {
        let slot =
            offset.checked_add(bytes.len()).and_then(|end| self.zero_page.get_mut(offset..end));
        slot.ok_or(LinuxError::Truncated)?.copy_from_slice(bytes);
        Ok(())
    }
}

/// Puts the segments of an unpacked kernel into memory as the file comes, so that nobody has to hold all of it.
struct SegmentWriter<'a> {
    loader: &'a Loader<'a>,
    header: &'a SetupHeader<'a>,
    /// Known from the first piece on.
    elf: Option<Elf>,
    /// Bytes that came.
    position: usize,
}

impl SegmentWriter<'_> {
    /// Parses the headers at the start of the file and checks them against those of the bzImage.
    fn check_headers(&self, head: &[u8]) -> Result<Elf, String> {
        let elf = Elf::parse_headers(head).map_err(|error| error.to_string())?;
        let SetupHeader { preferred, init_size, .. } = *self.header;
        let range = elf.physical_range();
        let limit = preferred.checked_add(init_size).ok_or("its size is impossible")?;
        if elf.machine != MACHINE_X86_64 || range.start != preferred || range.end > limit {
            return Err(format!("its segments {range:#x?} are not where the header promises"));
        }
        if !self.loader.layout.contains(preferred, init_size) {
            return Err(format!("no RAM at its preferred address {preferred:#x}"));
        }
        self.loader.check_segments(&elf).map_err(|error| error.to_string())?;
        Ok(elf)
    }

    /// The entry, if all segments came.
    fn finish(self) -> Result<u64, String> {
        let elf = self.elf.ok_or("its payload is empty")?;
        if elf.segments.iter().any(|segment| segment.file.end > self.position) {
            return Err("its payload is truncated".to_owned());
        }
        Ok(elf.entry)
    }
}

impl io::Write for SegmentWriter<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let elf = match self.elf.take() {
            Some(elf) => elf,
            None => self.check_headers(data).map_err(io::Error::other)?,
        };
        let loaded = self.loader.load_segments(&elf, self.position, data);
        self.elf = Some(elf);
        loaded.map_err(io::Error::other)?;
        self.position += data.len();
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
#[path = "linux_test.rs"]
mod tests;
