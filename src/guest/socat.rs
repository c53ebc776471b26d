//! `guest socat`: standard input and output on a vsock connection.

use crate::args::{GuestType, SocatCommand};
use crate::outcome::{EXIT_FAILURE, EXIT_INTERRUPTED, EXIT_NOT_RUNNING, Outcome};
use crate::running::{self, NotRunning, Unreachable};
use crate::terminal::{self, Input, Terminal};
use fidl::endpoints::create_request_stream;
use fidl_fuchsia_virtualization as fvirt;
use fuchsia_async as fasync;
use fuchsia_zircon as zx;
use futures::future::{Either, select};
use futures::{AsyncReadExt as _, AsyncWriteExt as _, Stream, StreamExt as _, pin_mut};
use serde::Serialize;
use std::fmt;

/// What `guest socat` comes to.
#[derive(Debug, Serialize, PartialEq, Eq)]
pub(crate) enum SocatOutcome {
    SocatSuccess,
    NoVsockDevice,
    NoListener(u32),
    FailedToListen(u32),
    InternalFailure(String),
    /// A signal asked this command to end.
    Interrupted,
    #[serde(untagged)]
    NotRunning(NotRunning),
}

impl From<Unreachable> for SocatOutcome {
    fn from(reason: Unreachable) -> Self {
        match reason {
            Unreachable::NotRunning(guest) => Self::NotRunning(guest),
            Unreachable::NoDevice => Self::NoVsockDevice,
            Unreachable::Broken(reason) => Self::InternalFailure(reason),
        }
    }
}

impl Outcome for SocatOutcome {
    fn exit_code(&self) -> u8 {
        match self {
            Self::SocatSuccess => 0,
            Self::NotRunning(_) | Self::NoVsockDevice => EXIT_NOT_RUNNING,
            Self::NoListener(_) | Self::FailedToListen(_) | Self::InternalFailure(_) => {
                EXIT_FAILURE
            }
            Self::Interrupted => EXIT_INTERRUPTED,
        }
    }
}

impl fmt::Display for SocatOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SocatSuccess => Ok(()),
            Self::NotRunning(guest) => writeln!(f, "{guest}"),
            Self::NoVsockDevice => {
                writeln!(f, "The guest has no vsock device; launch it with --virtio-vsock true")
            }
            Self::NoListener(port) => writeln!(f, "Nothing in the guest listens on port {port}"),
            Self::FailedToListen(port) => {
                writeln!(f, "Somebody else on the host listens on port {port} already")
            }
            Self::InternalFailure(reason) => writeln!(f, "The vsock device failed: {reason}"),
            Self::Interrupted => writeln!(f, "Interrupted"),
        }
    }
}

/// Runs a command of `guest socat`, until a signal asks for an end.
pub(crate) async fn run(
    command: &SocatCommand,
    manager: impl Fn(GuestType) -> anyhow::Result<fvirt::GuestManagerProxy>,
    mut interrupts: impl Stream<Item = ()> + Unpin,
) -> anyhow::Result<SocatOutcome> {
    let connected = async {
        Ok(match command {
            SocatCommand::Connect(args) => {
                connect(args.guest_type, &manager(args.guest_type)?, args.guest_port).await
            }
            SocatCommand::Listen(args) => {
                listen(args.guest_type, &manager(args.guest_type)?, args.host_port).await
            }
        })
    };
    pin_mut!(connected);
    match select(connected, interrupts.next()).await {
        Either::Left((outcome, _)) => outcome,
        Either::Right(_) => Ok(SocatOutcome::Interrupted),
    }
}

/// A guest, and its vsock device's side of the host.
pub(crate) async fn endpoint(
    guest_type: GuestType,
    manager: &fvirt::GuestManagerProxy,
) -> Result<(fvirt::GuestProxy, fvirt::HostVsockEndpointProxy), Unreachable> {
    if guest_type == GuestType::Zircon {
        return Err(Unreachable::NoDevice);
    }
    running::connect::<fvirt::HostVsockEndpointMarker>(
        guest_type,
        manager,
        async |guest, server| guest.get_host_vsock_endpoint(server).await,
    )
    .await
}

/// Connects to a port on which the guest listens.
async fn connect(
    guest_type: GuestType,
    manager: &fvirt::GuestManagerProxy,
    port: u32,
) -> SocatOutcome {
    let (_guest, endpoint) = match endpoint(guest_type, manager).await {
        Ok(found) => found,
        Err(reason) => return reason.into(),
    };
    match endpoint.connect(port).await {
        Ok(Ok(socket)) => copy(socket).await,
        Ok(Err(raw)) => match zx::Status::from_raw(raw) {
            zx::Status::CONNECTION_REFUSED => SocatOutcome::NoListener(port),
            status => SocatOutcome::InternalFailure(status.to_string()),
        },
        Err(e) => SocatOutcome::InternalFailure(e.to_string()),
    }
}

/// Waits for the guest to connect to a port of the host, once.
async fn listen(
    guest_type: GuestType,
    manager: &fvirt::GuestManagerProxy,
    port: u32,
) -> SocatOutcome {
    let (_guest, endpoint) = match endpoint(guest_type, manager).await {
        Ok(found) => found,
        Err(reason) => return reason.into(),
    };
    let (acceptor, mut requests) = create_request_stream::<fvirt::HostVsockAcceptorMarker>();
    match endpoint.listen(port, acceptor).await {
        Ok(Ok(())) => {}
        Ok(Err(raw)) => {
            return match zx::Status::from_raw(raw) {
                zx::Status::ALREADY_BOUND => SocatOutcome::FailedToListen(port),
                status => SocatOutcome::InternalFailure(status.to_string()),
            };
        }
        Err(e) => return SocatOutcome::InternalFailure(e.to_string()),
    }
    while let Some(Ok(request)) = requests.next().await {
        let fvirt::HostVsockAcceptorRequest::Accept { port: asked, responder, .. } = request;
        if asked != port {
            let refused = zx::Status::CONNECTION_REFUSED.into_raw();
            drop(responder.send(Err(refused)));
            continue;
        }
        let (ours, theirs) = zx::Socket::create_stream();
        return match responder.send(Ok(theirs)) {
            Ok(()) => copy(ours).await,
            Err(e) => SocatOutcome::InternalFailure(e.to_string()),
        };
    }
    SocatOutcome::InternalFailure("the vsock device went away".to_owned())
}

/// Copies both ways until the guest closes; the end of our input is told to the guest.
async fn copy(socket: zx::Socket) -> SocatOutcome {
    let socket = fasync::Socket::from_socket(socket);
    let (mut from, mut to) = (&socket, &socket);
    let mut terminal = match Terminal::open() {
        Ok(terminal) => terminal,
        Err(e) => return SocatOutcome::InternalFailure(e.to_string()),
    };
    let output = async {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            match from.read(&mut buffer).await {
                Ok(0) => return Ok(()),
                Ok(n) => terminal::write(&buffer[..n])?,
                Err(e) => return Err(e),
            }
        }
    };
    let input = async {
        loop {
            match terminal.read().await {
                Input::Bytes(bytes) => to.write_all(&bytes).await?,
                Input::Escape(bytes) => return to.write_all(&bytes).await,
                Input::End => {
                    AsRef::<zx::Socket>::as_ref(&socket).half_close()?;
                    futures::future::pending::<()>().await;
                }
            }
        }
    };
    pin_mut!(output, input);
    let result = match select(output, input).await {
        Either::Left((result, _)) | Either::Right((result, _)) => result,
    };
    match result {
        Ok(()) => SocatOutcome::SocatSuccess,
        Err(e) => SocatOutcome::InternalFailure(e.to_string()),
    }
}
