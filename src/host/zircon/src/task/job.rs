//! Jobs: groups of processes that end together.
//!
//! A job is run by the process that made it. A handle that was sent away is one end of a socket: it can kill the job, and
//! its hang-up says that the job is over.

use super::process::{Shared, stop_descendants};
use super::spawner::Spawner;
use crate::object::{Kind, Object, Source, Sources, lock};
use crate::status::{BAD_STATE, NOT_SUPPORTED, Result};
use fuchsia_zircon_types::*;
use rustix::event::{PollFd, PollFlags};
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::{Errno, fcntl_dupfd_cloexec};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair,
};
use rustix::process::{Signal, pidfd_send_signal};
use std::sync::{Arc, Mutex, OnceLock, Weak};

#[derive(Default)]
struct State {
    processes: Vec<Arc<Shared>>,
    children: Vec<Weak<Object>>,
    killed: bool,
}

/// A job.
#[derive(Default)]
pub(crate) struct Job {
    state: Mutex<State>,
    parent: Option<Arc<Object>>,
    /// What other processes get of a job of this process; made when a handle is sent for the first time.
    control: OnceLock<OwnedFd>,
    /// The way to the process that runs the job, if that is another one.
    other: Option<OwnedFd>,
}

/// The request to kill a job.
const KILL: u8 = b'k';

/// The job that this process starts others in unless it says otherwise.
pub(crate) fn default_job() -> Arc<Object> {
    static DEFAULT: OnceLock<Arc<Object>> = OnceLock::new();
    let empty = || {
        let job = Object::new(Kind::Job(Job::default()));
        job.change_local_signals(0, ZX_JOB_NO_PROCESSES | ZX_JOB_NO_JOBS);
        job
    };
    DEFAULT.get_or_init(empty).clone()
}

impl Job {
    /// A job that another process runs.
    pub(crate) fn from_control(control: OwnedFd) -> Job {
        Job {
            state: Mutex::default(),
            parent: None,
            control: OnceLock::new(),
            other: Some(control),
        }
    }

    /// The descriptor that a message carries for this job.
    pub(crate) fn control_for_transfer(
        &self,
        this: &Arc<Object>,
    ) -> std::result::Result<OwnedFd, Errno> {
        if let Some(control) = self.other.as_ref().or(self.control.get()) {
            return fcntl_dupfd_cloexec(control, 3);
        }
        let (near, far) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        // Of two threads that come here at once, one made a control for nothing; it ends at once.
        if self.control.set(far).is_ok() {
            let spawner = Spawner::get().map_err(|_| Errno::AGAIN)?;
            spawner.serve_job(near, Arc::downgrade(this));
        }
        fcntl_dupfd_cloexec(self.control.get().ok_or(Errno::AGAIN)?, 3)
    }

    /// Takes one request of another process from the near end of the control; false when none can come.
    pub(super) fn serve(&self, this: &Arc<Object>, near: &OwnedFd) -> bool {
        let mut request = [0; 1];
        match recv(near, &mut request, RecvFlags::DONTWAIT) {
            Ok((1, _)) if request[0] == KILL => {
                // What could not be killed is gone or never was ours.
                let _ = self.kill(this);
                true
            }
            Ok((0, _)) => false,
            _ => true,
        }
    }

    pub(crate) fn sources(&self, interest: zx_signals_t) -> Sources<'_> {
        // Hang-up is reported without being asked for.
        let source = |fd| Source { fd, events: PollFlags::empty(), edge: false };
        [
            self.other
                .as_ref()
                .filter(|_| interest & ZX_JOB_TERMINATED != 0)
                .map(|fd| source(fd.as_fd())),
            None,
        ]
    }

    pub(crate) fn signals(&self, revents: PollFlags) -> zx_signals_t {
        if self.other.is_some() && revents.contains(PollFlags::HUP) { ZX_JOB_TERMINATED } else { 0 }
    }

    /// Whether it was killed and nothing is left of it.
    pub(super) fn is_over(&self) -> bool {
        if let Some(other) = &self.other {
            let mut fds = [PollFd::new(other, PollFlags::empty())];
            return crate::object::poll_now(&mut fds).is_ok() && !fds[0].revents().is_empty();
        }
        let state = lock(&self.state);
        state.killed && state.processes.is_empty()
    }

    /// Fails with `ZX_ERR_NOT_SUPPORTED` for a job of another process.
    fn require_own(&self) -> Result<()> {
        if self.other.is_some() { Err(NOT_SUPPORTED) } else { Ok(()) }
    }

    /// A job inside `parent`, which must be one.
    pub(super) fn create(parent: &Arc<Object>) -> Result<Arc<Object>> {
        parent.job()?.require_own()?;
        let mut state = lock(&parent.job()?.state);
        if state.killed {
            return Err(BAD_STATE);
        }
        let job = Job {
            state: Mutex::default(),
            parent: Some(parent.clone()),
            control: OnceLock::new(),
            other: None,
        };
        let job = Object::with_koid(Kind::Job(job), crate::koid::allocate(), parent.koid);
        job.change_local_signals(0, ZX_JOB_NO_PROCESSES | ZX_JOB_NO_JOBS);
        state.children.retain(|child| child.strong_count() > 0);
        state.children.push(Arc::downgrade(&job));
        drop(state);
        parent.change_local_signals(ZX_JOB_NO_JOBS, 0);
        Ok(job)
    }

    /// Fails when no processes can be made in it: with `ZX_ERR_BAD_STATE` after it was killed, with
    /// `ZX_ERR_NOT_SUPPORTED` for a job of another process.
    pub(super) fn require_alive(&self) -> Result<()> {
        self.require_own()?;
        if lock(&self.state).killed { Err(BAD_STATE) } else { Ok(()) }
    }

    /// Adds a process; kills it when the job was killed meanwhile.
    pub(super) fn add(&self, this: &Arc<Object>, process: Arc<Shared>) {
        let mut state = lock(&self.state);
        if state.killed {
            let _ = process.kill();
        }
        state.processes.push(process);
        drop(state);
        this.change_local_signals(ZX_JOB_NO_PROCESSES, 0);
    }

    /// A process of the job has ended.
    pub(super) fn process_ended(&self, this: &Arc<Object>, pid: u32) {
        let mut state = lock(&self.state);
        state.processes.retain(|process| process.pid != pid);
        let (empty, killed) = (state.processes.is_empty(), state.killed);
        drop(state);
        if empty {
            this.change_local_signals(
                0,
                ZX_JOB_NO_PROCESSES | if killed { ZX_JOB_TERMINATED } else { 0 },
            );
        }
    }

    /// `zx_task_kill`: ends all processes, what they started, and the jobs inside.
    pub(super) fn kill(&self, this: &Arc<Object>) -> Result<()> {
        if let Some(other) = &self.other {
            return match send(other, &[KILL], SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                // It is over already; or so many have asked before that nobody has to any more.
                Ok(_) | Err(Errno::PIPE | Errno::CONNRESET | Errno::AGAIN) => Ok(()),
                Err(errno) => Err(errno.into()),
            };
        }
        let mut state = lock(&self.state);
        state.killed = true;
        let processes = state.processes.clone();
        let children: Vec<_> =
            state.children.drain(..).filter_map(|child| child.upgrade()).collect();
        drop(state);
        let mut result = Ok(());
        for child in children {
            result = result.and(child.job().and_then(|job| job.kill(&child)));
        }
        for process in &processes {
            // Gathered before their parent is gone, and without a trace of who started them.
            let started = stop_descendants(process);
            result = result.and(process.kill());
            for pidfd in started {
                // Gone already, or not ours to kill.
                let _ = pidfd_send_signal(&pidfd, Signal::KILL);
            }
        }
        if processes.is_empty() {
            this.change_local_signals(0, ZX_JOB_TERMINATED);
            self.tell_others();
        }
        result
    }

    /// Makes the spawner look whether the job is over, if another process may want to know.
    fn tell_others(&self) {
        if self.control.get().is_some()
            && let Ok(spawner) = Spawner::get()
        {
            spawner.look();
        }
    }

    /// `ZX_INFO_JOB`.
    pub(crate) fn info(&self) -> zx_info_job_t {
        let exited = self.is_over();
        zx_info_job_t {
            return_code: if exited { ZX_TASK_RETCODE_SYSCALL_KILL } else { 0 },
            exited,
            ..zx_info_job_t::default()
        }
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        self.tell_others();
        let Some(parent) = self.parent.take() else { return };
        let Ok(job) = parent.job() else { return };
        let mut state = lock(&job.state);
        state.children.retain(|child| child.strong_count() > 0);
        let empty = state.children.is_empty();
        drop(state);
        if empty {
            parent.change_local_signals(0, ZX_JOB_NO_JOBS);
        }
    }
}
