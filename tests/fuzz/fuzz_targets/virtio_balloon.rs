//! The balloon device behind queues that a hostile driver filled.
#![no_main]

use std::sync::Arc;

use fuchsia_zircon as zx;
use libfuzzer_sys::fuzz_target;
use virtio_balloon::{BalloonDevice, F_PAGE_REPORTING, F_STATS_VQ, QUEUES};
use virtio_device::fake_queue::hostile_queue;
use virtio_device::{Device, Io};

fuzz_target!(|choices: &[u8]| {
    let queues: Vec<_> = (0..QUEUES).map(|_| Some(hostile_queue(choices))).collect();
    let port = Arc::new(zx::Port::create());
    let io = Io::new(&queues, &port);
    let mut device = BalloonDevice::new();
    device.ready(F_STATS_VQ | F_PAGE_REPORTING, &io);
    for queue in (0..QUEUES).cycle().take(8) {
        let _ = device.process(queue, &io);
        let _ = device.request_stats(&io);
    }
});
