//! The entropy device behind a queue that a hostile driver filled.
#![no_main]

use std::sync::Arc;

use fuchsia_zircon as zx;
use libfuzzer_sys::fuzz_target;
use virtio_device::fake_queue::hostile_queue;
use virtio_device::{Device, Io};
use virtio_rng::RngDevice;

fuzz_target!(|choices: &[u8]| {
    let queues = [Some(hostile_queue(choices))];
    let port = Arc::new(zx::Port::create());
    let _ = RngDevice::new().process(0, &Io::new(&queues, &port));
});
