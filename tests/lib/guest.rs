//! A guest manager in a realm of the test's own, and the guest that it runs.

use crate::PATIENCE;
use crate::console::GuestConsole;
use crate::fakes::{FakeMemoryPressure, FakeNetwork};
use crate::packages::{GuestKernel, Package};
use crate::platform::{Environment, FROM_PARENT, Host};
use fidl::endpoints::{DiscoverableProtocolMarker, Proxy as _, ServerEnd, create_proxy};
use fidl_fuchsia_io as fio;
use fidl_fuchsia_memorypressure as fpressure;
use fidl_fuchsia_net_interfaces as finterfaces;
use fidl_fuchsia_virtualization as fvirt;
use fuchsia_async::{self as fasync, TimeoutExt as _};
use fuchsia_component::client;
use fuchsia_component::server::{ServiceFs, ServiceObj};
use fuchsia_component_test::error::Error;
use fuchsia_component_test::{
    Capability, ChildOptions, LocalComponentHandles, RealmBuilder, RealmBuilderParams,
    RealmInstance, Ref, Route,
};
use fuchsia_zircon as zx;
use futures::{FutureExt as _, StreamExt as _};
use std::path::{Path, PathBuf};

/// The manager's name in the realm.
pub(crate) const MANAGER: &str = "guest_manager";

/// The manager as its VMM's runner, which its manifest for the suites exposes.
const RUNNER: &str = "fuchsia.component.runner.ComponentRunner";

/// A guest manager with a package of its own. Dropped, it takes all its processes and files with it.
pub struct EnclosedGuest {
    kernel: GuestKernel,
    guest_type: &'static str,
    data: PathBuf,
    /// The realm, once it is built. What is asked of it before that waits in its channel.
    realm: fasync::Task<RealmInstance>,
    exposed: fio::DirectoryProxy,
    pub(crate) host: Host,
    /// The guest's manager.
    pub manager: fvirt::GuestManagerProxy,
    /// The host's memory pressure, as the manager sees it.
    pub memory_pressure: FakeMemoryPressure,
    /// The host's network, as the manager sees it.
    pub network: FakeNetwork,
}

/// A guest that was launched.
pub struct RunningGuest {
    /// The VMM's interface to it.
    pub guest: fvirt::GuestProxy,
    /// Its serial port.
    pub console: GuestConsole,
}

impl EnclosedGuest {
    /// A realm with the manager of this guest; nothing runs yet.
    #[must_use]
    pub fn new(environment: Environment, package: impl Into<Package>) -> Self {
        Self::on(Host::new(environment), environment, &package.into())
    }

    /// As [`EnclosedGuest::new`], with a host that the test has prepared.
    pub(crate) fn on(host: Host, environment: Environment, package: &Package) -> Self {
        let data = host.directory("package/data");
        package.write(environment, &data);
        let memory_pressure = FakeMemoryPressure::default();
        let network = FakeNetwork::default();
        let (exposed, server) = create_proxy::<fio::DirectoryMarker>();
        let parts = Parts {
            guest_type: package.guest_type,
            package: host.open(&host.directory("package")),
            memory_pressure: memory_pressure.clone(),
            network: network.clone(),
        };
        let params = host.realm_builder_params();
        let realm = fasync::Task::local(async move {
            parts.build(params, server).await.unwrap_or_else(|error| panic!("no realm: {error}"))
        });
        let manager = connect_to_manager(&exposed, package.guest_type);
        Self {
            kernel: package.kernel,
            guest_type: package.guest_type,
            data,
            realm,
            exposed,
            host,
            manager,
            memory_pressure,
            network,
        }
    }

    /// The package's `data` directory; what `guest.cfg` names is looked up at each launch.
    #[must_use]
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// Another connection to the guest's manager, which starts it where it has ended.
    #[must_use]
    pub fn connect_to_manager(&self) -> fvirt::GuestManagerProxy {
        connect_to_manager(&self.exposed, self.guest_type)
    }

    /// Connects to another protocol of the manager's.
    ///
    /// # Panics
    /// Where there is no realm any more.
    #[must_use]
    pub fn connect_to_protocol<P: DiscoverableProtocolMarker>(&self) -> P::Proxy {
        client::connect_to_protocol_at_dir_root::<P>(&self.exposed).expect("the realm is gone")
    }

    /// Launches the guest, with its package's configuration and `config` merged.
    ///
    /// # Errors
    /// What the manager refuses it with.
    ///
    /// # Panics
    /// Where there is no manager.
    pub async fn launch(
        &self,
        config: fvirt::GuestConfig,
    ) -> Result<RunningGuest, fvirt::GuestManagerError> {
        let (guest, server) = create_proxy::<fvirt::GuestMarker>();
        self.manager.launch(config, server).await.expect("the guest manager is gone")?;
        let serial = guest.get_serial().await.unwrap_or_else(|e| {
            panic!("no serial port ({e}){}", self.host.report());
        });
        Ok(RunningGuest { guest, console: GuestConsole::new(serial, self.kernel) })
    }

    /// Launches the guest and waits for its shell.
    ///
    /// # Panics
    /// Where it does not come to that.
    pub async fn start(&self, config: fvirt::GuestConfig) -> RunningGuest {
        let mut running =
            self.launch(config).await.unwrap_or_else(|e| panic!("{e:?}{}", self.host.report()));
        running.console.wait_for_shell().await;
        running
    }

    /// What the manager says of its guest.
    ///
    /// # Panics
    /// Where there is no manager.
    pub async fn info(&self) -> fvirt::GuestInfo {
        self.manager.get_info().await.expect("the guest manager is gone")
    }

    /// Waits until the guest has this status.
    ///
    /// # Panics
    /// Where that does not come.
    pub async fn wait_for_status(&self, status: fvirt::GuestStatus) -> fvirt::GuestInfo {
        eventually(&format!("status {status:?}"), async || {
            let info = self.info().await;
            (info.guest_status == Some(status)).then_some(info)
        })
        .await
    }

    /// Stops all components of the realm.
    ///
    /// # Panics
    /// Where the realm cannot be destroyed.
    pub async fn destroy(self) {
        self.realm.await.destroy().await.expect("the realm cannot be destroyed");
    }
}

impl RunningGuest {
    /// Waits until the VMM has let go of the guest, and returns the epitaph.
    ///
    /// # Panics
    /// Where that does not come.
    pub async fn wait_for_end(self) -> Option<zx::Status> {
        let closed = self.guest.on_closed();
        let closed =
            async { Some(closed.await) }.on_timeout(zx::Time::after(PATIENCE), || None).await;
        closed.expect("the guest does not end").expect("the guest's channel broke");
        let mut events = self.guest.take_event_stream();
        match events.next().await {
            Some(Err(fidl::Error::ClientChannelClosed { status, .. })) => Some(status),
            _ => None,
        }
    }
}

/// Tries until there is an answer.
///
/// # Panics
/// Where none comes.
pub async fn eventually<T>(what: &str, mut attempt: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = zx::Time::after(PATIENCE);
    loop {
        if let Some(answer) = attempt().await {
            return answer;
        }
        assert!(zx::Time::get_monotonic() < deadline, "{what} does not come");
        fasync::Timer::new(zx::Time::after(zx::Duration::from_millis(5))).await;
    }
}

/// What a manager's protocol is called outside.
fn protocol(guest_type: &str) -> String {
    let (first, rest) = guest_type.split_at(1);
    format!("fuchsia.virtualization.{}{rest}GuestManager", first.to_uppercase())
}

fn connect_to_manager(exposed: &fio::DirectoryProxy, guest_type: &str) -> fvirt::GuestManagerProxy {
    client::connect_to_named_protocol_at_dir_root::<fvirt::GuestManagerMarker>(
        exposed,
        &protocol(guest_type),
    )
    .expect("the realm is gone")
}

/// What the realm of a guest's manager is made of.
struct Parts {
    guest_type: &'static str,
    /// The guest's package.
    package: fio::DirectoryProxy,
    memory_pressure: FakeMemoryPressure,
    network: FakeNetwork,
}

impl Parts {
    async fn build(
        self,
        params: RealmBuilderParams,
        exposed: ServerEnd<fio::DirectoryMarker>,
    ) -> Result<RealmInstance, Error> {
        let builder = RealmBuilder::with_params(params).await?;
        let url = format!("#meta/enclosed_{}_guest_manager.cm", self.guest_type);
        let manager = builder.add_child(MANAGER, url, ChildOptions::new()).await?;
        let pressure = self.memory_pressure;
        let run = move |handles| pressure.clone().run(handles).boxed();
        let pressure = builder.add_local_child("memory_pressure", run, ChildOptions::new()).await?;
        let network = self.network;
        let run = move |handles| network.clone().run(handles).boxed();
        let network = builder.add_local_child("network", run, ChildOptions::new()).await?;
        let package = self.package;
        let run = move |handles| serve_package(Clone::clone(&package), handles).boxed();
        let package = builder.add_local_child("guest_pkg", run, ChildOptions::new()).await?;

        let mut routes = vec![
            Route::new()
                .capability(Capability::protocol::<fpressure::ProviderMarker>())
                .from(&pressure),
            Route::new()
                .capability(Capability::protocol::<finterfaces::StateMarker>())
                .from(&network),
            Route::new()
                .capability(Capability::directory("pkg").path("/pkg").rights(fio::RW_STAR_DIR))
                .from(&package),
            Route::new().capability(Capability::storage("tmp").path("/tmp")).from(Ref::parent()),
        ];
        let mut exposes = vec![protocol(self.guest_type), RUNNER.to_owned()];
        if self.guest_type == "termina" {
            let data = Capability::storage("data").path("/data");
            routes.push(Route::new().capability(data).from(Ref::parent()));
            exposes.push(fvirt::LinuxManagerMarker::PROTOCOL_NAME.to_owned());
        }
        for name in FROM_PARENT {
            let capability = Capability::protocol_by_name(*name);
            routes.push(Route::new().capability(capability).from(Ref::parent()));
        }
        for route in routes {
            builder.add_route(route.to(&manager)).await?;
        }
        for name in exposes {
            let route = Route::new().capability(Capability::protocol_by_name(name));
            builder.add_route(route.from(&manager).to(Ref::parent())).await?;
        }
        let realm = builder.build().await?;
        let flags = fio::Flags::PROTOCOL_DIRECTORY;
        let directory = realm.root.get_exposed_dir();
        directory.open(".", flags, &fio::Options::default(), exposed.into_channel())?;
        Ok(realm)
    }
}

/// The guest's package: a directory of the test's.
async fn serve_package(
    package: fio::DirectoryProxy,
    handles: LocalComponentHandles,
) -> Result<(), anyhow::Error> {
    let mut fs = ServiceFs::<ServiceObj<'_, ()>>::new();
    fs.add_remote("pkg", package);
    fs.serve_connection(handles.outgoing_dir)?;
    fs.collect::<()>().await;
    Ok(())
}
