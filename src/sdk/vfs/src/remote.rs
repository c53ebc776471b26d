//! Directories that another component serves.

use std::sync::Arc;

use fidl_fuchsia_io as fio;
use fuchsia_zircon::Status;

use crate::entry::{DirectoryEntry, EntryInfo, OpenRequest};
use crate::open::WireFlags;

/// A directory elsewhere. Requests go there with the rest of their path.
pub struct RemoteDirectory {
    directory: fio::DirectoryProxy,
}

/// A directory that is served by the other end of `directory`.
pub fn remote_dir(directory: fio::DirectoryProxy) -> Arc<RemoteDirectory> {
    Arc::new(RemoteDirectory { directory })
}

impl DirectoryEntry for RemoteDirectory {
    fn entry_info(&self) -> EntryInfo {
        EntryInfo::of_kind(fio::DirentType::Directory)
    }

    fn open(self: Arc<Self>, request: OpenRequest) {
        request.forward(&self.directory, ".");
    }
}

/// An entry that hands whole requests, with the rest of their path, to a function: for a directory that is only brought
/// to life when somebody asks.
pub struct Lazy<F> {
    kind: fio::DirentType,
    open: F,
}

/// An entry of this kind that gives requests to `open`, which must not block.
pub fn lazy<F: Fn(OpenRequest) + Send + Sync + 'static>(
    kind: fio::DirentType,
    open: F,
) -> Arc<Lazy<F>> {
    Arc::new(Lazy { kind, open })
}

impl<F: Fn(OpenRequest) + Send + Sync + 'static> DirectoryEntry for Lazy<F> {
    fn entry_info(&self) -> EntryInfo {
        EntryInfo::of_kind(self.kind)
    }

    fn open(self: Arc<Self>, request: OpenRequest) {
        (self.open)(request);
    }
}

impl OpenRequest {
    /// Passes the request on to a directory that another component serves, as `path` there followed by what is left of
    /// its own path.
    pub fn forward(self, directory: &fio::DirectoryProxy, path: &str) {
        let rest = self.path.remainder();
        let path = match (path.trim_matches('/'), rest.as_str()) {
            ("" | ".", _) => rest,
            (path, ".") => path.to_owned(),
            (path, rest) => format!("{path}/{rest}"),
        };
        if path.len() as u64 > fio::MAX_PATH_LENGTH {
            return self.fail(Status::BAD_PATH);
        }
        // What became of it, the other server tells on the channel; if it has gone, the channel closes.
        let _ = match self.options.wire {
            WireFlags::Current(flags, options) => {
                directory.open(&path, flags, &options, self.channel)
            }
            WireFlags::Deprecated(flags) => {
                let node = fidl::endpoints::ServerEnd::<fio::NodeMarker>::new(self.channel);
                directory.deprecated_open(flags, fio::ModeType::empty(), &path, node)
            }
        };
    }
}
