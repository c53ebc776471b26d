//! Code memory: one memfd mapped twice, writable and executable, never both through one mapping.

use std::ffi::c_void;
use std::ptr::{NonNull, null_mut};

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// Parts of the code memory that are emptied one at a time.
pub(super) const SEGMENTS: usize = 8;
/// Bytes of one of them.
pub(super) const SEGMENT_SIZE: usize = 5 << 19;
/// Bytes of code memory of one vCPU.
pub(super) const ARENA_SIZE: usize = SEGMENTS * SEGMENT_SIZE;
/// Room that must be left before a block is emitted; no block is longer.
pub(super) const BLOCK_ROOM: usize = 64 << 10;

/// Executable code: appended to one segment after another.
pub(super) struct Arena {
    write: NonNull<u8>,
    execute: NonNull<u8>,
    /// Segment that is being filled.
    current: usize,
    /// End of the code in each segment, as an offset in the arena.
    ends: [usize; SEGMENTS],
    /// Bytes of a segment that are used; fewer than there are only in tests.
    limit: usize,
}

impl Arena {
    pub(super) fn new() -> Result<Arena, Errno> {
        // Kernels before 6.3 do not know MFD_EXEC; there every memfd may be mapped executable.
        let fd = memfd_create("guest-code", MemfdFlags::CLOEXEC | MemfdFlags::EXEC)
            .or_else(|_| memfd_create("guest-code", MemfdFlags::CLOEXEC))?;
        ftruncate(&fd, ARENA_SIZE as u64)?;
        let map = |prot| -> Result<NonNull<u8>, Errno> {
            // SAFETY: a fresh mapping at an address the kernel chooses.
            let at = unsafe { mmap(null_mut(), ARENA_SIZE, prot, MapFlags::SHARED, &fd, 0)? };
            NonNull::new(at.cast()).ok_or(Errno::NOMEM)
        };
        let write = map(ProtFlags::READ | ProtFlags::WRITE)?;
        match map(ProtFlags::READ | ProtFlags::EXEC) {
            Ok(execute) => Ok(Arena {
                write,
                execute,
                current: 0,
                ends: std::array::from_fn(|segment| segment * SEGMENT_SIZE),
                limit: SEGMENT_SIZE,
            }),
            Err(error) => {
                unmap(write);
                Err(error)
            }
        }
    }

    /// Executable address of the first byte.
    pub(super) fn base(&self) -> u64 {
        self.execute.as_ptr() as u64
    }

    /// Executable address of the next byte that will be written.
    pub(super) fn cursor(&self) -> u64 {
        self.base() + self.offset() as u64
    }

    /// Offset of the next byte that will be written.
    pub(super) fn offset(&self) -> usize {
        self.ends[self.current]
    }

    /// Segment that is being filled.
    pub(super) fn current(&self) -> usize {
        self.current
    }

    /// True if `address` lies in the executable mapping.
    pub(super) fn contains(&self, address: u64) -> bool {
        address.wrapping_sub(self.base()) < ARENA_SIZE as u64
    }

    /// The segment that executable address `address` lies in.
    pub(super) fn segment_of(&self, address: u64) -> Option<usize> {
        self.contains(address).then(|| (address - self.base()) as usize / SEGMENT_SIZE)
    }

    /// Bytes left in the current segment.
    fn room(&self) -> usize {
        (self.current * SEGMENT_SIZE + self.limit).saturating_sub(self.offset())
    }

    /// True if a block of any size still fits into the current segment.
    pub(super) fn has_room(&self) -> bool {
        self.room() >= BLOCK_ROOM
    }

    /// Appends code; returns its executable address, or `None` if it does not fit.
    pub(super) fn append(&mut self, code: &[u8]) -> Option<u64> {
        if code.len() > self.room() {
            return None;
        }
        let address = self.cursor();
        // SAFETY: the range was just checked to lie in the writable mapping, which nothing else refers to.
        unsafe {
            std::ptr::copy_nonoverlapping(
                code.as_ptr(),
                self.write.as_ptr().add(self.offset()),
                code.len(),
            );
        }
        self.ends[self.current] += code.len();
        Some(address)
    }

    /// Overwrites bytes of existing code at executable address `at`.
    pub(super) fn patch(&mut self, at: u64, bytes: &[u8]) {
        let offset = at.wrapping_sub(self.base()) as usize;
        let end = self.ends[offset / SEGMENT_SIZE];
        assert!(offset <= end && bytes.len() <= end - offset);
        // SAFETY: checked to lie in the used part of a segment. Only this vCPU's thread executes the arena, and it is here now.
        unsafe {
            std::ptr::copy_nonoverlapping(
                bytes.as_ptr(),
                self.write.as_ptr().add(offset),
                bytes.len(),
            );
        }
    }

    /// Makes the four bytes at `at` a relative displacement to `target`.
    pub(super) fn patch_rel32(&mut self, at: u64, target: u64) {
        let rel = target.wrapping_sub(at + 4) as i32;
        self.patch(at, &rel.to_le_bytes());
    }

    /// Empties a segment but for its first `keep` bytes, and goes on there.
    pub(super) fn restart(&mut self, segment: usize, keep: usize) {
        self.ends[segment] = segment * SEGMENT_SIZE + keep;
        self.current = segment;
    }

    /// Uses only `limit` bytes of each segment.
    #[cfg(test)]
    pub(super) fn limit_for_test(&mut self, limit: usize) {
        self.limit = limit;
    }
}

fn unmap(address: NonNull<u8>) {
    // SAFETY: one of the two mappings made in `new`, on its owner's way out. Failure would only leak address space.
    unsafe {
        let _ = munmap(address.as_ptr().cast::<c_void>(), ARENA_SIZE);
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        unmap(self.write);
        unmap(self.execute);
    }
}
