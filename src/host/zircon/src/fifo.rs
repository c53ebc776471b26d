//! FIFOs: two rings of elements in memory that both sides share.
//!
//! Reading and writing move elements between the caller and the ring and make no system call; only what a waiter may wait
//! for, a ring that gets its first element or its first room again, is told through the broadcast descriptor, as with
//! events. An end of a socket pair on which nothing is ever sent tells when the other side is gone.
//!
//! Each side has a lock word a direction, since its endpoint may be duplicated into several processes. A holder that dies
//! within the few instructions of a copy leaves the ring as it was, because the counter that publishes a copy is stored
//! last, and loses the lock to the next one who finds it dead.

use crate::event::new_broadcast;
use crate::handle_table::{Held, get, insert_peers};
use crate::object::{Kind, Source, Sources, poll_now, ring};
use crate::rights;
use crate::shared_signals::{SIGNALS_SIZE, SharedSignals};
use crate::status::{
    BAD_STATE, INVALID_ARGS, IO_DATA_INTEGRITY, OUT_OF_RANGE, PEER_CLOSED, Result, SHOULD_WAIT,
    answer, out, set_optional,
};
use fuchsia_zircon_types::*;
use rustix::event::{PollFd, PollFlags};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{Pid, test_kill_process};
use std::ptr::NonNull;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};

/// The most bytes that one direction holds.
const MAX_BYTES: usize = ZX_FIFO_MAX_SIZE_BYTES as usize;
/// How often a lock is tried before the processor is left to its holder, and how often then.
const SPINS: u32 = 100;
const YIELDS: u32 = 100_000;
/// How often to look for a moment in which nobody reads.
const SNAPSHOTS: u32 = 10_000;

/// One direction. Any process with a handle may write here what it likes, so everything is an atomic and nothing is
/// trusted: counters are checked against the capacity, and a bad ring is `ZX_ERR_IO_DATA_INTEGRITY` to whoever uses it.
#[repr(C, align(64))]
struct Ring {
    /// The process that is writing, or reading; 0 when nobody is.
    writer: AtomicU32,
    reader: AtomicU32,
    /// Elements written and read so far, modulo [`Shape::modulus`].
    written: AtomicU32,
    read: AtomicU32,
    elements: [AtomicU8; MAX_BYTES],
}

#[repr(C)]
struct Memory {
    rings: [Ring; 2],
}

/// The rings come behind the page of the signals.
const TOTAL: usize = SIGNALS_SIZE + size_of::<Memory>();

/// A lock word that this process holds.
struct Guard<'a>(&'a AtomicU32);

impl<'a> Guard<'a> {
    /// Takes the word, also from a process that died with it.
    fn take(word: &'a AtomicU32) -> Result<Guard<'a>> {
        let own = std::process::id();
        for attempt in 0..SPINS + YIELDS {
            match word.compare_exchange_weak(0, own, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return Ok(Guard(word)),
                Err(_) if attempt < SPINS => std::hint::spin_loop(),
                Err(holder) => {
                    if is_dead(holder)
                        && word
                            .compare_exchange(holder, own, Ordering::Acquire, Ordering::Relaxed)
                            .is_ok()
                    {
                        return Ok(Guard(word));
                    }
                    std::thread::yield_now();
                }
            }
        }
        // Nobody copies this long: somebody keeps the lock on purpose.
        Err(BAD_STATE)
    }
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        self.0.store(0, Ordering::Release);
    }
}

fn is_dead(process: u32) -> bool {
    let pid = i32::try_from(process).ok().and_then(Pid::from_raw);
    pid.is_none_or(|pid| test_kill_process(pid) == Err(rustix::io::Errno::SRCH))
}

/// The shape of a FIFO, the same for both directions.
#[derive(Clone, Copy)]
struct Shape {
    count: u32,
    size: u32,
}

impl Shape {
    fn new(count: usize, size: usize) -> Result<Shape> {
        let bytes = count.checked_mul(size).ok_or(OUT_OF_RANGE)?;
        if bytes == 0 || bytes > MAX_BYTES {
            return Err(OUT_OF_RANGE);
        }
        Ok(Shape { count: count as u32, size: size as u32 })
    }

    /// Where in its ring the element with this number begins.
    fn offset(self, counter: u32) -> usize {
        (counter % self.count) as usize * self.size as usize
    }

    /// Counters run modulo twice the capacity, so that a full ring and an empty one differ.
    fn modulus(self) -> u32 {
        self.count * 2
    }

    fn advance(self, counter: u32, by: u32) -> u32 {
        (counter + by) % self.modulus()
    }
}

/// What a write or a read has done.
struct Moved {
    count: u32,
    /// The ring was empty before a write, or full before a read: the other side may wait for that to change.
    tell: bool,
    /// The ring is full after a write, or empty after a read.
    at_limit: bool,
}

impl Ring {
    /// Elements that wait to be read.
    fn waiting(&self, shape: Shape) -> Result<u32> {
        let (mut written, mut read) = (0, self.read.load(Ordering::SeqCst));
        for _ in 0..SNAPSHOTS {
            written = self.written.load(Ordering::SeqCst);
            let again = self.read.load(Ordering::SeqCst);
            if again == read {
                break;
            }
            // Others read meanwhile: the two numbers are not of one moment.
            read = again;
        }
        if written >= shape.modulus() || read >= shape.modulus() {
            return Err(IO_DATA_INTEGRITY);
        }
        let waiting = (written + shape.modulus() - read) % shape.modulus();
        if waiting > shape.count { Err(IO_DATA_INTEGRITY) } else { Ok(waiting) }
    }

    /// Stores as many elements as fit.
    ///
    /// # Safety
    /// `data` is valid for reading `count` elements.
    unsafe fn write(&self, shape: Shape, data: *const u8, count: usize) -> Result<Moved> {
        let _lock = Guard::take(&self.writer)?;
        let waiting = self.waiting(shape)?;
        let room = shape.count - waiting;
        let take = room.min(u32::try_from(count).unwrap_or(u32::MAX));
        if take == 0 {
            return Err(SHOULD_WAIT);
        }
        let start = self.written.load(Ordering::Relaxed);
        for element in 0..take {
            let offset = shape.offset(shape.advance(start, element));
            for byte in 0..shape.size as usize {
                // SAFETY: `element` is below `count`, so this is within what the caller promised.
                let value =
                    unsafe { data.add(element as usize * shape.size as usize + byte).read() };
                self.elements[offset + byte].store(value, Ordering::Relaxed);
            }
        }
        self.written.store(shape.advance(start, take), Ordering::SeqCst);
        // Looked at after publishing: a reader that emptied the ring meanwhile may already wait for more.
        let now = self.waiting(shape)?;
        Ok(Moved { count: take, tell: now <= take, at_limit: now == shape.count })
    }

    /// Takes as many elements as there are, up to `count`.
    ///
    /// # Safety
    /// `data` is valid for writing `count` elements.
    unsafe fn read(&self, shape: Shape, data: *mut u8, count: usize) -> Result<Moved> {
        let _lock = Guard::take(&self.reader)?;
        let waiting = self.waiting(shape)?;
        let take = waiting.min(u32::try_from(count).unwrap_or(u32::MAX));
        if take == 0 {
            return Err(SHOULD_WAIT);
        }
        let start = self.read.load(Ordering::Relaxed);
        for element in 0..take {
            let offset = shape.offset(shape.advance(start, element));
            for byte in 0..shape.size as usize {
                let value = self.elements[offset + byte].load(Ordering::Relaxed);
                // SAFETY: `element` is below `count`, so this is within what the caller promised.
                unsafe { data.add(element as usize * shape.size as usize + byte).write(value) };
            }
        }
        self.read.store(shape.advance(start, take), Ordering::SeqCst);
        // As in `write`: a writer that filled the ring meanwhile may already wait for room.
        let now = self.waiting(shape)?;
        Ok(Moved { count: take, tell: now + take >= shape.count, at_limit: now == 0 })
    }
}

/// One end of a FIFO.
pub(crate) struct Fifo {
    signals: SharedSignals,
    memory: OnceLock<NonNull<Memory>>,
    shape: Shape,
    changed: OwnedFd,
    liveness: OwnedFd,
    closed: AtomicBool,
    /// How often a read here emptied a ring, or a write filled one.
    drains: AtomicU32,
    /// 0 or 1: which signals are this end's, and which ring it writes to.
    side: usize,
}

// SAFETY: the memory consists of atomics and stays mapped as long as the object lives.
unsafe impl Send for Fifo {}
// SAFETY: as above.
unsafe impl Sync for Fifo {}

impl Fifo {
    fn pair(shape: Shape) -> Result<(Fifo, Fifo)> {
        let (first, second) = socketpair(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )?;
        let signals = SharedSignals::with_size(TOTAL)?;
        let changed = new_broadcast()?;
        let other = Fifo::new(
            signals.duplicate()?,
            rustix::io::fcntl_dupfd_cloexec(&changed, 3)?,
            second,
            shape,
            1,
        );
        Ok((Fifo::new(signals, changed, first, shape, 0), other))
    }

    fn new(
        signals: SharedSignals,
        changed: OwnedFd,
        liveness: OwnedFd,
        shape: Shape,
        side: usize,
    ) -> Fifo {
        let (memory, closed) = (OnceLock::new(), AtomicBool::new(false));
        let drains = AtomicU32::new(0);
        Fifo { signals, memory, shape, changed, liveness, closed, drains, side }
    }

    /// The descriptors that make it up, in the order of [`Fifo::from_wire`].
    pub(crate) fn fds(&self) -> [BorrowedFd<'_>; 3] {
        [self.signals.fd(), self.changed.as_fd(), self.liveness.as_fd()]
    }

    pub(crate) fn to_wire(&self) -> [u64; 3] {
        [self.side as u64, self.shape.count.into(), self.shape.size.into()]
    }

    /// An end that another process sent.
    ///
    /// Errors: `ZX_ERR_IO_DATA_INTEGRITY` for a shape that no FIFO has.
    pub(crate) fn from_wire(fds: [OwnedFd; 3], extra: [u64; 3]) -> Result<Fifo> {
        let [memory, changed, liveness] = fds;
        let part = |index: usize| usize::try_from(extra[index]).map_err(|_| IO_DATA_INTEGRITY);
        let shape = Shape::new(part(1)?, part(2)?).map_err(|_| IO_DATA_INTEGRITY)?;
        let side = usize::from(extra[0] != 0);
        Ok(Fifo::new(SharedSignals::from_fd(memory), changed, liveness, shape, side))
    }

    fn memory(&self) -> Result<&Memory> {
        if let Some(memory) = self.memory.get() {
            // SAFETY: mapped until drop; `Memory` is all atomics.
            return Ok(unsafe { memory.as_ref() });
        }
        self.signals.check_size(TOTAL)?;
        // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing.
        let address = unsafe {
            mmap(
                std::ptr::null_mut(),
                size_of::<Memory>(),
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                self.signals.fd(),
                SIGNALS_SIZE as u64,
            )?
        };
        let memory = NonNull::new(address.cast::<Memory>()).ok_or(IO_DATA_INTEGRITY)?;
        if self.memory.set(memory).is_err() {
            // Another thread was first.
            // SAFETY: this mapping was made above and nobody else knows of it.
            let _ = unsafe { munmap(address, size_of::<Memory>()) };
        }
        let memory = self.memory.get().ok_or(IO_DATA_INTEGRITY)?;
        // SAFETY: mapped until drop; `Memory` is all atomics.
        Ok(unsafe { memory.as_ref() })
    }

    fn outgoing(&self) -> Result<&Ring> {
        Ok(&self.memory()?.rings[self.side])
    }

    fn incoming(&self) -> Result<&Ring> {
        Ok(&self.memory()?.rings[1 - self.side])
    }

    fn peer_is_gone(&self) -> Result<bool> {
        if !self.closed.load(Ordering::SeqCst) {
            let mut fds = [PollFd::new(&self.liveness, PollFlags::empty())];
            poll_now(&mut fds)?;
            if fds[0].revents().is_empty() {
                return Ok(false);
            }
            self.closed.store(true, Ordering::SeqCst);
        }
        Ok(true)
    }

    /// `zx_fifo_write`: how many elements went in.
    ///
    /// # Safety
    /// `data` is valid for reading `count` elements of `size` bytes.
    unsafe fn write(&self, size: usize, data: *const u8, count: usize) -> Result<usize> {
        if size != self.shape.size as usize || count == 0 {
            return Err(OUT_OF_RANGE);
        }
        if self.peer_is_gone()? {
            return Err(PEER_CLOSED);
        }
        // SAFETY: the caller's promise; `size` is an element's.
        Ok(self.moved(&unsafe { self.outgoing()?.write(self.shape, data, count)? }))
    }

    /// `zx_fifo_read`: how many elements came out.
    ///
    /// # Safety
    /// `data` is valid for writing `count` elements of `size` bytes.
    unsafe fn read(&self, size: usize, data: *mut u8, count: usize) -> Result<usize> {
        if size != self.shape.size as usize || count == 0 {
            return Err(OUT_OF_RANGE);
        }
        let incoming = self.incoming()?;
        // SAFETY: the caller's promise; `size` is an element's.
        let mut result = unsafe { incoming.read(self.shape, data, count) };
        if matches!(result, Err(SHOULD_WAIT)) && self.peer_is_gone()? {
            // What the peer wrote before it went comes first; it may have written after the first look.
            // SAFETY: as above.
            result = match unsafe { incoming.read(self.shape, data, count) } {
                Err(SHOULD_WAIT) => Err(PEER_CLOSED),
                result => result,
            };
        }
        Ok(self.moved(&result?))
    }

    /// Tells what others may wait for.
    fn moved(&self, moved: &Moved) -> usize {
        if moved.at_limit {
            self.drains.fetch_add(1, Ordering::SeqCst);
        }
        if moved.tell {
            ring(&self.changed);
        }
        moved.count as usize
    }

    pub(crate) fn drains(&self) -> u32 {
        self.drains.load(Ordering::SeqCst)
    }

    pub(crate) fn sources(&self, interest: zx_signals_t) -> Result<Sources<'_>> {
        // Look now, where bad memory is an error, rather than when a wait ends.
        self.incoming()?.waiting(self.shape)?;
        self.outgoing()?.waiting(self.shape)?;
        let told = ZX_FIFO_READABLE | ZX_FIFO_WRITABLE | ZX_USER_SIGNAL_ALL;
        let changed = (interest & told != 0).then(|| Source {
            fd: self.changed.as_fd(),
            events: PollFlags::IN,
            edge: true,
        });
        // Hang-up is reported without being asked for. A FIFO without a peer is not writable.
        let liveness = (interest & (ZX_FIFO_PEER_CLOSED | ZX_FIFO_WRITABLE) != 0).then(|| Source {
            fd: self.liveness.as_fd(),
            events: PollFlags::empty(),
            edge: false,
        });
        Ok([changed, liveness])
    }

    pub(crate) fn observe(&self, index: usize, revents: PollFlags) {
        if index == 1 && !revents.is_empty() {
            self.closed.store(true, Ordering::SeqCst);
        }
    }

    pub(crate) fn signals(&self) -> zx_signals_t {
        let mut signals = self.signals.load(self.side).unwrap_or(0) & ZX_USER_SIGNAL_ALL;
        let waiting = |ring: Result<&Ring>| ring.and_then(|ring| ring.waiting(self.shape));
        if waiting(self.incoming()).is_ok_and(|waiting| waiting > 0) {
            signals |= ZX_FIFO_READABLE;
        }
        if self.closed.load(Ordering::SeqCst) {
            signals |= ZX_FIFO_PEER_CLOSED;
        } else if waiting(self.outgoing()).is_ok_and(|waiting| waiting < self.shape.count) {
            signals |= ZX_FIFO_WRITABLE;
        }
        signals
    }

    /// `zx_object_signal`.
    pub(crate) fn signal(&self, clear: zx_signals_t, set: zx_signals_t) -> Result<()> {
        self.signals.signal(self.side, clear, set, ZX_USER_SIGNAL_ALL, &self.changed)
    }

    /// `zx_object_signal_peer`.
    pub(crate) fn signal_peer(&self, clear: zx_signals_t, set: zx_signals_t) -> Result<()> {
        if self.peer_is_gone()? {
            return Err(PEER_CLOSED);
        }
        self.signals.signal(1 - self.side, clear, set, ZX_USER_SIGNAL_ALL, &self.changed)
    }
}

impl Drop for Fifo {
    fn drop(&mut self) {
        if let Some(memory) = self.memory.get() {
            // SAFETY: mapped by `memory` with this length; no reference outlives `self`.
            let _ = unsafe { munmap(memory.as_ptr().cast(), size_of::<Memory>()) };
        }
    }
}

/// See the Zircon documentation of `zx_fifo_create`.
///
/// # Safety
/// `out0` and `out1` are null or valid for writing.
pub unsafe fn zx_fifo_create(
    elem_count: usize,
    elem_size: usize,
    options: u32,
    out0: *mut zx_handle_t,
    out1: *mut zx_handle_t,
) -> zx_status_t {
    answer((|| {
        // SAFETY: the caller's promise.
        let (out0, out1) = unsafe { (out(out0)?, out(out1)?) };
        if options != 0 {
            return Err(INVALID_ARGS);
        }
        let (first, second) = Fifo::pair(Shape::new(elem_count, elem_size)?)?;
        let (first, second) = insert_peers(Kind::Fifo(first), Kind::Fifo(second), rights::FIFO)?;
        out0.set(first);
        out1.set(second);
        Ok(())
    })())
}

/// What `handle` refers to: a FIFO, with `right` to it; `lacks_data` when there are elements to move and no place for them.
fn fifo_for(handle: zx_handle_t, right: zx_rights_t, lacks_data: bool) -> Result<Held> {
    let held = get(handle)?;
    held.fifo()?;
    held.require(right)?;
    if lacks_data { Err(INVALID_ARGS) } else { Ok(held) }
}

/// See the Zircon documentation of `zx_fifo_write`. `ZX_ERR_BAD_STATE` when another process keeps the FIFO locked.
///
/// # Safety
/// `data` is valid for reading `count` elements of `elem_size` bytes; `actual_count` is null or valid for writing.
pub unsafe fn zx_fifo_write(
    handle: zx_handle_t,
    elem_size: usize,
    data: *const u8,
    count: usize,
    actual_count: *mut usize,
) -> zx_status_t {
    answer((|| {
        let held = fifo_for(handle, ZX_RIGHT_WRITE, data.is_null() && count != 0)?;
        let fifo = held.fifo()?;
        // SAFETY: the caller's promise.
        unsafe {
            let written = fifo.write(elem_size, data, count)?;
            set_optional(actual_count, written);
        }
        Ok(())
    })())
}

/// See the Zircon documentation of `zx_fifo_read`. `ZX_ERR_BAD_STATE` when another process keeps the FIFO locked.
///
/// # Safety
/// `data` is valid for writing `count` elements of `elem_size` bytes; `actual_count` is null or valid for writing.
pub unsafe fn zx_fifo_read(
    handle: zx_handle_t,
    elem_size: usize,
    data: *mut u8,
    count: usize,
    actual_count: *mut usize,
) -> zx_status_t {
    answer((|| {
        let held = fifo_for(handle, ZX_RIGHT_READ, data.is_null() && count != 0)?;
        let fifo = held.fifo()?;
        // SAFETY: the caller's promise.
        unsafe {
            let read = fifo.read(elem_size, data, count)?;
            set_optional(actual_count, read);
        }
        Ok(())
    })())
}
