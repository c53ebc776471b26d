//! What the component manager provides itself, as if it were the root's parent: what a Fuchsia system has around the components here.

mod memory_pressure;
mod network;
mod resources;

pub use memory_pressure::MemoryPressure;
pub use network::Network;

use crate::host_directory::{self, Access};
use crate::log::{LogStore, serve_log_sink};
use crate::moniker::Moniker;
use crate::runner::Runner;
use fidl::endpoints::ServerEnd;
use fuchsia_zircon as zx;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use vfs::directory::Directory;

/// Serves one connection of the component at the moniker.
pub type Connect = Rc<dyn Fn(&Moniker, zx::Channel)>;

/// The built-in capabilities, by name.
#[derive(Default)]
pub struct Builtins {
    protocols: HashMap<String, Connect>,
    directories: HashMap<String, PathBuf>,
    runners: HashMap<String, Rc<dyn Runner>>,
}

impl Builtins {
    /// Adds a protocol.
    #[must_use]
    pub fn with_protocol(
        mut self,
        name: &str,
        connect: impl Fn(&Moniker, zx::Channel) + 'static,
    ) -> Self {
        self.protocols.insert(name.to_owned(), Rc::new(connect));
        self
    }

    /// Adds `fuchsia.logger.LogSink`, whose records go to `store`.
    #[must_use]
    pub fn with_log_sink(self, store: LogStore) -> Self {
        self.with_protocol("fuchsia.logger.LogSink", move |moniker, channel| {
            serve_log_sink(store.clone(), moniker.clone(), ServerEnd::new(channel)).detach();
        })
    }

    /// Adds a directory of this machine, to be read and written.
    #[must_use]
    pub fn with_directory(mut self, name: &str, path: &Path) -> Self {
        self.directories.insert(name.to_owned(), path.to_owned());
        self
    }

    /// Adds a runner.
    #[must_use]
    pub fn with_runner(mut self, name: &str, runner: Rc<dyn Runner>) -> Self {
        self.runners.insert(name.to_owned(), runner);
        self
    }

    pub(crate) fn protocol(&self, name: &str) -> Option<Connect> {
        self.protocols.get(name).cloned()
    }

    pub(crate) fn directory(&self, name: &str) -> Option<Arc<dyn Directory>> {
        self.host_path(name).map(|path| host_directory::directory(path, Access::ReadWrite))
    }

    pub(crate) fn host_path(&self, name: &str) -> Option<&Path> {
        self.directories.get(name).map(PathBuf::as_path)
    }

    pub(crate) fn runner(&self, name: &str) -> Option<Rc<dyn Runner>> {
        self.runners.get(name).cloned()
    }
}
