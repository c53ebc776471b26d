//! A process, by its pidfd.

use super::job::Job;
use crate::object::{Kind, Object, Source, Sources, lock};
use crate::rights;
use crate::status::{NOT_SUPPORTED, Result};
use fuchsia_zircon_types::*;
use rustix::event::{PollFd, PollFlags};
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, WaitIdStatus, pidfd_open, pidfd_send_signal,
    waitid,
};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

/// What the handles and the reaper of a child share.
pub(super) struct Shared {
    pub(super) pidfd: OwnedFd,
    pub(super) pid: u32,
    start_time: zx_time_t,
    /// Whether it is this process's to reap.
    child: bool,
    return_code: Mutex<Option<i64>>,
    /// The job it was started in, which lives at least as long.
    pub(super) job: Option<Arc<Object>>,
}

/// A process.
pub(crate) struct Process {
    pub(super) shared: Arc<Shared>,
}

impl Process {
    /// A process that another process knows.
    pub(crate) fn from_fd(pidfd: OwnedFd, pid: u32) -> Process {
        Self::new(pidfd, pid, false, None)
    }

    /// A process that this process has just started.
    pub(super) fn child(pidfd: OwnedFd, pid: u32, job: Arc<Object>) -> Process {
        Self::new(pidfd, pid, true, Some(job))
    }

    fn new(pidfd: OwnedFd, pid: u32, child: bool, job: Option<Arc<Object>>) -> Process {
        let return_code = Mutex::new(None);
        let start_time = crate::system::now();
        Process { shared: Arc::new(Shared { pidfd, pid, start_time, child, return_code, job }) }
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.shared.pidfd.as_fd()
    }

    /// The Linux process number.
    pub(crate) fn pid(&self) -> u32 {
        self.shared.pid
    }

    pub(crate) fn sources(&self, interest: zx_signals_t) -> Sources<'_> {
        let source = Source { fd: self.fd(), events: PollFlags::IN, edge: false };
        [(interest & ZX_PROCESS_TERMINATED != 0).then_some(source), None]
    }

    pub(crate) fn signals(&self, revents: PollFlags) -> zx_signals_t {
        if revents.contains(PollFlags::IN) { ZX_PROCESS_TERMINATED } else { 0 }
    }

    /// Ends the process. A process that has ended already stays as it is.
    pub(super) fn kill(&self) -> Result<()> {
        self.shared.kill()
    }

    /// `ZX_INFO_PROCESS`.
    pub(crate) fn info(&self) -> Result<zx_info_process_t> {
        let shared = &*self.shared;
        let mut info = zx_info_process_t {
            return_code: 0,
            start_time: shared.start_time,
            flags: ZX_INFO_PROCESS_FLAG_STARTED,
        };
        let mut fds = [PollFd::new(&shared.pidfd, PollFlags::IN)];
        crate::object::poll_now(&mut fds)?;
        if !fds[0].revents().is_empty() {
            info.flags |= ZX_INFO_PROCESS_FLAG_EXITED;
            info.return_code = shared.return_code()?;
        }
        Ok(info)
    }
}

impl Shared {
    pub(super) fn kill(&self) -> Result<()> {
        match pidfd_send_signal(&self.pidfd, Signal::KILL) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// The code of a process that has ended. Reaps it, if it is ours and nobody has done so yet.
    fn return_code(&self) -> Result<i64> {
        let mut return_code = lock(&self.return_code);
        if let Some(code) = *return_code {
            return Ok(code);
        }
        let code = if self.child {
            self.reap()?
        } else {
            exit_code_of(&self.pidfd).map(code_of_wait_status)
        };
        *return_code = code;
        code.ok_or(NOT_SUPPORTED)
    }

    fn reap(&self) -> Result<Option<i64>> {
        let status = waitid(
            WaitId::PidFd(self.pidfd.as_fd()),
            WaitIdOptions::EXITED | WaitIdOptions::NOHANG,
        )?;
        Ok(status.as_ref().map(code_of))
    }

    /// Takes note that the process has ended: its status is kept, its job has one process less.
    pub(super) fn ended(&self) {
        // Without a status the handle's owner gets the error that asking again gives.
        let _ = self.return_code();
        if let Some(object) = &self.job
            && let Ok(job) = object.job()
        {
            Job::process_ended(job, object, self.pid);
        }
    }
}

/// Zircon's codes for how a process ended.
fn code_of(status: &WaitIdStatus) -> i64 {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => code.into(),
        (None, Some(libc::SIGKILL | libc::SIGTERM | libc::SIGINT | libc::SIGHUP)) => {
            ZX_TASK_RETCODE_SYSCALL_KILL
        }
        (None, _) => ZX_TASK_RETCODE_EXCEPTION_KILL,
    }
}

/// The same for a status in the form of `wait(2)`.
fn code_of_wait_status(status: i32) -> i64 {
    match status & 0x7f {
        0 => i64::from(status >> 8 & 0xff),
        libc::SIGKILL | libc::SIGTERM | libc::SIGINT | libc::SIGHUP => ZX_TASK_RETCODE_SYSCALL_KILL,
        _ => ZX_TASK_RETCODE_EXCEPTION_KILL,
    }
}

/// The status of a process that someone else reaps; known from Linux 6.15 on, once it has been reaped.
fn exit_code_of(pidfd: &OwnedFd) -> Option<i32> {
    /// The first version of the kernel's `struct pidfd_info`.
    #[repr(C)]
    #[derive(Default)]
    struct PidfdInfo {
        mask: u64,
        cgroup: u64,
        ids: [u32; 11],
        exit_code: i32,
    }
    const PIDFD_INFO_EXIT: u64 = 1 << 3;
    const PIDFD_GET_INFO: libc::c_ulong =
        (3 << 30 | (size_of::<PidfdInfo>() as libc::c_ulong) << 16) | 0xff << 8 | 11;
    let mut info = PidfdInfo { mask: PIDFD_INFO_EXIT, ..PidfdInfo::default() };
    // SAFETY: the kernel writes at most the size that is part of the request.
    let result = unsafe { libc::ioctl(pidfd.as_raw_fd(), PIDFD_GET_INFO, &raw mut info) };
    (result == 0 && info.mask & PIDFD_INFO_EXIT != 0).then_some(info.exit_code)
}

static SELF_KOID: OnceLock<zx_koid_t> = OnceLock::new();

/// The koid that this process has, from its parent if that told it.
pub(super) fn set_self_koid(koid: zx_koid_t) {
    let _ = SELF_KOID.set(koid);
}

pub(super) fn self_koid() -> zx_koid_t {
    *SELF_KOID.get_or_init(crate::koid::allocate)
}

/// A handle to this process.
pub(crate) fn self_process() -> Result<zx_handle_t> {
    let pid = rustix::process::getpid();
    let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
    let koid = self_koid();
    let process = Process::from_fd(pidfd, pid.as_raw_nonzero().get().unsigned_abs());
    crate::handle_table::insert(
        Object::with_koid(Kind::Process(process), koid, ZX_KOID_INVALID),
        rights::PROCESS,
    )
}

/// Descriptors of all processes that a process started, and those started in turn. It and they are stopped on the way, since
/// who is stopped starts no others; to be killed by the caller.
pub(super) fn stop_descendants(process: &Shared) -> Vec<OwnedFd> {
    let mut found = Vec::new();
    stop(&process.pidfd, process.pid);
    let mut parents = vec![process.pid];
    while let Some(parent) = parents.pop() {
        for child in children_of(parent) {
            let pidfd = i32::try_from(child).ok().and_then(Pid::from_raw);
            if let Some(Ok(pidfd)) = pidfd.map(|pid| pidfd_open(pid, PidfdFlags::empty())) {
                stop(&pidfd, child);
                found.push(pidfd);
                parents.push(child);
            }
        }
    }
    found
}

/// Stops a process, and waits until it has: it may be in the middle of a fork. One that does not stop in a tenth of a second
/// sleeps in the kernel and starts nobody.
fn stop(pidfd: &OwnedFd, pid: u32) {
    if pidfd_send_signal(pidfd, Signal::STOP).is_err() {
        // It is gone.
        return;
    }
    for _ in 0..100 {
        if tasks_of(pid).iter().all(|task| is_still(task)) {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The directories of a process's threads.
fn tasks_of(pid: u32) -> Vec<PathBuf> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task"));
    tasks.into_iter().flatten().flatten().map(|task| task.path()).collect()
}

/// Whether a thread is stopped or over; see proc_pid_stat(5).
fn is_still(task: &Path) -> bool {
    let stat = std::fs::read_to_string(task.join("stat")).unwrap_or_default();
    let state = stat.rsplit(") ").next().and_then(|rest| rest.chars().next());
    !matches!(state, Some('R' | 'S' | 'D'))
}

fn children_of(pid: u32) -> Vec<u32> {
    let lists =
        tasks_of(pid).into_iter().map(|task| std::fs::read_to_string(task.join("children")));
    lists
        .flat_map(|list| {
            let list = list.unwrap_or_default();
            list.split_ascii_whitespace().filter_map(|child| child.parse().ok()).collect::<Vec<_>>()
        })
        .collect()
}
