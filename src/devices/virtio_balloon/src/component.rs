//! `fuchsia.virtualization.hardware.VirtioBalloon`.

use anyhow::{Context as _, bail};
use fidl_fuchsia_virtualization::MemStat;
use fidl_fuchsia_virtualization_hardware::{
    VirtioBalloonGetMemStatsResponder, VirtioBalloonRequest, VirtioBalloonRequestStream,
};
use fuchsia_async::{self as fasync, TimeoutExt as _};
use fuchsia_zircon as zx;
use futures::channel::oneshot;
use futures::{FutureExt as _, TryStreamExt as _};
use virtio_device::{Attachment, QueueSet, Worker};

use crate::device::{BalloonDevice, QUEUES, Stat, StatsError};

/// How long a driver may take to answer with statistics, in seconds. One that runs at all needs milliseconds.
const STATS_TIMEOUT: i64 = 5;

/// Runs the component: one device, until its client leaves.
///
/// # Errors
/// When the component was started without an outgoing directory, or the client does not keep to the protocol.
pub async fn run() -> anyhow::Result<()> {
    virtio_device::serve_one(serve).await?.unwrap_or(Ok(()))
}

pub(crate) async fn serve(mut requests: VirtioBalloonRequestStream) -> anyhow::Result<()> {
    let Some(VirtioBalloonRequest::Start { start_info, responder }) = requests.try_next().await?
    else {
        bail!("Start was not the first request");
    };
    let mut worker = Attachment::new(start_info)?.start(vec![BalloonDevice::new()], QUEUES)?;
    responder.send().context("Start could not be answered")?;
    while let Some(request) = requests.try_next().await? {
        virtio_device::answer!(worker, request, VirtioBalloonRequest, {
            VirtioBalloonRequest::GetMemStats { responder } => get_mem_stats(&worker, responder),
            VirtioBalloonRequest::Start { .. } => bail!("Start came twice"),
        })?;
    }
    Ok(())
}

/// Asks the driver for statistics and answers when they come, without holding up other requests.
fn get_mem_stats(
    worker: &Worker<BalloonDevice>,
    responder: VirtioBalloonGetMemStatsResponder,
) -> Result<(), fidl::Error> {
    let asked = worker.with_device(|device, io| (device.request_stats(io), QueueSet::EMPTY));
    match asked {
        Ok(stats) => {
            fasync::Task::local(answer_stats(stats, responder)).detach();
            Ok(())
        }
        Err(error @ StatsError::NotNegotiated) => {
            refuse(responder, zx::Status::NOT_SUPPORTED, &error)
        }
        Err(error @ StatsError::NotReady) => refuse(responder, zx::Status::SHOULD_WAIT, &error),
    }
}

fn refuse(
    responder: VirtioBalloonGetMemStatsResponder,
    status: zx::Status,
    error: &StatsError,
) -> Result<(), fidl::Error> {
    tracing::info!(%error, "There are no memory statistics");
    responder.send(status.into_raw(), None)
}

async fn answer_stats(
    stats: oneshot::Receiver<Vec<Stat>>,
    responder: VirtioBalloonGetMemStatsResponder,
) {
    let deadline = zx::Time::after(zx::Duration::from_seconds(STATS_TIMEOUT));
    let result = stats
        .map(|stats| stats.map_err(|oneshot::Canceled| zx::Status::UNAVAILABLE))
        .on_timeout(deadline, || Err(zx::Status::TIMED_OUT))
        .await;
    let sent = match result {
        Ok(stats) => {
            let stats: Vec<_> = stats
                .iter()
                .map(|stat| MemStat { tag: stat.tag.get(), val: stat.value.get() })
                .collect();
            responder.send(zx::Status::OK.into_raw(), Some(&stats))
        }
        Err(status) => responder.send(status.into_raw(), None),
    };
    if let Err(error) = sent {
        tracing::warn!(%error, "Memory statistics could not be sent");
    }
}
