//! A component that runs others: a small `ComponentRunner` of processes.

use fidl::endpoints::{ControlHandle, RequestStream, ServerEnd};
use fidl_fuchsia_component_runner as fcrunner;
use fidl_fuchsia_data as fdata;
use fidl_fuchsia_io as fio;
use fuchsia_async as fasync;
use fuchsia_component::server::ServiceFs;
use fuchsia_zircon::processargs::HandleType;
use fuchsia_zircon::{self as zx, HandleBased, ProcessBuilder, Task};
use futures::StreamExt;
use futures::future::{Either, select};

pub(crate) async fn run() -> anyhow::Result<()> {
    let mut fs = ServiceFs::new_local();
    fs.dir("svc").add_fidl_service(|stream: fcrunner::ComponentRunnerRequestStream| stream);
    fs.take_and_serve_directory_handle()?;
    while let Some(mut stream) = fs.next().await {
        fasync::Task::local(async move {
            while let Some(Ok(fcrunner::ComponentRunnerRequest::Start {
                start_info,
                controller,
                ..
            })) = stream.next().await
            {
                fasync::Task::local(start(start_info, controller)).detach();
            }
        })
        .detach();
    }
    Ok(())
}

async fn start(
    info: fcrunner::ComponentStartInfo,
    controller: ServerEnd<fcrunner::ComponentControllerMarker>,
) {
    match make_process(info).await {
        Ok((process, job)) => control(&process, &job, controller).await,
        Err(status) => {
            let _gone = controller.close_with_epitaph(status);
        }
    }
}

fn binary(info: &fcrunner::ComponentStartInfo) -> Option<String> {
    let entries = info.program.as_ref()?.entries.as_ref()?;
    match entries.iter().find(|entry| entry.key == "binary")?.value.as_deref()? {
        fdata::DictionaryValue::Str(path) => Some(path.clone()),
        _ => None,
    }
}

async fn make_process(
    info: fcrunner::ComponentStartInfo,
) -> Result<(zx::Process, zx::Job), zx::Status> {
    let binary = binary(&info).ok_or(zx::Status::INVALID_ARGS)?;
    let mut namespace = Vec::new();
    let mut executable = None;
    for entry in info.ns.unwrap_or_default() {
        let (Some(path), Some(directory)) = (entry.path, entry.directory) else { continue };
        if path == "/pkg" {
            let package = directory.into_proxy();
            let flags = fio::PERM_READABLE | fio::PERM_EXECUTABLE;
            let (file, server) = fidl::endpoints::create_proxy::<fio::FileMarker>();
            package
                .open(
                    &binary,
                    flags & fio::Flags::from_bits_truncate(0x1f) | fio::Flags::PROTOCOL_FILE,
                    &fio::Options::default(),
                    server.into_channel(),
                )
                .map_err(|_| zx::Status::PEER_CLOSED)?;
            let memory =
                file.get_backing_memory(fio::VmoFlags::READ | fio::VmoFlags::EXECUTE).await;
            let memory = memory.map_err(|error| match error {
                fidl::Error::ClientChannelClosed { status, .. } => status,
                _ => zx::Status::INTERNAL,
            })?;
            executable = Some(memory.map_err(zx::Status::from_raw)?);
        } else {
            namespace.push((path, directory));
        }
    }
    let job = zx::Job::default_job().create_child_job()?;
    let mut builder = ProcessBuilder::new(&binary, &job, executable.ok_or(zx::Status::NOT_FOUND)?);
    builder.add_argument(&binary);
    for (path, directory) in namespace {
        builder.add_namespace_entry(&path, directory.into_channel());
    }
    if let Some(outgoing) = info.outgoing_dir {
        builder
            .add_handle(HandleType::DirectoryRequest.into(), outgoing.into_channel().into_handle());
    }
    for handle in info.numbered_handles.unwrap_or_default() {
        builder.add_raw_handle(handle.id, handle.handle);
    }
    Ok((builder.spawn()?, job))
}

async fn control(
    process: &zx::Process,
    job: &zx::Job,
    controller: ServerEnd<fcrunner::ComponentControllerMarker>,
) {
    let mut requests = controller.into_stream();
    let control = requests.control_handle();
    let mut asked = false;
    loop {
        let exited = fasync::OnSignals::new(process, zx::Signals::PROCESS_TERMINATED);
        match select(exited, requests.next()).await {
            Either::Left(_) => break,
            Either::Right((Some(Ok(_)), _)) => {
                asked = true;
                let _ended = job.kill();
            }
            Either::Right((_, _)) => {
                let _ended = job.kill();
                return;
            }
        }
    }
    let clean = asked || process.info().is_ok_and(|info| info.return_code == 0);
    // fuchsia.component/Error.INSTANCE_DIED, in the older way: the epitaph alone.
    control.shutdown_with_epitaph(if clean { zx::Status::OK } else { zx::Status::from_raw(11) });
}
