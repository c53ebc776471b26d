//! The driver's side of a split virtqueue, for tests and fuzz targets of devices.
//!
//! [`FakeDriver`] lays a queue out in guest memory, builds chains and reads what the device returned. It obeys the
//! specification unless told otherwise: the `raw_*` methods and [`ChainBuilder::raw`] say to the device whatever a
//! broken or hostile driver could.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use crate::features::Features;
use crate::memory::{GuestMemory, GuestSlice};
use crate::queue::Queue;
use crate::ring::{
    AVAIL_F_NO_INTERRUPT, Descriptor, DescriptorFlags, QueueConfig, RING_ENTRIES, RING_FLAGS,
    RING_INDEX, USED_F_NO_NOTIFY, UsedElement,
};

/// A chain that the device returned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Used {
    /// Index of the chain's first descriptor, as [`ChainBuilder::publish`] returned it.
    pub head: u16,
    /// What the device says it wrote, in bytes.
    pub len: u32,
    /// The writable buffers' contents, one after the other, in full.
    pub data: Vec<u8>,
}

#[derive(Debug)]
struct Outstanding {
    descriptors: Vec<u16>,
    writable: Vec<(u64, u32)>,
}

/// A driver of one queue.
///
/// Methods panic where a test would be wrong: no room for rings or buffers, or a used entry that was never available.
#[derive(Debug)]
pub struct FakeDriver {
    memory: Arc<GuestMemory>,
    config: QueueConfig,
    features: Features,
    buffers: std::ops::Range<u64>,
    next_buffer: u64,
    free: Vec<u16>,
    outstanding: BTreeMap<u16, Outstanding>,
    avail_index: u16,
    kicked_index: u16,
    used_index: u16,
}

impl FakeDriver {
    /// A queue of `size` descriptors at the front of `area`, whose rest is for buffers.
    pub fn new(
        memory: &Arc<GuestMemory>,
        area: std::ops::Range<u64>,
        size: u16,
        features: Features,
    ) -> Self {
        let mut config =
            QueueConfig { size, desc: area.start.next_multiple_of(16), avail: 0, used: 0 };
        config.avail = config.desc + config.desc_len();
        config.used = (config.avail + config.avail_len()).next_multiple_of(4);
        let buffers = (config.used + config.used_len()).next_multiple_of(16)..area.end;
        assert!(buffers.start < buffers.end, "the area has room for the rings");
        config.validate(memory).expect("the area is in guest memory");
        Self {
            memory: memory.clone(),
            config,
            features,
            next_buffer: buffers.start,
            buffers,
            free: (0..size).rev().collect(),
            outstanding: BTreeMap::new(),
            avail_index: 0,
            kicked_index: 0,
            used_index: 0,
        }
    }

    /// Where the queue is.
    pub fn config(&self) -> QueueConfig {
        self.config
    }

    /// The device's side of this queue.
    pub fn queue(&self) -> Queue {
        Queue::new(self.memory.clone(), self.config, self.features).expect("the layout is valid")
    }

    /// Starts a chain.
    pub fn chain(&mut self) -> ChainBuilder<'_> {
        ChainBuilder { driver: self, entries: Vec::new(), indirect: false }
    }

    /// Takes a free buffer of `len` bytes; its guest-physical address.
    pub fn allocate(&mut self, len: u64) -> u64 {
        if self.outstanding.is_empty() && self.next_buffer + len > self.buffers.end {
            self.next_buffer = self.buffers.start;
        }
        let addr = self.next_buffer;
        self.next_buffer = (addr + len).next_multiple_of(16);
        assert!(addr + len <= self.buffers.end, "the area has room for the buffers");
        addr
    }

    /// The next chain that the device returned, oldest first.
    pub fn take_used(&mut self) -> Option<Used> {
        let used = self.used();
        if used.load_u16(RING_INDEX, Ordering::Acquire) == Some(self.used_index) {
            return None;
        }
        let entry = RING_ENTRIES
            + usize::from(self.used_index % self.config.size) * size_of::<UsedElement>();
        let element: UsedElement = used
            .get(entry, size_of::<UsedElement>())
            .and_then(|slot| slot.read())
            .expect("an entry of the ring");
        self.used_index = self.used_index.wrapping_add(1);
        let head = u16::try_from(element.id.get()).expect("a descriptor index");
        let chain = self.outstanding.remove(&head).expect("the device returns what it was given");
        let mut data = Vec::new();
        for (addr, len) in chain.writable {
            let start = data.len();
            data.resize(start + len as usize, 0);
            self.memory.slice(addr, len.into()).expect("our buffer").copy_to(&mut data[start..]);
        }
        self.free.extend(chain.descriptors);
        Some(Used { head, len: element.len.get(), data })
    }

    /// All chains that the device has returned by now.
    pub fn take_all_used(&mut self) -> Vec<Used> {
        std::iter::from_fn(|| self.take_used()).collect()
    }

    /// Number of chains in the device's hands.
    pub fn outstanding(&self) -> usize {
        self.outstanding.len()
    }

    /// Free descriptors.
    pub fn free_descriptors(&self) -> usize {
        self.free.len()
    }

    /// Whether the device wants a notification for what was made available since this was last called.
    pub fn take_kick(&mut self) -> bool {
        let (old, new) = (self.kicked_index, self.avail_index);
        self.kicked_index = new;
        fence(Ordering::SeqCst);
        if self.features.contains(Features::EVENT_IDX) {
            let at = RING_ENTRIES + usize::from(self.config.size) * size_of::<UsedElement>();
            let event = self.used().load_u16(at, Ordering::Acquire).expect("in the ring");
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            new != old
                && self.used().load_u16(RING_FLAGS, Ordering::Acquire) != Some(USED_F_NO_NOTIFY)
        }
    }

    /// Asks for an interrupt with the next returned chain, or for none.
    ///
    /// Returns whether chains have been returned by now, for which no interrupt may come.
    pub fn enable_interrupts(&self, enable: bool) -> bool {
        if self.features.contains(Features::EVENT_IDX) {
            let event = if enable { self.used_index } else { self.used_index.wrapping_sub(1) };
            let at = RING_ENTRIES + 2 * usize::from(self.config.size);
            self.avail().store_u16(at, event, Ordering::Relaxed);
        } else {
            let flags = if enable { 0 } else { AVAIL_F_NO_INTERRUPT };
            self.avail().store_u16(RING_FLAGS, flags, Ordering::Relaxed);
        }
        fence(Ordering::SeqCst);
        self.used().load_u16(RING_INDEX, Ordering::Acquire) != Some(self.used_index)
    }

    /// Writes a descriptor table entry, whatever it says.
    pub fn raw_descriptor(&self, index: u16, descriptor: Descriptor) {
        let table = self.memory.slice(self.config.desc, self.config.desc_len()).expect("validated");
        let slot = table.get(usize::from(index) * size_of::<Descriptor>(), size_of::<Descriptor>());
        slot.expect("an index of the table").write(&descriptor);
    }

    /// Makes the chain that starts at `head` available, whatever is there.
    pub fn raw_publish(&mut self, head: u16) {
        let at = RING_ENTRIES + 2 * usize::from(self.avail_index % self.config.size);
        self.avail().store_u16(at, head, Ordering::Relaxed);
        self.raw_avail_index(self.avail_index.wrapping_add(1));
    }

    /// Sets the available index.
    pub fn raw_avail_index(&mut self, index: u16) {
        self.avail_index = index;
        self.avail().store_u16(RING_INDEX, index, Ordering::Release);
    }

    fn avail(&self) -> GuestSlice<'_> {
        self.memory.slice(self.config.avail, self.config.avail_len()).expect("validated")
    }

    fn used(&self) -> GuestSlice<'_> {
        self.memory.slice(self.config.used, self.config.used_len()).expect("validated")
    }
}

/// A queue of 16 descriptors in 64 KiB of memory that a hostile driver filled, for property tests and fuzz targets.
///
/// `choices` are turned into ring contents such that most of them are nearly right: addresses and lengths are of the
/// size of the memory, descriptor indices of that of the table. The rest of the memory repeats `choices`.
pub fn hostile_queue(choices: &[u8]) -> Queue {
    const MEMORY: usize = 64 << 10;
    const SIZE: u16 = 16;
    let config = QueueConfig { size: SIZE, desc: 0, avail: 0x100, used: 0x200 };
    let memory = Arc::new(GuestMemory::anonymous(MEMORY));
    let all = memory.slice(0, MEMORY as u64).expect("all of it");
    let pattern: Vec<u8> = choices.iter().copied().chain([0]).cycle().take(MEMORY).collect();
    all.copy_from(&pattern);
    let mut choices = choices
        .chunks(2)
        .map(|pair| u16::from_le_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
    let mut next = || choices.next().unwrap_or(0);
    let flags = next();
    let ahead = next() % (SIZE + 2);
    for (offset, word) in [(0x100, flags & 1), (0x102, ahead)] {
        memory.slice(offset, 2).expect("in memory").write(&word);
    }
    for entry in 0..u64::from(SIZE) {
        memory.slice(0x104 + 2 * entry, 2).expect("in memory").write(&(next() % (SIZE + 1)));
    }
    // Two tables: the queue's, and one that indirect descriptors can find at 0x1000.
    for table in [0, 0x1000] {
        for index in 0..u64::from(SIZE) {
            let (addr, len, flags, follower) = (next(), next(), next(), next());
            let indirect = flags & 0x1c == 0x1c;
            let kind = DescriptorFlags::from_bits_truncate(flags & 3 | u16::from(indirect) << 2);
            let descriptor = Descriptor {
                addr: if indirect { 0x1000 } else { u64::from(addr) }.into(),
                len: if indirect { u32::from(len % 20) * 16 } else { u32::from(len) }.into(),
                flags: kind.bits().into(),
                next: (follower % (SIZE + 1)).into(),
            };
            memory.slice(table + 16 * index, 16).expect("in memory").write(&descriptor);
        }
    }
    let features = if flags & 2 == 0 { Features::INDIRECT_DESC } else { Features::all() };
    Queue::new(memory, config, features).expect("the layout is valid")
}

/// A chain in the making.
#[derive(Debug)]
pub struct ChainBuilder<'d> {
    driver: &'d mut FakeDriver,
    entries: Vec<Descriptor>,
    indirect: bool,
}

impl ChainBuilder<'_> {
    /// Adds a device-readable buffer with these bytes.
    pub fn readable(mut self, bytes: &[u8]) -> Self {
        let addr = self.driver.allocate(bytes.len() as u64);
        self.driver.memory.slice(addr, bytes.len() as u64).expect("allocated").copy_from(bytes);
        self.push(addr, bytes.len() as u32, DescriptorFlags::empty());
        self
    }

    /// Adds a device-writable buffer of `len` bytes, filled with 0xa5 until the device writes.
    pub fn writable(mut self, len: u32) -> Self {
        let addr = self.driver.allocate(len.into());
        self.driver
            .memory
            .slice(addr, len.into())
            .expect("allocated")
            .copy_from(&vec![0xa5; len as usize]);
        self.push(addr, len, DescriptorFlags::WRITE);
        self
    }

    /// Adds a buffer at an address of the caller's choice.
    pub fn raw(mut self, addr: u64, len: u32, flags: DescriptorFlags) -> Self {
        self.push(addr, len, flags);
        self
    }

    /// Puts the chain into an indirect table.
    pub fn indirect(mut self) -> Self {
        self.indirect = true;
        self
    }

    fn push(&mut self, addr: u64, len: u32, flags: DescriptorFlags) {
        let flags = flags.bits().into();
        self.entries.push(Descriptor { addr: addr.into(), len: len.into(), flags, next: 0.into() });
    }

    /// Makes the chain available to the device; the index of its first descriptor.
    pub fn publish(self) -> u16 {
        let Self { driver, mut entries, indirect } = self;
        assert!(!entries.is_empty(), "a chain has a descriptor");
        let writable = entries
            .iter()
            .filter(|d| d.flags.get() & DescriptorFlags::WRITE.bits() != 0)
            .map(|d| (d.addr.get(), d.len.get()))
            .collect();
        if indirect {
            let count = entries.len() as u16;
            for (index, entry) in
                (1u16..).zip(entries.iter_mut()).filter(|(index, _)| *index < count)
            {
                entry.flags = (entry.flags.get() | DescriptorFlags::NEXT.bits()).into();
                entry.next = index.into();
            }
            let len = entries.len() * size_of::<Descriptor>();
            let addr = driver.allocate(len as u64);
            let table = driver.memory.slice(addr, len as u64).expect("allocated");
            for (index, entry) in entries.iter().enumerate() {
                let slot = table.get(index * size_of::<Descriptor>(), size_of::<Descriptor>());
                slot.expect("in the table").write(entry);
            }
            let flags = DescriptorFlags::INDIRECT.bits().into();
            entries = vec![Descriptor {
                addr: addr.into(),
                len: (len as u32).into(),
                flags,
                next: 0.into(),
            }];
        }
        let at = driver.free.len().checked_sub(entries.len()).expect("enough free descriptors");
        let mut descriptors = driver.free.split_off(at);
        descriptors.reverse();
        for (position, entry) in entries.iter_mut().enumerate() {
            if let Some(next) = descriptors.get(position + 1) {
                entry.flags = (entry.flags.get() | DescriptorFlags::NEXT.bits()).into();
                entry.next = (*next).into();
            }
            driver.raw_descriptor(descriptors[position], *entry);
        }
        let head = descriptors[0];
        driver.outstanding.insert(head, Outstanding { descriptors, writable });
        driver.raw_publish(head);
        head
    }
}
