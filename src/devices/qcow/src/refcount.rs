//! Refcounts: which clusters of the file are in use, and finding ones that are not (spec, "Host cluster management").

use std::collections::HashSet;

use crate::cache::{Cache, read_or_zero};
use crate::error::{Corruption, Error};
use crate::file::BlockFile;
use crate::header::{Header, REFCOUNT_TABLE_FIELD};

/// Pages of refcount blocks that are kept: 1 MiB, the refcounts of 32 GiB with 64 KiB clusters.
const CACHE_PAGES: usize = 256;
/// Bits 9 to 63 of a refcount table entry.
const BLOCK_MASK: u64 = !0x1ff;
/// Clusters are named by 56-bit offsets.
const OFFSET_LIMIT: u64 = 1 << 56;

/// Width and arrangement of refcounts.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Layout {
    pub(crate) cluster_bits: u32,
    /// A refcount has 2^order bits.
    pub(crate) order: u32,
}

impl Layout {
    /// Refcounts in a block, which is one cluster.
    pub(crate) fn per_block(self) -> u64 {
        1 << (self.cluster_bits + 3 - self.order)
    }

    /// Largest refcount.
    pub(crate) fn max(self) -> u64 {
        u64::MAX >> (64 - (1 << self.order))
    }

    /// The refcount at `index` of (a page of) a block.
    pub(crate) fn get(self, bytes: &[u8], index: usize) -> u64 {
        if self.order < 3 {
            let (byte, shift) = self.bits(index);
            return bytes.get(byte).map_or(0, |byte| u64::from(byte >> shift) & self.max());
        }
        let width = 1 << (self.order - 3);
        let field = bytes.get(index * width..(index + 1) * width).unwrap_or(&[]);
        field.iter().fold(0, |value, byte| value << 8 | u64::from(*byte))
    }

    /// Sets the refcount at `index`.
    pub(crate) fn set(self, bytes: &mut [u8], index: usize, value: u64) {
        if self.order < 3 {
            let (byte, shift) = self.bits(index);
            if let Some(byte) = bytes.get_mut(byte) {
                *byte = *byte & !((self.max() as u8) << shift) | (value as u8) << shift;
            }
            return;
        }
        let width = 1 << (self.order - 3);
        if let Some(field) = bytes.get_mut(index * width..(index + 1) * width) {
            field.copy_from_slice(&value.to_be_bytes()[8 - width..]);
        }
    }

    /// Byte and shift of a refcount of less than a byte: the first is in the least significant bits.
    fn bits(self, index: usize) -> (usize, usize) {
        let bit = index << self.order;
        (bit / 8, bit % 8)
    }
}

/// The refcounts of an image that is open for writing.
#[derive(Debug)]
pub(crate) struct Refcounts {
    layout: Layout,
    table: Vec<u64>,
    table_offset: u64,
    table_clusters: u64,
    cache: Cache,
    /// No cluster below this index is free.
    hint: u64,
    /// Clusters (by index) that hold tables: data must never be written there, whatever L2 says.
    metadata: HashSet<u64>,
}

impl Refcounts {
    /// Reads the refcount table. `metadata` are the clusters that hold other tables.
    pub(crate) fn open(
        file: &dyn BlockFile,
        header: &Header,
        mut metadata: HashSet<u64>,
    ) -> Result<Self, Error> {
        let layout = Layout { cluster_bits: header.cluster_bits, order: header.refcount_order };
        let clusters = u64::from(header.refcount_table_clusters);
        let mut bytes = vec![0; (clusters << header.cluster_bits) as usize];
        read_or_zero(file, &mut bytes, header.refcount_table_offset)?;
        let table: Vec<u64> = bytes
            .as_chunks()
            .0
            .iter()
            .map(|entry| u64::from_be_bytes(*entry) & BLOCK_MASK)
            .collect();
        let first = header.refcount_table_offset >> header.cluster_bits;
        for cluster in first..first + clusters {
            if !metadata.insert(cluster) {
                return Err(Corruption::Overlap(cluster << header.cluster_bits).into());
            }
        }
        let file_len = file.len()?;
        for &offset in table.iter().filter(|offset| **offset != 0) {
            check_cluster("refcount table", offset, header.cluster_bits, file_len)?;
            if !metadata.insert(offset >> header.cluster_bits) {
                return Err(Corruption::Overlap(offset).into());
            }
        }
        Ok(Self {
            layout,
            table,
            table_offset: header.refcount_table_offset,
            table_clusters: clusters,
            cache: Cache::new(header.cluster_size(), CACHE_PAGES),
            hint: 0,
            metadata,
        })
    }

    /// Whether the cluster at `offset` holds a table.
    pub(crate) fn is_metadata(&self, offset: u64) -> bool {
        self.metadata.contains(&(offset >> self.layout.cluster_bits))
    }

    /// Notes that the cluster at `offset` holds a table from here on.
    pub(crate) fn add_metadata(&mut self, offset: u64) {
        self.metadata.insert(offset >> self.layout.cluster_bits);
    }

    /// Notes that it no longer does.
    pub(crate) fn remove_metadata(&mut self, offset: u64) {
        self.metadata.remove(&(offset >> self.layout.cluster_bits));
    }

    /// Takes up to `want` free clusters that follow each other, at least one, and raises their refcounts to one.
    ///
    /// Returns the offset of the first and how many.
    pub(crate) fn allocate(
        &mut self,
        file: &dyn BlockFile,
        want: u64,
    ) -> Result<(u64, u64), Error> {
        let mut first = self.hint;
        while !self.is_free(file, first)? {
            first += 1;
        }
        let mut count = 1;
        while count < want && self.is_free(file, first + count)? {
            count += 1;
        }
        for index in first..first + count {
            self.set(file, index, 1)?;
        }
        self.hint = first + count;
        Ok((first << self.layout.cluster_bits, count))
    }

    /// Whether a cluster can be taken. Makes room for its refcount if there is none.
    fn is_free(&mut self, file: &dyn BlockFile, index: u64) -> Result<bool, Error> {
        if index >= OFFSET_LIMIT >> self.layout.cluster_bits {
            return Err(Error::Full);
        }
        self.ensure_block(file, index / self.layout.per_block())?;
        Ok(!self.metadata.contains(&index) && self.get(file, index)? == 0)
    }

    /// Lowers the refcount of the cluster at `offset`; returns whether it is free now.
    pub(crate) fn release(&mut self, file: &dyn BlockFile, offset: u64) -> Result<bool, Error> {
        let index = offset >> self.layout.cluster_bits;
        let count = self.get(file, index)?.checked_sub(1).ok_or(Corruption::Refcount(offset))?;
        self.set(file, index, count)?;
        if count == 0 {
            self.hint = self.hint.min(index);
        }
        Ok(count == 0)
    }

    /// Writes changed refcounts to the file. Does not sync.
    pub(crate) fn write_back(&mut self, file: &dyn BlockFile) -> Result<(), Error> {
        self.cache.write_back(file)
    }

    /// Whether there are changed refcounts.
    pub(crate) fn is_dirty(&self) -> bool {
        self.cache.is_dirty()
    }

    fn get(&mut self, file: &dyn BlockFile, index: u64) -> Result<u64, Error> {
        let Some((offset, within)) = self.locate(index) else { return Ok(0) };
        let layout = self.layout;
        if self.cache.page(file, offset)?.is_none() {
            self.cache.write_back(file)?;
        }
        Ok(self.cache.page(file, offset)?.map_or(0, |page| layout.get(page, within)))
    }

    fn set(&mut self, file: &dyn BlockFile, index: u64, value: u64) -> Result<(), Error> {
        let Some((offset, within)) = self.locate(index) else {
            return Err(Corruption::Refcount(index << self.layout.cluster_bits).into());
        };
        let layout = self.layout;
        if self.cache.page(file, offset)?.is_none() {
            self.cache.write_back(file)?;
        }
        if let Some(page) = self.cache.page_mut(file, offset)? {
            layout.set(page, within, value);
        }
        Ok(())
    }

    /// Offset of the page with a cluster's refcount, and the refcount's index in that page.
    fn locate(&self, index: u64) -> Option<(u64, usize)> {
        let per_block = self.layout.per_block();
        let block = *self.table.get(usize::try_from(index / per_block).ok()?)?;
        let per_page = (self.cache.page_size() * 8) >> self.layout.order;
        let within = index % per_block;
        let page = within / per_page * self.cache.page_size();
        (block != 0).then_some((block + page, (within % per_page) as usize))
    }

    /// Makes sure that refcount block number `block` exists.
    ///
    /// A new block takes the first free cluster of those whose refcounts it holds: all of them are free so far.
    fn ensure_block(&mut self, file: &dyn BlockFile, block: u64) -> Result<(), Error> {
        let at = usize::try_from(block).map_err(|_| Error::Full)?;
        if at >= self.table.len() {
            return self.grow_table(file, block);
        }
        if self.table[at] != 0 {
            return Ok(());
        }
        let per_block = self.layout.per_block();
        let first = block * per_block;
        let own = (first..first + per_block)
            .find(|index| !self.metadata.contains(index))
            .ok_or(Error::Full)?;
        let offset = own << self.layout.cluster_bits;
        let mut bytes = vec![0; 1 << self.layout.cluster_bits];
        for index in first..=own {
            self.layout.set(&mut bytes, (index - first) as usize, 1);
        }
        self.cache.forget(offset, bytes.len() as u64);
        file.write_at(&bytes, offset)?;
        // The block must be there before the table says so.
        file.sync()?;
        file.write_at(&offset.to_be_bytes(), self.table_offset + block * 8)?;
        self.table[at] = offset;
        self.metadata.insert(own);
        Ok(())
    }

    /// Replaces the refcount table by one that has room for block number `block`.
    ///
    /// The new table, and the blocks with the refcounts of the new table, take the first clusters that had no
    /// refcount so far; the header then switches over in one write.
    fn grow_table(&mut self, file: &dyn BlockFile, block: u64) -> Result<(), Error> {
        let bits = self.layout.cluster_bits;
        let per_block = self.layout.per_block();
        let base = block * per_block;
        let plan = plan_table(block, self.table.len() as u64 * 2, self.layout);
        if plan.table_clusters << bits > u64::from(u32::MAX) {
            return Err(Error::Full);
        }
        let used = plan.blocks + plan.table_clusters;
        write_refcount_blocks(file, self.layout, base, plan.blocks, |index| {
            u64::from(index < base + used)
        })?;
        let mut table = self.table.clone();
        table.resize((plan.table_clusters << bits) as usize / 8, 0);
        for number in 0..plan.blocks {
            table[(block + number) as usize] = (base + number) << bits;
        }
        let table_offset = (base + plan.blocks) << bits;
        write_table(file, &table, table_offset, plan.table_clusters)?;

        let old = (self.table_offset, self.table_clusters);
        for index in base..base + used {
            self.metadata.insert(index);
            self.cache.forget(index << bits, 1 << bits);
        }
        self.table = table;
        self.table_offset = table_offset;
        self.table_clusters = plan.table_clusters;
        for cluster in 0..old.1 {
            let offset = old.0 + (cluster << bits);
            self.remove_metadata(offset);
            self.release(file, offset)?;
        }
        Ok(())
    }
}

/// How much a new refcount table and the blocks that cover it take.
pub(crate) struct TablePlan {
    pub(crate) blocks: u64,
    pub(crate) table_clusters: u64,
}

/// Plans a table of at least `entries` entries and the blocks for itself, from block number `first_block` on. The
/// blocks come first, the table behind them.
pub(crate) fn plan_table(first_block: u64, entries: u64, layout: Layout) -> TablePlan {
    let per_cluster = (1u64 << layout.cluster_bits) / 8;
    let mut blocks = 1;
    loop {
        let table_clusters = entries.max(first_block + blocks).div_ceil(per_cluster);
        let needed = (blocks + table_clusters).div_ceil(layout.per_block());
        if needed <= blocks {
            return TablePlan { blocks, table_clusters };
        }
        blocks = needed;
    }
}

/// Writes `blocks` refcount blocks to the clusters from index `base` on, for the clusters from `base` on.
fn write_refcount_blocks(
    file: &dyn BlockFile,
    layout: Layout,
    base: u64,
    blocks: u64,
    count: impl Fn(u64) -> u64,
) -> Result<(), Error> {
    for number in 0..blocks {
        let first = base + number * layout.per_block();
        write_block(file, layout, (base + number) << layout.cluster_bits, first, &count)?;
    }
    Ok(())
}

/// Writes one refcount block to `offset`, for the clusters from index `first` on.
pub(crate) fn write_block(
    file: &dyn BlockFile,
    layout: Layout,
    offset: u64,
    first: u64,
    count: &impl Fn(u64) -> u64,
) -> Result<(), Error> {
    let mut bytes = vec![0; 1 << layout.cluster_bits];
    for within in 0..layout.per_block() {
        layout.set(&mut bytes, within as usize, count(first + within));
    }
    Ok(file.write_at(&bytes, offset)?)
}

/// Writes a refcount table and has the header refer to it, in an order that survives a crash.
pub(crate) fn write_table(
    file: &dyn BlockFile,
    table: &[u64],
    offset: u64,
    clusters: u64,
) -> Result<(), Error> {
    let bytes: Vec<u8> = table.iter().flat_map(|entry| entry.to_be_bytes()).collect();
    file.write_at(&bytes, offset)?;
    file.sync()?;
    let mut fields = [0; 12];
    fields[..8].copy_from_slice(&offset.to_be_bytes());
    fields[8..].copy_from_slice(&(clusters as u32).to_be_bytes());
    file.write_at(&fields, REFCOUNT_TABLE_FIELD)?;
    Ok(file.sync()?)
}

/// Checks that a table entry refers to a cluster of the file.
pub(crate) fn check_cluster(
    table: &'static str,
    offset: u64,
    cluster_bits: u32,
    file_len: u64,
) -> Result<(), Corruption> {
    if !offset.is_multiple_of(1 << cluster_bits) {
        return Err(Corruption::Misaligned { table, offset });
    }
    if offset >= file_len {
        return Err(Corruption::BeyondEnd { table, offset });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refcounts_of_every_width_are_independent() {
        for order in 0..=6 {
            let layout = Layout { cluster_bits: 9, order };
            let mut block = vec![0; 512];
            for index in 0..layout.per_block() as usize {
                layout.set(&mut block, index, index as u64 & layout.max());
            }
            for index in 0..layout.per_block() as usize {
                assert_eq!(layout.get(&block, index), index as u64 & layout.max(), "order {order}");
            }
        }
    }

    #[test]
    fn wide_refcounts_are_big_endian() {
        let layout = Layout { cluster_bits: 9, order: 4 };
        let mut block = vec![0; 512];
        layout.set(&mut block, 1, 0x1234);
        assert_eq!(block[..4], [0, 0, 0x12, 0x34]);
    }

    #[test]
    fn a_planned_table_covers_itself() {
        for cluster_bits in [9, 12, 16, 21] {
            for first in [0, 1, 100, 5000] {
                let layout = Layout { cluster_bits, order: 4 };
                let plan = plan_table(first, first * 2, layout);
                assert!(plan.blocks * layout.per_block() >= plan.blocks + plan.table_clusters);
                assert!((plan.table_clusters << cluster_bits) / 8 >= first + plan.blocks);
            }
        }
    }
}
