//! The guests of the suites: which kernel, and the package that it comes in.

use crate::platform::{self, Environment};
use std::fs;
use std::path::Path;

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

    /// Linux with two CPUs and these disks, in order, as `block` in `guest.cfg` has them.
    #[must_use]
    pub fn with_disks(disks: &[&str]) -> Self {
        let config = format!(
            r#"{{"linux": "data/vmlinuz", "ramdisk": "data/initramfs.cpio.gz", "cmdline": "console=ttyS0 quiet",
                 "cpus": 2, "memory": "256M", "block": {disks:?} }}"#
        );
        Self::with_config(GuestKernel::Linux, &config)
    }

    /// The usual Linux as Termina's guest, whose manager gives it a disk besides.
    #[must_use]
    pub fn termina() -> Self {
        Self { guest_type: "termina", ..GuestKernel::Linux.into() }
    }

    /// Writes the package's files to `data`, which is there and empty.
    pub(crate) fn write(&self, environment: Environment, data: &Path) {
        let usual = match self.kernel {
            GuestKernel::Zircon => platform::write_zircon(environment, data),
            GuestKernel::Linux => {
                platform::write_linux(environment, data);
                LINUX_CONFIG.to_owned()
            }
        };
        let config = self.config.as_ref().unwrap_or(&usual);
        fs::write(data.join("guest.cfg"), config).unwrap();
    }
}
