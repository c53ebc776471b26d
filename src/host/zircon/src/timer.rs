//! Timers: timerfds. Nobody reads them, so an expired timer stays ready, and signaled, until it is set anew.

use crate::handle_table::{get, insert};
use crate::object::{Kind, Object, Source, Sources};
use crate::rights;
use crate::status::{INVALID_ARGS, OUT_OF_RANGE, Result, answer, out};
use fuchsia_zircon_types::*;
use rustix::event::PollFlags;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

/// A timer on the monotonic clock.
pub(crate) struct Timer {
    fd: OwnedFd,
}

impl Timer {
    pub(crate) fn from_fd(fd: OwnedFd) -> Timer {
        Timer { fd }
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub(crate) fn sources(&self, interest: zx_signals_t) -> Sources<'_> {
        let source = Source { fd: self.fd(), events: PollFlags::IN, edge: false };
        [(interest & ZX_TIMER_SIGNALED != 0).then_some(source), None]
    }

    pub(crate) fn signals(&self, revents: PollFlags) -> zx_signals_t {
        if revents.contains(PollFlags::IN) { ZX_TIMER_SIGNALED } else { 0 }
    }

    /// Expires at `time` on the monotonic clock, or never.
    fn set(&self, time: Option<zx_time_t>) -> Result<()> {
        // Zero would disarm; one nanosecond after boot is as long past.
        let nanoseconds = time.map_or(0, |time| time.max(1));
        let value =
            Timespec { tv_sec: nanoseconds / 1_000_000_000, tv_nsec: nanoseconds % 1_000_000_000 };
        let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: value };
        timerfd_settime(&self.fd, TimerfdTimerFlags::ABSTIME, &once)?;
        Ok(())
    }
}

/// See the Zircon documentation of `zx_timer_create`. The slack modes are accepted; timers are always on time.
///
/// # Safety
/// `out_handle` is null or valid for writing.
pub unsafe fn zx_timer_create(
    options: u32,
    clock_id: zx_clock_t,
    out_handle: *mut zx_handle_t,
) -> zx_status_t {
    answer((|| {
        // SAFETY: the caller's promise.
        let out_handle = unsafe { out(out_handle)? };
        if options > ZX_TIMER_SLACK_LATE || clock_id != ZX_CLOCK_MONOTONIC {
            return Err(INVALID_ARGS);
        }
        let fd = timerfd_create(
            TimerfdClockId::Monotonic,
            TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK,
        )?;
        out_handle.set(insert(Object::new(Kind::Timer(Timer { fd })), rights::TIMER)?);
        Ok(())
    })())
}

/// See the Zircon documentation of `zx_timer_set`.
///
/// # Safety
/// Always safe; unsafe to have the vDSO's signature.
pub unsafe fn zx_timer_set(
    handle: zx_handle_t,
    deadline: zx_time_t,
    slack: zx_duration_t,
) -> zx_status_t {
    answer((|| {
        if slack < 0 {
            return Err(OUT_OF_RANGE);
        }
        let held = get(handle)?;
        let timer = held.timer()?;
        held.require(ZX_RIGHT_WRITE)?;
        timer.set((deadline != ZX_TIME_INFINITE).then_some(deadline))
    })())
}

/// See the Zircon documentation of `zx_timer_cancel`. A timer that has expired is no longer signaled afterwards.
///
/// # Safety
/// Always safe; unsafe to have the vDSO's signature.
pub unsafe fn zx_timer_cancel(handle: zx_handle_t) -> zx_status_t {
    answer((|| {
        let held = get(handle)?;
        let timer = held.timer()?;
        held.require(ZX_RIGHT_WRITE)?;
        timer.set(None)
    })())
}
