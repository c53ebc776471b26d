//! A driver for each queue of a device: it says what the fuzzer chooses, in order or not. As long as it has kept to the
//! rules, the device has to: what comes back is what was given, and no byte but those of writable buffers changed.

#![allow(dead_code, reason = "each target uses its part")]

use std::cell::OnceCell;
use std::sync::Arc;

use arbitrary::{Result, Unstructured};
use fuchsia_zircon as zx;
use virtio_device::fake_queue::FakeDriver;
use virtio_device::{
    Descriptor, DescriptorFlags, Device, Features, GuestMemory, Io, Progress, Queue, QueueSet,
};

/// Requests that each queue has room for.
const SLOTS: u16 = 8;
/// Descriptors of each.
const DESCRIPTORS: u16 = 8;
const SIZE: u16 = SLOTS * DESCRIPTORS;
/// Most bytes that a request has for either direction.
const MAX_LEN: usize = 72 << 10;
/// Guest memory of each request: an indirect table, then buffers with gaps between them.
const SLOT: u64 = 0x2_6000;
const TABLE: u64 = 0x100;
/// Guest memory of each queue: the rings, then the requests.
const RINGS: u64 = 0x1000;
const AREA: u64 = RINGS + SLOTS as u64 * SLOT;
/// Pages that no queue is in, at the end of memory.
pub const FREE_PAGES: u64 = 64;
const PAGE: u64 = 4096;
/// What gaps and writable buffers hold until the device writes.
const UNTOUCHED: u8 = 0xa5;
/// Rounds that a device gets for a queue before others.
const ROUNDS: usize = 4;

/// What a driver says in one chain.
pub struct Request {
    pub readable: Vec<u8>,
    /// Bytes for the answer.
    pub writable: usize,
}

/// What a target knows of its device.
pub trait Target {
    type Device: Device;
    const QUEUES: u16;

    /// What the driver puts into a queue.
    fn request(&mut self, queue: u16, input: &mut Unstructured<'_>) -> Result<Request>;

    /// Has the host's side do something. Returns the queues that can go on.
    fn host(
        &mut self,
        device: &mut Self::Device,
        io: &Io<'_>,
        input: &mut Unstructured<'_>,
    ) -> Result<QueueSet> {
        let _ = (device, io, input);
        Ok(QueueSet::EMPTY)
    }

    /// Looks at what the device answered: `answer` is as long as the device says, of `room` bytes.
    fn check(&mut self, queue: u16, request: &[u8], answer: &[u8], room: usize) {
        let _ = (queue, request, answer, room);
    }
}

/// First of [`FREE_PAGES`].
pub fn first_free_page<T: Target>() -> u64 {
    u64::from(T::QUEUES) * AREA / PAGE
}

/// A request in the device's hands.
struct Pending {
    request: Vec<u8>,
    writable: Vec<(u64, usize)>,
    /// The request's memory when it was made.
    before: Vec<u8>,
}

struct Guest<'t, T: Target> {
    target: &'t mut T,
    device: T::Device,
    features: Features,
    memory: Arc<GuestMemory>,
    drivers: Vec<FakeDriver>,
    queues: Vec<Option<Queue>>,
    pending: Vec<[Option<Pending>; SLOTS as usize]>,
    used: Vec<u16>,
    port: Arc<zx::Port>,
    /// No rule was broken since the last reset.
    is_honest: bool,
    is_broken: bool,
    /// No rule was broken at all.
    was_honest: bool,
}

/// Plays what `input` says on a `device` whose driver has negotiated `features`.
pub fn play<T: Target>(
    target: &mut T,
    device: T::Device,
    features: Features,
    input: &mut Unstructured<'_>,
) -> Result<()> {
    let memory = MEMORY.with(|memory| memory.get_or_init(memory_of::<T>).clone());
    let mut guest = Guest {
        target,
        device,
        features,
        memory,
        drivers: Vec::new(),
        queues: Vec::new(),
        pending: Vec::new(),
        used: Vec::new(),
        port: Arc::new(zx::Port::create()),
        is_honest: true,
        is_broken: false,
        was_honest: true,
    };
    guest.start();
    let mut end = Ok(());
    while end.is_ok() && !input.is_empty() {
        end = guest.step(input);
    }
    if !guest.was_honest {
        // Anything may be anywhere, which the next input is not to depend on.
        guest.memory.slice(0, guest.memory.len()).expect("all of it").fill_zero();
    }
    end
}

thread_local! {
    /// Made once, as most of the time would go into making it.
    static MEMORY: OnceCell<Arc<GuestMemory>> = const { OnceCell::new() };
}

fn memory_of<T: Target>() -> Arc<GuestMemory> {
    let len = u64::from(T::QUEUES) * AREA + FREE_PAGES * PAGE;
    Arc::new(GuestMemory::anonymous(len as usize))
}

impl<T: Target> Guest<'_, T> {
    fn start(&mut self) {
        let areas = (0..u64::from(T::QUEUES)).map(|queue| queue * AREA..(queue + 1) * AREA);
        for area in areas.clone() {
            self.memory.slice(area.start, RINGS).expect("the rings").fill_zero();
        }
        self.drivers =
            areas.map(|area| FakeDriver::new(&self.memory, area, SIZE, self.features)).collect();
        self.queues = self.drivers.iter().map(|driver| Some(driver.queue())).collect();
        self.pending = self.drivers.iter().map(|_| [const { None }; SLOTS as usize]).collect();
        self.used = vec![0; self.drivers.len()];
        (self.is_honest, self.is_broken) = (true, false);
        let io = Io::new(&self.queues, &self.port);
        let touched = self.device.ready(self.features, &io);
        self.work(touched);
    }

    fn step(&mut self, input: &mut Unstructured<'_>) -> Result<()> {
        let queue = input.int_in_range(0..=T::QUEUES - 1)?;
        match input.int_in_range(0..=31)? {
            0..=14u8 => {
                self.request(queue, input)?;
                if input.ratio(3, 4)? {
                    self.work(QueueSet::of(queue));
                }
            }
            15..=17 => self.work(QueueSet::ALL),
            18..=21 => self.hear(),
            22..=26 => {
                let io = Io::new(&self.queues, &self.port);
                let touched = self.target.host(&mut self.device, &io, input)?;
                self.work(touched);
            }
            27 => {
                let touched = self.device.deadline_passed(&Io::new(&self.queues, &self.port));
                self.work(touched);
            }
            28 => {
                self.queues.iter_mut().for_each(|queue| *queue = None);
                self.device.reset();
                // Signals of the time before may still come.
                self.hear();
                self.start();
            }
            29 => {
                self.drivers[usize::from(queue)].enable_interrupts(input.arbitrary()?);
            }
            _ => self.misbehave(queue, input)?,
        }
        Ok(())
    }

    /// Says what no driver may.
    fn misbehave(&mut self, queue: u16, input: &mut Unstructured<'_>) -> Result<()> {
        (self.is_honest, self.was_honest) = (false, false);
        let driver = &mut self.drivers[usize::from(queue)];
        match input.int_in_range(0..=3)? {
            0 => {
                let address = match input.int_in_range(0..=3)? {
                    0u8 => input.arbitrary()?,
                    // Around the end of memory.
                    1 => self.memory.len() - 64 + u64::from(input.arbitrary::<u8>()?),
                    _ => u64::from(queue) * AREA + u64::from(input.arbitrary::<u16>()?),
                };
                let len = match input.int_in_range(0..=2)? {
                    0u8 => input.arbitrary()?,
                    1 => u32::from(input.arbitrary::<u8>()?),
                    _ => u32::from(input.int_in_range(0..=80u8)?) * 16,
                };
                let descriptor = Descriptor {
                    addr: address.into(),
                    len: len.into(),
                    flags: input.int_in_range(0..=8u16)?.into(),
                    next: input.int_in_range(0..=SIZE)?.into(),
                };
                driver.raw_descriptor(input.int_in_range(0..=SIZE - 1)?, descriptor);
            }
            1 => driver.raw_publish(input.int_in_range(0..=SIZE)?),
            2 => driver.raw_avail_index(input.arbitrary()?),
            _ => {
                let at = input.int_in_range(0..=self.memory.len() - 256)?;
                let len = input.int_in_range(0..=255usize)?.min(input.len());
                self.memory.slice(at, len as u64).expect("in memory").copy_from(input.bytes(len)?);
            }
        }
        self.work(QueueSet::of(queue));
        Ok(())
    }

    /// Makes a request available, if there is room for one.
    fn request(&mut self, queue: u16, input: &mut Unstructured<'_>) -> Result<()> {
        let index = usize::from(queue);
        let free = self.pending[index].iter().position(Option::is_none);
        let Some(slot) =
            (if self.is_honest { free } else { Some(input.choose_index(SLOTS.into())?) })
        else {
            return Ok(());
        };
        let Request { mut readable, writable } = self.target.request(queue, input)?;
        readable.truncate(MAX_LEN);
        let pieces = [cut(readable.len(), input)?, cut(writable.min(MAX_LEN), input)?];
        let base = u64::from(queue) * AREA + RINGS + slot as u64 * SLOT;
        let mut before = vec![UNTOUCHED; TABLE as usize];
        let mut descriptors = Vec::new();
        let mut buffers = Vec::new();
        let mut rest = &readable[..];
        for (lens, flags) in pieces.iter().zip([DescriptorFlags::empty(), DescriptorFlags::WRITE]) {
            for len in lens {
                let address = base + before.len() as u64;
                if flags.is_empty() {
                    let (piece, tail) = rest.split_at(*len);
                    before.extend_from_slice(piece);
                    rest = tail;
                } else {
                    before.resize(before.len() + len, UNTOUCHED);
                    buffers.push((address, *len));
                }
                before.extend([UNTOUCHED; 5]);
                descriptors.push((address, *len as u32, flags));
            }
        }
        if descriptors.is_empty() {
            return Ok(());
        }
        let head = slot as u16 * DESCRIPTORS;
        let is_indirect = self.features.contains(Features::INDIRECT_DESC) && input.arbitrary()?;
        let last = descriptors.len() - 1;
        let driver = &mut self.drivers[index];
        for (position, (address, len, flags)) in descriptors.into_iter().enumerate() {
            let next =
                if position == last { DescriptorFlags::empty() } else { DescriptorFlags::NEXT };
            let first = if is_indirect { 0 } else { head };
            let descriptor = Descriptor {
                addr: address.into(),
                len: len.into(),
                flags: (flags | next).bits().into(),
                next: (first + position as u16 + 1).into(),
            };
            if is_indirect {
                let at = position * size_of::<Descriptor>();
                before[at..at + size_of::<Descriptor>()]
                    .copy_from_slice(zerocopy::IntoBytes::as_bytes(&descriptor));
            } else {
                driver.raw_descriptor(head + position as u16, descriptor);
            }
        }
        if is_indirect {
            let outer = Descriptor {
                addr: base.into(),
                len: ((last + 1) as u32 * size_of::<Descriptor>() as u32).into(),
                flags: DescriptorFlags::INDIRECT.bits().into(),
                next: 0.into(),
            };
            driver.raw_descriptor(head, outer);
        }
        self.memory.slice(base, before.len() as u64).expect("a request's").copy_from(&before);
        driver.raw_publish(head);
        self.pending[index][slot] = Some(Pending { request: readable, writable: buffers, before });
        Ok(())
    }

    /// Passes on what the device asked to hear of.
    fn hear(&mut self) {
        for _ in 0..64 {
            let Ok(packet) = self.port.wait(zx::Time::INFINITE_PAST) else { break };
            let observed = match packet.contents() {
                zx::PacketContents::SignalOne(signal) => signal.observed(),
                _ => zx::Signals::NONE,
            };
            let io = Io::new(&self.queues, &self.port);
            let touched = self.device.signaled(packet.key() as u32, observed, &io);
            self.work(touched);
        }
    }

    /// Works on queues as a worker thread does.
    fn work(&mut self, touched: QueueSet) {
        for index in (0..T::QUEUES).filter(|index| touched.contains(*index)) {
            let io = Io::new(&self.queues, &self.port);
            let Some(queue) = io.queue(index).filter(|_| !self.is_broken) else { continue };
            for _ in 0..ROUNDS {
                queue.disable_notifications();
                match self.device.process(index, &io) {
                    Ok(Progress::Idle) if !queue.enable_notifications() => break,
                    Ok(Progress::Blocked) => break,
                    Ok(_) => {}
                    Err(error) => {
                        assert!(!self.is_honest, "an honest driver is told of {error}");
                        self.is_broken = true;
                        break;
                    }
                }
            }
        }
        for queue in self.queues.iter().flatten() {
            queue.take_interrupt();
        }
        if self.is_honest {
            (0..self.queues.len()).for_each(|queue| self.collect(queue));
        }
    }

    /// Takes what the device returned, and holds it to what it was given.
    fn collect(&mut self, queue: usize) {
        if self.queues[queue].is_none() {
            return;
        }
        let config = self.drivers[queue].config();
        let ring = self.memory.slice(config.used, config.used_len()).expect("the ring");
        let word =
            |at: usize| ring.get(at, 4).and_then(|slot| slot.read::<u32>()).expect("in the ring");
        let index = (word(0) >> 16) as u16;
        while self.used[queue] != index {
            let at = 4 + 8 * usize::from(self.used[queue] % SIZE);
            self.used[queue] = self.used[queue].wrapping_add(1);
            let (head, len) = (word(at) as usize, word(at + 4) as usize);
            assert_eq!(head % usize::from(DESCRIPTORS), 0, "a chain that was never given");
            let slot = head / usize::from(DESCRIPTORS);
            let pending = self.pending[queue].get_mut(slot).and_then(Option::take);
            let pending = pending.expect("a chain that was not given, or returned before");
            let base = queue as u64 * AREA + RINGS + slot as u64 * SLOT;
            let mut after = vec![0; pending.before.len()];
            self.memory.slice(base, after.len() as u64).expect("a request's").copy_to(&mut after);
            let mut answer = Vec::new();
            for (address, count) in pending.writable {
                let start = (address - base) as usize;
                let buffer = &mut after[start..start + count];
                answer.extend_from_slice(buffer);
                buffer.fill(UNTOUCHED);
            }
            assert!(after == pending.before, "memory that is not the device's to write changed");
            let room = answer.len();
            assert!(len <= room, "{len} bytes written to {room}");
            let rest = answer.split_off(len);
            assert!(rest.iter().all(|byte| *byte == UNTOUCHED), "written beyond {len} bytes");
            self.target.check(queue as u16, &pending.request, &answer, room);
        }
    }
}

/// Divides `len` bytes among up to three buffers, none of them empty.
fn cut(len: usize, input: &mut Unstructured<'_>) -> Result<Vec<usize>> {
    let mut pieces = Vec::new();
    let mut left = len;
    for _ in 0..input.int_in_range(0..=2)? {
        if left > 1 {
            let piece = input.int_in_range(1..=left - 1)?;
            pieces.push(piece);
            left -= piece;
        }
    }
    if left > 0 {
        pieces.push(left);
    }
    Ok(pieces)
}

/// Bytes of the fuzzer's, at most `most`.
pub fn bytes(most: usize, input: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let len = input.int_in_range(0..=most)?.min(input.len());
    Ok(input.bytes(len)?.to_vec())
}
