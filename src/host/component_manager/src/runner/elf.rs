//! The ELF runner: a process for each component, in a job of its own.
//!
//! The program section says `binary` (a path in `/pkg`), `args`, `environ` and `lifecycle.stop_event`. With `notify` the process gets
//! `PA_LIFECYCLE`, is asked to stop, and may leave things for its next run by `OnEscrow`; without, Stop kills it.

use super::{Runner, strings};
use crate::moniker::Moniker;
use crate::process::{self, Launch};
use crate::resolver::{Package, Resolved};
use fidl::endpoints::{ControlHandle, RequestStream, ServerEnd, create_proxy};
use fidl_fuchsia_component as fcomponent;
use fidl_fuchsia_component_runner as fcrunner;
use fidl_fuchsia_diagnostics_types as fdiagnostics;
use fidl_fuchsia_io as fio;
use fidl_fuchsia_process_lifecycle as flifecycle;
use fuchsia_async as fasync;
use fuchsia_zircon::processargs::{HandleInfo, HandleType};
use fuchsia_zircon::{self as zx, AsHandleRef, HandleBased, Task};
use futures::future::{Either, select};
use futures::{FutureExt, Stream, StreamExt};
use std::path::PathBuf;
use std::pin::pin;
use vfs::execution_scope::ExecutionScope;

/// Makes processes.
#[derive(Debug, Clone, Copy, Default)]
pub struct Elf;

/// What a start info says, checked.
struct Program {
    executable: PathBuf,
    args: Vec<String>,
    environ: Vec<String>,
    notify: bool,
}

impl Runner for Elf {
    fn start(
        &self,
        moniker: &Moniker,
        resolved: &Resolved,
        info: fcrunner::ComponentStartInfo,
        controller: ServerEnd<fcrunner::ComponentControllerMarker>,
    ) {
        let mut info = info;
        let program = match Program::read(resolved, &info) {
            Ok(program) => program,
            Err(error) => return refuse(controller, error),
        };
        let moniker = moniker.clone();
        match info.break_on_start.take() {
            None => program.run(&moniker, info, controller),
            // A debugger holds the other end until it is ready.
            Some(held) => fasync::Task::local(async move {
                let released = zx::Signals::EVENTPAIR_PEER_CLOSED;
                let _released = fasync::OnSignals::new(&held, released).await;
                program.run(&moniker, info, controller);
            })
            .detach(),
        }
    }
}

/// Tells why a program does not run.
fn refuse(controller: ServerEnd<fcrunner::ComponentControllerMarker>, error: fcomponent::Error) {
    let status = zx::Status::from_raw(error.into_primitive().cast_signed());
    // A component manager that is gone needs no telling.
    let _gone = controller.close_with_epitaph(status);
}

impl Program {
    fn read(
        resolved: &Resolved,
        info: &fcrunner::ComponentStartInfo,
    ) -> Result<Self, fcomponent::Error> {
        let program = info.program.as_ref().ok_or(fcomponent::Error::InvalidArguments)?;
        let binaries = strings(program, "binary");
        let [binary] = binaries.as_slice() else { return Err(fcomponent::Error::InvalidArguments) };
        if binary.split('/').any(|segment| matches!(segment, "" | "." | "..")) {
            return Err(fcomponent::Error::InvalidArguments);
        }
        let executable = match &resolved.package {
            // One program for all: it tells by its own name which it is to be.
            Package::Builtin { executable } => executable.clone(),
            Package::Directory(path) => path.join(binary),
        };
        let mut args = vec![binary.clone()];
        args.extend(strings(program, "args"));
        let environ = strings(program, "environ");
        let notify = strings(program, "lifecycle.stop_event") == ["notify"];
        Ok(Self { executable, args, environ, notify })
    }

    /// Makes the process and answers its controller from then on.
    fn run(
        self,
        moniker: &Moniker,
        mut info: fcrunner::ComponentStartInfo,
        controller: ServerEnd<fcrunner::ComponentControllerMarker>,
    ) {
        let runtime = info.runtime_dir.take();
        let args = self.args.clone();
        let started = self.launch(info).and_then(|(launch, lifecycle)| {
            let (process, job) = process::spawn(launch).map_err(|status| {
                tracing::warn!(%moniker, %status, "A process could not be made");
                match status {
                    zx::Status::NO_MEMORY | zx::Status::NO_RESOURCES => {
                        fcomponent::Error::ResourceUnavailable
                    }
                    zx::Status::NOT_FOUND | zx::Status::ACCESS_DENIED | zx::Status::IO => {
                        fcomponent::Error::InstanceCannotStart
                    }
                    _ => fcomponent::Error::Internal,
                }
            })?;
            Ok(Running { process, job, lifecycle, scope: ExecutionScope::new() })
        });
        match started {
            Ok(running) => {
                if let Some(runtime) = runtime {
                    running.serve_runtime(&args, runtime);
                }
                fasync::Task::local(running.control(controller)).detach();
            }
            Err(error) => refuse(controller, error),
        }
    }

    /// What the process gets, and the client end of its lifecycle.
    fn launch(
        self,
        info: fcrunner::ComponentStartInfo,
    ) -> Result<(Launch, Option<flifecycle::LifecycleProxy>), fcomponent::Error> {
        let mut namespace = Vec::new();
        for entry in info.ns.unwrap_or_default() {
            let (Some(path), Some(directory)) = (entry.path, entry.directory) else {
                return Err(fcomponent::Error::InvalidArguments);
            };
            namespace.push((path, directory.into_channel()));
        }
        let mut handles: Vec<(u32, zx::Handle)> = Vec::new();
        let mut add = |info: HandleInfo, handle: zx::Handle| handles.push((info.as_raw(), handle));
        if let Some(outgoing) = info.outgoing_dir {
            add(HandleType::DirectoryRequest.into(), outgoing.into_channel().into_handle());
        }
        let lifecycle = self.notify.then(|| {
            let (proxy, server) = create_proxy::<flifecycle::LifecycleMarker>();
            add(HandleType::Lifecycle.into(), server.into_channel().into_handle());
            proxy
        });
        if let Some(config) = info.encoded_config {
            add(
                HandleType::ComponentConfigVmo.into(),
                config_vmo(config)
                    .map_err(|_| fcomponent::Error::ResourceUnavailable)?
                    .into_handle(),
            );
        }
        if let Some(dictionary) = info.escrowed_dictionary_handle {
            handles.push((
                HandleInfo::from(HandleType::EscrowedDictionary).as_raw(),
                dictionary.into_handle(),
            ));
        }
        for handle in info.numbered_handles.unwrap_or_default() {
            handles.push((handle.id, handle.handle));
        }
        Ok((
            Launch {
                executable: self.executable,
                args: self.args,
                environ: self.environ,
                namespace,
                handles,
            },
            lifecycle,
        ))
    }
}

fn config_vmo(config: fidl_fuchsia_mem::Data) -> Result<zx::Vmo, zx::Status> {
    match config {
        fidl_fuchsia_mem::Data::Buffer(buffer) => Ok(buffer.vmo),
        fidl_fuchsia_mem::Data::Bytes(bytes) => {
            let vmo = zx::Vmo::create(bytes.len() as u64)?;
            vmo.write(&bytes, 0)?;
            Ok(vmo)
        }
        _ => Err(zx::Status::NOT_SUPPORTED),
    }
}

struct Running {
    process: zx::Process,
    job: zx::Job,
    lifecycle: Option<flifecycle::LifecycleProxy>,
    /// The connections to its runtime directory.
    scope: ExecutionScope,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.scope.shutdown();
    }
}

/// What a program says that it leaves for its next run.
fn escrows(
    lifecycle: Option<&flifecycle::LifecycleProxy>,
) -> impl Stream<Item = flifecycle::LifecycleOnEscrowRequest> + Unpin + use<> {
    let events = lifecycle.map(flifecycle::LifecycleProxy::take_event_stream);
    // A program that has closed its end says no more.
    futures::stream::iter(events).flatten().filter_map(|event| {
        std::future::ready(match event {
            Ok(flifecycle::LifecycleEvent::OnEscrow { payload }) => Some(payload),
            Err(_) => None,
        })
    })
}

/// The next of them; for ever pending when the program says no more.
async fn next_escrow(
    escrows: &mut (impl Stream<Item = flifecycle::LifecycleOnEscrowRequest> + Unpin),
) -> flifecycle::LifecycleOnEscrowRequest {
    match escrows.next().await {
        Some(payload) => payload,
        None => std::future::pending().await,
    }
}

/// Passes it on to the component manager.
fn escrow(
    control: &fcrunner::ComponentControllerControlHandle,
    payload: flifecycle::LifecycleOnEscrowRequest,
) {
    let payload = fcrunner::ComponentControllerOnEscrowRequest {
        outgoing_dir: payload.outgoing_dir,
        escrowed_dictionary_handle: payload.escrowed_dictionary_handle,
        ..Default::default()
    };
    // A component manager that is gone keeps nothing.
    let _gone = control.send_on_escrow(payload);
}

/// What happened next.
enum Step {
    Exited,
    Asked(fcrunner::ComponentControllerRequest),
    /// The process leaves things for its next run.
    Escrowed(flifecycle::LifecycleOnEscrowRequest),
    /// The component manager has dropped its end: the component has no owner.
    Abandoned,
}

impl Running {
    /// Serves the controller until the process has ended.
    async fn control(mut self, controller: ServerEnd<fcrunner::ComponentControllerMarker>) {
        let mut requests = controller.into_stream();
        let control = requests.control_handle();
        self.publish(&control);
        let mut escrows = escrows(self.lifecycle.as_ref());
        let mut asked = false;
        loop {
            let step = {
                let exited = fasync::OnSignals::new(&self.process, zx::Signals::PROCESS_TERMINATED);
                let escrowed = pin!(next_escrow(&mut escrows));
                let told = select(escrowed, requests.next());
                match select(exited, told).await {
                    Either::Left(_) => Step::Exited,
                    Either::Right((Either::Left((payload, _)), _)) => Step::Escrowed(payload),
                    Either::Right((Either::Right((Some(Ok(request)), _)), _)) => {
                        Step::Asked(request)
                    }
                    Either::Right((Either::Right((Some(Err(_)) | None, _)), _)) => Step::Abandoned,
                }
            };
            match step {
                Step::Exited => break,
                Step::Escrowed(payload) => escrow(&control, payload),
                Step::Asked(fcrunner::ComponentControllerRequest::Stop { .. }) => {
                    asked = true;
                    let told =
                        self.lifecycle.as_ref().is_some_and(|lifecycle| lifecycle.stop().is_ok());
                    if !told {
                        self.kill();
                    }
                }
                Step::Asked(fcrunner::ComponentControllerRequest::Kill { .. }) => {
                    asked = true;
                    self.kill();
                }
                // A newer method, of an open protocol.
                Step::Asked(_) => {}
                Step::Abandoned => {
                    self.kill();
                    return;
                }
            }
        }
        // What it said last is still in its channel.
        while let Some(Some(payload)) = escrows.next().now_or_never() {
            escrow(&control, payload);
        }
        self.kill();
        let code = self.process.info().ok().map(|info| info.return_code);
        let status = match code {
            // As told, or by itself and content.
            _ if asked => zx::Status::OK,
            Some(0) => zx::Status::OK,
            _ => {
                zx::Status::from_raw(fcomponent::Error::InstanceDied.into_primitive().cast_signed())
            }
        };
        let payload = fcrunner::ComponentStopInfo {
            termination_status: Some(status.into_raw()),
            exit_code: code,
            ..Default::default()
        };
        // A component manager that is gone needs no telling.
        let _gone = control.send_on_stop(&payload);
        control.shutdown_with_epitaph(status);
    }

    /// Shows the arguments and the koids of process and job: `args/<n>`, `elf/process_id`, `elf/job_id`.
    fn serve_runtime(&self, args: &[String], server: ServerEnd<fio::DirectoryMarker>) {
        let (root, numbered, elf) =
            (vfs::directory::simple(), vfs::directory::simple(), vfs::directory::simple());
        let koid = |koid: Result<zx::Koid, zx::Status>| {
            koid.map_or_else(|_| String::new(), |koid| koid.raw_koid().to_string())
        };
        let ids =
            [("process_id", koid(self.process.get_koid())), ("job_id", koid(self.job.get_koid()))];
        // The names are valid and different, so that none is refused.
        for (index, argument) in args.iter().enumerate() {
            let _added =
                numbered.add_entry(index.to_string(), vfs::file::read_only(argument.as_bytes()));
        }
        for (name, id) in ids {
            let _added = elf.add_entry(name, vfs::file::read_only(id));
        }
        let _added = root.add_entry("args", vfs::directory::entry(numbered, fio::INO_UNKNOWN));
        let _added = root.add_entry("elf", vfs::directory::entry(elf, fio::INO_UNKNOWN));
        vfs::directory::serve(root, &self.scope, fio::R_STAR_DIR, server);
    }

    /// Ends the process and whatever it has made.
    fn kill(&mut self) {
        let _ended = self.job.kill();
        let _ended = self.process.kill();
    }

    fn publish(&self, control: &fcrunner::ComponentControllerControlHandle) {
        let Ok(job) = self.job.duplicate_handle(zx::Rights::SAME_RIGHTS) else { return };
        let tasks = fdiagnostics::ComponentTasks {
            component_task: Some(fdiagnostics::Task::Job(job)),
            ..Default::default()
        };
        let payload =
            fdiagnostics::ComponentDiagnostics { tasks: Some(tasks), ..Default::default() };
        let _gone = control.send_on_publish_diagnostics(payload);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decl::{ComponentDecl, ProgramDecl, ProgramValue};
    use crate::runner::start_info;
    use fidl::endpoints::create_endpoints;

    /// A program of this machine, as if `/` were a package.
    fn resolved(binary: &str) -> Resolved {
        let info = [("binary".to_owned(), ProgramValue::Str(binary.to_owned()))].into();
        let program = ProgramDecl { runner: "elf".parse().ok(), info };
        Resolved {
            url: "fuchsia-pkg://fuchsia.com/test#meta/test.cm".parse().unwrap(),
            decl: ComponentDecl { program: Some(program), ..Default::default() },
            package: Package::Directory("/".into()),
        }
    }

    fn info_of(resolved: &Resolved) -> (fcrunner::ComponentStartInfo, fio::DirectoryProxy) {
        let (_, outgoing) = create_endpoints::<fio::DirectoryMarker>();
        let (runtime, server) = create_proxy::<fio::DirectoryMarker>();
        let logs = crate::log::LogStore::default();
        (
            start_info(resolved, Vec::new(), outgoing, server, Vec::new(), &Moniker::root(), &logs),
            runtime,
        )
    }

    async fn end(
        events: &mut fcrunner::ComponentControllerEventStream,
    ) -> fcrunner::ComponentStopInfo {
        loop {
            if let fcrunner::ComponentControllerEvent::OnStop { payload } =
                events.next().await.unwrap().unwrap()
            {
                return payload;
            }
        }
    }

    #[fuchsia_async::run_singlethreaded(test)]
    async fn a_debugger_holds_the_start_back() {
        let resolved = resolved("bin/true");
        let (mut info, _runtime) = info_of(&resolved);
        let (held, theirs) = zx::EventPair::create();
        info.break_on_start = Some(theirs);
        let (controller, server) = create_proxy::<fcrunner::ComponentControllerMarker>();
        Elf.start(&Moniker::root(), &resolved, info, server);
        let mut events = controller.take_event_stream();
        let waiting = futures::FutureExt::now_or_never(events.next());
        assert!(waiting.is_none());
        drop(held);
        assert_eq!(end(&mut events).await.exit_code, Some(0));
    }

    #[fuchsia_async::run_singlethreaded(test)]
    async fn the_runtime_directory_tells_the_arguments() {
        let resolved = resolved("bin/cat");
        let (info, runtime) = info_of(&resolved);
        let (controller, server) = create_proxy::<fcrunner::ComponentControllerMarker>();
        Elf.start(&Moniker::root(), &resolved, info, server);
        for (path, expected) in [("args/0", Some("bin/cat")), ("elf/process_id", None)] {
            let (file, server) = create_proxy::<fio::FileMarker>();
            let flags = fio::Flags::PROTOCOL_FILE | fio::Flags::PERM_READ_BYTES;
            runtime.open(path, flags, &fio::Options::default(), server.into_channel()).unwrap();
            // The program may have ended, and its directory with it, before the answer.
            if let Ok(Ok(bytes)) = file.read(100).await {
                assert!(expected.is_none_or(|expected| bytes == expected.as_bytes()), "{path}");
                assert!(!bytes.is_empty());
            }
        }
        // A kill in passing: whether it came before the end or after, the program was told.
        controller.kill().unwrap();
        let ended = end(&mut controller.take_event_stream()).await;
        assert_eq!(ended.termination_status, Some(0));
    }
}
