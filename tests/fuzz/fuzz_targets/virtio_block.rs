//! The block device behind a queue that a hostile driver filled.
#![no_main]

use std::sync::Arc;

use fuchsia_zircon as zx;
use libfuzzer_sys::fuzz_target;
use virtio_block::{Backend, BackendError, BlockDevice, DiskInfo};
use virtio_device::fake_queue::hostile_queue;
use virtio_device::{Device, Io};

/// A disk that is all zeroes and forgets, but insists on the promises that the device makes to its back-end.
struct Void;

impl Void {
    fn check(&self, offset: u64, len: u64) -> Result<(), BackendError> {
        assert!(offset % 512 == 0 && len % 512 == 0 && offset + len <= self.capacity());
        Ok(())
    }
}

impl Backend for Void {
    fn capacity(&self) -> u64 {
        1 << 20
    }

    fn read(&self, buf: &mut [u8], offset: u64) -> Result<(), BackendError> {
        buf.fill(0);
        self.check(offset, buf.len() as u64)
    }

    fn write(&self, buf: &[u8], offset: u64) -> Result<(), BackendError> {
        self.check(offset, buf.len() as u64)
    }

    fn flush(&self) -> Result<(), BackendError> {
        Ok(())
    }

    fn discard(&self, offset: u64, len: u64) -> Result<(), BackendError> {
        self.check(offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64, _unmap: bool) -> Result<(), BackendError> {
        self.check(offset, len)
    }
}

fuzz_target!(|choices: &[u8]| {
    let queues = [Some(hostile_queue(choices))];
    let port = Arc::new(zx::Port::create());
    let mut device = BlockDevice::new(Arc::new(Void), DiskInfo::new("fuzz", false));
    for _ in 0..4 {
        let _ = device.process(0, &Io::new(&queues, &port));
    }
});
