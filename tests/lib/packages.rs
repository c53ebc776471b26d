//! The guests of the suites: which kernel, and the package that it comes in.

use crate::Environment;
use images::Store;
use rustix::fs::{FlockOperation, flock};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

/// What the Linux guest is configured with where a test does not say.
const LINUX_CONFIG: &str = r#"{
    "linux": "data/vmlinuz", "ramdisk": "data/initramfs.cpio.gz", "cmdline": "console=ttyS0 quiet",
    "cpus": 1, "memory": "256M", "virtio-rng": true, "virtio-balloon": true
}"#;

/// Which kernel a guest runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GuestKernel {
    /// Our own, which follows Zircon's boot contract: `tests/guests/zircon`.
    Zircon,
    /// Debian's cloud kernel with busybox: `tests/guests/build-initramfs.sh`.
    Linux,
}

impl GuestKernel {
    /// Each of them.
    pub const ALL: [Self; 2] = [Self::Zircon, Self::Linux];

    /// The guest type whose manager runs it.
    pub(crate) fn guest_type(self) -> &'static str {
        match self {
            Self::Zircon => "zircon",
            Self::Linux => "debian",
        }
    }
}

/// A guest package to be: what differs from the usual one.
#[derive(Debug, Clone)]
pub struct Package {
    /// Which kernel.
    pub kernel: GuestKernel,
    /// Whose package: `debian`, `termina` or `zircon`.
    pub guest_type: &'static str,
    /// `guest.cfg`, where it is not the usual one.
    pub config: Option<String>,
}

impl From<GuestKernel> for Package {
    fn from(kernel: GuestKernel) -> Self {
        Self { kernel, guest_type: kernel.guest_type(), config: None }
    }
}

impl Package {
    /// The usual package with another `guest.cfg`.
    #[must_use]
    pub fn with_config(kernel: GuestKernel, config: &str) -> Self {
        Self { config: Some(config.to_owned()), ..kernel.into() }
    }

    /// Writes the package below the directory `packages` and returns its `data` directory.
    pub(crate) fn write(&self, environment: Environment, packages: &Path) -> PathBuf {
        let data = packages.join(format!("{}_guest/data", self.guest_type));
        match self.kernel {
            GuestKernel::Zircon => {
                let built = images::build_zircon(&Store::new(packages), true).unwrap().join("data");
                if built != data {
                    fs::create_dir_all(data.parent().unwrap()).unwrap();
                    fs::rename(built, &data).unwrap();
                }
            }
            GuestKernel::Linux => {
                fs::create_dir_all(&data).unwrap();
                let images = linux_images(environment);
                for file in ["vmlinuz", "initramfs.cpio.gz"] {
                    fs::copy(images.join(file), data.join(file)).unwrap();
                }
                fs::write(data.join("guest.cfg"), LINUX_CONFIG).unwrap();
            }
        }
        if let Some(config) = &self.config {
            fs::write(data.join("guest.cfg"), config).unwrap();
        }
        data
    }
}

/// The Linux kernel and initramfs, made where they are missing or older than their sources. Suites may run at once.
fn linux_images(environment: Environment) -> PathBuf {
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
    output
}
