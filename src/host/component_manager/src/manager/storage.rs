//! Storage: a directory of a component's own inside the directory that the storage capability is made from.

use super::Manager;
use super::open::close;
use crate::decl::{CapabilityType, UseDecl};
use crate::host_directory::{self, Access};
use crate::model::{InstanceId, RouteSource, StorageRoute};
use crate::moniker::Moniker;
use fidl::endpoints::ServerEnd;
use fidl_fuchsia_io as fio;
use fuchsia_zircon as zx;
use std::path::PathBuf;

impl Manager {
    pub(super) fn open_storage(
        &self,
        id: InstanceId,
        used: &UseDecl,
        server: ServerEnd<fio::DirectoryMarker>,
    ) {
        let route = { self.tree().route_storage(id, used) };
        let made = match route {
            Ok(route) => self.storage_path(id, &route).and_then(|path| {
                std::fs::create_dir_all(&path).map_err(|error| error.to_string())?;
                Ok(path)
            }),
            Err(error) => Err(error.to_string()),
        };
        match made {
            Ok(path) => {
                let directory = host_directory::directory(&path, Access::ReadWrite);
                let scope = { self.inner.exposed.borrow_mut().entry(id).or_default().clone() };
                vfs::directory::serve(directory, &scope, fio::RW_STAR_DIR, server);
            }
            Err(error) => {
                self.logs().error(
                    &self.moniker(id),
                    &format!("The storage {} is not available: {error}", used.source_name),
                );
                close(server.into_channel(), zx::Status::NOT_FOUND);
            }
        }
    }

    fn storage_path(&self, id: InstanceId, route: &StorageRoute) -> Result<PathBuf, String> {
        let RouteSource::Builtin { name } = &route.backing.source else {
            return Err(
                "Its directory is served by a component, where this system keeps no storage"
                    .to_owned(),
            );
        };
        let root = self
            .builtins()
            .host_path(name.as_str())
            .ok_or_else(|| format!("The system has no directory {name}"))?;
        Ok(root.join(route.backing.subdir.as_str()).join(storage_name(&self.moniker(id))))
    }

    /// Deletes what a dynamic instance and those below it stored; a static one keeps its storage.
    pub(super) fn delete_storage(&self, id: InstanceId) {
        let all = self.tree().subtree(id);
        for id in all {
            let Some(resolved) = self.tree().resolved(id).cloned() else { continue };
            for used in
                resolved.decl.uses.iter().filter(|used| used.kind == CapabilityType::Storage)
            {
                let route = { self.tree().route_storage(id, used) };
                let Some(path) = route.ok().and_then(|route| self.storage_path(id, &route).ok())
                else {
                    continue;
                };
                match std::fs::remove_dir_all(&path) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                        self.logs().note(
                            &self.moniker(id),
                            &format!("Its storage at {} remains: {error}", path.display()),
                        );
                    }
                    _ => {}
                }
            }
        }
    }
}

/// A directory name for an instance: its moniker, with what separates names replaced, since both are not allowed in names.
fn storage_name(moniker: &Moniker) -> String {
    let text = moniker.to_string();
    if text == "." { "root".to_owned() } else { text.replace('/', "@").replace(':', "+") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn different_instances_have_different_places() {
        let name = |text: &str| storage_name(&text.parse().unwrap());
        assert_eq!(name("a/b:c"), "a@b+c");
        assert_eq!(name("."), "root");
        assert_ne!(name("a/b"), name("a-b"));
    }
}
