//! Bells: guest writes to a doorbell, as packets in a port, of this process or another.
//!
//! The memory behind a bell has a bit for each two bytes of the trap. To ring is to set the bit, and to add to an eventfd if
//! the bit was clear: one cheap system call, and none while an earlier ring is still unread. That is what a doorbell
//! means: look at your queue; rings that nobody has answered yet are one.

use crate::status::{IO_DATA_INTEGRITY, OUT_OF_RANGE, Result};
use fuchsia_zircon_types::*;
use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{
    MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, fstat, ftruncate, memfd_create,
};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The longest range of one bell, in bytes.
const MAX_RANGE: usize = 1 << 20;
/// Guest-physical bytes that share a bit.
const GRANULE: u64 = 2;
const SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::SEAL);

/// The bits of a bell, shared between who rings and who answers.
pub(crate) struct BellMemory {
    words: NonNull<AtomicU64>,
    count: usize,
}

// SAFETY: the words are atomics in a mapping that lives as long as the object.
unsafe impl Send for BellMemory {}
// SAFETY: as above.
unsafe impl Sync for BellMemory {}

impl BellMemory {
    fn bytes_for(range: usize) -> Result<usize> {
        if range == 0 || range > MAX_RANGE {
            return Err(OUT_OF_RANGE);
        }
        // A bit per granule, in whole words.
        Ok(range.div_ceil(GRANULE as usize * 64) * size_of::<u64>())
    }

    /// New memory for a range of this many bytes, and the descriptor to share it by.
    pub(crate) fn new(range: usize) -> Result<(BellMemory, OwnedFd)> {
        let len = Self::bytes_for(range)?;
        let fd = memfd_create("zx_bell", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        ftruncate(&fd, len as u64)?;
        fcntl_add_seals(&fd, SEALS)?;
        Ok((Self::map(&fd, len)?, fd))
    }

    /// The memory that another process shares for a range of this many bytes.
    pub(crate) fn from_fd(fd: &OwnedFd, range: usize) -> Result<BellMemory> {
        let len = Self::bytes_for(range)?;
        // A file that can shrink would make a ring a crash at its sender's will.
        let sealed = fcntl_get_seals(fd).is_ok_and(|seals| seals.contains(SealFlags::SHRINK));
        if !sealed || fstat(fd)?.st_size < len as i64 {
            return Err(IO_DATA_INTEGRITY);
        }
        Self::map(fd, len)
    }

    fn map(fd: &OwnedFd, len: usize) -> Result<BellMemory> {
        // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing.
        let address = unsafe {
            mmap(
                std::ptr::null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                fd,
                0,
            )?
        };
        let words = NonNull::new(address.cast()).ok_or(IO_DATA_INTEGRITY)?;
        Ok(BellMemory { words, count: len / size_of::<u64>() })
    }

    fn words(&self) -> &[AtomicU64] {
        // SAFETY: mapped with this length until drop; all bit patterns are valid atomics.
        unsafe { std::slice::from_raw_parts(self.words.as_ptr(), self.count) }
    }

    /// Sets the bit of an offset into the range; whether it was clear, so that the answerer must be woken.
    pub(crate) fn set(&self, offset: u64) -> bool {
        let bit = offset / GRANULE;
        let Some(word) = self.words().get((bit / 64) as usize) else { return false };
        let mask = 1 << (bit % 64);
        word.fetch_or(mask, Ordering::SeqCst) & mask == 0
    }

    /// Takes all bits; gives the offsets into the range.
    fn take(&self) -> Vec<u64> {
        let mut offsets = Vec::new();
        for (index, word) in self.words().iter().enumerate() {
            if word.load(Ordering::Relaxed) == 0 {
                continue;
            }
            let mut bits = word.swap(0, Ordering::SeqCst);
            while bits != 0 {
                offsets.push((index as u64 * 64 + u64::from(bits.trailing_zeros())) * GRANULE);
                bits &= bits - 1;
            }
        }
        offsets
    }
}

impl Drop for BellMemory {
    fn drop(&mut self) {
        // SAFETY: mapped by `map` with this length; no reference outlives `self`.
        let _ = unsafe { munmap(self.words.as_ptr().cast(), self.count * size_of::<u64>()) };
    }
}

/// A bell as its port sees it.
pub(crate) struct BellSource {
    memory: Arc<BellMemory>,
    wake: OwnedFd,
    key: u64,
    base: u64,
    /// Closing it tells the one who rings that nobody listens any more.
    _liveness: OwnedFd,
}

impl BellSource {
    pub(crate) fn new(
        memory: Arc<BellMemory>,
        wake: OwnedFd,
        key: u64,
        base: u64,
        liveness: OwnedFd,
    ) -> BellSource {
        BellSource { memory, wake, key, base, _liveness: liveness }
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    /// A packet for each doorbell that was rung since the last time.
    pub(crate) fn take(&self) -> Vec<zx_port_packet_t> {
        let packet = |offset: u64| {
            let mut union = [0; 32];
            union[..8].copy_from_slice(&self.base.wrapping_add(offset).to_ne_bytes());
            zx_port_packet_t {
                key: self.key,
                packet_type: zx_packet_type_t::ZX_PKT_TYPE_GUEST_BELL,
                status: ZX_OK,
                union,
            }
        };
        self.memory.take().into_iter().map(packet).collect()
    }
}

/// The eventfd of a bell; only ever added to.
pub(crate) fn new_wake() -> Result<OwnedFd> {
    Ok(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)
}
