//! Making lasting: what is written in which order, and what is freed after.

use super::Image;
use crate::error::Error;
use crate::file::BlockFile;
use crate::refcount::Refcounts;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// A sync of an image's file that is under way, for which nobody has to wait.
pub(crate) struct PendingSync {
    /// What to sync; none if all is lasting already.
    pub(crate) file: Option<Arc<dyn BlockFile>>,
    /// Writes that were complete before.
    written: u64,
}

impl Image {
    /// Makes everything written so far lasting.
    ///
    /// # Errors
    /// [`Error::Io`]. After a failed sync the image accepts no more writes: what the file has is not known.
    pub fn flush(&mut self) -> Result<(), Error> {
        if self.refcounts.is_none() {
            return Ok(());
        }
        self.check_writable()?;
        self.write_back()
    }

    /// Begins a flush that needs no change of the file but a sync; none if tables are to be written first.
    ///
    /// # Errors
    /// [`Error::Failed`]
    pub(crate) fn begin_sync(&self) -> Result<Option<PendingSync>, Error> {
        if self.refcounts.is_none() {
            return Ok(Some(PendingSync { file: None, written: 0 }));
        }
        self.check_writable()?;
        if self.has_dirty_tables() || !self.pending_free.is_empty() {
            return Ok(None);
        }
        let written = self.written.load(Ordering::SeqCst);
        let is_due = self.synced.load(Ordering::SeqCst) < written;
        Ok(Some(PendingSync { file: is_due.then(|| self.file.clone()), written }))
    }

    /// Takes note of how a sync has ended.
    pub(crate) fn end_sync(&self, sync: &PendingSync, result: io::Result<()>) -> Result<(), Error> {
        match result {
            Ok(()) => {
                self.synced.fetch_max(sync.written, Ordering::SeqCst);
                // The failure of another sync is told to that one only.
                self.check_writable()
            }
            Err(error) => {
                self.failed.store(true, Ordering::SeqCst);
                Err(error.into())
            }
        }
    }

    fn has_dirty_tables(&self) -> bool {
        let refcounts = self.refcounts.as_ref().is_some_and(Refcounts::is_dirty);
        refcounts || self.l2.is_dirty() || self.l1_dirty.is_some()
    }

    /// Writes all metadata in the order that the crate's head states.
    pub(super) fn write_back(&mut self) -> Result<(), Error> {
        // Nobody writes meanwhile.
        let written = *self.written.get_mut();
        let is_synced = *self.synced.get_mut() == written;
        if !self.has_dirty_tables() && is_synced && self.pending_free.is_empty() {
            return Ok(());
        }
        let Some(refcounts) = &mut self.refcounts else { return Err(Error::ReadOnly) };
        refcounts.write_back(&*self.file)?;
        if self.l2.is_dirty() || self.l1_dirty.is_some() {
            self.sync()?;
            self.l2.write_back(&*self.file)?;
        }
        if let Some(range) = self.l1_dirty.clone() {
            self.sync()?;
            let entries = self.l1.get(range.clone()).unwrap_or(&[]);
            let bytes: Vec<u8> = entries.iter().flat_map(|entry| entry.0.to_be_bytes()).collect();
            self.file.write_at(&bytes, self.header.l1_offset + range.start as u64 * 8)?;
            self.l1_dirty = None;
        }
        self.sync()?;
        *self.synced.get_mut() = written;
        self.free_pending()
    }

    fn sync(&mut self) -> Result<(), Error> {
        self.file.sync().inspect_err(|_| *self.failed.get_mut() = true)?;
        Ok(())
    }

    /// Frees the clusters that nothing in the file refers to any more.
    fn free_pending(&mut self) -> Result<(), Error> {
        let cluster = self.cluster_size();
        let Some(refcounts) = &mut self.refcounts else { return Ok(()) };
        let mut hole: Option<Range<u64>> = None;
        while let Some(offset) = self.pending_free.pop() {
            if !refcounts.release(&*self.file, offset)? {
                continue;
            }
            hole = match hole {
                Some(range) if range.end == offset => Some(range.start..offset + cluster),
                Some(range) if offset + cluster == range.start => Some(offset..range.end),
                other => {
                    if let Some(range) = other {
                        self.file.punch_hole(range.start, range.end - range.start)?;
                    }
                    Some(offset..offset + cluster)
                }
            };
        }
        if let Some(range) = hole {
            self.file.punch_hole(range.start, range.end - range.start)?;
        }
        // Not synced: should this be lost, the clusters are leaked and no more.
        refcounts.write_back(&*self.file)
    }
}
