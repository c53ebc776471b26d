//! The ELF runner: a process for each component, in a job of its own.
//!
//! The program section says `binary` (a path in `/pkg`), `args`, `environ` and `lifecycle.stop_event`. With `notify` the process gets
//! `PA_LIFECYCLE` and is asked to stop; without, Stop kills it.

use super::{Runner, strings};
use crate::moniker::Moniker;
use crate::process::{self, Launch};
use crate::resolver::{Package, Resolved};
use fidl::endpoints::{ControlHandle, RequestStream, ServerEnd, create_proxy};
use fidl_fuchsia_component as fcomponent;
use fidl_fuchsia_component_runner as fcrunner;
use fidl_fuchsia_diagnostics_types as fdiagnostics;
use fidl_fuchsia_process_lifecycle as flifecycle;
use fuchsia_async as fasync;
use fuchsia_zircon::processargs::{HandleInfo, HandleType};
use fuchsia_zircon::{self as zx, HandleBased, Task};
use futures::StreamExt;
use futures::future::{Either, select};
use std::path::PathBuf;

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
        let started = Program::read(resolved, &info).and_then(|program| {
            let (launch, lifecycle) = program.launch(info)?;
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
            Ok(Running { process, job, lifecycle })
        });
        match started {
            Ok(running) => fasync::Task::local(running.control(controller)).detach(),
            Err(error) => {
                let status =
                    zx::Status::from_raw(i32::try_from(error.into_primitive()).unwrap_or(i32::MAX));
                // A component manager that is gone needs no telling.
                let _gone = controller.close_with_epitaph(status);
            }
        }
    }
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
}

/// What happened next.
enum Step {
    Exited,
    Asked(fcrunner::ComponentControllerRequest),
    /// The component manager has dropped its end: the component has no owner.
    Abandoned,
}

impl Running {
    /// Serves the controller until the process has ended.
    async fn control(mut self, controller: ServerEnd<fcrunner::ComponentControllerMarker>) {
        let mut requests = controller.into_stream();
        let control = requests.control_handle();
        self.publish(&control);
        let mut asked = false;
        loop {
            let step = {
                let exited = fasync::OnSignals::new(&self.process, zx::Signals::PROCESS_TERMINATED);
                match select(exited, requests.next()).await {
                    Either::Left(_) => Step::Exited,
                    Either::Right((Some(Ok(request)), _)) => Step::Asked(request),
                    Either::Right((Some(Err(_)) | None, _)) => Step::Abandoned,
                }
            };
            match step {
                Step::Exited => break,
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
