//! The harness of the integration suites, in the shape of Fuchsia's `EnclosedGuest`: a real guest manager, with its VMM
//! and device processes, in a realm of the test's own, beside fakes of what the host would give; and the guest's console
//! to run commands on. What may enter is what several suites need; what one suite needs is in that suite. A suite is the
//! same on Fuchsia and on Linux; `platform` has what differs around it, and says what a suite that runs on one of them
//! alone may use.
//!
//! ```ignore
//! let enclosed = EnclosedGuest::new(environment!(), GuestKernel::Linux);
//! let mut guest = enclosed.start(GuestConfig::default()).await;   // launched, and at its prompt
//! assert_eq!(guest.console.run("echo hello").await, "hello\n");
//! guest.guest.get_balloon_controller(server).await.unwrap().unwrap();
//! enclosed.memory_pressure.set(Level::Warning);
//! enclosed.destroy().await;
//! ```
#![forbid(unsafe_code)]

mod console;
mod fakes;
mod guest;
mod packages;
#[cfg_attr(target_os = "fuchsia", path = "fuchsia/mod.rs")]
#[cfg_attr(target_os = "linux", path = "linux/mod.rs")]
mod platform;

pub use console::GuestConsole;
pub use fakes::{FakeMemoryPressure, FakeNetwork};
pub use guest::{EnclosedGuest, RunningGuest, eventually};
pub use packages::{GuestKernel, Package};
pub use platform::*;

use fuchsia_zircon as zx;

/// Far longer than anything here takes, also on a machine that has much else to do: who waits longer has failed.
pub const PATIENCE: zx::Duration = zx::Duration::from_seconds(240);
