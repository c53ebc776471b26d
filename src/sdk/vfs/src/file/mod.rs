//! Files.

mod connection;
mod memory;

use std::sync::Arc;

use fidl_fuchsia_io as fio;
use fuchsia_zircon::{self as zx, Status};

use crate::attributes;
use crate::entry::{DirectoryEntry, EntryInfo, OpenRequest};
use crate::node;
use crate::open::Creation;

pub use memory::{Memory, read_only, read_write};

/// A file whose bytes are here. Calls must not wait for another component; rights have been checked.
pub trait File: Send + Sync + 'static {
    /// Reads bytes from `offset` and returns how many; fewer than the buffer holds only at the end.
    ///
    /// # Errors
    /// Those of what the file is on.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<usize, Status>;

    /// Writes bytes at `offset`, and returns how many.
    ///
    /// # Errors
    /// Those of what the file is on, `NO_SPACE` among them.
    fn write_at(&self, _offset: u64, _bytes: &[u8]) -> Result<usize, Status> {
        Err(Status::NOT_SUPPORTED)
    }

    /// Writes bytes at the end, and returns how many and where the end is now.
    ///
    /// # Errors
    /// As [`File::write_at`].
    fn append(&self, bytes: &[u8]) -> Result<(usize, u64), Status> {
        let end = self.size()?;
        let written = self.write_at(end, bytes)?;
        Ok((written, end.saturating_add(written as u64)))
    }

    /// The size in bytes.
    ///
    /// # Errors
    /// Those of what the file is on.
    fn size(&self) -> Result<u64, Status>;

    /// Cuts the file, or fills it up with zeros.
    ///
    /// # Errors
    /// Those of what the file is on.
    fn resize(&self, _size: u64) -> Result<(), Status> {
        Err(Status::NOT_SUPPORTED)
    }

    /// Brings what was written to the medium.
    ///
    /// # Errors
    /// Those of what the file is on.
    fn sync(&self) -> Result<(), Status> {
        Ok(())
    }

    /// A VMO with the file's bytes.
    ///
    /// # Errors
    /// `NOT_SUPPORTED` if it has none of the kind.
    fn backing_memory(&self, _flags: fio::VmoFlags) -> Result<zx::Vmo, Status> {
        Err(Status::NOT_SUPPORTED)
    }

    /// Locks the whole file against others, or lets go of it; does not wait. The lock is this file's, as are all connections to it,
    /// and ends with it.
    ///
    /// # Errors
    /// `BAD_STATE` if somebody else has a lock in the way, `NOT_SUPPORTED` if it has no locks.
    fn advisory_lock(&self, _kind: fio::AdvisoryLockType) -> Result<(), Status> {
        Err(Status::NOT_SUPPORTED)
    }

    /// What can be done with it, by whoever has the rights.
    fn abilities(&self) -> fio::Operations {
        fio::Operations::READ_BYTES | fio::Operations::GET_ATTRIBUTES
    }

    /// Its attributes, all that it has.
    ///
    /// # Errors
    /// Those of what the file is on.
    fn attributes(&self) -> Result<fio::NodeAttributes2, Status> {
        Ok(attributes::basic(fio::NodeProtocolKinds::FILE, self.abilities(), self.size()?))
    }

    /// Sets the attributes that are present.
    ///
    /// # Errors
    /// `NOT_SUPPORTED` if one of them cannot be set.
    fn update_attributes(&self, _attributes: &fio::MutableNodeAttributes) -> Result<(), Status> {
        Err(Status::NOT_SUPPORTED)
    }
}

/// A file as an entry of a directory.
struct Entry {
    file: Arc<dyn File>,
    inode: u64,
}

/// Makes an entry of a file. `inode` is unique where it will stand, or `INO_UNKNOWN`.
pub fn entry(file: Arc<dyn File>, inode: u64) -> Arc<dyn DirectoryEntry> {
    Arc::new(Entry { file, inode })
}

impl DirectoryEntry for Entry {
    fn entry_info(&self) -> EntryInfo {
        EntryInfo { inode: self.inode, kind: fio::DirentType::File }
    }

    fn open(self: Arc<Self>, request: OpenRequest) {
        open(self.file.clone(), request);
    }
}

/// Opens `file`.
pub fn open(file: Arc<dyn File>, request: OpenRequest) {
    let rights = match check(&*file, &request) {
        Ok(rights) => rights,
        Err(status) => return request.fail(status),
    };
    if request.options.node {
        match file.attributes() {
            Ok(attributes) => node::start(request, attributes),
            Err(status) => request.fail(status),
        }
        return;
    }
    if request.options.truncate
        && let Err(status) = file.resize(0)
    {
        return request.fail(status);
    }
    connection::start(file, request, rights);
}

fn check(file: &dyn File, request: &OpenRequest) -> Result<fio::Operations, Status> {
    let options = &request.options;
    if !request.path.is_empty() {
        return Err(Status::NOT_DIR);
    }
    options.accept(fio::Flags::PROTOCOL_FILE)?;
    if options.creation == Creation::Always {
        return Err(Status::ALREADY_EXISTS);
    }
    options.file_rights(file.abilities())
}
