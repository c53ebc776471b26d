//! `fuchsia.virtualization.hardware.VirtioVsock` and `fuchsia.virtualization.HostVsockEndpoint`.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use anyhow::{Context as _, bail};
use fidl::endpoints::{ClientEnd, Proxy as _};
use fidl_fuchsia_virtualization::{
    HostVsockAcceptorMarker, HostVsockAcceptorProxy, HostVsockEndpointConnectResponder,
    HostVsockEndpointRequest, HostVsockEndpointRequestStream, Listener,
};
use fidl_fuchsia_virtualization_hardware::{VirtioVsockRequest, VirtioVsockRequestStream};
use fuchsia_async as fasync;
use fuchsia_component::server::ServiceFs;
use fuchsia_zircon as zx;
use futures::channel::{mpsc, oneshot};
use futures::future::{Either, select};
use futures::{Stream, StreamExt as _, TryStreamExt as _};
use virtio_device::{Attachment, QueueSet, Worker};

use crate::device::{AcceptRequest, QUEUES, VsockDevice};

/// A client of one of the component's protocols.
pub(crate) enum Incoming {
    /// The VMM.
    Device(VirtioVsockRequestStream),
    /// Whoever talks to the guest.
    Endpoint(HostVsockEndpointRequestStream),
}

/// Runs the component: one device, until its client leaves.
///
/// # Errors
/// When the component was started without an outgoing directory, or the client does not keep to the protocol.
pub async fn run() -> anyhow::Result<()> {
    let mut fs = ServiceFs::new_local();
    fs.dir("svc").add_fidl_service(Incoming::Device).add_fidl_service(Incoming::Endpoint);
    fs.take_and_serve_directory_handle()?;
    serve(fs).await
}

/// Serves the first client of the device, and every client of the endpoint.
pub(crate) async fn serve(
    mut incoming: impl Stream<Item = Incoming> + Unpin,
) -> anyhow::Result<()> {
    let host = Rc::new(Host::default());
    let device = loop {
        match incoming.next().await {
            None => return Ok(()),
            Some(Incoming::Device(stream)) => break stream,
            Some(Incoming::Endpoint(stream)) => host.clone().spawn_endpoint(stream),
        }
    };
    let endpoints = incoming.for_each(|client| {
        // A component is one device: further clients of it are turned away, by closing their channels.
        if let Incoming::Endpoint(stream) = client {
            host.clone().spawn_endpoint(stream);
        }
        futures::future::ready(())
    });
    let served = std::pin::pin!(serve_device(host.clone(), device));
    let result = match select(served, endpoints).await {
        Either::Left((result, _)) => result,
        Either::Right(((), served)) => served.await,
    };
    // Ends the worker, whoever still has the host.
    let worker = host.worker.borrow_mut().take();
    drop(worker);
    result
}

async fn serve_device(
    host: Rc<Host>,
    mut requests: VirtioVsockRequestStream,
) -> anyhow::Result<()> {
    let Some(VirtioVsockRequest::Start { start_info, guest_cid, listeners, responder }) =
        requests.try_next().await?
    else {
        bail!("Start was not the first request");
    };
    let (sender, accepts) = mpsc::unbounded();
    let device = match host.device(guest_cid, listeners, sender) {
        Ok(device) => device,
        Err(status) => {
            responder.send(Err(status.into_raw())).context("Start could not be answered")?;
            bail!("The device cannot be as Start wants it: {status}");
        }
    };
    let started =
        Attachment::new(start_info).and_then(|attached| attached.start(vec![device], QUEUES));
    let worker = match started {
        Ok(worker) => worker,
        Err(error) => {
            let status = error.status();
            responder.send(Err(status.into_raw())).context("Start could not be answered")?;
            return Err(error.into());
        }
    };
    *host.worker.borrow_mut() = Some(worker);
    let _accepting = fasync::Task::local(host.clone().accept_all(accepts));
    responder.send(Ok(())).context("Start could not be answered")?;
    while let Some(request) = requests.try_next().await? {
        let mut worker = host.worker.borrow_mut();
        let worker = worker.as_mut().context("The device is gone")?;
        virtio_device::answer!(worker, request, VirtioVsockRequest, {
            VirtioVsockRequest::Start { .. } => bail!("Start came twice"),
        })?;
    }
    Ok(())
}

/// The device as the host's clients see it.
#[derive(Default)]
struct Host {
    worker: RefCell<Option<Worker<VsockDevice>>>,
    acceptors: RefCell<HashMap<u32, HostVsockAcceptorProxy>>,
}

impl Host {
    /// The device with its first listeners, there before the guest runs.
    fn device(
        &self,
        guest_cid: u32,
        listeners: Vec<Listener>,
        accepts: mpsc::UnboundedSender<AcceptRequest>,
    ) -> Result<VsockDevice, zx::Status> {
        let mut device = VsockDevice::new(guest_cid, accepts)?;
        for Listener { port, acceptor } in listeners {
            device.listen(port)?;
            self.acceptors.borrow_mut().insert(port, acceptor.into_proxy());
        }
        Ok(device)
    }

    /// Asks acceptors, each in a task of its own: one that does not answer holds nobody else up. The device bounds
    /// their number.
    async fn accept_all(self: Rc<Self>, mut accepts: mpsc::UnboundedReceiver<AcceptRequest>) {
        while let Some(request) = accepts.next().await {
            fasync::Task::local(self.clone().accept(request)).detach();
        }
    }

    async fn accept(self: Rc<Self>, request: AcceptRequest) {
        let acceptor = self.acceptors.borrow().get(&request.port).cloned();
        let answer = match acceptor {
            None => Err(zx::Status::NOT_FOUND),
            Some(acceptor) => {
                match acceptor.accept(request.src_cid, request.src_port, request.port).await {
                    Ok(answer) => answer.map_err(zx::Status::from_raw),
                    Err(error) => {
                        tracing::debug!(%error, port = request.port, "An acceptor is gone");
                        Err(zx::Status::PEER_CLOSED)
                    }
                }
            }
        };
        if let Some(worker) = &*self.worker.borrow() {
            worker.with_device(|device, io| ((), device.accepted(request.id, answer, io)));
        }
    }

    fn spawn_endpoint(self: Rc<Self>, requests: HostVsockEndpointRequestStream) {
        fasync::Task::local(async move {
            if let Err(error) = self.serve_endpoint(requests).await {
                tracing::debug!(%error, "A client of the endpoint did not keep to the protocol");
            }
        })
        .detach();
    }

    async fn serve_endpoint(
        self: Rc<Self>,
        mut requests: HostVsockEndpointRequestStream,
    ) -> Result<(), fidl::Error> {
        while let Some(request) = requests.try_next().await? {
            match request {
                HostVsockEndpointRequest::Listen { port, acceptor, responder } => {
                    responder.send(self.listen(port, acceptor).map_err(zx::Status::into_raw))?;
                }
                HostVsockEndpointRequest::Connect { guest_port, responder } => {
                    self.connect(guest_port, responder);
                }
            }
        }
        Ok(())
    }

    /// Takes a port. One whose acceptor is gone can be taken again.
    fn listen(
        &self,
        port: u32,
        acceptor: ClientEnd<HostVsockAcceptorMarker>,
    ) -> Result<(), zx::Status> {
        let worker = self.worker.borrow();
        let worker = worker.as_ref().ok_or(zx::Status::BAD_STATE)?;
        let mut acceptors = self.acceptors.borrow_mut();
        if !acceptors.get(&port).is_some_and(HostVsockAcceptorProxy::is_closed) {
            worker.with_device(|device, _| (device.listen(port), QueueSet::EMPTY))?;
        }
        acceptors.insert(port, acceptor.into_proxy());
        Ok(())
    }

    /// Connects, and answers when the guest does.
    fn connect(&self, guest_port: u32, responder: HostVsockEndpointConnectResponder) {
        let (client, answer) = oneshot::channel();
        if let Some(worker) = &*self.worker.borrow() {
            worker.with_device(|device, _| ((), device.connect(guest_port, client)));
        } else {
            // Dropped with the sender: answered below.
            drop(client);
        }
        fasync::Task::local(async move {
            let answer = answer.await.unwrap_or(Err(zx::Status::BAD_STATE));
            if let Err(error) = responder.send(answer.map_err(zx::Status::into_raw)) {
                tracing::debug!(%error, "A client did not wait for its connection");
            }
        })
        .detach();
    }
}
