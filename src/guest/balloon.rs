//! `guest balloon`: the memory that a guest lends to the host.

use crate::args::GuestType;
use crate::outcome::{EXIT_FAILURE, EXIT_NOT_RUNNING, Outcome};
use crate::running::{self, NotRunning, Unreachable};
use fidl_fuchsia_virtualization as fvirt;
use fuchsia_zircon as zx;
use serde::Serialize;
use std::fmt;

/// The statistics that a guest can give, with their tags (virtio 1.2 §5.5.6.4).
const STATISTICS: [(u16, &str); 10] = [
    (0, "swap-in"),
    (1, "swap-out"),
    (2, "major-faults"),
    (3, "minor-faults"),
    (8, "hugetlb-allocations"),
    (9, "hugetlb-failures"),
    (4, "free-memory"),
    (5, "total-memory"),
    (6, "available-memory"),
    (7, "disk-caches"),
];

/// What a guest says of its memory; what it does not say is absent.
#[derive(Debug, Serialize, PartialEq, Eq)]
pub(crate) struct BalloonStats {
    current_pages: u32,
    requested_pages: u32,
    statistics: Vec<(String, Option<u64>)>,
}

/// What `guest balloon` comes to.
#[derive(Debug, Serialize, PartialEq, Eq)]
pub(crate) enum BalloonOutcome {
    Stats(BalloonStats),
    SetComplete(u32),
    NoBalloonDevice,
    Internal(String),
    #[serde(untagged)]
    NotRunning(NotRunning),
}

impl From<Unreachable> for BalloonOutcome {
    fn from(reason: Unreachable) -> Self {
        match reason {
            Unreachable::NotRunning(guest) => Self::NotRunning(guest),
            Unreachable::NoDevice => Self::NoBalloonDevice,
            Unreachable::Broken(reason) => Self::Internal(reason),
        }
    }
}

impl Outcome for BalloonOutcome {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Stats(_) | Self::SetComplete(_) => 0,
            Self::NotRunning(_) | Self::NoBalloonDevice => EXIT_NOT_RUNNING,
            Self::Internal(_) => EXIT_FAILURE,
        }
    }
}

impl fmt::Display for BalloonOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stats(stats) => stats.fmt(f),
            Self::SetComplete(pages) => {
                writeln!(f, "The balloon was asked to become {pages} pages large")
            }
            Self::NotRunning(guest) => writeln!(f, "{guest}"),
            Self::NoBalloonDevice => {
                writeln!(f, "The guest has no balloon; launch it with --virtio-balloon true")
            }
            Self::Internal(reason) => writeln!(f, "The balloon did not answer: {reason}"),
        }
    }
}

impl fmt::Display for BalloonStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<21}{}", "current-pages:", self.current_pages)?;
        writeln!(f, "{:<21}{}", "requested-pages:", self.requested_pages)?;
        self.statistics.iter().try_for_each(|(name, value)| {
            let name = format!("{name}:");
            match value {
                Some(value) => writeln!(f, "{name:<21}{value}"),
                None => writeln!(f, "{name:<21}UNKNOWN"),
            }
        })
    }
}

async fn connect(
    guest: GuestType,
    manager: &fvirt::GuestManagerProxy,
) -> Result<fvirt::BalloonControllerProxy, Unreachable> {
    let connected = running::connect::<fvirt::BalloonControllerMarker>(
        guest,
        manager,
        async |guest, server| guest.get_balloon_controller(server).await,
    );
    Ok(connected.await?.1)
}

/// Asks for a size.
pub(crate) async fn set(
    guest: GuestType,
    manager: &fvirt::GuestManagerProxy,
    pages: u32,
) -> BalloonOutcome {
    match connect(guest, manager).await {
        Ok(balloon) => match balloon.request_num_pages(pages) {
            Ok(()) => BalloonOutcome::SetComplete(pages),
            Err(e) => BalloonOutcome::Internal(e.to_string()),
        },
        Err(reason) => reason.into(),
    }
}

/// Reads size and statistics.
pub(crate) async fn stats(guest: GuestType, manager: &fvirt::GuestManagerProxy) -> BalloonOutcome {
    match connect(guest, manager).await {
        Ok(balloon) => read(&balloon).await.unwrap_or_else(BalloonOutcome::Internal),
        Err(reason) => reason.into(),
    }
}

async fn read(balloon: &fvirt::BalloonControllerProxy) -> Result<BalloonOutcome, String> {
    let (current_pages, requested_pages) =
        balloon.get_balloon_size().await.map_err(|e| e.to_string())?;
    let (status, stats) = balloon.get_mem_stats().await.map_err(|e| e.to_string())?;
    zx::ok(status).map_err(|status| format!("no memory statistics: {status}"))?;
    let stats = stats.unwrap_or_default();
    let value = |tag| stats.iter().find(|stat| stat.tag == tag).map(|stat| stat.val);
    let statistics = STATISTICS.map(|(tag, name)| (name.to_owned(), value(tag))).into();
    Ok(BalloonOutcome::Stats(BalloonStats { current_pages, requested_pages, statistics }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_statistics_are_unknown() {
        let stats = BalloonOutcome::Stats(BalloonStats {
            current_pages: 3,
            requested_pages: 4,
            statistics: vec![("swap-in".to_owned(), Some(9)), ("swap-out".to_owned(), None)],
        });
        let text = stats.to_string();
        assert!(text.contains("swap-in:             9\n"), "{text}");
        assert!(text.contains("swap-out:            UNKNOWN\n"), "{text}");
        assert_eq!(stats.exit_code(), 0);
    }

    #[test]
    fn outcomes_are_tagged_in_json() {
        let json = serde_json::to_string(&BalloonOutcome::SetComplete(5)).unwrap();
        assert_eq!(json, r#"{"SetComplete":5}"#);
        let stopped = BalloonOutcome::NotRunning(NotRunning(GuestType::Debian));
        assert_eq!(serde_json::to_string(&stopped).unwrap(), r#""NotRunning""#);
    }
}
