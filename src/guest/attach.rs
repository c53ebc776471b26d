//! `guest attach`: a terminal on a guest's console.

use crate::args::GuestType;
use crate::outcome::{EXIT_FAILURE, EXIT_INTERRUPTED, EXIT_NOT_RUNNING, Outcome};
use crate::platform::Attachment;
use crate::running::NotRunning;
use crate::terminal::{self, Input, Terminal};
use anyhow::Context as _;
use fidl::endpoints::{Proxy as _, create_proxy};
use fidl_fuchsia_virtualization as fvirt;
use fuchsia_async::{self as fasync, TimeoutExt as _};
use fuchsia_zircon as zx;
use futures::future::{Either, select};
use futures::{AsyncReadExt as _, AsyncWriteExt as _, Stream, StreamExt as _, pin_mut};
use serde::Serialize;
use std::fmt;
use std::io;

/// The guest's end follows its console's at once; a console that is closed for longer has ended by itself.
const CONSOLE_ALONE: zx::Duration = zx::Duration::from_seconds(3);

/// What `guest attach` comes to.
#[derive(Debug, Serialize, PartialEq, Eq)]
pub(crate) enum AttachOutcome {
    Attached,
    AttachFailure(String),
    /// The guest ended with an error meanwhile.
    GuestFailed(String),
    /// A signal asked this command to end; the guest goes on.
    Interrupted,
    #[serde(untagged)]
    NotRunning(NotRunning),
}

impl Outcome for AttachOutcome {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Attached => 0,
            Self::NotRunning(_) => EXIT_NOT_RUNNING,
            Self::AttachFailure(_) | Self::GuestFailed(_) => EXIT_FAILURE,
            Self::Interrupted => EXIT_INTERRUPTED,
        }
    }
}

impl fmt::Display for AttachOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Attached => Ok(()),
            Self::NotRunning(guest) => writeln!(f, "{guest}"),
            Self::AttachFailure(reason) => writeln!(f, "Cannot attach to the guest: {reason}"),
            Self::GuestFailed(reason) => writeln!(f, "{}", failure_text(reason)),
            Self::Interrupted => writeln!(f, "Interrupted; the guest goes on"),
        }
    }
}

/// How a session on a console ended.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub(crate) enum End {
    /// The guest closed its end, as it does when it stops.
    GuestClosed,
    /// The person pressed the escape key.
    Detached,
    /// Nobody reads our output any more.
    OutputClosed,
}

/// Which of the guest's ports a session is on.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub(crate) enum Port {
    /// The console both ways, and what the serial port says.
    Console,
    /// The serial port both ways.
    Serial,
}

/// The sockets of a session: one for each direction, so that neither waits for the other.
#[derive(Debug)]
pub(crate) struct Session {
    input: fasync::Socket,
    output: fasync::Socket,
    log: Option<fasync::Socket>,
}

impl Session {
    /// Gets the sockets of a guest; without a console the serial port serves as one.
    pub(crate) async fn open(guest: &fvirt::GuestProxy, port: Port) -> anyhow::Result<Self> {
        let serial = || async {
            let socket = guest.get_serial().await.context("The guest went away")?;
            anyhow::Ok(fasync::Socket::from_socket(socket))
        };
        let console = || async {
            let socket = guest.get_console().await.context("The guest went away")?;
            anyhow::Ok(socket.map(fasync::Socket::from_socket))
        };
        if port == Port::Console
            && let (Ok(input), Ok(output)) = (console().await?, console().await?)
        {
            return Ok(Self { input, output, log: Some(serial().await?) });
        }
        Ok(Self { input: serial().await?, output: serial().await?, log: None })
    }

    /// Copies until one side ends it.
    pub(crate) async fn run(self, terminal: &mut Terminal) -> anyhow::Result<End> {
        let Self { input, output, log } = self;
        let log = async {
            match log {
                // The log's end is not the session's: the console says when the guest is gone.
                Some(log) => match copy_out(log).await? {
                    End::OutputClosed => Ok(End::OutputClosed),
                    _ => futures::future::pending().await,
                },
                None => futures::future::pending().await,
            }
        };
        let outputs = async {
            let console = copy_out(output);
            pin_mut!(console, log);
            select(console, log).await.factor_first().0
        };
        let input = copy_in(terminal, input);
        pin_mut!(outputs, input);
        match select(outputs, input).await {
            Either::Left((end, _)) | Either::Right((end, _)) => end,
        }
    }
}

async fn copy_out(mut from: fasync::Socket) -> anyhow::Result<End> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let n = match from.read(&mut buffer).await {
            Ok(0) => return Ok(End::GuestClosed),
            Ok(n) => n,
            Err(e) => return Err(e).context("Reading the guest's output"),
        };
        match terminal::write(&buffer[..n]) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => return Ok(End::OutputClosed),
            Err(e) => return Err(e).context("Writing to standard output"),
        }
    }
}

/// Ends only with the escape key: a pipe that has no more to say still wants the answers.
async fn copy_in(terminal: &mut Terminal, mut to: fasync::Socket) -> anyhow::Result<End> {
    loop {
        let (bytes, escape) = match terminal.read().await {
            Input::Bytes(bytes) => (bytes, false),
            Input::Escape(bytes) => (bytes, true),
            Input::End => futures::future::pending().await,
        };
        if to.write_all(&bytes).await.is_err() {
            // The guest takes no more; the output side tells whether it is gone.
            futures::future::pending::<()>().await;
        }
        if escape {
            return Ok(End::Detached);
        }
    }
}

/// Lets others know that there is a terminal on the guest, and the person if there is another. A guest's port is one stream of bytes, and
/// each of them goes to one reader.
pub(crate) fn share(guest: GuestType) -> Attachment {
    let (attachment, is_shared) = Attachment::new(guest);
    if is_shared {
        eprintln!(
            "Another terminal is on {guest}: what the guest prints appears on one of them or the other. \
             Detach there (Ctrl-]) to have all of it here."
        );
    }
    attachment
}

/// Attaches to a guest that was started before.
pub(crate) async fn attach(
    guest_type: GuestType,
    manager: &fvirt::GuestManagerProxy,
    port: Port,
    mut interrupts: impl Stream<Item = ()> + Unpin,
) -> anyhow::Result<AttachOutcome> {
    let info = manager.get_info().await.context("The guest's manager does not answer")?;
    let attachable = matches!(
        info.guest_status,
        Some(fvirt::GuestStatus::Starting | fvirt::GuestStatus::Running)
    );
    if !attachable {
        return Ok(AttachOutcome::NotRunning(NotRunning(guest_type)));
    }
    let (guest, server) = create_proxy::<fvirt::GuestMarker>();
    if manager.connect(server).await.context("The guest's manager went away")?.is_err() {
        return Ok(AttachOutcome::NotRunning(NotRunning(guest_type)));
    }
    let session = match Session::open(&guest, port).await {
        Ok(session) => session,
        Err(e) => return Ok(AttachOutcome::AttachFailure(format!("{e:#}"))),
    };
    let _attachment = share(guest_type);
    let mut terminal = Terminal::open().context("The terminal cannot be made raw")?;
    let interactive = terminal.is_interactive();
    let end = {
        let run = session.run(&mut terminal);
        pin_mut!(run);
        match select(run, interrupts.next()).await {
            Either::Left((end, _)) => end?,
            Either::Right(_) => return Ok(AttachOutcome::Interrupted),
        }
    };
    drop(terminal);
    Ok(match end {
        End::Detached => {
            if interactive {
                eprintln!("\nDetached; the guest goes on.");
            }
            AttachOutcome::Attached
        }
        End::OutputClosed => AttachOutcome::Attached,
        End::GuestClosed => match failure(manager, &guest).await {
            None => AttachOutcome::Attached,
            Some(Failure::Guest(reason)) => AttachOutcome::GuestFailed(reason),
            Some(Failure::Console(reason)) => AttachOutcome::AttachFailure(reason),
        },
    })
}

/// Why a console closed, where that was not the guest's good end.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The guest has ended, for this reason.
    Guest(String),
    /// The console is gone, and the guest goes on.
    Console(String),
}

/// What a person is told of a guest that ended with an error.
pub(crate) fn failure_text(reason: &str) -> String {
    format!(
        "The guest has ended with an error: {reason}; `guest logs` says more, `guest launch` starts it again"
    )
}

/// The guest has closed its console: what was it that ended, and was that an error?
pub(crate) async fn failure(
    manager: &fvirt::GuestManagerProxy,
    guest: &fvirt::GuestProxy,
) -> Option<Failure> {
    let gone = async { guest.on_closed().await.is_ok() };
    if !gone.on_timeout(zx::Time::after(CONSOLE_ALONE), || false).await {
        let reason = "its console device has failed, and the guest goes on; `guest attach --serial` may still reach it, \
                      `guest stop --force` ends it";
        return Some(Failure::Console(reason.to_owned()));
    }
    let failed = |reason: &str| Some(Failure::Guest(reason.to_owned()));
    let Ok(info) = ended(manager).await else {
        return failed("its manager terminated unexpectedly");
    };
    match (info.guest_status, info.stop_error) {
        (Some(fvirt::GuestStatus::VmmUnexpectedTermination), _) => {
            failed("its VMM terminated unexpectedly")
        }
        // A manager that knows nothing of the guest is another one than that which started it.
        (Some(fvirt::GuestStatus::NotStarted), _) => failed("its manager terminated unexpectedly"),
        // Somebody else asked for it: not this command's failure.
        (_, None | Some(fvirt::GuestError::ControllerForcedHalt)) => None,
        (_, Some(error)) => failed(&format!("{error:?}")),
    }
}

/// Waits until a guest whose channel has closed has ended for its manager, too, and returns what that says then.
pub(crate) async fn ended(manager: &fvirt::GuestManagerProxy) -> anyhow::Result<fvirt::GuestInfo> {
    loop {
        let info = manager.get_info().await.context("The guest's manager went away")?;
        let settled = !matches!(
            info.guest_status,
            Some(fvirt::GuestStatus::Running | fvirt::GuestStatus::Stopping)
        );
        if settled {
            return Ok(info);
        }
        // The manager hears of the end from the VMM about when we do.
        fasync::Timer::new(zx::Time::after(zx::Duration::from_millis(5))).await;
    }
}
