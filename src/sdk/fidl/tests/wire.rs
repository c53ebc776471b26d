//! Bytes of the wire format, spelled out from its specification (RFC-0114, RFC-0120), against what
//! the bindings of `test.wire` encode and decode.

use fidl::encoding::{Decoder, Encoder, WireType};
use fidl::{Error, persist, unpersist};
use fidl_test_wire::*;
use std::fmt::Debug;

const PRESENT: [u8; 8] = [0xff; 8];
const ABSENT: [u8; 8] = [0; 8];

/// Bytes from parts.
fn bytes(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}

fn word(value: u64) -> [u8; 8] {
    value.to_le_bytes()
}

fn decode<T: WireType>(bytes: &[u8]) -> Result<T::Owned, Error> {
    Decoder::decode_all::<T>(bytes, &mut [])
}

#[track_caller]
fn both_ways<T: WireType<Owned = T> + PartialEq + Debug + Clone>(value: T, wire: &[u8]) {
    let (encoded, handles) = Encoder::encode_all::<T>(value.clone()).unwrap();
    assert_eq!(encoded, wire, "encoding of {value:?}");
    assert!(handles.is_empty());
    assert_eq!(decode::<T>(wire), Ok(value));
}

#[track_caller]
fn rejected<T: WireType>(wire: &[u8], error: Error)
where
    T::Owned: Debug + PartialEq,
{
    assert_eq!(decode::<T>(wire), Err(error));
}

#[test]
fn numbers_are_little_endian_and_aligned() {
    let value =
        Numbers { b: true, i8: -2, u16: 0x0304, i32: -1, u64: 5, f32: 1.0, u8: 6, f64: -2.0 };
    let wire = bytes(&[
        &[1, 0xfe, 0x04, 0x03],
        &[0xff, 0xff, 0xff, 0xff],
        &word(5),
        &[0, 0, 0x80, 0x3f],
        &[6, 0, 0, 0],
        &[0, 0, 0, 0, 0, 0, 0, 0xc0],
    ]);
    both_ways(value, &wire);
    let mut bad = wire.clone();
    bad[0] = 2;
    rejected::<Numbers>(&bad, Error::InvalidBoolean);
    let mut bad = wire.clone();
    bad[23] = 1;
    rejected::<Numbers>(&bad, Error::NonZeroPadding { padding_start: 21 });
    rejected::<Numbers>(&wire[..24], Error::OutOfRange { expected: 32, actual: 24 });
    rejected::<Numbers>(&bytes(&[&wire, &ABSENT]), Error::ExtraBytes);
}

#[test]
fn an_empty_struct_is_one_zero_byte() {
    both_ways(Empty {}, &ABSENT);
    rejected::<Empty>(&word(1), Error::NonZeroPadding { padding_start: 0 });
    rejected::<Empty>(&word(0x100), Error::NonZeroPadding { padding_start: 1 });
}

#[test]
fn small_structs_are_padded_to_eight_bytes() {
    both_ways(Small { a: 1, b: 2 }, &[1, 0, 2, 0, 0, 0, 0, 0]);
    rejected::<Small>(&[1, 0, 2, 0, 9, 0, 0, 0], Error::NonZeroPadding { padding_start: 4 });
    rejected::<Small>(&[1, 9, 2, 0, 0, 0, 0, 0], Error::NonZeroPadding { padding_start: 1 });
}

#[test]
fn strings_are_counted_and_checked() {
    let value = Strings { plain: "héllo".into(), bounded: String::new(), absent: None };
    let wire =
        bytes(&[&word(6), &PRESENT, &word(0), &PRESENT, &ABSENT, &ABSENT, b"h\xc3\xa9llo\0\0"]);
    both_ways(value, &wire);
    let mut bad = wire.clone();
    bad[48 + 2] = b'x';
    rejected::<Strings>(&bad, Error::Utf8Error);
    let mut bad = wire.clone();
    bad[55] = 1;
    rejected::<Strings>(&bad, Error::NonZeroPadding { padding_start: 54 });
    let mut bad = wire.clone();
    bad[16] = 5;
    rejected::<Strings>(&bad, Error::StringTooLong { max_bytes: 4, actual_bytes: 5 });
    let mut bad = wire.clone();
    bad[32] = 1;
    rejected::<Strings>(&bad, Error::UnexpectedNullRef);
    let mut bad = wire.clone();
    bad[47] = 1;
    rejected::<Strings>(&bad, Error::InvalidPresenceIndicator);
    rejected::<Strings>(&[0; 48], Error::NotNullable);
    let long = Strings { plain: String::new(), bounded: "12345".into(), absent: None };
    let error = Encoder::encode_all::<Strings>(long).unwrap_err();
    assert_eq!(error, Error::StringTooLong { max_bytes: 4, actual_bytes: 5 });
}

#[test]
fn vectors_are_out_of_line_in_depth_first_order() {
    let value = Vectors {
        bytes: vec![1, 2, 3],
        words: vec![0x01020304, 5, 6],
        strings: Some(vec!["a".into(), "bc".into()]),
        flags: vec![true, false],
        nested: vec![vec![1], vec![], vec![-1, 2]],
    };
    let wire = bytes(&[
        &word(3),
        &PRESENT,
        &word(3),
        &PRESENT,
        &word(2),
        &PRESENT,
        &word(2),
        &PRESENT,
        &word(3),
        &PRESENT,
        // bytes
        &[1, 2, 3, 0, 0, 0, 0, 0],
        // words
        &[4, 3, 2, 1, 5, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0],
        // strings: the headers, then each content
        &word(1),
        &PRESENT,
        &word(2),
        &PRESENT,
        b"a\0\0\0\0\0\0\0",
        b"bc\0\0\0\0\0\0",
        // flags
        &[1, 0, 0, 0, 0, 0, 0, 0],
        // nested
        &word(1),
        &PRESENT,
        &word(0),
        &PRESENT,
        &word(2),
        &PRESENT,
        &[1, 0, 0, 0, 0, 0, 0, 0],
        &[0xff, 0xff, 2, 0, 0, 0, 0, 0],
    ]);
    both_ways(value, &wire);
    let mut bad = wire.clone();
    bad[16] = 5;
    rejected::<Vectors>(&bad, Error::VectorTooLong { max_length: 4, actual_length: 5 });
    let mut bad = wire.clone();
    bad[0..8].copy_from_slice(&word(u64::MAX));
    assert!(decode::<Vectors>(&bad).is_err());
    let mut bad = wire;
    bad[7] = 1;
    assert!(matches!(
        decode::<Vectors>(&bad),
        Err(Error::VectorTooLong { .. } | Error::OutOfRange { .. })
    ));
}

#[test]
fn arrays_are_inline() {
    let value = Arrays {
        bytes: [1, 2, 3],
        smalls: [Small { a: 4, b: 5 }, Small { a: 6, b: 7 }],
        strings: ["x".into(), "y".into()],
    };
    let wire = bytes(&[
        &[1, 2, 3, 0],
        &[4, 0, 5, 0],
        &[6, 0, 7, 0],
        &[0, 0, 0, 0],
        &word(1),
        &PRESENT,
        &word(1),
        &PRESENT,
        b"x\0\0\0\0\0\0\0",
        b"y\0\0\0\0\0\0\0",
    ]);
    both_ways(value, &wire);
}

#[test]
fn boxes_nest_up_to_thirty_two() {
    fn list(len: usize) -> Node {
        let mut node = Node { value: 0, next: None };
        for _ in 0..len {
            node = Node { value: 0, next: Some(Box::new(node)) };
        }
        node
    }
    let wire = bytes(&[&word(7), &PRESENT, &word(8), &ABSENT]);
    both_ways(Node { value: 7, next: Some(Box::new(Node { value: 8, next: None })) }, &wire);
    let (deepest, _) = Encoder::encode_all::<Node>(list(32)).unwrap();
    assert_eq!(decode::<Node>(&deepest), Ok(list(32)));
    assert_eq!(Encoder::encode_all::<Node>(list(33)).unwrap_err(), Error::MaxRecursionDepth);
    // One more level in front.
    let deeper = bytes(&[&word(0), &PRESENT, &deepest]);
    rejected::<Node>(&deeper, Error::MaxRecursionDepth);
    let mut bad = wire;
    bad[8] = 0;
    rejected::<Node>(&bad, Error::InvalidPresenceIndicator);
}

#[test]
fn tables_hold_envelopes_up_to_the_last_member() {
    both_ways(Table::default(), &bytes(&[&word(0), &PRESENT]));
    let value = Table {
        small: Some(9),
        text: Some("hi".into()),
        word: Some(0x01020304),
        ..Default::default()
    };
    let wire = bytes(&[
        &word(6),
        &PRESENT,
        &[9, 0, 0, 0, 0, 0, 1, 0],
        &ABSENT,
        &[24, 0, 0, 0, 0, 0, 0, 0],
        &ABSENT,
        &ABSENT,
        &[4, 3, 2, 1, 0, 0, 1, 0],
        &word(2),
        &PRESENT,
        b"hi\0\0\0\0\0\0",
    ]);
    both_ways(value, &wire);

    // Who does not know members 4 to 6 passes over them.
    let older = Table3 { small: Some(9), text: Some("hi".into()), ..Default::default() };
    assert_eq!(decode::<Table3>(&wire), Ok(older));

    let with = |at: usize, envelope: [u8; 8]| {
        let mut bad = wire.clone();
        bad[at..at + 8].copy_from_slice(&envelope);
        decode::<Table>(&bad)
    };
    assert_eq!(with(16, [9, 0, 0, 0, 0, 0, 0, 0]), Err(Error::InvalidInlineBitInEnvelope));
    assert_eq!(with(16, [9, 0, 0, 0, 0, 0, 2, 0]), Err(Error::InvalidInlineMarkerInEnvelope));
    assert_eq!(
        with(16, [9, 1, 0, 0, 0, 0, 1, 0]),
        Err(Error::NonZeroPadding { padding_start: 17 })
    );
    assert_eq!(with(16, [9, 0, 0, 0, 1, 0, 1, 0]), Err(Error::InvalidNumHandlesInEnvelope));
    assert_eq!(with(32, [16, 0, 0, 0, 0, 0, 0, 0]), Err(Error::InvalidNumBytesInEnvelope));
    assert_eq!(with(32, [24, 0, 0, 0, 0, 0, 1, 0]), Err(Error::InvalidInlineBitInEnvelope));
    // An unknown envelope of a size that is no multiple of 8, and one with bytes that are not there.
    assert_eq!(with(24, [7, 0, 0, 0, 0, 0, 0, 0]), Err(Error::InvalidNumBytesInEnvelope));
    assert!(matches!(with(24, [64, 0, 0, 0, 0, 0, 0, 0]), Err(Error::OutOfRange { .. })));
    assert_eq!(with(24, [8, 0, 0, 0, 1, 0, 1, 0]), Err(Error::OutOfHandles));
    // The last envelope must be there, and so must the vector.
    rejected::<Table>(&bytes(&[&word(1), &PRESENT, &ABSENT]), Error::Invalid);
    rejected::<Table>(&bytes(&[&ABSENT, &ABSENT]), Error::NotNullable);
}

#[test]
fn unions_are_an_ordinal_and_an_envelope() {
    let number = bytes(&[&word(1), &[7, 0, 0, 0, 0, 0, 1, 0]]);
    both_ways(StrictUnion::Number(7), &number);
    let text =
        bytes(&[&word(2), &[24, 0, 0, 0, 0, 0, 0, 0], &word(1), &PRESENT, b"z\0\0\0\0\0\0\0"]);
    both_ways(StrictUnion::Text("z".into()), &text);
    both_ways(
        FlexibleUnion::Small(Small { a: 1, b: 2 }),
        &bytes(&[&word(2), &[1, 0, 2, 0, 0, 0, 1, 0]]),
    );

    rejected::<StrictUnion>(&bytes(&[&ABSENT, &ABSENT]), Error::NotNullable);
    rejected::<StrictUnion>(&bytes(&[&word(1), &ABSENT]), Error::NotNullable);
    let unknown = bytes(&[&word(9), &[8, 0, 0, 0, 0, 0, 0, 0], &word(5)]);
    rejected::<StrictUnion>(&unknown, Error::UnknownUnionTag);
    let decoded = decode::<FlexibleUnion>(&unknown).unwrap();
    assert!(decoded.is_unknown());
    assert_eq!(decoded.ordinal(), 9);
    assert_eq!(Encoder::encode_all::<FlexibleUnion>(decoded).unwrap_err(), Error::UnknownUnionTag);
    let inline = bytes(&[&word(9), &[1, 2, 3, 4, 0, 0, 1, 0]]);
    assert!(decode::<FlexibleUnion>(&inline).unwrap().is_unknown());
    rejected::<FlexibleUnion>(&bytes(&[&word(9), &ABSENT]), Error::NotNullable);
}

#[test]
fn strict_and_flexible_differ_in_unknown_values() {
    type Enums = fidl::encoding::Array<StrictEnum, 1>;
    assert_eq!(decode::<Enums>(&[0xff, 0xff, 0, 0, 0, 0, 0, 0]), Ok([StrictEnum::Minus]));
    rejected::<Enums>(&word(7), Error::InvalidEnumValue);
    type Flexible = fidl::encoding::Array<FlexibleEnum, 1>;
    assert_eq!(decode::<Flexible>(&word(2)), Ok([FlexibleEnum::B]));
    let [unknown] = decode::<Flexible>(&word(77)).unwrap();
    assert!(unknown.is_unknown());
    assert_eq!(unknown.into_primitive(), 77);
    assert_eq!(FlexibleEnum::unknown(), FlexibleEnum::Other);
    assert_eq!(FlexibleEnum::from_primitive(77), None);
    assert_eq!(StrictEnum::from_primitive(7), None);

    type Bits = fidl::encoding::Array<StrictBits, 1>;
    assert_eq!(decode::<Bits>(&word(5)), Ok([StrictBits::ONE | StrictBits::FOUR]));
    rejected::<Bits>(&word(8), Error::InvalidBitsValue);
    let outside = StrictBits::from_bits_retain(8);
    assert_eq!(Encoder::encode_all::<Bits>([outside]).unwrap_err(), Error::InvalidBitsValue);
    type Loose = fidl::encoding::Array<FlexibleBits, 1>;
    let [loose] = decode::<Loose>(&word(3)).unwrap();
    assert_eq!(loose.get_unknown_bits(), 2);
    assert_eq!(Encoder::encode_all::<Loose>([loose]).unwrap().0, word(3));
}

#[test]
fn constants_have_the_values_of_the_source() {
    assert_eq!(LIMIT, 4);
    assert_eq!(NEGATIVE, -128);
    assert_eq!(HEX, 0xffff_0000_0000);
    assert_eq!(GREETING, "say \"hi\"\n");
    assert_eq!(BOTH, StrictBits::ONE | StrictBits::FOUR);
    assert_eq!(CHOSEN, StrictEnum::Minus);
    assert_eq!(RATIO.to_bits(), 0.25_f64.to_bits());
}

#[test]
fn persisted_values_have_a_header() {
    let value = Small { a: 1, b: 2 };
    let wire = [0, 1, 2, 0, 0, 0, 0, 0, 1, 0, 2, 0, 0, 0, 0, 0];
    assert_eq!(persist(&value).unwrap(), wire);
    assert_eq!(unpersist::<Small>(&wire), Ok(value));
    assert_eq!(unpersist::<Small>(&wire[..7]), Err(Error::InvalidHeader));
    let mut bad = wire;
    bad[1] = 2;
    assert_eq!(unpersist::<Small>(&bad), Err(Error::IncompatibleMagicNumber(2)));
    let mut bad = wire;
    bad[2] = 0;
    assert_eq!(unpersist::<Small>(&bad), Err(Error::UnsupportedWireFormatVersion));
}

#[test]
fn vectors_of_plain_structs_are_checked_element_by_element() {
    type Smalls = fidl::encoding::Vector<Small, 5>;
    let smalls =
        vec![Small { a: 1, b: 0x0302 }, Small { a: 0xff, b: 0xfffe }, Small { a: 0, b: 0 }];
    let wire =
        bytes(&[&word(3), &PRESENT, &[1, 0, 2, 3, 0xff, 0, 0xfe, 0xff], &[0, 0, 0, 0, 0, 0, 0, 0]]);
    assert_eq!(Encoder::encode_all::<Smalls>(smalls.clone()).unwrap().0, wire);
    let lent = Encoder::with_encoded::<Smalls, _>(&smalls, <[u8]>::to_vec).unwrap();
    assert_eq!(lent, wire);
    assert_eq!(decode::<Smalls>(&wire), Ok(smalls));
    let mut bad = wire.clone();
    bad[21] = 1;
    rejected::<Smalls>(&bad, Error::NonZeroPadding { padding_start: 21 });
    let mut bad = wire.clone();
    bad[29] = 1;
    rejected::<Smalls>(&bad, Error::NonZeroPadding { padding_start: 28 });
    type AllNumbers = fidl::encoding::Vector<Numbers, 5>;
    let numbers = Numbers { b: true, i8: -2, u16: 3, i32: -4, u64: 5, f32: 0.5, u8: 6, f64: -2.0 };
    let value = vec![numbers, Numbers { b: false, ..numbers }];
    let (wire, _) = Encoder::encode_all::<AllNumbers>(value.clone()).unwrap();
    assert_eq!(decode::<AllNumbers>(&wire), Ok(value));
    let mut bad = wire;
    bad[16 + 32] = 2;
    rejected::<AllNumbers>(&bad, Error::InvalidBoolean);
}

#[test]
fn vectors_of_structs_decode_wherever_they_are() {
    let smalls: Vec<Small> = (0..99).map(|i| Small { a: i, b: u16::from(i) << 8 | 7 }).collect();
    let pairs: Vec<Pair> = (0..99).map(|i| Pair { a: i, b: !i }).collect();
    type Smalls = fidl::encoding::Vector<Small, 100>;
    type Pairs = fidl::encoding::Vector<Pair, 100>;
    let (small_wire, _) = Encoder::encode_all::<Smalls>(smalls.clone()).unwrap();
    let (pair_wire, _) = Encoder::encode_all::<Pairs>(pairs.clone()).unwrap();
    assert_eq!(small_wire[16..24], [0, 0, 7, 0, 1, 0, 7, 1]);
    assert_eq!(pair_wire[24..32], [1, 0, 0, 0, 0xfe, 0xff, 0xff, 0xff]);
    for shift in 0..8 {
        let moved = |wire: &[u8]| [&vec![0; shift], wire].concat();
        assert_eq!(decode::<Smalls>(&moved(&small_wire)[shift..]), Ok(smalls.clone()));
        assert_eq!(decode::<Pairs>(&moved(&pair_wire)[shift..]), Ok(pairs.clone()));
    }
    for index in 0..99 {
        let mut bad = small_wire.clone();
        let at = 16 + 4 * index + 1;
        bad[at] = 0x80;
        rejected::<Smalls>(&bad, Error::NonZeroPadding { padding_start: at });
    }
}

#[test]
fn vectors_of_enums_and_bits_are_checked_element_by_element() {
    type Mixes = fidl::encoding::Vector<Mixed, 100>;
    let mixed = |i: u8| Mixed {
        kind: if i.is_multiple_of(2) { StrictEnum::Minus } else { StrictEnum::Plus },
        flag: i.is_multiple_of(3),
        small: Small { a: i, b: 0x0201 },
        other: FlexibleEnum::from_primitive_allow_unknown(i.into()),
        bits: FlexibleBits::HIGH | FlexibleBits::from_bits_retain(i.into()),
        address: [i, 1, 2, 3, 4, 5],
    };
    let all: Vec<Mixed> = (0..99).map(mixed).collect();
    let (wire, _) = Encoder::encode_all::<Mixes>(all.clone()).unwrap();
    let second = [
        bytes(&[&[1, 0, 0, 0], &[1, 0, 1, 2], &[1, 0, 0, 0, 0, 0, 0, 0]]),
        bytes(&[&[1, 0, 0, 0, 0, 0, 0, 0x80], &[1, 1, 2, 3, 4, 5, 0, 0]]),
    ]
    .concat();
    assert_eq!(wire[16 + 32..16 + 64], second);
    assert_eq!(decode::<Mixes>(&wire), Ok(all.clone()));
    // One alone, and its members one by one.
    both_ways(all[1], &second);
    for index in [0, 1, 50, 98] {
        let at = 16 + 32 * index;
        let rejected_with = |offset: usize, value: u8, error: Error| {
            let mut bad = wire.clone();
            bad[at + offset] = value;
            rejected::<Mixes>(&bad, error);
        };
        rejected_with(0, 2, Error::InvalidEnumValue);
        rejected_with(2, 2, Error::InvalidBoolean);
        for (start, len) in [(3, 1), (5, 1), (12, 4), (30, 2)] {
            for offset in start..start + len {
                rejected_with(offset, 1, Error::NonZeroPadding { padding_start: at + start });
            }
        }
    }
}

#[test]
fn what_an_earlier_message_left_is_not_sent() {
    type Bytes = fidl::encoding::Vector<u8, 1000>;
    let encoded = |value: &[u8]| Encoder::with_encoded::<Bytes, _>(value, <[u8]>::to_vec).unwrap();
    assert_eq!(encoded(&[0xff; 1000])[16..], [0xff; 1000]);
    assert_eq!(encoded(&[1; 9]), bytes(&[&word(9), &PRESENT, &[1; 9], &[0; 7]]));
    let absent = Strings { plain: "a".into(), bounded: String::new(), absent: None };
    let wire = Encoder::with_encoded::<Strings, _>(&absent, <[u8]>::to_vec).unwrap();
    assert_eq!(
        wire,
        bytes(&[&word(1), &PRESENT, &word(0), &PRESENT, &[0; 16], &[b'a', 0, 0, 0, 0, 0, 0, 0]])
    );
    let smalls = [Small { a: 1, b: 2 }; 3];
    type Smalls = fidl::encoding::Vector<Small, 5>;
    encoded(&[0xff; 1000]);
    let wire = Encoder::with_encoded::<Smalls, _>(&smalls, <[u8]>::to_vec).unwrap();
    let elements = [[1, 0, 2, 0], [1, 0, 2, 0], [1, 0, 2, 0], [0; 4]].concat();
    assert_eq!(wire, bytes(&[&word(3), &PRESENT, &elements]));
    // While a message is encoded, another is.
    Encoder::with_encoded::<Bytes, _>(&[7; 8], |outer| {
        assert_eq!(encoded(&[8; 8])[16..], [8; 8]);
        assert_eq!(outer[16..], [7; 8]);
    })
    .unwrap();
}
