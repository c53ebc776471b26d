//! The runner of the VMM and the processes that it makes: whatever ends one, the others learn of it, nothing of it is left,
//! and the next launch works. Only for the host, because processes are found and killed by their ids; the runner's protocol
//! is in `runner.rs`.
#![cfg(target_os = "linux")]

use component_manager::builtin_package::MANIFESTS;
use component_manager::manager::Ended;
use component_manager::model::InstanceId;
use component_manager::resolver::Embedded;
use enclosed_guest::{EnclosedGuest, GuestKernel, environment, eventually};
use fidl::endpoints::{Proxy as _, create_proxy};
use fidl_fuchsia_component as fcomponent;
use fidl_fuchsia_virtualization::{
    GuestConfig, GuestError, GuestManagerError, GuestMarker, GuestStatus,
};
use fuchsia_async as fasync;
use fuchsia_zircon as zx;
use rustix::process::{Pid, Signal, kill_process};
use std::collections::BTreeMap;
use std::fs;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// One test at a time, so that the processes below this one are those of one realm.
static EXCLUSIVE: Mutex<()> = Mutex::new(());

struct Fixture {
    enclosed: EnclosedGuest,
    _exclusive: MutexGuard<'static, ()>,
}

impl Fixture {
    fn new(kernel: GuestKernel, manifests: Vec<Embedded>) -> Self {
        let exclusive = EXCLUSIVE.lock().unwrap_or_else(PoisonError::into_inner);
        let enclosed = EnclosedGuest::with_manifests(environment!(), kernel, manifests);
        Self { enclosed, _exclusive: exclusive }
    }

    /// A VMM whose manifest has `to` in place of `from`.
    fn with_vmm(from: &str, to: &str) -> Self {
        let mut manifests = MANIFESTS.to_vec();
        let vmm = manifests.iter_mut().find(|manifest| manifest.name == "meta/vmm.cml").unwrap();
        assert!(vmm.text.contains(from));
        vmm.text = vmm.text.replace(from, to).leak();
        Self::new(GuestKernel::Zircon, manifests)
    }

    fn instance(&self, moniker: &str) -> InstanceId {
        self.enclosed.component_manager().tree().find(&moniker.parse().unwrap()).unwrap()
    }

    fn vmm(&self) -> InstanceId {
        self.instance("guest_manager/vmm")
    }

    /// How an instance's last run ended.
    async fn end_of(&self, instance: InstanceId) -> Ended {
        let manager = self.enclosed.component_manager();
        eventually("the component's end", async || manager.last_end(instance)).await
    }

    /// The guest launches, answers and powers off, whatever was before.
    async fn works(&self) {
        let mut guest = self.enclosed.start(GuestConfig::default()).await;
        assert_eq!(guest.console.run("echo works").await, "works\n");
        self.enclosed.manager.force_shutdown().await.unwrap();
        let info = self.enclosed.info().await;
        assert_eq!(info.stop_error, Some(GuestError::ControllerForcedHalt));
    }
}

fn framework(error: fcomponent::Error) -> zx::Status {
    zx::Status::from_raw(error.into_primitive().cast_signed())
}

/// The components' processes below this one: id and program.
fn processes() -> BTreeMap<u32, String> {
    let mut parents = BTreeMap::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let status = fs::read_to_string(entry.path().join("status")).unwrap_or_default();
        let parent =
            status.lines().find_map(|line| line.strip_prefix("PPid:\t")?.parse::<u32>().ok());
        let zombie = status.lines().any(|line| line.starts_with("State:\tZ"));
        if let (Some(parent), false) = (parent, zombie) {
            parents.insert(pid, parent);
        }
    }
    let own = std::process::id();
    let below = |pid: u32| {
        let line = std::iter::successors(Some(pid), |pid| parents.get(pid).copied());
        line.skip(1).any(|ancestor| ancestor == own)
    };
    let program = |pid: u32| {
        let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let first = words.split(|byte| *byte == 0).next().unwrap_or_default();
        String::from_utf8_lossy(first).into_owned()
    };
    let components = parents.keys().filter(|pid| below(**pid)).map(|pid| (*pid, program(*pid)));
    components.filter(|(_, program)| program.starts_with("bin/")).collect()
}

fn pid_of(program: &str) -> Pid {
    let processes = processes();
    let found = processes.iter().find(|(_, name)| name.as_str() == program);
    let (pid, _) = found.unwrap_or_else(|| panic!("no {program} in {processes:?}"));
    Pid::from_raw(i32::try_from(*pid).unwrap()).unwrap()
}

/// Waits until no process but these is left.
async fn only(programs: &[&str]) {
    eventually(&format!("an end of all but {programs:?}"), async || {
        let mut left = processes().into_values();
        left.all(|program| programs.contains(&program.as_str())).then_some(())
    })
    .await;
}

#[fasync::run_singlethreaded(test)]
async fn a_vmm_that_is_killed_is_reported_and_the_next_launch_works() {
    let fixture = Fixture::new(GuestKernel::Linux, MANIFESTS.to_vec());
    let guest = fixture.enclosed.start(GuestConfig::default()).await;
    let programs: Vec<String> = processes().into_values().collect();
    for program in ["bin/guest_manager", "bin/vmm", "bin/virtio_rng", "bin/virtio_balloon"] {
        assert!(programs.iter().any(|name| name == program), "no {program} in {programs:?}");
    }
    kill_process(pid_of("bin/vmm"), Signal::KILL).unwrap();
    let info = fixture.enclosed.wait_for_status(GuestStatus::VmmUnexpectedTermination).await;
    assert!(info.uptime.is_none() && info.stop_error.is_none() && info.guest_descriptor.is_none());
    // Nobody was there to say how it ended.
    assert_ne!(guest.wait_for_end().await, Some(zx::Status::OK));
    let end = fixture.end_of(fixture.vmm()).await;
    assert_eq!(end.status, framework(fcomponent::Error::InstanceDied));
    only(&["bin/guest_manager"]).await;
    fixture.works().await;
    fixture.enclosed.destroy().await;
    only(&[]).await;
}

#[fasync::run_singlethreaded(test)]
async fn a_vmm_that_is_told_to_stop_ends_in_order() {
    let fixture = Fixture::new(GuestKernel::Zircon, MANIFESTS.to_vec());
    let guest = fixture.enclosed.start(GuestConfig::default()).await;
    fixture.enclosed.component_manager().stop(fixture.vmm()).await;
    let end = fixture.end_of(fixture.vmm()).await;
    assert_eq!((end.status, end.exit_code), (zx::Status::OK, Some(0)));
    guest.guest.on_closed().await.unwrap();
    only(&["bin/guest_manager"]).await;
    fixture.works().await;
    fixture.enclosed.destroy().await;
    only(&[]).await;
}

#[fasync::run_singlethreaded(test)]
async fn a_vmm_that_does_not_stop_is_killed() {
    let fixture = Fixture::new(GuestKernel::Zircon, MANIFESTS.to_vec());
    let _guest = fixture.enclosed.start(GuestConfig::default()).await;
    kill_process(pid_of("bin/vmm"), Signal::STOP).unwrap();
    fixture.enclosed.component_manager().stop(fixture.vmm()).await;
    let end = fixture.end_of(fixture.vmm()).await;
    // As it was asked for: no failure of the component.
    assert_eq!(end.status, zx::Status::OK);
    assert_ne!(end.exit_code, Some(0));
    only(&["bin/guest_manager"]).await;
    fixture.works().await;
    fixture.enclosed.destroy().await;
}

#[fasync::run_singlethreaded(test)]
async fn a_guest_whose_vmm_does_not_answer_is_stopping_until_it_does() {
    let fixture = Fixture::new(GuestKernel::Zircon, MANIFESTS.to_vec());
    let enclosed = &fixture.enclosed;
    let guest = enclosed.start(GuestConfig::default()).await;
    let vmm = pid_of("bin/vmm");
    kill_process(vmm, Signal::STOP).unwrap();
    // Requests of one connection are served in their order, so all that follow see it stopping.
    let stopped = [enclosed.manager.force_shutdown(), enclosed.manager.force_shutdown()];
    let info = enclosed.info().await;
    assert_eq!((info.guest_status, info.stop_error), (Some(GuestStatus::Stopping), None));
    assert!(info.uptime.is_some() && info.guest_descriptor.is_some(), "{info:?}");
    let (_, server) = create_proxy::<GuestMarker>();
    let launched = enclosed.manager.launch(GuestConfig::default(), server).await.unwrap();
    assert_eq!(launched, Err(GuestManagerError::AlreadyRunning));
    // It can still be connected to, but nobody answers.
    let (late, server) = create_proxy::<GuestMarker>();
    assert_eq!(enclosed.manager.connect(server).await.unwrap(), Ok(()));
    assert_eq!(enclosed.info().await.guest_status, Some(GuestStatus::Stopping));
    kill_process(vmm, Signal::CONT).unwrap();
    for stopped in stopped {
        stopped.await.unwrap();
    }
    let info = enclosed.info().await;
    assert_eq!(info.guest_status, Some(GuestStatus::Stopped));
    assert_eq!(info.stop_error, Some(GuestError::ControllerForcedHalt));
    assert_eq!(guest.wait_for_end().await, Some(zx::Status::INTERNAL));
    late.on_closed().await.unwrap();
    fixture.works().await;
    fixture.enclosed.destroy().await;
}

#[fasync::run_singlethreaded(test)]
async fn a_vmm_that_dies_while_it_is_to_stop_has_terminated_unexpectedly() {
    let fixture = Fixture::new(GuestKernel::Zircon, MANIFESTS.to_vec());
    let enclosed = &fixture.enclosed;
    let _guest = enclosed.start(GuestConfig::default()).await;
    let vmm = pid_of("bin/vmm");
    kill_process(vmm, Signal::STOP).unwrap();
    let stopped = enclosed.manager.force_shutdown();
    assert_eq!(enclosed.info().await.guest_status, Some(GuestStatus::Stopping));
    kill_process(vmm, Signal::KILL).unwrap();
    stopped.await.unwrap();
    let info = enclosed.info().await;
    assert_eq!(info.guest_status, Some(GuestStatus::VmmUnexpectedTermination));
    // Until the component manager knows, it leads to the VMM that is no more.
    fixture.end_of(fixture.vmm()).await;
    fixture.works().await;
    fixture.enclosed.destroy().await;
}

#[fasync::run_singlethreaded(test)]
async fn when_the_manager_goes_its_vmm_and_devices_go() {
    let fixture = Fixture::new(GuestKernel::Linux, MANIFESTS.to_vec());
    let guest = fixture.enclosed.start(GuestConfig::default()).await;
    kill_process(pid_of("bin/guest_manager"), Signal::KILL).unwrap();
    guest.guest.on_closed().await.unwrap();
    fixture.enclosed.manager.on_closed().await.unwrap();
    only(&[]).await;
    let end = fixture.end_of(fixture.instance("guest_manager")).await;
    assert_eq!(end.status, framework(fcomponent::Error::InstanceDied));
    fixture.enclosed.destroy().await;
}

#[fasync::run_singlethreaded(test)]
async fn a_program_that_is_missing_or_none_cannot_start() {
    // A program that is not there, and one that is a directory.
    for binary in ["lib/vmm", "bin"] {
        let fixture = Fixture::with_vmm("bin/vmm", binary);
        let (_, server) = create_proxy::<GuestMarker>();
        let launched = fixture.enclosed.manager.launch(GuestConfig::default(), server);
        assert_eq!(launched.await.unwrap(), Err(GuestManagerError::StartFailure), "{binary}");
        let info = fixture.enclosed.info().await;
        assert_eq!(info.guest_status, Some(GuestStatus::VmmUnexpectedTermination), "{binary}");
        let end = fixture.end_of(fixture.vmm()).await;
        let expected = framework(fcomponent::Error::InstanceCannotStart);
        assert_eq!(end.status, expected, "{binary}");
        fixture.enclosed.logged(binary).await;
        fixture.enclosed.destroy().await;
    }
}

#[fasync::run_singlethreaded(test)]
async fn a_start_info_that_is_unusable_is_refused() {
    for (from, to) in [
        (r#"binary: "bin/vmm","#, r#"binary: "bin/../../vmm","#),
        (r#"binary: "bin/vmm","#, r#"binary: "bin/vmm", args: "one","#),
        (r#"binary: "bin/vmm","#, r#"binary: "bin/vmm", environ: [ "NOVALUE" ],"#),
    ] {
        let fixture = Fixture::with_vmm(from, to);
        let (_, server) = create_proxy::<GuestMarker>();
        let launched = fixture.enclosed.manager.launch(GuestConfig::default(), server);
        assert_eq!(launched.await.unwrap(), Err(GuestManagerError::StartFailure), "{to}");
        let end = fixture.end_of(fixture.vmm()).await;
        assert_eq!(end.status, framework(fcomponent::Error::InvalidArguments), "{to}");
        fixture.enclosed.destroy().await;
    }
}
