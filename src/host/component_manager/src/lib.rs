//! Component manager for Linux: reads manifests, keeps the tree of instances, routes capabilities between them and runs them as
//! processes. Everything a running Fuchsia's component framework would do for our components lives here; what a component does itself,
//! and the system calls below, do not.

#![cfg(target_os = "linux")]
#![forbid(unsafe_code)]

pub mod builtin;
pub mod builtin_package;
mod byte_lock;
pub mod client;
pub mod cml;
pub mod control;
pub mod daemon;
pub mod decl;
mod host_directory;
pub mod image_lock;
pub mod log;
pub mod manager;
pub mod model;
pub mod moniker;
pub mod name;
mod process;
mod realm;
pub mod realm_builder;
pub mod resolver;
pub mod runner;
pub mod runtime_directory;
