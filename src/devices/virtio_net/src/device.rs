//! The device: frames between the queues and the [`Stack`] (virtio 1.2 §5.1.6).
//!
//! A frame for the guest is made only when there is a buffer for it, so a guest that gives none slows its peers down
//! and costs no memory.

use std::io;
use std::time::Instant;

use fuchsia_zircon as zx;
use virtio_device::{Device, Features, Io, Progress, Queue, QueueError, QueueSet};

use crate::stack::{MAX_FRAME, Stack};

/// Number of queues: one pair.
pub const QUEUES: u16 = 2;
/// `receiveq1`: to the guest.
pub const RX: u16 = 0;
/// `transmitq1`: from the guest.
pub const TX: u16 = 1;

/// Chains in a row before others get their turn.
const BATCH: usize = 64;
/// Size of `struct virtio_net_hdr` in bytes (§5.1.6), which ends with `num_buffers` for all modern drivers.
const HEADER: usize = 12;
/// The header of a frame for the guest: no offload, and `num_buffers` 1 (§5.1.6.4.1).
const RX_HEADER: [u8; HEADER] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];

/// The network device.
#[derive(Debug)]
pub struct NetDevice {
    stack: Stack,
    buffer: Box<[u8]>,
}

impl NetDevice {
    /// A device whose guest has the hardware address `mac`, on a network of its own.
    ///
    /// # Errors
    /// When the host has no poll object or thread left.
    pub fn new(mac: [u8; 6]) -> io::Result<Self> {
        Ok(Self { stack: Stack::new(mac)?, buffer: vec![0; MAX_FRAME + 1].into() })
    }

    fn receive(&mut self, queue: &Queue) -> Result<Progress, QueueError> {
        let now = Instant::now();
        for _ in 0..BATCH {
            if !queue.has_available() {
                // Tells a broken queue from an empty one.
                return queue.pop().map(|_| Progress::Idle);
            }
            let Some(frame) = self.stack.next_frame(now) else { return Ok(Progress::Blocked) };
            let Some(chain) = queue.pop()? else { return Ok(Progress::Idle) };
            if chain.writable_len() < HEADER + frame.len() {
                // Against §5.1.6.3.1. The buffer goes back empty; the frame is lost, as on a real wire.
                tracing::debug!(len = frame.len(), "The guest's buffer is too small for a frame");
                continue;
            }
            let mut chain = chain.into_writable();
            chain.write_bytes(&RX_HEADER);
            chain.write_bytes(&frame);
        }
        Ok(Progress::More)
    }

    fn transmit(&mut self, queue: &Queue) -> Result<Progress, QueueError> {
        let now = Instant::now();
        for _ in 0..BATCH {
            let Some(mut chain) = queue.pop()? else { return Ok(Progress::Idle) };
            chain.skip(HEADER);
            let len = chain.read_bytes(&mut self.buffer);
            // A longer one than a frame can be fills the buffer.
            if let (true, Some(frame)) = (len <= MAX_FRAME, self.buffer.get(..len)) {
                self.stack.receive(frame, now);
            }
        }
        Ok(Progress::More)
    }
}

impl Device for NetDevice {
    fn process(&mut self, index: u16, io: &Io<'_>) -> Result<Progress, QueueError> {
        match (index, io.queue(index)) {
            (RX, Some(queue)) => self.receive(queue),
            (TX, Some(queue)) => {
                let progress = self.transmit(queue)?;
                // The guest's frames have made answers, and nothing else says so.
                if self.stack.has_frames() && io.queue(RX).is_some() {
                    io.waker(0).wake();
                }
                Ok(progress)
            }
            _ => Ok(Progress::Idle),
        }
    }

    fn ready(&mut self, _features: Features, io: &Io<'_>) -> QueueSet {
        let waker = io.waker(0);
        self.stack.set_waker(move || waker.wake());
        QueueSet::ALL
    }

    fn signaled(&mut self, _token: u32, _observed: zx::Signals, _io: &Io<'_>) -> QueueSet {
        self.stack.handle_events(Instant::now());
        QueueSet::of(RX)
    }

    fn deadline(&self) -> zx::Time {
        self.stack.deadline().map_or(zx::Time::INFINITE, |deadline| {
            let left = deadline.saturating_duration_since(Instant::now());
            zx::Time::after(zx::Duration::from_nanos(
                i64::try_from(left.as_nanos()).unwrap_or(i64::MAX),
            ))
        })
    }

    fn deadline_passed(&mut self, _io: &Io<'_>) -> QueueSet {
        self.stack.expire(Instant::now());
        QueueSet::of(RX)
    }

    fn reset(&mut self) {
        self.stack.reset();
    }
}
