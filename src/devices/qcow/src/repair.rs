//! Rebuilding refcounts from the tables, for an image that was not closed properly (spec, "Dirty bit").

use std::collections::HashSet;

use crate::cache::read_or_zero;
use crate::error::{Corruption, Error, Malformed};
use crate::file::BlockFile;
use crate::header::{Header, INCOMPATIBLE_DIRTY};
use crate::refcount::{Layout, plan_table, write_block, write_table};
use crate::table::{L1Entry, Mapping};

/// Most clusters of a file whose refcounts are rebuilt: 128 MiB of memory for the counting, 4 TiB of file with 64 KiB
/// clusters.
const MAX_CLUSTERS: u64 = 64 << 20;

/// Counts what the tables refer to, writes new refcounts behind everything else, and clears the dirty bit.
///
/// Nothing that the image refers to is written, so an interrupted rebuild can be repeated. The clusters of the old
/// refcounts are not referred to by the new ones and so are free.
pub(crate) fn rebuild_refcounts(
    file: &dyn BlockFile,
    header: &mut Header,
    l1: &[L1Entry],
    metadata: &HashSet<u64>,
) -> Result<(), Error> {
    if header.snapshots > 0 {
        return Err(Malformed::DirtySnapshots.into());
    }
    let clusters = file.len()?.div_ceil(header.cluster_size());
    if clusters > MAX_CLUSTERS {
        let (size, cluster_size) = (header.size, header.cluster_size());
        return Err(Malformed::TooLarge { size, cluster_size }.into());
    }
    let mut counts = vec![0u16; clusters as usize];
    for cluster in metadata {
        raise(&mut counts, *cluster << header.cluster_bits, header)?;
    }
    let mut table = vec![0; header.cluster_size() as usize];
    for offset in l1.iter().filter_map(|entry| entry.offset()) {
        read_or_zero(file, &mut table, offset)?;
        for entry in table.as_chunks().0 {
            let mapping = Mapping::decode(
                u64::from_be_bytes(*entry),
                header.cluster_bits,
                header.version >= 3,
            );
            count_mapping(&mut counts, mapping, header, metadata)?;
        }
    }
    append_refcounts(file, header, &counts)?;
    header.incompatible &= !INCOMPATIBLE_DIRTY;
    header.autoclear = 0;
    header.write_features(file)?;
    Ok(file.sync()?)
}

fn count_mapping(
    counts: &mut [u16],
    mapping: Mapping,
    header: &Header,
    metadata: &HashSet<u64>,
) -> Result<(), Error> {
    let range = match mapping {
        Mapping::Data(cluster) | Mapping::Zero { reserved: Some(cluster) } => {
            if !cluster.offset.is_multiple_of(header.cluster_size()) {
                return Err(
                    Corruption::Misaligned { table: "L2 table", offset: cluster.offset }.into()
                );
            }
            cluster.offset..cluster.offset + header.cluster_size()
        }
        Mapping::Compressed { offset, len } => offset..offset + len,
        Mapping::Unallocated | Mapping::Zero { reserved: None } => return Ok(()),
    };
    let mut at = range.start - range.start % header.cluster_size();
    while at < range.end {
        if metadata.contains(&(at >> header.cluster_bits)) {
            return Err(Corruption::Overlap(at).into());
        }
        // The last sector of compressed data may be said to reach beyond the file.
        if at == range.start - range.start % header.cluster_size()
            || at >> header.cluster_bits < counts.len() as u64
        {
            raise(counts, at, header)?;
        }
        at += header.cluster_size();
    }
    Ok(())
}

fn raise(counts: &mut [u16], offset: u64, header: &Header) -> Result<(), Error> {
    let max = u64::MAX >> (64 - (1u32 << header.refcount_order));
    let index = usize::try_from(offset >> header.cluster_bits).unwrap_or(usize::MAX);
    let count = counts.get_mut(index).ok_or(Corruption::BeyondEnd { table: "L2 table", offset })?;
    *count = count
        .checked_add(1)
        .filter(|count| u64::from(*count) <= max)
        .ok_or(Corruption::Refcount(offset))?;
    Ok(())
}

/// Writes refcounts behind everything else in `file` and has the header refer to them; `counts` are those of the clusters
/// that there are.
fn append_refcounts(
    file: &dyn BlockFile,
    header: &mut Header,
    counts: &[u16],
) -> Result<(), Error> {
    let layout = Layout { cluster_bits: header.cluster_bits, order: header.refcount_order };
    let base = counts.len() as u64;
    // Blocks for everything up to the new tables' own end.
    let mut blocks = 1;
    let plan = loop {
        let plan = plan_table(blocks, blocks, layout);
        let needed = (base + blocks + plan.table_clusters).div_ceil(layout.per_block());
        if needed <= blocks {
            break plan;
        }
        blocks = needed;
    };
    let end = base + blocks + plan.table_clusters;
    let count = |index: u64| match counts.get(usize::try_from(index).unwrap_or(usize::MAX)) {
        Some(count) => u64::from(*count),
        None => u64::from(index < end),
    };
    let mut table = vec![0; (plan.table_clusters << header.cluster_bits) as usize / 8];
    for block in 0..blocks {
        let offset = (base + block) << header.cluster_bits;
        write_block(file, layout, offset, block * layout.per_block(), &count)?;
        table[block as usize] = offset;
    }
    header.refcount_table_offset = (base + blocks) << header.cluster_bits;
    header.refcount_table_clusters = plan.table_clusters as u32;
    write_table(file, &table, header.refcount_table_offset, plan.table_clusters)
}
