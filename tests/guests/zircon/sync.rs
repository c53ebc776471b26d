//! What several CPUs, and interrupts, may share.

use core::cell::{OnceCell, UnsafeCell};
use core::ops::{Deref, DerefMut};
use core::sync::atomic::{AtomicBool, Ordering};

/// A value that the first CPU sets while it is alone.
pub struct BootCell<T>(OnceCell<T>);

// SAFETY: `set` is called while only one CPU runs and no interrupt uses the value; afterwards it is only read.
unsafe impl<T> Sync for BootCell<T> {}

impl<T> BootCell<T> {
    pub const fn new() -> Self {
        Self(OnceCell::new())
    }

    /// Sets the value, once, while no other CPU runs.
    pub fn set(&self, value: T) -> &T {
        self.0.get_or_init(|| value)
    }

    pub fn get(&self) -> Option<&T> {
        self.0.get()
    }
}

/// A lock for moments. Not to be taken in an interrupt.
pub struct SpinLock<T> {
    locked: AtomicBool,
    value: UnsafeCell<T>,
}

// SAFETY: only the holder of the lock reaches the value.
unsafe impl<T: Send> Sync for SpinLock<T> {}

impl<T> SpinLock<T> {
    pub const fn new(value: T) -> Self {
        Self { locked: AtomicBool::new(false), value: UnsafeCell::new(value) }
    }

    pub fn lock(&self) -> SpinGuard<'_, T> {
        while self.locked.swap(true, Ordering::Acquire) {
            core::hint::spin_loop();
        }
        SpinGuard(self)
    }

    /// Opens the lock whoever holds it, for the last words of a CPU that panics.
    pub fn force_unlock(&self) {
        self.locked.store(false, Ordering::Release);
    }
}

/// The lock, held.
pub struct SpinGuard<'a, T>(&'a SpinLock<T>);

impl<T> Deref for SpinGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: the lock is held.
        unsafe { &*self.0.value.get() }
    }
}

impl<T> DerefMut for SpinGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: the lock is held.
        unsafe { &mut *self.0.value.get() }
    }
}

impl<T> Drop for SpinGuard<'_, T> {
    fn drop(&mut self) {
        self.0.locked.store(false, Ordering::Release);
    }
}

/// Memory that the hardware or assembly code shares with the kernel: reached by its address only.
#[repr(C, align(4096))]
pub struct Shared<T>(UnsafeCell<T>);

// SAFETY: it gives out an address; who uses that says why it is sound.
unsafe impl<T> Sync for Shared<T> {}

impl<T> Shared<T> {
    pub const fn new(value: T) -> Self {
        Self(UnsafeCell::new(value))
    }

    pub const fn get(&self) -> *mut T {
        self.0.get()
    }
}
