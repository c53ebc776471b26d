//! The console device behind queues that a hostile driver filled.
#![no_main]

use std::sync::Arc;

use fuchsia_zircon as zx;
use libfuzzer_sys::fuzz_target;
use virtio_console::{ConsoleDevice, RX, TX};
use virtio_device::fake_queue::hostile_queue;
use virtio_device::{Device, Io};

fuzz_target!(|choices: &[u8]| {
    let (rx, tx) = choices.split_at(choices.len() / 2);
    let queues = [Some(hostile_queue(rx)), Some(hostile_queue(tx))];
    let port = Arc::new(zx::Port::create());
    let (host, socket) = zx::Socket::create_stream();
    let mut device = ConsoleDevice::new(socket);
    for _ in 0..4 {
        let _ = host.write(choices);
        for queue in [RX, TX] {
            let _ = device.process(queue, &Io::new(&queues, &port));
        }
        let _ = host.read(&mut [0; 4096]);
    }
});
