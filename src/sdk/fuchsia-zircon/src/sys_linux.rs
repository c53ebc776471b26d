//! What a process starts with and how it starts others, on Linux.

use super::ProcessStart;
use fuchsia_zircon_types::{ZX_HANDLE_INVALID, zx_handle_t, zx_status_t};
use std::ffi::OsString;
use std::os::fd::AsRawFd as _;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use zircon::linux::{Program, SpawnOptions};

pub use zircon::linux::VcpuStats;

const PA_NS_DIR: u32 = 0x20;
const PA_FD: u32 = 0x30;

static ROOT_VMAR: LazyLock<zx_handle_t> =
    LazyLock::new(|| zircon::linux::vmar_root_self().unwrap_or(ZX_HANDLE_INVALID));
static DEFAULT_JOB: LazyLock<zx_handle_t> =
    LazyLock::new(|| zircon::linux::job_default().unwrap_or(ZX_HANDLE_INVALID));
static STARTUP: LazyLock<Mutex<Startup>> = LazyLock::new(|| Mutex::new(Startup::take()));

/// What the bootstrap message held, handed out piece by piece.
struct Startup {
    handles: Vec<(u32, zx_handle_t)>,
    namespace: Vec<(String, zx_handle_t)>,
}

impl Startup {
    fn take() -> Self {
        let startup = zircon::linux::take_startup_handles().unwrap_or_default();
        let (directories, handles): (Vec<_>, Vec<_>) =
            startup.handles.into_iter().partition(|(id, _)| id & 0xff == PA_NS_DIR);
        let mut names: Vec<_> = startup.names.into_iter().map(Some).collect();
        let named = |(id, handle): (u32, zx_handle_t)| {
            let name = names.get_mut((id >> 16) as usize)?.take()?;
            Some((name, handle))
        };
        Self { handles, namespace: directories.into_iter().filter_map(named).collect() }
    }
}

fn startup() -> MutexGuard<'static, Startup> {
    STARTUP.lock().unwrap_or_else(PoisonError::into_inner)
}

/// This process' default job, which the caller does not own.
#[must_use]
pub fn job_default() -> zx_handle_t {
    *DEFAULT_JOB
}

/// This process' root VMAR, which the caller does not own.
#[must_use]
pub fn vmar_root_self() -> zx_handle_t {
    *ROOT_VMAR
}

/// Takes the startup handle with this `PA_HND` number.
#[must_use]
pub fn take_startup_handle(info: u32) -> zx_handle_t {
    let mut startup = startup();
    match startup.handles.iter().position(|(id, _)| *id == info) {
        Some(index) => startup.handles.swap_remove(index).1,
        None => ZX_HANDLE_INVALID,
    }
}

/// Takes the directories of the namespace.
#[must_use]
pub fn take_namespace() -> Vec<(String, zx_handle_t)> {
    std::mem::take(&mut startup().namespace)
}

/// Starts a process; consumes the startup handles.
///
/// # Errors
/// Those of [`zircon::linux::spawn`].
pub fn start_process(start: ProcessStart) -> Result<zx_handle_t, zx_status_t> {
    // The descriptor closes at the program's start, and until then the path names it.
    let executable = zircon::linux::duplicate_fd(start.executable).map_err(|status| status.0)?;
    let mut stdio = [None, None, None];
    let mut handles = Vec::with_capacity(start.handles.len());
    for (id, handle) in start.handles {
        match stdio.get_mut((id >> 16) as usize).filter(|_| id & 0xff == PA_FD) {
            Some(slot) => {
                *slot = zircon::linux::duplicate_fd(handle).ok();
                // SAFETY: the handle is ours, and this is its last use.
                unsafe { zircon::zx_handle_close(handle) };
            }
            None => handles.push((id, handle)),
        }
    }
    let variable = |variable: String| {
        let (name, value) = variable.split_once('=').unwrap_or((&variable, ""));
        (OsString::from(name), OsString::from(value))
    };
    zircon::linux::spawn(SpawnOptions {
        program: Program::Path(format!("/proc/self/fd/{}", executable.as_raw_fd()).into()),
        argv: start.arguments.into_iter().map(OsString::from).collect(),
        env: start.environment.into_iter().map(variable).collect(),
        cwd: None,
        handles,
        names: start.names,
        stdio,
        job: start.job,
    })
    .map_err(|status| status.0)
}

/// A vCPU's counters.
///
/// # Errors
/// Those of [`zircon::linux::vcpu_stats`].
pub fn vcpu_stats(vcpu: zx_handle_t) -> Result<VcpuStats, zx_status_t> {
    zircon::linux::vcpu_stats(vcpu).map_err(|status| status.0)
}
