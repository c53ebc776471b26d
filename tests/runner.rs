//! The runner suite: the guest manager as the runner of its VMM, asked by the test as the component manager asks it. What
//! happens to the processes is in `runner_processes.rs`.

use enclosed_guest::{EnclosedGuest, GuestKernel, PATIENCE, environment};
use fidl::endpoints::{ClientEnd, Proxy as _, create_endpoints, create_proxy};
use fidl_fuchsia_component as fcomponent;
use fidl_fuchsia_component_runner as fcrunner;
use fidl_fuchsia_data as fdata;
use fidl_fuchsia_io as fio;
use fidl_fuchsia_virtualization::{GuestConfig, GuestLifecycleMarker, GuestLifecycleProxy};
use fuchsia_async::{self as fasync, TimeoutExt as _};
use fuchsia_component::client;
use fuchsia_component::server::{ServiceFs, ServiceObj};
use fuchsia_zircon as zx;
use futures::StreamExt as _;

/// `ZX_TASK_RETCODE_SYSCALL_KILL`: the exit code of a process that was killed.
const KILLED: i64 = -1024;

fn enclosed() -> EnclosedGuest {
    EnclosedGuest::new(environment!(), GuestKernel::Zircon)
}

fn entry(key: &str, value: fdata::DictionaryValue) -> fdata::DictionaryEntry {
    fdata::DictionaryEntry { key: key.to_owned(), value: Some(Box::new(value)) }
}

fn text(key: &str, value: &str) -> fdata::DictionaryEntry {
    entry(key, fdata::DictionaryValue::Str(value.to_owned()))
}

fn words(key: &str, words: &[&str]) -> fdata::DictionaryEntry {
    let words = words.iter().map(|word| (*word).to_owned()).collect();
    entry(key, fdata::DictionaryValue::StrVec(words))
}

/// A VMM that makes no guest asks for nothing in its `/svc`.
fn empty_directory() -> ClientEnd<fio::DirectoryMarker> {
    let (client, server) = create_endpoints::<fio::DirectoryMarker>();
    let mut fs = ServiceFs::<ServiceObj<'_, ()>>::new();
    fs.serve_connection(server).unwrap();
    fasync::Task::local(fs.collect::<()>()).detach();
    client
}

/// What the component manager would tell of a component with this program in the manager's own package.
fn start_info(
    enclosed: &EnclosedGuest,
    program: Vec<fdata::DictionaryEntry>,
) -> fcrunner::ComponentStartInfo {
    let directory = |path: &str, directory| fcrunner::ComponentNamespaceEntry {
        path: Some(path.to_owned()),
        directory: Some(directory),
        ..Default::default()
    };
    fcrunner::ComponentStartInfo {
        resolved_url: Some("fuchsia-pkg://fuchsia.com/tests#meta/vmm.cm".to_owned()),
        program: Some(fdata::Dictionary { entries: Some(program), ..Default::default() }),
        ns: Some(vec![
            directory("/pkg", enclosed.components()),
            directory("/svc", empty_directory()),
        ]),
        ..Default::default()
    }
}

fn start(
    enclosed: &EnclosedGuest,
    info: fcrunner::ComponentStartInfo,
) -> fcrunner::ComponentControllerProxy {
    let runner = enclosed.connect_to_protocol::<fcrunner::ComponentRunnerMarker>();
    let (controller, server) = create_proxy::<fcrunner::ComponentControllerMarker>();
    runner.start(info, server).unwrap();
    controller
}

/// A VMM.
struct Vmm {
    controller: fcrunner::ComponentControllerProxy,
    lifecycle: GuestLifecycleProxy,
}

impl Vmm {
    fn start(enclosed: &EnclosedGuest, debugger: Option<zx::EventPair>) -> Self {
        let program = vec![text("binary", "bin/vmm"), text("lifecycle.stop_event", "notify")];
        let (outgoing, server) = create_proxy::<fio::DirectoryMarker>();
        let info = fcrunner::ComponentStartInfo {
            outgoing_dir: Some(server),
            break_on_start: debugger,
            ..start_info(enclosed, program)
        };
        let controller = start(enclosed, info);
        let lifecycle =
            client::connect_to_protocol_at_dir_svc::<GuestLifecycleMarker>(&outgoing).unwrap();
        Self { controller, lifecycle }
    }
}

/// How a component ended: what the runner told of it, if it did, and the epitaph.
async fn end(
    controller: &fcrunner::ComponentControllerProxy,
) -> (Option<fcrunner::ComponentStopInfo>, zx::Status) {
    let mut events = controller.take_event_stream();
    let ending = async {
        let mut told = None;
        loop {
            match events.next().await {
                Some(Ok(fcrunner::ComponentControllerEvent::OnStop { payload })) => {
                    told = Some(payload);
                }
                Some(Ok(_)) => {}
                Some(Err(fidl::Error::ClientChannelClosed { status, .. })) => {
                    return Some((told, status));
                }
                other => panic!("{other:?}"),
            }
        }
    };
    let ended = ending.on_timeout(zx::Time::after(PATIENCE), || None).await;
    ended.expect("the component does not end")
}

fn framework(error: fcomponent::Error) -> zx::Status {
    zx::Status::from_raw(error.into_primitive().cast_signed())
}

/// A component that never started: its end.
async fn refusal(enclosed: &EnclosedGuest, info: fcrunner::ComponentStartInfo) -> zx::Status {
    let (told, epitaph) = end(&start(enclosed, info)).await;
    assert!(told.is_none(), "{told:?}");
    epitaph
}

#[fasync::run_singlethreaded(test)]
async fn a_start_info_that_lacks_something_is_refused() {
    let enclosed = enclosed();
    let good = || start_info(&enclosed, vec![text("binary", "bin/vmm")]);
    let incomplete = [
        fcrunner::ComponentStartInfo { resolved_url: None, ..good() },
        fcrunner::ComponentStartInfo { program: None, ..good() },
        fcrunner::ComponentStartInfo { ns: None, ..good() },
    ];
    for info in incomplete {
        let status = refusal(&enclosed, info).await;
        assert_eq!(status, framework(fcomponent::Error::InvalidArguments));
    }
    let programs = [
        vec![],
        vec![words("binary", &["bin/vmm"])],
        vec![text("binary", "bin/../../vmm")],
        vec![text("binary", "/bin/vmm")],
        vec![text("binary", "bin/vmm"), text("args", "one")],
        vec![text("binary", "bin/vmm"), words("environ", &["NOVALUE"])],
        vec![text("binary", "bin/vmm"), text("lifecycle.stop_event", "perhaps")],
    ];
    for program in programs {
        let status = refusal(&enclosed, start_info(&enclosed, program.clone())).await;
        assert_eq!(status, framework(fcomponent::Error::InvalidArguments), "{program:?}");
    }
    enclosed.destroy().await;
}

#[fasync::run_singlethreaded(test)]
async fn a_program_that_is_missing_or_none_cannot_start() {
    let enclosed = enclosed();
    for binary in ["bin/nonexistent", "bin"] {
        let info = start_info(&enclosed, vec![text("binary", binary)]);
        let status = refusal(&enclosed, info).await;
        assert_eq!(status, framework(fcomponent::Error::InstanceCannotStart), "{binary}");
    }
    enclosed.destroy().await;
}

#[fasync::run_singlethreaded(test)]
async fn a_vmm_that_is_asked_to_stop_ends_in_order() {
    let enclosed = enclosed();
    let vmm = Vmm::start(&enclosed, None);
    vmm.lifecycle.stop().await.unwrap();
    vmm.controller.stop().unwrap();
    let (told, epitaph) = end(&vmm.controller).await;
    let told = told.unwrap();
    assert_eq!((told.termination_status.unwrap_or(0), told.exit_code), (0, Some(0)));
    assert_eq!(epitaph, zx::Status::OK);
    vmm.lifecycle.on_closed().await.unwrap();
    enclosed.destroy().await;
}

#[fasync::run_singlethreaded(test)]
async fn a_vmm_that_is_killed_is_gone() {
    let enclosed = enclosed();
    let vmm = Vmm::start(&enclosed, None);
    vmm.lifecycle.stop().await.unwrap();
    vmm.controller.kill().unwrap();
    let (told, epitaph) = end(&vmm.controller).await;
    let told = told.unwrap();
    // As it was asked for: no failure of the component.
    assert_eq!((told.termination_status.unwrap_or(0), told.exit_code), (0, Some(KILLED)));
    assert_eq!(epitaph, zx::Status::OK);
    vmm.lifecycle.on_closed().await.unwrap();
    enclosed.destroy().await;
}

#[fasync::run_singlethreaded(test)]
async fn nothing_outlives_its_controller() {
    let enclosed = enclosed();
    let vmm = Vmm::start(&enclosed, None);
    vmm.lifecycle.stop().await.unwrap();
    drop(vmm.controller);
    vmm.lifecycle.on_closed().await.unwrap();
    enclosed.destroy().await;
}

#[fasync::run_singlethreaded(test)]
async fn a_debugger_is_waited_for() {
    let enclosed = enclosed();
    let (debugger, theirs) = zx::EventPair::create();
    let held = Vmm::start(&enclosed, Some(theirs));
    // Another starts and ends meanwhile; this one has not begun.
    let free = Vmm::start(&enclosed, None);
    free.lifecycle.stop().await.unwrap();
    let answer = held.lifecycle.stop();
    futures::pin_mut!(answer);
    assert!(futures::poll!(&mut answer).is_pending());
    drop(debugger);
    answer.await.unwrap();
    enclosed.destroy().await;
}

#[fasync::run_singlethreaded(test)]
async fn a_guest_goes_with_its_realm() {
    let enclosed = enclosed();
    let guest = enclosed.start(GuestConfig::default()).await;
    let manager = enclosed.connect_to_manager();
    enclosed.destroy().await;
    guest.guest.on_closed().await.unwrap();
    manager.on_closed().await.unwrap();
}

#[fasync::run_singlethreaded(test)]
async fn each_launch_has_a_vmm_of_its_own() {
    let enclosed = enclosed();
    for round in ["one", "two", "three"] {
        let mut guest = enclosed.start(GuestConfig::default()).await;
        assert_eq!(guest.console.run(&format!("echo {round}")).await, format!("{round}\n"));
        enclosed.manager.force_shutdown().await.unwrap();
        assert_eq!(guest.wait_for_end().await, Some(zx::Status::INTERNAL));
    }
    enclosed.destroy().await;
}
