//! Signal words in memory that every process with a handle to the object shares.
//!
//! Beside each word is a count of assertions per signal. A waiter compares counts, so a signal that was asserted and
//! cleared again before the waiter ran is seen all the same, as on Zircon, and an edge-triggered wait is exact.

use crate::object::ring;
use crate::status::{INVALID_ARGS, IO_DATA_INTEGRITY, Result};
use fuchsia_zircon_types::*;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{
    MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, fstat, ftruncate, memfd_create,
};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use std::ptr::NonNull;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

/// Signals that can be set by a call: `ZX_EVENT_SIGNALED` and the eight user signals.
pub(crate) const SETTABLE: zx_signals_t = ZX_EVENT_SIGNALED | ZX_USER_SIGNAL_ALL;
const COUNTED: usize = 9;
const PAGE: usize = 4096;
/// Bytes of shared memory that the signals take up.
pub(crate) const SIGNALS_SIZE: usize = PAGE;
const SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::SEAL);

/// How often each settable signal had been asserted.
pub(crate) type Counts = [u32; COUNTED];

/// One side's signals. Any process may write here what it likes, so everything is an atomic and nothing is trusted.
#[repr(C, align(64))]
struct Side {
    word: AtomicU32,
    counts: [AtomicU32; COUNTED],
}

#[repr(C)]
struct Page {
    sides: [Side; 2],
}

const _: () = assert!(size_of::<Page>() <= PAGE);

/// A shared page with the signals of an event, or of both sides of an eventpair. Mapped on first use.
pub(crate) struct SharedSignals {
    fd: OwnedFd,
    page: OnceLock<NonNull<Page>>,
}

// SAFETY: the page consists of atomics and stays mapped as long as the object lives.
unsafe impl Send for SharedSignals {}
// SAFETY: as above.
unsafe impl Sync for SharedSignals {}

fn signal_of(index: usize) -> zx_signals_t {
    if index == 0 { ZX_EVENT_SIGNALED } else { ZX_USER_SIGNAL_0 << (index - 1) }
}

impl SharedSignals {
    /// A page with all signals clear.
    pub(crate) fn new() -> Result<SharedSignals> {
        Self::with_size(PAGE)
    }

    /// As [`SharedSignals::new`], with further memory behind the page; `size` is of both, in bytes.
    pub(crate) fn with_size(size: usize) -> Result<SharedSignals> {
        let fd = memfd_create("zx_event", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        ftruncate(&fd, size as u64)?;
        fcntl_add_seals(&fd, SEALS)?;
        Ok(SharedSignals { fd, page: OnceLock::new() })
    }

    /// A page that came from another process; checked when first used.
    pub(crate) fn from_fd(fd: OwnedFd) -> SharedSignals {
        SharedSignals { fd, page: OnceLock::new() }
    }

    pub(crate) fn duplicate(&self) -> Result<SharedSignals> {
        Ok(Self::from_fd(rustix::io::fcntl_dupfd_cloexec(&self.fd, 3)?))
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Fails with `ZX_ERR_IO_DATA_INTEGRITY` unless the memory has `size` bytes, and for ever: a file that can shrink would
    /// make every access a crash at its sender's will.
    pub(crate) fn check_size(&self, size: usize) -> Result<()> {
        let sealed = fcntl_get_seals(&self.fd).is_ok_and(|seals| seals.contains(SealFlags::SHRINK));
        if !sealed || fstat(&self.fd)?.st_size < size as i64 {
            return Err(IO_DATA_INTEGRITY);
        }
        Ok(())
    }

    fn page(&self) -> Result<&Page> {
        if let Some(page) = self.page.get() {
            // SAFETY: mapped until drop; `Page` is all atomics.
            return Ok(unsafe { page.as_ref() });
        }
        self.check_size(PAGE)?;
        // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing.
        let address = unsafe {
            mmap(
                std::ptr::null_mut(),
                PAGE,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                &self.fd,
                0,
            )?
        };
        let page = NonNull::new(address.cast::<Page>()).ok_or(IO_DATA_INTEGRITY)?;
        if self.page.set(page).is_err() {
            // Another thread was first.
            // SAFETY: this mapping was made above and nobody else knows of it.
            let _ = unsafe { munmap(address, PAGE) };
        }
        let page = self.page.get().ok_or(IO_DATA_INTEGRITY)?;
        // SAFETY: mapped until drop; `Page` is all atomics.
        Ok(unsafe { page.as_ref() })
    }

    fn side(&self, side: usize) -> Result<&Side> {
        Ok(&self.page()?.sides[side & 1])
    }

    /// The signals of one side that are set now.
    pub(crate) fn load(&self, side: usize) -> Result<zx_signals_t> {
        Ok(self.side(side)?.word.load(Ordering::SeqCst) & SETTABLE)
    }

    /// Clears and sets signals of one side, as `zx_object_signal` and `zx_object_signal_peer` do; adds to `broadcast` when any
    /// went from clear to set.
    ///
    /// Errors: `ZX_ERR_INVALID_ARGS` for signals that are not `settable`.
    pub(crate) fn signal(
        &self,
        side: usize,
        clear: zx_signals_t,
        set: zx_signals_t,
        settable: zx_signals_t,
        broadcast: &OwnedFd,
    ) -> Result<()> {
        if (clear | set) & !settable != 0 {
            return Err(INVALID_ARGS);
        }
        if self.change(side, clear, set)? {
            ring(broadcast);
        }
        Ok(())
    }

    /// On a page with the signals of one side only: notes that they were cleared.
    pub(crate) fn note_cleared(&self, signals: zx_signals_t) -> Result<()> {
        self.change(1, 0, signals).map(|_| ())
    }

    /// All that was noted as cleared.
    pub(crate) fn ever_cleared(&self) -> Result<zx_signals_t> {
        self.load(1)
    }

    /// Whether any signal went from clear to set, so that waiters must be told.
    fn change(&self, side: usize, clear: zx_signals_t, set: zx_signals_t) -> Result<bool> {
        let side = self.side(side)?;
        let change = |old| Some((old & !clear) | set);
        let old = side.word.fetch_update(Ordering::SeqCst, Ordering::SeqCst, change).unwrap_or(0);
        let risen = set & !old;
        for (index, count) in side.counts.iter().enumerate() {
            if risen & signal_of(index) != 0 {
                count.fetch_add(1, Ordering::SeqCst);
            }
        }
        Ok(risen != 0)
    }

    pub(crate) fn counts(&self, side: usize) -> Result<Counts> {
        let side = self.side(side)?;
        Ok(std::array::from_fn(|index| side.counts[index].load(Ordering::SeqCst)))
    }

    /// Signals whose count moved since.
    pub(crate) fn risen_since(&self, side: usize, before: &Counts) -> Result<zx_signals_t> {
        let now = self.counts(side)?;
        let moved = (0..COUNTED).filter(|&index| now[index] != before[index]);
        Ok(moved.fold(0, |signals, index| signals | signal_of(index)))
    }
}

impl Drop for SharedSignals {
    fn drop(&mut self) {
        if let Some(page) = self.page.get() {
            // SAFETY: mapped by `page` with this length; no reference outlives `self`.
            let _ = unsafe { munmap(page.as_ptr().cast(), PAGE) };
        }
    }
}
