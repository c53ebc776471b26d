//! 64-bit little-endian ELF executables (System V gABI, chapter 4 and 5), as far as loading a kernel needs.

use super::{u16_at, u32_at, u64_at};
use std::ops::Range;

/// `e_machine` of x86-64.
pub const MACHINE_X86_64: u16 = 62;

const MAGIC: &[u8] = b"\x7fELF";
const CLASS_64: u8 = 2;
const DATA_LITTLE_ENDIAN: u8 = 1;
const PROGRAM_HEADER_SIZE: u16 = 56;
const SEGMENT_LOAD: u32 = 1;

/// What is wrong with an ELF file.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ElfError {
    /// Not a 64-bit little-endian ELF file.
    #[error("Not a 64-bit little-endian ELF file")]
    Magic,
    /// A header lies outside the file, or has an impossible size.
    #[error("ELF headers are truncated or malformed")]
    Header,
    /// A segment's contents lie outside the file, or its address range is impossible.
    #[error("ELF segment {index} is truncated or malformed")]
    Segment {
        /// Index among all program headers.
        index: usize,
    },
    /// Nothing to load.
    #[error("ELF file without loadable segments")]
    Empty,
}

/// A piece of the file and where it belongs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// Index among all program headers.
    pub index: usize,
    /// Physical address of the first byte.
    pub address: u64,
    /// Bytes of the file; the rest of the segment up to `memory_size` is zero.
    pub file: Range<usize>,
    /// Size in memory, in bytes; at least the size in the file.
    pub memory_size: u64,
}

/// A parsed executable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Elf {
    /// `e_machine`.
    pub machine: u16,
    /// Entry point as the file gives it.
    pub entry: u64,
    /// Loadable segments in file order.
    pub segments: Vec<Segment>,
}

impl Elf {
    /// Whether `image` starts like an ELF file.
    pub fn detect(image: &[u8]) -> bool {
        image.starts_with(MAGIC)
    }

    /// Parses the headers of `image`.
    ///
    /// # Errors
    ///
    /// [`ElfError`]; every returned segment lies inside `image`.
    pub fn parse(image: &[u8]) -> Result<Self, ElfError> {
        let elf = Self::parse_headers(image)?;
        let outside = |segment: &Segment| segment.file.end > image.len();
        match elf.segments.iter().find(|segment| outside(segment)) {
            Some(segment) => Err(ElfError::Segment { index: segment.index }),
            None => Ok(elf),
        }
    }

    /// Parses the headers at the start of a file, `head`. Segments may lie beyond it.
    ///
    /// # Errors
    ///
    /// [`ElfError`]
    pub fn parse_headers(head: &[u8]) -> Result<Self, ElfError> {
        if !Self::detect(head)
            || head.get(4) != Some(&CLASS_64)
            || head.get(5) != Some(&DATA_LITTLE_ENDIAN)
        {
            return Err(ElfError::Magic);
        }
        let machine = u16_at(head, 18).ok_or(ElfError::Header)?;
        let entry = u64_at(head, 24).ok_or(ElfError::Header)?;
        let table = u64_at(head, 32)
            .and_then(|offset| usize::try_from(offset).ok())
            .ok_or(ElfError::Header)?;
        let size = u16_at(head, 54).ok_or(ElfError::Header)?;
        let count = usize::from(u16_at(head, 56).ok_or(ElfError::Header)?);
        if size != PROGRAM_HEADER_SIZE {
            return Err(ElfError::Header);
        }
        let end = table.checked_add(count * usize::from(size)).ok_or(ElfError::Header)?;
        let headers = head.get(table..end).ok_or(ElfError::Header)?;
        let mut segments = Vec::new();
        for (index, header) in headers.chunks_exact(usize::from(size)).enumerate() {
            if u32_at(header, 0) == Some(SEGMENT_LOAD) {
                segments.push(segment(index, header).ok_or(ElfError::Segment { index })?);
            }
        }
        if segments.is_empty() {
            return Err(ElfError::Empty);
        }
        Ok(Self { machine, entry, segments })
    }

    /// Lowest and highest physical address of all segments.
    pub fn physical_range(&self) -> Range<u64> {
        let start = self.segments.iter().map(|segment| segment.address).min().unwrap_or(0);
        let end = self
            .segments
            .iter()
            .map(|segment| segment.address + segment.memory_size)
            .max()
            .unwrap_or(0);
        start..end
    }
}

fn segment(index: usize, header: &[u8]) -> Option<Segment> {
    let offset = usize::try_from(u64_at(header, 8)?).ok()?;
    let address = u64_at(header, 24)?;
    let file_size = u64_at(header, 32)?;
    let memory_size = u64_at(header, 40)?;
    let end = offset.checked_add(usize::try_from(file_size).ok()?)?;
    address.checked_add(memory_size)?;
    (file_size <= memory_size).then_some(Segment { index, address, file: offset..end, memory_size })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A file with one segment of `data` for `address`, `memory_size` bytes long.
    pub(crate) fn executable(entry: u64, address: u64, data: &[u8], memory_size: u64) -> Vec<u8> {
        let mut file = vec![0; 120];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        file[18..20].copy_from_slice(&MACHINE_X86_64.to_le_bytes());
        file[24..32].copy_from_slice(&entry.to_le_bytes());
        file[32..40].copy_from_slice(&64u64.to_le_bytes());
        file[54..56].copy_from_slice(&56u16.to_le_bytes());
        file[56..58].copy_from_slice(&1u16.to_le_bytes());
        file[64..68].copy_from_slice(&SEGMENT_LOAD.to_le_bytes());
        file[72..80].copy_from_slice(&120u64.to_le_bytes());
        file[88..96].copy_from_slice(&address.to_le_bytes());
        file[96..104].copy_from_slice(&(data.len() as u64).to_le_bytes());
        file[104..112].copy_from_slice(&memory_size.to_le_bytes());
        file.extend_from_slice(data);
        file
    }

    #[test]
    fn segments_are_found() {
        let file = executable(0x10_0010, 0x10_0000, b"code", 0x1000);
        let elf = Elf::parse(&file).unwrap();
        assert_eq!(elf.entry, 0x10_0010);
        assert_eq!(
            elf.segments,
            [Segment { index: 0, address: 0x10_0000, file: 120..124, memory_size: 0x1000 }]
        );
        assert_eq!(elf.physical_range(), 0x10_0000..0x10_1000);
    }

    #[test]
    fn truncation_anywhere_is_an_error() {
        let file = executable(0, 0, b"code", 4);
        for len in 0..file.len() {
            assert!(Elf::parse(&file[..len]).is_err(), "{len}");
        }
    }

    #[test]
    fn impossible_sizes_are_errors() {
        for (offset, what) in
            [(32, "table"), (72, "file offset"), (96, "file size"), (104, "memory size")]
        {
            let mut file = executable(0, u64::MAX - 2, b"code", 2);
            file[offset..offset + 8].fill(0xff);
            assert!(Elf::parse(&file).is_err(), "{what}");
        }
    }

    #[test]
    fn any_byte_may_be_anything() {
        let file = executable(0x10_0010, 0x10_0000, b"code", 0x1000);
        for offset in 0..120 {
            for value in [0, 1, 0x7f, 0x80, 0xff] {
                let mut changed = file.clone();
                changed[offset] = value;
                if let Ok(elf) = Elf::parse(&changed) {
                    assert!(elf.segments.iter().all(|segment| segment.file.end <= changed.len()));
                }
            }
        }
    }
}
