//! `guest stop`: by asking the guest, or by force.

use crate::args::GuestType;
use crate::outcome::{EXIT_FAILURE, EXIT_NOT_RUNNING, Outcome};
use anyhow::Context as _;
use fidl::endpoints::{Proxy as _, create_proxy};
use fidl_fuchsia_virtualization as fvirt;
use fuchsia_async as fasync;
use fuchsia_zircon as zx;
use futures::AsyncWriteExt as _;
use futures::future::{Either, select};
use futures::pin_mut;
use serde::Serialize;
use std::fmt;

/// After this long a person is told what else there is, once.
const PATIENCE: zx::Duration = zx::Duration::from_seconds(10);

/// How a guest was stopped.
#[derive(Debug, Serialize, PartialEq, Eq, Clone, Copy)]
pub(crate) enum StopStatus {
    NotStopped,
    NotRunning,
    Forced,
    Graceful,
}

/// What `guest stop` comes to.
#[derive(Debug, Serialize, PartialEq, Eq)]
pub(crate) struct StopOutcome {
    #[serde(skip)]
    guest: GuestType,
    status: StopStatus,
    stop_time_nanos: i64,
}

impl Outcome for StopOutcome {
    fn exit_code(&self) -> u8 {
        match self.status {
            StopStatus::Forced | StopStatus::Graceful => 0,
            StopStatus::NotStopped => EXIT_FAILURE,
            StopStatus::NotRunning => EXIT_NOT_RUNNING,
        }
    }
}

impl fmt::Display for StopOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let took = match self.stop_time_nanos {
            nanos if nanos < 1_000_000 => format!("{} µs", nanos / 1_000),
            nanos => format!("{} ms", nanos / 1_000_000),
        };
        match self.status {
            StopStatus::NotStopped => writeln!(f, "The guest could not be stopped"),
            StopStatus::NotRunning => {
                writeln!(f, "The guest {} is not running; there is nothing to stop", self.guest)
            }
            StopStatus::Forced => writeln!(f, "The guest was forced to stop in {took}"),
            StopStatus::Graceful => writeln!(f, "The guest has shut down in {took}"),
        }
    }
}

/// What a person would type on the guest's console.
fn shutdown_command(guest: GuestType) -> &'static str {
    match guest {
        GuestType::Zircon => "power shutdown\n",
        GuestType::Debian | GuestType::Termina => "shutdown now\n",
    }
}

/// Stops a guest; `hint` is shown when a guest that was asked takes its time.
pub(crate) async fn stop(
    guest: GuestType,
    manager: &fvirt::GuestManagerProxy,
    force: bool,
    hint: impl FnOnce(&str),
) -> anyhow::Result<StopOutcome> {
    let begin = zx::Time::get_monotonic();
    let outcome = |status| StopOutcome {
        guest,
        status,
        stop_time_nanos: (zx::Time::get_monotonic() - begin).into_nanos(),
    };
    let info = manager.get_info().await.context("The guest's manager does not answer")?;
    let started = matches!(
        info.guest_status,
        Some(
            fvirt::GuestStatus::Starting
                | fvirt::GuestStatus::Running
                | fvirt::GuestStatus::Stopping
        )
    );
    if !started {
        return Ok(outcome(StopStatus::NotRunning));
    }
    if force {
        manager.force_shutdown().await.context("The guest's manager went away")?;
        return Ok(outcome(StopStatus::Forced));
    }
    Ok(outcome(graceful(guest, manager, hint).await?))
}

async fn graceful(
    guest_type: GuestType,
    manager: &fvirt::GuestManagerProxy,
    hint: impl FnOnce(&str),
) -> anyhow::Result<StopStatus> {
    let (guest, server) = create_proxy::<fvirt::GuestMarker>();
    if manager.connect(server).await.context("The guest's manager went away")?.is_err() {
        return Ok(StopStatus::NotRunning);
    }
    let socket = match guest.get_console().await.context("The guest went away")? {
        Ok(socket) => socket,
        // No console: whatever reads the serial port gets the line.
        Err(_) => guest.get_serial().await.context("The guest went away")?,
    };
    let mut console = fasync::Socket::from_socket(socket);
    if console.write_all(shutdown_command(guest_type).as_bytes()).await.is_err() {
        hint("The guest's console takes no input; `guest stop --force` does not ask it");
        return Ok(StopStatus::NotStopped);
    }
    let closed = guest.on_closed();
    let patience = fasync::Timer::new(zx::Time::after(PATIENCE));
    pin_mut!(closed);
    if let Either::Right(((), closed)) = select(&mut closed, patience).await {
        hint("The guest takes long to shut down; `guest stop --force` does not ask it");
        closed.await.context("Waiting for the guest to end")?;
    }
    crate::attach::ended(manager).await?;
    Ok(StopStatus::Graceful)
}

#[cfg(test)]
mod tests {
    use super::*;
    use fidl::endpoints::create_proxy_and_stream;
    use futures::{AsyncReadExt as _, StreamExt as _};

    fn info(status: fvirt::GuestStatus) -> fvirt::GuestInfo {
        fvirt::GuestInfo { guest_status: Some(status), ..Default::default() }
    }

    #[fasync::run_singlethreaded(test)]
    async fn a_guest_that_does_not_run_is_not_stopped() {
        let (manager, mut stream) = create_proxy_and_stream::<fvirt::GuestManagerMarker>();
        let server = fasync::Task::local(async move {
            let request = stream.next().await.unwrap().unwrap();
            request.into_get_info().unwrap().send(&info(fvirt::GuestStatus::Stopped)).unwrap();
        });
        let outcome = stop(GuestType::Debian, &manager, true, |_| ()).await.unwrap();
        assert_eq!((outcome.status, outcome.exit_code()), (StopStatus::NotRunning, 3));
        server.await;
    }

    #[fasync::run_singlethreaded(test)]
    async fn a_graceful_stop_types_the_command_and_waits_for_the_end() {
        let (manager, mut stream) = create_proxy_and_stream::<fvirt::GuestManagerMarker>();
        let server = fasync::Task::local(async move {
            let request = stream.next().await.unwrap().unwrap();
            request.into_get_info().unwrap().send(&info(fvirt::GuestStatus::Running)).unwrap();
            let request = stream.next().await.unwrap().unwrap();
            let (controller, responder) = request.into_connect().unwrap();
            responder.send(Ok(())).unwrap();
            let mut guest = controller.into_stream();
            let request = guest.next().await.unwrap().unwrap();
            let (ours, theirs) = zx::Socket::create_stream();
            request.into_get_console().unwrap().send(Ok(theirs)).unwrap();
            let mut typed = [0; 13];
            fasync::Socket::from_socket(ours).read_exact(&mut typed).await.unwrap();
            assert_eq!(&typed, b"shutdown now\n");
            drop(guest);
            let request = stream.next().await.unwrap().unwrap();
            request.into_get_info().unwrap().send(&info(fvirt::GuestStatus::Stopped)).unwrap();
        });
        let outcome = stop(GuestType::Debian, &manager, false, |_| ()).await.unwrap();
        assert_eq!(outcome.status, StopStatus::Graceful);
        server.await;
    }

    #[test]
    fn short_times_are_in_microseconds() {
        let (guest, status) = (GuestType::Debian, StopStatus::Forced);
        let text = |nanos| StopOutcome { guest, status, stop_time_nanos: nanos }.to_string();
        assert!(text(999_999).ends_with("in 999 µs\n"));
        assert!(text(1_000_000).ends_with("in 1 ms\n"));
    }
}
