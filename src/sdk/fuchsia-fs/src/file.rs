//! Files: reading and writing them whole.

use fidl_fuchsia_io as fio;
use fuchsia_zircon::Status;

use crate::node::{self, CloseError, OpenError};

/// How many reads are on their way at a time.
const READ_AHEAD: usize = 8;

/// Why a file could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It could not be opened.
    #[error("opening: {0}")]
    Open(#[from] OpenError),
    /// The call failed; with an epitaph, this is why it could not be opened.
    #[error("reading: {0}")]
    Fidl(#[from] fidl::Error),
    /// The server could not read.
    #[error("the server could not read: {0}")]
    ReadError(Status),
    /// It is not UTF-8.
    #[error("the file is not UTF-8: {0}")]
    InvalidUtf8(#[from] std::string::FromUtf8Error),
}

impl ReadError {
    /// Whether there is no such file.
    pub fn is_not_found_error(&self) -> bool {
        match self {
            ReadError::Open(error) => error.is_not_found_error(),
            ReadError::Fidl(fidl::Error::ClientChannelClosed { status, .. }) => {
                *status == Status::NOT_FOUND
            }
            _ => false,
        }
    }
}

/// Why a file could not be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// It could not be opened.
    #[error("opening: {0}")]
    Open(#[from] OpenError),
    /// The call failed; with an epitaph, this is why it could not be opened.
    #[error("writing: {0}")]
    Fidl(#[from] fidl::Error),
    /// The server could not write.
    #[error("the server could not write: {0}")]
    WriteError(Status),
    /// The server wrote nothing, or says that it wrote more than it was given.
    #[error("the server says that it wrote an impossible number of bytes")]
    Overwrite,
}

/// Opens the file at an absolute path of this process's namespace. What becomes of it, the proxy tells when used.
///
/// # Errors
/// [`OpenError::Namespace`].
pub fn open_in_namespace(path: &str, flags: fio::Flags) -> Result<fio::FileProxy, OpenError> {
    node::open_typed_in_namespace::<fio::FileMarker>(path, flags | fio::Flags::PROTOCOL_FILE)
}

/// Reads a file from its beginning to its end. Several reads are under way at a time.
///
/// # Errors
/// [`ReadError`].
pub async fn read(file: &fio::FileProxy) -> Result<Vec<u8>, ReadError> {
    use std::collections::VecDeque;
    let mut bytes = Vec::new();
    let mut asked = 0;
    let mut reads = VecDeque::new();
    loop {
        while reads.len() < READ_AHEAD {
            reads.push_back(file.read_at(fio::MAX_TRANSFER_SIZE, asked));
            asked += fio::MAX_TRANSFER_SIZE;
        }
        let Some(read) = reads.pop_front() else {
            return Ok(bytes);
        };
        let data = read.await?.map_err(|raw| ReadError::ReadError(Status::from_raw(raw)))?;
        bytes.extend_from_slice(&data);
        // Fewer bytes than asked for are the last ones.
        if (data.len() as u64) < fio::MAX_TRANSFER_SIZE {
            return Ok(bytes);
        }
    }
}

/// Reads a file that must be UTF-8.
///
/// # Errors
/// [`ReadError`].
pub async fn read_to_string(file: &fio::FileProxy) -> Result<String, ReadError> {
    Ok(String::from_utf8(read(file).await?)?)
}

/// Reads the file at an absolute path of this process's namespace.
///
/// # Errors
/// [`ReadError`].
pub async fn read_in_namespace(path: &str) -> Result<Vec<u8>, ReadError> {
    read(&open_in_namespace(path, fio::PERM_READABLE)?).await
}

/// Reads the file at an absolute path of this process's namespace, which must be UTF-8.
///
/// # Errors
/// [`ReadError`].
pub async fn read_in_namespace_to_string(path: &str) -> Result<String, ReadError> {
    read_to_string(&open_in_namespace(path, fio::PERM_READABLE)?).await
}

/// Writes all of `data` where the file's offset is.
///
/// # Errors
/// [`WriteError`].
pub async fn write(file: &fio::FileProxy, data: impl AsRef<[u8]>) -> Result<(), WriteError> {
    let mut data = data.as_ref();
    while !data.is_empty() {
        let chunk = &data[..data.len().min(fio::MAX_TRANSFER_SIZE as usize)];
        let written = file
            .write(chunk)
            .await?
            .map_err(|raw| WriteError::WriteError(Status::from_raw(raw)))?;
        let written = usize::try_from(written).map_err(|_| WriteError::Overwrite)?;
        if written == 0 || written > chunk.len() {
            return Err(WriteError::Overwrite);
        }
        data = &data[written..];
    }
    Ok(())
}

/// Closes a file.
///
/// # Errors
/// [`CloseError`].
pub async fn close(file: fio::FileProxy) -> Result<(), CloseError> {
    node::closed(file.close().await)
}
