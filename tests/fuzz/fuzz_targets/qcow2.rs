//! A disk image from anywhere: opened, read, written, discarded, flushed.
#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use qcow::{Image, MemoryFile, Mode, NoBacking};

/// Most bytes of the disk that are touched.
const TOUCHED: u64 = 1 << 20;

fuzz_target!(|bytes: &[u8]| {
    for mode in [Mode::ReadOnly, Mode::ReadWrite] {
        let file = Arc::new(MemoryFile::new(bytes.to_vec()));
        let Ok(mut image) = Image::open(file, mode, &mut NoBacking) else { continue };
        let size = image.size().min(TOUCHED);
        let mut buffer = vec![0; size as usize];
        let _ = image.read_at(&mut buffer, 0);
        let _ = image.write_at(&buffer[..buffer.len() / 2], 0);
        let _ = image.write_zeroes(size / 4, size / 4, true);
        let _ = image.discard(size / 2, size / 4);
        let _ = image.flush();
        let _ = image.read_at(&mut buffer, 0);
    }
});
