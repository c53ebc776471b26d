//! One bit for each guest-physical page, readable without a lock.

use crate::error::Error;
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU64, Ordering};

/// A bitmap over all guest-physical pages. The host commits memory only for the parts that hold a set bit.
pub(crate) struct PageBitmap {
    words: NonNull<AtomicU64>,
    word_count: usize,
}

// SAFETY: the words are atomics in a mapping that lives as long as the bitmap.
unsafe impl Send for PageBitmap {}
// SAFETY: as above; every access through a shared reference is atomic.
unsafe impl Sync for PageBitmap {}

impl PageBitmap {
    /// A bitmap for `pages` pages, all clear.
    pub(crate) fn new(pages: usize) -> Result<Self, Error> {
        let word_count = pages.div_ceil(64);
        // SAFETY: a fresh anonymous mapping at an address of the kernel's choice overlaps nothing.
        let base = unsafe {
            mmap_anonymous(
                ptr::null_mut(),
                word_count * size_of::<AtomicU64>(),
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )?
        };
        let words = NonNull::new(base.cast()).ok_or(Error::BadState("mmap returned null"))?;
        Ok(PageBitmap { words, word_count })
    }

    fn words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping is `word_count` zero-initialised, aligned words and lives as long as `self`.
        unsafe { std::slice::from_raw_parts(self.words.as_ptr(), self.word_count) }
    }

    /// Whether the bit of page number `page` is set. A page beyond the end is never set.
    #[inline]
    pub(crate) fn get(&self, page: u64) -> bool {
        self.words()
            .get((page / 64) as usize)
            .is_some_and(|word| word.load(Ordering::Acquire) >> (page % 64) & 1 != 0)
    }

    /// Sets or clears one bit and returns its previous value. A page beyond the end stays clear.
    pub(crate) fn set(&self, page: u64, value: bool) -> bool {
        let Some(word) = self.words().get((page / 64) as usize) else {
            return false;
        };
        let bit = 1 << (page % 64);
        let old = if value {
            word.fetch_or(bit, Ordering::AcqRel)
        } else {
            word.fetch_and(!bit, Ordering::AcqRel)
        };
        old & bit != 0
    }

    /// Sets or clears the bits of the pages `first..end`.
    pub(crate) fn set_range(&self, first: u64, end: u64, value: bool) {
        let mut page = first;
        while page < end {
            if page.is_multiple_of(64) && end - page >= 64 {
                let Some(word) = self.words().get((page / 64) as usize) else {
                    return;
                };
                word.store(if value { u64::MAX } else { 0 }, Ordering::Release);
                page += 64;
            } else {
                self.set(page, value);
                page += 1;
            }
        }
    }
}

impl Drop for PageBitmap {
    fn drop(&mut self) {
        // SAFETY: the mapping was made in `new` with this length and nothing borrows from it any more.
        // A failure would leak address space and nothing else.
        let _ = unsafe { munmap(self.words.as_ptr().cast(), self.word_count * 8) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_cover_partial_words() {
        let bitmap = PageBitmap::new(1024).unwrap();
        bitmap.set_range(3, 200, true);
        assert!(
            !bitmap.get(2)
                && bitmap.get(3)
                && bitmap.get(128)
                && bitmap.get(199)
                && !bitmap.get(200)
        );
        bitmap.set_range(64, 130, false);
        assert!(bitmap.get(63) && !bitmap.get(64) && !bitmap.get(129) && bitmap.get(130));
    }

    #[test]
    fn pages_beyond_the_end_are_clear() {
        let bitmap = PageBitmap::new(64).unwrap();
        bitmap.set_range(0, 1 << 20, true);
        assert!(bitmap.get(63));
        assert!(!bitmap.get(1 << 19));
        assert!(!bitmap.set(u64::MAX, true));
    }
}
