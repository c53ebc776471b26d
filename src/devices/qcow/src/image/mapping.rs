//! The two levels of tables that map the disk onto the file.

use super::{Extent, Image, MAX_PENDING_FREE};
use crate::cache::read_or_zero;
use crate::error::{Corruption, Error};
use crate::table::{DataCluster, L1Entry, Mapping};
use std::sync::PoisonError;

impl Image {
    /// Where the L2 entry of `position` is in the file; none if there is no table.
    pub(super) fn entry_of(&self, position: u64) -> Option<u64> {
        let per_table = self.cluster_size() * self.header.l2_entries();
        let table = self.l1.get((position / per_table) as usize)?.offset()?;
        Some(table + position % per_table / self.cluster_size() * 8)
    }

    /// What is at `position` of the disk, and how many bytes from there (at most `max`) lie alike.
    pub(super) fn map(&mut self, position: u64, max: u64) -> Result<(Extent, u64), Error> {
        if let Some(at) = self.entry_of(position) {
            self.l2_page(at)?;
        }
        self.map_cached(position, max)?.ok_or(Error::Failed)
    }

    /// As [`Image::map`]; none if the table is not in memory.
    pub(super) fn map_cached(
        &self,
        position: u64,
        max: u64,
    ) -> Result<Option<(Extent, u64)>, Error> {
        let cluster = self.cluster_size();
        let within = position % cluster;
        let Some(at) = self.entry_of(position) else {
            let per_table = cluster * self.header.l2_entries();
            return Ok(Some((Extent::Unallocated, (per_table - position % per_table).min(max))));
        };
        let (bits, has_zero_flag) = (self.header.cluster_bits, self.header.version >= 3);
        let Some(page) = self.l2.cached(at) else { return Ok(None) };
        let from = (at % page.len() as u64) as usize;
        let entries = page.get(from..).unwrap_or(&[]).as_chunks::<8>().0;
        let mut mappings = entries
            .iter()
            .map(|entry| Mapping::decode(u64::from_be_bytes(*entry), bits, has_zero_flag));
        let first = mappings.next().unwrap_or(Mapping::Unallocated);
        let mut len = cluster - within;
        for (clusters, mapping) in (1..).zip(mappings) {
            if len >= max || !continues(first, mapping, clusters * cluster) {
                break;
            }
            len += cluster;
        }
        let extent = match first {
            Mapping::Unallocated => Extent::Unallocated,
            Mapping::Zero { .. } => Extent::Zero,
            Mapping::Compressed { offset, len } => {
                if offset >= self.file_len {
                    return Err(Corruption::BeyondEnd { table: "L2 table", offset }.into());
                }
                Extent::Compressed { offset, len }
            }
            Mapping::Data(DataCluster { offset, owned }) => {
                if !offset.is_multiple_of(cluster) {
                    return Err(Corruption::Misaligned { table: "L2 table", offset }.into());
                }
                Extent::Data { offset: offset + within, owned }
            }
        };
        Ok(Some((extent, len.min(max))))
    }

    pub(super) fn l2_page(&mut self, at: u64) -> Result<&mut [u8], Error> {
        if self.l2.page(&*self.file, at)?.is_none() {
            self.write_back()?;
        }
        self.l2.page(&*self.file, at)?.ok_or(Error::Failed)
    }

    /// Changes the mapping of the cluster at `position` and lets go of what was there.
    pub(super) fn set_mapping(&mut self, position: u64, mapping: Mapping) -> Result<(), Error> {
        let cluster = self.cluster_size();
        let per_table = cluster * self.header.l2_entries();
        let table = self.own_l2_table((position / per_table) as usize)?;
        let at = table + position % per_table / cluster * 8;
        let (bits, has_zero_flag) = (self.header.cluster_bits, self.header.version >= 3);
        self.l2_page(at)?;
        let page = self.l2.page_mut(&*self.file, at)?.ok_or(Error::Failed)?;
        let from = (at % page.len() as u64) as usize;
        let Some(entry) = page.get_mut(from..).and_then(|rest| rest.first_chunk_mut::<8>()) else {
            return Err(Error::Failed);
        };
        let old = Mapping::decode(u64::from_be_bytes(*entry), bits, has_zero_flag);
        *entry = mapping.encode().to_be_bytes();
        self.let_go(old, mapping);
        if self.pending_free.len() >= MAX_PENDING_FREE {
            self.write_back()?;
        }
        Ok(())
    }

    /// Notes the clusters that `old` referred to and `new` does not.
    fn let_go(&mut self, old: Mapping, new: Mapping) {
        let kept = match new {
            Mapping::Data(cluster) | Mapping::Zero { reserved: Some(cluster) } => {
                Some(cluster.offset)
            }
            _ => None,
        };
        match old {
            Mapping::Data(cluster) | Mapping::Zero { reserved: Some(cluster) } => {
                if kept != Some(cluster.offset) {
                    self.pending_free.push(cluster.offset);
                }
            }
            Mapping::Compressed { offset, len } => {
                *self.decompressed.get_mut().unwrap_or_else(PoisonError::into_inner) = None;
                let cluster = self.cluster_size();
                let mut at = offset - offset % cluster;
                while at < offset + len {
                    self.pending_free.push(at);
                    at += cluster;
                }
            }
            Mapping::Unallocated | Mapping::Zero { reserved: None } => {}
        }
    }

    /// Offset of the L2 table at `index` of the L1 table, which may be changed in place: a new one if there is none,
    /// a copy if it is shared with a snapshot.
    pub(super) fn own_l2_table(&mut self, index: usize) -> Result<u64, Error> {
        let entry = self.l1.get(index).copied().ok_or(Error::Failed)?;
        if let (Some(offset), true) = (entry.offset(), entry.is_owned()) {
            return Ok(offset);
        }
        let cluster = self.cluster_size();
        let mut table = vec![0; cluster as usize];
        if let Some(shared) = entry.offset() {
            // Pages of a shared table are never dirty: they are changed only after this copy.
            read_or_zero(&*self.file, &mut table, shared)?;
        }
        let (offset, _) = self.allocate(1)?;
        self.fill_new(offset, 1, &table)?;
        self.l2.forget(offset, cluster);
        if let Some(shared) = entry.offset() {
            self.pending_free.push(shared);
        }
        if let Some(refcounts) = &mut self.refcounts {
            refcounts.add_metadata(offset);
        }
        self.l1[index] = L1Entry::owned(offset);
        self.l1_dirty = Some(match self.l1_dirty.take() {
            Some(range) => range.start.min(index)..range.end.max(index + 1),
            None => index..index + 1,
        });
        Ok(offset)
    }
}

/// Whether `next` continues a run that began with `first`, `distance` bytes before it.
fn continues(first: Mapping, next: Mapping, distance: u64) -> bool {
    match (first, next) {
        (Mapping::Unallocated, Mapping::Unallocated)
        | (Mapping::Zero { .. }, Mapping::Zero { .. }) => true,
        (Mapping::Data(first), Mapping::Data(next)) => {
            next.owned == first.owned && first.offset.checked_add(distance) == Some(next.offset)
        }
        _ => false,
    }
}
