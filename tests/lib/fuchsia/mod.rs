//! The host of a test on Fuchsia: what its manifest routes to it, its package, which holds the components and the guests'
//! kernels, and its temporary storage.

use crate::guest::EnclosedGuest;
use fidl::endpoints::{ClientEnd, Proxy as _};
use fidl_fuchsia_io as fio;
use fidl_fuchsia_kernel as fkernel;
use fuchsia_component::client;
use fuchsia_component_test::RealmBuilderParams;
use fuchsia_zircon::{self as zx, AsHandleRef as _};
use std::fs;
use std::path::{Path, PathBuf};

/// What comes from the realm's parent.
pub(crate) const FROM_PARENT: &[&str] = &[
    "fuchsia.kernel.HypervisorResource",
    "fuchsia.kernel.VmexResource",
    "fuchsia.logger.LogSink",
    "fuchsia.process.Launcher",
];

/// Where the test's package has the guests' kernels.
const GUESTS: &str = "/pkg/data/guests";

/// Nothing: a test's namespace has it all. Made by [`environment!`](crate::environment).
#[derive(Debug, Clone, Copy)]
pub struct Environment;

/// The [`Environment`] of the suite in which it stands.
#[macro_export]
macro_rules! environment {
    () => {
        $crate::Environment
    };
}

/// What is around a test.
pub(crate) struct Host {
    directory: PathBuf,
}

impl Host {
    pub(crate) fn new(_environment: Environment) -> Self {
        // No two objects of a system have one koid.
        let koid = zx::Event::create().get_koid().unwrap().raw_koid();
        let directory = PathBuf::from(format!("/tmp/{koid}"));
        fs::create_dir(&directory).unwrap();
        Self { directory }
    }

    /// A directory of the test's own, made if it is not there.
    pub(crate) fn directory(&self, name: &str) -> PathBuf {
        let path = self.directory.join(name);
        fs::create_dir_all(&path).unwrap();
        path
    }

    /// Opens a directory of the test's own for its components.
    pub(crate) fn open(&self, path: &Path) -> fio::DirectoryProxy {
        let rights = fio::PERM_READABLE | fio::PERM_WRITABLE;
        fuchsia_fs::directory::open_in_namespace(path.to_str().unwrap(), rights).unwrap()
    }

    pub(crate) fn realm_builder_params(&self) -> RealmBuilderParams {
        RealmBuilderParams::new()
    }

    /// Nothing: what the realm's components log is in the test's own log.
    pub(crate) fn report(&self) -> &'static str {
        ""
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // What is left goes with the test's storage.
        let _left = fs::remove_dir_all(&self.directory);
    }
}

impl EnclosedGuest {
    /// The package that the realm's components are in: the test's own.
    ///
    /// # Panics
    /// Where the test has none.
    #[must_use]
    pub fn components(&self) -> ClientEnd<fio::DirectoryMarker> {
        let rights = fio::PERM_READABLE | fio::PERM_EXECUTABLE;
        let package = fuchsia_fs::directory::open_in_namespace("/pkg", rights).unwrap();
        let package = package.into_channel().expect("nobody else has it");
        ClientEnd::new(package.into_zx_channel())
    }

    /// Bytes of memory objects that the system has committed, of which the guest's memory is one; for tests with one
    /// guest at a time.
    ///
    /// # Panics
    /// Where the kernel does not say.
    pub async fn resident_memory(&self) -> u64 {
        let stats = client::connect_to_protocol::<fkernel::StatsMarker>().unwrap();
        stats.get_memory_stats().await.unwrap().vmo_bytes.unwrap()
    }
}

/// Writes the Zircon guest's kernel to `data`, and returns its usual configuration.
pub(crate) fn write_zircon(_environment: Environment, data: &Path) -> String {
    let zircon = Path::new(GUESTS).join("zircon");
    fs::copy(zircon.join("kernel.zbi"), data.join("kernel.zbi")).unwrap();
    fs::read_to_string(zircon.join("guest.cfg")).unwrap()
}

/// Writes the Linux guest's kernel and initramfs to `data`.
pub(crate) fn write_linux(_environment: Environment, data: &Path) {
    for file in ["vmlinuz", "initramfs.cpio.gz"] {
        fs::copy(Path::new(GUESTS).join("linux").join(file), data.join(file)).unwrap();
    }
}
