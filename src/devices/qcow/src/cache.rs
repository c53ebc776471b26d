//! A write-back cache of metadata in pages that never span two tables.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::Error;
use crate::file::BlockFile;

/// Bytes of a page, if a cluster is not smaller: a small read for a random access, and enough for neighbours.
const PAGE_SIZE: u64 = 4096;

#[derive(Debug)]
struct Page {
    offset: u64,
    data: Box<[u8]>,
    dirty: bool,
    /// Used since the clock's hand passed.
    recent: AtomicBool,
}

/// Pages of one kind of table, keyed by their offset in the file.
#[derive(Debug)]
pub(crate) struct Cache {
    page_size: u64,
    capacity: usize,
    pages: Vec<Page>,
    index: HashMap<u64, usize>,
    hand: usize,
    dirty: usize,
}

impl Cache {
    /// A cache of at most `capacity` pages for an image with clusters of `cluster_size` bytes.
    pub(crate) fn new(cluster_size: u64, capacity: usize) -> Self {
        Self {
            page_size: cluster_size.min(PAGE_SIZE),
            capacity: capacity.max(1),
            pages: Vec::new(),
            index: HashMap::new(),
            hand: 0,
            dirty: 0,
        }
    }

    /// Bytes of a page.
    pub(crate) fn page_size(&self) -> u64 {
        self.page_size
    }

    /// Whether anything is to be written back.
    pub(crate) fn is_dirty(&self) -> bool {
        self.dirty > 0
    }

    /// The page that holds `offset`, if it is there already.
    pub(crate) fn cached(&self, offset: u64) -> Option<&[u8]> {
        let at = *self.index.get(&(offset - offset % self.page_size))?;
        let page = self.pages.get(at)?;
        page.recent.store(true, Ordering::Relaxed);
        Some(&page.data)
    }

    /// The page that holds `offset`, read from `file` if need be; none when every page is dirty and has to be
    /// written back first.
    ///
    /// What the file does not have reads as zero.
    pub(crate) fn page(
        &mut self,
        file: &dyn BlockFile,
        offset: u64,
    ) -> Result<Option<&mut [u8]>, Error> {
        let Some(at) = self.locate(file, offset)? else { return Ok(None) };
        Ok(self.pages.get_mut(at).map(|page| &mut page.data[..]))
    }

    /// As [`Cache::page`], and the page counts as changed.
    pub(crate) fn page_mut(
        &mut self,
        file: &dyn BlockFile,
        offset: u64,
    ) -> Result<Option<&mut [u8]>, Error> {
        let Some(at) = self.locate(file, offset)? else { return Ok(None) };
        Ok(self.pages.get_mut(at).map(|page| {
            self.dirty += usize::from(!page.dirty);
            page.dirty = true;
            &mut page.data[..]
        }))
    }

    fn locate(&mut self, file: &dyn BlockFile, offset: u64) -> Result<Option<usize>, Error> {
        let offset = offset - offset % self.page_size;
        if let Some(&at) = self.index.get(&offset) {
            if let Some(page) = self.pages.get_mut(at) {
                *page.recent.get_mut() = true;
            }
            return Ok(Some(at));
        }
        let Some(at) = self.vacate() else { return Ok(None) };
        let Some(page) = self.pages.get_mut(at) else { return Ok(None) };
        read_or_zero(file, &mut page.data, offset)?;
        page.offset = offset;
        *page.recent.get_mut() = true;
        self.index.insert(offset, at);
        Ok(Some(at))
    }

    /// A page slot whose contents are not needed; none if all are dirty.
    fn vacate(&mut self) -> Option<usize> {
        if self.pages.len() < self.capacity {
            let data = vec![0; self.page_size as usize].into();
            let recent = AtomicBool::new(false);
            self.pages.push(Page { offset: u64::MAX, data, dirty: false, recent });
            return Some(self.pages.len() - 1);
        }
        // Twice around: the first time may only take the marks away.
        for _ in 0..2 * self.pages.len() {
            let at = self.hand;
            self.hand = (at + 1) % self.pages.len();
            let page = &mut self.pages[at];
            if page.dirty {
                continue;
            }
            if std::mem::take(page.recent.get_mut()) {
                continue;
            }
            self.index.remove(&page.offset);
            page.offset = u64::MAX;
            return Some(at);
        }
        None
    }

    /// Writes all changed pages to `file`. Does not sync.
    pub(crate) fn write_back(&mut self, file: &dyn BlockFile) -> Result<(), Error> {
        if self.dirty == 0 {
            return Ok(());
        }
        for page in self.pages.iter_mut().filter(|page| page.dirty) {
            file.write_at(&page.data, page.offset)?;
            page.dirty = false;
            self.dirty -= 1;
        }
        Ok(())
    }

    /// Forgets the pages of a range of the file, changed or not: the table that was there is gone.
    pub(crate) fn forget(&mut self, offset: u64, len: u64) {
        for page in &mut self.pages {
            if page.offset >= offset && page.offset - offset < len {
                self.dirty -= usize::from(page.dirty);
                self.index.remove(&page.offset);
                page.dirty = false;
                *page.recent.get_mut() = false;
                page.offset = u64::MAX;
            }
        }
    }
}

/// Reads from `file`; what is beyond its end is zero, as a file of clusters need not be a multiple of one.
pub(crate) fn read_or_zero(file: &dyn BlockFile, buf: &mut [u8], offset: u64) -> Result<(), Error> {
    let there = usize::try_from(file.len()?.saturating_sub(offset)).unwrap_or(usize::MAX);
    let (data, beyond) = buf.split_at_mut(there.min(buf.len()));
    beyond.fill(0);
    if !data.is_empty() {
        file.read_at(data, offset)?;
    }
    Ok(())
}
