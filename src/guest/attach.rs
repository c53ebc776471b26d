//! `guest attach`: a terminal on a guest's console.

use crate::outcome::{EXIT_FAILURE, EXIT_NOT_RUNNING, Outcome};
use crate::terminal::{self, Input, Terminal};
use anyhow::Context as _;
use fidl::endpoints::create_proxy;
use fidl_fuchsia_virtualization as fvirt;
use fuchsia_async as fasync;
use fuchsia_zircon as zx;
use futures::future::{Either, select};
use futures::{AsyncReadExt as _, AsyncWriteExt as _, pin_mut};
use serde::Serialize;
use std::fmt;
use std::io;

/// What `guest attach` comes to.
#[derive(Debug, Serialize, PartialEq, Eq)]
pub(crate) enum AttachOutcome {
    Attached,
    NotRunning,
    AttachFailure(String),
}

impl Outcome for AttachOutcome {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Attached => 0,
            Self::NotRunning => EXIT_NOT_RUNNING,
            Self::AttachFailure(_) => EXIT_FAILURE,
        }
    }
}

impl fmt::Display for AttachOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Attached => Ok(()),
            Self::NotRunning => {
                writeln!(f, "The guest is not running; `guest launch` starts it")
            }
            Self::AttachFailure(reason) => writeln!(f, "Cannot attach to the guest: {reason}"),
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

/// Attaches to a guest that was started before.
pub(crate) async fn attach(
    manager: &fvirt::GuestManagerProxy,
    port: Port,
) -> anyhow::Result<AttachOutcome> {
    let info = manager.get_info().await.context("The guest's manager does not answer")?;
    let attachable = matches!(
        info.guest_status,
        Some(fvirt::GuestStatus::Starting | fvirt::GuestStatus::Running)
    );
    if !attachable {
        return Ok(AttachOutcome::NotRunning);
    }
    let (guest, server) = create_proxy::<fvirt::GuestMarker>();
    if manager.connect(server).await.context("The guest's manager went away")?.is_err() {
        return Ok(AttachOutcome::NotRunning);
    }
    let session = match Session::open(&guest, port).await {
        Ok(session) => session,
        Err(e) => return Ok(AttachOutcome::AttachFailure(format!("{e:#}"))),
    };
    let mut terminal = Terminal::open().context("The terminal cannot be made raw")?;
    let end = session.run(&mut terminal).await?;
    let interactive = terminal.is_interactive();
    drop(terminal);
    if end == End::Detached && interactive {
        eprintln!("\nDetached; the guest goes on.");
    }
    Ok(AttachOutcome::Attached)
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
