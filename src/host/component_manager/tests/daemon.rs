//! The component manager as a process: started on demand, a component behind a runner that is a component, death by SIGKILL and what
//! everybody sees of it, idle exit, SIGTERM.

#![cfg(target_os = "linux")]

use component_manager::client::Connection;
use component_manager::runtime_directory::RuntimeDirectory;
use fidl::endpoints::{
    DiscoverableProtocolMarker, ProtocolMarker, Proxy, create_endpoints, create_proxy,
};
use fidl_fuchsia_component_runner as fcrunner;
use fidl_fuchsia_data as fdata;
use fidl_fuchsia_io as fio;
use fidl_fuchsia_virtualization as fvirtualization;
use fidl_guest_host as fhost;
use fuchsia_async as fasync;
use fuchsia_zircon as zx;
use futures::{AsyncReadExt, AsyncWriteExt, StreamExt};
use rustix::process::{Pid, Signal, kill_process};
use std::path::PathBuf;
use std::process::Command;

const PROGRAM: &str = env!("CARGO_BIN_EXE_component_manager_test_components");
const INSTANCE_DIED: i32 = 11;

struct World {
    directory: tempfile::TempDir,
    runtime: RuntimeDirectory,
}

impl World {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let runtime = RuntimeDirectory::at(&directory.path().join("run")).unwrap();
        Self { directory, runtime }
    }

    fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    fn has_temporary_storage(&self) -> bool {
        let mut entries = std::fs::read_dir(self.data()).unwrap();
        entries.any(|entry| entry.unwrap().file_name().to_string_lossy().starts_with(".tmp-"))
    }

    fn connect(&self, idle: &str) -> Connection {
        let mut command = Command::new(PROGRAM);
        command.arg("component_manager").arg(self.runtime.path()).arg(self.data()).arg(idle);
        Connection::connect_or_run(&self.runtime, &mut command).unwrap()
    }

    /// The socket goes with the component manager. Connecting to find out would keep it.
    async fn until_gone(&self) {
        while self.runtime.path().join("component_manager").exists() {
            fasync::Timer::new(zx::Duration::from_millis(20)).await;
        }
    }
}

fn open_at<P: ProtocolMarker>(directory: &fio::DirectoryProxy, path: &str) -> P::Proxy {
    let (proxy, server) = create_proxy::<P>();
    directory
        .open(path, fio::Flags::PROTOCOL_SERVICE, &fio::Options::default(), server.into_channel())
        .unwrap();
    proxy
}

fn open<P: DiscoverableProtocolMarker>(directory: &fio::DirectoryProxy) -> P::Proxy {
    open_at::<P>(directory, P::PROTOCOL_NAME)
}

async fn pid_of(guest: &fvirtualization::GuestProxy) -> i32 {
    let mut serial = fasync::Socket::from_socket(guest.get_serial().await.unwrap());
    let mut text = String::new();
    serial.read_to_string(&mut text).await.unwrap();
    text.parse().unwrap()
}

fn kill(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
}

fn exists(pid: i32) -> bool {
    let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // A zombie has ended; who reaps it is another matter.
    state
        .rsplit(')')
        .next()
        .is_some_and(|rest| !rest.trim().is_empty() && !rest.trim().starts_with('Z'))
}

async fn until_ended(pid: i32) {
    while exists(pid) {
        fasync::Timer::new(zx::Duration::from_millis(20)).await;
    }
}

async fn instances(connection: &Connection) -> Vec<fhost::Instance> {
    let (iterator, server) = create_proxy::<fhost::InstanceIteratorMarker>();
    connection.control().list_instances(server).unwrap();
    let mut all = Vec::new();
    loop {
        let some = iterator.next().await.unwrap();
        if some.is_empty() {
            return all;
        }
        all.extend(some);
    }
}

async fn instance(connection: &Connection, moniker: &str) -> fhost::Instance {
    instances(connection).await.into_iter().find(|instance| instance.moniker == moniker).unwrap()
}

async fn logs(connection: &Connection, moniker: &str) -> Vec<fhost::LogRecord> {
    let (iterator, server) = create_proxy::<fhost::LogIteratorMarker>();
    let options = fhost::LogOptions { moniker: Some(moniker.to_owned()), ..Default::default() };
    connection.control().read_logs(&options, server).unwrap();
    let mut all = Vec::new();
    loop {
        let some = iterator.next().await.unwrap();
        if some.is_empty() {
            return all;
        }
        all.extend(some);
    }
}

/// A run of `echo`, as a client has it.
struct Echo {
    lifecycle: fvirtualization::GuestLifecycleProxy,
    guest: fvirtualization::GuestProxy,
    pid: i32,
}

impl Echo {
    /// Starts it, or finds it running. A handle goes there, and a handle comes back.
    async fn connect(directory: &fio::DirectoryProxy, path: &str) -> Self {
        let lifecycle = open_at::<fvirtualization::GuestLifecycleMarker>(directory, path);
        let (guest, server) = create_proxy::<fvirtualization::GuestMarker>();
        lifecycle.bind(server).unwrap();
        let pid = pid_of(&guest).await;
        Self { lifecycle, guest, pid }
    }

    async fn exposed(connection: &Connection) -> Self {
        Self::connect(
            &connection.exposed_dir(),
            fvirtualization::GuestLifecycleMarker::PROTOCOL_NAME,
        )
        .await
    }

    /// A socket of its works both ways.
    async fn assert_echoes(&self) {
        let console = self.guest.get_console().await.unwrap().unwrap();
        let mut console = fasync::Socket::from_socket(console);
        console.write_all(b"hello").await.unwrap();
        let mut echoed = [0; 5];
        console.read_exact(&mut echoed).await.unwrap();
        assert_eq!(&echoed, b"hello");
    }

    /// Its ends of the channels close, with no epitaph: nobody was left to write one.
    async fn assert_peer_closed(&self) {
        self.lifecycle.on_closed().await.unwrap();
        self.guest.on_closed().await.unwrap();
        let answer = self.guest.get_serial().await.unwrap_err();
        assert!(
            matches!(
                answer,
                fidl::Error::ClientChannelClosed { status: zx::Status::PEER_CLOSED, .. }
            ),
            "{answer:?}"
        );
    }
}

/// What the platform is for, from end to end: the component manager is a process; it starts a component through a runner that
/// another component is; a client calls it with handles; SIGKILL ends it; and everybody learns that.
#[fuchsia_async::run_singlethreaded(test)]
async fn a_component_behind_a_component_runner_dies_is_reported_and_starts_again() {
    let world = World::new();
    let connection = world.connect("60000");
    let first = Echo::exposed(&connection).await;
    first.assert_echoes().await;
    assert_eq!(instance(&connection, "echo").await.state, fhost::ExecutionState::Running);
    assert_eq!(instance(&connection, "runner").await.state, fhost::ExecutionState::Running);

    kill(first.pid, Signal::KILL);
    first.assert_peer_closed().await;
    while instance(&connection, "echo").await.state != fhost::ExecutionState::Stopped {
        fasync::Timer::new(zx::Duration::from_millis(20)).await;
    }
    // The epitaph on the ComponentController, as the component manager had it.
    assert_eq!(instance(&connection, "echo").await.termination_status, INSTANCE_DIED);

    let second = Echo::exposed(&connection).await;
    assert_ne!(first.pid, second.pid);
    second.assert_echoes().await;
    let lines = logs(&connection, "echo").await;
    assert!(lines.iter().filter(|line| line.message == "echo runs").count() == 2, "{lines:?}");

    connection.control().shutdown().await.unwrap();
    until_ended(second.pid).await;
    world.until_gone().await;
}

/// The same with the controller in our own hands: here the test is what the component manager is to a runner.
#[fuchsia_async::run_singlethreaded(test)]
async fn a_killed_run_ends_its_controller_with_an_epitaph() {
    let world = World::new();
    let connection = world.connect("60000");
    let runner = open::<fcrunner::ComponentRunnerMarker>(&connection.exposed_dir());
    let (outgoing, server) = create_proxy::<fio::DirectoryMarker>();
    let (controller, controller_server) = create_proxy::<fcrunner::ComponentControllerMarker>();
    runner.start(start_info("bin/echo", Some(server)), controller_server).unwrap();
    let path = format!("svc/{}", fvirtualization::GuestLifecycleMarker::PROTOCOL_NAME);
    let echo = Echo::connect(&outgoing, &path).await;
    kill(echo.pid, Signal::KILL);
    echo.assert_peer_closed().await;
    assert_eq!(epitaph(&controller).await, zx::Status::from_raw(INSTANCE_DIED));
    connection.control().shutdown().await.unwrap();
    world.until_gone().await;
}

/// The test components' program, as a file of a package that the test serves.
struct Program(std::fs::File);

impl vfs::file::File for Program {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<usize, zx::Status> {
        Ok(std::os::unix::fs::FileExt::read_at(&self.0, buffer, offset)?)
    }

    fn size(&self) -> Result<u64, zx::Status> {
        Ok(self.0.metadata()?.len())
    }

    fn backing_memory(&self, _flags: fio::VmoFlags) -> Result<zx::Vmo, zx::Status> {
        let rights =
            zx::Rights::BASIC_RIGHTS | zx::Rights::READ | zx::Rights::MAP | zx::Rights::EXECUTE;
        zx::linux::vmo_from_file(self.0.try_clone()?.into(), rights)
    }

    fn abilities(&self) -> fio::Operations {
        fio::Operations::READ_BYTES | fio::Operations::GET_ATTRIBUTES | fio::Operations::EXECUTE
    }
}

/// Executable, which pseudo directories are not.
struct Package(std::sync::Arc<dyn vfs::DirectoryEntry>);

impl vfs::directory::Directory for Package {
    fn lookup(&self, _name: &str) -> Result<std::sync::Arc<dyn vfs::DirectoryEntry>, zx::Status> {
        Ok(self.0.clone())
    }

    fn list(&self) -> Result<Vec<(String, vfs::EntryInfo)>, zx::Status> {
        Ok(Vec::new())
    }

    fn abilities(&self) -> fio::Operations {
        fio::RX_STAR_DIR
    }
}

fn start_info(
    binary: &str,
    outgoing_dir: Option<fidl::endpoints::ServerEnd<fio::DirectoryMarker>>,
) -> fcrunner::ComponentStartInfo {
    let program = vfs::file::entry(
        std::sync::Arc::new(Program(std::fs::File::open(PROGRAM).unwrap())),
        fio::INO_UNKNOWN,
    );
    let bin = vfs::directory::entry(std::sync::Arc::new(Package(program)), fio::INO_UNKNOWN);
    let (client, server) = create_endpoints::<fio::DirectoryMarker>();
    let scope = vfs::execution_scope::ExecutionScope::new();
    vfs::directory::serve(std::sync::Arc::new(Package(bin)), &scope, fio::RX_STAR_DIR, server);
    let value = fdata::DictionaryValue::Str(binary.to_owned());
    let entry = fdata::DictionaryEntry { key: "binary".to_owned(), value: Some(Box::new(value)) };
    let package = fcrunner::ComponentNamespaceEntry {
        path: Some("/pkg".to_owned()),
        directory: Some(client),
        ..Default::default()
    };
    fcrunner::ComponentStartInfo {
        program: Some(fdata::Dictionary { entries: Some(vec![entry]), ..Default::default() }),
        ns: Some(vec![package]),
        outgoing_dir,
        ..Default::default()
    }
}

async fn epitaph(controller: &fcrunner::ComponentControllerProxy) -> zx::Status {
    match controller.take_event_stream().next().await.unwrap() {
        Err(fidl::Error::ClientChannelClosed { status, .. }) => status,
        other => panic!("{other:?}"),
    }
}

#[fuchsia_async::run_singlethreaded(test)]
async fn what_cannot_start_says_so_by_epitaph() {
    let world = World::new();
    let connection = world.connect("60000");
    let runner = open::<fcrunner::ComponentRunnerMarker>(&connection.exposed_dir());
    let (controller, server) = create_proxy::<fcrunner::ComponentControllerMarker>();
    let info = fcrunner::ComponentStartInfo { program: None, ..start_info("bin/echo", None) };
    runner.start(info, server).unwrap();
    assert_eq!(epitaph(&controller).await, zx::Status::INVALID_ARGS);
    connection.control().shutdown().await.unwrap();
    world.until_gone().await;
}

#[fuchsia_async::run_singlethreaded(test)]
async fn what_fails_is_in_the_log_and_the_client_sees_its_channel_close() {
    let world = World::new();
    let connection = world.connect("60000");
    let proxy = open_at::<fvirtualization::GuestLifecycleMarker>(
        &connection.exposed_dir(),
        "crash.Protocol",
    );
    proxy.on_closed().await.unwrap();
    while instance(&connection, "crash").await.termination_status == 0 {
        fasync::Timer::new(zx::Duration::from_millis(20)).await;
    }
    assert_eq!(instance(&connection, "crash").await.termination_status, INSTANCE_DIED);
    while !logs(&connection, "crash").await.iter().any(|line| line.message == "about to end") {
        fasync::Timer::new(zx::Duration::from_millis(20)).await;
    }
    let line = logs(&connection, "crash")
        .await
        .into_iter()
        .find(|line| line.message == "about to end")
        .unwrap();
    assert_eq!(line.severity, 0x50);
    // What the root does not expose is not there.
    let nothing = open_at::<fvirtualization::GuestLifecycleMarker>(
        &connection.exposed_dir(),
        "no.such.Protocol",
    );
    nothing.on_closed().await.unwrap();
    connection.control().shutdown().await.unwrap();
}

#[fuchsia_async::run_singlethreaded(test)]
async fn it_leaves_when_idle_and_not_before() {
    let world = World::new();
    let connection = world.connect("50");
    fasync::Timer::new(zx::Duration::from_millis(200)).await;
    assert!(!connection.is_closed());
    assert!(world.has_temporary_storage());
    drop(connection);
    world.until_gone().await;
    while world.has_temporary_storage() {
        fasync::Timer::new(zx::Duration::from_millis(20)).await;
    }
    // And comes back.
    let again = world.connect("50");
    assert_eq!(instances(&again).await[0].moniker, ".");
}

#[fuchsia_async::run_singlethreaded(test)]
async fn a_second_one_does_not_start_and_both_clients_reach_the_first() {
    let world = World::new();
    let connections: Vec<_> = std::thread::scope(|scope| {
        let starting: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let mut command = Command::new(PROGRAM);
                    command
                        .arg("component_manager")
                        .arg(world.runtime.path())
                        .arg(world.data())
                        .arg("60000");
                    // What each thread has is a proxy of its own executor, so only that it worked is told.
                    fasync::LocalExecutor::new().run_singlethreaded(async {
                        Connection::connect_or_run(&world.runtime, &mut command).is_ok()
                    })
                })
            })
            .collect();
        starting.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(connections, [true; 4]);
    let connection = Connection::connect_at(&world.runtime).unwrap().unwrap();
    connection.control().shutdown().await.unwrap();
    world.until_gone().await;
}

#[fuchsia_async::run_singlethreaded(test)]
async fn nothing_outlives_it() {
    for signal in [Signal::TERM, Signal::KILL] {
        let world = World::new();
        let connection = world.connect("60000");
        let echo = Echo::exposed(&connection).await;
        let manager = parent_of(parent_of(echo.pid));
        assert!(exists(manager));
        kill(manager, signal);
        echo.guest.on_closed().await.unwrap();
        until_ended(echo.pid).await;
        until_ended(manager).await;
    }
}

fn parent_of(pid: i32) -> i32 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap().trim().parse().unwrap()
}
