//! Directories: opening what is in them, listing them, making some.

use fidl::endpoints::create_proxy;
use fidl_fuchsia_io as fio;
use fuchsia_zircon::Status;

use crate::file::{self, ReadError};
use crate::node::{self, CloneError, CloseError, OpenError, recast};

/// Opens the directory at an absolute path of this process's namespace. What becomes of it, the proxy tells when used.
///
/// # Errors
/// [`OpenError::Namespace`].
pub fn open_in_namespace(path: &str, flags: fio::Flags) -> Result<fio::DirectoryProxy, OpenError> {
    let flags = flags | fio::Flags::PROTOCOL_DIRECTORY;
    node::open_typed_in_namespace::<fio::DirectoryMarker>(path, flags)
}

/// Opens a directory in `parent`. What becomes of it, the proxy tells when used.
///
/// # Errors
/// [`OpenError::SendOpenRequest`].
pub fn open_directory_async(
    parent: &fio::DirectoryProxy,
    path: &str,
    flags: fio::Flags,
) -> Result<fio::DirectoryProxy, OpenError> {
    let flags = flags | fio::Flags::PROTOCOL_DIRECTORY;
    node::open_typed::<fio::DirectoryMarker>(parent, path, flags)
}

/// Opens a directory in `parent`, and waits until that has succeeded.
///
/// # Errors
/// All of [`OpenError`] but [`OpenError::Namespace`].
pub async fn open_directory(
    parent: &fio::DirectoryProxy,
    path: &str,
    flags: fio::Flags,
) -> Result<fio::DirectoryProxy, OpenError> {
    let directory =
        open_directory_async(parent, path, flags | fio::Flags::FLAG_SEND_REPRESENTATION)?;
    match first_event(directory.take_event_stream()).await? {
        fio::Representation::Directory(_) => Ok(directory),
        _ => Err(OpenError::UnexpectedNode),
    }
}

async fn first_event(
    mut events: fio::DirectoryEventStream,
) -> Result<fio::Representation, OpenError> {
    use futures::StreamExt;
    match events.next().await {
        Some(Ok(fio::DirectoryEvent::OnRepresentation { payload })) => Ok(payload),
        Some(Ok(_)) => Err(OpenError::UnexpectedNode),
        Some(Err(error)) => Err(node::open_error(error)),
        None => Err(OpenError::OnOpenEventStreamClosed),
    }
}

/// Opens a directory in `parent`, which is made if it is not there, and waits until that has succeeded.
///
/// # Errors
/// As [`open_directory`].
pub async fn create_directory(
    parent: &fio::DirectoryProxy,
    path: &str,
    flags: fio::Flags,
) -> Result<fio::DirectoryProxy, OpenError> {
    open_directory(parent, path, flags | fio::Flags::FLAG_MAYBE_CREATE).await
}

/// As [`create_directory`], for each name of `path` in turn.
///
/// # Errors
/// As [`open_directory`].
pub async fn create_directory_recursive(
    parent: &fio::DirectoryProxy,
    path: &str,
    flags: fio::Flags,
) -> Result<fio::DirectoryProxy, OpenError> {
    let mut directory = None;
    for name in path.split('/').filter(|name| !name.is_empty()) {
        let parent = directory.as_ref().unwrap_or(parent);
        directory = Some(create_directory(parent, name, flags).await?);
    }
    match directory {
        Some(directory) => Ok(directory),
        None => open_directory(parent, ".", flags).await,
    }
}

/// Opens a file in `parent`. What becomes of it, the proxy tells when used.
///
/// # Errors
/// [`OpenError::SendOpenRequest`].
pub fn open_file_async(
    parent: &fio::DirectoryProxy,
    path: &str,
    flags: fio::Flags,
) -> Result<fio::FileProxy, OpenError> {
    node::open_typed::<fio::FileMarker>(parent, path, flags | fio::Flags::PROTOCOL_FILE)
}

/// Opens a file in `parent`, and waits until that has succeeded.
///
/// # Errors
/// All of [`OpenError`] but [`OpenError::Namespace`].
pub async fn open_file(
    parent: &fio::DirectoryProxy,
    path: &str,
    flags: fio::Flags,
) -> Result<fio::FileProxy, OpenError> {
    use futures::StreamExt;
    let file = open_file_async(parent, path, flags | fio::Flags::FLAG_SEND_REPRESENTATION)?;
    match file.take_event_stream().next().await {
        Some(Ok(fio::FileEvent::OnRepresentation { payload: fio::Representation::File(_) })) => {
            Ok(file)
        }
        Some(Ok(_)) => Err(OpenError::UnexpectedNode),
        Some(Err(error)) => Err(node::open_error(error)),
        None => Err(OpenError::OnOpenEventStreamClosed),
    }
}

/// Opens any node in `parent`, and waits until that has succeeded.
///
/// # Errors
/// As [`open_directory`].
pub async fn open_node(
    parent: &fio::DirectoryProxy,
    path: &str,
    flags: fio::Flags,
) -> Result<fio::NodeProxy, OpenError> {
    node::open_node(parent, path, flags).await
}

/// Another connection to the same directory, with the same rights.
///
/// # Errors
/// If the server has gone.
pub fn clone(directory: &fio::DirectoryProxy) -> Result<fio::DirectoryProxy, CloneError> {
    let (clone, server) = create_proxy::<fio::DirectoryMarker>();
    directory.clone(recast(server)).map_err(CloneError)?;
    Ok(clone)
}

/// Closes a directory.
///
/// # Errors
/// [`CloseError`].
pub async fn close(directory: fio::DirectoryProxy) -> Result<(), CloseError> {
    node::closed(directory.close().await)
}

/// Reads the file at `path` in `parent`.
///
/// # Errors
/// [`ReadError`].
pub async fn read_file(parent: &fio::DirectoryProxy, path: &str) -> Result<Vec<u8>, ReadError> {
    let file = open_file_async(parent, path, fio::PERM_READABLE)?;
    file::read(&file).await
}

/// Reads the file at `path` in `parent`, which must be UTF-8.
///
/// # Errors
/// [`ReadError`].
pub async fn read_file_to_string(
    parent: &fio::DirectoryProxy,
    path: &str,
) -> Result<String, ReadError> {
    let file = open_file_async(parent, path, fio::PERM_READABLE)?;
    file::read_to_string(&file).await
}

/// The kind of an entry.
pub type DirentKind = fio::DirentType;

/// An entry of a directory.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct DirEntry {
    /// Its name.
    pub name: String,
    /// Its kind.
    pub kind: DirentKind,
}

/// Why a directory could not be listed.
#[derive(Debug, thiserror::Error)]
pub enum EnumerateError {
    /// The call failed.
    #[error("the directory could not be asked: {0}")]
    Fidl(fidl::Error),
    /// The server could not read the directory.
    #[error("the server could not read the directory: {0}")]
    ReadDirents(Status),
    /// The server sent something that is no list of entries.
    #[error("the server sent a list that breaks the format")]
    Decode,
}

/// All entries of a directory but itself, sorted by name.
///
/// # Errors
/// [`EnumerateError`].
pub async fn readdir(directory: &fio::DirectoryProxy) -> Result<Vec<DirEntry>, EnumerateError> {
    let status = directory.rewind().await.map_err(EnumerateError::Fidl)?;
    Status::ok(status).map_err(EnumerateError::ReadDirents)?;
    let mut entries = Vec::new();
    loop {
        let (status, dirents) =
            directory.read_dirents(fio::MAX_BUF).await.map_err(EnumerateError::Fidl)?;
        Status::ok(status).map_err(EnumerateError::ReadDirents)?;
        if dirents.is_empty() {
            break;
        }
        parse_dirents(&dirents, &mut entries)?;
    }
    entries.retain(|entry| entry.name != ".");
    entries.sort_unstable();
    Ok(entries)
}

fn parse_dirents(mut dirents: &[u8], entries: &mut Vec<DirEntry>) -> Result<(), EnumerateError> {
    while !dirents.is_empty() {
        let (header, rest) = dirents.split_first_chunk::<10>().ok_or(EnumerateError::Decode)?;
        let [.., length, kind] = *header;
        let (name, rest) = rest.split_at_checked(length.into()).ok_or(EnumerateError::Decode)?;
        let name = std::str::from_utf8(name).map_err(|_| EnumerateError::Decode)?;
        let kind = fio::DirentType::from_primitive_allow_unknown(kind);
        entries.push(DirEntry { name: name.to_owned(), kind });
        dirents = rest;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broken_list_is_an_error() {
        let good = [&[0; 8][..], b"\x02\x08ab", &[0; 8], b"\x01\x04c"].concat();
        let mut entries = Vec::new();
        assert!(parse_dirents(&good, &mut entries).is_ok());
        let names: Vec<_> = entries.iter().map(|entry| (entry.name.as_str(), entry.kind)).collect();
        assert_eq!(names, [("ab", DirentKind::File), ("c", DirentKind::Directory)]);
        for cut in [1, 9, 11, 13, 22] {
            let mut entries = Vec::new();
            let result = parse_dirents(&good[..cut], &mut entries);
            assert!(matches!(result, Err(EnumerateError::Decode)), "{cut}");
        }
        let not_text = [&[0; 8][..], b"\x01\x08\xff"].concat();
        assert!(parse_dirents(&not_text, &mut Vec::new()).is_err());
    }
}
