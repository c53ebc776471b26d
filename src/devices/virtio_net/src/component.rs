//! `fuchsia.virtualization.hardware.VirtioNet`.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, bail};
use fidl_fuchsia_net::IpAddress;
use fidl_fuchsia_virtualization::{NetForward, NetForwardProtocol};
use fidl_fuchsia_virtualization_hardware::{VirtioNetRequest, VirtioNetRequestStream};
use fuchsia_zircon as zx;
use futures::TryStreamExt as _;
use virtio_device::{Attachment, QueueSet, Worker};

use crate::device::{NetDevice, QUEUES, RX};
use crate::stack::{Forward, Transport};

/// Runs the component: one device, until its client leaves.
///
/// # Errors
/// When the component was started without an outgoing directory, or the client does not keep to the protocol.
pub async fn run() -> anyhow::Result<()> {
    virtio_device::serve_one(serve).await?.unwrap_or(Ok(()))
}

pub(crate) async fn serve(mut requests: VirtioNetRequestStream) -> anyhow::Result<()> {
    let Some(VirtioNetRequest::Start { start_info, mac_address, enable_bridge, responder }) =
        requests.try_next().await?
    else {
        bail!("Start was not the first request");
    };
    if enable_bridge {
        tracing::info!("There is no bridge to the host's interfaces; the guest's network is NAT");
    }
    let device = match NetDevice::new(mac_address.octets) {
        Ok(device) => device,
        Err(e) => {
            responder.send(Err(zx::Status::NO_RESOURCES.into_raw()))?;
            return Err(e).context("The host's sockets cannot be polled");
        }
    };
    let started = Attachment::new(start_info).and_then(|info| info.start(vec![device], QUEUES));
    let mut worker = match started {
        Ok(worker) => worker,
        Err(e) => {
            responder.send(Err(e.status().into_raw()))?;
            return Err(e.into());
        }
    };
    responder.send(Ok(())).context("Start could not be answered")?;
    while let Some(request) = requests.try_next().await? {
        virtio_device::answer!(worker, request, VirtioNetRequest, {
            VirtioNetRequest::Start { .. } => bail!("Start came twice"),
            VirtioNetRequest::Forward { forward, responder } => {
                responder.send(listen(&worker, &forward).map_err(zx::Status::into_raw))
            },
        })?;
    }
    Ok(())
}

/// Adds a forward.
fn listen(worker: &Worker<NetDevice>, forward: &NetForward) -> Result<(), zx::Status> {
    let ip = match &forward.host_address {
        IpAddress::Ipv4(ip) => IpAddr::from(ip.addr),
        IpAddress::Ipv6(ip) => IpAddr::from(ip.addr),
    };
    let transport = match forward.protocol {
        NetForwardProtocol::Tcp => Transport::Tcp,
        NetForwardProtocol::Udp => Transport::Udp,
    };
    let host = SocketAddr::new(ip, forward.host_port);
    let forward = Forward { transport, host, guest_port: forward.guest_port };
    let result = worker.with_device(|device, _| (device.forward(&forward), QueueSet::of(RX)));
    match result {
        Ok(address) => {
            tracing::info!("{transport} {address} is the guest's port {}", forward.guest_port);
            Ok(())
        }
        Err(e) => {
            tracing::error!("{transport} {host} cannot be forwarded to the guest: {e}");
            Err(e.kind().into())
        }
    }
}
