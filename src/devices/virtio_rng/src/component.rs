//! `fuchsia.virtualization.hardware.VirtioRng`.

use anyhow::{Context as _, bail};
use fidl_fuchsia_virtualization_hardware::{VirtioRngRequest, VirtioRngRequestStream};
use futures::TryStreamExt as _;
use virtio_device::Attachment;

use crate::device::{QUEUES, RngDevice};

/// Runs the component: one device, until its client leaves.
///
/// # Errors
/// When the component was started without an outgoing directory, or the client does not keep to the protocol.
pub async fn run() -> anyhow::Result<()> {
    virtio_device::serve_one(serve).await?.unwrap_or(Ok(()))
}

pub(crate) async fn serve(mut requests: VirtioRngRequestStream) -> anyhow::Result<()> {
    let Some(VirtioRngRequest::Start { start_info, responder }) = requests.try_next().await? else {
        bail!("Start was not the first request");
    };
    let mut worker = Attachment::new(start_info)?.start(vec![RngDevice::new()], QUEUES)?;
    responder.send().context("Start could not be answered")?;
    while let Some(request) = requests.try_next().await? {
        virtio_device::answer!(worker, request, VirtioRngRequest, {
            VirtioRngRequest::Start { .. } => bail!("Start came twice"),
        })?;
    }
    Ok(())
}
