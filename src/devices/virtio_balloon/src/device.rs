//! The device: pages that the guest gives up and takes back (virtio 1.2 §5.5).

use futures::channel::oneshot;
use virtio_device::{
    Device, Features, GuestMemory, HeldChain, Io, Progress, Queue, QueueError, QueueSet,
    ReadableChain,
};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Most queues: inflate, deflate, statistics, reporting.
pub const QUEUES: u16 = 4;
/// `inflateq`.
pub const INFLATE: u16 = 0;
/// `deflateq`.
pub const DEFLATE: u16 = 1;

/// `VIRTIO_BALLOON_F_STATS_VQ`: there is a queue for statistics.
pub const F_STATS_VQ: Features = Features::from_bits_retain(1 << 1);
/// `VIRTIO_BALLOON_F_DEFLATE_ON_OOM`: the guest takes pages back when it has no others.
pub const F_DEFLATE_ON_OOM: Features = Features::from_bits_retain(1 << 2);
/// `VIRTIO_BALLOON_F_PAGE_REPORTING`: the guest tells of pages that it does not use.
pub const F_PAGE_REPORTING: Features = Features::from_bits_retain(1 << 5);

/// The guest names pages in this unit whatever its page size is, virtio 1.2 §5.5.6.
pub const PAGE_SIZE: u64 = 4096;

/// Requests in a row before others get their turn.
const BATCH: usize = 16;
/// Most statistics that are kept of one buffer; the specification has 10.
const MAX_STATS: usize = 64;

/// One statistic, `struct virtio_balloon_stat`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Stat {
    /// `VIRTIO_BALLOON_S_*`.
    pub tag: U16,
    /// Bytes or a count, by tag.
    pub value: U64,
}

/// Why there are no statistics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StatsError {
    /// `VIRTIO_BALLOON_F_STATS_VQ` was not negotiated, or not yet.
    #[error("The driver gives no statistics")]
    NotNegotiated,
    /// The driver has not given a buffer yet.
    #[error("The driver has not started giving statistics")]
    NotReady,
}

/// Pages that follow each other in either direction, gathered into one operation.
#[derive(Debug, Default)]
struct Run {
    first: u64,
    count: u64,
}

impl Run {
    /// Adds a page if it continues the run; otherwise returns the finished run and starts another.
    fn add(&mut self, page: u64) -> Option<Run> {
        if self.count == 0 {
            *self = Self { first: page, count: 1 };
        } else if self.first.checked_add(self.count) == Some(page) {
            self.count += 1;
        } else if page.checked_add(1) == Some(self.first) {
            *self = Self { first: page, count: self.count + 1 };
        } else {
            return Some(std::mem::replace(self, Self { first: page, count: 1 }));
        }
        None
    }
}

/// The balloon device.
#[derive(Debug, Default)]
pub struct BalloonDevice {
    /// Indices of the optional queues: each is behind those that were negotiated before it.
    stats_queue: Option<u16>,
    reporting_queue: Option<u16>,
    /// The buffer that the driver put its last statistics in; returning it asks for new ones.
    stats_buffer: Option<HeldChain>,
    waiting: Vec<oneshot::Sender<Vec<Stat>>>,
    inflated_pages: u64,
    reported_pages: u64,
}

impl BalloonDevice {
    /// A balloon that holds nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Pages that the guest has given up and not taken back, as it says.
    pub fn inflated_pages(&self) -> u64 {
        self.inflated_pages
    }

    /// Pages that the guest has reported as free since the start.
    pub fn reported_pages(&self) -> u64 {
        self.reported_pages
    }

    /// Asks the driver for statistics. They arrive when the driver runs; never, if it does not or is reset.
    ///
    /// # Errors
    /// [`StatsError`].
    pub fn request_stats(
        &mut self,
        io: &Io<'_>,
    ) -> Result<oneshot::Receiver<Vec<Stat>>, StatsError> {
        let queue =
            self.stats_queue.and_then(|index| io.queue(index)).ok_or(StatsError::NotNegotiated)?;
        self.waiting.retain(|waiting| !waiting.is_canceled());
        if let Some(buffer) = self.stats_buffer.take() {
            // Dropping the chain returns it, which is the request (virtio 1.2 §5.5.6.3).
            drop(queue.resume(buffer));
        } else if self.waiting.is_empty() {
            return Err(StatsError::NotReady);
        }
        let (sender, receiver) = oneshot::channel();
        self.waiting.push(sender);
        Ok(receiver)
    }

    /// Frees the pages that the chain lists.
    fn inflate(&mut self, mut chain: ReadableChain<'_>, memory: &GuestMemory) {
        let mut run = Run::default();
        while let Ok(page) = chain.read_obj::<U32>() {
            self.inflated_pages += 1;
            if let Some(done) = run.add(page.get().into()) {
                free(memory, done.first * PAGE_SIZE, done.count * PAGE_SIZE);
            }
        }
        free(memory, run.first * PAGE_SIZE, run.count * PAGE_SIZE);
    }

    /// Pages are there again when the guest touches them: there is nothing to do but count.
    fn deflate(&mut self, chain: &ReadableChain<'_>) {
        let pages = (chain.remaining() / size_of::<U32>()) as u64;
        self.inflated_pages = self.inflated_pages.saturating_sub(pages);
    }

    /// Frees the buffers themselves (virtio 1.2 §5.5.6.7); they become the guest's again when the chain is returned.
    fn report(&mut self, chain: ReadableChain<'_>, memory: &GuestMemory) {
        let mut chain = chain.into_writable();
        while let Some(buffer) = chain.take(usize::MAX) {
            self.reported_pages += buffer.len() as u64 / PAGE_SIZE;
            free(memory, buffer.addr(), buffer.len() as u64);
        }
    }

    fn take_stats(&mut self, mut chain: ReadableChain<'_>, queue: &Queue) {
        let mut stats = Vec::new();
        while let (true, Ok(stat)) = (stats.len() < MAX_STATS, chain.read_obj::<Stat>()) {
            stats.push(stat);
        }
        for waiting in self.waiting.drain(..) {
            // Who asked may have gone.
            let _ = waiting.send(stats.clone());
        }
        // A driver has one buffer. Should it give another, the older goes back.
        if let Some(older) = self.stats_buffer.replace(chain.hold()) {
            drop(queue.resume(older));
        }
    }
}

/// Gives a range of guest memory back to the host. A guest that names what it does not have harms nobody.
fn free(memory: &GuestMemory, addr: u64, len: u64) {
    if len == 0 {
        return;
    }
    if let Err(status) = memory.zero_range(addr, len) {
        tracing::warn!(%status, addr, len, "Pages of the balloon could not be freed");
    }
}

impl Device for BalloonDevice {
    fn ready(&mut self, features: Features, _io: &Io<'_>) -> QueueSet {
        let mut next = DEFLATE + 1;
        let mut index_if = |feature| {
            features.contains(feature).then(|| {
                next += 1;
                next - 1
            })
        };
        self.stats_queue = index_if(F_STATS_VQ);
        self.reporting_queue = index_if(F_PAGE_REPORTING);
        QueueSet::ALL
    }

    fn process(&mut self, index: u16, io: &Io<'_>) -> Result<Progress, QueueError> {
        let Some(queue) = io.queue(index) else { return Ok(Progress::Idle) };
        for _ in 0..BATCH {
            let Some(chain) = queue.pop()? else { return Ok(Progress::Idle) };
            match index {
                INFLATE => self.inflate(chain, queue.memory()),
                DEFLATE => self.deflate(&chain),
                _ if self.stats_queue == Some(index) => self.take_stats(chain, queue),
                _ if self.reporting_queue == Some(index) => self.report(chain, queue.memory()),
                _ => tracing::warn!(index, "The driver uses a queue that it has not negotiated"),
            }
        }
        Ok(Progress::More)
    }

    fn reset(&mut self) {
        // The guest's pages are its own again. Who waits for statistics is told by the dropped sender.
        *self = Self { reported_pages: self.reported_pages, ..Self::default() };
    }
}
