//! The device: frames between the queues and the [`Stack`] (virtio 1.2 §5.1.6).
//!
//! A frame for the guest is made only when there are buffers for it, so a guest that gives none slows its peers down
//! and costs no memory. Buffers are therefore taken from the queue ahead of the frame: as many as the largest one
//! needs.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::time::Instant;

use fuchsia_zircon as zx;
use virtio_device::{Device, Features, HeldChain, Io, Progress, Queue, QueueError, QueueSet};

use crate::offload::{self, HEADER, Transmitted, feature};
use crate::stack::{Forward, Frame, MAX_FRAME, MAX_LARGE_FRAME, Stack};

/// Number of queues: one pair.
pub const QUEUES: u16 = 2;
/// `receiveq1`: to the guest.
pub const RX: u16 = 0;
/// `transmitq1`: from the guest.
pub const TX: u16 = 1;

/// Chains, or frames, in a row before others get their turn.
const BATCH: usize = 64;

/// The buffers that wait for a frame, oldest first.
#[derive(Debug, Default)]
struct Buffers {
    chains: VecDeque<(HeldChain, usize)>,
    /// Bytes in all of them.
    len: usize,
}

impl Buffers {
    /// Bytes that one frame with its header may take.
    fn room(&self, mergeable: bool) -> usize {
        if mergeable { self.len } else { self.chains.front().map_or(0, |(_, len)| *len) }
    }

    /// How many of the buffers `len` bytes take.
    fn count(&self, len: usize) -> u16 {
        let mut left = len;
        let needed = self.chains.iter().take_while(|(_, size)| {
            let is_needed = left > 0;
            left = left.saturating_sub(*size);
            is_needed
        });
        needed.count() as u16
    }

    fn push(&mut self, chain: HeldChain, len: usize) {
        self.chains.push_back((chain, len));
        self.len += len;
    }

    fn pop(&mut self) -> Option<HeldChain> {
        let (chain, len) = self.chains.pop_front()?;
        self.len -= len;
        Some(chain)
    }

    fn clear(&mut self) {
        self.chains.clear();
        self.len = 0;
    }

    /// Writes `frame` into as many buffers as it needs, which become visible to the driver at once (§5.1.6.4.1).
    fn write(&mut self, queue: &Queue, frame: &Frame<'_>) {
        let count = self.count(HEADER + frame.len());
        let header = offload::received(&frame.offload, count);
        let [first, second, third] = frame.parts();
        let parts = [&header[..], first, second, third];
        let mut parts = parts.into_iter();
        let mut part: &[u8] = &[];
        let _together = queue.hold_used();
        for _ in 0..count {
            let Some(chain) = self.pop().and_then(|held| queue.resume(held)) else { return };
            let mut chain = chain.into_writable();
            loop {
                if part.is_empty() {
                    match parts.next() {
                        Some(next) => part = next,
                        None => break,
                    }
                }
                let written = chain.write_bytes(part);
                part = part.get(written..).unwrap_or_default();
                if !part.is_empty() {
                    break;
                }
            }
        }
    }
}

/// The network device.
#[derive(Debug)]
pub struct NetDevice {
    stack: Stack,
    negotiated: Features,
    buffers: Buffers,
    /// Space for one frame of the guest's, and a byte that tells when it is too long.
    frame: Box<[u8]>,
}

impl NetDevice {
    /// A device whose guest has the hardware address `mac`, on a network of its own.
    ///
    /// # Errors
    /// When the host has no poll object or thread left.
    pub fn new(mac: [u8; 6]) -> io::Result<Self> {
        Ok(Self {
            stack: Stack::new(mac)?,
            negotiated: Features::empty(),
            buffers: Buffers::default(),
            frame: vec![0; MAX_LARGE_FRAME + 1].into(),
        })
    }

    /// Listens on a port of the host for the guest; where, as the port may have been left open.
    ///
    /// # Errors
    /// When the host's port is taken, or not for this user.
    pub fn forward(&mut self, forward: &Forward) -> io::Result<SocketAddr> {
        self.stack.forward(forward)
    }

    fn receive(&mut self, queue: &Queue) -> Result<Progress, QueueError> {
        let now = Instant::now();
        let mergeable = self.negotiated.contains(feature::MRG_RXBUF);
        for _ in 0..BATCH {
            let is_full = self.gather(queue, mergeable)?;
            let room = self.buffers.room(mergeable);
            if room < HEADER + MAX_FRAME {
                // Without a full set, the queue is empty.
                return Ok(if is_full { Progress::More } else { Progress::Idle });
            }
            let buffers = &mut self.buffers;
            let mut deliver = |frame: &Frame<'_>| buffers.write(queue, frame);
            if !self.stack.next_frame(room - HEADER, now, &mut deliver) {
                return Ok(Progress::Blocked);
            }
        }
        Ok(Progress::More)
    }

    /// Takes buffers until the largest frame fits, or the queue is empty; whether it fits.
    fn gather(&mut self, queue: &Queue, mergeable: bool) -> Result<bool, QueueError> {
        // §5.1.6.3.1: without mergeable buffers each is to take any frame.
        let (wanted, least) =
            if mergeable { (HEADER + MAX_LARGE_FRAME, HEADER) } else { (1, HEADER + MAX_FRAME) };
        for _ in 0..BATCH {
            if self.buffers.room(mergeable) >= wanted {
                return Ok(true);
            }
            let Some(chain) = queue.pop()? else { return Ok(false) };
            let len = chain.writable_len();
            if len < least {
                // The buffer goes back empty.
                tracing::debug!(len, "The guest's buffer is too small for a frame");
                continue;
            }
            self.buffers.push(chain.hold(), len);
        }
        Ok(true)
    }

    fn transmit(&mut self, queue: &Queue) -> Result<Progress, QueueError> {
        let now = Instant::now();
        for _ in 0..BATCH {
            let Some(mut chain) = queue.pop()? else { return Ok(Progress::Idle) };
            let mut header = [0; HEADER];
            if chain.read_bytes(&mut header) < HEADER {
                continue;
            }
            let len = chain.read_bytes(&mut self.frame);
            let Some(left) = Transmitted::parse(&header, len, self.negotiated) else { continue };
            let most = if left.is_large { MAX_LARGE_FRAME } else { MAX_FRAME };
            // A longer one than a frame can be fills the buffer.
            if let (true, Some(frame)) = (len <= most, self.frame.get(..len)) {
                self.stack.receive(frame, left.needs_checksum, now);
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
                if let Some(queue) = io.queue(RX) {
                    let is_left = match self.receive(queue)? {
                        Progress::Idle => queue.enable_notifications(),
                        Progress::More => true,
                        Progress::Blocked => false,
                    };
                    if is_left {
                        io.waker(0).wake();
                    }
                }
                Ok(progress)
            }
            _ => Ok(Progress::Idle),
        }
    }

    fn ready(&mut self, features: Features, io: &Io<'_>) -> QueueSet {
        self.negotiated = features;
        let waker = io.waker(0);
        self.stack.set_waker(move || waker.wake());
        self.stack.start(offload::capabilities(features), Instant::now());
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
        self.buffers.clear();
        self.negotiated = Features::empty();
        self.stack.reset();
    }
}
