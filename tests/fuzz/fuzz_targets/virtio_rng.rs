//! The entropy device behind a queue of any driver.
#![no_main]

mod driver;

use arbitrary::{Result, Unstructured};
use driver::{Request, Target};
use libfuzzer_sys::fuzz_target;
use virtio_device::Features;
use virtio_rng::RngDevice;

struct Rng;

impl Target for Rng {
    type Device = RngDevice;
    const QUEUES: u16 = 1;

    fn request(&mut self, _queue: u16, input: &mut Unstructured<'_>) -> Result<Request> {
        let readable = if input.ratio(1, 8)? { driver::bytes(64, input)? } else { Vec::new() };
        let writable = if input.ratio(1, 8)? { input.int_in_range(0..=70_000)? } else { 64 };
        Ok(Request { readable, writable })
    }

    fn check(&mut self, _queue: u16, _request: &[u8], answer: &[u8], room: usize) {
        assert_eq!(answer.len(), room.min(64 << 10));
    }
}

fuzz_target!(|choices: &[u8]| {
    let mut input = Unstructured::new(choices);
    let mut play = || -> Result<()> {
        let features = Features::from_bits_retain(input.arbitrary()?);
        driver::play(&mut Rng, RngDevice::new(), features, &mut input)
    };
    // The input may end anywhere.
    let _ = play();
});
