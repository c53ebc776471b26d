//! The device: every buffer is filled (virtio 1.2 §5.4.6).

use fuchsia_zircon as zx;
use virtio_device::{Device, Io, Progress, QueueError, ReadableChain};

/// Number of queues.
pub const QUEUES: u16 = 1;

/// Requests in a row before others get their turn.
const BATCH: usize = 32;
/// Most bytes of one answer. A driver must take what it gets (virtio 1.2 §5.4.6.1), and one that asks for gigabytes
/// shall not keep the device busy.
const MAX_ANSWER: usize = 64 << 10;

/// The entropy device.
#[derive(Debug, Default)]
pub struct RngDevice(());

impl RngDevice {
    /// A device that draws from the kernel's random numbers.
    pub fn new() -> Self {
        Self::default()
    }
}

fn answer(chain: ReadableChain<'_>) {
    let mut chain = chain.into_writable();
    let mut bytes = [0; 1024];
    let mut left = MAX_ANSWER.min(chain.remaining());
    while left > 0 {
        let piece = &mut bytes[..left.min(1024)];
        zx::cprng_draw(piece);
        chain.write_bytes(piece);
        left -= piece.len();
    }
}

impl Device for RngDevice {
    fn process(&mut self, queue: u16, io: &Io<'_>) -> Result<Progress, QueueError> {
        let Some(queue) = io.queue(queue) else { return Ok(Progress::Idle) };
        for _ in 0..BATCH {
            match queue.pop()? {
                Some(chain) => answer(chain),
                None => return Ok(Progress::Idle),
            }
        }
        Ok(Progress::More)
    }
}
