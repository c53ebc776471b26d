//! What can go wrong with a guest package, and what to do about it.

use std::io;
use std::path::PathBuf;

/// Why a package could not be built, listed or removed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Host tools that the build calls are not installed.
    #[error("missing on this machine: {tools}; install with: {command}")]
    MissingTools {
        /// The tools' names, separated by commas.
        tools: String,
        /// The one line that installs them.
        command: String,
    },
    /// A tool ran and failed.
    #[error("{tool} failed ({status}):\n{output}")]
    Tool {
        /// The tool's name.
        tool: String,
        /// How it ended.
        status: String,
        /// The last lines it printed.
        output: String,
    },
    /// The host's file system refused.
    #[error("Could not {action} {path}: {source}", path = path.display())]
    Io {
        /// What was tried, a verb.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// Another process builds or removes packages in this store.
    #[error("another `guest image` command is at work in {path}; wait for it to end", path = .0.display())]
    Busy(PathBuf),
    /// The package exists, and the caller did not ask to replace it.
    #[error(
        "package {0} exists already; building it anew discards the files the guest has written (pass --force to do so)"
    )]
    Exists(String),
    /// There is no such package.
    #[error("there is no package {name} in {path}; `guest image build {name}` makes it", path = path.display())]
    NotFound {
        /// The package's name.
        name: String,
        /// The store.
        path: PathBuf,
    },
    /// Something is mounted in what an interrupted build has left.
    #[error(
        "an interrupted build has left the mount {path}; run `umount --lazy '{path}'` as root, then try again",
        path = .0.display()
    )]
    Mounted(PathBuf),
    /// A name that is not one path component of letters, digits, `.`, `_` and `-`.
    #[error("{0:?} is not a package name: letters, digits, '.', '_' and '-' only")]
    BadName(String),
    /// The caller cancelled the build.
    #[error("canceled; nothing was left behind")]
    Canceled,
    /// The archive gave something that the builder does not understand.
    #[error("the Debian archive gave no usable {0}; try again later or name another suite")]
    Archive(&'static str),
}

impl Error {
    /// An adapter for `map_err`: an I/O error with what was tried on which path.
    pub(crate) fn io(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }
}
