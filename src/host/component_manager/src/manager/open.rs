//! Opening what was routed: in a component's outgoing directory, in the framework, or in what is built in.

use super::{Manager, StartError, WeakManager, namespace};
use crate::decl::{Availability, CapabilityType, Rights, UseDecl};
use crate::model::{InstanceId, Route, RouteError, RouteSource};
use crate::name::{Name, Path};
use crate::{host_directory, realm};
use fidl::endpoints::{ServerEnd, create_proxy};
use fidl_fuchsia_io as fio;
use fuchsia_async as fasync;
use fuchsia_zircon as zx;
use futures::StreamExt;
use futures::channel::mpsc;
use std::sync::{Arc, Mutex, PoisonError};
use vfs::directory::Directory;
use vfs::execution_scope::ExecutionScope;
use vfs::{DirectoryEntry, OpenRequest};

/// What a request is for. Plain data, because the server of the directory may hold it in any thread.
#[derive(Debug, Clone)]
pub(super) enum Target {
    /// The capability that `id` uses as the `index`th.
    Use { id: InstanceId, index: usize },
    /// A capability that `id` exposes.
    Expose { id: InstanceId, kind: CapabilityType, name: Name },
}

/// A request that came in one of the directories that the manager serves.
pub(super) struct Request {
    pub(super) target: Target,
    pub(super) open: OpenRequest,
}

/// Answers requests until the manager is gone.
pub(super) fn serve(manager: WeakManager, mut requests: mpsc::UnboundedReceiver<Request>) {
    fasync::Task::local(async move {
        while let Some(Request { target, open }) = requests.next().await {
            let Some(manager) = manager.upgrade() else { return };
            manager.answer(&target, open);
        }
    })
    .detach();
}

fn route_status(error: &RouteError) -> zx::Status {
    match error {
        RouteError::Rights { .. } => zx::Status::ACCESS_DENIED,
        RouteError::Unsupported(_) | RouteError::UnsupportedSource(_) => zx::Status::NOT_SUPPORTED,
        _ => zx::Status::NOT_FOUND,
    }
}

fn flags_of(rights: Rights) -> fio::Flags {
    // The low bits of both are `fuchsia.io/Operations`.
    fio::Flags::from_bits_truncate(rights.bits()) | fio::Flags::PROTOCOL_DIRECTORY
}

fn operations_of(rights: Rights) -> fio::Operations {
    fio::Operations::from_bits_truncate(rights.bits())
}

impl Manager {
    fn answer(&self, target: &Target, open: OpenRequest) {
        let route = match target {
            Target::Use { id, index } => self.route_used(*id, *index),
            Target::Expose { id, kind, name } => {
                let route = { self.tree().route_expose(*id, *kind, name) };
                route.map_err(|error| {
                    self.logs().note(
                        &self.moniker(*id),
                        &format!("Its {kind} {name} was asked for: {error}"),
                    );
                    route_status(&error)
                })
            }
        };
        let (Target::Use { id: user, .. } | Target::Expose { id: user, .. }) = target;
        let result = match route {
            Ok(route) => self.open_route(*user, route, open),
            Err(status) => return open.fail(status),
        };
        if let Err((open, error)) = result {
            open.fail(error.as_status());
        }
    }

    fn route_used(&self, id: InstanceId, index: usize) -> Result<Route, zx::Status> {
        let resolved = self.resolve(id).map_err(|_| zx::Status::NOT_FOUND)?;
        let used = resolved.decl.uses.get(index).ok_or(zx::Status::INTERNAL)?;
        let route = { self.tree().route_use(id, used) };
        route.map_err(|error| self.report(id, used, &error))
    }

    /// Tells the log of a component why it does not get what it uses.
    fn report(&self, id: InstanceId, used: &UseDecl, error: &RouteError) -> zx::Status {
        let message = format!("The {} {} is not available: {error}", used.kind, used.source_name);
        let moniker = self.moniker(id);
        match used.availability {
            Availability::Required => self.logs().error(&moniker, &message),
            _ => self.logs().note(&moniker, &message),
        }
        route_status(error)
    }

    /// Takes the request to the route's end; gives it back where a component on the way does not start.
    #[expect(clippy::result_large_err, reason = "the request goes back to whoever can fail it")]
    fn open_route(
        &self,
        user: InstanceId,
        route: Route,
        open: OpenRequest,
    ) -> Result<(), (OpenRequest, StartError)> {
        match route.source {
            RouteSource::Outgoing { id, path } => {
                if let Err(error) = self.start(id) {
                    return Err((open, error));
                }
                let Some(outgoing) = self.outgoing(id) else {
                    return Err((open, StartError::Stopping));
                };
                let place = [path.relative(), route.subdir.as_str()].join("/");
                match route.rights.filter(|_| route.kind == CapabilityType::Directory) {
                    // A connection of its own, with the rights of the route, so that the client cannot ask for more.
                    Some(rights) => {
                        let (limited, server) = create_proxy::<fio::DirectoryMarker>();
                        let place = place.trim_end_matches('/');
                        let _gone = outgoing.open(
                            place,
                            flags_of(rights),
                            &fio::Options::default(),
                            server.into_channel(),
                        );
                        open.forward(&limited, ".");
                    }
                    None => open.forward(&outgoing, &place),
                }
            }
            RouteSource::Framework { scope, name } if route.kind == CapabilityType::Protocol => {
                match take_channel(open) {
                    Some(channel) if name == "fuchsia.component.Realm" => {
                        realm::serve(self, scope, ServerEnd::new(channel));
                    }
                    Some(channel) => {
                        // fuchsia.component.Binder: the connection starts the component and lasts as long as it runs.
                        match self.start(scope) {
                            Ok(()) => self.hold_binder(scope, channel),
                            Err(error) => close(channel, error.as_status()),
                        }
                    }
                    None => {}
                }
            }
            RouteSource::Framework { scope, .. } => match self.resolve(scope) {
                Ok(resolved) => open_directory(
                    namespace::package_directory(&resolved.package),
                    &route.subdir,
                    open,
                ),
                Err(error) => return Err((open, error.into())),
            },
            RouteSource::Builtin { name } if route.kind == CapabilityType::Directory => {
                match self.builtins().directory(name.as_str()) {
                    Some(directory) => open_directory(directory, &route.subdir, open),
                    None => open.fail(zx::Status::NOT_FOUND),
                }
            }
            RouteSource::Builtin { name } => match self.builtins().protocol(name.as_str()) {
                Some(connect) => {
                    if let Some(channel) = take_channel(open) {
                        connect(&self.moniker(user), channel);
                    }
                }
                None => open.fail(zx::Status::NOT_FOUND),
            },
            RouteSource::Value(_) => open.fail(zx::Status::NOT_SUPPORTED),
        }
        Ok(())
    }

    /// Connects to something in the outgoing directory of `id`, which starts it.
    pub(crate) fn open_outgoing(
        &self,
        id: InstanceId,
        path: &Path,
        flags: fio::Flags,
        channel: zx::Channel,
    ) -> Result<(), StartError> {
        self.start(id)?;
        let outgoing = self.outgoing(id).ok_or(StartError::Stopping)?;
        // A component that has just died closes the channel.
        let _gone = outgoing.open(path.relative(), flags, &fio::Options::default(), channel);
        Ok(())
    }

    /// Serves a directory or storage that `id` uses.
    pub(super) fn open_used_directory(
        &self,
        id: InstanceId,
        index: usize,
        used: &UseDecl,
        server: ServerEnd<fio::DirectoryMarker>,
    ) {
        let channel = server.into_channel();
        if used.kind == CapabilityType::Storage {
            return self.open_storage(id, used, ServerEnd::new(channel));
        }
        match self.route_used(id, index) {
            Ok(route) => self.open_directory_route(id, route, channel),
            Err(status) => close(channel, status),
        }
    }

    /// Serves the directory at a route's end with the route's rights.
    pub(super) fn open_directory_route(
        &self,
        user: InstanceId,
        route: Route,
        channel: zx::Channel,
    ) {
        let rights = route.rights.unwrap_or(Rights::READ);
        let options = vfs::OpenOptions::from_flags(
            flags_of(rights),
            fio::Options::default(),
            operations_of(rights),
        );
        let options = match options {
            Ok(options) => options,
            Err(status) => return close(channel, status),
        };
        let request = OpenRequest::new(
            ExecutionScope::new(),
            vfs::path::Path::dot(),
            options,
            operations_of(rights),
            channel,
        );
        if let Err((request, error)) = self.open_route(user, route, request) {
            request.fail(error.as_status());
        }
    }
}

fn open_directory(
    directory: Arc<dyn Directory>,
    subdir: &crate::name::RelativePath,
    open: OpenRequest,
) {
    match host_directory::descend(directory, subdir.as_str()) {
        Ok(directory) => vfs::directory::open(directory, open),
        Err(status) => open.fail(status),
    }
}

/// Closes a channel and says why.
pub(crate) fn close(channel: zx::Channel, status: zx::Status) {
    // A client that is gone needs no telling.
    let _gone = ServerEnd::<fio::NodeMarker>::new(channel).close_with_epitaph(status);
}

/// The channel of a request for a protocol, after whatever a service has to tell of itself; `None` where that was all.
fn take_channel(open: OpenRequest) -> Option<zx::Channel> {
    let slot = Arc::new(Mutex::new(None));
    let filled = Arc::clone(&slot);
    vfs::service::endpoint(move |_, channel| {
        *filled.lock().unwrap_or_else(PoisonError::into_inner) = Some(channel);
    })
    .open(open);
    slot.lock().unwrap_or_else(PoisonError::into_inner).take()
}
