//! Images that no program should have made: each is an error, none is a panic, a hang or a large allocation.

use std::sync::Arc;

use proptest::prelude::*;

use crate::backing::NoBacking;
use crate::create::CreateOptions;
use crate::error::{Corruption, Error, Malformed};
use crate::file::{BlockFile as _, MemoryFile};
use crate::image::{Image, Mode};

/// An image of 64 KiB with 512-byte clusters, all of it written: header, L1 at cluster 1, refcount table at 2, block
/// at 3, then data and L2 tables.
fn good() -> Vec<u8> {
    let file = Arc::new(MemoryFile::default());
    Image::create(&*file, &CreateOptions { size: 64 << 10, cluster_bits: 9, backing: None })
        .unwrap();
    let mut image = Image::open(file.clone(), Mode::ReadWrite, &mut NoBacking).unwrap();
    image.write_at(&vec![0x5a; 64 << 10], 0).unwrap();
    image.flush().unwrap();
    file.contents()
}

fn open(bytes: Vec<u8>, mode: Mode) -> Result<Image, Error> {
    Image::open(Arc::new(MemoryFile::new(bytes)), mode, &mut NoBacking)
}

fn with(offset: usize, bytes: &[u8]) -> Vec<u8> {
    let mut image = good();
    image[offset..offset + bytes.len()].copy_from_slice(bytes);
    image
}

#[track_caller]
fn malformed(bytes: Vec<u8>) -> Malformed {
    match open(bytes, Mode::ReadOnly) {
        Err(Error::Malformed(error)) => error,
        other => panic!("{other:?}"),
    }
}

#[test]
fn headers_are_checked() {
    assert_eq!(malformed(Vec::new()), Malformed::Magic);
    assert_eq!(malformed(good()[..40].to_vec()), Malformed::Truncated);
    assert_eq!(malformed(with(0, b"QFI\0")), Malformed::Magic);
    assert_eq!(malformed(with(4, &4u32.to_be_bytes())), Malformed::Version(4));
    assert_eq!(malformed(with(32, &1u32.to_be_bytes())), Malformed::Encrypted(1));
    // External data file, extended L2 entries, and a bit of the future.
    for bit in [2, 4, 63] {
        assert_eq!(
            malformed(with(72, &(1u64 << bit).to_be_bytes())),
            Malformed::Incompatible(1 << bit)
        );
    }
    for (offset, value, name) in [
        (20, 8u32, "cluster_bits"),
        (20, 22, "cluster_bits"),
        (20, u32::MAX, "cluster_bits"),
        (36, 1, "l1_size"),
        (36, u32::MAX, "l1_size"),
        (56, u32::MAX, "refcount_table_clusters"),
        (60, u32::MAX, "nb_snapshots"),
        (96, 7, "refcount_order"),
        (100, 96, "header_length"),
        (100, 105, "header_length"),
        (100, 1 << 20, "header_length"),
    ] {
        let error = malformed(with(offset, &value.to_be_bytes()));
        assert!(
            matches!(error, Malformed::Field { field, .. } if field == name),
            "{name}: {error:?}"
        );
    }
    let error = malformed(with(104, &[1]));
    assert!(matches!(error, Malformed::Field { field: "compression_type", .. }));
}

#[test]
fn absurd_sizes_are_refused_before_anything_is_allocated() {
    let error = malformed(with(24, &u64::MAX.to_be_bytes()));
    assert!(matches!(error, Malformed::Field { field: "l1_size", .. }));
    // 32 MiB of L1 table in a file of some KiB.
    let mut image = with(36, &(4u32 << 20).to_be_bytes());
    assert_eq!(malformed(image.clone()), Malformed::Outside("the L1 table"));
    image[40..48].copy_from_slice(&0xffff_ffff_ffff_fe00u64.to_be_bytes());
    assert_eq!(malformed(image), Malformed::Outside("the L1 table"));
}

#[test]
fn tables_must_not_overlap() {
    assert_eq!(
        malformed(with(40, &0u64.to_be_bytes())),
        Malformed::Overlap("the L1 table", "the header")
    );
    assert_eq!(
        malformed(with(48, &512u64.to_be_bytes())),
        Malformed::Overlap("the L1 table", "the refcount table")
    );
    // An L1 entry that refers to the L1 table; two that refer to the same L2 table.
    let mut image = good();
    image[512..520].copy_from_slice(&(1u64 << 63 | 512).to_be_bytes());
    assert!(matches!(open(image, Mode::ReadOnly), Err(Error::Corrupt(Corruption::Overlap(512)))));
    let mut image = good();
    image.copy_within(512..520, 520);
    assert!(matches!(open(image, Mode::ReadOnly), Err(Error::Corrupt(Corruption::Overlap(_)))));
}

#[test]
fn l1_entries_must_be_in_the_file() {
    for (offset, misaligned) in [(1u64 << 40, false), (0x3000_0000_0200, false)] {
        let image = with(512, &offset.to_be_bytes());
        let error = open(image, Mode::ReadOnly).unwrap_err();
        assert!(
            matches!(error, Error::Corrupt(Corruption::BeyondEnd { .. })) != misaligned,
            "{error}"
        );
    }
}

#[test]
fn data_is_never_written_over_tables() {
    let table = u64::from_be_bytes(good()[512..520].try_into().unwrap()) & 0xff_ffff_ffff_ffff;
    for target in [0x200u64, 0x400, 0x600, table] {
        let mut bytes = good();
        let entry = (1u64 << 63 | target).to_be_bytes();
        bytes[table as usize..table as usize + 8].copy_from_slice(&entry);
        let mut image = open(bytes, Mode::ReadWrite).unwrap();
        let error = image.write_at(&[1; 512], 0).unwrap_err();
        assert!(
            matches!(error, Error::Corrupt(Corruption::Overlap(at)) if at == target),
            "{error}"
        );
    }
}

#[test]
fn data_beyond_the_file_reads_as_zeroes_and_is_not_written() {
    let table = u64::from_be_bytes(good()[512..520].try_into().unwrap()) & 0xff_ffff_ffff_ffff;
    let mut bytes = good();
    let entry = (1u64 << 63 | 1 << 50).to_be_bytes();
    bytes[table as usize..table as usize + 8].copy_from_slice(&entry);
    let mut image = open(bytes, Mode::ReadWrite).unwrap();
    let mut buf = [1; 512];
    image.read_at(&mut buf, 0).unwrap();
    assert_eq!(buf, [0; 512]);
    assert!(matches!(image.write_at(&buf, 0), Err(Error::Corrupt(Corruption::BeyondEnd { .. }))));
}

#[test]
fn garbage_is_not_decompressed() {
    let table = u64::from_be_bytes(good()[512..520].try_into().unwrap()) & 0xff_ffff_ffff_ffff;
    let mut bytes = good();
    let at = bytes.len() as u64;
    bytes.extend([0xff; 512]);
    let entry = (1u64 << 62 | at).to_be_bytes();
    bytes[table as usize..table as usize + 8].copy_from_slice(&entry);
    let mut image = open(bytes, Mode::ReadOnly).unwrap();
    assert!(matches!(
        image.read_at(&mut [0; 16], 0),
        Err(Error::Corrupt(Corruption::Compressed(_)))
    ));
}

#[test]
fn a_corrupt_mark_forbids_writing() {
    let image = with(72, &2u64.to_be_bytes());
    assert!(open(image.clone(), Mode::ReadOnly).is_ok());
    assert!(matches!(
        open(image, Mode::ReadWrite),
        Err(Error::Malformed(Malformed::MarkedCorrupt))
    ));
}

#[test]
fn a_dirty_image_gets_its_refcounts_back() {
    // Dirty, and all refcounts forgotten.
    let mut bytes = with(72, &1u64.to_be_bytes());
    bytes[0x600..0x800].fill(0);
    let file = Arc::new(MemoryFile::new(bytes));
    let mut image = Image::open(file.clone(), Mode::ReadWrite, &mut NoBacking).unwrap();
    assert_eq!(file.contents()[72..80], [0; 8], "no longer dirty");
    let mut buf = vec![0; 64 << 10];
    image.read_at(&mut buf, 0).unwrap();
    assert!(buf.iter().all(|byte| *byte == 0x5a));
    let len = file.len().unwrap();
    image.discard(0, 32 << 10).unwrap();
    image.flush().unwrap();
    image.write_at(&vec![1; 32 << 10], 0).unwrap();
    image.flush().unwrap();
    assert_eq!(file.len().unwrap(), len, "freed clusters are found by their refcounts");
    image.read_at(&mut buf, 0).unwrap();
    assert!(buf[32 << 10..].iter().all(|byte| *byte == 0x5a));
}

#[test]
fn impossible_images_are_not_made() {
    for (size, cluster_bits) in [(u64::MAX, 9), (1 << 62, 16), (4096, 8), (4096, 22)] {
        let file = MemoryFile::default();
        let options = CreateOptions { size, cluster_bits, backing: None };
        assert!(matches!(Image::create(&file, &options), Err(Error::Malformed(_))));
    }
    let backing = Some(("x".repeat(2000), "raw".into()));
    let options = CreateOptions { size: 4096, cluster_bits: 16, backing };
    assert!(Image::create(&MemoryFile::default(), &options).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Whatever is flipped in an image, using it ends, and does not panic.
    #[test]
    fn damaged_images_do_not_harm_us(
        damage in proptest::collection::vec((0..0x2000usize, any::<u8>()), 1..12),
        dirty in any::<bool>(),
    ) {
        let mut bytes = good();
        if dirty {
            bytes[79] |= 1;
        }
        for (offset, value) in damage {
            let len = bytes.len();
            bytes[offset % len] = value;
        }
        if let Ok(mut image) = open(bytes, Mode::ReadWrite) {
            let size = image.size().min(64 << 10);
            let _ = image.read_at(&mut vec![0; size as usize], 0);
            let _ = image.write_at(&vec![1; size as usize / 2], 0);
            let _ = image.write_zeroes(0, size / 3, true);
            let _ = image.discard(size / 4, size / 2);
            let _ = image.flush();
            let _ = image.read_at(&mut vec![0; size as usize], 0);
        }
    }
}
