//! Making processes: an executable of this machine, its arguments, and the handles it starts with.

use fuchsia_zircon::{self as zx, ProcessBuilder};
use std::os::fd::OwnedFd;
use std::path::PathBuf;

/// What a process starts with.
pub(crate) struct Launch {
    /// The file to run.
    pub(crate) executable: PathBuf,
    /// The arguments; the first is the name of the program itself.
    pub(crate) args: Vec<String>,
    /// `NAME=value`.
    pub(crate) environ: Vec<String>,
    /// Directories by path.
    pub(crate) namespace: Vec<(String, zx::Channel)>,
    /// Other handles by `PA_HND` number.
    pub(crate) handles: Vec<(u32, zx::Handle)>,
}

/// Starts a process in a job of its own.
///
/// # Errors
/// `NOT_FOUND` or `ACCESS_DENIED` for the executable, `NO_MEMORY`, `NO_RESOURCES`.
pub(crate) fn spawn(launch: Launch) -> Result<(zx::Process, zx::Job), zx::Status> {
    let file = std::fs::File::open(&launch.executable)?;
    let rights =
        zx::Rights::BASIC_RIGHTS | zx::Rights::READ | zx::Rights::EXECUTE | zx::Rights::MAP;
    let executable = zx::linux::vmo_from_file(OwnedFd::from(file), rights)?;
    let job = zx::Job::default_job().create_child_job()?;
    let name = launch.args.first().map_or("", String::as_str);
    let mut builder = ProcessBuilder::new(name, &job, executable);
    for argument in &launch.args {
        builder.add_argument(argument);
    }
    for variable in &launch.environ {
        builder.add_environment_variable(variable);
    }
    for (path, directory) in launch.namespace {
        builder.add_namespace_entry(&path, directory);
    }
    for (id, handle) in launch.handles {
        builder.add_raw_handle(id, handle);
    }
    Ok((builder.spawn()?, job))
}
