//! Backing files: where an image's unallocated clusters come from.

use std::sync::Arc;

use crate::error::Error;
use crate::file::BlockFile;
use crate::image::Image;

/// Most images in a chain of backing files. A loop ends here too.
pub const MAX_CHAIN: usize = 16;

/// Decides whether and how a backing file that an image names is opened. The name is data of whoever made the image
/// and deserves no trust.
pub trait BackingOpener {
    /// Opens `name`, for reading. `format` is what the image says it is: `raw`, `qcow2`, or another program's word.
    ///
    /// # Errors
    /// Whatever the caller of [`Image::open`] wants to be told.
    fn open(
        &mut self,
        name: &str,
        format: Option<&str>,
    ) -> Result<Arc<dyn BlockFile>, Box<dyn std::error::Error + Send + Sync>>;
}

/// Opens no backing file: an image that names one is refused.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoBacking;

impl BackingOpener for NoBacking {
    fn open(
        &mut self,
        _name: &str,
        _format: Option<&str>,
    ) -> Result<Arc<dyn BlockFile>, Box<dyn std::error::Error + Send + Sync>> {
        Err("backing files are not allowed here".into())
    }
}

/// An opened backing file.
pub enum Backing {
    /// The disk's bytes as they are.
    Raw {
        /// The file.
        file: Arc<dyn BlockFile>,
        /// Its length in bytes. Backing files do not change.
        len: u64,
    },
    /// Another image.
    Qcow(Box<Image>),
}

impl std::fmt::Debug for Backing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Raw { len, .. } => {
                f.debug_struct("Raw").field("len", len).finish_non_exhaustive()
            }
            Self::Qcow(image) => f.debug_tuple("Qcow").field(image).finish(),
        }
    }
}

impl Backing {
    /// The part of `buf`, which is read from `offset`, that the backing disk has; what is beyond its end is zero.
    fn within<'a>(&self, buf: &'a mut [u8], offset: u64) -> &'a mut [u8] {
        let len = match self {
            Self::Raw { len, .. } => *len,
            Self::Qcow(image) => image.size(),
        };
        let there =
            usize::try_from(len.saturating_sub(offset)).unwrap_or(usize::MAX).min(buf.len());
        let (data, beyond) = buf.split_at_mut(there);
        beyond.fill(0);
        data
    }

    /// Reads `buf` from `offset`; what is beyond the backing disk's end is zero.
    pub(crate) fn read_at(&mut self, buf: &mut [u8], offset: u64) -> Result<(), Error> {
        let data = self.within(buf, offset);
        match self {
            _ if data.is_empty() => Ok(()),
            Self::Raw { file, .. } => Ok(file.read_at(data, offset)?),
            Self::Qcow(image) => image.read_at(data, offset),
        }
    }

    /// As [`Backing::read_at`], as far as the tables needed are in memory; returns how many bytes were read.
    pub(crate) fn read_cached(&self, buf: &mut [u8], offset: u64) -> Result<usize, Error> {
        let len = buf.len();
        let data = self.within(buf, offset);
        match self {
            _ if data.is_empty() => {}
            Self::Raw { file, .. } => file.read_at(data, offset)?,
            Self::Qcow(image) => {
                let read = image.read_cached(data, offset)?;
                if read < data.len() {
                    return Ok(read);
                }
            }
        }
        Ok(len)
    }
}
