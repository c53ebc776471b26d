//! Making a process of a checked start info.

use super::StartError;
use super::loader::load_executable;
use super::process::{NewProcess, system_launcher};
use super::start_info::StartInfo;
use fidl::endpoints::{ClientEnd, ServerEnd, create_endpoints, create_proxy};
use fidl_fuchsia_io as fio;
use fidl_fuchsia_mem as fmem;
use fidl_fuchsia_process_lifecycle as flifecycle;
use fuchsia_async as fasync;
use fuchsia_zircon::processargs::{HandleInfo, HandleType};
use fuchsia_zircon::{self as zx, AsHandleRef as _, HandleBased as _, Task as _};
use futures::future::{FutureExt as _, LocalBoxFuture};
use tracing::warn;
use vfs::directory::simple;
use vfs::execution_scope::ExecutionScope;

/// What makes components; a trait so that tests can have others.
pub(crate) trait Launch {
    /// What is made.
    type Component: Component + 'static;

    /// Makes a component.
    fn launch(&self, info: StartInfo) -> impl Future<Output = Result<Self::Component, StartError>>;
}

/// A component that was started.
pub(crate) trait Component {
    /// Its first process, for diagnostics.
    fn duplicate_process(&self) -> Option<zx::Process>;
    /// Comes with the exit code when the component has ended. Asked for once.
    fn exited(&self) -> LocalBoxFuture<'static, Result<i64, zx::Status>>;
    /// Asks it to end.
    fn stop(&mut self);
    /// Ends it and all it has started, now.
    fn kill(&mut self);
}

/// Makes processes.
#[derive(Debug)]
pub(crate) struct ProcessLauncher;

/// A process in a job of its own.
#[derive(Debug)]
pub(crate) struct ProcessComponent {
    job: zx::Job,
    process: zx::Process,
    lifecycle: Option<flifecycle::LifecycleProxy>,
}

impl Launch for ProcessLauncher {
    type Component = ProcessComponent;

    async fn launch(&self, mut info: StartInfo) -> Result<ProcessComponent, StartError> {
        if let Some(server) = info.runtime_dir.take() {
            serve_runtime_dir(&info, server);
        }
        let package = clone_package(&mut info)?;
        let executable = load_executable(&package, &info.binary)
            .await
            .map_err(|status| spawn_error(&info.binary, status))?;
        let job =
            zx::Job::default_job().create_child_job().map_err(StartError::ResourceUnavailable)?;
        let mut handles: Vec<(u32, zx::Handle)> =
            info.numbered_handles.into_iter().map(|info| (info.id, info.handle)).collect();
        let mut add = |handle_type: HandleType, handle: zx::Handle| {
            handles.push((HandleInfo::from(handle_type).as_raw(), handle));
        };
        if let Some(outgoing) = info.outgoing_dir {
            add(HandleType::DirectoryRequest, outgoing.into_channel().into());
        }
        if let Some(config) = info.encoded_config {
            add(HandleType::ComponentConfigVmo, config_vmo(config)?.into());
        }
        let lifecycle = info.notify_on_stop.then(|| {
            let (proxy, server) = create_proxy::<flifecycle::LifecycleMarker>();
            add(HandleType::Lifecycle, server.into_channel().into());
            proxy
        });
        let process = NewProcess {
            binary: info.binary.clone(),
            executable,
            package,
            arguments: info.args,
            environment: info.environ,
            namespace: info.namespace,
            handles,
        };
        let process = process
            .start(&job, system_launcher().as_ref())
            .await
            .map_err(|status| spawn_error(&info.binary, status))?;
        Ok(ProcessComponent { job, process, lifecycle })
    }
}

/// The package directory of the component's own namespace. The component gets the directory too, so it is cloned.
fn clone_package(info: &mut StartInfo) -> Result<fio::DirectoryProxy, StartError> {
    let (_, package) = info
        .namespace
        .iter_mut()
        .find(|(path, _)| path == "/pkg")
        .ok_or_else(|| StartError::InvalidArguments("the namespace has no /pkg".to_owned()))?;
    let directory =
        std::mem::replace(package, ClientEnd::new(zx::Handle::invalid().into())).into_proxy();
    let (clone, server) = create_endpoints::<fio::DirectoryMarker>();
    directory.clone(ServerEnd::new(server.into_channel())).map_err(|e| {
        StartError::CannotStart { binary: info.binary.clone(), reason: e.to_string() }
    })?;
    *package = clone;
    Ok(directory)
}

/// What the system lacks is not the program's fault.
fn spawn_error(binary: &str, status: zx::Status) -> StartError {
    match status {
        zx::Status::NO_MEMORY | zx::Status::NO_RESOURCES | zx::Status::UNAVAILABLE => {
            StartError::ResourceUnavailable(status)
        }
        _ => StartError::CannotStart { binary: binary.to_owned(), reason: status.to_string() },
    }
}

fn config_vmo(config: fmem::Data) -> Result<zx::Vmo, StartError> {
    match config {
        fmem::Data::Buffer(buffer) => Ok(buffer.vmo),
        fmem::Data::Bytes(bytes) => {
            let make = || {
                let vmo = zx::Vmo::create(bytes.len() as u64)?;
                vmo.write(&bytes, 0)?;
                Ok(vmo)
            };
            make().map_err(StartError::ResourceUnavailable)
        }
        _ => Err(StartError::InvalidArguments("encoded_config is of an unknown kind".to_owned())),
    }
}

/// Serves `args/N` and `elf/…` as Fuchsia's own runner does, for as long as somebody looks.
fn serve_runtime_dir(info: &StartInfo, server: ServerEnd<fio::DirectoryMarker>) {
    let root = simple();
    let args = simple();
    for (index, argument) in info.args.iter().enumerate() {
        let file = vfs::file::read_only(argument.as_bytes());
        if let Err(status) = args.add_entry(index.to_string(), file) {
            warn!("An argument cannot be shown in the runtime directory: {status}");
        }
    }
    if let Err(status) = root.add_entry("args", args) {
        warn!("The runtime directory cannot show the arguments: {status}");
    }
    vfs::directory::serve(root, &ExecutionScope::new(), fio::R_STAR_DIR, server);
}

impl Component for ProcessComponent {
    fn duplicate_process(&self) -> Option<zx::Process> {
        self.process.duplicate_handle(zx::Rights::SAME_RIGHTS).ok()
    }

    fn exited(&self) -> LocalBoxFuture<'static, Result<i64, zx::Status>> {
        let process = self.process.duplicate_handle(zx::Rights::SAME_RIGHTS);
        async move {
            let process = process?;
            let terminated = zx::Signals::PROCESS_TERMINATED;
            fasync::OnSignals::new(process.as_handle_ref(), terminated).await?;
            Ok(process.info()?.return_code)
        }
        .boxed_local()
    }

    fn stop(&mut self) {
        let told = self.lifecycle.as_ref().map(flifecycle::LifecycleProxy::stop);
        // A program that cannot be told has nothing to do first.
        if !matches!(told, Some(Ok(()))) {
            self.kill();
        }
    }

    fn kill(&mut self) {
        if let Err(status) = self.job.kill() {
            warn!("The component's job could not be killed: {status}");
        }
    }
}

impl Drop for ProcessComponent {
    fn drop(&mut self) {
        self.kill();
    }
}
