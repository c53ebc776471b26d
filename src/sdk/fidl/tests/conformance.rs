//! Golden bytes for each shape of type, beyond those of `wire.rs`, both ways; and bytes that are none, with the reason. The
//! vectors are written from the specification (RFC-0114); the groups are those of Fuchsia's own conformance suite.

use fidl::Error;
use fidl::encoding::{Array, BoundedString, Decoder, Encoder, Optional, Vector, WireType};
use fidl_test_wire::*;
use std::fmt::Debug;

const PRESENT: [u8; 8] = [0xff; 8];
const ABSENT: [u8; 8] = [0; 8];
const MAX: u32 = u32::MAX;

fn word(value: u64) -> [u8; 8] {
    value.to_le_bytes()
}

fn decode<T: WireType>(wire: &[u8]) -> Result<T::Owned, Error> {
    Decoder::decode_all::<T>(wire, &mut [])
}

fn encode<T: WireType>(value: T::Owned) -> Vec<u8> {
    Encoder::encode_all::<T>(value).unwrap().0
}

#[track_caller]
fn golden<T: WireType>(value: T::Owned, parts: &[&[u8]])
where
    T::Owned: Clone + Debug + PartialEq,
{
    let wire = parts.concat();
    assert_eq!(encode::<T>(value.clone()), wire, "encoding of {value:?}");
    assert_eq!(decode::<T>(&wire), Ok(value));
}

#[track_caller]
fn rejected<T: WireType>(parts: &[&[u8]], error: Error)
where
    T::Owned: Debug + PartialEq,
{
    assert_eq!(decode::<T>(&parts.concat()), Err(error));
}

#[test]
fn integers_at_their_ends() {
    golden::<Array<i8, 2>>([i8::MIN, i8::MAX], &[&[0x80, 0x7f, 0, 0, 0, 0, 0, 0]]);
    golden::<Array<u8, 2>>([0, u8::MAX], &[&[0, 0xff, 0, 0, 0, 0, 0, 0]]);
    golden::<Array<i16, 2>>([i16::MIN, i16::MAX], &[&[0, 0x80, 0xff, 0x7f, 0, 0, 0, 0]]);
    golden::<Array<u16, 1>>([u16::MAX], &[&[0xff, 0xff, 0, 0, 0, 0, 0, 0]]);
    golden::<Array<i32, 2>>([i32::MIN, i32::MAX], &[&[0, 0, 0, 0x80, 0xff, 0xff, 0xff, 0x7f]]);
    golden::<Array<u32, 1>>([0x0403_0201], &[&[1, 2, 3, 4, 0, 0, 0, 0]]);
    golden::<Array<i64, 2>>([i64::MIN, -2], &[&word(1 << 63), &word(u64::MAX - 1)]);
    golden::<u64>(u64::MAX, &[&PRESENT]);
}

#[test]
fn floats_keep_every_bit() {
    for bits in [0, 1 << 31, 1, 0x7f80_0000, 0xff80_0000, 0x7fc0_0001, 0x7f80_0001, 0x3f80_0000] {
        let wire = word(u64::from(bits));
        assert_eq!(encode::<f32>(f32::from_bits(bits)), wire);
        assert_eq!(decode::<f32>(&wire).unwrap().to_bits(), bits);
    }
    for bits in [1 << 63, 1, 0x7ff0 << 48, 0x7ff8_0000_0000_0001, 0x7ff0_0000_0000_0001] {
        let wire = word(bits);
        assert_eq!(encode::<f64>(f64::from_bits(bits)), wire);
        assert_eq!(decode::<f64>(&wire).unwrap().to_bits(), bits);
    }
}

#[test]
fn booleans_are_zero_or_one() {
    golden::<Array<bool, 3>>([true, false, true], &[&[1, 0, 1, 0, 0, 0, 0, 0]]);
    for byte in [2, 0x80, 0xff] {
        rejected::<bool>(&[&[byte, 0, 0, 0, 0, 0, 0, 0]], Error::InvalidBoolean);
        let wire = [&word(1)[..], &PRESENT, &[byte, 0, 0, 0, 0, 0, 0, 0]];
        rejected::<Vector<bool, MAX>>(&wire, Error::InvalidBoolean);
    }
}

#[test]
fn what_is_around_a_value_is_zero() {
    for at in 1..8 {
        let mut wire = word(7);
        wire[at] = 1;
        rejected::<u8>(&[&wire], Error::NonZeroPadding { padding_start: 1 });
    }
    // Padding behind a member, at the end of a struct, and behind the last element of a vector.
    golden::<Vector<Small, 4>>(
        vec![Small { a: 1, b: 2 }],
        &[&word(1), &PRESENT, &[1, 0, 2, 0, 0, 0, 0, 0]],
    );
    for (byte, start) in [(17, 17), (20, 20), (23, 20)] {
        let mut wire = [word(1), PRESENT, [1, 0, 2, 0, 0, 0, 0, 0]].concat();
        wire[byte] = 9;
        rejected::<Vector<Small, 4>>(&[&wire], Error::NonZeroPadding { padding_start: start });
    }
    golden::<Vector<Pair, 4>>(
        vec![Pair { a: 1, b: 2 }, Pair { a: u32::MAX, b: 4 }],
        &[&word(2), &PRESENT, &[1, 0, 0, 0, 2, 0, 0, 0], &[0xff, 0xff, 0xff, 0xff, 4, 0, 0, 0]],
    );
}

#[test]
fn absent_and_empty_are_two_things() {
    type MaybeText = Optional<BoundedString<8>>;
    golden::<MaybeText>(None, &[&ABSENT, &ABSENT]);
    golden::<MaybeText>(Some(String::new()), &[&ABSENT, &PRESENT]);
    rejected::<MaybeText>(&[&word(1), &ABSENT, b"a\0\0\0\0\0\0\0"], Error::UnexpectedNullRef);
    rejected::<MaybeText>(&[&ABSENT, &word(1)], Error::InvalidPresenceIndicator);
    rejected::<BoundedString<8>>(&[&ABSENT, &ABSENT], Error::NotNullable);
    type MaybeNumbers = Optional<Vector<u32, 2>>;
    golden::<MaybeNumbers>(None, &[&ABSENT, &ABSENT]);
    golden::<MaybeNumbers>(Some(Vec::new()), &[&ABSENT, &PRESENT]);
    golden::<MaybeNumbers>(Some(vec![1]), &[&word(1), &PRESENT, &[1, 0, 0, 0, 0, 0, 0, 0]]);
    rejected::<MaybeNumbers>(
        &[&word(3), &PRESENT, &word(0), &word(0)],
        Error::VectorTooLong { max_length: 2, actual_length: 3 },
    );
    rejected::<Vector<u32, 2>>(&[&ABSENT, &ABSENT], Error::NotNullable);
    rejected::<Vector<u32, 2>>(&[&word(2), &PRESENT], Error::OutOfRange { expected: 8, actual: 0 });
}

#[test]
fn vectors_of_vectors_come_depth_first() {
    golden::<Vector<Vector<BoundedString<MAX>, MAX>, MAX>>(
        vec![vec!["ab".into()], vec![], vec!["c".into(), String::new()]],
        &[
            &word(3),
            &PRESENT,
            // The three inner vectors.
            &word(1),
            &PRESENT,
            &word(0),
            &PRESENT,
            &word(2),
            &PRESENT,
            // What is in the first one, then in the third one.
            &word(2),
            &PRESENT,
            b"ab\0\0\0\0\0\0",
            &word(1),
            &PRESENT,
            &word(0),
            &PRESENT,
            b"c\0\0\0\0\0\0\0",
        ],
    );
}

#[test]
fn strings_are_utf8_and_nothing_else() {
    let wire = |text: &[u8]| {
        let mut wire = [word(text.len() as u64), PRESENT].concat();
        wire.extend_from_slice(text);
        wire.resize(wire.len().next_multiple_of(8), 0);
        wire
    };
    let accepted = [
        "\0",
        "\u{7f}",
        "\u{80}",
        "\u{7ff}",
        "\u{800}",
        "\u{d7ff}",
        "\u{e000}",
        "\u{fffd}",
        // Characters that are none are characters here.
        "\u{fdd0}",
        "\u{fffe}",
        "\u{ffff}",
        "\u{10000}",
        "\u{10ffff}",
        "\u{feff}abc",
        "e\u{301}",
    ];
    for text in accepted {
        golden::<BoundedString<MAX>>(text.to_owned(), &[&wire(text.as_bytes())]);
    }
    let refused: &[&[u8]] = &[
        // Continuations without a start, starts without enough continuations.
        b"\x80",
        b"\xbf",
        b"a\x80",
        b"\xc2",
        b"\xe0\xa0",
        b"\xf0\x90\x80",
        b"\xc2\x41",
        b"\xe2\x82\x41",
        // Longer than need be.
        b"\xc0\x80",
        b"\xc1\xbf",
        b"\xe0\x80\x80",
        b"\xe0\x9f\xbf",
        b"\xf0\x80\x80\x80",
        b"\xf0\x8f\xbf\xbf",
        // Surrogates, and a pair of them.
        b"\xed\xa0\x80",
        b"\xed\xbf\xbf",
        b"\xed\xa0\x80\xed\xb0\x80",
        // Beyond the last character.
        b"\xf4\x90\x80\x80",
        b"\xf5\x80\x80\x80",
        b"\xf8\x88\x80\x80\x80",
        b"\xfe",
        b"\xff",
    ];
    for text in refused {
        rejected::<BoundedString<MAX>>(&[&wire(text)], Error::Utf8Error);
    }
    // The bound is in bytes, and a message may be cut anywhere.
    let long = Error::StringTooLong { max_bytes: 3, actual_bytes: 4 };
    rejected::<BoundedString<3>>(&[&wire("éé".as_bytes())], long);
    for cut in 1..24 {
        assert!(decode::<BoundedString<MAX>>(&wire(b"a")[..cut]).is_err());
    }
}

#[test]
fn everything_is_consumed() {
    let value = vec![1_u8, 2, 3];
    let mut wire = encode::<Vector<u8, MAX>>(value);
    wire.extend_from_slice(&ABSENT);
    rejected::<Vector<u8, MAX>>(&[&wire], Error::ExtraBytes);
    rejected::<u8>(&[], Error::OutOfRange { expected: 1, actual: 0 });
}

#[test]
fn unions_within_tables_within_vectors() {
    golden::<Vector<Table, 3>>(
        vec![
            Table::default(),
            Table {
                inner: Some(Table3 { small: Some(3), ..Default::default() }),
                ..Default::default()
            },
        ],
        &[
            &word(2),
            &PRESENT,
            &word(0),
            &PRESENT,
            &word(4),
            &PRESENT,
            &ABSENT,
            &ABSENT,
            &ABSENT,
            // A vector header and one envelope.
            &[24, 0, 0, 0, 0, 0, 0, 0],
            &word(1),
            &PRESENT,
            &[3, 0, 0, 0, 0, 0, 1, 0],
        ],
    );
    type Unions = Vector<Optional<StrictUnion>, 3>;
    golden::<Unions>(
        vec![None, Some(Box::new(StrictUnion::Number(-1)))],
        &[&word(2), &PRESENT, &ABSENT, &ABSENT, &word(1), &[0xff, 0xff, 0xff, 0xff, 0, 0, 1, 0]],
    );
    // An absent union has no envelope; a present one has a full one.
    let half = [&word(1)[..], &PRESENT, &ABSENT, &[1, 0, 0, 0, 0, 0, 1, 0]];
    assert!(decode::<Unions>(&half.concat()).is_err());
    let wrong = [&word(1)[..], &PRESENT, &word(1), &[8, 0, 0, 0, 0, 0, 0, 0], &word(1)];
    rejected::<Unions>(&wrong, Error::InvalidInlineBitInEnvelope);
}
