//! Zircon boot images (ZBI): a container of items, each with a 32-byte header and a payload padded to eight bytes.

use super::u32_at;

/// Size of a header, in bytes.
pub const HEADER_SIZE: usize = 32;
const ALIGNMENT: usize = 8;
const TYPE_CONTAINER: u32 = u32::from_le_bytes(*b"BOOT");
const CONTAINER_MAGIC: u32 = 0x868c_f7e6;
const ITEM_MAGIC: u32 = 0xb578_1729;
/// What the CRC field holds if the payload has no checksum.
const NO_CRC32: u32 = 0x4a87_e8d6;
const FLAGS_VERSION: u32 = 0x0001_0000;

/// Item types.
pub mod item_type {
    /// An x86-64 kernel.
    pub const KERNEL_X64: u32 = u32::from_le_bytes(*b"KRNL");
    /// The kernel command line, NUL-terminated.
    pub const COMMAND_LINE: u32 = u32::from_le_bytes(*b"CMDL");
    /// A device for the kernel; the header's `extra` says which.
    pub const KERNEL_DRIVER: u32 = u32::from_le_bytes(*b"KDRV");
    /// The memory map.
    pub const MEMORY_CONFIG: u32 = u32::from_le_bytes(*b"MEMC");
    /// Guest-physical address of the ACPI root pointer.
    pub const ACPI_RSDP: u32 = u32::from_le_bytes(*b"RSDP");
}

/// What is wrong with a boot image.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ZbiError {
    /// Not a container.
    #[error("Not a Zircon boot image")]
    Magic,
    /// The container or an item is longer than the file.
    #[error("Zircon boot image is truncated at offset {offset:#x}")]
    Truncated {
        /// Where.
        offset: usize,
    },
    /// An item's header is malformed.
    #[error("Zircon boot image has a malformed item at offset {offset:#x}")]
    Item {
        /// Where.
        offset: usize,
    },
    /// A payload is too long for a header to say.
    #[error("Zircon boot image outgrows 4 GiB")]
    TooLarge,
}

/// One item of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Item<'a> {
    /// Its type, see [`item_type`].
    pub kind: u32,
    /// Meaning depends on the type.
    pub extra: u32,
    /// Header and payload, without padding.
    pub bytes: &'a [u8],
}

impl<'a> Item<'a> {
    /// The payload.
    pub fn payload(&self) -> &'a [u8] {
        self.bytes.get(HEADER_SIZE..).unwrap_or_default()
    }
}

/// The items of the container `image`.
///
/// # Errors
///
/// [`ZbiError`]; every item lies inside `image`.
pub fn parse(image: &[u8]) -> Result<Vec<Item<'_>>, ZbiError> {
    let container = u32_at(image, 0) == Some(TYPE_CONTAINER)
        && u32_at(image, 8) == Some(CONTAINER_MAGIC)
        && u32_at(image, 24) == Some(ITEM_MAGIC);
    if !container {
        return Err(ZbiError::Magic);
    }
    let length = u32_at(image, 4).ok_or(ZbiError::Magic)? as usize;
    let end = length.checked_add(HEADER_SIZE).filter(|end| *end <= image.len());
    let end = end.ok_or(ZbiError::Truncated { offset: 0 })?;
    let mut items = Vec::new();
    let mut offset = HEADER_SIZE;
    while offset < end {
        let rest = image.get(offset..end).ok_or(ZbiError::Truncated { offset })?;
        let header = rest.get(..HEADER_SIZE).ok_or(ZbiError::Truncated { offset })?;
        let field = |at| u32_at(header, at).ok_or(ZbiError::Truncated { offset });
        if field(24)? != ITEM_MAGIC {
            return Err(ZbiError::Item { offset });
        }
        let size =
            (field(4)? as usize).checked_add(HEADER_SIZE).ok_or(ZbiError::Item { offset })?;
        let bytes = rest.get(..size).ok_or(ZbiError::Truncated { offset })?;
        items.push(Item { kind: field(0)?, extra: field(8)?, bytes });
        offset += size.next_multiple_of(ALIGNMENT);
    }
    Ok(items)
}

/// A container under construction.
pub struct Builder {
    bytes: Vec<u8>,
}

impl Default for Builder {
    fn default() -> Self {
        Self { bytes: header(TYPE_CONTAINER, CONTAINER_MAGIC, 0) }
    }
}

impl Builder {
    /// Adds an item.
    ///
    /// # Errors
    ///
    /// [`ZbiError::TooLarge`]
    pub fn push(&mut self, kind: u32, extra: u32, payload: &[u8]) -> Result<(), ZbiError> {
        let length = u32::try_from(payload.len()).map_err(|_| ZbiError::TooLarge)?;
        self.bytes.extend_from_slice(&header(kind, extra, length));
        self.bytes.extend_from_slice(payload);
        self.align()
    }

    /// Adds an item of another container, header and all.
    ///
    /// # Errors
    ///
    /// [`ZbiError::TooLarge`]
    pub fn push_item(&mut self, item: &Item<'_>) -> Result<(), ZbiError> {
        self.bytes.extend_from_slice(item.bytes);
        self.align()
    }

    fn align(&mut self) -> Result<(), ZbiError> {
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGNMENT), 0);
        if u32::try_from(self.bytes.len()).is_err() { Err(ZbiError::TooLarge) } else { Ok(()) }
    }

    /// The finished container.
    pub fn finish(mut self) -> Vec<u8> {
        let length = (self.bytes.len() - HEADER_SIZE) as u32;
        self.bytes[4..8].copy_from_slice(&length.to_le_bytes());
        self.bytes
    }
}

fn header(kind: u32, extra: u32, length: u32) -> Vec<u8> {
    [kind, length, extra, FLAGS_VERSION, 0, 0, ITEM_MAGIC, NO_CRC32]
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container() -> Vec<u8> {
        let mut builder = Builder::default();
        builder.push(item_type::COMMAND_LINE, 0, b"a=b\0").unwrap();
        builder.push(item_type::KERNEL_DRIVER, 7, b"12345678").unwrap();
        builder.finish()
    }

    #[test]
    fn what_is_built_parses() {
        let container = container();
        assert_eq!(container.len() % 8, 0);
        let items = parse(&container).unwrap();
        assert_eq!(items.len(), 2);
        assert_eq!((items[0].kind, items[0].payload()), (item_type::COMMAND_LINE, &b"a=b\0"[..]));
        assert_eq!((items[1].extra, items[1].payload()), (7, &b"12345678"[..]));
        let mut copy = Builder::default();
        for item in &items {
            copy.push_item(item).unwrap();
        }
        assert_eq!(copy.finish(), container);
    }

    #[test]
    fn truncation_anywhere_is_an_error() {
        let container = container();
        for len in 0..container.len() {
            assert!(parse(&container[..len]).is_err(), "{len}");
        }
    }

    #[test]
    fn any_byte_may_be_anything() {
        let good = container();
        for offset in 0..good.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut changed = good.clone();
                changed[offset] = value;
                let _ = parse(&changed);
            }
        }
    }
}
