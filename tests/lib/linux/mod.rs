//! The host of a test on Linux: the program that was just built, a directory that goes with the test, and in place of
//! Fuchsia's test manager one in the test's own process. What is public here is for suites that are only for Linux.

mod processes;

pub use processes::ComponentProcess;

use crate::guest::{EnclosedGuest, MANAGER, eventually};
use crate::packages::Package;
use component_manager::builtin::Builtins;
use component_manager::builtin_package::{BINARIES, MANIFESTS};
use component_manager::log::Record;
use component_manager::manager::Manager;
use component_manager::realm_builder::{TestManager, open_host_directory};
use component_manager::resolver::{Embedded, PackageResolver};
use fidl::endpoints::{ClientEnd, Proxy as _};
use fidl_fuchsia_io as fio;
use fuchsia_component_test::RealmBuilderParams;
use images::Store;
use rustix::fs::{FlockOperation, flock};
use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;

/// What comes from the realm's parent.
pub(crate) const FROM_PARENT: &[&str] =
    &["fuchsia.kernel.HypervisorResource", "fuchsia.kernel.VmexResource", "fuchsia.logger.LogSink"];

/// The suites' package.
const PACKAGE: &str = "fuchsia-pkg://fuchsia.com/virtualization_tests";

/// The managers of the suites' package: those of the program, with the guest's package from the test.
const MANAGERS: [Embedded; 3] = [
    Embedded {
        name: "meta/enclosed_debian_guest_manager.cml",
        text: include_str!("../../../meta/enclosed_debian_guest_manager.cml"),
    },
    Embedded {
        name: "meta/enclosed_termina_guest_manager.cml",
        text: include_str!("../../../meta/enclosed_termina_guest_manager.cml"),
    },
    Embedded {
        name: "meta/enclosed_zircon_guest_manager.cml",
        text: include_str!("../../../meta/enclosed_zircon_guest_manager.cml"),
    },
];

/// What a suite's own build knows and the harness needs; made by [`environment!`](crate::environment).
#[derive(Debug, Clone, Copy)]
pub struct Environment {
    /// The `guest` program, which is every component.
    pub program: &'static str,
    /// A directory for what is made once and used by all suites.
    pub scratch: &'static str,
    /// The root of the source tree.
    pub source: &'static str,
}

/// The [`Environment`] of the suite in which it stands.
#[macro_export]
macro_rules! environment {
    () => {
        $crate::Environment {
            program: env!("CARGO_BIN_EXE_guest"),
            scratch: env!("CARGO_TARGET_TMPDIR"),
            source: env!("CARGO_MANIFEST_DIR"),
        }
    };
}

/// What is around a test.
pub(crate) struct Host {
    program: &'static str,
    directory: tempfile::TempDir,
    test_manager: TestManager,
}

impl Host {
    pub(crate) fn new(environment: Environment) -> Self {
        Self::with_manifests(environment, MANIFESTS.to_vec())
    }

    fn with_manifests(environment: Environment, mut manifests: Vec<Embedded>) -> Self {
        manifests.extend(MANAGERS);
        let directory = tempfile::tempdir().unwrap();
        let resolver = PackageResolver::new(environment.program.into(), manifests, Vec::new());
        let mut test_manager = TestManager::default()
            .with_package(PACKAGE, Rc::new(resolver))
            .with_builtins(Builtins::with_system_resources);
        for storage in ["tmp", "data"] {
            let path = directory.path().join(storage);
            fs::create_dir(&path).unwrap();
            test_manager = test_manager.with_storage(storage, &path);
        }
        Self { program: environment.program, directory, test_manager }
    }

    /// A directory of the test's own, made if it is not there.
    pub(crate) fn directory(&self, name: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        fs::create_dir_all(&path).unwrap();
        path
    }

    /// Opens the package that the components are in.
    fn components(&self) -> fio::DirectoryProxy {
        let binaries = self.directory("components/bin");
        for name in BINARIES {
            // It is there if somebody has asked before.
            let _there = symlink(self.program, binaries.join(name));
        }
        self.open(&self.directory("components"))
    }

    /// Opens a directory of the test's own for its components.
    pub(crate) fn open(&self, path: &Path) -> fio::DirectoryProxy {
        open_host_directory(path)
    }

    pub(crate) fn realm_builder_params(&self) -> RealmBuilderParams {
        RealmBuilderParams::new().test_manager(self.test_manager.clone())
    }

    /// What the realm's components have logged, for a message of what went wrong.
    pub(crate) fn report(&self) -> String {
        format!("; the realm logged:\n{}", self.logs())
    }

    fn logs(&self) -> String {
        let line = |record: &Record| {
            format!("{}: {:?}: {}\n", record.moniker, record.severity, record.message)
        };
        let mut text = String::new();
        for manager in self.test_manager.managers() {
            let (records, _) = manager.logs().read(0, usize::MAX, |_| true);
            text.extend(records.iter().map(line));
        }
        text
    }
}

/// What a test sees from the side. All but `components` and `resident_memory` are for suites that are only for Linux.
impl EnclosedGuest {
    /// As [`EnclosedGuest::new`], with other manifests than the program's own.
    #[must_use]
    pub fn with_manifests(
        environment: Environment,
        package: impl Into<Package>,
        manifests: Vec<Embedded>,
    ) -> Self {
        let host = Host::with_manifests(environment, manifests);
        Self::on(host, environment, &package.into())
    }

    /// The realm's component manager.
    ///
    /// # Panics
    /// Where the realm is not built yet, as before the first answer of something in it.
    #[must_use]
    pub fn component_manager(&self) -> Manager {
        let mut managers = self.host.test_manager.managers();
        managers.pop().expect("the realm is not built yet")
    }

    /// The directory that is the storage `data` of a manager that has one; made when it starts.
    #[must_use]
    pub fn storage(&self) -> PathBuf {
        self.host.directory("data").join(MANAGER)
    }

    /// The directory that has the temporary storage of all components.
    #[must_use]
    pub fn temporary(&self) -> PathBuf {
        self.host.directory("tmp")
    }

    /// The package that the realm's components are in.
    #[must_use]
    pub fn components(&self) -> ClientEnd<fio::DirectoryMarker> {
        let package = self.host.components().into_channel().expect("nobody else has it");
        ClientEnd::new(package.into_zx_channel())
    }

    /// Bytes of the guest's memory that are resident, for tests with one guest at a time.
    #[expect(clippy::unused_async, reason = "on Fuchsia the kernel is asked over FIDL")]
    pub async fn resident_memory(&self) -> u64 {
        ComponentProcess::of("vmm").resident_shared()
    }

    /// All that the realm's components have logged.
    #[must_use]
    pub fn logs(&self) -> String {
        self.host.logs()
    }

    /// Waits until the realm's components have logged `text`: a line is on its way when what it tells of is done.
    pub async fn logged(&self, text: &str) {
        let found = async || self.logs().contains(text).then_some(());
        eventually(&format!("{text:?} in the log"), found).await;
    }
}

/// Writes the Zircon guest's kernel to `data`, and returns its usual configuration.
pub(crate) fn write_zircon(_environment: Environment, data: &Path) -> String {
    let store = tempfile::tempdir().unwrap();
    let built = images::build_zircon(&Store::new(store.path()), true).unwrap().join("data");
    fs::copy(built.join("kernel.zbi"), data.join("kernel.zbi")).unwrap();
    fs::read_to_string(built.join("guest.cfg")).unwrap()
}

/// Writes the Linux guest's kernel and initramfs to `data`. They are made where they are missing or older than their
/// sources; suites may run at once.
pub(crate) fn write_linux(environment: Environment, data: &Path) {
    let output = Path::new(environment.scratch).join("enclosed_guest");
    fs::create_dir_all(&output).unwrap();
    let lock = File::create(output.join(".lock")).unwrap();
    flock(&lock, FlockOperation::LockExclusive).unwrap();
    let script = Path::new(environment.source).join("tests/guests/build-initramfs.sh");
    let probe = script.with_file_name("probe.c");
    let changed = |path: &Path| fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
    // The initramfs is written last.
    if changed(&output.join("initramfs.cpio.gz")) < changed(&script).max(changed(&probe)) {
        let status = Command::new("sh").arg(&script).arg(&output).status().unwrap();
        assert!(status.success(), "tests/guests/build-initramfs.sh failed");
    }
    for file in ["vmlinuz", "initramfs.cpio.gz"] {
        fs::copy(output.join(file), data.join(file)).unwrap();
    }
}
