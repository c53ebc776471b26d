//! Fuchsia: managers are in this program's namespace, and a shell's terminal is raw already.

use crate::args::GuestType;
use crate::logs::LogsOutcome;
use anyhow::bail;
use fidl_fuchsia_virtualization as fvirt;
use fuchsia_component::client::connect_to_protocol_at_path;
use fuchsia_zircon as zx;
use futures::Stream;
use std::io;

/// The way to the guests' managers.
pub(crate) struct Platform;

impl Platform {
    /// The system runs already.
    pub(crate) fn start() -> anyhow::Result<Self> {
        Ok(Self)
    }

    /// The system runs already.
    pub(crate) fn look() -> anyhow::Result<Self> {
        Ok(Self)
    }

    /// A guest's manager.
    pub(crate) fn manager(
        &self,
        guest: GuestType,
    ) -> anyhow::Result<Option<fvirt::GuestManagerProxy>> {
        let protocol = match guest {
            GuestType::Debian => "/svc/fuchsia.virtualization.DebianGuestManager",
            GuestType::Termina => "/svc/fuchsia.virtualization.TerminaGuestManager",
            GuestType::Zircon => "/svc/fuchsia.virtualization.ZirconGuestManager",
        };
        Ok(Some(connect_to_protocol_at_path::<fvirt::GuestManagerMarker>(protocol)?))
    }

    /// The system's own tool has the logs.
    pub(crate) async fn logs(&self, _guest: Option<GuestType>) -> anyhow::Result<LogsOutcome> {
        bail!("the system keeps the logs; `ffx log` or `log_listener` show them")
    }

    /// None: the system keeps the logs.
    pub(crate) async fn errors_since(&self, _guest: GuestType, _begin: zx::Time) -> Vec<String> {
        Vec::new()
    }
}

/// None: nobody else can open the disks of a package.
pub(crate) fn locked_disks(_guest: GuestType) -> Vec<String> {
    Vec::new()
}

/// A terminal on a guest.
#[derive(Debug)]
pub(crate) struct Attachment;

impl Attachment {
    /// A terminal on the guest. Whether there is another cannot be known.
    pub(crate) fn new(_guest: GuestType) -> (Self, bool) {
        (Self, false)
    }
}

/// The signals that ask this process to end: Fuchsia has none.
pub(crate) struct Interrupts;

impl Interrupts {
    /// Nothing to take over.
    pub(crate) fn take() -> io::Result<Self> {
        Ok(Self)
    }

    /// Whether one has come.
    pub(crate) fn flag(&self) -> impl Fn() -> bool {
        || false
    }

    /// Never comes.
    pub(crate) fn stream(self) -> impl Stream<Item = ()> + Unpin {
        futures::stream::pending()
    }
}

/// A terminal that is raw already.
#[derive(Debug)]
pub(crate) struct RawMode;

impl RawMode {
    /// Nothing to change.
    pub(crate) fn enter() -> io::Result<Self> {
        Ok(Self)
    }
}
