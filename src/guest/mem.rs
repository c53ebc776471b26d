//! `guest mem`: memory that is plugged into a running guest.

use crate::args::GuestType;
use crate::outcome::{EXIT_FAILURE, EXIT_NOT_RUNNING, Outcome};
use crate::running::{self, NotRunning, Unreachable};
use fidl_fuchsia_virtualization as fvirt;
use serde::Serialize;
use std::fmt;

/// What `guest mem` comes to.
#[derive(Debug, Serialize, PartialEq, Eq)]
pub(crate) enum MemOutcome {
    Stats {
        block_size: u64,
        region_size: u64,
        usable_region_size: u64,
        plugged_size: u64,
        requested_size: u64,
    },
    Requested(u64),
    NoMemDevice,
    Internal(String),
    #[serde(untagged)]
    NotRunning(NotRunning),
}

impl From<Unreachable> for MemOutcome {
    fn from(reason: Unreachable) -> Self {
        match reason {
            Unreachable::NotRunning(guest) => Self::NotRunning(guest),
            Unreachable::NoDevice => Self::NoMemDevice,
            Unreachable::Broken(reason) => Self::Internal(reason),
        }
    }
}

impl Outcome for MemOutcome {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Stats { .. } | Self::Requested(_) => 0,
            Self::NotRunning(_) | Self::NoMemDevice => EXIT_NOT_RUNNING,
            Self::Internal(_) => EXIT_FAILURE,
        }
    }
}

impl fmt::Display for MemOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stats {
                block_size,
                region_size,
                usable_region_size,
                plugged_size,
                requested_size,
            } => {
                writeln!(f, "block_size: {block_size}")?;
                writeln!(f, "region_size: {region_size}")?;
                writeln!(f, "usable_region_size: {usable_region_size}")?;
                writeln!(f, "plugged_size: {plugged_size}")?;
                writeln!(f, "requested_size: {requested_size}")
            }
            Self::Requested(size) => writeln!(f, "The guest was asked to plug in {size} bytes"),
            Self::NotRunning(guest) => writeln!(f, "{guest}"),
            Self::NoMemDevice => {
                writeln!(f, "The guest has no memory device; launch it with --virtio-mem true")
            }
            Self::Internal(reason) => writeln!(f, "The memory device did not answer: {reason}"),
        }
    }
}

async fn connect(
    guest: GuestType,
    manager: &fvirt::GuestManagerProxy,
) -> Result<fvirt::MemControllerProxy, Unreachable> {
    let connected =
        running::connect::<fvirt::MemControllerMarker>(guest, manager, async |guest, server| {
            guest.get_mem_controller(server).await
        });
    Ok(connected.await?.1)
}

/// Asks for so many bytes to be plugged in.
pub(crate) async fn request_plugged(
    guest: GuestType,
    manager: &fvirt::GuestManagerProxy,
    size: u64,
) -> MemOutcome {
    match connect(guest, manager).await {
        Ok(controller) => match controller.request_size(size) {
            Ok(()) => MemOutcome::Requested(size),
            Err(e) => MemOutcome::Internal(e.to_string()),
        },
        Err(reason) => reason.into(),
    }
}

/// Reads the sizes.
pub(crate) async fn stats(guest: GuestType, manager: &fvirt::GuestManagerProxy) -> MemOutcome {
    let controller = match connect(guest, manager).await {
        Ok(controller) => controller,
        Err(reason) => return reason.into(),
    };
    match controller.get_mem_size().await {
        Ok((block_size, region_size, usable_region_size, plugged_size, requested_size)) => {
            MemOutcome::Stats {
                block_size,
                region_size,
                usable_region_size,
                plugged_size,
                requested_size,
            }
        }
        Err(e) => MemOutcome::Internal(e.to_string()),
    }
}
