//! The harness of the integration suites, in the shape of Fuchsia's `EnclosedGuest`: a real guest manager, with its VMM
//! and device processes, in a realm of the test's own, beside fakes of what the host would give; and the guest's console
//! to run commands on. What may enter is what several suites need; what one suite needs is in that suite.
//!
//! ```ignore
//! let enclosed = EnclosedGuest::new(environment!(), GuestKernel::Linux);
//! let mut guest = enclosed.start(GuestConfig::default()).await;   // launched, and at its prompt
//! assert_eq!(guest.console.run("echo hello").await, "hello\n");
//! guest.guest.get_balloon_controller(server).await.unwrap().unwrap();
//! enclosed.memory_pressure.set(Level::Warning);
//! enclosed.destroy().await;
//! ```
#![cfg(target_os = "linux")]
#![forbid(unsafe_code)]

mod console;
mod fakes;
mod guest;
mod packages;
mod processes;

pub use console::GuestConsole;
pub use fakes::{FakeMemoryPressure, FakeNetwork};
pub use guest::{EnclosedGuest, RunningGuest, eventually};
pub use packages::{GuestKernel, Package};
pub use processes::ComponentProcess;

use fuchsia_zircon as zx;

/// Far longer than anything here takes, also on a machine that has much else to do: who waits longer has failed.
pub const PATIENCE: zx::Duration = zx::Duration::from_seconds(240);

/// What a suite's own build knows and the harness needs; made by [`environment!`].
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
