//! Encoding and decoding against copying the same bytes, at 60 KiB, where a message is nearly full. After divan's table it
//! says the ratios of the rates, which should be at least 0.5: of the fastest of many rounds, taken in turn. Decoding
//! makes a new vector, and is compared with a copy that does. Structs with booleans have each of those looked at, and structs
//! with enums and bits are in memory otherwise than on the wire, so that each member is: their ratios are there to be seen, and
//! nothing that a copy could be held to.

use divan::counter::BytesCount;
use divan::{Bencher, black_box};
use fidl::encoding::{Decoder, Encoder, ValueType, Vector, WireType};
use fidl_test_wire::{FlexibleBits, FlexibleEnum, Mixed, Numbers, Pair, Small, StrictEnum};
use std::time::{Duration, Instant};

const SIZE: usize = 60 * 1024;

fn main() {
    divan::main();
    say_ratios::<Bytes>("bytes", vec![7; SIZE]);
    say_ratios::<Words>("words", vec![7; SIZE / 8]);
    say_ratios::<Pairs>("structs", vec![Pair { a: 1, b: 2 }; SIZE / 8]);
    say_ratios::<Structs>("structs with padding", smalls());
    say_ratios::<Vector<Numbers, { u32::MAX }>>("structs with a boolean", numbers());
    say_ratios::<Vector<Mixed, { u32::MAX }>>("structs with enums and bits", mixed());
}

const ROUNDS: usize = 3000;

fn time<R>(action: impl FnOnce() -> R) -> Duration {
    let start = Instant::now();
    let result = action();
    let time = start.elapsed();
    drop(black_box(result));
    time
}

/// Bytes that begin at another place in a page in each round, as messages do in a buffer: at a multiple of 16.
struct Moving {
    room: Vec<u8>,
    start: usize,
}

impl Moving {
    fn new(bytes: &[u8]) -> Moving {
        let mut room = bytes.to_vec();
        room.resize(bytes.len() + 4096, 0);
        Moving { room, start: 0 }
    }

    fn in_round(&mut self, round: usize) -> &[u8] {
        let (len, start) = (self.room.len() - 4096, round % 64 * 64);
        self.room.copy_within(self.start..self.start + len, start);
        self.start = start;
        &self.room[start..start + len]
    }
}

fn say_ratios<T: ValueType>(name: &str, value: T::Owned)
where
    T::Owned: Clone,
{
    let (wire, _) = Encoder::encode_all::<T>(value.clone()).unwrap();
    let (mut wire, mut from) = (Moving::new(&wire), Moving::new(&[7; SIZE]));
    let mut to = vec![0u8; SIZE];
    let mut best = [Duration::MAX; 4];
    for round in 0..ROUNDS {
        // A copy whose ends lie unluckily to each other, modulo a page, takes twice as long.
        let (wire, from) = (wire.in_round(round), from.in_round(round));
        let times = [
            time(|| black_box(to.as_mut_slice()).copy_from_slice(black_box(from))),
            time(|| black_box(from).to_vec()),
            time(|| {
                Encoder::with_encoded::<T, _>(T::borrow(black_box(&value)), |bytes| {
                    black_box(bytes.len());
                })
            }),
            time(|| Decoder::decode_all::<T>(black_box(wire), &mut []).unwrap()),
        ];
        for (best, time) in best.iter_mut().zip(times) {
            *best = time.min(*best);
        }
    }
    let [copy, copy_to_new, encode, decode] = best.map(|time| time.as_secs_f64());
    println!(
        "{name}: encoding at {:.2} of memcpy's rate, decoding at {:.2}",
        copy / encode,
        copy_to_new / decode
    );
}

#[divan::bench]
fn memcpy(bencher: Bencher<'_, '_>) {
    let from = vec![7u8; SIZE];
    let mut to = vec![0u8; SIZE];
    bencher.counter(BytesCount::new(SIZE)).bench_local(|| {
        black_box(to.as_mut_slice()).copy_from_slice(black_box(&from));
    });
}

#[divan::bench]
fn memcpy_to_new_vec(bencher: Bencher<'_, '_>) {
    let from = vec![7u8; SIZE];
    bencher.counter(BytesCount::new(SIZE)).bench(|| black_box(from.as_slice()).to_vec());
}

fn encode<T: ValueType>(bencher: Bencher<'_, '_>, value: &T::Owned) {
    bencher.counter(BytesCount::new(SIZE)).bench_local(|| {
        Encoder::with_encoded::<T, _>(T::borrow(black_box(value)), |bytes| {
            black_box(bytes.len());
        })
        .unwrap();
    });
}

fn decode<T: WireType>(bencher: Bencher<'_, '_>, value: T::Owned) {
    let (bytes, _) = Encoder::encode_all::<T>(value).unwrap();
    bencher
        .counter(BytesCount::new(SIZE))
        .bench_local(|| Decoder::decode_all::<T>(black_box(&bytes), &mut []).unwrap());
}

type Bytes = Vector<u8, { u32::MAX }>;
type Words = Vector<u64, { u32::MAX }>;
type Pairs = Vector<Pair, { u32::MAX }>;
type Structs = Vector<Small, { u32::MAX }>;

fn smalls() -> Vec<Small> {
    vec![Small { a: 1, b: 2 }; SIZE / 4]
}

fn numbers() -> Vec<Numbers> {
    let numbers = Numbers { b: true, i8: 1, u16: 2, i32: 3, u64: 4, f32: 5.0, u8: 6, f64: 7.0 };
    vec![numbers; SIZE / 40]
}

fn mixed() -> Vec<Mixed> {
    let mixed = Mixed {
        kind: StrictEnum::Plus,
        flag: true,
        small: Small { a: 1, b: 2 },
        other: FlexibleEnum::A,
        bits: FlexibleBits::LOW,
        address: [7; 6],
    };
    vec![mixed; SIZE / 32]
}

#[divan::bench]
fn encode_bytes(bencher: Bencher<'_, '_>) {
    encode::<Bytes>(bencher, &vec![7; SIZE]);
}

#[divan::bench]
fn encode_words(bencher: Bencher<'_, '_>) {
    encode::<Words>(bencher, &vec![7; SIZE / 8]);
}

#[divan::bench]
fn encode_structs(bencher: Bencher<'_, '_>) {
    encode::<Structs>(bencher, &smalls());
}

#[divan::bench]
fn decode_bytes(bencher: Bencher<'_, '_>) {
    decode::<Bytes>(bencher, vec![7; SIZE]);
}

#[divan::bench]
fn decode_words(bencher: Bencher<'_, '_>) {
    decode::<Words>(bencher, vec![7; SIZE / 8]);
}

#[divan::bench]
fn decode_structs(bencher: Bencher<'_, '_>) {
    decode::<Structs>(bencher, smalls());
}
