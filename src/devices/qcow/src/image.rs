//! An image: the disk that a guest sees, and how it lies in its file.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::backing::{Backing, BackingOpener, MAX_CHAIN};
use crate::cache::{Cache, read_or_zero};
use crate::compress::decompress;
use crate::error::{Corruption, Error, Malformed};
use crate::file::BlockFile;
use crate::header::{BackingName, Header, INCOMPATIBLE_CORRUPT, INCOMPATIBLE_DIRTY};
use crate::refcount::{Refcounts, check_cluster};
use crate::repair;
use crate::table::{DataCluster, L1Entry, Mapping};

mod flush;
mod mapping;

/// Pages of L2 tables that are kept: 4 MiB, the mappings of 32 GiB with 64 KiB clusters.
const L2_CACHE_PAGES: usize = 1024;
/// Clusters waiting to be freed before that is done without a flush of the guest's.
const MAX_PENDING_FREE: usize = 4096;
/// Zeroes are written in pieces of at most this many bytes.
static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

/// What an image is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Reading; the file is never written.
    ReadOnly,
    /// Reading and writing.
    ReadWrite,
}

/// A run of a disk's bytes that lie alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Extent {
    Unallocated,
    Zero,
    Data { offset: u64, owned: bool },
    Compressed { offset: u64, len: u64 },
}

/// An open image.
pub struct Image {
    file: Arc<dyn BlockFile>,
    header: Header,
    /// Length of the file: only this value writes to it.
    file_len: u64,
    l1: Vec<L1Entry>,
    l1_dirty: Option<Range<usize>>,
    l2: Cache,
    /// None when opened for reading.
    refcounts: Option<Refcounts>,
    backing: Option<Backing>,
    /// Clusters that are no longer referred to, but may be in the file until the next write-back.
    pending_free: Vec<u64>,
    /// The last compressed cluster read: its descriptor and its bytes.
    decompressed: Mutex<Option<Decompressed>>,
    /// One cluster, for read-modify-write.
    scratch: Vec<u8>,
    /// Writes of data that are complete.
    written: AtomicU64,
    /// As many of them as a sync of the file began after.
    synced: AtomicU64,
    failed: AtomicBool,
}

/// A compressed cluster's descriptor and its bytes.
type Decompressed = ((u64, u64), Vec<u8>);

impl std::fmt::Debug for Image {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Image")
            .field("header", &self.header)
            .field("file_len", &self.file_len)
            .field("backing", &self.backing)
            .finish_non_exhaustive()
    }
}

impl Image {
    /// Opens the image in `file`, and the backing files it names through `opener`.
    ///
    /// # Errors
    /// [`Error::Malformed`] and [`Error::Corrupt`] for an image that no program should have made, [`Error::Backing`]
    /// with what `opener` says, [`Error::Io`].
    pub fn open(
        file: Arc<dyn BlockFile>,
        mode: Mode,
        opener: &mut dyn BackingOpener,
    ) -> Result<Self, Error> {
        Self::open_at_depth(file, mode, opener, 1)
    }

    fn open_at_depth(
        file: Arc<dyn BlockFile>,
        mode: Mode,
        opener: &mut dyn BackingOpener,
        depth: usize,
    ) -> Result<Self, Error> {
        let mut header = Header::read(&*file)?;
        let l1 = read_l1(&*file, &header)?;
        let metadata = table_clusters(&*file, &header, &l1)?;
        let refcounts = match mode {
            Mode::ReadOnly => None,
            Mode::ReadWrite => {
                prepare_for_writing(&*file, &mut header, &l1, &metadata)?;
                Some(Refcounts::open(&*file, &header, metadata)?)
            }
        };
        let backing = match &header.backing {
            None => None,
            Some(backing) => Some(open_backing(backing, opener, depth)?),
        };
        Ok(Self {
            file_len: file.len()?,
            l2: Cache::new(header.cluster_size(), L2_CACHE_PAGES),
            scratch: vec![0; header.cluster_size() as usize],
            file,
            header,
            l1,
            l1_dirty: None,
            refcounts,
            backing,
            pending_free: Vec::new(),
            decompressed: Mutex::default(),
            written: AtomicU64::new(0),
            synced: AtomicU64::new(0),
            failed: AtomicBool::new(false),
        })
    }

    /// Size of the disk in bytes.
    pub fn size(&self) -> u64 {
        self.header.size
    }

    /// Size of a cluster in bytes: what is allocated and discarded at a time.
    pub fn cluster_size(&self) -> u64 {
        self.header.cluster_size()
    }

    /// Reads all of `buf` from `offset` of the disk.
    ///
    /// # Errors
    /// [`Error::OutOfRange`]; [`Error::Corrupt`] when the mapping of the range is; [`Error::Io`].
    pub fn read_at(&mut self, buf: &mut [u8], offset: u64) -> Result<(), Error> {
        self.check_range(offset, buf.len() as u64)?;
        let mut done = 0;
        while let Some(rest) = buf.get_mut(done..).filter(|rest| !rest.is_empty()) {
            done += self.read_some(rest, offset + done as u64)?;
        }
        Ok(())
    }

    /// Reads a part of `buf` that lies alike; returns how many bytes.
    pub(crate) fn read_some(&mut self, buf: &mut [u8], position: u64) -> Result<usize, Error> {
        let (extent, len) = self.map(position, buf.len() as u64)?;
        // At most the length of `buf`.
        let piece = &mut buf[..len as usize];
        match (extent, &mut self.backing) {
            (Extent::Unallocated, Some(backing)) => backing.read_at(piece, position)?,
            _ => self.read_extent(extent, piece, position)?,
        }
        Ok(piece.len())
    }

    /// As [`Image::read_at`], as far as the tables needed are in memory; returns how many bytes were read.
    pub(crate) fn read_cached(&self, buf: &mut [u8], offset: u64) -> Result<usize, Error> {
        self.check_range(offset, buf.len() as u64)?;
        let mut done = 0;
        while let Some(rest) = buf.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let position = offset + done as u64;
            let Some((extent, len)) = self.map_cached(position, rest.len() as u64)? else { break };
            let piece = &mut rest[..len as usize];
            let read = match (extent, &self.backing) {
                (Extent::Unallocated, Some(backing)) => backing.read_cached(piece, position)?,
                _ => {
                    self.read_extent(extent, piece, position)?;
                    piece.len()
                }
            };
            done += read;
            if (read as u64) < len {
                break;
            }
        }
        Ok(done)
    }

    /// Reads what is not in the backing file.
    fn read_extent(&self, extent: Extent, buf: &mut [u8], position: u64) -> Result<(), Error> {
        match extent {
            Extent::Zero | Extent::Unallocated => buf.fill(0),
            Extent::Data { offset, .. } => {
                let there =
                    usize::try_from(self.file_len.saturating_sub(offset)).unwrap_or(usize::MAX);
                let (data, beyond) = buf.split_at_mut(there.min(buf.len()));
                beyond.fill(0);
                if !data.is_empty() {
                    self.file.read_at(data, offset)?;
                }
            }
            Extent::Compressed { offset, len } => {
                let start = (position % self.cluster_size()) as usize;
                self.read_compressed((offset, len), start, buf)?;
            }
        }
        Ok(())
    }

    /// Reads from byte `start` of a compressed cluster.
    fn read_compressed(
        &self,
        cluster: (u64, u64),
        start: usize,
        buf: &mut [u8],
    ) -> Result<(), Error> {
        let (offset, len) = cluster;
        let mut cached = self.decompressed.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = match cached.take() {
            Some((key, bytes)) if key == cluster => bytes,
            other => {
                // The last sector may be cut short by the end of the file. A cluster and a bit bound the length.
                let there = self.file_len.saturating_sub(offset);
                let len = len.min(there).min(2 * self.cluster_size() + 512);
                let mut compressed = vec![0; len as usize];
                self.file.read_at(&mut compressed, offset)?;
                let mut bytes = match other {
                    Some((_, bytes)) => bytes,
                    None => vec![0; self.cluster_size() as usize],
                };
                if !decompress(self.header.compression, &compressed, &mut bytes) {
                    return Err(Corruption::Compressed(offset).into());
                }
                bytes
            }
        };
        let (_, bytes) = cached.insert((cluster, bytes));
        let data = bytes.get(start..start + buf.len()).ok_or(Corruption::Compressed(offset))?;
        buf.copy_from_slice(data);
        Ok(())
    }

    /// Writes all of `buf` at `offset` of the disk. Lasting only after [`Image::flush`].
    ///
    /// # Errors
    /// As [`Image::read_at`]; [`Error::ReadOnly`], [`Error::Failed`], [`Error::Full`].
    pub fn write_at(&mut self, buf: &[u8], offset: u64) -> Result<(), Error> {
        self.check_writable()?;
        self.check_range(offset, buf.len() as u64)?;
        let mut done = 0;
        while let Some(rest) = buf.get(done..).filter(|rest| !rest.is_empty()) {
            done += self.write_some(rest, offset + done as u64)?;
        }
        Ok(())
    }

    /// As [`Image::write_at`], as far as clusters can be written in place by what is in memory of the tables; returns how
    /// many bytes were written.
    pub(crate) fn write_cached(&self, buf: &[u8], offset: u64) -> Result<usize, Error> {
        self.check_writable()?;
        self.check_range(offset, buf.len() as u64)?;
        let mut done = 0;
        while let Some(rest) = buf.get(done..).filter(|rest| !rest.is_empty()) {
            let mapped = self.map_cached(offset + done as u64, rest.len() as u64)?;
            let Some((Extent::Data { offset, owned: true }, len)) = mapped else { break };
            if offset + len > self.file_len {
                break;
            }
            self.check_data_clusters(offset, len)?;
            self.file.write_at(&rest[..len as usize], offset)?;
            done += len as usize;
        }
        if done > 0 {
            self.note_write();
        }
        Ok(done)
    }

    /// A write of data is complete: the next flush has to sync the file.
    fn note_write(&self) {
        self.written.fetch_add(1, Ordering::SeqCst);
    }

    /// Writes a part of `buf` that can be written in one go; returns how many bytes.
    pub(crate) fn write_some(&mut self, buf: &[u8], position: u64) -> Result<usize, Error> {
        self.note_write();
        let cluster = self.cluster_size();
        let (extent, len) = self.map(position, buf.len() as u64)?;
        if let Extent::Data { offset, owned: true } = extent {
            let data = &buf[..len as usize];
            self.check_data_clusters(offset, len)?;
            self.write_file(data, offset)?;
            return Ok(data.len());
        }
        let within = position % cluster;
        if within == 0 && buf.len() as u64 >= cluster {
            // Whole clusters need nothing of the old ones. `len` may be part of one at its end.
            let want = (len / cluster).max(1);
            let (offset, count) = self.allocate(want)?;
            let data = &buf[..(count * cluster) as usize];
            self.fill_new(offset, count, data)?;
            for index in 0..count {
                let target = DataCluster { offset: offset + index * cluster, owned: true };
                self.set_mapping(position + index * cluster, Mapping::Data(target))?;
            }
            return Ok(data.len());
        }
        let count = (buf.len() as u64).min(cluster - within) as usize;
        let mut scratch = std::mem::take(&mut self.scratch);
        let written = self.write_partial(&mut scratch, &buf[..count], position);
        self.scratch = scratch;
        written.map(|()| count)
    }

    /// Writes a part of a cluster that is not ours to change in place: its other bytes are copied.
    fn write_partial(
        &mut self,
        scratch: &mut [u8],
        buf: &[u8],
        position: u64,
    ) -> Result<(), Error> {
        let cluster = self.cluster_size();
        let start = position - position % cluster;
        // The disk may end within its last cluster.
        let valid = cluster.min(self.size() - start) as usize;
        let (old, beyond) = scratch.split_at_mut(valid);
        beyond.fill(0);
        self.read_at(old, start)?;
        let within = (position - start) as usize;
        scratch[within..within + buf.len()].copy_from_slice(buf);
        let (offset, _) = self.allocate(1)?;
        self.fill_new(offset, 1, scratch)?;
        self.set_mapping(start, Mapping::Data(DataCluster { offset, owned: true }))
    }

    /// Writes the data of newly allocated clusters; lets go of them if that fails.
    fn fill_new(&mut self, offset: u64, count: u64, data: &[u8]) -> Result<(), Error> {
        self.write_file(data, offset).inspect_err(|_| {
            // Nothing refers to them yet. If this fails too they are leaked, which harms nobody.
            if let Some(refcounts) = &mut self.refcounts {
                for index in 0..count {
                    let _ = refcounts
                        .release(&*self.file, offset + (index << self.header.cluster_bits));
                }
            }
        })
    }

    /// Makes a range read as zeroes. With `unmap`, whole clusters of it are freed.
    ///
    /// # Errors
    /// As [`Image::write_at`].
    pub fn write_zeroes(&mut self, offset: u64, len: u64, unmap: bool) -> Result<(), Error> {
        self.check_writable()?;
        self.check_range(offset, len)?;
        let end = offset + len;
        let mut position = offset;
        while position < end {
            position += self.zero_some(position, end, unmap)?;
        }
        Ok(())
    }

    /// Zeroes a part of `position..end`; returns how many bytes.
    fn zero_some(&mut self, position: u64, end: u64, unmap: bool) -> Result<u64, Error> {
        let cluster = self.cluster_size();
        let (extent, run) = self.map(position, end - position)?;
        let zero_below = self.backing.is_none();
        match extent {
            Extent::Zero => return Ok(run),
            Extent::Unallocated if zero_below => return Ok(run),
            _ => {}
        }
        let within = position % cluster;
        // The end of the disk counts as the end of a cluster.
        let whole = within == 0 && (end - position >= cluster || end == self.size());
        let piece = (cluster - within).min(end - position);
        let has_zero_flag = self.header.version >= 3;
        if !whole || !has_zero_flag && !zero_below {
            return self
                .write_some(&ZEROES[..piece.min(ZEROES.len() as u64) as usize], position)
                .map(|n| n as u64);
        }
        self.note_write();
        let reserved = match extent {
            Extent::Data { offset, owned: true } if !unmap => {
                Some(DataCluster { offset, owned: true })
            }
            _ => None,
        };
        let target = if has_zero_flag { Mapping::Zero { reserved } } else { Mapping::Unallocated };
        self.set_mapping(position, target)?;
        Ok(piece)
    }

    /// Frees the whole clusters of a range; those read as zeroes afterwards. Parts of clusters keep their bytes.
    ///
    /// # Errors
    /// As [`Image::write_at`].
    pub fn discard(&mut self, offset: u64, len: u64) -> Result<(), Error> {
        self.check_writable()?;
        self.check_range(offset, len)?;
        let cluster = self.cluster_size();
        let end = if offset + len == self.size() {
            self.size()
        } else {
            (offset + len) - (offset + len) % cluster
        };
        let start = offset.next_multiple_of(cluster);
        // Version 2 cannot say "zero" where a backing file has something else; a discard may do nothing.
        if start < end && (self.header.version >= 3 || self.backing.is_none()) {
            self.write_zeroes(start, end - start, true)?;
        }
        Ok(())
    }

    fn check_range(&self, offset: u64, len: u64) -> Result<(), Error> {
        match offset.checked_add(len) {
            Some(end) if end <= self.size() => Ok(()),
            _ => Err(Error::OutOfRange { offset, len }),
        }
    }

    pub(crate) fn check_writable(&self) -> Result<(), Error> {
        match (&self.refcounts, self.failed.load(Ordering::SeqCst)) {
            (None, _) => Err(Error::ReadOnly),
            (_, true) => Err(Error::Failed),
            _ => Ok(()),
        }
    }

    /// Checks that data may be written to a range of the file: it exists and no table is there.
    fn check_data_clusters(&self, offset: u64, len: u64) -> Result<(), Error> {
        let cluster = self.cluster_size();
        if offset >= self.file_len {
            return Err(Corruption::BeyondEnd { table: "L2 table", offset }.into());
        }
        let Some(refcounts) = &self.refcounts else { return Err(Error::ReadOnly) };
        let mut at = offset - offset % cluster;
        while at < offset + len {
            if refcounts.is_metadata(at) {
                return Err(Corruption::Overlap(at).into());
            }
            at += cluster;
        }
        Ok(())
    }

    fn write_file(&mut self, data: &[u8], offset: u64) -> Result<(), Error> {
        self.file.write_at(data, offset)?;
        self.file_len = self.file_len.max(offset + data.len() as u64);
        Ok(())
    }

    fn allocate(&mut self, want: u64) -> Result<(u64, u64), Error> {
        let Some(refcounts) = &mut self.refcounts else { return Err(Error::ReadOnly) };
        let allocated = refcounts.allocate(&*self.file, want)?;
        // A refcount block may have been appended.
        self.file_len = self.file_len.max(self.file.len()?);
        Ok(allocated)
    }
}

fn read_l1(file: &dyn BlockFile, header: &Header) -> Result<Vec<L1Entry>, Error> {
    // At most 32 MiB, and within the file: checked with the header.
    let mut bytes = vec![0; header.l1_entries as usize * 8];
    read_or_zero(file, &mut bytes, header.l1_offset)?;
    Ok(bytes.as_chunks().0.iter().map(|entry| L1Entry(u64::from_be_bytes(*entry))).collect())
}

/// The clusters, by index, of the header and of the L1 and L2 tables, none of which may be another.
fn table_clusters(
    file: &dyn BlockFile,
    header: &Header,
    l1: &[L1Entry],
) -> Result<HashSet<u64>, Error> {
    let file_len = file.len()?;
    let mut clusters = HashSet::from([0]);
    let first = header.l1_offset >> header.cluster_bits;
    let l1_clusters = (l1.len() as u64 * 8).div_ceil(header.cluster_size());
    clusters.extend(first..first + l1_clusters);
    for offset in l1.iter().filter_map(|entry| entry.offset()) {
        check_cluster("L1 table", offset, header.cluster_bits, file_len)?;
        if !clusters.insert(offset >> header.cluster_bits) {
            return Err(Corruption::Overlap(offset).into());
        }
    }
    Ok(clusters)
}

/// Checks that an image may be written, repairs it if it was left dirty, and clears the features that do not survive
/// a writer that does not know them.
fn prepare_for_writing(
    file: &dyn BlockFile,
    header: &mut Header,
    l1: &[L1Entry],
    metadata: &HashSet<u64>,
) -> Result<(), Error> {
    if header.incompatible & INCOMPATIBLE_CORRUPT != 0 {
        return Err(Malformed::MarkedCorrupt.into());
    }
    if header.refcount_table_clusters == 0 {
        let (value, allowed) = (0, "at least 1");
        return Err(Malformed::Field { field: "refcount_table_clusters", value, allowed }.into());
    }
    if header.incompatible & INCOMPATIBLE_DIRTY != 0 {
        repair::rebuild_refcounts(file, header, l1, metadata)?;
    } else if header.autoclear != 0 {
        header.autoclear = 0;
        header.write_features(file)?;
    }
    Ok(())
}

fn open_backing(
    backing: &BackingName,
    opener: &mut dyn BackingOpener,
    depth: usize,
) -> Result<Backing, Error> {
    if depth >= MAX_CHAIN {
        return Err(Malformed::ChainTooLong.into());
    }
    let failed = |source| Error::Backing { name: backing.name.clone(), source };
    let file = opener.open(&backing.name, backing.format.as_deref()).map_err(failed)?;
    match backing.format.as_deref() {
        Some("qcow2") => {
            let image = Image::open_at_depth(file, Mode::ReadOnly, opener, depth + 1)?;
            Ok(Backing::Qcow(Box::new(image)))
        }
        // A raw disk's bytes are a guest's: looking for a format in them would let a guest choose the host's files.
        Some("raw") => Ok(Backing::Raw { len: file.len()?, file }),
        other => {
            let name = other.unwrap_or("none, which is not safe to guess");
            Err(failed(format!("its format is {name}").into()))
        }
    }
}
