//! A disk whose writes go elsewhere: what is below is never written, and all is forgotten with the device.
//!
//! Elsewhere is a file without a name in the component's temporary storage, as far as the file system there has room, or
//! 1 GiB of memory. A guest that writes more gets I/O errors, and the log says why.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use fuchsia_zircon as zx;

use virtio_device::GuestSlice;

use super::{Backend, BackendError, MemoryBackend};
use crate::SECTOR_SIZE;

/// Sectors whose bits are kept together: 128 MiB of disk, 32 KiB of memory.
const CHUNK_SECTORS: u64 = 1 << 18;
/// Largest disk that can be volatile: 16 TiB need 1 MiB for the list of chunks and 4 GiB for all bits, if the guest
/// writes everywhere.
const MAX_CAPACITY: u64 = 16 << 40;
/// Most bytes that a guest may write to a disk whose writes are kept in memory.
const MEMORY_LIMIT: u64 = 1 << 30;

/// One bit a sector, allocated where there are ones.
#[derive(Debug)]
struct SectorSet {
    chunks: Vec<Option<Box<[u64]>>>,
    /// How many are in it.
    len: u64,
}

impl SectorSet {
    fn new(sectors: u64) -> Self {
        Self { chunks: (0..sectors.div_ceil(CHUNK_SECTORS)).map(|_| None).collect(), len: 0 }
    }

    fn contains(&self, sector: u64) -> bool {
        let chunk = self.chunks.get((sector / CHUNK_SECTORS) as usize).and_then(Option::as_ref);
        let at = sector % CHUNK_SECTORS;
        chunk
            .and_then(|chunk| chunk.get((at / 64) as usize))
            .is_some_and(|word| word >> (at % 64) & 1 != 0)
    }

    fn insert(&mut self, sectors: std::ops::Range<u64>) {
        for sector in sectors {
            let Some(chunk) = self.chunks.get_mut((sector / CHUNK_SECTORS) as usize) else {
                return;
            };
            let bits = chunk.get_or_insert_with(|| vec![0; CHUNK_SECTORS as usize / 64].into());
            let at = sector % CHUNK_SECTORS;
            if let Some(word) = bits.get_mut((at / 64) as usize) {
                self.len += u64::from(*word >> (at % 64) & 1 == 0);
                *word |= 1 << (at % 64);
            }
        }
    }

    /// How many sectors from `start` (at most up to `end`) are all in the set, or all not, and which.
    fn run(&self, start: u64, end: u64) -> (bool, u64) {
        let first = self.contains(start);
        let len = (start..end).take_while(|sector| self.contains(*sector) == first).count();
        (first, len as u64)
    }
}

/// Copy-on-write over another back-end.
pub struct VolatileBackend {
    below: Box<dyn Backend>,
    /// What was written, at the same places.
    above: Box<dyn Backend>,
    written: RwLock<SectorSet>,
    /// Most sectors that may be above.
    limit: u64,
    /// Whether a write has found no room: the log has it.
    is_full: AtomicBool,
}

impl std::fmt::Debug for VolatileBackend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VolatileBackend").field("limit", &self.limit).finish_non_exhaustive()
    }
}

impl VolatileBackend {
    /// A disk that starts as `below` is, and keeps what is written in memory, up to 1 GiB.
    ///
    /// # Errors
    /// [`BackendError::Unusable`] for a disk of more than 16 TiB; what creating a VMO returns.
    pub fn new(below: Box<dyn Backend>) -> Result<Self, BackendError> {
        let above = Box::new(MemoryBackend::new(below.capacity())?);
        Self::with_limit(below, above, MEMORY_LIMIT)
    }

    /// A disk that starts as `below` is, and keeps what is written in `above`, which is as large and whose contents do not
    /// matter.
    ///
    /// # Errors
    /// [`BackendError::Unusable`] for a disk of more than 16 TiB.
    pub fn over(below: Box<dyn Backend>, above: Box<dyn Backend>) -> Result<Self, BackendError> {
        Self::with_limit(below, above, u64::MAX)
    }

    fn with_limit(
        below: Box<dyn Backend>,
        above: Box<dyn Backend>,
        limit: u64,
    ) -> Result<Self, BackendError> {
        let capacity = below.capacity();
        if capacity > MAX_CAPACITY {
            return Err(BackendError::Unusable("A disk of more than 16 TiB cannot be volatile"));
        }
        let written = RwLock::new(SectorSet::new(capacity / SECTOR_SIZE));
        let (limit, is_full) = (limit / SECTOR_SIZE, AtomicBool::new(false));
        Ok(Self { below, above, written, limit, is_full })
    }

    fn written(&self) -> RwLockReadGuard<'_, SectorSet> {
        self.written.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn written_mut(&self) -> RwLockWriteGuard<'_, SectorSet> {
        self.written.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses a range that would need more sectors above than allowed. Requests under way at once may exceed that by what
    /// they write.
    fn check_room(&self, offset: u64, len: u64) -> Result<(), BackendError> {
        let written = self.written();
        let sectors = len / SECTOR_SIZE;
        if self.limit.saturating_sub(written.len) >= sectors {
            return Ok(());
        }
        // Most of it may be there already.
        let first = offset / SECTOR_SIZE;
        let new = (first..first + sectors).filter(|sector| !written.contains(*sector)).count();
        if self.limit.saturating_sub(written.len) >= new as u64 {
            return Ok(());
        }
        Err(zx::Status::NO_SPACE.into())
    }

    /// Says in the log, once, that there is no room left.
    fn note(&self, result: Result<(), BackendError>) -> Result<(), BackendError> {
        let is_full = matches!(result, Err(BackendError::Storage(zx::Status::NO_SPACE)));
        if is_full && !self.is_full.swap(true, Ordering::Relaxed) {
            let written = self.written().len * SECTOR_SIZE;
            tracing::error!(
                written,
                "There is no room for more of what the guest writes to a volatile disk; it gets I/O errors"
            );
        }
        result
    }

    /// Marks sectors as written, after their bytes are above.
    fn mark(&self, offset: u64, len: u64) {
        self.written_mut().insert(offset / SECTOR_SIZE..(offset + len) / SECTOR_SIZE);
    }
}

impl Backend for VolatileBackend {
    fn capacity(&self) -> u64 {
        self.above.capacity()
    }

    fn block_size(&self) -> u32 {
        self.below.block_size()
    }

    fn read(&self, buf: &mut [u8], offset: u64) -> Result<(), BackendError> {
        let mut done = 0;
        while let Some(rest) = buf.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let start = offset + done as u64;
            let sector = start / SECTOR_SIZE;
            let (above, sectors) =
                self.written().run(sector, sector + rest.len() as u64 / SECTOR_SIZE);
            let len = (sectors * SECTOR_SIZE) as usize;
            let piece = rest.get_mut(..len).filter(|_| len > 0);
            let piece = piece.ok_or(BackendError::Unusable("A range is not of whole sectors"))?;
            if above { self.above.read(piece, start) } else { self.below.read(piece, start) }?;
            done += len;
        }
        Ok(())
    }

    fn write(&self, buf: &[u8], offset: u64) -> Result<(), BackendError> {
        let room = self.check_room(offset, buf.len() as u64);
        self.note(room.and_then(|()| self.above.write(buf, offset)))?;
        self.mark(offset, buf.len() as u64);
        Ok(())
    }

    fn read_to_guest(&self, to: GuestSlice<'_>, offset: u64) -> Option<Result<(), BackendError>> {
        let sector = offset / SECTOR_SIZE;
        let count = to.len() as u64 / SECTOR_SIZE;
        match self.written().run(sector, sector + count) {
            (true, len) if len == count => self.above.read_to_guest(to, offset),
            (false, len) if len == count => self.below.read_to_guest(to, offset),
            _ => None,
        }
    }

    fn write_from_guest(
        &self,
        from: GuestSlice<'_>,
        offset: u64,
    ) -> Option<Result<(), BackendError>> {
        let len = from.len() as u64;
        let result = match self.check_room(offset, len) {
            Ok(()) => self.above.write_from_guest(from, offset)?,
            full => full,
        };
        Some(self.note(result).map(|()| self.mark(offset, len)))
    }

    fn flush(&self) -> Result<(), BackendError> {
        Ok(())
    }

    fn discard(&self, offset: u64, len: u64) -> Result<(), BackendError> {
        self.write_zeroes(offset, len, true)
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Result<(), BackendError> {
        // Zeroes that need no room above count all the same: a guest can write there again.
        let room = self.check_room(offset, len);
        self.note(room.and_then(|()| self.above.write_zeroes(offset, len, unmap)))?;
        self.mark(offset, len);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sector_set_finds_runs() {
        let mut set = SectorSet::new(CHUNK_SECTORS * 2);
        set.insert(CHUNK_SECTORS - 2..CHUNK_SECTORS + 3);
        assert_eq!(set.run(0, 10), (false, 10));
        assert_eq!(set.run(CHUNK_SECTORS - 5, CHUNK_SECTORS * 2), (false, 3));
        assert_eq!(set.run(CHUNK_SECTORS - 2, CHUNK_SECTORS * 2), (true, 5));
        assert!(!set.contains(u64::MAX));
        assert_eq!(set.len, 5);
        set.insert(CHUNK_SECTORS..CHUNK_SECTORS + 4);
        assert_eq!(set.len, 6);
    }

    #[test]
    fn what_is_written_is_bounded() {
        const CAPACITY: u64 = 64 * SECTOR_SIZE;
        let memory = || Box::new(MemoryBackend::new(CAPACITY).unwrap());
        let disk = VolatileBackend::with_limit(memory(), memory(), 8 * SECTOR_SIZE).unwrap();
        let sectors = |count: u64| vec![7; (count * SECTOR_SIZE) as usize];
        let is_refused =
            |result| matches!(result, Err(BackendError::Storage(zx::Status::NO_SPACE)));
        disk.write(&sectors(6), 0).unwrap();
        assert!(is_refused(disk.write(&sectors(3), 10 * SECTOR_SIZE)));
        assert!(is_refused(disk.write_zeroes(10 * SECTOR_SIZE, 3 * SECTOR_SIZE, true)));
        disk.write(&sectors(2), 10 * SECTOR_SIZE).unwrap();
        // Full; what is there can change, and nothing is lost.
        disk.write(&sectors(6), 0).unwrap();
        assert!(is_refused(disk.write(&sectors(1), 20 * SECTOR_SIZE)));
        assert!(is_refused(disk.write(&sectors(7), 0)));
        let mut read = sectors(12);
        disk.read(&mut read, 0).unwrap();
        let expected = [sectors(6), vec![0; 4 * SECTOR_SIZE as usize], sectors(2)].concat();
        assert!(read == expected);
    }
}
