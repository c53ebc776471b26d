//! What can go wrong with an image, and whose fault it is.

use std::io;

/// An operation on an image failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file below failed: the host's fault.
    #[error("The image file failed")]
    Io(#[from] io::Error),
    /// The image cannot be opened: its maker's fault.
    #[error("The image cannot be used")]
    Malformed(#[from] Malformed),
    /// The image contradicts itself: its maker's fault, or that of whoever damaged it.
    #[error("The image is corrupt")]
    Corrupt(#[from] Corruption),
    /// The backing file could not be opened.
    #[error("The backing file {name:?} cannot be used")]
    Backing {
        /// The name that the image gives.
        name: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A range beyond the end of the disk: the caller's fault.
    #[error("{len} bytes at {offset} are beyond the end of the disk")]
    OutOfRange {
        /// First byte, in bytes from the disk's start.
        offset: u64,
        /// Length in bytes.
        len: u64,
    },
    /// Writing to an image that was opened for reading: the caller's fault.
    #[error("The image was opened for reading only")]
    ReadOnly,
    /// An earlier write of metadata failed, so what is in memory and in the file may differ.
    #[error("The image failed before and accepts no more writes")]
    Failed,
    /// The image cannot grow further in this format.
    #[error("The image has no room for another cluster")]
    Full,
}

/// Why an image cannot be opened or made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Not a qcow2 file at all.
    #[error("It does not start as a qcow2 file does")]
    Magic,
    /// Neither version 2 nor 3.
    #[error("Version {0} of the format is unknown")]
    Version(u32),
    /// The file ends within the header.
    #[error("It ends within its header")]
    Truncated,
    /// A header field has a value outside what the format allows.
    #[error("{field} is {value:#x}, outside {allowed}")]
    Field {
        /// The field's name in the spec.
        field: &'static str,
        /// What it says.
        value: u64,
        /// What is allowed.
        allowed: &'static str,
    },
    /// Encryption, which is not supported.
    #[error("It is encrypted (method {0}), which is not supported")]
    Encrypted(u32),
    /// A feature that must be understood and is not.
    #[error("It needs the incompatible features {0:#x}, which are not supported")]
    Incompatible(u64),
    /// The corrupt bit is set; such an image can only be read.
    #[error("It is marked as corrupt; it can be opened for reading only")]
    MarkedCorrupt,
    /// Two pieces of metadata lie on one another.
    #[error("{0} and {1} overlap")]
    Overlap(&'static str, &'static str),
    /// A piece of metadata lies outside the file.
    #[error("{0} lies outside the file")]
    Outside(&'static str),
    /// The chain of backing files is longer than [`crate::MAX_CHAIN`], or a loop.
    #[error("It has a chain of more than {limit} backing files, or a loop of them", limit = crate::MAX_CHAIN)]
    ChainTooLong,
    /// The backing file's name is not text.
    #[error("The backing file's name is not UTF-8")]
    BackingName,
    /// Left dirty, with internal snapshots, which the rebuild does not follow.
    #[error(
        "It was not closed properly and has internal snapshots; repair it with its own tools first"
    )]
    DirtySnapshots,
    /// What the caller asks to create cannot exist.
    #[error("A disk of {size} bytes cannot be made of clusters of {cluster_size} bytes")]
    TooLarge {
        /// Size of the disk in bytes.
        size: u64,
        /// Size of a cluster in bytes.
        cluster_size: u64,
    },
}

/// How an image contradicts itself.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Corruption {
    /// A table entry's offset is not a cluster's.
    #[error("A {table} entry refers to offset {offset:#x}, which is not aligned")]
    Misaligned {
        /// Which table.
        table: &'static str,
        /// The offset.
        offset: u64,
    },
    /// A table entry refers beyond the end of the file.
    #[error("A {table} entry refers to offset {offset:#x}, beyond the end of the file")]
    BeyondEnd {
        /// Which table.
        table: &'static str,
        /// The offset.
        offset: u64,
    },
    /// A cluster has two uses of which one is metadata.
    #[error("The cluster at {0:#x} is metadata and something else")]
    Overlap(u64),
    /// Compressed data that cannot be decompressed to a cluster.
    #[error("The compressed cluster at {0:#x} cannot be decompressed")]
    Compressed(u64),
    /// A cluster that is freed has a refcount of zero already, or one that is used overflows.
    #[error("The refcount of the cluster at {0:#x} is wrong")]
    Refcount(u64),
}
