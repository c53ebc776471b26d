//! `guest launch`: start a guest, and by default stay with it.

use crate::args::{GuestType, LaunchArgs};
use crate::attach::{self, End, Failure, Port, Session};
use crate::outcome::{EXIT_FAILURE, EXIT_INTERRUPTED, Outcome};
use crate::terminal::Terminal;
use anyhow::Context as _;
use fidl::endpoints::create_proxy;
use fidl_fuchsia_virtualization as fvirt;
use fuchsia_zircon as zx;
use futures::Stream;
use futures::StreamExt as _;
use futures::future::{Either, select};
use futures::pin_mut;
use serde::Serialize;
use std::fmt;

/// What `guest launch` comes to.
#[derive(Debug, Serialize, PartialEq, Eq)]
pub(crate) enum LaunchOutcome {
    /// The guest was started and, unless detached from, has ended well.
    LaunchCompleted,
    /// The guest was started and runs on, but its console cannot be had.
    AttachFailed(String),
    /// The guest's manager is not there.
    RoutingError(String),
    /// The guest's manager broke the connection.
    FidlError(String),
    /// The manager refused; the number is its `GuestManagerError`.
    LaunchFailure(u32),
    /// The guest was started, and then ended with an error.
    GuestFailed(String),
    /// The person pressed Ctrl-C; the guest was stopped.
    Interrupted,
}

impl LaunchOutcome {
    /// Whether the guest's components have logged why it came to this.
    pub(crate) fn has_reasons_in_the_log(&self) -> bool {
        matches!(self, Self::LaunchFailure(_) | Self::GuestFailed(_))
            && *self
                != Self::LaunchFailure(fvirt::GuestManagerError::AlreadyRunning.into_primitive())
    }
}

impl Outcome for LaunchOutcome {
    fn exit_code(&self) -> u8 {
        match self {
            Self::LaunchCompleted => 0,
            Self::Interrupted => EXIT_INTERRUPTED,
            _ => EXIT_FAILURE,
        }
    }
}

impl fmt::Display for LaunchOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LaunchCompleted => Ok(()),
            Self::AttachFailed(reason) => {
                writeln!(f, "The guest runs without this command: {reason}")
            }
            Self::RoutingError(guest) => writeln!(
                f,
                "There is no manager for {guest} guests in this system. Is it built in?\n\
                 To include it, add //src/virtualization/bundles:{guest} to the product and \
                 //src/virtualization/bundles:{guest}_core_shards to its core shards."
            ),
            Self::FidlError(reason) => {
                writeln!(
                    f,
                    "The guest's manager broke the connection: {reason}; `guest launch` starts another"
                )
            }
            Self::LaunchFailure(code) => writeln!(f, "{}", failure_text(*code)),
            Self::GuestFailed(reason) => writeln!(f, "{}", attach::failure_text(reason)),
            Self::Interrupted => writeln!(f, "Interrupted; the guest does not run"),
        }
    }
}

fn failure_text(code: u32) -> String {
    let text = match fvirt::GuestManagerError::from_primitive(code) {
        Some(fvirt::GuestManagerError::BadConfig) => {
            "The guest's package or these options are not usable"
        }
        Some(fvirt::GuestManagerError::AlreadyRunning) => {
            return "The guest runs already; `guest attach` gives its console".to_owned();
        }
        Some(fvirt::GuestManagerError::StartFailure) => "The guest could not be started",
        Some(fvirt::GuestManagerError::NoStorage) => "There is no storage for the guest's disks",
        Some(fvirt::GuestManagerError::NotRunning) => "The guest is not running",
        None => return format!("The guest's manager answers with error {code}, unknown here"),
    };
    format!("{text}; `guest logs` says why")
}

/// Starts a guest and, unless it is to be detached, serves its console until it ends.
pub(crate) async fn launch(
    args: &LaunchArgs,
    manager: &fvirt::GuestManagerProxy,
    mut interrupts: impl Stream<Item = ()> + Unpin,
) -> anyhow::Result<LaunchOutcome> {
    eprintln!("Starting {}...", args.guest_type);
    let (guest, server) = create_proxy::<fvirt::GuestMarker>();
    let launched = manager.launch(args.config(), server);
    let launched = match select(launched, interrupts.next()).await {
        Either::Left((launched, _)) => launched,
        Either::Right(_) => return interrupted(manager).await,
    };
    match launched {
        Ok(Ok(())) => {}
        Ok(Err(error)) => return Ok(LaunchOutcome::LaunchFailure(error.into_primitive())),
        Err(fidl::Error::ClientChannelClosed { status: zx::Status::PEER_CLOSED, .. }) => {
            return Ok(LaunchOutcome::FidlError("it terminated unexpectedly".to_owned()));
        }
        // Component manager's word that there is no way to a manager.
        Err(fidl::Error::ClientChannelClosed { .. }) => {
            return Ok(LaunchOutcome::RoutingError(args.guest_type.to_string()));
        }
        Err(e) => return Ok(LaunchOutcome::FidlError(e.to_string())),
    }
    if args.detach {
        return Ok(LaunchOutcome::LaunchCompleted);
    }
    let session = match Session::open(&guest, Port::Console).await {
        Ok(session) => session,
        Err(e) => return Ok(LaunchOutcome::AttachFailed(format!("{e:#}"))),
    };
    stay(args.guest_type, manager, &guest, session, interrupts).await
}

async fn stay(
    guest_type: GuestType,
    manager: &fvirt::GuestManagerProxy,
    guest: &fvirt::GuestProxy,
    session: Session,
    mut interrupts: impl Stream<Item = ()> + Unpin,
) -> anyhow::Result<LaunchOutcome> {
    let _attachment = attach::share(guest_type);
    let mut terminal = Terminal::open().context("The terminal cannot be made raw")?;
    if terminal.is_interactive() {
        eprint!("Press Ctrl-] to detach.\r\n");
    }
    let end = {
        let run = session.run(&mut terminal);
        pin_mut!(run);
        match select(run, interrupts.next()).await {
            Either::Left((end, _)) => end,
            Either::Right(_) => return interrupted(manager).await,
        }
    };
    drop(terminal);
    match end? {
        End::Detached => {
            eprintln!("\nDetached; `guest attach {guest_type}` comes back to the guest.");
            Ok(LaunchOutcome::LaunchCompleted)
        }
        End::OutputClosed => Ok(LaunchOutcome::LaunchCompleted),
        End::GuestClosed => Ok(match attach::failure(manager, guest).await {
            None => LaunchOutcome::LaunchCompleted,
            Some(Failure::Guest(reason)) => LaunchOutcome::GuestFailed(reason),
            Some(Failure::Console(reason)) => LaunchOutcome::AttachFailed(reason),
        }),
    }
}

async fn interrupted(manager: &fvirt::GuestManagerProxy) -> anyhow::Result<LaunchOutcome> {
    manager.force_shutdown().await.context("The guest's manager went away")?;
    Ok(LaunchOutcome::Interrupted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_say_what_to_do_next() {
        for error in [
            fvirt::GuestManagerError::BadConfig,
            fvirt::GuestManagerError::AlreadyRunning,
            fvirt::GuestManagerError::StartFailure,
            fvirt::GuestManagerError::NoStorage,
        ] {
            let outcome = LaunchOutcome::LaunchFailure(error.into_primitive());
            assert!(outcome.to_string().contains("`guest "), "{outcome}");
            assert_eq!(outcome.exit_code(), 1);
        }
        assert!(LaunchOutcome::LaunchFailure(77).to_string().contains("77"));
    }

    #[test]
    fn json_tags_are_those_of_the_facts() {
        let json = |outcome| serde_json::to_string(&outcome).unwrap();
        assert_eq!(json(LaunchOutcome::LaunchCompleted), r#""LaunchCompleted""#);
        assert_eq!(json(LaunchOutcome::LaunchFailure(2)), r#"{"LaunchFailure":2}"#);
    }
}
