use crate::handle::impl_handle_based;
use crate::{AsHandleRef, Handle, HandleBased, Status, Time, Unowned, ok, sys};

/// What runs and can be killed.
pub trait Task: HandleBased {
    /// Ends the task and all below it.
    ///
    /// # Errors
    /// `ACCESS_DENIED` without the right to destroy.
    fn kill(&self) -> Result<(), Status> {
        // SAFETY: the call takes a number only.
        ok(unsafe { sys::zx_task_kill(self.raw_handle()) })
    }
}

/// A process.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Process(Handle);
impl_handle_based!(Process);
impl Task for Process {}

/// A group of processes and jobs.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Job(Handle);
impl_handle_based!(Job);
impl Task for Job {}

/// A thread.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Thread(Handle);
impl_handle_based!(Thread);
impl Task for Thread {}

/// What `ZX_INFO_PROCESS` says of a process.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub struct ProcessInfo {
    /// The exit code, once it has exited. A process that was killed has one below zero.
    pub return_code: i64,
    /// When it started.
    pub start_time: Time,
    /// `ZX_INFO_PROCESS_FLAG_*`.
    pub flags: u32,
}

impl ProcessInfo {
    /// Whether the process has exited.
    #[must_use]
    pub const fn has_exited(&self) -> bool {
        self.flags & sys::ZX_INFO_PROCESS_FLAG_EXITED != 0
    }
}

impl Process {
    /// What is known of the process.
    ///
    /// # Errors
    /// `ACCESS_DENIED` without the right to inspect.
    pub fn info(&self) -> Result<ProcessInfo, Status> {
        let mut raw = sys::zx_info_process_t { return_code: 0, start_time: 0, flags: 0 };
        // SAFETY: the topic's record is `zx_info_process_t`, plain integers.
        unsafe { crate::info::get(&self.as_handle_ref(), sys::ZX_INFO_PROCESS, &raw mut raw)? };
        Ok(ProcessInfo {
            return_code: raw.return_code,
            start_time: Time::from_nanos(raw.start_time),
            flags: raw.flags,
        })
    }
}

impl Job {
    /// The job in which this process makes others.
    #[must_use]
    pub fn default_job() -> Unowned<'static, Job> {
        // SAFETY: the default job's handle stays open as long as the process.
        unsafe { Unowned::from_raw_handle(sys::job_default()) }
    }

    /// A new job below this one.
    ///
    /// # Errors
    /// `ACCESS_DENIED`, `BAD_STATE` when this job has ended.
    pub fn create_child_job(&self) -> Result<Job, Status> {
        let mut out = 0;
        // SAFETY: the result has a valid place.
        ok(unsafe { sys::zx_job_create(self.raw_handle(), 0, &raw mut out) })?;
        // SAFETY: the call gave us the handle.
        Ok(Job(unsafe { Handle::from_raw(out) }))
    }
}
