//! The guest manager: the component that launches one kind of guest, and is itself the runner of the VMM that the guest
//! runs in. What may enter is what concerns a guest as a whole: its package and configuration, its life, its problems;
//! the machine is the VMM's.
#![forbid(unsafe_code)]

mod environment;
mod manager;
#[cfg(test)]
mod manager_test;
mod memory_pressure;
mod merge;
mod package;
mod package_config;
mod problems;
mod qcow_chain;

mod runner;
mod state;
mod termina;

use anyhow::Context as _;
use environment::Namespace;
use fidl::endpoints::{ServerEnd, create_proxy};
use fidl_fuchsia_component_runner::ComponentRunnerRequestStream;
use fidl_fuchsia_io as fio;
use fidl_fuchsia_process_lifecycle::LifecycleMarker;
use fidl_fuchsia_virtualization::{GuestManagerRequestStream, LinuxManagerRequestStream};
use fuchsia_async as fasync;
use fuchsia_component::namespace;
use fuchsia_component::server::ServiceFs;
use fuchsia_zircon as zx;
use fuchsia_zircon::processargs::{HandleType, take_startup_handle};
use futures::future::{Either, select};
use futures::{StreamExt as _, TryStreamExt as _};
use manager::GuestManager;
use merge::HostResources;
use std::pin::pin;

/// Where the namespace has the guest's package.
const PACKAGE_PATH: &str = "/guest_pkg";

/// Where the namespace of Termina's manager has the storage for the guest's own disk.
const STORAGE_PATH: &str = "/data";

/// Who connects.
enum Incoming {
    Manager(GuestManagerRequestStream),
    Linux(LinuxManagerRequestStream),
    Runner(ComponentRunnerRequestStream),
}

/// Runs the component until component manager asks it to end; its VMM has ended then.
///
/// # Errors
/// Where the namespace lacks the guest's package, or there is no outgoing directory to serve.
pub async fn run() -> anyhow::Result<()> {
    let (package, server) = create_proxy::<fio::DirectoryMarker>();
    let flags =
        fio::PERM_READABLE | fio::Flags::PERM_INHERIT_WRITE | fio::Flags::PROTOCOL_DIRECTORY;
    namespace::open(PACKAGE_PATH, flags, server.into_channel())
        .with_context(|| format!("Opening {PACKAGE_PATH}"))?;
    let host = HostResources { memory: zx::system_get_physmem(), cpus: zx::system_get_num_cpus() };
    let manager = GuestManager::new(Namespace, package, host, storage());
    let entrance = manager.entrance();
    let mut fs = ServiceFs::new_local();
    fs.dir("svc")
        .add_fidl_service(Incoming::Manager)
        .add_fidl_service(Incoming::Linux)
        .add_fidl_service(Incoming::Runner);
    fs.take_and_serve_directory_handle().context("Serving the outgoing directory")?;
    fasync::Task::local(manager.run()).detach();
    let mut stop = pin!(stop_requested());
    while let Either::Left((Some(incoming), _)) = select(fs.next(), &mut stop).await {
        match incoming {
            Incoming::Manager(stream) => {
                fasync::Task::local(entrance.clone().serve(stream)).detach();
            }
            Incoming::Linux(stream) => {
                fasync::Task::local(termina::serve(entrance.clone(), stream)).detach();
            }
            Incoming::Runner(stream) => fasync::Task::local(runner::serve(stream)).detach(),
        }
    }
    Ok(())
}

/// The storage for a disk of the guest's own, where the manifest gives the manager some: that makes it Termina's.
fn storage() -> Option<termina::Storage> {
    let (directory, server) = create_proxy::<fio::DirectoryMarker>();
    let flags = fio::PERM_READABLE | fio::PERM_WRITABLE | fio::Flags::PROTOCOL_DIRECTORY;
    let opened = namespace::open(STORAGE_PATH, flags, server.into_channel());
    opened.ok().map(|()| termina::Storage::new(directory))
}

/// Comes when component manager wants the component to end; never, where the runner has no channel to say so.
async fn stop_requested() {
    if let Some(handle) = take_startup_handle(HandleType::Lifecycle.into()) {
        let mut requests = ServerEnd::<LifecycleMarker>::new(handle.into()).into_stream();
        // A channel that closes asks for nothing.
        if let Ok(Some(_stop)) = requests.try_next().await {
            return;
        }
    }
    futures::future::pending::<()>().await;
}
