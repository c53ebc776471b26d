//! Whatever stands for a directory that things can be opened in.

use fidl_fuchsia_io as fio;
use fuchsia_zircon as zx;

/// Something that opens nodes.
pub trait Directory {
    /// Asks for the node at `path`; what becomes of it, `channel` tells.
    ///
    /// # Errors
    /// If the request could not be sent.
    fn open(&self, path: &str, flags: fio::Flags, channel: zx::Channel) -> Result<(), fidl::Error>;
}

/// Something that stands for a directory.
pub trait AsRefDirectory {
    /// The directory.
    fn as_ref_directory(&self) -> &dyn Directory;
}

impl Directory for fio::DirectoryProxy {
    fn open(&self, path: &str, flags: fio::Flags, channel: zx::Channel) -> Result<(), fidl::Error> {
        fio::DirectoryProxy::open(self, path, flags, &fio::Options::default(), channel)
    }
}

impl Directory for fio::DirectorySynchronousProxy {
    fn open(&self, path: &str, flags: fio::Flags, channel: zx::Channel) -> Result<(), fidl::Error> {
        fio::DirectorySynchronousProxy::open(self, path, flags, &fio::Options::default(), channel)
    }
}

impl AsRefDirectory for fio::DirectoryProxy {
    fn as_ref_directory(&self) -> &dyn Directory {
        self
    }
}

impl AsRefDirectory for fio::DirectorySynchronousProxy {
    fn as_ref_directory(&self) -> &dyn Directory {
        self
    }
}

impl<T: AsRefDirectory + ?Sized> AsRefDirectory for &T {
    fn as_ref_directory(&self) -> &dyn Directory {
        (**self).as_ref_directory()
    }
}

impl<T: AsRefDirectory + ?Sized> AsRefDirectory for std::sync::Arc<T> {
    fn as_ref_directory(&self) -> &dyn Directory {
        (**self).as_ref_directory()
    }
}
