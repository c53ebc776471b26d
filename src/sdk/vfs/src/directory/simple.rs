//! Directories that exist only here, such as the one of what a component provides.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fidl_fuchsia_io as fio;
use fuchsia_zircon::Status;

use super::{Directory, Watchers};
use crate::entry::{DirectoryEntry, EntryInfo, OpenRequest};
use crate::path::validate_name;

/// A directory whose entries are added and removed by the program that serves it, and not by clients.
#[derive(Default)]
pub struct Simple {
    entries: Mutex<BTreeMap<String, Arc<dyn DirectoryEntry>>>,
    watchers: Watchers,
}

/// An empty directory.
pub fn simple() -> Arc<Simple> {
    Arc::new(Simple::default())
}

impl Simple {
    fn entries(&self) -> MutexGuard<'_, BTreeMap<String, Arc<dyn DirectoryEntry>>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an entry.
    ///
    /// # Errors
    /// `INVALID_ARGS` if it cannot have this name, `ALREADY_EXISTS` if another has.
    pub fn add_entry(
        &self,
        name: impl Into<String>,
        entry: Arc<dyn DirectoryEntry>,
    ) -> Result<(), Status> {
        let name = name.into();
        validate_name(&name)?;
        let mut entries = self.entries();
        if entries.contains_key(&name) {
            return Err(Status::ALREADY_EXISTS);
        }
        entries.insert(name.clone(), entry);
        // Under the lock, so that watchers see changes in their order.
        self.watchers.added(&name);
        Ok(())
    }

    /// Removes an entry and returns it. Connections to it go on.
    pub fn remove_entry(&self, name: &str) -> Option<Arc<dyn DirectoryEntry>> {
        let mut entries = self.entries();
        let entry = entries.remove(name)?;
        self.watchers.removed(name);
        Some(entry)
    }

    /// The entry of this name.
    pub fn get_entry(&self, name: &str) -> Option<Arc<dyn DirectoryEntry>> {
        self.entries().get(name).cloned()
    }

    /// Removes all entries.
    pub fn remove_all_entries(&self) {
        let mut entries = self.entries();
        for name in entries.keys() {
            self.watchers.removed(name);
        }
        let removed = std::mem::take(&mut *entries);
        drop(entries);
        drop(removed);
    }

    /// The names of the entries, sorted.
    pub fn names(&self) -> Vec<String> {
        self.entries().keys().cloned().collect()
    }
}

impl Directory for Simple {
    fn lookup(&self, name: &str) -> Result<Arc<dyn DirectoryEntry>, Status> {
        self.get_entry(name).ok_or(Status::NOT_FOUND)
    }

    fn list(&self) -> Result<Vec<(String, EntryInfo)>, Status> {
        let entries = self.entries();
        Ok(entries.iter().map(|(name, entry)| (name.clone(), entry.entry_info())).collect())
    }

    fn abilities(&self) -> fio::Operations {
        // It has nothing to write or execute of its own, but what is below may.
        fio::RW_STAR_DIR | fio::Operations::EXECUTE
    }

    fn watchers(&self) -> Option<&Watchers> {
        Some(&self.watchers)
    }
}

impl DirectoryEntry for Simple {
    fn entry_info(&self) -> EntryInfo {
        EntryInfo::of_kind(fio::DirentType::Directory)
    }

    fn open(self: Arc<Self>, request: OpenRequest) {
        super::open(self, request);
    }

    fn as_directory(self: Arc<Self>) -> Option<Arc<dyn Directory>> {
        Some(self)
    }
}
