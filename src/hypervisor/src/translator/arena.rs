//! Code memory: one memfd mapped twice, writable and executable, never both through one mapping.

use std::ffi::c_void;
use std::ptr::{NonNull, null_mut};

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// Bytes of code memory of one vCPU.
pub(super) const ARENA_SIZE: usize = 32 << 20;
/// Room that must be left before a block is emitted; no block is longer.
pub(super) const BLOCK_ROOM: usize = 64 << 10;

/// An append-only area of executable code.
pub(super) struct Arena {
    write: NonNull<u8>,
    execute: NonNull<u8>,
    used: usize,
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
            Ok(execute) => Ok(Arena { write, execute, used: 0 }),
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
        self.base() + self.used as u64
    }

    /// Bytes in use.
    pub(super) fn used(&self) -> usize {
        self.used
    }

    /// True if `address` lies in the executable mapping.
    pub(super) fn contains(&self, address: u64) -> bool {
        address.wrapping_sub(self.base()) < ARENA_SIZE as u64
    }

    /// True if a block of any size still fits.
    pub(super) fn has_room(&self) -> bool {
        ARENA_SIZE - self.used >= BLOCK_ROOM
    }

    /// Appends code; returns its executable address, or `None` if it does not fit.
    pub(super) fn append(&mut self, code: &[u8]) -> Option<u64> {
        if code.len() > ARENA_SIZE - self.used {
            return None;
        }
        let address = self.cursor();
        // SAFETY: the range was just checked to lie in the writable mapping, which nothing else refers to.
        unsafe {
            std::ptr::copy_nonoverlapping(
                code.as_ptr(),
                self.write.as_ptr().add(self.used),
                code.len(),
            );
        }
        self.used += code.len();
        Some(address)
    }

    /// Overwrites bytes of existing code at executable address `at`.
    pub(super) fn patch(&mut self, at: u64, bytes: &[u8]) {
        let offset = at.wrapping_sub(self.base()) as usize;
        assert!(offset <= self.used && bytes.len() <= self.used - offset);
        // SAFETY: checked to lie in the used part. Only this vCPU's thread executes the arena, and it is here now.
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

    /// Drops everything after the first `keep` bytes.
    pub(super) fn truncate(&mut self, keep: usize) {
        self.used = self.used.min(keep);
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
