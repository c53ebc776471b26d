//! `fuchsia.logger.LogSink`: components that log for themselves.

use super::{LogStore, record};
use crate::moniker::Moniker;
use fidl::endpoints::ServerEnd;
use fidl_fuchsia_diagnostics_types as fdiagnostics;
use fidl_fuchsia_logger as flogger;
use fuchsia_async as fasync;
use fuchsia_zircon as zx;
use futures::StreamExt;

/// Serves a connection of the component at `moniker` until it closes it.
pub fn serve_log_sink(
    store: LogStore,
    moniker: Moniker,
    server: ServerEnd<flogger::LogSinkMarker>,
) -> fasync::Task<()> {
    fasync::Task::local(async move {
        let mut requests = server.into_stream();
        let mut first_interest_told = false;
        let mut waiting = None;
        let mut readers = Vec::new();
        while let Some(Ok(request)) = requests.next().await {
            match request {
                flogger::LogSinkRequest::ConnectStructured { socket, control_handle: _ } => {
                    readers.push(read_records(store.clone(), moniker.clone(), socket));
                }
                flogger::LogSinkRequest::WaitForInterestChange { responder } => {
                    // The interest never changes: the first call learns it, a second waits, a third at the same time is an error.
                    let interest = fdiagnostics::Interest {
                        min_severity: Some(fdiagnostics::Severity::Info),
                        ..Default::default()
                    };
                    let _gone = if !first_interest_told {
                        first_interest_told = true;
                        responder.send(Ok(&interest))
                    } else if waiting.is_none() {
                        waiting = Some(responder);
                        Ok(())
                    } else {
                        responder.send(Err(flogger::InterestChangeError::CalledTwice))
                    };
                }
                // A newer method, of an open protocol.
                _ => {}
            }
        }
    })
}

fn read_records(store: LogStore, moniker: Moniker, socket: zx::Socket) -> fasync::Task<()> {
    fasync::Task::local(async move {
        let socket = fasync::Socket::from_socket(socket);
        let mut datagram = Vec::new();
        loop {
            datagram.clear();
            if socket.read_datagram(&mut datagram).await.is_err() {
                return;
            }
            if let Some(record) = record::parse(&datagram) {
                store.add(&moniker, record.severity, &record.message);
            }
        }
    })
}
