//! Serving what a component provides: its outgoing directory.

mod service;

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use anyhow::{Context as _, Error, format_err};
use fidl::endpoints::{DiscoverableProtocolMarker, ServerEnd, create_proxy};
use fidl_fuchsia_io as fio;
use fuchsia_zircon::{self as zx, processargs};
use futures::channel::mpsc;
use futures::stream::{FusedStream, Stream, StreamExt};
use vfs::DirectoryEntry;
use vfs::directory::Simple;
use vfs::execution_scope::ExecutionScope;

pub use service::{Connect, Raw, Service, ServiceObj, ServiceObjLocal, ServiceObjTrait};

/// A component's outgoing directory, and the stream of what comes in through the protocols in it.
///
/// Each protocol is registered with a function from its request stream to `Output`, typically a variant of an enum that has
/// one for each. The stream yields these, and ends when nobody has the directory open any more.
#[must_use = "nothing is served unless the stream is polled"]
pub struct ServiceFs<S: ServiceObjTrait> {
    root: Arc<Simple>,
    /// The directories below the root that were made here, by their paths.
    directories: HashMap<String, Arc<Simple>>,
    services: Vec<S>,
    scope: ExecutionScope,
    connections: mpsc::UnboundedReceiver<Connection>,
    sender: mpsc::UnboundedSender<Connection>,
    /// Connections that were taken before a request could come.
    terminated: bool,
}

/// A channel, and which of the services it is for.
struct Connection {
    service: usize,
    channel: zx::Channel,
}

impl<'a, Output: 'a> ServiceFs<ServiceObjLocal<'a, Output>> {
    /// An empty directory whose functions stay on this thread.
    pub fn new_local() -> Self {
        ServiceFs::empty()
    }
}

impl<'a, Output: 'a> ServiceFs<ServiceObj<'a, Output>> {
    /// An empty directory whose functions can be sent to other threads.
    #[expect(clippy::new_without_default, reason = "a directory that serves nothing is no default")]
    pub fn new() -> Self {
        ServiceFs::empty()
    }
}

impl<S: ServiceObjTrait> ServiceFs<S> {
    fn empty() -> Self {
        let (sender, connections) = mpsc::unbounded();
        ServiceFs {
            root: vfs::directory::simple(),
            directories: HashMap::new(),
            services: Vec::new(),
            scope: ExecutionScope::new(),
            connections,
            sender,
            terminated: false,
        }
    }

    /// The root of the directory.
    pub fn root_dir(&mut self) -> ServiceFsDir<'_, S> {
        ServiceFsDir { directory: self.root.clone(), path: String::new(), fs: self }
    }

    /// The directory of this name in the root, made if it is not there.
    ///
    /// # Panics
    /// If the name cannot be, or another kind of entry has it.
    pub fn dir(&mut self, name: impl Into<String>) -> ServiceFsDir<'_, S> {
        self.root_dir().into_dir(&name.into())
    }

    /// As [`ServiceFsDir::add_fidl_service`], in the root.
    pub fn add_fidl_service<F, R>(&mut self, function: F) -> &mut Self
    where
        R: fidl::endpoints::RequestStream,
        R::Protocol: DiscoverableProtocolMarker,
        Service<F, R, S::Output>: Into<S>,
        F: FnMut(R) -> S::Output,
    {
        self.root_dir().add_fidl_service(function);
        self
    }

    /// As [`ServiceFsDir::add_remote`], in the root.
    pub fn add_remote(
        &mut self,
        name: impl Into<String>,
        directory: fio::DirectoryProxy,
    ) -> &mut Self {
        self.root_dir().add_remote(name, directory);
        self
    }

    /// As [`ServiceFsDir::add_entry_at`], in the root.
    pub fn add_entry_at(
        &mut self,
        name: impl Into<String>,
        entry: Arc<dyn DirectoryEntry>,
    ) -> &mut Self {
        self.root_dir().add_entry_at(name, entry);
        self
    }

    /// Serves the directory to the other end of `server_end`.
    ///
    /// # Errors
    /// None now; Fuchsia's has some.
    pub fn serve_connection(
        &mut self,
        server_end: ServerEnd<fio::DirectoryMarker>,
    ) -> Result<&mut Self, Error> {
        let rights = fio::RW_STAR_DIR | fio::Operations::EXECUTE;
        vfs::directory::serve(self.root.clone(), &self.scope, rights, server_end);
        Ok(self)
    }

    /// Serves the directory to whoever started this process.
    ///
    /// # Errors
    /// If the process was not given the channel for it, or it has been taken.
    pub fn take_and_serve_directory_handle(&mut self) -> Result<&mut Self, Error> {
        let handle =
            processargs::take_startup_handle(processargs::HandleType::DirectoryRequest.into())
                .ok_or_else(|| {
                    format_err!("this process was not given an outgoing directory to serve")
                })?;
        self.serve_connection(ServerEnd::new(zx::Channel::from(handle)))
    }

    /// Opens the directory from inside the process.
    ///
    /// # Errors
    /// As [`ServiceFs::serve_connection`].
    pub fn create_directory_proxy(&mut self) -> Result<fio::DirectoryProxy, Error> {
        let (proxy, server) = create_proxy::<fio::DirectoryMarker>();
        self.serve_connection(server).context("serving the directory")?;
        Ok(proxy)
    }

    fn add_service(&mut self, directory: &Simple, name: &str, service: S) {
        let number = self.services.len();
        self.services.push(service);
        let sender = self.sender.clone();
        let entry = vfs::service::endpoint(move |_, channel| {
            // The stream may be gone; then the channel closes.
            let _ = sender.unbounded_send(Connection { service: number, channel });
        });
        add(directory, name, entry);
    }
}

/// Adding entries is programming, and not input.
fn add(directory: &Simple, name: &str, entry: Arc<dyn DirectoryEntry>) {
    if let Err(status) = directory.add_entry(name, entry) {
        panic!("{name:?} cannot be added to the outgoing directory: {status}");
    }
}

impl<S: ServiceObjTrait> Stream for ServiceFs<S> {
    type Item = S::Output;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<S::Output>> {
        let fs = &mut *self;
        loop {
            while let Poll::Ready(Some(connection)) = fs.connections.poll_next_unpin(context) {
                let Some(service) = fs.services.get_mut(connection.service) else {
                    continue;
                };
                if let Some(output) = service.service().connect(connection.channel) {
                    return Poll::Ready(Some(output));
                }
            }
            if fs.scope.poll_empty(context).is_pending() {
                return Poll::Pending;
            }
            // The last connection may have brought something before it ended.
            match fs.connections.try_recv() {
                Ok(connection) => {
                    if let Some(service) = fs.services.get_mut(connection.service)
                        && let Some(output) = service.service().connect(connection.channel)
                    {
                        return Poll::Ready(Some(output));
                    }
                }
                Err(_) => {
                    fs.terminated = true;
                    return Poll::Ready(None);
                }
            }
        }
    }
}

impl<S: ServiceObjTrait> FusedStream for ServiceFs<S> {
    fn is_terminated(&self) -> bool {
        self.terminated
    }
}

// It holds its functions in boxes and is never pinned itself.
impl<S: ServiceObjTrait> Unpin for ServiceFs<S> {}

impl<S: ServiceObjTrait> Drop for ServiceFs<S> {
    fn drop(&mut self) {
        self.scope.shutdown();
    }
}

/// A directory of a [`ServiceFs`], to which entries can be added. All methods panic if the name cannot be or is taken.
pub struct ServiceFsDir<'a, S: ServiceObjTrait> {
    fs: &'a mut ServiceFs<S>,
    directory: Arc<Simple>,
    path: String,
}

impl<'a, S: ServiceObjTrait> ServiceFsDir<'a, S> {
    fn into_dir(self, name: &str) -> ServiceFsDir<'a, S> {
        let path = format!("{}/{name}", self.path);
        let directory = match self.fs.directories.get(&path) {
            Some(directory) => directory.clone(),
            None => {
                let directory = vfs::directory::simple();
                add(&self.directory, name, directory.clone());
                self.fs.directories.insert(path.clone(), directory.clone());
                directory
            }
        };
        ServiceFsDir { fs: self.fs, directory, path }
    }

    /// The directory of this name in this one, made if it is not there.
    pub fn dir(&mut self, name: impl Into<String>) -> ServiceFsDir<'_, S> {
        let this = ServiceFsDir {
            fs: &mut *self.fs,
            directory: self.directory.clone(),
            path: self.path.clone(),
        };
        this.into_dir(&name.into())
    }

    /// Adds a protocol under its own name. The stream yields what `function` makes of each connection's requests.
    pub fn add_fidl_service<F, R>(&mut self, function: F) -> &mut Self
    where
        R: fidl::endpoints::RequestStream,
        R::Protocol: DiscoverableProtocolMarker,
        Service<F, R, S::Output>: Into<S>,
        F: FnMut(R) -> S::Output,
    {
        let name = <R::Protocol as DiscoverableProtocolMarker>::PROTOCOL_NAME;
        self.add_fidl_service_at(name, function)
    }

    /// As [`ServiceFsDir::add_fidl_service`], under another name.
    pub fn add_fidl_service_at<F, R>(&mut self, name: impl Into<String>, function: F) -> &mut Self
    where
        R: fidl::endpoints::RequestStream,
        Service<F, R, S::Output>: Into<S>,
        F: FnMut(R) -> S::Output,
    {
        self.fs.add_service(&self.directory, &name.into(), Service::new(function).into());
        self
    }

    /// Adds a node whose connections are given to `function` as channels.
    pub fn add_service_at<F>(&mut self, name: impl Into<String>, function: F) -> &mut Self
    where
        F: FnMut(zx::Channel) -> Option<S::Output>,
        Raw<F>: Into<S>,
    {
        self.fs.add_service(&self.directory, &name.into(), Raw(function).into());
        self
    }

    /// Adds a protocol that is provided by the one of the same name in this component's own `/svc`.
    pub fn add_proxy_service<P: DiscoverableProtocolMarker>(&mut self) -> &mut Self {
        let entry = vfs::service::endpoint(|_, channel| {
            // If it is not there, the channel closes.
            let _ = crate::client::connect_channel_to_protocol::<P>(channel);
        });
        self.add_entry_at(P::PROTOCOL_NAME, entry)
    }

    /// Adds a directory that is served elsewhere.
    pub fn add_remote(
        &mut self,
        name: impl Into<String>,
        directory: fio::DirectoryProxy,
    ) -> &mut Self {
        self.add_entry_at(name, vfs::remote::remote_dir(directory))
    }

    /// Adds any node.
    pub fn add_entry_at(
        &mut self,
        name: impl Into<String>,
        entry: Arc<dyn DirectoryEntry>,
    ) -> &mut Self {
        add(&self.directory, &name.into(), entry);
        self
    }
}
