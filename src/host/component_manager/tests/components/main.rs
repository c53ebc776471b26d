//! The components of the tests, all in one program, as the components of the `guest` binary are: the name says which one it is. Called
//! `component_manager`, it is the daemon with a tree of its own.

#![forbid(unsafe_code)]

#[cfg(target_os = "linux")]
mod echo;
#[cfg(target_os = "linux")]
mod escrow;
#[cfg(target_os = "linux")]
mod program;
#[cfg(target_os = "linux")]
mod runner;

#[cfg(target_os = "linux")]
fn main() -> anyhow::Result<()> {
    program::run()
}

/// There is nothing to run where Fuchsia's own component manager is.
#[cfg(not(target_os = "linux"))]
fn main() {}
