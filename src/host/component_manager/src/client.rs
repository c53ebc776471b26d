//! The client's side of the daemon: finds the user's component manager, or starts it.

use crate::daemon::READY;
use crate::runtime_directory::{RuntimeDirectory, RuntimeDirectoryError};
use fidl::endpoints::{ClientEnd, Proxy, create_proxy};
use fidl_fuchsia_io as fio;
use fidl_guest_host as fhost;
use fuchsia_zircon as zx;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};

/// How often a component manager that leaves just then is replaced.
const ATTEMPTS: usize = 5;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Where it is found is not safe.
    #[error(transparent)]
    RuntimeDirectory(#[from] RuntimeDirectoryError),
    /// It cannot be started.
    #[error("The component manager cannot be started: {0}")]
    Start(std::io::Error),
    /// It ended before it was ready.
    #[error("The component manager ended before it was ready; its messages are in {0}")]
    Ended(String),
    /// It does not take connections.
    #[error("The component manager cannot be reached: {0}")]
    Connect(std::io::Error),
}

/// A connection to the component manager, which stays as long as there is one.
#[derive(Debug)]
pub struct Connection {
    control: fhost::ComponentManagerProxy,
}

impl Connection {
    /// Connects to the user's component manager, and starts it where it does not run.
    ///
    /// # Errors
    /// [`ConnectError`]
    pub fn connect_or_start() -> Result<Self, ConnectError> {
        let mut command = Command::new("/proc/self/exe");
        command.arg("component_manager");
        Self::connect_or_run(&RuntimeDirectory::of_user()?, &mut command)
    }

    /// Connects to the user's component manager if it runs.
    ///
    /// # Errors
    /// [`ConnectError`]
    pub fn connect() -> Result<Option<Self>, ConnectError> {
        Self::connect_at(&RuntimeDirectory::of_user()?)
    }

    /// Connects to the component manager in `directory`, and runs `command` where there is none.
    ///
    /// # Errors
    /// [`ConnectError`]
    pub fn connect_or_run(
        directory: &RuntimeDirectory,
        command: &mut Command,
    ) -> Result<Self, ConnectError> {
        for _ in 0..ATTEMPTS {
            if let Some(connection) = Self::connect_at(directory)? {
                return Ok(connection);
            }
            start(directory.path(), command)?;
        }
        Err(ConnectError::Connect(std::io::ErrorKind::ConnectionRefused.into()))
    }

    /// Connects to the component manager in `directory`, if one runs there.
    ///
    /// # Errors
    /// [`ConnectError`]
    pub fn connect_at(directory: &RuntimeDirectory) -> Result<Option<Self>, ConnectError> {
        let Some(socket) =
            directory.connect().map_err(|error| ConnectError::Connect(error.into()))?
        else {
            return Ok(None);
        };
        let channel = zx::linux::channel_from_fd(socket)
            .map_err(|status| ConnectError::Connect(status.into()))?;
        Ok(Some(Self {
            control: ClientEnd::<fhost::ComponentManagerMarker>::new(channel).into_proxy(),
        }))
    }

    /// What the root of the tree exposes.
    #[must_use]
    pub fn exposed_dir(&self) -> fio::DirectoryProxy {
        let (proxy, server) = create_proxy::<fio::DirectoryMarker>();
        // A component manager that is gone closes the directory, which its user sees.
        let _gone = self.control.open_exposed_dir(server);
        proxy
    }

    /// The component manager's own protocol.
    #[must_use]
    pub fn control(&self) -> &fhost::ComponentManagerProxy {
        &self.control
    }

    /// Whether the component manager has gone.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.control.is_closed()
    }
}

/// Starts the daemon and waits until it listens.
fn start(directory: &Path, command: &mut Command) -> Result<(), ConnectError> {
    let log = directory.join("log");
    let messages = std::fs::File::create(&log).map_err(ConnectError::Start)?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(messages)
        .spawn()
        .map_err(ConnectError::Start)?;
    let mut said = vec![0; READY.len()];
    let mut output = child
        .stdout
        .take()
        .ok_or_else(|| ConnectError::Start(std::io::ErrorKind::BrokenPipe.into()))?;
    match output.read_exact(&mut said) {
        Ok(()) if said == READY => Ok(()),
        _ => {
            // It has ended or makes no sense; neither may stay as a zombie.
            let _ended = child.kill();
            let _reaped = child.wait();
            Err(ConnectError::Ended(log.display().to_string()))
        }
    }
}
