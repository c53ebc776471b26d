//! Starting a process with handles; the counterpart of Fuchsia's `fdio_spawn`.

use super::default_job;
use super::launch::{self, Child, Launch};
use super::process::Process;
use super::spawner::Spawner;
use super::startup::{STARTUP_FD_VARIABLE, messages, startup_variable};
use crate::channel::{Channel, Outgoing};
use crate::handle_table::{get, insert, take};
use crate::object::{Kind, Object};
use crate::rights;
use crate::status::Result;
use crate::transfer::prepare;
use fuchsia_zircon_types::*;
use rustix::fd::OwnedFd;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// What to run.
#[derive(Clone, Debug, Default)]
pub enum Program {
    /// The executable of this process, even when its file was replaced or removed meanwhile.
    #[default]
    SelfExe,
    /// The executable at this path.
    Path(PathBuf),
}

/// How to start a process.
#[derive(Debug, Default)]
pub struct SpawnOptions {
    /// What to run.
    pub program: Program,
    /// All arguments; the first is the name the program sees itself called by.
    pub argv: Vec<OsString>,
    /// The whole environment.
    pub env: Vec<(OsString, OsString)>,
    /// Working directory; without one, this process's.
    pub cwd: Option<PathBuf>,
    /// Startup handles with their ids, see [`super::StartupHandles`]. They are consumed, even when the call fails.
    pub handles: Vec<(u32, zx_handle_t)>,
    /// Namespace paths for `PA_NS_DIR` handles.
    pub names: Vec<String>,
    /// Standard input, output and error; without one, this process's.
    pub stdio: [Option<OwnedFd>; 3],
    /// The job to start it in; `ZX_HANDLE_INVALID` is this process's own. The handle stays the caller's.
    pub job: zx_handle_t,
}

/// Starts a process and gives a handle to it. The process is killed when this process ends, and reaped when it ends itself.
///
/// Errors: `ZX_ERR_NOT_FOUND` or `ZX_ERR_ACCESS_DENIED` for the program, `ZX_ERR_BAD_STATE` for a killed job,
/// `ZX_ERR_BAD_HANDLE`, `ZX_ERR_NO_RESOURCES`.
pub fn spawn(options: SpawnOptions) -> Result<zx_handle_t> {
    let SpawnOptions { program, argv, env, cwd, handles, names, stdio, job } = options;
    let mut result = Ok(());
    let mut startup = Vec::with_capacity(handles.len());
    for (id, handle) in handles {
        match take(handle).and_then(prepare) {
            Ok(held) => startup.push((id, held)),
            Err(status) => result = result.and(Err(status)),
        }
    }
    result?;
    let job = job_object(job)?;
    let koid = crate::koid::allocate();
    let (near, far) = Channel::pair()?;
    let program = match &program {
        Program::SelfExe => Path::new("/proc/self/exe"),
        Program::Path(path) => path,
    };
    let startup_fd = startup_variable(far.fd())?;
    let variables = env.into_iter().chain([(STARTUP_FD_VARIABLE.into(), startup_fd.into())]);
    let launch = Launch {
        program: launch::path(program)?,
        argv: argv.into_iter().map(launch::word).collect::<std::result::Result<_, _>>()?,
        env: variables
            .map(|(name, value)| launch::variable(name, &value))
            .collect::<std::result::Result<_, _>>()?,
        cwd: cwd.as_deref().map(launch::path).transpose()?,
        stdio,
        inherited: far.into_fd(),
    };
    let spawner = Spawner::get()?;
    let Child { pid, pidfd } = spawner.start(launch)?;
    let process = Process::child(pidfd, pid, job.clone());
    let shared = process.shared.clone();
    job.job()?.add(&job, shared.clone());
    spawner.adopt(shared);
    let object = Object::with_koid(Kind::Process(process), koid, job.koid);
    let near = Object::new(Kind::Channel(near));
    for (bytes, handles) in messages(koid, startup, &names) {
        let sent = near.channel()?.write(&near, Outgoing::new(&bytes, handles));
        // A child that is gone already is the owner's business, who has the handle.
        if sent != Err(crate::status::PEER_CLOSED) {
            sent.inspect_err(|_| {
                let _ = object.process().and_then(Process::kill);
            })?;
        }
    }
    insert(object, rights::PROCESS)
}

fn job_object(job: zx_handle_t) -> Result<std::sync::Arc<Object>> {
    let job = if job == ZX_HANDLE_INVALID {
        default_job()
    } else {
        let held = get(job)?;
        held.job()?;
        held.require(ZX_RIGHT_MANAGE_PROCESS)?;
        held.object
    };
    job.job()?.require_alive()?;
    Ok(job)
}
