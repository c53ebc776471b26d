//! The network device behind queues that a hostile driver filled.
#![no_main]

use std::sync::Arc;

use fuchsia_zircon as zx;
use libfuzzer_sys::fuzz_target;
use virtio_device::fake_queue::hostile_queue;
use virtio_device::{Device, Features, Io};
use virtio_net::{NetDevice, RX, TX};

fuzz_target!(|choices: &[u8]| {
    let (rx, tx) = choices.split_at(choices.len() / 2);
    let queues = [Some(hostile_queue(rx)), Some(hostile_queue(tx))];
    let port = Arc::new(zx::Port::create());
    let io = Io::new(&queues, &port);
    let mut device = NetDevice::new([2, 0, 0, 0, 0, 1]).expect("a device");
    let features = choices.first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes));
    device.ready(Features::from_bits_retain(features), &io);
    for _ in 0..4 {
        for queue in [TX, RX] {
            let _ = device.process(queue, &io);
        }
    }
});
