//! The device's side of a split virtqueue (virtio 1.2 §2.7), with indirect descriptors and event index.
//!
//! # Memory ordering
//!
//! The driver runs on other threads of the same machine (or, translated, as code on them), so the ordering rules are
//! those between two threads:
//! * The driver writes descriptors and ring entries, then the available index. The device loads that index with
//!   *acquire*, so the entries it then reads are at least as new.
//! * The device writes buffers and the used entry, then stores the used index with *release*.
//! * Suppression is a store-then-load on both sides: the device publishes the used index and then reads
//!   `used_event`/`flags`; the driver writes `used_event`/`flags` and then reads the used index. Neither acquire nor
//!   release orders a store before a later load, so both sides need a full fence between the two, or each may miss
//!   the other and a wake-up is lost. The same holds, with roles swapped, for `avail_event` and the available index.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use crate::chain::{HeldChain, ReadableChain, Segment, Segments};
use crate::error::{QueueConfigError, QueueError};
use crate::features::Features;
use crate::memory::{GuestMemory, GuestSlice};
use crate::ring::{
    AVAIL_F_NO_INTERRUPT, Descriptor, DescriptorFlags, QueueConfig, RING_ENTRIES, RING_FLAGS,
    RING_INDEX, USED_F_NO_NOTIFY, UsedElement,
};

/// Most buffers in a chain that comes through an indirect table. Drivers may exceed the queue size there although
/// virtio 1.2 §2.7.5.3.1 forbids it; this is the limit that other device implementations have.
const MAX_INDIRECT: u16 = 1024;

/// One queue of a device, as its driver configured it.
///
/// Not `Sync`: one thread at a time works on a queue. Several chains may be in flight and return in any order.
#[derive(Debug)]
pub struct Queue {
    memory: Arc<GuestMemory>,
    id: u64,
    config: QueueConfig,
    event_index: bool,
    indirect: bool,
    next_avail: Cell<u16>,
    next_used: Cell<u16>,
    /// The used index when the driver's wish for an interrupt was last looked at.
    signalled_used: Cell<u16>,
    in_flight: Cell<u16>,
    /// The used index that the driver sees stays behind: see [`Queue::hold_used`].
    is_holding: Cell<bool>,
    broken: Cell<Option<QueueError>>,
    /// Segment lists between two chains, so that a chain needs no allocation.
    spare: RefCell<Vec<Segments>>,
}

impl Queue {
    /// A queue at the place that the driver configured, with both indices at 0.
    ///
    /// Of `features`, those of the ring itself matter: [`Features::EVENT_IDX`] and [`Features::INDIRECT_DESC`].
    ///
    /// # Errors
    /// [`QueueConfigError`]: the driver's fault.
    pub fn new(
        memory: Arc<GuestMemory>,
        config: QueueConfig,
        features: Features,
    ) -> Result<Self, QueueConfigError> {
        static NEXT_ID: AtomicU64 = AtomicU64::new(0);
        config.validate(&memory)?;
        Ok(Self {
            memory,
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            config,
            event_index: features.contains(Features::EVENT_IDX),
            indirect: features.contains(Features::INDIRECT_DESC),
            next_avail: Cell::new(0),
            next_used: Cell::new(0),
            signalled_used: Cell::new(0),
            in_flight: Cell::new(0),
            is_holding: Cell::new(false),
            broken: Cell::new(None),
            spare: RefCell::new(vec![Segments::default()]),
        })
    }

    /// Number of descriptors.
    pub fn size(&self) -> u16 {
        self.config.size
    }

    /// The memory that the queue and its buffers are in.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    /// Whether the driver has made a chain available that [`Queue::pop`] would yield (or fail on).
    pub fn has_available(&self) -> bool {
        self.broken.get().is_none() && self.load_avail_index() != self.next_avail.get()
    }

    /// Takes the next chain that the driver made available; none when there is none.
    ///
    /// # Errors
    /// [`QueueError`] when the driver broke the protocol. The error stays: all further calls return it.
    pub fn pop(&self) -> Result<Option<ReadableChain<'_>>, QueueError> {
        if let Some(error) = self.broken.get() {
            return Err(error);
        }
        self.try_pop().inspect_err(|error| self.broken.set(Some(*error)))
    }

    fn try_pop(&self) -> Result<Option<ReadableChain<'_>>, QueueError> {
        let size = self.config.size;
        let position = self.next_avail.get();
        let ahead = self.load_avail_index().wrapping_sub(position);
        if ahead == 0 {
            return Ok(None);
        }
        if ahead > size {
            return Err(QueueError::AvailableIndex { ahead, size });
        }
        if self.in_flight.get() >= size {
            return Err(QueueError::TooManyInFlight);
        }
        let entry = RING_ENTRIES + usize::from(position % size) * size_of::<u16>();
        let head = load(self.avail(), entry);

        let mut segments = self.spare.borrow_mut().pop().unwrap_or_default();
        segments.clear();
        self.walk(head, &mut segments)?;
        self.next_avail.set(position.wrapping_add(1));
        self.in_flight.set(self.in_flight.get() + 1);
        Ok(Some(ReadableChain::new(self, head, segments)))
    }

    /// Goes on with a chain that was set aside; none if it is of another queue or of a time before a reset.
    pub fn resume(&self, held: HeldChain) -> Option<ReadableChain<'_>> {
        (held.queue == self.id).then(|| ReadableChain::new(self, held.head, held.segments))
    }

    /// Copies a chain's descriptors out of guest memory, checking each.
    ///
    /// Terminates: a direct chain has at most as many steps as the queue has descriptors, an indirect one at most
    /// [`MAX_INDIRECT`].
    fn walk(&self, head: u16, segments: &mut Segments) -> Result<(), QueueError> {
        let size = self.config.size;
        let table = self.part(self.config.desc, self.config.desc_len());
        let mut index = head;
        for _ in 0..size {
            let descriptor = read_descriptor(table, index, size)?;
            let flags = DescriptorFlags::from_bits_truncate(descriptor.flags.get());
            if flags.contains(DescriptorFlags::INDIRECT) {
                if flags.contains(DescriptorFlags::NEXT) {
                    return Err(QueueError::IndirectWithNext);
                }
                return self.walk_indirect(&descriptor, segments);
            }
            self.push_segment(&descriptor, flags, segments)?;
            if !flags.contains(DescriptorFlags::NEXT) {
                return Ok(());
            }
            index = descriptor.next.get();
        }
        Err(QueueError::ChainTooLong { limit: size })
    }

    fn walk_indirect(&self, outer: &Descriptor, segments: &mut Segments) -> Result<(), QueueError> {
        if !self.indirect {
            return Err(QueueError::IndirectNotNegotiated);
        }
        let bytes = outer.len.get();
        if bytes == 0 || !bytes.is_multiple_of(size_of::<Descriptor>() as u32) {
            return Err(QueueError::IndirectTableSize(bytes));
        }
        let table = self.memory.slice(outer.addr.get(), u64::from(bytes))?;
        let entries = u16::try_from(bytes / size_of::<Descriptor>() as u32).unwrap_or(u16::MAX);
        // Steps before this one were direct descriptors, which count against the same limit.
        let limit = MAX_INDIRECT.max(self.config.size);
        let steps = entries.min(limit.saturating_sub(segments.list.len() as u16));
        let mut index = 0;
        for _ in 0..steps {
            let descriptor = read_descriptor(table, index, entries)?;
            let flags = DescriptorFlags::from_bits_truncate(descriptor.flags.get());
            if flags.contains(DescriptorFlags::INDIRECT) {
                return Err(QueueError::NestedIndirect);
            }
            self.push_segment(&descriptor, flags, segments)?;
            if !flags.contains(DescriptorFlags::NEXT) {
                return Ok(());
            }
            index = descriptor.next.get();
        }
        Err(QueueError::ChainTooLong { limit: steps })
    }

    fn push_segment(
        &self,
        descriptor: &Descriptor,
        flags: DescriptorFlags,
        segments: &mut Segments,
    ) -> Result<(), QueueError> {
        let (addr, len) = (descriptor.addr.get(), descriptor.len.get());
        if len == 0 {
            return Err(QueueError::ZeroLength);
        }
        self.memory.slice(addr, u64::from(len))?;
        segments
            .readable_len
            .checked_add(segments.writable_len)
            .and_then(|sum| sum.checked_add(len))
            .ok_or(QueueError::ChainTooLarge)?;
        if flags.contains(DescriptorFlags::WRITE) {
            segments.writable_len += len;
        } else {
            if segments.list.len() != segments.readable {
                return Err(QueueError::ReadableAfterWritable);
            }
            segments.readable += 1;
            segments.readable_len += len;
        }
        segments.list.push(Segment { addr, len });
        Ok(())
    }

    /// Returns a chain to the driver: used entry first, then the index that makes it visible.
    pub(crate) fn put_back(&self, head: u16, written: u32, segments: Segments) {
        self.spare.borrow_mut().push(segments);
        self.in_flight.set(self.in_flight.get().saturating_sub(1));
        let position = self.next_used.get();
        let entry =
            RING_ENTRIES + usize::from(position % self.config.size) * size_of::<UsedElement>();
        let used = self.used();
        let element = UsedElement { id: u32::from(head).into(), len: written.into() };
        if let Some(slot) = used.get(entry, size_of::<UsedElement>()) {
            slot.write(&element);
        }
        let next = position.wrapping_add(1);
        self.next_used.set(next);
        if !self.is_holding.get() {
            used.store_u16(RING_INDEX, next, Ordering::Release);
        }
    }

    /// Has the driver see the chains that are returned from now on only when the result is dropped, all at once, as
    /// those of one network frame must be (virtio 1.2 §5.1.6.4.1). Holds are not nested.
    #[must_use = "when it is dropped the driver sees what was returned"]
    pub fn hold_used(&self) -> UsedHold<'_> {
        self.is_holding.set(true);
        UsedHold { queue: self }
    }

    /// Whether the driver wants an interrupt for the chains returned since this was last called.
    ///
    /// The caller sends one if so; virtio 1.2 §2.7.7 and §2.7.10.
    pub fn take_interrupt(&self) -> bool {
        let new = self.next_used.get();
        let old = self.signalled_used.replace(new);
        if new == old {
            return false;
        }
        // The used index must be visible before the driver's wish is read: see the module's head.
        fence(Ordering::SeqCst);
        if self.event_index {
            let used_event = load(self.avail(), RING_ENTRIES + 2 * usize::from(self.config.size));
            // Whether `used_event` is one of the entries old..new, in arithmetic modulo 2^16.
            new.wrapping_sub(used_event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            load(self.avail(), RING_FLAGS) & AVAIL_F_NO_INTERRUPT == 0
        }
    }

    /// Asks the driver not to notify while the device is looking at the queue anyway.
    ///
    /// With event index there is nothing to do: a threshold that stays behind asks for no notification.
    pub fn disable_notifications(&self) {
        if !self.event_index {
            self.used().store_u16(RING_FLAGS, USED_F_NO_NOTIFY, Ordering::Relaxed);
        }
    }

    /// Asks the driver to notify of the next chain, before the device sleeps.
    ///
    /// Returns whether chains are available by now; then no notification may come for them, and the caller has to
    /// go on working instead of sleeping.
    #[must_use = "chains that came in between are not notified"]
    pub fn enable_notifications(&self) -> bool {
        if self.event_index {
            let avail_event =
                RING_ENTRIES + usize::from(self.config.size) * size_of::<UsedElement>();
            self.used().store_u16(avail_event, self.next_avail.get(), Ordering::Relaxed);
        } else {
            self.used().store_u16(RING_FLAGS, 0, Ordering::Relaxed);
        }
        // The wish must be visible before the index is read again: see the module's head.
        fence(Ordering::SeqCst);
        self.has_available()
    }

    fn load_avail_index(&self) -> u16 {
        load(self.avail(), RING_INDEX)
    }

    fn avail(&self) -> GuestSlice<'_> {
        self.part(self.config.avail, self.config.avail_len())
    }

    fn used(&self) -> GuestSlice<'_> {
        self.part(self.config.used, self.config.used_len())
    }

    fn part(&self, addr: u64, len: u64) -> GuestSlice<'_> {
        self.memory
            .slice(addr, len)
            .expect("validated when the queue was made; guest memory does not shrink")
    }
}

/// Returned chains that the driver does not see yet.
#[derive(Debug)]
pub struct UsedHold<'q> {
    queue: &'q Queue,
}

impl Drop for UsedHold<'_> {
    fn drop(&mut self) {
        self.queue.is_holding.set(false);
        let next = self.queue.next_used.get();
        self.queue.used().store_u16(RING_INDEX, next, Ordering::Release);
    }
}

/// An aligned word of a ring. Ring parts are aligned and long enough (validated), so there is always one.
fn load(ring: GuestSlice<'_>, offset: usize) -> u16 {
    ring.load_u16(offset, Ordering::Acquire).expect("an aligned offset within a validated ring")
}

fn read_descriptor(table: GuestSlice<'_>, index: u16, size: u16) -> Result<Descriptor, QueueError> {
    table
        .get(usize::from(index) * size_of::<Descriptor>(), size_of::<Descriptor>())
        .and_then(|slice| slice.read())
        .ok_or(QueueError::DescriptorIndex { index, size })
}
