//! The `Guest` protocol: the ends of a machine's devices that belong to the host.

use super::devices::balloon_config;
use crate::virtio_pci::VirtioPciDevice;
use fidl::endpoints::ServerEnd;
use fidl_fuchsia_virtualization::{
    BalloonControllerMarker, BalloonControllerRequest, BalloonControllerRequestStream, GuestError,
    GuestRequest, GuestRequestStream, HostVsockEndpointMarker,
};
use fidl_fuchsia_virtualization_hardware::VirtioBalloonProxy;
use fuchsia_async as fasync;
use fuchsia_zircon::{self as zx, HandleBased};
use futures::TryStreamExt as _;
use std::rc::Rc;
use std::sync::Arc;

/// The balloon.
pub(super) struct Balloon {
    pub(super) device: Arc<VirtioPciDevice>,
    pub(super) proxy: VirtioBalloonProxy,
}

/// Refuses clients of a device whose component is gone.
pub(super) fn alive(device: &VirtioPciDevice) -> Result<(), GuestError> {
    if device.is_dead() {
        tracing::error!(device = device.name(), "The device failed; it takes no clients any more");
        return Err(GuestError::FailedServiceConnect);
    }
    Ok(())
}

/// Connects a client to the vsock component.
pub(super) type ConnectVsock =
    Box<dyn Fn(ServerEnd<HostVsockEndpointMarker>) -> Result<(), GuestError>>;

/// What a machine's `Guest` clients can have.
pub(super) struct GuestServices {
    pub(super) serial: zx::Socket,
    pub(super) console: Option<zx::Socket>,
    pub(super) balloon: Option<Rc<Balloon>>,
    pub(super) vsock: Option<ConnectVsock>,
}

fn duplicate(socket: &zx::Socket) -> Result<zx::Socket, GuestError> {
    socket.duplicate_handle(zx::Rights::SAME_RIGHTS).map_err(|status| {
        tracing::error!(%status, "Could not duplicate a socket");
        GuestError::InternalError
    })
}

/// Serves a client of `Guest` until it is gone.
pub(super) async fn serve(services: Rc<GuestServices>, mut requests: GuestRequestStream) {
    loop {
        let request = match requests.try_next().await {
            Ok(Some(request)) => request,
            Ok(None) => return,
            Err(error) => {
                tracing::warn!(%error, "A Guest client broke the protocol");
                return;
            }
        };
        if let Err(error) = answer(&services, request) {
            // The client is gone, or does not take answers any more.
            tracing::debug!(%error, "Answering a Guest client");
            return;
        }
    }
}

fn answer(services: &GuestServices, request: GuestRequest) -> Result<(), fidl::Error> {
    match request {
        GuestRequest::GetConsole { responder } => {
            let console = services.console.as_ref().ok_or(GuestError::DeviceNotPresent);
            responder.send(console.and_then(duplicate))
        }
        GuestRequest::GetSerial { responder } => match duplicate(&services.serial) {
            Ok(socket) => responder.send(socket),
            // The method has no errors; dropping the responder ends the connection.
            Err(_) => Ok(()),
        },
        GuestRequest::GetHostVsockEndpoint { endpoint, responder } => {
            let connect = services.vsock.as_ref().ok_or(GuestError::DeviceNotPresent);
            responder.send(connect.and_then(|connect| connect(endpoint)))
        }
        GuestRequest::GetBalloonController { controller, responder } => {
            let balloon = services.balloon.clone().ok_or(GuestError::DeviceNotPresent);
            let balloon = balloon.and_then(|balloon| alive(&balloon.device).map(|()| balloon));
            responder.send(balloon.map(|balloon| serve_balloon(balloon, controller)))
        }
        // There is no memory device.
        GuestRequest::GetMemController { responder, .. } => {
            responder.send(Err(GuestError::DeviceNotPresent))
        }
    }
}

/// Serves a client of the balloon, which lives as long as the machine's executor.
fn serve_balloon(balloon: Rc<Balloon>, controller: ServerEnd<BalloonControllerMarker>) {
    let requests = controller.into_stream();
    fasync::Task::local(async move {
        if let Err(error) = handle_balloon(&balloon, requests).await {
            tracing::debug!(%error, "A BalloonController client is gone");
        }
    })
    .detach();
}

async fn handle_balloon(
    balloon: &Balloon,
    mut requests: BalloonControllerRequestStream,
) -> Result<(), fidl::Error> {
    while let Some(request) = requests.try_next().await? {
        match request {
            BalloonControllerRequest::GetBalloonSize { responder } => {
                let config = balloon.device.config();
                let actual = config.u32_at(balloon_config::ACTUAL);
                responder.send(actual, config.u32_at(balloon_config::NUM_PAGES))?;
            }
            BalloonControllerRequest::RequestNumPages { requested_num_pages, .. } => {
                balloon
                    .device
                    .update_config(balloon_config::NUM_PAGES, &requested_num_pages.to_le_bytes());
            }
            BalloonControllerRequest::GetMemStats { responder } => {
                match balloon.proxy.get_mem_stats().await {
                    Ok((status, stats)) => responder.send(status, stats.as_deref())?,
                    Err(_) => responder.send(zx::Status::PEER_CLOSED.into_raw(), None)?,
                }
            }
        }
    }
    Ok(())
}
