//! Serving `fuchsia.io`: trees of directories, files, services and directories that live elsewhere, over channels. What
//! may enter is whatever a connection to such a node needs: path and rights rules, and the protocols of the nodes. What
//! the bytes of a file or the entries of a directory come from is behind [`directory::Directory`] and [`file::File`], so
//! that this crate does not know what system it runs on.
#![forbid(unsafe_code)]

pub mod attributes;
pub mod directory;
mod entry;
pub mod execution_scope;
pub mod file;
mod node;
mod open;
pub mod path;
pub mod remote;
pub mod service;

pub use entry::{DirectoryEntry, EntryInfo, OpenRequest};
pub use open::OpenOptions;
