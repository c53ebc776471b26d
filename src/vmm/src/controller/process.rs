//! A device's component: creating it, and the conversation with it from vCPU threads.
//!
//! A vCPU thread that configures a device sends a command here and blocks for the answer; a task on the executor talks to
//! the component. So a component that dies fails the command instead of hanging the vCPU.

use super::guest::{ConnectVsock, alive};
use crate::virtio_pci::{BackendError, QueueConfig, VirtioBackend, VirtioPciDevice};
use fidl::endpoints::{DiscoverableProtocolMarker, Proxy};
use fidl_fuchsia_component::{CreateChildArgs, RealmProxy};
use fidl_fuchsia_component_decl::{Child, ChildRef, CollectionRef, StartupMode};
use fidl_fuchsia_io::{DirectoryMarker, DirectoryProxy};
use fidl_fuchsia_virtualization::{GuestError, HostVsockEndpointMarker};
use fidl_fuchsia_virtualization_hardware as hardware;
use fuchsia_async as fasync;
use futures::channel::mpsc;
use futures::future::{Either, LocalBoxFuture, select};
use futures::{FutureExt as _, StreamExt as _};
use std::pin::pin;
use std::sync::Arc;
use std::sync::mpsc as sync_mpsc;

/// Why a device's component is not there.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProcessError {
    /// The framework does not answer.
    #[error("Realm does not answer: {0}")]
    Realm(fidl::Error),
    /// The framework refused to create the component or to open its directory.
    #[error("{call} of {name}: {error:?}")]
    Component {
        /// What was asked of the framework.
        call: &'static str,
        /// The child.
        name: String,
        /// Its answer.
        error: fidl_fuchsia_component::Error,
    },
    /// The component's directory cannot be used.
    #[error("Connecting to {name}: {error}")]
    Connect {
        /// The child.
        name: String,
        /// What failed.
        error: anyhow::Error,
    },
}

/// A device's component, alive until it is destroyed.
pub(super) struct DeviceProcess {
    child: ChildRef,
    exposed: DirectoryProxy,
}

impl DeviceProcess {
    /// Creates child `name` of the collection for devices of `kind`.
    pub(super) async fn create(
        realm: &RealmProxy,
        kind: &str,
        name: String,
    ) -> Result<Self, ProcessError> {
        let collection = CollectionRef { name: format!("virtio_{kind}_devices") };
        let child = ChildRef { name: name.clone(), collection: Some(collection.name.clone()) };
        let declaration = Child {
            name: Some(name.clone()),
            url: Some(format!("#meta/virtio_{kind}.cm")),
            startup: Some(StartupMode::Lazy),
            ..Default::default()
        };
        let created =
            realm.create_child(&collection, &declaration, CreateChildArgs::default()).await;
        created.map_err(ProcessError::Realm)?.map_err(|error| ProcessError::Component {
            call: "CreateChild",
            name: name.clone(),
            error,
        })?;
        let (exposed, server) = fidl::endpoints::create_proxy::<DirectoryMarker>();
        let opened = realm.open_exposed_dir(&child, server).await;
        let process = Self { child, exposed };
        match opened {
            Ok(Ok(())) => Ok(process),
            Ok(Err(error)) => {
                process.destroy(realm).await;
                Err(ProcessError::Component { call: "OpenExposedDir", name, error })
            }
            Err(error) => Err(ProcessError::Realm(error)),
        }
    }

    /// Connects to protocol `P` of the component.
    pub(super) fn connect<P: DiscoverableProtocolMarker>(&self) -> Result<P::Proxy, ProcessError> {
        fuchsia_component::client::connect_to_protocol_at_dir_root::<P>(&self.exposed)
            .map_err(|error| self.failed(error))
    }

    /// Connects `HostVsockEndpoint` clients to the component, for as long as `device`, which it serves, is alive.
    pub(super) fn vsock_connector(&self, device: Arc<VirtioPciDevice>) -> ConnectVsock {
        let (exposed, name) = (Clone::clone(&self.exposed), self.child.name.clone());
        Box::new(move |server| {
            // A component that ended would be started anew by the connection, without a device.
            alive(&device)?;
            fuchsia_component::client::connect_channel_to_protocol_at_dir_root::<
                HostVsockEndpointMarker,
            >(&exposed, server)
            .map_err(|error| {
                tracing::error!(name, %error, "Could not connect to the vsock component");
                GuestError::FailedServiceConnect
            })
        })
    }

    fn failed(&self, error: impl Into<anyhow::Error>) -> ProcessError {
        ProcessError::Connect { name: self.child.name.clone(), error: error.into() }
    }

    /// Destroys the component and waits until it is gone.
    pub(super) async fn destroy(self, realm: &RealmProxy) {
        match realm.destroy_child(&self.child).await {
            Ok(Ok(()) | Err(fidl_fuchsia_component::Error::InstanceNotFound)) => {}
            Ok(Err(error)) => tracing::warn!(
                name = self.child.name,
                ?error,
                "Could not destroy a device component"
            ),
            Err(error) => {
                tracing::warn!(name = self.child.name, %error, "Could not destroy a device component");
            }
        }
    }
}

/// What all device protocols have in common, which FIDL composes into each of them.
pub(super) trait DeviceProtocol {
    fn configure_queue(
        &self,
        index: u16,
        queue: &QueueConfig,
    ) -> LocalBoxFuture<'static, Result<(), fidl::Error>>;
    fn ready(&self, features: u32) -> LocalBoxFuture<'static, Result<(), fidl::Error>>;
    fn reset(&self) -> LocalBoxFuture<'static, Result<(), fidl::Error>>;
}

macro_rules! device_protocol {
    ($($proxy:ty),* $(,)?) => {$(
        impl DeviceProtocol for $proxy {
            fn configure_queue(
                &self,
                index: u16,
                queue: &QueueConfig,
            ) -> LocalBoxFuture<'static, Result<(), fidl::Error>> {
                self.configure_queue(index, queue.size, queue.descriptors, queue.available, queue.used).boxed_local()
            }
            fn ready(&self, features: u32) -> LocalBoxFuture<'static, Result<(), fidl::Error>> {
                self.ready(features).boxed_local()
            }
            fn reset(&self) -> LocalBoxFuture<'static, Result<(), fidl::Error>> {
                self.reset().boxed_local()
            }
        }
    )*};
}

device_protocol!(
    hardware::VirtioBalloonProxy,
    hardware::VirtioBlockProxy,
    hardware::VirtioConsoleProxy,
    hardware::VirtioNetProxy,
    hardware::VirtioRngProxy,
    hardware::VirtioVsockProxy,
);

/// What a vCPU thread asks of a device.
enum Call {
    ConfigureQueue(u16, QueueConfig),
    Ready(u32),
    Reset,
}

struct Command {
    call: Call,
    reply: sync_mpsc::Sender<()>,
}

/// The vCPU threads' end.
pub(super) struct RemoteBackend(mpsc::UnboundedSender<Command>);

/// The executor's end.
pub(super) struct Commands(mpsc::UnboundedReceiver<Command>);

/// A backend and where its commands come out.
pub(super) fn remote_backend() -> (RemoteBackend, Commands) {
    let (sender, receiver) = mpsc::unbounded();
    (RemoteBackend(sender), Commands(receiver))
}

impl RemoteBackend {
    fn call(&self, call: Call) -> Result<(), BackendError> {
        let gone = || BackendError("its component is gone".to_owned());
        let (reply, answer) = sync_mpsc::channel();
        self.0.unbounded_send(Command { call, reply }).map_err(|_| gone())?;
        answer.recv().map_err(|_| gone())
    }
}

impl VirtioBackend for RemoteBackend {
    fn configure_queue(&mut self, index: u16, queue: &QueueConfig) -> Result<(), BackendError> {
        self.call(Call::ConfigureQueue(index, *queue))
    }

    fn ready(&mut self, features: u32) -> Result<(), BackendError> {
        self.call(Call::Ready(features))
    }

    fn reset(&mut self) -> Result<(), BackendError> {
        self.call(Call::Reset)
    }
}

/// Passes commands on to the component of `device` until that is gone, which the guest is told.
pub(super) fn serve<P: Proxy + DeviceProtocol + Clone + 'static>(
    proxy: P,
    commands: Commands,
    device: Arc<VirtioPciDevice>,
) -> fasync::Task<()> {
    fasync::Task::local(async move {
        let reason = pass_commands(&proxy, commands).await;
        tracing::error!(
            device = device.name(),
            reason,
            "The process of a device ended; the guest goes on, and sees that device as failed"
        );
        device.set_dead();
    })
}

/// Returns why there is nothing more to pass. Pending commands fail when `commands` is dropped.
async fn pass_commands<P: Proxy + DeviceProtocol>(proxy: &P, mut commands: Commands) -> String {
    let mut closed = pin!(proxy.on_closed().fuse());
    loop {
        let command = match select(commands.0.next(), closed.as_mut()).await {
            Either::Left((Some(command), _)) => command,
            Either::Left((None, _)) => return "the machine is gone".to_owned(),
            Either::Right(_) => return "it closed its channel".to_owned(),
        };
        let answer = match command.call {
            Call::ConfigureQueue(index, queue) => proxy.configure_queue(index, &queue).await,
            Call::Ready(features) => proxy.ready(features).await,
            Call::Reset => proxy.reset().await,
        };
        if let Err(error) = answer {
            return error.to_string();
        }
        // A vCPU thread that no longer listens has its machine ended.
        let _ = command.reply.send(());
    }
}
