//! Compressed clusters: reading only.

use std::io::Read as _;

use crate::header::CompressionType;

/// Decompresses `from`, which may have trailing bytes of its neighbours, to exactly `to.len()` bytes.
///
/// Returns whether that was possible. Memory is bounded: the output is `to`, and the zstd decoder refuses large windows.
pub(crate) fn decompress(kind: CompressionType, from: &[u8], to: &mut [u8]) -> bool {
    match kind {
        CompressionType::Deflate => {
            use miniz_oxide::inflate::core::{DecompressorOxide, decompress, inflate_flags};
            let mut state = DecompressorOxide::new();
            // A raw stream without a zlib header (spec, "Compressed Clusters Descriptor"), all output in one piece.
            let flags = inflate_flags::TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
            let (_, _, written) = decompress(&mut state, from, to, 0, flags);
            written == to.len()
        }
        CompressionType::Zstd => {
            let Ok(mut decoder) = ruzstd::decoding::StreamingDecoder::new(from) else {
                return false;
            };
            decoder.read_exact(to).is_ok()
        }
    }
}
