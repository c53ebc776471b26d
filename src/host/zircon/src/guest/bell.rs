//! Bells: guest writes to a doorbell, as packets in a port, of this process or another.
//!
//! The memory behind a bell has a bit for each two bytes of the trap. To ring is to set the bit, and to send a byte through a
//! socket if the bit was clear: one cheap system call, and none while an earlier ring is still unread. That is what a
//! doorbell means: look at your queue; rings that nobody has answered yet are one. A socket, and not an eventfd, because a
//! send can be told not to block whatever the listener does to the other end, and because it says when that end is gone.

use crate::status::{IO_DATA_INTEGRITY, OUT_OF_RANGE, PEER_CLOSED, Result, Status};
use fuchsia_zircon_types::*;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{
    MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, fstat, ftruncate, memfd_create,
};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair,
};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

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

    /// Takes all bits; gives the offsets into the range, ascending.
    fn take(&self, mut rung: impl FnMut(u64)) {
        for (index, word) in self.words().iter().enumerate() {
            if word.load(Ordering::Relaxed) == 0 {
                continue;
            }
            let mut bits = word.swap(0, Ordering::SeqCst);
            while bits != 0 {
                rung((index as u64 * 64 + u64::from(bits.trailing_zeros())) * GRANULE);
                bits &= bits - 1;
            }
        }
    }
}

impl Drop for BellMemory {
    fn drop(&mut self) {
        // SAFETY: mapped by `map` with this length; no reference outlives `self`.
        let _ = unsafe { munmap(self.words.as_ptr().cast(), self.count * size_of::<u64>()) };
    }
}

/// The status that answers a registration has this size; a ring is one byte.
const STATUS: usize = size_of::<zx_status_t>();

/// A bell as its port sees it.
pub(crate) struct BellSource {
    memory: BellMemory,
    /// Wakes the port. Closing it tells the one who rings that nobody listens any more; the guest runs on.
    wake: OwnedFd,
    key: u64,
    base: u64,
}

/// The end of a bell that rings.
pub(super) struct Ringer {
    memory: BellMemory,
    wake: OwnedFd,
    base: u64,
    /// Set when the listener is known to be gone.
    closed: Arc<AtomicBool>,
}

/// What the listener sends to the one who shall ring: the memory and its end of the wake-up socket.
pub(super) struct RingerParts {
    pub(super) memory: OwnedFd,
    pub(super) wake: OwnedFd,
}

/// A bell for doorbells in `size` bytes of guest-physical memory from `base`.
pub(super) fn new_bell(key: u64, base: u64, size: usize) -> Result<(BellSource, RingerParts)> {
    let (memory, memory_fd) = BellMemory::new(size)?;
    let (wake, far) =
        // A stream, so that one call takes all wake-ups that have gathered.
        socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    Ok((BellSource { memory, wake, key, base }, RingerParts { memory: memory_fd, wake: far }))
}

impl BellSource {
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    /// Waits for the answer to the registration of this bell in another process. Rings that come first are kept in the
    /// memory.
    pub(super) fn registered(&self) -> Result<()> {
        let mut status = [0; STATUS];
        loop {
            match recv(&self.wake, &mut status, RecvFlags::empty()) {
                Ok((STATUS, _)) => break,
                Ok((0, _)) => return Err(PEER_CLOSED),
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        match i32::from_ne_bytes(status) {
            ZX_OK => Ok(()),
            status @ ..0 => Err(Status(status)),
            _ => Err(IO_DATA_INTEGRITY),
        }
    }

    /// Gives a packet for each doorbell that was rung since the last time.
    pub(crate) fn take(&self, mut rung: impl FnMut(zx_port_packet_t)) {
        // First the wake-ups, all of them, since the port hears of arrivals only; then what they are about, so that a
        // ring in between wakes again.
        let mut wakes = [0; 256];
        while matches!(recv(&self.wake, &mut wakes, RecvFlags::DONTWAIT), Ok((256, _))) {}
        self.memory.take(|offset| {
            let mut union = [0; 32];
            union[..8].copy_from_slice(&self.base.wrapping_add(offset).to_ne_bytes());
            rung(zx_port_packet_t {
                key: self.key,
                packet_type: zx_packet_type_t::ZX_PKT_TYPE_GUEST_BELL,
                status: ZX_OK,
                union,
            });
        });
    }
}

impl Ringer {
    /// The ringing end of a bell whose listener may be another process.
    pub(super) fn new(parts: RingerParts, base: u64, size: usize) -> Result<Ringer> {
        let memory = BellMemory::from_fd(&parts.memory, size)?;
        Ok(Ringer { memory, wake: parts.wake, base, closed: Arc::default() })
    }

    /// Set it when the listener turns out to be gone.
    pub(super) fn closed_flag(&self) -> Arc<AtomicBool> {
        self.closed.clone()
    }

    /// A descriptor that hangs up when the listener is gone.
    pub(super) fn liveness(&self) -> Result<OwnedFd> {
        Ok(rustix::io::fcntl_dupfd_cloexec(&self.wake, 3)?)
    }

    /// Rings for a guest's write at `addr`. Where nobody listens any more the write goes nowhere: a device that died is a
    /// failed device to its guest, as if it were broken hardware, and not the end of the guest.
    pub(super) fn ring_at(&self, addr: u64) {
        if self.closed.load(Ordering::Relaxed) || !self.memory.set(addr.wrapping_sub(self.base)) {
            return;
        }
        // A full socket has wake-ups in it already.
        if let Err(Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN) =
            send(&self.wake, &[0], SendFlags::DONTWAIT | SendFlags::NOSIGNAL)
        {
            self.closed.store(true, Ordering::Relaxed);
        }
    }
}

impl hypervisor::BellSink for Ringer {
    fn ring(&self, _key: u64, addr: u64) -> std::result::Result<(), hypervisor::BellClosed> {
        self.ring_at(addr);
        Ok(())
    }
}
