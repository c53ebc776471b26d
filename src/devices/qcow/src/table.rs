//! Entries of the L1 and L2 tables (spec, "Cluster mapping").

/// Bit 63 of both: the refcount of what is referred to is exactly one, so it may be written in place.
const COPIED: u64 = 1 << 63;
/// Bit 62 of an L2 entry.
const COMPRESSED: u64 = 1 << 62;
/// Bit 0 of a standard L2 entry, from version 3 on.
const ZERO: u64 = 1;
/// Bits 9 to 55: an offset in the file.
pub(crate) const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;

/// An entry of the L1 table: where an L2 table is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct L1Entry(pub(crate) u64);

impl L1Entry {
    /// An entry for a table that only this one refers to.
    pub(crate) fn owned(offset: u64) -> Self {
        Self(offset | COPIED)
    }

    /// Offset of the L2 table; none if there is no table.
    pub(crate) fn offset(self) -> Option<u64> {
        Some(self.0 & OFFSET_MASK).filter(|offset| *offset != 0)
    }

    /// Whether the table may be changed in place.
    pub(crate) fn is_owned(self) -> bool {
        self.0 & COPIED != 0
    }
}

/// What an L2 entry says about its cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mapping {
    /// Nothing here: the backing file's bytes, or zeroes.
    Unallocated,
    /// Zeroes; a cluster may be set aside for later.
    Zero {
        /// The cluster that is set aside.
        reserved: Option<DataCluster>,
    },
    /// The guest's bytes.
    Data(DataCluster),
    /// The guest's bytes, compressed.
    Compressed {
        /// First byte in the file.
        offset: u64,
        /// Bytes from there to the end of the last sector.
        len: u64,
    },
}

/// A cluster of the file that holds one of the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DataCluster {
    /// Offset in the file.
    pub(crate) offset: u64,
    /// Whether nothing else refers to it, so that it may be written in place.
    pub(crate) owned: bool,
}

impl Mapping {
    /// Decodes an entry. `has_zero_flag` is false for version 2.
    pub(crate) fn decode(entry: u64, cluster_bits: u32, has_zero_flag: bool) -> Self {
        if entry & COMPRESSED != 0 {
            // The offset has x = 62 - (cluster_bits - 8) bits, the number of additional sectors those above.
            let offset_bits = 62 - (cluster_bits - 8);
            let offset = entry & ((1 << offset_bits) - 1) & !(0xff << 56);
            let sectors = (entry & !(COPIED | COMPRESSED)) >> offset_bits;
            return Self::Compressed { offset, len: (sectors + 1) * 512 - offset % 512 };
        }
        let cluster = Some(entry & OFFSET_MASK)
            .filter(|offset| *offset != 0)
            .map(|offset| DataCluster { offset, owned: entry & COPIED != 0 });
        match cluster {
            reserved if has_zero_flag && entry & ZERO != 0 => Self::Zero { reserved },
            Some(cluster) => Self::Data(cluster),
            None => Self::Unallocated,
        }
    }

    /// The entry of this mapping. Compressed clusters are never written.
    pub(crate) fn encode(self) -> u64 {
        let cluster =
            |cluster: DataCluster| cluster.offset | if cluster.owned { COPIED } else { 0 };
        match self {
            Self::Unallocated => 0,
            Self::Zero { reserved } => ZERO | reserved.map_or(0, cluster),
            Self::Data(data) => cluster(data),
            Self::Compressed { .. } => unreachable!("compressed clusters are only read"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_survive_encoding() {
        let cluster = DataCluster { offset: 0x5_0000, owned: true };
        for mapping in [
            Mapping::Unallocated,
            Mapping::Zero { reserved: None },
            Mapping::Zero { reserved: Some(cluster) },
            Mapping::Data(cluster),
            Mapping::Data(DataCluster { owned: false, ..cluster }),
        ] {
            assert_eq!(Mapping::decode(mapping.encode(), 16, true), mapping);
        }
    }

    #[test]
    fn version_2_has_no_zero_flag() {
        assert_eq!(Mapping::decode(ZERO, 16, false), Mapping::Unallocated);
    }

    #[test]
    fn a_compressed_entry_counts_additional_sectors() {
        // 64 KiB clusters: 54 bits of offset, 8 of sectors.
        let entry = COMPRESSED | 2 << 54 | 0x12345;
        assert_eq!(
            Mapping::decode(entry, 16, true),
            Mapping::Compressed { offset: 0x12345, len: 3 * 512 - 0x145 }
        );
    }
}
