//! The lifecycle suite: `GuestManager` and `GuestLifecycle` through every status and error, with real guests and
//! processes.

use enclosed_guest::{EnclosedGuest, GuestKernel, Package, environment, eventually};
use fidl::endpoints::{Proxy as _, create_endpoints, create_proxy};
use fidl_fuchsia_hardware_network::PortClass;
use fidl_fuchsia_memorypressure::Level;
use fidl_fuchsia_virtualization::{
    BalloonControllerMarker, GuestConfig, GuestError, GuestManagerError, GuestMarker, GuestStatus,
    HostVsockAcceptorMarker, HostVsockEndpointMarker, LinuxManagerMarker, Listener,
    MemControllerMarker, NetSpec,
};
use fuchsia_async as fasync;
use fuchsia_zircon as zx;

fn zircon() -> EnclosedGuest {
    EnclosedGuest::new(environment!(), GuestKernel::Zircon)
}

fn with_config(config: &str) -> EnclosedGuest {
    EnclosedGuest::new(environment!(), Package::with_config(GuestKernel::Zircon, config))
}

#[fasync::run_singlethreaded(test)]
async fn a_guest_goes_through_every_status() {
    let enclosed = zircon();
    let info = enclosed.info().await;
    assert_eq!(info.guest_status, Some(GuestStatus::NotStarted));
    assert!(info.uptime.is_none() && info.guest_descriptor.is_none() && info.stop_error.is_none());
    // Requests of one connection are served in their order, so the second sees the first at work.
    let (guest, server) = create_proxy::<GuestMarker>();
    let launched = enclosed.manager.launch(GuestConfig::default(), server);
    let info = enclosed.info().await;
    assert_eq!(info.guest_status, Some(GuestStatus::Starting));
    assert_eq!(info.guest_descriptor.unwrap().num_cpus, Some(2));
    assert_eq!(launched.await.unwrap(), Ok(()));
    let info = enclosed.info().await;
    assert_eq!(info.guest_status, Some(GuestStatus::Running));
    assert!(info.uptime.unwrap() > 0);
    let stopped = enclosed.manager.force_shutdown();
    let info = enclosed.info().await;
    assert!(
        matches!(info.guest_status, Some(GuestStatus::Stopping | GuestStatus::Stopped)),
        "{info:?}"
    );
    stopped.await.unwrap();
    assert_eq!(enclosed.info().await.guest_status, Some(GuestStatus::Stopped));
    guest.on_closed().await.unwrap();
    enclosed.destroy().await;
}

#[fasync::run_singlethreaded(test)]
async fn launching_while_a_guest_runs_is_already_running() {
    let enclosed = zircon();
    let mut guest = enclosed.start(GuestConfig::default()).await;
    let second = enclosed.launch(GuestConfig::default()).await;
    assert_eq!(second.err(), Some(GuestManagerError::AlreadyRunning));
    assert_eq!(guest.console.run("echo unharmed").await, "unharmed\n");
    enclosed.destroy().await;
}

#[fasync::run_singlethreaded(test)]
async fn what_cannot_be_launched_is_told_apart() {
    let cases = [
        ("{", GuestManagerError::BadConfig, None),
        (r#"{"zircon": "data/nonexistent"}"#, GuestManagerError::BadConfig, None),
        (r#"{"zircon": "data/kernel.zbi", "memory": "many"}"#, GuestManagerError::BadConfig, None),
        (
            // It exists, and is no kernel.
            r#"{"zircon": "data/guest.cfg", "memory": "64M"}"#,
            GuestManagerError::StartFailure,
            Some(GuestError::KernelLoadFailure),
        ),
        (
            r#"{"zircon": "data/kernel.zbi", "memory": "1M"}"#,
            GuestManagerError::StartFailure,
            Some(GuestError::KernelLoadFailure),
        ),
        (
            r#"{"zircon": "data/kernel.zbi", "memory": "900000G"}"#,
            GuestManagerError::StartFailure,
            Some(GuestError::GuestInitializationFailure),
        ),
        (
            r#"{"zircon": "data/kernel.zbi", "memory": "64M", "cpus": 0}"#,
            GuestManagerError::StartFailure,
            Some(GuestError::BadConfig),
        ),
        (r#"{"memory": "64M"}"#, GuestManagerError::StartFailure, Some(GuestError::BadConfig)),
    ];
    for (config, error, reason) in cases {
        let enclosed = with_config(config);
        let launched = enclosed.launch(GuestConfig::default()).await;
        assert_eq!(launched.err(), Some(error), "{config}");
        let info = enclosed.info().await;
        let status = match reason {
            None => GuestStatus::NotStarted,
            Some(_) => GuestStatus::Stopped,
        };
        assert_eq!((info.guest_status, info.stop_error), (Some(status), reason), "{config}");
        // The manager is none the worse for it.
        let good = r#"{"zircon": "data/kernel.zbi", "memory": "64M", "cpus": 1}"#;
        std::fs::write(enclosed.data().join("guest.cfg"), good).unwrap();
        enclosed.start(GuestConfig::default()).await;
        enclosed.destroy().await;
    }
}

#[fasync::run_singlethreaded(test)]
async fn connecting_needs_a_guest_that_runs() {
    let enclosed = zircon();
    let connect = async || {
        let (guest, server) = create_proxy::<GuestMarker>();
        enclosed.manager.connect(server).await.unwrap().map(|()| guest)
    };
    assert_eq!(connect().await.err(), Some(GuestManagerError::NotRunning));
    let first = enclosed.start(GuestConfig::default()).await;
    let second = connect().await.unwrap();
    second.get_serial().await.unwrap();
    enclosed.manager.force_shutdown().await.unwrap();
    second.on_closed().await.unwrap();
    drop(first);
    assert_eq!(connect().await.err(), Some(GuestManagerError::NotRunning));
    enclosed.destroy().await;
}

#[fasync::run_singlethreaded(test)]
async fn two_listeners_on_one_port_are_a_bad_configuration() {
    let enclosed = zircon();
    let listener =
        || Listener { port: 7, acceptor: create_endpoints::<HostVsockAcceptorMarker>().0 };
    let config =
        GuestConfig { vsock_listeners: Some(vec![listener(), listener()]), ..Default::default() };
    assert_eq!(enclosed.launch(config).await.err(), Some(GuestManagerError::BadConfig));
    enclosed.destroy().await;
}

#[fasync::run_singlethreaded(test)]
async fn what_a_guest_does_not_have_is_not_present() {
    let enclosed = zircon();
    let guest = enclosed.start(GuestConfig::default()).await.guest;
    let absent = Err(GuestError::DeviceNotPresent);
    assert_eq!(guest.get_console().await.unwrap().map(drop), absent);
    let (_client, server) = create_endpoints::<HostVsockEndpointMarker>();
    assert_eq!(guest.get_host_vsock_endpoint(server).await.unwrap(), absent);
    let (_client, server) = create_endpoints::<BalloonControllerMarker>();
    assert_eq!(guest.get_balloon_controller(server).await.unwrap(), absent);
    let (_client, server) = create_endpoints::<MemControllerMarker>();
    assert_eq!(guest.get_mem_controller(server).await.unwrap(), absent);
    enclosed.destroy().await;
}

#[fasync::run_singlethreaded(test)]
async fn the_hosts_problems_are_the_guests() {
    let enclosed = EnclosedGuest::new(environment!(), GuestKernel::Linux);
    let _guest = enclosed.start(GuestConfig::default()).await;
    assert_eq!(enclosed.info().await.detected_problems, Some(Vec::new()));
    eventually("a watcher of the host's memory", async || {
        (enclosed.memory_pressure.watchers() > 0).then_some(())
    })
    .await;
    enclosed.memory_pressure.set(Level::Critical);
    let problems = eventually("a problem", async || {
        enclosed.info().await.detected_problems.filter(|problems| !problems.is_empty())
    })
    .await;
    assert!(problems[0].contains("memory pressure"), "{problems:?}");
    enclosed.memory_pressure.set(Level::Normal);
    eventually("no problem", async || {
        enclosed.info().await.detected_problems.filter(Vec::is_empty)
    })
    .await;
    enclosed.destroy().await;
}

#[fasync::run_singlethreaded(test)]
async fn a_host_without_network_is_a_problem_of_a_guest_with_one() {
    let enclosed = zircon();
    enclosed.network.set(&[PortClass::Ppp]);
    let mac_address = fidl_fuchsia_net::MacAddress { octets: [2, 0x1a, 0x11, 0, 1, 0] };
    let config = GuestConfig {
        net_devices: Some(vec![NetSpec { mac_address, enable_bridge: false }]),
        ..Default::default()
    };
    let _guest = enclosed.start(config).await;
    let problems = enclosed.info().await.detected_problems.unwrap();
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(problems[0].contains("no network interface"), "{problems:?}");
    enclosed.destroy().await;
}

#[fasync::run_singlethreaded(test)]
async fn termina_has_a_disk_of_its_own_that_stays() {
    let enclosed = EnclosedGuest::new(environment!(), Package::termina());
    let mut guest = enclosed.start(GuestConfig::default()).await;
    assert_eq!(guest.console.run("cat /sys/block/vda/size").await, "83886080\n");
    guest.console.run("echo stays > /dev/vda && sync").await;
    enclosed.manager.force_shutdown().await.unwrap();
    let mut guest = enclosed.start(GuestConfig::default()).await;
    assert_eq!(guest.console.run("head -n 1 /dev/vda").await, "stays\n");
    enclosed.destroy().await;
}

#[fasync::run_singlethreaded(test)]
async fn terminas_manager_says_what_it_lacks() {
    let enclosed = EnclosedGuest::new(environment!(), Package::termina());
    let linux = enclosed.connect_to_protocol::<LinuxManagerMarker>();
    let unknown = linux.start_and_get_linux_guest_info("debian").await.unwrap();
    assert_eq!(unknown.err(), Some(zx::Status::UNAVAILABLE.into_raw()));
    let lacking = linux.start_and_get_linux_guest_info("termina").await.unwrap();
    assert_eq!(lacking.err(), Some(zx::Status::NOT_SUPPORTED.into_raw()));
    let wiped = linux.wipe_data().await.unwrap();
    assert_eq!(wiped.err(), Some(zx::Status::NOT_SUPPORTED.into_raw()));
    enclosed.destroy().await;
}
