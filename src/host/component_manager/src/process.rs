//! Making processes: an executable, its arguments, and the handles it starts with.

use fuchsia_zircon as zx;
use std::path::PathBuf;

/// What a process starts with.
pub struct Launch {
    /// The file to run.
    pub executable: PathBuf,
    /// The arguments after the name of the program itself.
    pub args: Vec<String>,
    /// `NAME=value`.
    pub environ: Vec<String>,
    /// Directories by path.
    pub namespace: Vec<(String, zx::Channel)>,
    /// Other handles by `PA_HND` number.
    pub handles: Vec<(u32, zx::Handle)>,
}

/// Starts a process in a job of its own.
///
/// # Errors
/// `NOT_FOUND` or `ACCESS_DENIED` for the executable, `NO_MEMORY`, `NO_RESOURCES`.
pub fn spawn(_launch: Launch) -> Result<(zx::Process, zx::Job), zx::Status> {
    Err(zx::Status::NOT_SUPPORTED)
}
