//! Processes, jobs and threads.

use crate::object::{Source, Sources};
use fuchsia_zircon_types::*;
use rustix::event::PollFlags;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};

/// A process, by its pidfd.
pub(crate) struct Process {
    pidfd: OwnedFd,
    pid: u32,
}

/// A group of processes that end together.
pub(crate) struct Job {}

/// A thread; known by its koid only.
pub(crate) struct Thread {}

impl Process {
    pub(crate) fn from_fd(pidfd: OwnedFd, pid: u32) -> Process {
        Process { pidfd, pid }
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    pub(crate) fn sources(&self, interest: zx_signals_t) -> Sources<'_> {
        let source = Source { fd: self.fd(), events: PollFlags::IN, edge: false };
        [(interest & ZX_PROCESS_TERMINATED != 0).then_some(source), None]
    }

    pub(crate) fn signals(&self, revents: PollFlags) -> zx_signals_t {
        if revents.contains(PollFlags::IN) { ZX_PROCESS_TERMINATED } else { 0 }
    }
}

impl Process {
    pub(crate) fn info(&self) -> crate::status::Result<zx_info_process_t> {
        Err(crate::status::NOT_SUPPORTED)
    }
}

impl Job {
    pub(crate) fn info(&self) -> zx_info_job_t {
        zx_info_job_t::default()
    }
}
