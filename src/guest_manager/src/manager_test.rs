//! The manager against a fake VMM: what it asks of it, in which order, and what callers see.

use crate::environment::Environment;
use crate::manager::GuestManager;
use crate::merge::HostResources;
use fidl::endpoints::{Responder as _, ServerEnd, create_proxy, create_proxy_and_stream};
use fidl_fuchsia_io as fio;
use fidl_fuchsia_memorypressure as fpressure;
use fidl_fuchsia_net_interfaces as finterfaces;
use fidl_fuchsia_virtualization as fvirt;
use fuchsia_async as fasync;
use futures::StreamExt as _;
use futures::channel::mpsc::{UnboundedReceiver, UnboundedSender, unbounded};
use vfs::directory::simple;
use vfs::execution_scope::ExecutionScope;

const VALID: &str =
    r#"{"zircon": "data/kernel", "cpus": 4, "block": "data/disk,ro", "cmdline": "base"}"#;

/// A namespace in which each connection to the lifecycle goes to the test.
struct FakeEnvironment(UnboundedSender<fvirt::GuestLifecycleRequestStream>);

impl Environment for FakeEnvironment {
    fn lifecycle(&self) -> anyhow::Result<fvirt::GuestLifecycleProxy> {
        let (proxy, stream) = create_proxy_and_stream::<fvirt::GuestLifecycleMarker>();
        self.0.unbounded_send(stream)?;
        Ok(proxy)
    }

    fn guest(&self) -> anyhow::Result<fvirt::GuestProxy> {
        anyhow::bail!("no guest in these tests")
    }

    fn memory_pressure(&self) -> anyhow::Result<fpressure::ProviderProxy> {
        anyhow::bail!("no memory pressure in these tests")
    }

    fn interfaces(&self) -> anyhow::Result<finterfaces::StateProxy> {
        anyhow::bail!("no network in these tests")
    }
}

/// A manager, and the side of it that the VMM is on.
struct Fixture {
    manager: fvirt::GuestManagerProxy,
    vmms: UnboundedReceiver<fvirt::GuestLifecycleRequestStream>,
}

impl Fixture {
    fn new(config: &str) -> Self {
        let data = simple();
        data.add_entry("guest.cfg", vfs::file::read_only(config.as_bytes())).unwrap();
        for name in ["kernel", "disk"] {
            data.add_entry(name, vfs::file::read_only(name.as_bytes())).unwrap();
        }
        let root = simple();
        root.add_entry("data", data).unwrap();
        let (package, server) = create_proxy::<fio::DirectoryMarker>();
        vfs::directory::serve(root, &ExecutionScope::new(), fio::R_STAR_DIR, server);
        let (sender, vmms) = unbounded();
        let host = HostResources { memory: 8 << 30, cpus: 2 };
        let actor = GuestManager::new(FakeEnvironment(sender), package, host, None);
        let (manager, stream) = create_proxy_and_stream::<fvirt::GuestManagerMarker>();
        fasync::Task::local(actor.entrance().serve(stream)).detach();
        fasync::Task::local(actor.run()).detach();
        Self { manager, vmms }
    }

    fn launch(
        &self,
        config: fvirt::GuestConfig,
    ) -> fasync::Task<Result<(), fvirt::GuestManagerError>> {
        let (_, server) = create_proxy::<fvirt::GuestMarker>();
        let launched = self.manager.launch(config, server);
        fasync::Task::local(async move { launched.await.unwrap() })
    }

    async fn info(&self) -> fvirt::GuestInfo {
        self.manager.get_info().await.unwrap()
    }

    /// The next connection to a VMM, having got `Create` and, right after it, `Bind`.
    async fn created(&mut self, reply: Result<(), fvirt::GuestError>) -> Vmm {
        let mut stream = self.vmms.next().await.unwrap();
        let config = Vmm::expect_create(&mut stream, reply).await;
        Vmm { stream, config }
    }

    /// A guest that runs: the VMM, and the answer that `Run` waits for.
    async fn running(&mut self) -> (Vmm, fvirt::GuestLifecycleRunResponder) {
        let launched = self.launch(fvirt::GuestConfig::default());
        let mut vmm = self.created(Ok(())).await;
        let run = vmm.expect_run().await;
        assert_eq!(launched.await, Ok(()));
        (vmm, run)
    }
}

struct Vmm {
    stream: fvirt::GuestLifecycleRequestStream,
    config: fvirt::GuestConfig,
}

impl Vmm {
    async fn expect_create(
        stream: &mut fvirt::GuestLifecycleRequestStream,
        reply: Result<(), fvirt::GuestError>,
    ) -> fvirt::GuestConfig {
        let request = stream.next().await.unwrap().unwrap();
        let (config, responder) = request.into_create().expect("Create comes first");
        let request = stream.next().await.unwrap().unwrap();
        assert!(request.into_bind().is_some(), "Bind comes right after Create");
        responder.send(reply).unwrap();
        config
    }

    async fn expect_run(&mut self) -> fvirt::GuestLifecycleRunResponder {
        self.stream.next().await.unwrap().unwrap().into_run().expect("Run comes now")
    }

    async fn expect_stop(&mut self) -> fvirt::GuestLifecycleStopResponder {
        self.stream.next().await.unwrap().unwrap().into_stop().expect("Stop comes now")
    }

    async fn expect_bind(&mut self) -> ServerEnd<fvirt::GuestMarker> {
        self.stream.next().await.unwrap().unwrap().into_bind().expect("Bind comes now").0
    }
}

#[fasync::run_singlethreaded(test)]
async fn before_a_launch_nothing_is_there() {
    let fixture = Fixture::new(VALID);
    let info = fixture.info().await;
    assert_eq!(info.guest_status, Some(fvirt::GuestStatus::NotStarted));
    assert_eq!((info.uptime, info.guest_descriptor.is_some()), (None, false));
    let (_, server) = create_proxy::<fvirt::GuestMarker>();
    let connected = fixture.manager.connect(server).await.unwrap();
    assert_eq!(connected, Err(fvirt::GuestManagerError::NotRunning));
    fixture.manager.force_shutdown().await.unwrap();
    assert_eq!(fixture.info().await.guest_status, Some(fvirt::GuestStatus::NotStarted));
}

#[fasync::run_singlethreaded(test)]
async fn a_bad_configuration_is_refused_and_changes_nothing() {
    for config in ["", "[]", r#"{"unknown": 1}"#, r#"{"linux": "data/nonexistent"}"#] {
        let fixture = Fixture::new(config);
        let launched = fixture.launch(fvirt::GuestConfig::default()).await;
        assert_eq!(launched, Err(fvirt::GuestManagerError::BadConfig), "{config}");
        assert_eq!(fixture.info().await.guest_status, Some(fvirt::GuestStatus::NotStarted));
    }
}

#[fasync::run_singlethreaded(test)]
async fn the_vmm_gets_the_merged_configuration() {
    let mut fixture = Fixture::new(VALID);
    let user = fvirt::GuestConfig {
        cmdline_add: Some(vec!["more".to_owned()]),
        virtio_rng: Some(true),
        ..Default::default()
    };
    let launched = fixture.launch(user);
    let mut vmm = fixture.created(Ok(())).await;
    assert_eq!(vmm.config.kernel_type, Some(fvirt::KernelType::Zircon));
    assert_eq!(vmm.config.cmdline.as_deref(), Some("base more"));
    assert_eq!((vmm.config.cpus, vmm.config.guest_memory), (Some(4), Some(5 << 30)));
    let disks = vmm.config.block_devices.as_ref().unwrap();
    assert_eq!(disks[0].id, "data/disk");
    assert_eq!(disks[0].mode, fvirt::BlockMode::ReadOnly);
    let _run = vmm.expect_run().await;
    assert_eq!(launched.await, Ok(()));
    let info = fixture.info().await;
    assert_eq!(info.guest_status, Some(fvirt::GuestStatus::Running));
    assert!(info.uptime.unwrap() > 0);
    let descriptor = info.guest_descriptor.unwrap();
    assert_eq!((descriptor.num_cpus, descriptor.rng), (Some(4), Some(true)));
}

#[fasync::run_singlethreaded(test)]
async fn a_second_launch_is_refused_while_the_first_starts_and_runs() {
    let mut fixture = Fixture::new(VALID);
    let first = fixture.launch(fvirt::GuestConfig::default());
    let second = fixture.launch(fvirt::GuestConfig::default());
    assert_eq!(second.await, Err(fvirt::GuestManagerError::AlreadyRunning));
    assert_eq!(fixture.info().await.guest_status, Some(fvirt::GuestStatus::Starting));
    let mut vmm = fixture.created(Ok(())).await;
    let _run = vmm.expect_run().await;
    assert_eq!(first.await, Ok(()));
    let third = fixture.launch(fvirt::GuestConfig::default());
    assert_eq!(third.await, Err(fvirt::GuestManagerError::AlreadyRunning));
}

#[fasync::run_singlethreaded(test)]
async fn a_guest_that_cannot_be_created_can_be_launched_again() {
    let mut fixture = Fixture::new(VALID);
    let launched = fixture.launch(fvirt::GuestConfig::default());
    let mut vmm = fixture.created(Err(fvirt::GuestError::KernelLoadFailure)).await;
    assert_eq!(launched.await, Err(fvirt::GuestManagerError::StartFailure));
    let info = fixture.info().await;
    assert_eq!(info.guest_status, Some(fvirt::GuestStatus::Stopped));
    assert_eq!(info.stop_error, Some(fvirt::GuestError::KernelLoadFailure));
    let again = fixture.launch(fvirt::GuestConfig::default());
    Vmm::expect_create(&mut vmm.stream, Ok(())).await;
    let _run = vmm.expect_run().await;
    assert_eq!(again.await, Ok(()));
}

#[fasync::run_singlethreaded(test)]
async fn a_guest_that_shuts_down_is_stopped_without_an_error() {
    let mut fixture = Fixture::new(VALID);
    let (_vmm, run) = fixture.running().await;
    run.send(Ok(())).unwrap();
    let info = settled(&fixture, fvirt::GuestStatus::Stopped).await;
    assert_eq!(info.stop_error, None);
    assert!(info.uptime.is_some() && info.guest_descriptor.is_none());
}

#[fasync::run_singlethreaded(test)]
async fn a_forced_shutdown_is_answered_when_the_guest_has_ended() {
    let mut fixture = Fixture::new(VALID);
    let (mut vmm, run) = fixture.running().await;
    let first = fixture.manager.force_shutdown();
    let second = fixture.manager.force_shutdown();
    vmm.expect_stop().await.send().unwrap();
    assert_eq!(fixture.info().await.guest_status, Some(fvirt::GuestStatus::Stopping));
    run.send(Err(fvirt::GuestError::ControllerForcedHalt)).unwrap();
    first.await.unwrap();
    second.await.unwrap();
    let info = fixture.info().await;
    assert_eq!(info.guest_status, Some(fvirt::GuestStatus::Stopped));
    assert_eq!(info.stop_error, Some(fvirt::GuestError::ControllerForcedHalt));
}

#[fasync::run_singlethreaded(test)]
async fn a_vmm_that_dies_is_told_of_and_the_next_launch_gets_another() {
    let mut fixture = Fixture::new(VALID);
    let (vmm, run) = fixture.running().await;
    run.drop_without_shutdown();
    drop(vmm);
    let info = settled(&fixture, fvirt::GuestStatus::VmmUnexpectedTermination).await;
    assert_eq!((info.uptime, info.stop_error), (None, None));
    let _running = fixture.running().await;
    assert_eq!(fixture.info().await.guest_status, Some(fvirt::GuestStatus::Running));
}

#[fasync::run_singlethreaded(test)]
async fn a_vmm_that_dies_while_it_stops_answers_those_who_wait() {
    let mut fixture = Fixture::new(VALID);
    let (mut vmm, run) = fixture.running().await;
    let shutdown = fixture.manager.force_shutdown();
    let stop = vmm.expect_stop().await;
    drop((run, stop, vmm));
    shutdown.await.unwrap();
    settled(&fixture, fvirt::GuestStatus::VmmUnexpectedTermination).await;
}

#[fasync::run_singlethreaded(test)]
async fn a_shutdown_while_the_guest_starts_fails_its_launch() {
    let mut fixture = Fixture::new(VALID);
    let launched = fixture.launch(fvirt::GuestConfig::default());
    let mut stream = fixture.vmms.next().await.unwrap();
    let create = stream.next().await.unwrap().unwrap().into_create().unwrap().1;
    let _bind = stream.next().await.unwrap().unwrap().into_bind().unwrap();
    let shutdown = fixture.manager.force_shutdown();
    let stop = stream.next().await.unwrap().unwrap().into_stop().unwrap();
    stop.send().unwrap();
    create.send(Ok(())).unwrap();
    let run = stream.next().await.unwrap().unwrap().into_run().unwrap();
    assert_eq!(launched.await, Err(fvirt::GuestManagerError::StartFailure));
    run.send(Err(fvirt::GuestError::NotCreated)).unwrap();
    shutdown.await.unwrap();
    assert_eq!(fixture.info().await.guest_status, Some(fvirt::GuestStatus::Stopped));
}

#[fasync::run_singlethreaded(test)]
async fn connect_binds_to_the_guest_that_runs() {
    let mut fixture = Fixture::new(VALID);
    let (mut vmm, _run) = fixture.running().await;
    let (_, server) = create_proxy::<fvirt::GuestMarker>();
    assert_eq!(fixture.manager.connect(server).await.unwrap(), Ok(()));
    vmm.expect_bind().await;
}

#[fasync::run_singlethreaded(test)]
async fn listeners_reach_the_vmm_and_must_differ() {
    let listener = |port| {
        let (acceptor, _) = fidl::endpoints::create_endpoints::<fvirt::HostVsockAcceptorMarker>();
        fvirt::Listener { port, acceptor }
    };
    let config = |ports: [u32; 2]| fvirt::GuestConfig {
        vsock_listeners: Some(ports.map(listener).into()),
        ..Default::default()
    };
    let mut fixture = Fixture::new(VALID);
    let refused = fixture.launch(config([7, 7])).await;
    assert_eq!(refused, Err(fvirt::GuestManagerError::BadConfig));
    let _launched = fixture.launch(config([7, 8]));
    let vmm = fixture.created(Ok(())).await;
    let ports: Vec<_> = vmm.config.vsock_listeners.iter().flatten().map(|l| l.port).collect();
    assert_eq!(ports, [7, 8]);
}

/// The manager hears of a VMM's news in its own time.
async fn settled(fixture: &Fixture, status: fvirt::GuestStatus) -> fvirt::GuestInfo {
    loop {
        let info = fixture.info().await;
        if info.guest_status == Some(status) {
            return info;
        }
        fasync::Timer::new(fuchsia_zircon::Time::after(fuchsia_zircon::Duration::from_millis(1)))
            .await;
    }
}
