//! What decoding allocates stays in proportion to the message, whatever the message says.

use fidl::encoding::{Decoder, Encoder, Vector, WireType};
use fidl_test_wire::{Empty, Table, Vectors};

fn allocated_by_decoding<T: WireType>(bytes: &[u8]) -> (bool, usize) {
    let mut decoded = false;
    let counts = allocation_counter::measure(|| {
        decoded = Decoder::decode_all::<T>(bytes, &mut []).is_ok();
    });
    (decoded, usize::try_from(counts.bytes_total).unwrap())
}

#[test]
fn a_length_that_lies_allocates_nothing() {
    for count in [5000, 1 << 20, 1 << 40, u64::MAX] {
        let mut bytes = vec![0xff; 96];
        bytes[..8].copy_from_slice(&u64::to_le_bytes(count));
        assert_eq!(allocated_by_decoding::<Vector<u8, { u32::MAX }>>(&bytes), (false, 0));
        assert_eq!(allocated_by_decoding::<Vector<Table, { u32::MAX }>>(&bytes), (false, 0));
        assert_eq!(allocated_by_decoding::<Vector<Empty, { u32::MAX }>>(&bytes), (false, 0));
        assert_eq!(allocated_by_decoding::<Vectors>(&bytes), (false, 0));
    }
}

#[test]
fn elements_that_are_wrong_allocate_little() {
    // The vector is there and full, but its first element is not a table.
    let mut bytes = vec![0; 60_000];
    bytes[..8].copy_from_slice(&u64::to_le_bytes((60_000 - 16) / 16));
    bytes[8..16].fill(0xff);
    let (decoded, allocated) = allocated_by_decoding::<Vector<Table, { u32::MAX }>>(&bytes);
    assert!(!decoded);
    assert!(allocated <= 2 * bytes.len(), "{allocated} bytes");
}

#[test]
fn empty_elements_allocate_in_proportion() {
    let empties = vec![Empty {}; 60_000];
    let (bytes, _) = Encoder::encode_all::<Vector<Empty, { u32::MAX }>>(empties).unwrap();
    assert_eq!(allocated_by_decoding::<Vector<Empty, { u32::MAX }>>(&bytes), (true, 0));

    let tables: Vec<Table> = (0..3000).map(|_| Table::default()).collect();
    let (bytes, _) = Encoder::encode_all::<Vector<Table, { u32::MAX }>>(tables).unwrap();
    let (decoded, allocated) = allocated_by_decoding::<Vector<Table, { u32::MAX }>>(&bytes);
    assert!(decoded);
    // A vector that grows asks for twice what it ends with, at most.
    let multiple = 4 * size_of::<Table>().div_ceil(16);
    assert!(allocated <= multiple * bytes.len(), "{allocated} bytes");
}

#[test]
fn bytes_are_copied_once() {
    let (bytes, _) = Encoder::encode_all::<Vector<u8, { u32::MAX }>>(vec![7; 60_000]).unwrap();
    assert_eq!(allocated_by_decoding::<Vector<u8, { u32::MAX }>>(&bytes), (true, 60_000));
}
