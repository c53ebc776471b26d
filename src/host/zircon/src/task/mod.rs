//! Processes, jobs and threads.
//!
//! A process handle is a pidfd. A child is started by a thread that lives as long as this process, because Linux's
//! parent-death signal is about the thread that started the child: when this process goes, however it goes, its children
//! are killed, and theirs. A job is a list of the processes that this process started in it.

mod job;
mod launch;
mod process;
mod spawn;
mod spawner;
mod startup;
mod thread;

pub(crate) use job::{Job, default_job};
pub(crate) use process::{Process, self_process};
pub use spawn::{Program, SpawnOptions, spawn};
pub use startup::{STARTUP_FD_VARIABLE, StartupHandles, take_startup_handles};
pub(crate) use thread::{Thread, self_thread};

use crate::handle_table::{get, insert};
use crate::object::Kind;
use crate::rights;
use crate::status::{INVALID_ARGS, WRONG_TYPE, answer, out};
use fuchsia_zircon_types::*;
use std::io::Write;
use std::time::{Duration, Instant};

/// See the Zircon documentation of `zx_task_kill`. Killing a job also kills what its processes started; a child of a killed
/// process that was started through this crate dies with it in any case.
///
/// # Safety
/// Always safe; unsafe to have the vDSO's signature.
pub unsafe fn zx_task_kill(handle: zx_handle_t) -> zx_status_t {
    answer((|| {
        let held = get(handle)?;
        let kill = match &held.kind {
            Kind::Process(process) => {
                held.require(ZX_RIGHT_DESTROY)?;
                return process.kill();
            }
            Kind::Job(job) => job,
            Kind::Thread(_) => return Err(crate::status::NOT_SUPPORTED),
            _ => return Err(WRONG_TYPE),
        };
        held.require(ZX_RIGHT_DESTROY)?;
        kill.kill(&held)
    })())
}

/// See the Zircon documentation of `zx_job_create`. Not supported for a parent that another process made.
///
/// # Safety
/// `out_handle` is null or valid for writing.
pub unsafe fn zx_job_create(
    parent_job: zx_handle_t,
    options: u32,
    out_handle: *mut zx_handle_t,
) -> zx_status_t {
    answer((|| {
        // SAFETY: the caller's promise.
        let out_handle = unsafe { out(out_handle)? };
        if options != 0 {
            return Err(INVALID_ARGS);
        }
        let parent = get(parent_job)?;
        parent.job()?;
        parent.require(ZX_RIGHT_MANAGE_JOB)?;
        let job = Job::create(&parent)?;
        out_handle.set(insert(job, rights::JOB)?);
        Ok(())
    })())
}

/// See the Zircon documentation of `zx_process_exit`. Of the code, Linux keeps the low eight bits. Messages that the
/// peers' sockets had no room for yet get a tenth of a second to leave.
///
/// # Safety
/// Always safe; unsafe to have the vDSO's signature.
pub unsafe fn zx_process_exit(retcode: i64) -> ! {
    let _ = std::io::stdout().flush();
    let end = Instant::now() + Duration::from_millis(100);
    while !crate::channel::all_flushed() && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(1));
    }
    std::process::exit((retcode & 0xff) as i32)
}
