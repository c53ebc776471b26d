//! The namespace of this process: directories at absolute paths, given to it when it was started.
//!
//! On Fuchsia programs that use libc find their namespace in fdio. This one is read from the same startup handles
//! (`PA_NS_DIR` and the table of names) and is the only one in a process that uses it.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use fidl::endpoints::{ClientEnd, SynchronousProxy as _};
use fidl_fuchsia_io as fio;
use fuchsia_zircon::{self as zx, Status, processargs};

/// Directories at absolute paths. No path is below another.
#[derive(Default)]
pub struct Namespace {
    entries: RwLock<BTreeMap<String, Arc<fio::DirectorySynchronousProxy>>>,
}

impl Namespace {
    /// A namespace without directories.
    pub fn new() -> Namespace {
        Namespace::default()
    }

    /// The namespace of this process. It holds what the process was started with, unless that has been taken before, and
    /// what was [bound](Namespace::bind) since.
    pub fn installed() -> &'static Namespace {
        static INSTALLED: OnceLock<Namespace> = OnceLock::new();
        INSTALLED.get_or_init(|| {
            let namespace = Namespace::new();
            for (path, directory) in processargs::take_namespace() {
                // What cannot be bound is missing, as on Fuchsia, and is reported by who looks for it.
                let _ = namespace.bind(&path, ClientEnd::new(directory));
            }
            namespace
        })
    }

    /// Puts a directory at `path`.
    ///
    /// # Errors
    /// `INVALID_ARGS` unless the path is absolute and keeps to the rules; `ALREADY_EXISTS` if there is a directory at it,
    /// above or below it.
    pub fn bind(
        &self,
        path: &str,
        directory: ClientEnd<fio::DirectoryMarker>,
    ) -> Result<(), Status> {
        let path = check(path)?;
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        let overlap = entries
            .keys()
            .any(|other| below(path, other).is_some() || below(other, path).is_some());
        if overlap {
            return Err(Status::ALREADY_EXISTS);
        }
        let directory = fio::DirectorySynchronousProxy::from_channel(directory.into_channel());
        entries.insert(path.to_owned(), Arc::new(directory));
        Ok(())
    }

    /// Takes the directory at `path` away.
    ///
    /// # Errors
    /// `NOT_FOUND` if there is none at exactly this path.
    pub fn unbind(&self, path: &str) -> Result<(), Status> {
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        let directory = entries.remove(check(path)?);
        drop(entries);
        directory.map(drop).ok_or(Status::NOT_FOUND)
    }

    /// The paths at which there are directories, sorted.
    pub fn paths(&self) -> Vec<String> {
        let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
        entries.keys().cloned().collect()
    }

    /// Opens what is at `path`. Returns once the request is on its way; what becomes of it, `channel` tells.
    ///
    /// # Errors
    /// `BAD_PATH` unless the path is absolute, `NOT_FOUND` if no directory is at it or above it, `PEER_CLOSED` if the
    /// server of that directory has gone.
    pub fn open(&self, path: &str, flags: fio::Flags, channel: zx::Channel) -> Result<(), Status> {
        let absolute = path.starts_with('/').then(|| path.trim_end_matches('/'));
        let path = absolute.ok_or(Status::BAD_PATH)?;
        let (directory, rest) = self.find(path).ok_or(Status::NOT_FOUND)?;
        let sent = directory.open(rest, flags, &fio::Options::default(), channel);
        sent.map_err(|_| Status::PEER_CLOSED)
    }

    fn find<'a>(&self, path: &'a str) -> Option<(Arc<fio::DirectorySynchronousProxy>, &'a str)> {
        let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
        entries.iter().find_map(|(mount, directory)| {
            let rest = below(path, mount)?;
            Some((directory.clone(), if rest.is_empty() { "." } else { rest }))
        })
    }
}

/// What `path` is relative to `directory`, if it is that or below it.
fn below<'a>(path: &'a str, directory: &str) -> Option<&'a str> {
    let rest = path.strip_prefix(directory.trim_end_matches('/'))?;
    if rest.is_empty() { Some(rest) } else { rest.strip_prefix('/') }
}

fn check(path: &str) -> Result<&str, Status> {
    let rest = path.strip_prefix('/').ok_or(Status::INVALID_ARGS)?;
    if rest.is_empty() {
        return Ok(path);
    }
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    for name in rest.split('/') {
        vfs::path::validate_name(name)?;
    }
    Ok(path.trim_end_matches('/'))
}

/// Opens what is at an absolute path of this process's namespace. See [`Namespace::open`].
///
/// # Errors
/// As [`Namespace::open`].
pub fn open(path: &str, flags: fio::Flags, channel: zx::Channel) -> Result<(), Status> {
    Namespace::installed().open(path, flags, channel)
}

#[cfg(test)]
mod tests {
    use super::*;
    use fidl::endpoints::create_endpoints;

    fn directory()
    -> (ClientEnd<fio::DirectoryMarker>, fidl::endpoints::ServerEnd<fio::DirectoryMarker>) {
        create_endpoints::<fio::DirectoryMarker>()
    }

    #[test]
    fn directories_do_not_overlap() {
        let namespace = Namespace::new();
        let bind = |path: &str| namespace.bind(path, directory().0);
        assert_eq!(bind("/config/data"), Ok(()));
        assert_eq!(bind("/svc/"), Ok(()));
        for overlapping in ["/", "/config", "/config/data", "/config/data/more", "/svc"] {
            assert_eq!(bind(overlapping), Err(Status::ALREADY_EXISTS), "{overlapping}");
        }
        for bad in ["", "svc", "/a/../b", "//", "/a//b"] {
            assert_eq!(bind(bad), Err(Status::INVALID_ARGS), "{bad}");
        }
        assert_eq!(bind("/config/database"), Ok(()));
        assert_eq!(namespace.paths(), ["/config/data", "/config/database", "/svc"]);
        assert_eq!(namespace.unbind("/svc"), Ok(()));
        assert_eq!(namespace.unbind("/svc"), Err(Status::NOT_FOUND));
    }

    #[test]
    fn requests_go_to_the_directory_above() {
        let namespace = Namespace::new();
        let (client, server) = directory();
        namespace.bind("/svc", client).expect("the namespace is empty");
        let open = |path: &str| namespace.open(path, fio::PERM_READABLE, zx::Channel::create().0);
        assert_eq!(open("/svc/a/b"), Ok(()));
        assert_eq!(open("/service"), Err(Status::NOT_FOUND));
        assert_eq!(open("svc/a"), Err(Status::BAD_PATH));
        let mut message = zx::MessageBuf::new();
        server.channel().read(&mut message).expect("one request has come");
        assert!(message.bytes().windows(3).any(|bytes| bytes == b"a/b"));
        drop(server);
        assert_eq!(open("/svc"), Err(Status::PEER_CLOSED));
    }
}
