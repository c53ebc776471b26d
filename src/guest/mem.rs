//! `guest mem`: memory that is plugged into a running guest.

use crate::outcome::{EXIT_FAILURE, EXIT_NOT_RUNNING, Outcome};
use fidl::endpoints::create_proxy;
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
    NotRunning,
    NoMemDevice,
    Internal(String),
}

impl Outcome for MemOutcome {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Stats { .. } | Self::Requested(_) => 0,
            Self::NotRunning | Self::NoMemDevice => EXIT_NOT_RUNNING,
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
            Self::NotRunning => writeln!(f, "The guest is not running"),
            Self::NoMemDevice => {
                writeln!(f, "The guest has no memory device; launch it with --virtio-mem true")
            }
            Self::Internal(reason) => writeln!(f, "The memory device did not answer: {reason}"),
        }
    }
}

async fn connect(
    manager: &fvirt::GuestManagerProxy,
) -> Result<fvirt::MemControllerProxy, MemOutcome> {
    let internal = |e: fidl::Error| MemOutcome::Internal(e.to_string());
    let (guest, server) = create_proxy::<fvirt::GuestMarker>();
    manager.connect(server).await.map_err(internal)?.map_err(|_| MemOutcome::NotRunning)?;
    let (controller, server) = create_proxy::<fvirt::MemControllerMarker>();
    match guest.get_mem_controller(server).await.map_err(internal)? {
        Ok(()) => Ok(controller),
        Err(fvirt::GuestError::DeviceNotPresent) => Err(MemOutcome::NoMemDevice),
        Err(error) => Err(MemOutcome::Internal(format!("{error:?}"))),
    }
}

/// Asks for so many bytes to be plugged in.
pub(crate) async fn request_plugged(manager: &fvirt::GuestManagerProxy, size: u64) -> MemOutcome {
    match connect(manager).await {
        Ok(controller) => match controller.request_size(size) {
            Ok(()) => MemOutcome::Requested(size),
            Err(e) => MemOutcome::Internal(e.to_string()),
        },
        Err(outcome) => outcome,
    }
}

/// Reads the sizes.
pub(crate) async fn stats(manager: &fvirt::GuestManagerProxy) -> MemOutcome {
    let controller = match connect(manager).await {
        Ok(controller) => controller,
        Err(outcome) => return outcome,
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
