//! A thread, by a pidfd of its own.

use crate::handle_table::insert;
use crate::object::{Kind, Object, Source, Sources};
use crate::rights;
use crate::status::Result;
use fuchsia_zircon_types::*;
use rustix::event::PollFlags;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::process::{PidfdFlags, pidfd_open};

/// A thread: known by its koid and name, and by its end where the kernel tells of that, from Linux 6.9 on.
pub(crate) struct Thread {
    pidfd: Option<OwnedFd>,
}

impl Thread {
    /// A thread that another process knows.
    pub(crate) fn from_fd(pidfd: Option<OwnedFd>) -> Thread {
        Thread { pidfd }
    }

    pub(crate) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.pidfd.as_ref().map(AsFd::as_fd)
    }

    pub(crate) fn sources(&self, interest: zx_signals_t) -> Sources<'_> {
        let fd = self.fd().filter(|_| interest & ZX_THREAD_TERMINATED != 0);
        [fd.map(|fd| Source { fd, events: PollFlags::IN, edge: false }), None]
    }

    pub(crate) fn signals(&self, revents: PollFlags) -> zx_signals_t {
        if revents.contains(PollFlags::IN) { ZX_THREAD_TERMINATED } else { 0 }
    }
}

/// A handle that stands for the calling thread.
pub(crate) fn self_thread() -> Result<zx_handle_t> {
    /// `PIDFD_THREAD`.
    const THREAD: PidfdFlags = PidfdFlags::from_bits_retain(libc::O_EXCL.unsigned_abs());
    thread_local! {
        static KOID: zx_koid_t = crate::koid::allocate();
    }
    let pidfd = pidfd_open(rustix::thread::gettid(), THREAD).ok();
    let process = super::process::self_koid();
    let thread =
        Object::with_koid(Kind::Thread(Thread { pidfd }), KOID.with(|koid| *koid), process);
    insert(thread, rights::THREAD)
}
