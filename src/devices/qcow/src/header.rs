//! The header of an image (spec, "Header"), and the rules that it has to obey before anything is believed.

use zerocopy::big_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::cache::read_or_zero;
use crate::error::{Error, Malformed};
use crate::file::BlockFile;

/// "QFI\xfb".
pub(crate) const MAGIC: u32 = 0x5146_49fb;

/// Most bytes of an L1 table that are believed, as other implementations have it: 2 EiB of disk with 2 MiB clusters.
const MAX_L1_BYTES: u64 = 32 << 20;
/// Most bytes of a refcount table that are believed.
const MAX_REFCOUNT_TABLE_BYTES: u64 = 8 << 20;
/// Longest name of a backing file (spec).
const MAX_BACKING_NAME: u32 = 1023;
/// Most internal snapshots that are believed (the format's own limit).
const MAX_SNAPSHOTS: u32 = 65536;

/// Offset of `refcount_table_offset` in the header; `refcount_table_clusters` follows it.
pub(crate) const REFCOUNT_TABLE_FIELD: u64 = 48;
/// Offset of `incompatible_features`.
const INCOMPATIBLE_FIELD: u64 = 72;
/// Offset of `autoclear_features`.
const AUTOCLEAR_FIELD: u64 = 88;

/// Incompatible feature bit 0: refcounts may be wrong.
pub(crate) const INCOMPATIBLE_DIRTY: u64 = 1;
/// Incompatible feature bit 1: the image may be read only.
pub(crate) const INCOMPATIBLE_CORRUPT: u64 = 2;
/// Incompatible feature bit 3: the header names the compression.
const INCOMPATIBLE_COMPRESSION: u64 = 8;

/// Header extension that ends the list.
const EXTENSION_END: u32 = 0;
/// Header extension with the backing file's format.
const EXTENSION_BACKING_FORMAT: u32 = 0xe279_2aca;

/// The part of the header that both versions have.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct RawHeader {
    magic: U32,
    version: U32,
    backing_file_offset: U64,
    backing_file_size: U32,
    cluster_bits: U32,
    size: U64,
    crypt_method: U32,
    l1_size: U32,
    l1_table_offset: U64,
    refcount_table_offset: U64,
    refcount_table_clusters: U32,
    nb_snapshots: U32,
    snapshots_offset: U64,
}

/// What version 3 adds.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct RawHeaderV3 {
    incompatible_features: U64,
    compatible_features: U64,
    autoclear_features: U64,
    refcount_order: U32,
    header_length: U32,
    compression_type: u8,
    padding: [u8; 7],
}

/// How compressed clusters are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CompressionType {
    /// RFC 1951.
    #[default]
    Deflate,
    /// RFC 8878.
    Zstd,
}

/// A header that passed all checks that need nothing but the header and the file's length.
#[derive(Debug, Clone)]
pub(crate) struct Header {
    pub(crate) version: u32,
    pub(crate) cluster_bits: u32,
    /// Size of the disk in bytes.
    pub(crate) size: u64,
    pub(crate) l1_entries: u32,
    pub(crate) l1_offset: u64,
    pub(crate) refcount_table_offset: u64,
    pub(crate) refcount_table_clusters: u32,
    pub(crate) snapshots: u32,
    pub(crate) snapshots_offset: u64,
    pub(crate) incompatible: u64,
    pub(crate) autoclear: u64,
    pub(crate) refcount_order: u32,
    pub(crate) compression: CompressionType,
    pub(crate) backing: Option<BackingName>,
}

/// What an image says about its backing file. Data of whoever made the image: it deserves no trust.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackingName {
    /// Its name, relative to the image's folder unless absolute.
    pub name: String,
    /// What it is: `raw`, `qcow2`, or another program's word.
    pub format: Option<String>,
}

impl BackingName {
    /// What the image that starts with `front` says; none if it has no backing file.
    ///
    /// For a program that opens files on behalf of another one. `front` is the first cluster of the image, or as much
    /// of it as there is up to the name: 64 KiB are enough for every image with an ordinary cluster size.
    ///
    /// # Errors
    /// [`Error::Malformed`], as from [`crate::Image::open`].
    pub fn read(front: &[u8]) -> Result<Option<Self>, Error> {
        Ok(Header::read_alone(&crate::MemoryFile::new(front.to_vec()))?.backing)
    }
}

fn field(field: &'static str, value: impl Into<u64>, allowed: &'static str) -> Malformed {
    Malformed::Field { field, value: value.into(), allowed }
}

impl Header {
    /// Bytes of a cluster.
    pub(crate) fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Entries of an L2 table.
    pub(crate) fn l2_entries(&self) -> u64 {
        self.cluster_size() / 8
    }

    /// Reads and checks the header of `file`.
    pub(crate) fn read(file: &dyn BlockFile) -> Result<Self, Error> {
        let header = Self::read_alone(file)?;
        header.check_tables(file.len()?)?;
        Ok(header)
    }

    /// As [`Header::read`], without looking at where the tables are.
    fn read_alone(file: &dyn BlockFile) -> Result<Self, Error> {
        let file_len = file.len()?;
        let mut bytes = [0; size_of::<RawHeader>() + size_of::<RawHeaderV3>()];
        read_or_zero(file, &mut bytes, 0)?;
        let (raw, rest) = RawHeader::read_from_prefix(&bytes).map_err(|_| Malformed::Truncated)?;
        if raw.magic.get() != MAGIC {
            return Err(Malformed::Magic.into());
        }
        let version = raw.version.get();
        let needed = match version {
            2 => size_of::<RawHeader>() as u64,
            3 => (size_of::<RawHeader>() + size_of::<RawHeaderV3>() - 8) as u64,
            _ => return Err(Malformed::Version(version).into()),
        };
        if file_len < needed {
            return Err(Malformed::Truncated.into());
        }
        let (v3, _) = RawHeaderV3::read_from_prefix(rest).map_err(|_| Malformed::Truncated)?;
        let mut header = Self::from_raw(&raw)?;
        let header_length = if version == 3 { header.take_v3(&v3)? } else { needed };
        header.backing = read_backing(file, &raw, &header, header_length)?;
        Ok(header)
    }

    fn from_raw(raw: &RawHeader) -> Result<Self, Malformed> {
        let cluster_bits = raw.cluster_bits.get();
        if !(9..=21).contains(&cluster_bits) {
            return Err(field("cluster_bits", cluster_bits, "9 to 21"));
        }
        match raw.crypt_method.get() {
            0 => {}
            method => return Err(Malformed::Encrypted(method)),
        }
        Ok(Self {
            version: raw.version.get(),
            cluster_bits,
            size: raw.size.get(),
            l1_entries: raw.l1_size.get(),
            l1_offset: raw.l1_table_offset.get(),
            refcount_table_offset: raw.refcount_table_offset.get(),
            refcount_table_clusters: raw.refcount_table_clusters.get(),
            snapshots: raw.nb_snapshots.get(),
            snapshots_offset: raw.snapshots_offset.get(),
            incompatible: 0,
            autoclear: 0,
            refcount_order: 4,
            compression: CompressionType::Deflate,
            backing: None,
        })
    }

    /// Takes over what version 3 adds; returns the header's length.
    fn take_v3(&mut self, v3: &RawHeaderV3) -> Result<u64, Malformed> {
        self.incompatible = v3.incompatible_features.get();
        self.autoclear = v3.autoclear_features.get();
        let unknown = self.incompatible
            & !(INCOMPATIBLE_DIRTY | INCOMPATIBLE_CORRUPT | INCOMPATIBLE_COMPRESSION);
        if unknown != 0 {
            return Err(Malformed::Incompatible(unknown));
        }
        self.refcount_order = v3.refcount_order.get();
        if self.refcount_order > 6 {
            return Err(field("refcount_order", self.refcount_order, "0 to 6"));
        }
        let length = v3.header_length.get();
        if length < 104 || !length.is_multiple_of(8) || u64::from(length) > self.cluster_size() {
            return Err(field("header_length", length, "multiples of 8 from 104 to a cluster"));
        }
        let compression = if length > 104 { v3.compression_type } else { 0 };
        self.compression = match (compression, self.incompatible & INCOMPATIBLE_COMPRESSION != 0) {
            (0, false) => CompressionType::Deflate,
            (1, true) => CompressionType::Zstd,
            _ => {
                return Err(field("compression_type", compression, "0, or 1 with its feature bit"));
            }
        };
        Ok(length.into())
    }

    /// Checks sizes and places of the tables against each other and against the file.
    fn check_tables(&self, file_len: u64) -> Result<(), Malformed> {
        let cluster = self.cluster_size();
        let per_table = cluster * self.l2_entries();
        let l1_bytes = u64::from(self.l1_entries) * 8;
        if l1_bytes > MAX_L1_BYTES || u64::from(self.l1_entries) < self.size.div_ceil(per_table) {
            return Err(field(
                "l1_size",
                self.l1_entries,
                "what the disk's size needs, up to 32 MiB of table",
            ));
        }
        let refcount_bytes = u64::from(self.refcount_table_clusters) * cluster;
        if refcount_bytes > MAX_REFCOUNT_TABLE_BYTES.max(cluster) {
            return Err(field(
                "refcount_table_clusters",
                self.refcount_table_clusters,
                "up to 8 MiB of table",
            ));
        }
        if self.snapshots > MAX_SNAPSHOTS {
            return Err(field("nb_snapshots", self.snapshots, "up to 65536"));
        }
        let parts = [
            ("the L1 table", self.l1_offset, l1_bytes),
            ("the refcount table", self.refcount_table_offset, refcount_bytes),
            // The table's length is not known before it is parsed; its first entry is enough to find overlaps.
            ("the snapshot table", self.snapshots_offset, u64::from(self.snapshots.min(1)) * 40),
        ];
        for (index, (name, offset, len)) in parts.into_iter().enumerate() {
            if len == 0 {
                continue;
            }
            let aligned = offset.is_multiple_of(cluster)
                || name == "the snapshot table" && offset.is_multiple_of(8);
            if !aligned {
                return Err(field(name, offset, "multiples of the cluster size"));
            }
            if offset < cluster {
                return Err(Malformed::Overlap(name, "the header"));
            }
            let end = offset.checked_add(len).ok_or(Malformed::Outside(name))?;
            if end > file_len {
                return Err(Malformed::Outside(name));
            }
            for (other, other_offset, other_len) in parts.into_iter().take(index) {
                if other_len > 0
                    && offset < other_offset.saturating_add(other_len)
                    && other_offset < end
                {
                    return Err(Malformed::Overlap(other, name));
                }
            }
        }
        Ok(())
    }

    /// Writes the features anew, after the caller changed them. Version 2 has none.
    pub(crate) fn write_features(&self, file: &dyn BlockFile) -> Result<(), Error> {
        if self.version >= 3 {
            file.write_at(&self.incompatible.to_be_bytes(), INCOMPATIBLE_FIELD)?;
            file.write_at(&self.autoclear.to_be_bytes(), AUTOCLEAR_FIELD)?;
        }
        Ok(())
    }

    /// The first cluster of a new image with this header.
    pub(crate) fn encode(&self) -> Result<Vec<u8>, Malformed> {
        const LENGTH: usize = size_of::<RawHeader>() + size_of::<RawHeaderV3>();
        let mut extensions = Vec::new();
        let backing = self.backing.as_ref();
        if let Some(format) = backing.and_then(|backing| backing.format.as_ref()) {
            extensions.extend(EXTENSION_BACKING_FORMAT.to_be_bytes());
            extensions.extend((format.len() as u32).to_be_bytes());
            extensions.extend(format.as_bytes());
            extensions.resize(extensions.len().next_multiple_of(8), 0);
        }
        extensions.extend([0; 8]);
        let name_offset = LENGTH + extensions.len();
        let name = backing.map_or("", |backing| &backing.name);
        let raw = RawHeader {
            magic: MAGIC.into(),
            version: self.version.into(),
            backing_file_offset: if name.is_empty() { 0 } else { name_offset as u64 }.into(),
            backing_file_size: (name.len() as u32).into(),
            cluster_bits: self.cluster_bits.into(),
            size: self.size.into(),
            crypt_method: 0.into(),
            l1_size: self.l1_entries.into(),
            l1_table_offset: self.l1_offset.into(),
            refcount_table_offset: self.refcount_table_offset.into(),
            refcount_table_clusters: self.refcount_table_clusters.into(),
            nb_snapshots: 0.into(),
            snapshots_offset: 0.into(),
        };
        let v3 = RawHeaderV3 {
            incompatible_features: self.incompatible.into(),
            compatible_features: 0.into(),
            autoclear_features: 0.into(),
            refcount_order: self.refcount_order.into(),
            header_length: (LENGTH as u32).into(),
            compression_type: 0,
            padding: [0; 7],
        };
        let mut bytes = [raw.as_bytes(), v3.as_bytes(), &extensions, name.as_bytes()].concat();
        if bytes.len() as u64 > self.cluster_size() || name.len() as u64 > MAX_BACKING_NAME.into() {
            return Err(field(
                "backing_file_size",
                name.len() as u64,
                "up to 1023, within the first cluster",
            ));
        }
        bytes.resize(self.cluster_size() as usize, 0);
        Ok(bytes)
    }
}

/// The backing file's name, and its format from the header's extensions.
fn read_backing(
    file: &dyn BlockFile,
    raw: &RawHeader,
    header: &Header,
    header_length: u64,
) -> Result<Option<BackingName>, Error> {
    let (offset, len) = (raw.backing_file_offset.get(), raw.backing_file_size.get());
    if offset == 0 || len == 0 {
        return Ok(None);
    }
    let end = offset.checked_add(len.into());
    if len > MAX_BACKING_NAME
        || end.is_none_or(|end| end > header.cluster_size())
        || offset < header_length
    {
        return Err(field("backing_file_size", len, "up to 1023, within the first cluster").into());
    }
    let mut name = vec![0; len as usize];
    read_or_zero(file, &mut name, offset)?;
    let name = String::from_utf8(name).map_err(|_| Malformed::BackingName)?;

    // Extensions lie between the header and the name: bounded by a cluster.
    let mut extensions = vec![0; (offset - header_length) as usize];
    read_or_zero(file, &mut extensions, header_length)?;
    let mut rest = &extensions[..];
    let mut format = None;
    while let Ok((kind, after)) = U32::read_from_prefix(rest) {
        let Ok((len, after)) = U32::read_from_prefix(after) else { break };
        if kind.get() == EXTENSION_END {
            break;
        }
        let Some(data) = after.get(..len.get() as usize) else {
            return Err(field(
                "the length of a header extension",
                len.get(),
                "up to the header's end",
            )
            .into());
        };
        if kind.get() == EXTENSION_BACKING_FORMAT {
            format = Some(String::from_utf8_lossy(data).into_owned());
        }
        // The last one need not be padded.
        rest = after.get((len.get() as usize).next_multiple_of(8)..).unwrap_or(&[]);
    }
    Ok(Some(BackingName { name, format }))
}
