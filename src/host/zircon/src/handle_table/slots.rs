//! The places of a process's handles: a handle is looked up without a lock.
//!
//! A slot's word says whether it holds a handle, of which generation, and how many threads use it at this moment. A thread
//! counts itself in and sees in the same step whether it may use what is there. Who takes a handle away does not wait for
//! its users: the last of them to leave empties the slot, and until then nobody is given it anew.

use super::Held;
use std::cell::UnsafeCell;
use std::ops::Deref;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock};

use crate::object::lock;

pub(super) const INDEX_BITS: u32 = 18;
/// The most handles a process can have, as on Zircon.
const MAX_HANDLES: u32 = 1 << INDEX_BITS;
/// Of a slot, before they begin again; a handle value has two bits less than 32 for index and generation.
const GENERATIONS: u64 = (1 << (30 - INDEX_BITS)) - 1;

/// Slots come in so many at a time, and stay where they are.
const CHUNK: usize = 256;
const CHUNKS: usize = MAX_HANDLES as usize / CHUNK;

/// Threads that use the slot, or are about to find that they may not.
const USERS: u64 = (1 << 32) - 1;
/// There is a handle. Without this and `TAKEN` the slot is empty.
const LIVE: u64 = 1 << 32;
/// The handle was taken away; the last user empties the slot.
const TAKEN: u64 = 1 << 33;
const GENERATION_SHIFT: u32 = 40;

struct Slot {
    word: AtomicU64,
    /// Changes when no user can look: before `LIVE` is set, and after `TAKEN` is cleared.
    held: UnsafeCell<Option<Held>>,
}

// SAFETY: `held` is read by users of a live slot only, any number of them, and written by one thread at a time without any,
// as `Slots` sees to with `word`.
unsafe impl Sync for Slot {}

/// What hands out empty slots.
struct Empty {
    free: Vec<u32>,
    /// The first slot that was never used.
    next: u32,
}

/// All slots of a process.
pub(super) struct Slots {
    chunks: [OnceLock<Box<[Slot]>>; CHUNKS],
    empty: Mutex<Empty>,
    live: AtomicUsize,
}

/// A handle in use. It may be taken out of the table meanwhile; what it refers to stays.
pub(crate) struct Borrowed<'a> {
    slots: &'a Slots,
    slot: &'a Slot,
    index: u32,
}

impl Deref for Borrowed<'_> {
    type Target = Held;

    #[inline]
    fn deref(&self) -> &Held {
        // SAFETY: this user found the slot live, so that `held` is set, and it is not changed before the user has left.
        let held = unsafe { &*self.slot.held.get() };
        // SAFETY: as above.
        unsafe { held.as_ref().unwrap_unchecked() }
    }
}

impl Drop for Borrowed<'_> {
    #[inline]
    fn drop(&mut self) {
        self.slots.leave(self.slot, self.index);
    }
}

impl Slots {
    pub(super) const fn new() -> Slots {
        Slots {
            chunks: [const { OnceLock::new() }; CHUNKS],
            empty: Mutex::new(Empty { free: Vec::new(), next: 0 }),
            live: AtomicUsize::new(0),
        }
    }

    #[inline]
    fn slot(&self, index: u32) -> Option<&Slot> {
        self.chunks.get(index as usize / CHUNK)?.get()?.get(index as usize % CHUNK)
    }

    /// Puts a handle into an empty slot: its index and generation. Gives it back if there is none.
    pub(super) fn insert(&self, held: Held) -> Result<(u32, u32), Held> {
        let index = {
            let mut empty = lock(&self.empty);
            match empty.free.pop() {
                Some(index) => index,
                None if empty.next == MAX_HANDLES => return Err(held),
                None => {
                    empty.next += 1;
                    empty.next - 1
                }
            }
        };
        let chunk = self.chunks[index as usize / CHUNK].get_or_init(|| {
            let slot = || Slot { word: AtomicU64::new(0), held: UnsafeCell::new(None) };
            std::iter::repeat_with(slot).take(CHUNK).collect()
        });
        let slot = &chunk[index as usize % CHUNK];
        // SAFETY: the slot is empty and this thread has got it from `empty`, so nobody else writes; it is not live, so nobody
        // reads.
        unsafe { *slot.held.get() = Some(held) };
        self.live.fetch_add(1, Ordering::Relaxed);
        let before = slot.word.fetch_or(LIVE, Ordering::AcqRel);
        Ok((index, (before >> GENERATION_SHIFT) as u32))
    }

    /// The handle in a slot, if it is of that generation.
    #[inline]
    pub(super) fn borrow(&self, index: u32, generation: u32) -> Option<Borrowed<'_>> {
        let slot = self.slot(index)?;
        let word = slot.word.fetch_add(1, Ordering::Acquire);
        if word & LIVE != 0 && word >> GENERATION_SHIFT == u64::from(generation) {
            return Some(Borrowed { slots: self, slot, index });
        }
        self.leave(slot, index);
        None
    }

    /// Whether there is a handle of that generation in a slot.
    #[inline]
    pub(super) fn is_live(&self, index: u32, generation: u32) -> bool {
        self.slot(index).is_some_and(|slot| {
            let word = slot.word.load(Ordering::SeqCst);
            word & LIVE != 0 && word >> GENERATION_SHIFT == u64::from(generation)
        })
    }

    /// Takes a handle out of its slot; one thread only is given it.
    pub(super) fn take(&self, index: u32, generation: u32) -> Option<Held> {
        let borrowed = self.borrow(index, generation)?;
        let mark = |word| (word & LIVE != 0).then_some(word & !LIVE | TAKEN);
        borrowed.slot.word.fetch_update(Ordering::SeqCst, Ordering::SeqCst, mark).ok()?;
        self.live.fetch_sub(1, Ordering::Relaxed);
        Some(borrowed.clone())
    }

    /// A user is done.
    #[inline]
    fn leave(&self, slot: &Slot, index: u32) {
        let word = slot.word.fetch_sub(1, Ordering::Release) - 1;
        if word & TAKEN != 0 && word & USERS == 0 {
            self.empty(slot, index, word);
        }
    }

    /// Empties a slot whose word was `word`, unless another user came, who does so then.
    #[cold]
    fn empty(&self, slot: &Slot, index: u32, word: u64) {
        let generation = ((word >> GENERATION_SHIFT) + 1) % GENERATIONS;
        let new = generation << GENERATION_SHIFT;
        if slot.word.compare_exchange(word, new, Ordering::Acquire, Ordering::Relaxed).is_err() {
            return;
        }
        // SAFETY: of those who saw the word become this, one changed it; there was no user, nobody is one of a slot that is not
        // live, and it is not among the empty ones yet.
        let held = unsafe { (*slot.held.get()).take() };
        lock(&self.empty).free.push(index);
        drop(held);
    }

    /// How many handles there are.
    pub(super) fn len(&self) -> usize {
        self.live.load(Ordering::Relaxed)
    }
}
