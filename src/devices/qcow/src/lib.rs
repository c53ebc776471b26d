//! The qcow2 disk image format, versions 2 and 3: reading, writing, creating, backing files and repair. What may
//! enter is what the format itself needs; where the bytes are kept is behind [`BlockFile`], and which other files an
//! image may name is decided by the caller behind [`BackingOpener`].
//!
//! Written from the format's specification, `docs/interop/qcow2.txt` of QEMU; "spec" below means that document.
//!
//! # What a crash leaves behind
//!
//! A guest may rely on what it wrote before a completed flush, and on every byte it did not write. Three orders see to
//! that, each enforced by a sync of the file between its steps:
//! 1. a cluster's refcount is raised, and its data written, before an L2 entry refers to it;
//! 2. an L2 table is written before the L1 entry that refers to it;
//! 3. an L2 entry lets go of a cluster before the cluster's refcount is lowered, so that nobody else can have it.
//!
//! They hold with any number of threads: [`SharedImage`] lets tables be changed by one alone.
//!
//! Whatever is interrupted can thus only leak clusters. Images that another program left with the dirty bit set have
//! their refcounts rebuilt when opened for writing.

#![forbid(unsafe_code)]

mod backing;
mod cache;
mod compress;
mod create;
mod error;
mod file;
mod header;
mod image;
mod refcount;
mod repair;
mod shared;
mod table;

pub use backing::{Backing, BackingOpener, MAX_CHAIN, NoBacking};
pub use create::CreateOptions;
pub use error::{Corruption, Error, Malformed};
pub use file::{BlockFile, MemoryFile};
pub use header::{BackingName, CompressionType};
pub use image::{Image, Mode};
pub use shared::SharedImage;

#[cfg(test)]
mod image_test;
#[cfg(test)]
mod malformed_test;
#[cfg(test)]
mod qemu_test;
