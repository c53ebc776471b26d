//! A component that serves `GuestLifecycle` and `Guest` without a guest: its serial socket tells the process id, and its console
//! echoes, so that a test can tell runs apart and send handles both ways.

use fidl_fuchsia_process_lifecycle as flifecycle;
use fidl_fuchsia_virtualization as fvirtualization;
use fuchsia_async as fasync;
use fuchsia_component::server::ServiceFs;
use fuchsia_zircon as zx;
use fuchsia_zircon::processargs::{HandleType, take_startup_handle};
use futures::{AsyncReadExt, AsyncWriteExt, StreamExt};

pub(crate) async fn run() -> anyhow::Result<()> {
    println!("INFO echo runs");
    if let Some(handle) = take_startup_handle(HandleType::Lifecycle.into()) {
        let mut stream =
            fidl::endpoints::ServerEnd::<flifecycle::LifecycleMarker>::new(handle.into())
                .into_stream();
        fasync::Task::local(async move {
            if let Some(Ok(flifecycle::LifecycleRequest::Stop { .. })) = stream.next().await {
                println!("INFO echo was asked to stop");
                std::process::exit(0);
            }
        })
        .detach();
    }
    let mut fs = ServiceFs::new_local();
    fs.dir("svc").add_fidl_service(|stream: fvirtualization::GuestLifecycleRequestStream| stream);
    fs.take_and_serve_directory_handle()?;
    while let Some(stream) = fs.next().await {
        fasync::Task::local(serve_lifecycle(stream)).detach();
    }
    Ok(())
}

async fn serve_lifecycle(mut stream: fvirtualization::GuestLifecycleRequestStream) {
    while let Some(Ok(request)) = stream.next().await {
        match request {
            fvirtualization::GuestLifecycleRequest::Bind { guest, .. } => {
                fasync::Task::local(serve_guest(guest.into_stream())).detach();
            }
            fvirtualization::GuestLifecycleRequest::Stop { responder } => {
                let _gone = responder.send();
                std::process::exit(0);
            }
            _ => return,
        }
    }
}

async fn serve_guest(mut stream: fvirtualization::GuestRequestStream) {
    while let Some(Ok(request)) = stream.next().await {
        let (ours, theirs) = zx::Socket::create_stream();
        let sent = match request {
            fvirtualization::GuestRequest::GetSerial { responder } => {
                let text = std::process::id().to_string();
                if ours.write(text.as_bytes()).is_err() {
                    return;
                }
                responder.send(theirs)
            }
            fvirtualization::GuestRequest::GetConsole { responder } => {
                fasync::Task::local(echo(ours)).detach();
                responder.send(Ok(theirs))
            }
            _ => return,
        };
        if sent.is_err() {
            return;
        }
    }
}

async fn echo(socket: zx::Socket) {
    let mut socket = fasync::Socket::from_socket(socket);
    let mut buffer = [0; 256];
    while let Ok(length @ 1..) = socket.read(&mut buffer).await {
        if socket.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}
