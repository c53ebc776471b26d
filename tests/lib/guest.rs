//! A guest manager in a realm of the test's own, and the guest that it runs.

use crate::console::GuestConsole;
use crate::fakes::{FakeMemoryPressure, FakeNetwork};
use crate::packages::{GuestKernel, Package};
use crate::{Environment, PATIENCE};
use component_manager::builtin_package::MANIFESTS;
use component_manager::decl::Startup;
use component_manager::realm_builder::{Capability, RealmBuilder, RealmInstance, Ref};
use component_manager::resolver::{Embedded, PackageResolver};
use fidl::endpoints::{Proxy as _, create_proxy};
use fidl_fuchsia_memorypressure as fpressure;
use fidl_fuchsia_net_interfaces as finterfaces;
use fidl_fuchsia_virtualization as fvirt;
use fuchsia_async::{self as fasync, TimeoutExt as _};
use fuchsia_zircon as zx;
use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// The manager's name in the realm.
const MANAGER: &str = "guest_manager";

/// A guest manager with a package of its own. Dropped, it takes all its processes and files with it.
pub struct EnclosedGuest {
    kernel: GuestKernel,
    realm: RealmInstance,
    data: PathBuf,
    directory: tempfile::TempDir,
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
        Self::with_manifests(environment, package, MANIFESTS.to_vec())
    }

    /// As [`EnclosedGuest::new`], with other manifests than the program's own.
    #[must_use]
    pub fn with_manifests(
        environment: Environment,
        package: impl Into<Package>,
        manifests: Vec<Embedded>,
    ) -> Self {
        let package = package.into();
        let directory = tempfile::tempdir().unwrap();
        let packages = directory.path().join("packages");
        for path in ["packages", "tmp", "data"] {
            fs::create_dir(directory.path().join(path)).unwrap();
        }
        let data = package.write(environment, &packages);
        let memory_pressure = FakeMemoryPressure::default();
        let network = FakeNetwork::default();
        let resolver = PackageResolver::new(environment.program.into(), manifests, vec![packages]);
        let realm = build_realm(
            package.guest_type,
            resolver,
            directory.path(),
            memory_pressure.clone(),
            network.clone(),
        );
        let manager = realm
            .connect_to_named_protocol::<fvirt::GuestManagerMarker>(&protocol(package.guest_type));
        let kernel = package.kernel;
        Self { kernel, realm, data, directory, manager, memory_pressure, network }
    }

    /// The package's `data` directory; what `guest.cfg` names is looked up at each launch.
    #[must_use]
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// The directory that is the storage `data` of a manager that has one; made when it starts.
    #[must_use]
    pub fn storage(&self) -> PathBuf {
        self.directory.path().join("data").join(MANAGER)
    }

    /// The realm that the manager is in.
    #[must_use]
    pub fn realm(&self) -> &RealmInstance {
        &self.realm
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
            panic!("no serial port ({e}); the realm logged:\n{}", self.logs());
        });
        Ok(RunningGuest { guest, console: GuestConsole::new(serial, self.kernel) })
    }

    /// Launches the guest and waits for its shell.
    ///
    /// # Panics
    /// Where it does not come to that.
    pub async fn start(&self, config: fvirt::GuestConfig) -> RunningGuest {
        let mut running = self
            .launch(config)
            .await
            .unwrap_or_else(|e| panic!("{e:?}; the realm logged:\n{}", self.logs()));
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

    /// All that the realm's components have logged.
    #[must_use]
    pub fn logs(&self) -> String {
        let (records, _) = self.realm.manager().logs().read(0, usize::MAX, |_| true);
        let line = |record: &component_manager::log::Record| {
            format!("{}: {:?}: {}\n", record.moniker, record.severity, record.message)
        };
        records.iter().map(line).collect()
    }

    /// Waits until the realm's components have logged `text`: a line is on its way when what it tells of is done.
    pub async fn logged(&self, text: &str) {
        let found = async || self.logs().contains(text).then_some(());
        eventually(&format!("{text:?} in the log"), found).await;
    }

    /// Stops all components of the realm.
    pub async fn destroy(self) {
        self.realm.destroy().await;
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
        match futures::StreamExt::next(&mut events).await {
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

fn build_realm(
    guest_type: &str,
    resolver: PackageResolver,
    directory: &Path,
    memory_pressure: FakeMemoryPressure,
    network: FakeNetwork,
) -> RealmInstance {
    let mut builder = RealmBuilder::new()
        .with_resolver(Rc::new(resolver))
        .with_builtins(component_manager::builtin::Builtins::with_system_resources);
    let url = format!(
        "fuchsia-pkg://fuchsia.com/{guest_type}_guest_manager#meta/{guest_type}_guest_manager.cm"
    );
    let manager = builder.add_child(MANAGER, &url, Startup::Lazy).unwrap();
    let pressure = builder
        .add_local_child(
            "memory_pressure",
            move |handles| memory_pressure.clone().run(handles),
            Startup::Lazy,
        )
        .unwrap();
    let network = builder
        .add_local_child("network", move |handles| network.clone().run(handles), Startup::Lazy)
        .unwrap();
    let to_manager = [Ref::from(&manager)];
    let fakes = [
        (Capability::protocol::<fpressure::ProviderMarker>(), &pressure),
        (Capability::protocol::<finterfaces::StateMarker>(), &network),
    ];
    for (capability, from) in fakes {
        builder.add_route(&capability, from, &to_manager).unwrap();
    }
    for name in [
        "fuchsia.kernel.HypervisorResource",
        "fuchsia.kernel.VmexResource",
        "fuchsia.logger.LogSink",
    ] {
        let capability = Capability::protocol_by_name(name);
        builder.add_route(&capability, Ref::Parent, &to_manager).unwrap();
    }
    let mut storages = vec!["tmp"];
    let mut exposed = vec![protocol(guest_type)];
    if guest_type == "termina" {
        storages.push("data");
        exposed.push("fuchsia.virtualization.LinuxManager".to_owned());
    }
    for name in storages {
        builder.add_storage(name, &directory.join(name)).unwrap();
        let capability = Capability::storage(name, &format!("/{name}"));
        builder.add_route(&capability, Ref::Parent, &to_manager).unwrap();
    }
    for name in exposed {
        let capability = Capability::protocol_by_name(&name);
        builder.add_route(&capability, &manager, &[Ref::Parent]).unwrap();
    }
    builder.build().unwrap()
}
