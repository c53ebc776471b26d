//! What a client of `fuchsia.io` does again and again: opening nodes, listing directories, reading and writing whole files.
//! It knows the protocol only, not who serves it.
#![forbid(unsafe_code)]

pub mod directory;
pub mod file;
pub mod node;

pub use fidl_fuchsia_io::{PERM_EXECUTABLE, PERM_READABLE, PERM_WRITABLE};
