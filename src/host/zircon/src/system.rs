//! Clocks, random numbers and facts about the machine.

use crate::status::{OUT_OF_RANGE, answer};
use fuchsia_zircon_types::*;
use rustix::rand::{GetRandomFlags, getrandom};
use rustix::thread::{ClockId, NanosleepRelativeResult};
use rustix::time::{Timespec, clock_gettime};

/// Nanoseconds of the monotonic clock. Linux's stops while the machine is suspended, as Zircon's does.
pub(crate) fn now() -> zx_time_t {
    let time = clock_gettime(ClockId::Monotonic);
    time.tv_sec.saturating_mul(1_000_000_000).saturating_add(time.tv_nsec)
}

/// The time from now to a deadline: `None` is forever.
pub(crate) fn until(deadline: zx_time_t) -> Option<Timespec> {
    if deadline == ZX_TIME_INFINITE {
        return None;
    }
    if deadline <= 0 {
        return Some(Timespec { tv_sec: 0, tv_nsec: 0 });
    }
    let left = deadline.saturating_sub(now()).max(0);
    Some(Timespec { tv_sec: left / 1_000_000_000, tv_nsec: left % 1_000_000_000 })
}

/// Fills a buffer from the kernel's random number generator.
pub(crate) fn fill_random(mut buffer: &mut [u8]) {
    while !buffer.is_empty() {
        match getrandom(&mut *buffer, GetRandomFlags::empty()) {
            Ok(n) => buffer = &mut buffer[n..],
            Err(rustix::io::Errno::INTR) => {}
            // No randomness means no safe way on; Zircon's call has no error either.
            Err(_) => std::process::abort(),
        }
    }
}

/// See the Zircon documentation of `zx_clock_get_monotonic`.
///
/// # Safety
/// Always safe; unsafe to have the vDSO's signature.
pub unsafe fn zx_clock_get_monotonic() -> zx_time_t {
    now()
}

/// See the Zircon documentation of `zx_ticks_get`. A tick is a nanosecond of the monotonic clock.
///
/// # Safety
/// Always safe; unsafe to have the vDSO's signature.
pub unsafe fn zx_ticks_get() -> zx_ticks_t {
    now()
}

/// See the Zircon documentation of `zx_ticks_per_second`.
///
/// # Safety
/// Always safe; unsafe to have the vDSO's signature.
pub unsafe fn zx_ticks_per_second() -> zx_ticks_t {
    1_000_000_000
}

/// See the Zircon documentation of `zx_deadline_after`.
///
/// # Safety
/// Always safe; unsafe to have the vDSO's signature.
pub unsafe fn zx_deadline_after(nanoseconds: zx_duration_t) -> zx_time_t {
    now().saturating_add(nanoseconds)
}

/// See the Zircon documentation of `zx_nanosleep`.
///
/// # Safety
/// Always safe; unsafe to have the vDSO's signature.
pub unsafe fn zx_nanosleep(deadline: zx_time_t) -> zx_status_t {
    if deadline <= 0 {
        std::thread::yield_now();
        return ZX_OK;
    }
    loop {
        // A year at a time stands for ever: the loop goes on.
        let time = until(deadline).unwrap_or(Timespec { tv_sec: 31_536_000, tv_nsec: 0 });
        if time.tv_sec == 0 && time.tv_nsec == 0 {
            return ZX_OK;
        }
        match rustix::thread::nanosleep(&time) {
            NanosleepRelativeResult::Ok | NanosleepRelativeResult::Interrupted(_) => {}
            NanosleepRelativeResult::Err(errno) => return answer(Err(errno.into())),
        }
    }
}

/// See the Zircon documentation of `zx_system_get_physmem`.
///
/// # Safety
/// Always safe; unsafe to have the vDSO's signature.
pub unsafe fn zx_system_get_physmem() -> u64 {
    let info = rustix::system::sysinfo();
    info.totalram.saturating_mul(info.mem_unit.into())
}

/// See the Zircon documentation of `zx_system_get_num_cpus`. Counts what this process may run on.
///
/// # Safety
/// Always safe; unsafe to have the vDSO's signature.
pub unsafe fn zx_system_get_num_cpus() -> u32 {
    std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX))
}

/// See the Zircon documentation of `zx_system_get_page_size`.
///
/// # Safety
/// Always safe; unsafe to have the vDSO's signature.
pub unsafe fn zx_system_get_page_size() -> u32 {
    page_size() as u32
}

/// The page size in bytes; a power of two.
pub(crate) fn page_size() -> usize {
    rustix::param::page_size()
}

/// Rounds up to whole pages.
pub(crate) fn round_up_to_page(size: u64) -> crate::status::Result<u64> {
    size.checked_next_multiple_of(page_size() as u64)
        .filter(|&size| i64::try_from(size).is_ok())
        .ok_or(OUT_OF_RANGE)
}

/// See the Zircon documentation of `zx_cprng_draw`.
///
/// # Safety
/// `buffer` is valid for writing `buffer_size` bytes.
pub unsafe fn zx_cprng_draw(buffer: *mut u8, buffer_size: usize) {
    if buffer_size == 0 {
        return;
    }
    // SAFETY: the caller's promise; zeroed first because the bytes may be uninitialized.
    let buffer = unsafe {
        buffer.write_bytes(0, buffer_size);
        std::slice::from_raw_parts_mut(buffer, buffer_size)
    };
    fill_random(buffer);
}
