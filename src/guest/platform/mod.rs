//! What differs between the systems that `guest` runs on: where a guest's manager is found, and what a terminal is.

#[cfg(target_os = "fuchsia")]
mod fuchsia;
#[cfg(target_os = "linux")]
mod linux;

#[cfg(target_os = "fuchsia")]
pub(crate) use fuchsia::*;
#[cfg(target_os = "linux")]
pub(crate) use linux::*;
