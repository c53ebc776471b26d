//! The console device behind queues of any driver, before a host that reads, writes and leaves when it likes.
#![no_main]

mod driver;

use arbitrary::{Result, Unstructured};
use driver::{Request, Target};
use fuchsia_zircon as zx;
use libfuzzer_sys::fuzz_target;
use virtio_console::{ConsoleDevice, QUEUES, RX, TX};
use virtio_device::{Features, Io, QueueSet};

struct Console {
    host: Option<zx::Socket>,
}

impl Target for Console {
    type Device = ConsoleDevice;
    const QUEUES: u16 = QUEUES;

    fn request(&mut self, queue: u16, input: &mut Unstructured<'_>) -> Result<Request> {
        let len = if input.ratio(1, 4)? { input.int_in_range(0..=70_000)? } else { 16 };
        let (readable, writable) = if (queue == TX) != input.ratio(1, 16)? {
            (vec![input.arbitrary()?; len], 0)
        } else {
            (Vec::new(), len)
        };
        Ok(Request { readable, writable })
    }

    fn host(
        &mut self,
        _device: &mut ConsoleDevice,
        _io: &Io<'_>,
        input: &mut Unstructured<'_>,
    ) -> Result<QueueSet> {
        let Some(host) = &self.host else { return Ok(QueueSet::EMPTY) };
        let len = if input.ratio(1, 4)? { input.int_in_range(0..=300_000)? } else { 16 };
        // What the socket says is the device's business.
        match input.int_in_range(0..=15)? {
            0u8 => self.host = None,
            1 => _ = host.half_close(),
            2..=8 => _ = host.write(&vec![input.arbitrary()?; len]),
            _ => _ = host.read(&mut vec![0; len]),
        }
        Ok(QueueSet::EMPTY)
    }

    fn check(&mut self, queue: u16, _request: &[u8], answer: &[u8], _room: usize) {
        assert!(queue == RX || answer.is_empty());
    }
}

fuzz_target!(|choices: &[u8]| {
    let mut input = Unstructured::new(choices);
    let mut play = || -> Result<()> {
        let features = Features::from_bits_retain(input.arbitrary()?);
        let (host, socket) = zx::Socket::create_stream();
        let mut console = Console { host: Some(host) };
        driver::play(&mut console, ConsoleDevice::new(socket), features, &mut input)
    };
    // The input may end anywhere.
    let _ = play();
});
