//! Services: nodes that hand the channel to somebody.

use std::sync::Arc;

use fidl::endpoints::RequestStream;
use fidl_fuchsia_io as fio;
use fuchsia_zircon::{self as zx, Status};

use crate::attributes;
use crate::entry::{DirectoryEntry, EntryInfo, OpenRequest};
use crate::execution_scope::ExecutionScope;
use crate::node;
use crate::open::WireFlags;

/// A node that gives the channel of each connection to a function.
pub struct Service<F> {
    connect: F,
}

/// A service whose connections are given to `connect`, which must not block.
pub fn endpoint<F>(connect: F) -> Arc<Service<F>>
where
    F: Fn(ExecutionScope, zx::Channel) + Send + Sync + 'static,
{
    Arc::new(Service { connect })
}

/// A service whose request streams are given to `connect`, which must not block.
pub fn host<S, F>(
    connect: F,
) -> Arc<Service<impl Fn(ExecutionScope, zx::Channel) + Send + Sync + 'static>>
where
    S: RequestStream,
    F: Fn(S) + Send + Sync + 'static,
{
    endpoint(move |_, channel| {
        let channel = fuchsia_async::Channel::from_channel(channel);
        connect(S::from_channel(channel));
    })
}

impl<F> DirectoryEntry for Service<F>
where
    F: Fn(ExecutionScope, zx::Channel) + Send + Sync + 'static,
{
    fn entry_info(&self) -> EntryInfo {
        EntryInfo::of_kind(fio::DirentType::Service)
    }

    fn open(self: Arc<Self>, request: OpenRequest) {
        if let Err(status) = check(&request) {
            return request.fail(status);
        }
        if request.options.node {
            return node::start(request, attributes_of_service());
        }
        let scope = request.scope.clone();
        let describe = request.options.describe;
        // A description precedes the protocol of the service.
        let described = node::describe(request.into_channel(), describe, &attributes_of_service());
        if let Some(channel) = described {
            (self.connect)(scope, channel);
        }
    }
}

fn check(request: &OpenRequest) -> Result<(), Status> {
    if !request.path.is_empty() {
        return Err(Status::NOT_DIR);
    }
    request.options.accept(fio::Flags::PROTOCOL_SERVICE)?;
    if request.options.truncate || request.options.append {
        return Err(Status::INVALID_ARGS);
    }
    let current = matches!(request.options.wire, WireFlags::Current(..));
    if current && !request.options.node && !request.granted.contains(fio::Operations::CONNECT) {
        return Err(Status::ACCESS_DENIED);
    }
    Ok(())
}

fn attributes_of_service() -> fio::NodeAttributes2 {
    let abilities = fio::Operations::GET_ATTRIBUTES;
    attributes::basic(fio::NodeProtocolKinds::CONNECTOR, abilities, 0)
}
