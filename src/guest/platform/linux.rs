//! Linux: managers are found through the user's component manager, terminals are ttys.

use crate::args::GuestType;
use crate::logs::{LogLine, LogsOutcome};
use anyhow::Context as _;
use component_manager::client::Connection;
use component_manager::image_lock;
use component_manager::runtime_directory::RuntimeDirectory;
use fidl::endpoints::create_proxy;
use fidl_fuchsia_virtualization as fvirt;
use fidl_guest_host as fhost;
use fuchsia_async as fasync;
use fuchsia_component::client::connect_to_named_protocol_at_dir_root;
use fuchsia_zircon as zx;
use futures::Stream;
use futures::channel::mpsc;
use images::Store;
use rustix::fd::OwnedFd;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::fs;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

/// The severity of an error in `fuchsia.diagnostics.types`.
const ERROR_SEVERITY: u8 = 0x50;
/// How long a line takes at most from a component to the log.
const LOG_DELAY: zx::Duration = zx::Duration::from_millis(200);

/// The way to the guests' managers.
pub(crate) struct Platform(Option<Connection>);

impl Platform {
    /// Connects to the user's component manager, starting it where it does not run.
    pub(crate) fn start() -> anyhow::Result<Self> {
        Ok(Self(Some(Connection::connect_or_start()?)))
    }

    /// Connects to the user's component manager, if it runs: to look, nothing has to be started.
    pub(crate) fn look() -> anyhow::Result<Self> {
        Ok(Self(Connection::connect()?))
    }

    /// A guest's manager, or none where no component manager runs and so no guest can.
    pub(crate) fn manager(
        &self,
        guest: GuestType,
    ) -> anyhow::Result<Option<fvirt::GuestManagerProxy>> {
        let Some(connection) = &self.0 else { return Ok(None) };
        let protocol = match guest {
            GuestType::Debian => "fuchsia.virtualization.DebianGuestManager",
            GuestType::Termina => "fuchsia.virtualization.TerminaGuestManager",
            GuestType::Zircon => "fuchsia.virtualization.ZirconGuestManager",
        };
        let manager = connect_to_named_protocol_at_dir_root::<fvirt::GuestManagerMarker>(
            &connection.exposed_dir(),
            protocol,
        )?;
        Ok(Some(manager))
    }

    /// What the components of a guest, or of all, have logged.
    pub(crate) async fn logs(&self, guest: Option<GuestType>) -> anyhow::Result<LogsOutcome> {
        let records = self.records(guest, 0).await?;
        let lines = records.into_iter().map(|record| LogLine {
            time_nanos: record.time,
            severity: record.severity,
            moniker: record.moniker,
            message: record.message,
        });
        Ok(LogsOutcome { lines: lines.collect() })
    }

    /// The errors that a guest's components have logged since `begin`, for a person whose command has just failed. A line of a
    /// component that has just failed may still be on its way: it has a moment.
    pub(crate) async fn errors_since(&self, guest: GuestType, begin: zx::Time) -> Vec<String> {
        let deadline = zx::Time::after(LOG_DELAY);
        loop {
            let records = self.records(Some(guest), ERROR_SEVERITY).await.unwrap_or_default();
            let new = records.into_iter().filter(|record| record.time >= begin.into_nanos());
            let messages: Vec<_> = new.map(|record| record.message).collect();
            if !messages.is_empty() || zx::Time::get_monotonic() >= deadline {
                return messages;
            }
            fasync::Timer::new(zx::Time::after(LOG_DELAY / 20)).await;
        }
    }

    async fn records(
        &self,
        guest: Option<GuestType>,
        min_severity: u8,
    ) -> anyhow::Result<Vec<fhost::LogRecord>> {
        let mut all = Vec::new();
        let Some(connection) = &self.0 else { return Ok(all) };
        let (iterator, server) = create_proxy::<fhost::LogIteratorMarker>();
        let options = fhost::LogOptions {
            moniker: guest.map(|guest| format!("{guest}-guest-manager")),
            min_severity: Some(min_severity),
            ..Default::default()
        };
        connection.control().read_logs(&options, server)?;
        loop {
            let records = iterator.next().await.context("The component manager went away")?;
            if records.is_empty() {
                return Ok(all);
            }
            all.extend(records);
        }
    }
}

/// Where the user's guest packages are.
pub(crate) fn store() -> anyhow::Result<Store> {
    let data = component_manager::daemon::data_directory().context(
        "Neither XDG_DATA_HOME nor HOME is set, so there is no place for guest packages",
    )?;
    Ok(Store::new(data.join("packages")))
}

/// The disks of a guest's package that somebody has locked, in words.
pub(crate) fn locked_disks(guest: GuestType) -> Vec<String> {
    let Ok(package) = store().and_then(|store| Ok(store.path(guest.name())?)) else {
        return Vec::new();
    };
    let files = fs::read_dir(package.join("data")).into_iter().flatten().flatten();
    let locked = files.filter_map(|file| {
        let holders = image_lock::holders(&file.path());
        let names: Vec<_> = holders.iter().map(ToString::to_string).collect();
        (!names.is_empty())
            .then(|| format!("{} is in use by {}", file.path().display(), names.join(", ")))
    });
    locked.collect()
}

/// A terminal on a guest, for as long as this lives, so that others who come know of it.
#[derive(Debug)]
pub(crate) struct Attachment {
    _membership: Option<OwnedFd>,
}

impl Attachment {
    /// A terminal on the guest from now on, and whether there is another. Where that cannot be known there is none.
    pub(crate) fn new(guest: GuestType) -> (Self, bool) {
        let joined =
            RuntimeDirectory::of_user().ok().and_then(|directory| directory.join(guest as u8).ok());
        match joined {
            Some((membership, first)) => (Self { _membership: Some(membership) }, !first),
            None => (Self { _membership: None }, false),
        }
    }
}

/// The signals that ask this process to end, as a stream for async code and a flag for the rest.
pub(crate) struct Interrupts {
    flag: Arc<AtomicBool>,
    stream: mpsc::UnboundedReceiver<()>,
}

impl Interrupts {
    /// Takes SIGINT, SIGTERM and SIGHUP over; a second one ends the process as if nobody had.
    pub(crate) fn take() -> io::Result<Self> {
        let flag = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            // In this order: the first signal finds the flag unset.
            signal_hook::flag::register_conditional_default(signal, Arc::clone(&flag))?;
            signal_hook::flag::register(signal, Arc::clone(&flag))?;
        }
        let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])?;
        let (sender, stream) = mpsc::unbounded();
        thread::Builder::new()
            .name("signals".to_owned())
            .spawn(move || signals.forever().try_for_each(|_| sender.unbounded_send(())))?;
        Ok(Self { flag, stream })
    }

    /// Whether one has come, for code that polls.
    pub(crate) fn flag(&self) -> Box<dyn Fn() -> bool> {
        let flag = Arc::clone(&self.flag);
        Box::new(move || flag.load(Ordering::Relaxed))
    }

    /// One item for each that comes.
    pub(crate) fn stream(self) -> impl Stream<Item = ()> + Unpin {
        self.stream
    }
}

/// The terminal of standard input in raw mode, for as long as this lives.
#[derive(Debug)]
pub(crate) struct RawMode {
    before: Termios,
}

impl RawMode {
    /// Makes the terminal raw.
    pub(crate) fn enter() -> io::Result<Self> {
        let stdin = io::stdin();
        let before = tcgetattr(&stdin)?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&stdin, OptionalActions::Flush, &raw)?;
        Ok(Self { before })
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // A terminal that is gone needs no restoring.
        let _gone = tcsetattr(io::stdin(), OptionalActions::Flush, &self.before);
    }
}
