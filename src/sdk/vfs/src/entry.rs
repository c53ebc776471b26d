//! What can stand in a directory, and a request to open it.

use std::sync::Arc;

use fidl::endpoints::{ControlHandle as _, ServerEnd};
use fidl_fuchsia_io as fio;
use fuchsia_zircon::{self as zx, Status};

use crate::attributes;
use crate::directory::Directory;
use crate::execution_scope::ExecutionScope;
use crate::open::{Describe, OpenOptions};
use crate::path::Path;

/// What a directory tells of an entry when it is listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EntryInfo {
    /// Unique in the directory, or `INO_UNKNOWN`.
    pub inode: u64,
    /// The kind of node.
    pub kind: fio::DirentType,
}

impl EntryInfo {
    /// An entry without an inode number.
    pub fn of_kind(kind: fio::DirentType) -> EntryInfo {
        EntryInfo { inode: fio::INO_UNKNOWN, kind }
    }
}

/// A node that can stand in a directory.
pub trait DirectoryEntry: Send + Sync + 'static {
    /// What to tell when the directory is listed.
    fn entry_info(&self) -> EntryInfo;

    /// Opens the node, or what the rest of the request's path names below it. Must not block on another component.
    fn open(self: Arc<Self>, request: OpenRequest);

    /// The directory that this is, if it is one whose entries are here. Paths are then followed without calling `open`.
    fn as_directory(self: Arc<Self>) -> Option<Arc<dyn Directory>> {
        None
    }
}

/// A request to open a node. It must be served or [failed](OpenRequest::fail); dropping it closes the channel.
pub struct OpenRequest {
    pub(crate) scope: ExecutionScope,
    pub(crate) path: Path,
    pub(crate) options: OpenOptions,
    /// The rights of the connection on which it was made.
    pub(crate) granted: fio::Operations,
    pub(crate) channel: zx::Channel,
}

impl OpenRequest {
    /// A request as it comes from a connection with `granted` rights; `options` have been checked against them.
    pub fn new(
        scope: ExecutionScope,
        path: Path,
        options: OpenOptions,
        granted: fio::Operations,
        channel: zx::Channel,
    ) -> OpenRequest {
        OpenRequest { scope, path, options, granted, channel }
    }

    /// What is left of the path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What is asked for.
    pub fn options(&self) -> &OpenOptions {
        &self.options
    }

    /// The connections that the new one belongs to.
    pub fn scope(&self) -> &ExecutionScope {
        &self.scope
    }

    /// The channel, for a node that speaks for itself. Nothing has been sent on it.
    pub fn into_channel(self) -> zx::Channel {
        self.channel
    }

    /// Tells the client why it cannot have the node.
    pub fn fail(self, status: Status) {
        refuse(self.channel, self.options.describe, status);
    }
}

/// Tells the client at the other end of `channel` why it cannot have a node.
pub(crate) fn refuse(channel: zx::Channel, describe: Describe, status: Status) {
    let server = ServerEnd::<fio::NodeMarker>::new(channel);
    // A client that has gone needs no telling.
    if describe == Describe::OnOpen {
        let (_stream, control) = server.into_stream_and_control_handle();
        let _ = control.send_on_open(status.into_raw(), None);
        control.shutdown_with_epitaph(status);
    } else {
        let _ = server.close_with_epitaph(status);
    }
}

/// The attributes to send with a description, if they were asked for.
pub(crate) fn described_attributes(
    query: fio::NodeAttributesQuery,
    all: impl FnOnce() -> Result<fio::NodeAttributes2, Status>,
) -> Option<fio::NodeAttributes2> {
    if query.is_empty() {
        return None;
    }
    all().ok().map(|all| attributes::select(all, query))
}
