//! Guest packages on Linux: the store in the user's data directory, the builder that makes the `debian` package from
//! Debian's archive with well-kept tools (`mmdebstrap`, `dpkg-deb`, `mke2fs`), as root or not, and the `zircon` package,
//! whose kernel is built with this crate. What may enter is knowledge of how a package is laid out and made; running one
//! is the guest manager's business.
#![cfg(target_os = "linux")]
#![forbid(unsafe_code)]

mod cpio;
mod debian;
mod error;
mod initramfs;
mod store;
mod tools;
mod zircon;

pub use debian::{BuildOptions, build};
pub use error::Error;
pub use store::{Package, Staging, Store};
pub use tools::{REQUIRED_TOOLS, Tool, install_command, missing};
pub use zircon::build_zircon;

/// What a build tells of its progress, from the thread that builds.
pub trait Progress {
    /// A step has begun: `number` of `total`, counted from one, in words for a person. `seconds` is the usual length.
    fn step(&mut self, number: usize, total: usize, what: &str, seconds: u32);
    /// What a tool is at while it works, in words for a person.
    fn detail(&mut self, text: &str);
    /// Whether the person has asked to stop; looked at several times a second. The build then cleans up and returns
    /// [`Error::Canceled`].
    fn canceled(&self) -> bool;
}
