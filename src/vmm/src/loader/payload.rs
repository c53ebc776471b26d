//! Unpacking a compressed kernel on the host, where it runs at native speed instead of the guest's.
//!
//! The formats are those of Linux (`lib/decompress.c`), except LZO, which no well-kept crate reads: such a kernel
//! unpacks itself.

use std::io::{Read, Write};

/// Largest unpacked kernel, in bytes. Debian's are below 70 MB.
pub const MAX_UNPACKED: usize = 512 << 20;
/// What is unpacked at once where the format leaves the choice, in bytes; the headers of an ELF file fit.
const PIECE: usize = 1 << 20;
/// Block size of the legacy LZ4 frame format.
const LZ4_BLOCK: usize = 8 << 20;
const LZ4_LEGACY_MAGIC: [u8; 4] = [0x02, 0x21, 0x4c, 0x18];
/// Memory that an LZMA decoder may take, in KiB.
const LZMA_MEMORY_KIB: u32 = 256 << 10;

/// How a payload is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// gzip
    Gzip,
    /// bzip2
    Bzip2,
    /// LZMA alone (`.lzma`)
    Lzma,
    /// XZ
    Xz,
    /// LZ4, legacy frames
    Lz4,
    /// Zstandard
    Zstd,
}

/// Why a payload could not be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum PayloadError {
    /// The magic number is none of the formats.
    #[error("Kernel payload has an unknown compression")]
    Unknown,
    /// The data is damaged.
    #[error("Kernel payload is damaged: {0}")]
    Corrupt(#[from] std::io::Error),
    /// It unpacks to more than [`MAX_UNPACKED`].
    #[error("Kernel payload unpacks to more than {MAX_UNPACKED} bytes")]
    TooLarge,
}

impl Compression {
    /// Recognises the format of `payload` by its magic number.
    pub fn detect(payload: &[u8]) -> Option<Self> {
        Some(match *payload.first_chunk()? {
            [0x1f, 0x8b] => Self::Gzip,
            [b'B', b'Z'] => Self::Bzip2,
            [0x5d, 0x00] => Self::Lzma,
            [0xfd, b'7'] => Self::Xz,
            [0x02, 0x21] => Self::Lz4,
            [0x28, 0xb5] => Self::Zstd,
            _ => return None,
        })
    }
}

/// Unpacks `payload` into `sink`, in large pieces and in order. Linux's build appends the unpacked size to most formats; it
/// is ignored.
///
/// # Errors
///
/// [`PayloadError`], of which [`PayloadError::Corrupt`] is also what `sink` fails with.
pub fn unpack(payload: &[u8], sink: &mut impl Write) -> Result<(), PayloadError> {
    match Compression::detect(payload).ok_or(PayloadError::Unknown)? {
        Compression::Gzip => copy(flate2::read::GzDecoder::new(payload), sink),
        Compression::Bzip2 => copy(bzip2::read::BzDecoder::new(payload), sink),
        Compression::Lzma => {
            copy(lzma_rust2::LzmaReader::new_mem_limit(payload, LZMA_MEMORY_KIB, None)?, sink)
        }
        Compression::Xz => {
            copy(lzma_rust2::XzReader::new_mem_limit(payload, false, LZMA_MEMORY_KIB), sink)
        }
        Compression::Lz4 => unpack_lz4(payload, sink),
        Compression::Zstd => {
            let decoder =
                ruzstd::decoding::StreamingDecoder::new(payload).map_err(std::io::Error::other)?;
            copy(decoder, sink)
        }
    }
}

fn copy(mut reader: impl Read, sink: &mut impl Write) -> Result<(), PayloadError> {
    let mut piece = Vec::with_capacity(PIECE);
    let mut total = 0;
    loop {
        piece.clear();
        reader.by_ref().take(PIECE as u64).read_to_end(&mut piece)?;
        total += piece.len();
        if total > MAX_UNPACKED {
            return Err(PayloadError::TooLarge);
        }
        sink.write_all(&piece)?;
        if piece.len() < PIECE {
            return Ok(());
        }
    }
}

/// The legacy frame format: magic, then blocks of a little-endian length and data that unpacks to at most 8 MiB
/// (LZ4 frame format description, "Legacy frame").
fn unpack_lz4(payload: &[u8], sink: &mut impl Write) -> Result<(), PayloadError> {
    let corrupt = |what: &str| PayloadError::Corrupt(std::io::Error::other(what.to_owned()));
    let mut rest =
        payload.strip_prefix(&LZ4_LEGACY_MAGIC).ok_or_else(|| corrupt("not a legacy LZ4 frame"))?;
    let mut unpacked = vec![0; LZ4_BLOCK];
    let mut total = 0;
    // What is left after the last block is at most the appended size, four bytes.
    while let Some((length, blocks)) =
        rest.split_first_chunk().filter(|(_, blocks)| !blocks.is_empty())
    {
        let length = u32::from_le_bytes(*length) as usize;
        let block = blocks.get(..length).ok_or_else(|| corrupt("LZ4 block is truncated"))?;
        let written = lz4_flex::block::decompress_into(block, &mut unpacked)
            .map_err(|error| PayloadError::Corrupt(std::io::Error::other(error)))?;
        total += written;
        if total > MAX_UNPACKED {
            return Err(PayloadError::TooLarge);
        }
        sink.write_all(&unpacked[..written])?;
        rest = &blocks[length..];
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unpack(payload: &[u8]) -> Result<Vec<u8>, PayloadError> {
        let mut unpacked = Vec::new();
        super::unpack(payload, &mut unpacked)?;
        Ok(unpacked)
    }

    fn lz4(chunks: &[&[u8]]) -> Vec<u8> {
        let mut frame = LZ4_LEGACY_MAGIC.to_vec();
        for chunk in chunks {
            let block = lz4_flex::block::compress(chunk);
            frame.extend_from_slice(&(block.len() as u32).to_le_bytes());
            frame.extend_from_slice(&block);
        }
        frame
    }

    #[test]
    fn lz4_blocks_are_joined_and_the_appended_size_ignored() {
        let mut frame = lz4(&[&[b'a'; 1000], b"tail"]);
        frame.extend_from_slice(&1004u32.to_le_bytes());
        let unpacked = unpack(&frame).unwrap();
        assert_eq!((unpacked.len(), &unpacked[999..]), (1004, &b"atail"[..]));
    }

    #[test]
    fn damaged_lz4_is_an_error() {
        let frame = lz4(&[&[b'a'; 1000]]);
        for len in 9..frame.len() {
            assert!(unpack(&frame[..len]).is_err(), "{len}");
        }
        let mut huge = LZ4_LEGACY_MAGIC.to_vec();
        huge.extend_from_slice(&[0xff; 8]);
        assert!(unpack(&huge).is_err());
    }

    #[test]
    fn gzip_and_bzip2_unpack() {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(b"kernel").unwrap();
        assert_eq!(unpack(&gzip.finish().unwrap()).unwrap(), b"kernel");
        let mut bzip2 = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
        bzip2.write_all(b"kernel").unwrap();
        assert_eq!(unpack(&bzip2.finish().unwrap()).unwrap(), b"kernel");
    }

    #[test]
    fn pieces_are_joined() {
        let contents: Vec<u8> = (0..PIECE * 5 / 2).map(|index| (index >> 8) as u8).collect();
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&contents).unwrap();
        assert!(unpack(&gzip.finish().unwrap()).unwrap() == contents);
    }

    /// `printf kernel | xz --check=crc32 --x86 --lzma2=dict=1MiB` and `printf kernel | lzma`, `| zstd`.
    #[test]
    fn formats_without_an_encoder_here_unpack() {
        for bytes in [XZ, LZMA, ZSTD] {
            assert_eq!(unpack(bytes).unwrap(), b"kernel");
            assert!(unpack(&bytes[..bytes.len() / 2]).is_err());
        }
    }

    #[test]
    fn unknown_formats_are_told_apart_from_damage() {
        assert!(matches!(unpack(b"plain"), Err(PayloadError::Unknown)));
        assert!(matches!(unpack(b""), Err(PayloadError::Unknown)));
        assert!(matches!(unpack(&[0x1f, 0x8b, 0, 0, 0, 0]), Err(PayloadError::Corrupt(_))));
    }

    #[rustfmt::skip]
    const XZ: &[u8] = &[0xfd, 0x37, 0x7a, 0x58, 0x5a, 0x00, 0x00, 0x01, 0x69, 0x22, 0xde, 0x36, 0x02, 0x01, 0x04, 0x00, 0x21, 0x01, 0x10, 0x00, 0x8b, 0x21, 0x6f, 0x49, 0x01, 0x00, 0x05, 0x6b, 0x65, 0x72, 0x6e, 0x65, 0x6c, 0x00, 0x00, 0x00, 0xab, 0x9a, 0xd2, 0x5d, 0x00, 0x01, 0x1a, 0x06, 0xc5, 0xea, 0xc8, 0x79, 0x90, 0x42, 0x99, 0x0d, 0x01, 0x00, 0x00, 0x00, 0x00, 0x01, 0x59, 0x5a, ];
    #[rustfmt::skip]
    const LZMA: &[u8] = &[0x5d, 0x00, 0x00, 0x80, 0x00, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x00, 0x35, 0x99, 0x4a, 0xab, 0xa2, 0xe2, 0xb4, 0x48, 0x4e, 0xae, 0xff, 0xfd, 0x53, 0xa0, 0x00, ];
    #[rustfmt::skip]
    const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd, 0x04, 0x58, 0x31, 0x00, 0x00, 0x6b, 0x65, 0x72, 0x6e, 0x65, 0x6c, 0x18, 0xd0, 0x8a, 0xee, ];
}
