//! Reading kernel images: formats that are not tied to one architecture's boot protocol.
//!
//! Images come from packages and from users: every length and offset in them is checked before it is used.

pub mod elf;
pub mod payload;
pub mod zbi;

/// Reads a little-endian `u16` at `offset`, if it is inside `bytes`.
pub fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(offset..)?.first_chunk()?))
}

/// Reads a little-endian `u32` at `offset`, if it is inside `bytes`.
pub fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(offset..)?.first_chunk()?))
}

/// Reads a little-endian `u64` at `offset`, if it is inside `bytes`.
pub fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(offset..)?.first_chunk()?))
}
