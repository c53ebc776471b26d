//! Making an image.

use crate::error::{Error, Malformed};
use crate::file::BlockFile;
use crate::header::{BackingName, CompressionType, Header};
use crate::image::Image;
use crate::refcount::{Layout, write_block, write_table};

/// What a new image is to be like.
#[derive(Debug, Clone)]
pub struct CreateOptions {
    /// Size of the disk in bytes.
    pub size: u64,
    /// Binary logarithm of the cluster size, 9 to 21.
    pub cluster_bits: u32,
    /// Name and format of the backing file, as the image will state them.
    pub backing: Option<(String, String)>,
}

impl CreateOptions {
    /// A disk of `size` bytes with 64 KiB clusters and no backing file.
    pub fn new(size: u64) -> Self {
        Self { size, cluster_bits: 16, backing: None }
    }
}

impl Image {
    /// Makes `file` an empty image of version 3. What was in the file is lost.
    ///
    /// # Errors
    /// [`Malformed::TooLarge`] and [`Malformed::Field`] for options that no image can have, [`Error::Io`].
    pub fn create(file: &dyn BlockFile, options: &CreateOptions) -> Result<(), Error> {
        let mut header = Header {
            version: 3,
            cluster_bits: options.cluster_bits,
            size: options.size,
            l1_entries: 0,
            l1_offset: 0,
            refcount_table_offset: 0,
            refcount_table_clusters: 0,
            snapshots: 0,
            snapshots_offset: 0,
            incompatible: 0,
            autoclear: 0,
            refcount_order: 4,
            compression: CompressionType::Deflate,
            backing: options
                .backing
                .clone()
                .map(|(name, format)| BackingName { name, format: Some(format) }),
        };
        if !(9..=21).contains(&options.cluster_bits) {
            let value = options.cluster_bits.into();
            return Err(
                Malformed::Field { field: "cluster_bits", value, allowed: "9 to 21" }.into()
            );
        }
        let cluster = header.cluster_size();
        let too_large = Malformed::TooLarge { size: options.size, cluster_size: cluster };
        let entries = options.size.div_ceil(cluster * header.l2_entries()).max(1);
        if entries * 8 > 32 << 20 {
            return Err(too_large.into());
        }
        header.l1_entries = entries as u32;
        let l1_clusters = (entries * 8).div_ceil(cluster);

        // The header, the L1 table, the refcount table, its blocks.
        let layout = Layout { cluster_bits: header.cluster_bits, order: header.refcount_order };
        let mut blocks = 1u64;
        let table_clusters = loop {
            let table_clusters = (blocks * 8).div_ceil(cluster);
            let needed = (1 + l1_clusters + table_clusters + blocks).div_ceil(layout.per_block());
            if needed <= blocks {
                break table_clusters;
            }
            blocks = needed;
        };
        let used = 1 + l1_clusters + table_clusters + blocks;
        header.l1_offset = cluster;
        header.refcount_table_offset = (1 + l1_clusters) * cluster;
        header.refcount_table_clusters = table_clusters as u32;
        let bytes = header.encode()?;

        file.set_len(0)?;
        file.set_len(used * cluster)?;
        let first_block = (1 + l1_clusters + table_clusters) * cluster;
        for block in 0..blocks {
            let count = |index| u64::from(index < used);
            write_block(
                file,
                layout,
                first_block + block * cluster,
                block * layout.per_block(),
                &count,
            )?;
        }
        let table: Vec<u64> = (0..blocks).map(|block| first_block + block * cluster).collect();
        write_table(file, &table, header.refcount_table_offset, table_clusters)?;
        // Last, so that a file is an image only when it is a whole one.
        file.write_at(&bytes, 0)?;
        Ok(file.sync()?)
    }
}
