//! Directories.

mod connection;
mod dirents;
mod simple;
mod watchers;

use std::any::Any;
use std::sync::Arc;

use fidl_fuchsia_io as fio;
use fuchsia_zircon::Status;

use crate::attributes;
use crate::entry::{DirectoryEntry, EntryInfo, OpenRequest};
use crate::node;
use crate::open::Creation;

pub use connection::serve;
pub use simple::{Simple, simple};
pub use watchers::Watchers;

/// A kind of node that can be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NewNode {
    /// An empty file.
    File,
    /// An empty directory.
    Directory,
}

/// A directory whose entries are here: pseudo directories, and those of a host's file system. Calls must not wait for
/// another component; names are valid, and rights have been checked.
pub trait Directory: Send + Sync + 'static {
    /// The entry of this name.
    ///
    /// # Errors
    /// `NOT_FOUND` if there is none.
    fn lookup(&self, name: &str) -> Result<Arc<dyn DirectoryEntry>, Status>;

    /// All entries. The server sorts them.
    ///
    /// # Errors
    /// Those of what the directory is on.
    fn list(&self) -> Result<Vec<(String, EntryInfo)>, Status>;

    /// What can be done with it, by whoever has the rights.
    fn abilities(&self) -> fio::Operations {
        fio::R_STAR_DIR
    }

    /// Its attributes, all that it has.
    ///
    /// # Errors
    /// Those of what the directory is on.
    fn attributes(&self) -> Result<fio::NodeAttributes2, Status> {
        Ok(attributes::basic(fio::NodeProtocolKinds::DIRECTORY, self.abilities(), 0))
    }

    /// Sets the attributes that are present.
    ///
    /// # Errors
    /// `NOT_SUPPORTED` if one of them cannot be set.
    fn update_attributes(&self, _attributes: &fio::MutableNodeAttributes) -> Result<(), Status> {
        Err(Status::NOT_SUPPORTED)
    }

    /// Makes a node of this name.
    ///
    /// # Errors
    /// `ALREADY_EXISTS` if there is one, `NOT_SUPPORTED` if none can be made.
    fn create(&self, _name: &str, _node: NewNode) -> Result<Arc<dyn DirectoryEntry>, Status> {
        Err(Status::NOT_SUPPORTED)
    }

    /// Removes the node of this name.
    ///
    /// # Errors
    /// `NOT_FOUND`, `NOT_EMPTY`, `NOT_DIR` if it must be a directory and is not, `NOT_SUPPORTED`.
    fn unlink(&self, _name: &str, _must_be_directory: bool) -> Result<(), Status> {
        Err(Status::NOT_SUPPORTED)
    }

    /// Renames the node `from` to `to` in `target`, which is another directory of any kind or this one.
    ///
    /// # Errors
    /// `NOT_FOUND`, `NOT_SUPPORTED`, also if `target` is on another file system.
    fn rename(&self, _from: &str, _target: &Arc<dyn Directory>, _to: &str) -> Result<(), Status> {
        Err(Status::NOT_SUPPORTED)
    }

    /// Brings changes to the medium.
    ///
    /// # Errors
    /// Those of what the directory is on.
    fn sync(&self) -> Result<(), Status> {
        Ok(())
    }

    /// Who is to be told of changes, if the directory notices them.
    fn watchers(&self) -> Option<&Watchers> {
        None
    }

    /// Itself, so that another directory of the same kind recognizes it in [`Directory::rename`].
    fn as_any(&self) -> Option<&dyn Any> {
        None
    }
}

/// A directory as an entry of another.
struct Entry {
    directory: Arc<dyn Directory>,
    inode: u64,
}

/// Makes an entry of a directory. `inode` is unique where it will stand, or `INO_UNKNOWN`.
pub fn entry(directory: Arc<dyn Directory>, inode: u64) -> Arc<dyn DirectoryEntry> {
    Arc::new(Entry { directory, inode })
}

impl DirectoryEntry for Entry {
    fn entry_info(&self) -> EntryInfo {
        EntryInfo { inode: self.inode, kind: fio::DirentType::Directory }
    }

    fn open(self: Arc<Self>, request: OpenRequest) {
        open(self.directory.clone(), request);
    }

    fn as_directory(self: Arc<Self>) -> Option<Arc<dyn Directory>> {
        Some(self.directory.clone())
    }
}

/// Opens `directory`, or what the rest of the request's path names below it.
pub fn open(mut directory: Arc<dyn Directory>, mut request: OpenRequest) {
    // A loop: the depth of a path is the client's choice.
    loop {
        if request.path.is_empty() {
            return open_itself(directory, request);
        }
        let entry = match step(&directory, &mut request) {
            Ok(entry) => entry,
            Err(status) => return request.fail(status),
        };
        match entry.clone().as_directory() {
            Some(next) => directory = next,
            None => return entry.open(request),
        }
    }
}

/// Finds what the path's next name stands for, or makes it if it is the last and that was asked for.
fn step(
    directory: &Arc<dyn Directory>,
    request: &mut OpenRequest,
) -> Result<Arc<dyn DirectoryEntry>, Status> {
    let last = request.path.is_last();
    let creation = request.options.creation;
    let is_directory = request.options.creates_directory();
    if last && request.path.is_directory() {
        request.options.require_directory()?;
    }
    let name = request.path.pop().ok_or(Status::BAD_PATH)?;
    match directory.lookup(name) {
        Err(Status::NOT_FOUND) if last && creation != Creation::Never => {
            let needed = fio::Operations::MODIFY_DIRECTORY;
            if !request.granted.contains(needed) || !directory.abilities().contains(needed) {
                return Err(Status::ACCESS_DENIED);
            }
            if request.options.sets_attributes() {
                return Err(Status::NOT_SUPPORTED);
            }
            let node = if is_directory { NewNode::Directory } else { NewNode::File };
            let made = directory.create(name, node)?;
            request.options.creation = Creation::Never;
            Ok(made)
        }
        Ok(entry) if last => {
            if creation == Creation::Always {
                return Err(Status::ALREADY_EXISTS);
            }
            Ok(entry)
        }
        found => found,
    }
}

fn open_itself(directory: Arc<dyn Directory>, request: OpenRequest) {
    let options = &request.options;
    let checked = options.accept(fio::Flags::PROTOCOL_DIRECTORY).and_then(|()| {
        if options.creation == Creation::Always {
            return Err(Status::ALREADY_EXISTS);
        }
        if options.truncate || options.append {
            return Err(Status::INVALID_ARGS);
        }
        options.directory_rights(directory.abilities())
    });
    match checked {
        Err(status) => request.fail(status),
        Ok(_) if request.options.node => match directory.attributes() {
            Ok(attributes) => node::start(request, attributes),
            Err(status) => request.fail(status),
        },
        Ok(rights) => connection::start(directory, request, rights),
    }
}
