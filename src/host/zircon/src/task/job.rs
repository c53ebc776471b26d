//! Jobs: groups of processes that end together.

use super::process::{Shared, descendants};
use crate::object::{Kind, Object, lock};
use crate::status::{BAD_STATE, Result};
use fuchsia_zircon_types::*;
use rustix::process::{Signal, pidfd_send_signal};
use std::sync::{Arc, Mutex, OnceLock, Weak};

#[derive(Default)]
struct State {
    processes: Vec<Arc<Shared>>,
    children: Vec<Weak<Object>>,
    killed: bool,
}

/// A job of this process.
#[derive(Default)]
pub(crate) struct Job {
    state: Mutex<State>,
    parent: Option<Arc<Object>>,
}

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
    /// A job inside `parent`, which must be one.
    pub(super) fn create(parent: &Arc<Object>) -> Result<Arc<Object>> {
        let mut state = lock(&parent.job()?.state);
        if state.killed {
            return Err(BAD_STATE);
        }
        let job = Job { state: Mutex::default(), parent: Some(parent.clone()) };
        let job = Object::with_koid(Kind::Job(job), crate::koid::allocate(), parent.koid);
        job.change_local_signals(0, ZX_JOB_NO_PROCESSES | ZX_JOB_NO_JOBS);
        state.children.retain(|child| child.strong_count() > 0);
        state.children.push(Arc::downgrade(&job));
        drop(state);
        parent.change_local_signals(ZX_JOB_NO_JOBS, 0);
        Ok(job)
    }

    /// Whether processes and jobs can still be made in it.
    pub(super) fn is_alive(&self) -> bool {
        !lock(&self.state).killed
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
            // Gathered before their parent is gone, killed after it so that it does not start more.
            let started = descendants(process.pid);
            result = result.and(process.kill());
            for pidfd in started {
                // Gone already, or not ours to kill.
                let _ = pidfd_send_signal(&pidfd, Signal::KILL);
            }
        }
        if processes.is_empty() {
            this.change_local_signals(0, ZX_JOB_TERMINATED);
        }
        result
    }

    /// `ZX_INFO_JOB`.
    pub(crate) fn info(&self) -> zx_info_job_t {
        let state = lock(&self.state);
        let exited = state.killed && state.processes.is_empty();
        zx_info_job_t {
            return_code: if exited { ZX_TASK_RETCODE_SYSCALL_KILL } else { 0 },
            exited,
            ..zx_info_job_t::default()
        }
    }
}

impl Drop for Job {
    fn drop(&mut self) {
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
