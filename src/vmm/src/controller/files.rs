//! Reading kernel images out of `fuchsia.io` files.

use fidl::endpoints::ClientEnd;
use fidl_fuchsia_io::{FileMarker, FileProxy, MAX_TRANSFER_SIZE, VmoFlags};
use fuchsia_zircon as zx;
use futures::StreamExt as _;
use futures::stream::FuturesOrdered;

/// Largest file that is read, in bytes.
const MAX_FILE: u64 = 4 << 30;
/// Reads under way at once, for files whose server gives no memory.
const READS_AHEAD: usize = 16;

/// Why a file could not be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum FileError {
    /// The server went away or broke the protocol.
    #[error("Reading a file: {0}")]
    Fidl(#[from] fidl::Error),
    /// The server refused.
    #[error("Reading a file: {0}")]
    Status(zx::Status),
    /// The file is larger than [`MAX_FILE`].
    #[error("File of {0} bytes is too large")]
    TooLarge(u64),
}

/// A file's contents.
pub(super) enum Contents {
    /// In memory that the server gave.
    Memory(zx::Vmo),
    /// Read already.
    Read(Vec<u8>),
}

impl Contents {
    /// Reads all, which may block for as long as a disk takes.
    ///
    /// # Errors
    ///
    /// [`FileError`]
    pub(super) fn read(self) -> Result<Vec<u8>, FileError> {
        match self {
            Self::Memory(vmo) => read_vmo(&vmo),
            Self::Read(contents) => Ok(contents),
        }
    }
}

/// Gets what is in `file`.
///
/// # Errors
///
/// [`FileError`]
pub(super) async fn open(file: ClientEnd<FileMarker>) -> Result<Contents, FileError> {
    let file = file.into_proxy();
    match file.get_backing_memory(VmoFlags::READ).await? {
        Ok(vmo) => Ok(Contents::Memory(vmo)),
        // Not every server has memory to give.
        Err(_) => read_in_pieces(&file).await.map(Contents::Read),
    }
}

fn read_vmo(vmo: &zx::Vmo) -> Result<Vec<u8>, FileError> {
    let size = vmo.get_content_size().map_err(FileError::Status)?;
    if size > MAX_FILE {
        return Err(FileError::TooLarge(size));
    }
    vmo.read_to_vec(0, size).map_err(FileError::Status)
}

async fn read_in_pieces(file: &FileProxy) -> Result<Vec<u8>, FileError> {
    let mut contents = Vec::new();
    let mut next = 0;
    let mut reads = FuturesOrdered::new();
    loop {
        while reads.len() < READS_AHEAD {
            reads.push_back(file.read_at(MAX_TRANSFER_SIZE, next));
            next += MAX_TRANSFER_SIZE;
        }
        let Some(read) = reads.next().await else { return Ok(contents) };
        let data = read?.map_err(|status| FileError::Status(zx::Status::from_raw(status)))?;
        contents.extend_from_slice(&data);
        let size = contents.len() as u64;
        if size > MAX_FILE {
            return Err(FileError::TooLarge(size));
        }
        // A short read is the end of the file.
        if (data.len() as u64) < MAX_TRANSFER_SIZE {
            return Ok(contents);
        }
    }
}
