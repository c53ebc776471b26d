//! What a component sees: its namespace, and the directory in which its neighbours see what it exposes.

use super::open::{Request, Target};
use super::{Manager, StartError};
use crate::decl::{CapabilityType, UseDecl};
use crate::host_directory;
use crate::model::{InstanceId, TreeError};
use crate::name::Path;
use crate::resolver::Package;
use fidl::endpoints::{ClientEnd, ServerEnd, create_endpoints};
use fidl_fuchsia_component_runner as fcrunner;
use fidl_fuchsia_io as fio;
use fuchsia_async as fasync;
use fuchsia_zircon as zx;
use std::collections::BTreeMap;
use std::sync::Arc;
use vfs::DirectoryEntry;
use vfs::directory::{Directory, Simple};
use vfs::execution_scope::ExecutionScope;
use vfs::remote::lazy;

/// The most entries of a namespace, `fuchsia.component.runner/MAX_NAMESPACE_COUNT`.
const MAX_ENTRIES: usize = 32;

/// Directories by the path of the namespace in which they stand.
#[derive(Default)]
struct Directories(BTreeMap<String, Arc<Simple>>);

impl Directories {
    fn add(
        &mut self,
        directory: &str,
        name: &str,
        entry: Arc<dyn DirectoryEntry>,
    ) -> Result<(), String> {
        let parent = self.0.entry(directory.to_owned()).or_insert_with(vfs::directory::simple);
        parent.add_entry(name, entry).map_err(|status| format!("{directory}/{name}: {status}"))
    }
}

/// Makes the namespace of a run of `id`: nothing is opened before somebody asks for it.
pub(super) fn build(
    manager: &Manager,
    id: InstanceId,
    scope: &ExecutionScope,
    tasks: &mut Vec<fasync::Task<()>>,
) -> Result<Vec<fcrunner::ComponentNamespaceEntry>, String> {
    let resolved = manager.resolve(id).map_err(|error| error.to_string())?;
    let mut entries = Vec::new();
    let (client, server) = create_endpoints::<fio::DirectoryMarker>();
    vfs::directory::serve(package_directory(&resolved.package), scope, fio::RX_STAR_DIR, server);
    entries.push(entry("/pkg", client));
    let mut directories = Directories::default();
    for (index, used) in resolved.decl.uses.iter().enumerate() {
        let Some(path) = &used.target_path else { continue };
        match used.kind {
            CapabilityType::Directory | CapabilityType::Storage => {
                let (client, server) = create_endpoints::<fio::DirectoryMarker>();
                tasks.push(open_when_used(manager, id, index, used, server));
                entries.push(entry(path.as_str(), client));
            }
            _ => {
                let target = Target::Use { id, index };
                directories.add(
                    path.dirname(),
                    path.basename(),
                    manager.entry(fio::DirentType::Service, target),
                )?;
            }
        }
    }
    for (path, directory) in directories.0 {
        if path == "/" {
            return Err("A capability right below / cannot be shown".to_owned());
        }
        let (client, server) = create_endpoints::<fio::DirectoryMarker>();
        vfs::directory::serve(directory, scope, fio::R_STAR_DIR, server);
        entries.push(entry(&path, client));
    }
    Ok(entries)
}

/// A directory that whoever starts a component gives it, and its place in the namespace.
pub(crate) type GivenEntry = (Path, ClientEnd<fio::DirectoryMarker>);

/// Adds to a namespace what whoever starts its component gives.
///
/// # Errors
/// [`StartError::NamespaceConflict`] where two directories would have the same path or one would be inside the other;
/// [`StartError::Namespace`] for more entries than a namespace can have.
pub(super) fn merge(
    entries: &mut Vec<fcrunner::ComponentNamespaceEntry>,
    given: Vec<GivenEntry>,
) -> Result<(), StartError> {
    for (path, directory) in given {
        let present = entries.iter().filter_map(|entry| entry.path.as_deref());
        for present in present {
            if is_same_or_around(present, path.as_str())
                || is_same_or_around(path.as_str(), present)
            {
                let (given, present) = (path.to_string(), present.to_owned());
                return Err(StartError::NamespaceConflict { given, present });
            }
        }
        entries.push(entry(path.as_str(), directory));
    }
    if entries.len() > MAX_ENTRIES {
        let text = format!("{} entries, and {MAX_ENTRIES} are the most", entries.len());
        return Err(StartError::Namespace(text));
    }
    Ok(())
}

fn is_same_or_around(outer: &str, inner: &str) -> bool {
    inner.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn entry(
    path: &str,
    directory: ClientEnd<fio::DirectoryMarker>,
) -> fcrunner::ComponentNamespaceEntry {
    fcrunner::ComponentNamespaceEntry {
        path: Some(path.to_owned()),
        directory: Some(directory),
        ..Default::default()
    }
}

/// Opens a directory or storage when the component first asks something of it, so that its source starts no earlier.
fn open_when_used(
    manager: &Manager,
    id: InstanceId,
    index: usize,
    used: &UseDecl,
    server: ServerEnd<fio::DirectoryMarker>,
) -> fasync::Task<()> {
    let (manager, used) = (manager.downgrade(), used.clone());
    fasync::Task::local(async move {
        let signals = zx::Signals::CHANNEL_READABLE | zx::Signals::CHANNEL_PEER_CLOSED;
        let seen = fasync::OnSignals::new(server.channel(), signals).await;
        if !seen.is_ok_and(|seen| seen.contains(zx::Signals::CHANNEL_READABLE)) {
            return;
        }
        if let Some(manager) = manager.upgrade() {
            manager.open_used_directory(id, index, &used, server);
        }
    })
}

/// The package, as `/pkg` and as the framework's directory `pkg` show it.
pub(super) fn package_directory(package: &Package) -> Arc<dyn Directory> {
    match package {
        Package::Directory(path) => {
            host_directory::directory(path, host_directory::Access::Package)
        }
        Package::Builtin { executable } => {
            let directory = vfs::directory::simple();
            // Both names are valid and different, so neither is refused.
            let _added = directory.add_entry("bin", host_directory::binaries(executable));
            directory
        }
    }
}

/// What `id` exposes, for others to open.
pub(super) fn exposed_directory(
    manager: &Manager,
    id: InstanceId,
) -> Result<Arc<Simple>, TreeError> {
    let resolved = manager.resolve(id)?;
    let directory = vfs::directory::simple();
    let services = vfs::directory::simple();
    for expose in &resolved.decl.exposes {
        let (place, kind) = match expose.kind {
            CapabilityType::Protocol => (&services, fio::DirentType::Service),
            CapabilityType::Directory => (&directory, fio::DirentType::Directory),
            // Not routed. Who asks is refused, and the log says why.
            CapabilityType::Service | CapabilityType::Dictionary => {
                (&directory, fio::DirentType::Directory)
            }
            _ => continue,
        };
        let target = Target::Expose { id, kind: expose.kind, name: expose.target_name.clone() };
        // Two capabilities of different kinds may share a name; the first is shown.
        let _clash =
            place.add_entry(expose.target_name.as_str(), manager.entry(kind, target.clone()));
        if expose.kind == CapabilityType::Protocol {
            // As on Fuchsia, protocols stand in the directory itself; below `svc`, too, for clients that look there.
            let _clash =
                directory.add_entry(expose.target_name.as_str(), manager.entry(kind, target));
        }
    }
    let _clash = directory.add_entry("svc", vfs::directory::entry(services, fio::INO_UNKNOWN));
    Ok(directory)
}

impl Manager {
    /// An entry that is routed when it is opened.
    fn entry(&self, kind: fio::DirentType, target: Target) -> Arc<dyn DirectoryEntry> {
        let requests = self.inner.requests.clone();
        lazy(kind, move |open| {
            // Without a manager the request is dropped, which closes its channel.
            let _gone = requests.unbounded_send(Request { target: target.clone(), open });
        })
    }
}
