//! Properties over random values: decoding undoes encoding, and a message with one byte changed is
//! rejected or is the one encoding of another value.

use fidl::encoding::{Decoder, Encoder, WireType};
use fidl_test_wire::*;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

fn numbers() -> impl Strategy<Value = Numbers> {
    (any::<(bool, i8, u16, i32, u64)>(), any::<(f32, u8, f64)>()).prop_map(
        |((b, i8, u16, i32, u64), (f32, u8, f64))| Numbers { b, i8, u16, i32, u64, f32, u8, f64 },
    )
}

fn small() -> impl Strategy<Value = Small> {
    any::<(u8, u16)>().prop_map(|(a, b)| Small { a, b })
}

fn mixed() -> impl Strategy<Value = Mixed> {
    let kinds = [StrictEnum::Minus, StrictEnum::Zero, StrictEnum::Plus];
    let rest = any::<(bool, u32, u64, [u8; 6])>();
    (prop::sample::select(kinds.to_vec()), small(), rest).prop_map(
        |(kind, small, (flag, other, bits, address))| Mixed {
            kind,
            flag,
            small,
            other: FlexibleEnum::from_primitive_allow_unknown(other),
            bits: FlexibleBits::from_bits_retain(bits),
            address,
        },
    )
}

fn strings() -> impl Strategy<Value = Strings> {
    (".{0,12}", "[a-z]{0,4}", option::of("[a-z]{0,8}"))
        .prop_map(|(plain, bounded, absent)| Strings { plain, bounded, absent })
}

fn vectors() -> impl Strategy<Value = Vectors> {
    (
        vec(any::<u8>(), 0..20),
        vec(any::<u32>(), 0..5),
        option::of(vec("[a-z]{0,9}", 0..4)),
        vec(any::<bool>(), 0..9),
        vec(vec(any::<i16>(), 0..6), 0..4),
    )
        .prop_map(|(bytes, words, strings, flags, nested)| Vectors {
            bytes,
            words,
            strings,
            flags,
            nested,
        })
}

fn arrays() -> impl Strategy<Value = Arrays> {
    (any::<[u8; 3]>(), [small(), small()], ["[a-z]{0,9}", "[a-z]{0,9}"])
        .prop_map(|(bytes, smalls, strings)| Arrays { bytes, smalls, strings })
}

fn node() -> impl Strategy<Value = Node> {
    vec(any::<u32>(), 1..8).prop_map(|values| {
        let mut next = None;
        let mut node = Node { value: 0, next: None };
        for value in values {
            node = Node { value, next };
            next = Some(Box::new(node.clone()));
        }
        node
    })
}

fn table() -> impl Strategy<Value = Table> {
    let inner = (option::of(any::<u8>()), option::of("[a-z]{0,9}"))
        .prop_map(|(small, text)| Table3 { small, text, ..Default::default() });
    (option::of(any::<u8>()), option::of("[a-z]{0,9}"), option::of(inner), option::of(any::<u32>()))
        .prop_map(|(small, text, inner, word)| Table {
            small,
            text,
            inner,
            word,
            ..Default::default()
        })
}

fn strict_union() -> impl Strategy<Value = StrictUnion> {
    prop_oneof![
        any::<i32>().prop_map(StrictUnion::Number),
        "[a-z]{0,9}".prop_map(StrictUnion::Text),
        numbers().prop_map(StrictUnion::Numbers),
    ]
}

fn everything() -> impl Strategy<Value = Everything> {
    let flexible_union = prop_oneof![
        any::<i32>().prop_map(FlexibleUnion::Number),
        small().prop_map(FlexibleUnion::Small),
    ];
    let scalars = (
        prop_oneof![Just(StrictEnum::Minus), Just(StrictEnum::Zero), Just(StrictEnum::Plus)],
        any::<u32>().prop_map(FlexibleEnum::from_primitive_allow_unknown),
        (0..8u8).prop_map(StrictBits::from_bits_truncate),
        any::<u64>().prop_map(FlexibleBits::from_bits_retain),
    );
    let structs = (numbers(), strings(), vectors(), arrays(), option::of(node()));
    let rest =
        (table(), strict_union(), flexible_union, option::of(strict_union()), vec(table(), 0..3));
    (scalars, structs, rest).prop_map(|(scalars, structs, rest)| {
        let (strict_enum, flexible_enum, strict_bits, flexible_bits) = scalars;
        let (numbers, strings, vectors, arrays, node) = structs;
        let (table, strict_union, flexible_union, absent_union, tables) = rest;
        Everything {
            strict_enum,
            flexible_enum,
            strict_bits,
            flexible_bits,
            numbers,
            strings,
            vectors,
            arrays,
            node: node.map(Box::new),
            table,
            strict_union,
            flexible_union,
            absent_union: absent_union.map(Box::new),
            tables,
        }
    })
}

fn encode<T: WireType<Owned = T>>(value: T) -> Vec<u8> {
    Encoder::encode_all::<T>(value).unwrap().0
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..Default::default() })]

    #[test]
    fn decoding_undoes_encoding(value in everything()) {
        let bytes = encode(value.clone());
        prop_assert_eq!(bytes.len() % 8, 0);
        // Compared as bytes: a NaN is not equal to itself.
        let decoded = Decoder::decode_all::<Everything>(&bytes, &mut []).unwrap();
        prop_assert_eq!(encode(decoded), bytes);
    }

    #[test]
    fn a_changed_byte_is_rejected_or_canonical(value in everything(), at: prop::sample::Index, change in 1..=255u8) {
        let mut bytes = encode(value);
        let at = at.index(bytes.len());
        bytes[at] ^= change;
        if let Ok(decoded) = Decoder::decode_all::<Everything>(&bytes, &mut []) {
            match Encoder::encode_all::<Everything>(decoded.clone()) {
                // A member that became unknown cannot be encoded; one of a table is dropped.
                Err(error) => prop_assert_eq!(error, fidl::Error::UnknownUnionTag),
                Ok((again, _)) => {
                    let dropped = again.len() < bytes.len() || again != bytes;
                    if dropped {
                        let reduced = Decoder::decode_all::<Everything>(&again, &mut []).unwrap();
                        prop_assert_eq!(encode(reduced), again);
                    }
                }
            }
        }
    }

    #[test]
    fn a_changed_byte_of_a_type_without_unknowns_is_rejected_or_canonical(
        value in (numbers(), strings(), vectors(), arrays(), node()),
        which in 0..5usize,
        at: prop::sample::Index,
        change in 1..=255u8,
    ) {
        fn check<T: WireType<Owned = T>>(value: T, at: prop::sample::Index, change: u8) {
            let mut bytes = encode(value);
            let at = at.index(bytes.len());
            bytes[at] ^= change;
            if let Ok(decoded) = Decoder::decode_all::<T>(&bytes, &mut []) {
                assert_eq!(encode(decoded), bytes);
            }
        }
        let (numbers, strings, vectors, arrays, node) = value;
        match which {
            0 => check(numbers, at, change),
            1 => check(strings, at, change),
            2 => check(vectors, at, change),
            3 => check(arrays, at, change),
            _ => check(node, at, change),
        }
    }

    #[test]
    fn a_changed_byte_of_a_vector_of_structs_is_rejected_or_canonical(
        smalls in vec(small(), 1..300),
        numbers in vec(numbers(), 1..70),
        mixes in vec(mixed(), 1..30),
        at: prop::sample::Index,
        change in 1..=255u8,
    ) {
        type Vector<T> = fidl::encoding::Vector<T, { u32::MAX }>;
        fn check<T: WireType<Owned = T>>(values: Vec<T>, at: prop::sample::Index, change: u8) {
            let encode = |values| Encoder::encode_all::<Vector<T>>(values).unwrap().0;
            let decode = |bytes: &[u8]| Decoder::decode_all::<Vector<T>>(bytes, &mut []);
            let mut bytes = encode(values);
            assert_eq!(encode(decode(&bytes).unwrap()), bytes);
            let at = at.index(bytes.len());
            bytes[at] ^= change;
            if let Ok(decoded) = decode(&bytes) {
                assert_eq!(encode(decoded), bytes);
            }
        }
        check(smalls, at, change);
        check(numbers, at, change);
        check(mixes, at, change);
    }

    #[test]
    fn any_bytes_are_decoded_or_rejected(mut bytes in vec(any::<u8>(), 0..400), presence: bool) {
        if presence {
            // Presence markers are rare in random bytes; without them decoding ends early.
            for chunk in bytes.chunks_mut(16) {
                if let [.., a, b, c, d, e, f, g, h] = chunk {
                    (*a, *b, *c, *d, *e, *f, *g, *h) = (255, 255, 255, 255, 255, 255, 255, 255);
                }
            }
        }
        let _ = Decoder::decode_all::<Everything>(&bytes, &mut []);
        let _ = Decoder::decode_all::<Table>(&bytes, &mut []);
        let _ = Decoder::decode_all::<Vectors>(&bytes, &mut []);
        let _ = Decoder::decode_all::<FlexibleUnion>(&bytes, &mut []);
    }
}
