//! The balloon follows the host's memory pressure: inflated when memory is short, deflated when it is not.

use crate::environment::Environment;
use anyhow::Context as _;
use fidl::endpoints::{create_proxy, create_request_stream};
use fidl_fuchsia_memorypressure as fpressure;
use fidl_fuchsia_virtualization as fvirt;
use fuchsia_async as fasync;
use fuchsia_zircon as zx;
use futures::future::{Either, select};
use futures::{StreamExt as _, pin_mut};
use std::cell::Cell;
use tracing::warn;

/// The statistic that says how much memory the guest could give up without swapping (virtio 1.2 §5.5.6.4).
const VIRTIO_BALLOON_S_AVAIL: u16 = 6;
/// The unit of the balloon, whatever the host's pages are (virtio 1.2 §5.5.2).
const BALLOON_PAGE: u64 = 4096;
/// How much of what the guest could give up is asked for, in per cent.
const INFLATE_PERCENT: u64 = 90;

/// How long the balloon is left alone after it was inflated.
#[derive(Debug, Copy, Clone)]
struct Waits {
    /// Before it is deflated: an inflation takes the guest a while.
    deflate: zx::Duration,
    /// Before it is inflated again, so that a level that flutters does not keep the guest busy.
    inflate: zx::Duration,
}

const WAITS: Waits =
    Waits { deflate: zx::Duration::from_seconds(1), inflate: zx::Duration::from_seconds(60) };

#[derive(Debug, Copy, Clone, PartialEq, Eq)]
enum Target {
    Inflated,
    Deflated,
}

impl From<fpressure::Level> for Target {
    fn from(level: fpressure::Level) -> Self {
        match level {
            fpressure::Level::Normal => Self::Deflated,
            fpressure::Level::Warning | fpressure::Level::Critical => Self::Inflated,
        }
    }
}

/// When the balloon is to become what.
#[derive(Debug)]
struct Schedule {
    waits: Waits,
    target: Target,
    last_inflation: Option<zx::Time>,
    due: Option<zx::Time>,
}

impl Schedule {
    fn new(waits: Waits) -> Self {
        Self { waits, target: Target::Deflated, last_inflation: None, due: None }
    }

    /// Takes note of a level. An update that is due already serves the newest target.
    fn level(&mut self, level: fpressure::Level, now: zx::Time) {
        let target = Target::from(level);
        if target == self.target {
            return;
        }
        self.target = target;
        let wait = match target {
            Target::Inflated => self.waits.inflate,
            Target::Deflated => self.waits.deflate,
        };
        let earliest = self.last_inflation.map_or(now, |last| last + wait);
        self.due.get_or_insert(earliest.max(now));
    }

    /// What is to be done now.
    fn update(&mut self, now: zx::Time) -> Target {
        self.due = None;
        if self.target == Target::Inflated {
            self.last_inflation = Some(now);
        }
        self.target
    }
}

/// Follows the provider's levels for as long as the guest and the provider are there, and shows the newest in `level`.
pub(crate) async fn follow(
    environment: &impl Environment,
    level: &Cell<Option<fpressure::Level>>,
) -> anyhow::Result<()> {
    let (balloon, server) = create_proxy::<fvirt::BalloonControllerMarker>();
    environment
        .guest()?
        .get_balloon_controller(server)
        .await
        .context("The guest did not answer")?
        .map_err(|e| anyhow::anyhow!("The guest has no balloon: {e:?}"))?;
    let (client, levels) = create_request_stream::<fpressure::WatcherMarker>();
    environment.memory_pressure()?.register_watcher(client).context("No memory pressure")?;
    watch(levels, &balloon, level, WAITS).await;
    level.set(None);
    Ok(())
}

async fn watch(
    mut levels: fpressure::WatcherRequestStream,
    balloon: &fvirt::BalloonControllerProxy,
    level: &Cell<Option<fpressure::Level>>,
    waits: Waits,
) {
    let mut schedule = Schedule::new(waits);
    loop {
        let due = fasync::Timer::new(schedule.due.unwrap_or(zx::Time::INFINITE));
        let next = levels.next();
        pin_mut!(due, next);
        match select(next, due).await {
            Either::Left((Some(Ok(request)), _)) => {
                let fpressure::WatcherRequest::OnLevelChanged { level: new, responder } = request;
                level.set(Some(new));
                schedule.level(new, zx::Time::get_monotonic());
                drop(responder.send());
            }
            Either::Left((Some(Err(_)) | None, _)) => return,
            Either::Right(((), _)) => {
                let target = schedule.update(zx::Time::get_monotonic());
                if let Err(e) = resize(balloon, target).await {
                    warn!("The balloon could not be resized: {e:#}");
                }
            }
        }
    }
}

async fn resize(balloon: &fvirt::BalloonControllerProxy, target: Target) -> anyhow::Result<()> {
    let pages = match target {
        Target::Deflated => 0,
        Target::Inflated => {
            let (raw, stats) = balloon.get_mem_stats().await?;
            zx::ok(raw).context("The guest gives no memory statistics")?;
            let available = stats
                .unwrap_or_default()
                .iter()
                .find(|stat| stat.tag == VIRTIO_BALLOON_S_AVAIL)
                .map(|stat| stat.val)
                .context("The guest does not say how much memory it has available")?;
            let (current, _) = balloon.get_balloon_size().await?;
            inflated_pages(available, current)
        }
    };
    balloon.request_num_pages(pages)?;
    Ok(())
}

/// The balloon's size that leaves the guest a tenth of what it could give up.
fn inflated_pages(available: u64, current: u32) -> u32 {
    let pages = (available / BALLOON_PAGE).saturating_add(u64::from(current));
    u32::try_from(pages / 100 * INFLATE_PERCENT).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use fpressure::Level::{Critical, Normal, Warning};

    fn at(seconds: i64) -> zx::Time {
        zx::Time::from_nanos(seconds * 1_000_000_000)
    }

    #[test]
    fn the_size_counts_what_is_inflated_already_and_does_not_overflow() {
        assert_eq!(inflated_pages(1000 * 4096, 0), 900);
        assert_eq!(inflated_pages(1000 * 4096, 900), 1710);
        // More than 4 GiB available, whose bytes do not fit 32 bits.
        assert_eq!(inflated_pages(8 << 30, 0), 2_097_152 / 100 * 90);
        assert_eq!(inflated_pages(u64::MAX, u32::MAX), u32::MAX);
    }

    #[test]
    fn the_first_warning_inflates_at_once() {
        let mut schedule = Schedule::new(WAITS);
        schedule.level(Warning, at(5));
        assert_eq!(schedule.due, Some(at(5)));
        assert_eq!(schedule.update(at(5)), Target::Inflated);
        assert_eq!(schedule.due, None);
    }

    #[test]
    fn deflating_waits_a_second_after_an_inflation() {
        let mut schedule = Schedule::new(WAITS);
        schedule.level(Warning, at(5));
        schedule.update(at(5));
        schedule.level(Normal, at(5));
        assert_eq!(schedule.due, Some(at(6)));
        assert_eq!(schedule.update(at(6)), Target::Deflated);
    }

    #[test]
    fn inflating_again_waits_a_minute() {
        let mut schedule = Schedule::new(WAITS);
        schedule.level(Warning, at(5));
        schedule.update(at(5));
        schedule.level(Normal, at(20));
        assert_eq!(schedule.due, Some(at(20)));
        schedule.update(at(20));
        schedule.level(Critical, at(30));
        assert_eq!(schedule.due, Some(at(65)));
    }

    #[test]
    fn from_warning_to_critical_nothing_changes() {
        let mut schedule = Schedule::new(WAITS);
        schedule.level(Warning, at(5));
        schedule.update(at(5));
        schedule.level(Critical, at(6));
        assert_eq!(schedule.due, None);
    }

    #[test]
    fn a_level_that_flutters_within_the_wait_leaves_the_balloon_inflated() {
        let mut schedule = Schedule::new(WAITS);
        schedule.level(Warning, at(5));
        schedule.update(at(5));
        schedule.level(Normal, at(5));
        schedule.level(Warning, at(5));
        assert_eq!(schedule.due, Some(at(6)));
        assert_eq!(schedule.update(at(6)), Target::Inflated);
    }
}
