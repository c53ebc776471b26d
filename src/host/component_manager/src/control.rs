//! `guest.host.ComponentManager`: the way into the tree for the command line, and a look at it.

use crate::log::{Record, Severity};
use crate::manager::{ExecutionState, Manager, WeakManager};
use crate::moniker::Moniker;
use fidl::endpoints::ServerEnd;
use fidl_guest_host as fhost;
use fuchsia_async as fasync;
use fuchsia_zircon as zx;
use futures::StreamExt;
use futures::channel::mpsc;

/// How many instances one reply carries.
const INSTANCES_A_REPLY: usize = 8;
/// How many bytes of log text one reply carries, at most, by its longest lines and monikers; well below a message's 64 KiB.
const RECORDS_A_REPLY: usize = 16;

/// Serves a client until it leaves.
///
/// A request to shut down is passed to `shutdown` with the responder's answer still to be sent: the receiver ends the process after it.
pub async fn serve(
    manager: WeakManager,
    server: ServerEnd<fhost::ComponentManagerMarker>,
    shutdown: mpsc::UnboundedSender<fhost::ComponentManagerShutdownResponder>,
) {
    let mut requests = server.into_stream();
    while let Some(Ok(request)) = requests.next().await {
        let Some(manager) = manager.upgrade() else { return };
        match request {
            fhost::ComponentManagerRequest::OpenExposedDir { object, .. } => {
                if let Err(error) = manager.open_root(object) {
                    tracing::error!(%error, "The root cannot be opened");
                }
            }
            fhost::ComponentManagerRequest::ListInstances { iterator, .. } => {
                list_instances(&manager, iterator);
            }
            fhost::ComponentManagerRequest::ReadLogs { options, iterator, .. } => {
                fasync::Task::local(read_logs(manager.downgrade(), options, iterator)).detach();
            }
            fhost::ComponentManagerRequest::StopInstance { moniker, responder } => {
                let result = stop_instance(&manager, &moniker).await;
                if responder.send(result.map_err(zx::Status::into_raw)).is_err() {
                    return;
                }
            }
            fhost::ComponentManagerRequest::Shutdown { responder } => {
                // Without a receiver the process is on its way out already.
                let _gone = shutdown.unbounded_send(responder);
            }
        }
    }
}

fn list_instances(manager: &Manager, iterator: ServerEnd<fhost::InstanceIteratorMarker>) {
    let all = {
        let tree = manager.tree();
        tree.subtree(tree.root())
    };
    let instances: Vec<_> = all
        .into_iter()
        .map(|id| {
            let url = {
                let tree = manager.tree();
                let resolved = tree.resolved(id).map(|resolved| resolved.url.to_string());
                resolved.or_else(|| tree.get(id).ok().map(|instance| instance.url.to_string()))
            };
            fhost::Instance {
                moniker: manager.moniker(id).to_string(),
                url: url.unwrap_or_default(),
                state: match manager.state(id) {
                    ExecutionState::Stopped => fhost::ExecutionState::Stopped,
                    ExecutionState::Running => fhost::ExecutionState::Running,
                    ExecutionState::Stopping => fhost::ExecutionState::Stopping,
                },
                termination_status: manager.last_end(id).map_or(0, |ended| ended.status.into_raw()),
            }
        })
        .collect();
    fasync::Task::local(async move {
        let mut pieces = instances.chunks(INSTANCES_A_REPLY);
        let mut requests = iterator.into_stream();
        while let Some(Ok(fhost::InstanceIteratorRequest::Next { responder })) =
            requests.next().await
        {
            if responder.send(pieces.next().unwrap_or_default()).is_err() {
                return;
            }
        }
    })
    .detach();
}

async fn stop_instance(manager: &Manager, moniker: &str) -> Result<(), zx::Status> {
    let moniker: Moniker = moniker.parse().map_err(|_| zx::Status::INVALID_ARGS)?;
    let id = { manager.tree().find(&moniker) }.map_err(|_| zx::Status::NOT_FOUND)?;
    manager.stop_tree(id).await;
    Ok(())
}

/// Which lines a reader wants.
struct Filter {
    moniker: Option<String>,
    severity: Severity,
}

impl Filter {
    fn takes(&self, record: &Record) -> bool {
        let below = self.moniker.as_ref().is_none_or(|moniker| {
            let rest = record.moniker.strip_prefix(moniker.as_str());
            moniker == "." || rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        });
        below && record.severity >= self.severity
    }
}

async fn read_logs(
    manager: WeakManager,
    options: fhost::LogOptions,
    iterator: ServerEnd<fhost::LogIteratorMarker>,
) {
    let filter = Filter {
        moniker: options.moniker,
        severity: Severity::from_number(options.min_severity.unwrap_or(0)),
    };
    let follow = options.follow.unwrap_or(false);
    let mut next = 0;
    let mut requests = iterator.into_stream();
    while let Some(Ok(fhost::LogIteratorRequest::Next { responder })) = requests.next().await {
        let records = loop {
            let Some(manager) = manager.upgrade() else { return };
            let (records, after) =
                manager.logs().read(next, RECORDS_A_REPLY, |record| filter.takes(record));
            next = after;
            if !records.is_empty() || !follow {
                break records;
            }
            let line = manager.logs().on_line();
            drop(manager);
            if line.await.is_err() {
                return;
            }
        };
        let records: Vec<_> = records
            .into_iter()
            .map(|record| fhost::LogRecord {
                time: record.time.into_nanos(),
                severity: record.severity as u8,
                moniker: record.moniker.to_string(),
                message: record.message,
            })
            .collect();
        if responder.send(&records).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_takes_an_instance_and_those_below_it() {
        let record = |moniker: &str| Record {
            number: 0,
            time: zx::Time::from_nanos(0),
            severity: Severity::Info,
            moniker: moniker.into(),
            message: String::new(),
        };
        let filter =
            |moniker: &str, severity| Filter { moniker: Some(moniker.to_owned()), severity };
        assert!(filter("a", Severity::Info).takes(&record("a")));
        assert!(filter("a", Severity::Info).takes(&record("a/b:c")));
        assert!(filter(".", Severity::Info).takes(&record("a")));
        assert!(!filter("a", Severity::Info).takes(&record("ab")));
        assert!(!filter("a", Severity::Warn).takes(&record("a")));
    }
}
