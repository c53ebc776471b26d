//! The host stack of translated code: return sites of guest calls, so that the host CPU predicts guest returns.
//!
//! Nothing depends on its contents: a return site checks that the guest really returned to it. When the stack overflows
//! into its guard page it starts over at the top; when it runs empty the entry at the top catches the return.

use std::ptr::{NonNull, null_mut};

use rustix::io::Errno;
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect, munmap};

const SIZE: usize = 64 << 10;
const GUARD: usize = 64 << 10;

/// A guarded stack.
pub(super) struct ReturnStack {
    base: NonNull<u8>,
}

impl ReturnStack {
    pub(super) fn new() -> Result<ReturnStack, Errno> {
        // SAFETY: a fresh mapping at an address the kernel chooses; the guard is its lowest part.
        let base = unsafe {
            let at = mmap_anonymous(
                null_mut(),
                GUARD + SIZE,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )?;
            mprotect(at, GUARD, MprotectFlags::empty())?;
            at
        };
        Ok(ReturnStack { base: NonNull::new(base.cast()).ok_or(Errno::NOMEM)? })
    }

    /// Stack pointer with which translated code starts: the entry it points at catches the last return.
    pub(super) fn top(&self) -> u64 {
        self.base.as_ptr() as u64 + (GUARD + SIZE - 64) as u64
    }

    /// True if `address` is in the guard.
    pub(super) fn is_guard(&self, address: u64) -> bool {
        address.wrapping_sub(self.base.as_ptr() as u64) < GUARD as u64
    }

    /// The stack pointer with which to go on after the stack at `old` ran into the guard. The newest entries are kept,
    /// because a thunk's own return address may be among them.
    pub(super) fn restart(&mut self, old: u64) -> u64 {
        const KEPT: usize = 8;
        let new = self.top() - 8 * KEPT as u64;
        let old = old.clamp(self.base.as_ptr() as u64 + GUARD as u64, new - 8 * KEPT as u64);
        // SAFETY: both ranges lie in the writable part of the mapping and do not overlap.
        unsafe { std::ptr::copy_nonoverlapping(old as *const u64, new as *mut u64, KEPT) };
        new
    }

    /// Makes every entry lead to `underflow`: after code that entries point to was dropped.
    pub(super) fn reset(&mut self, underflow: u64) {
        // SAFETY: the writable part of the mapping made in `new`; translated code is not running.
        let entries = unsafe {
            std::slice::from_raw_parts_mut(self.base.as_ptr().add(GUARD).cast::<u64>(), SIZE / 8)
        };
        entries.fill(underflow);
    }
}

impl Drop for ReturnStack {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `new`. Failure would only leak address space.
        unsafe {
            let _ = munmap(self.base.as_ptr().cast(), GUARD + SIZE);
        }
    }
}
