//! A disk whose writes stay in memory: what is below is never written, and all is forgotten with the device.

use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use virtio_device::GuestSlice;

use super::{Backend, BackendError, MemoryBackend};
use crate::SECTOR_SIZE;

/// Sectors whose bits are kept together: 128 MiB of disk, 32 KiB of memory.
const CHUNK_SECTORS: u64 = 1 << 18;
/// Largest disk that can be volatile: 16 TiB need 1 MiB for the list of chunks and 4 GiB for all bits, if the guest
/// writes everywhere.
const MAX_CAPACITY: u64 = 16 << 40;

/// One bit a sector, allocated where there are ones.
#[derive(Debug)]
struct SectorSet {
    chunks: Vec<Option<Box<[u64]>>>,
}

impl SectorSet {
    fn new(sectors: u64) -> Self {
        Self { chunks: (0..sectors.div_ceil(CHUNK_SECTORS)).map(|_| None).collect() }
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

/// Copy-on-write in memory over another back-end.
pub struct VolatileBackend {
    below: Box<dyn Backend>,
    above: MemoryBackend,
    written: RwLock<SectorSet>,
}

impl std::fmt::Debug for VolatileBackend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VolatileBackend").field("above", &self.above).finish_non_exhaustive()
    }
}

impl VolatileBackend {
    /// A disk that starts as `below` is.
    ///
    /// # Errors
    /// [`BackendError::Unusable`] for a disk of more than 16 TiB; what creating a VMO returns.
    pub fn new(below: Box<dyn Backend>) -> Result<Self, BackendError> {
        let capacity = below.capacity();
        if capacity > MAX_CAPACITY {
            return Err(BackendError::Unusable("A disk of more than 16 TiB cannot be volatile"));
        }
        let written = RwLock::new(SectorSet::new(capacity / SECTOR_SIZE));
        Ok(Self { below, above: MemoryBackend::new(capacity)?, written })
    }

    fn written(&self) -> RwLockReadGuard<'_, SectorSet> {
        self.written.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn written_mut(&self) -> RwLockWriteGuard<'_, SectorSet> {
        self.written.write().unwrap_or_else(PoisonError::into_inner)
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
        self.above.write(buf, offset)?;
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
        let result = self.above.write_from_guest(from, offset)?;
        Some(result.map(|()| self.mark(offset, from.len() as u64)))
    }

    fn flush(&self) -> Result<(), BackendError> {
        Ok(())
    }

    fn discard(&self, offset: u64, len: u64) -> Result<(), BackendError> {
        self.write_zeroes(offset, len, true)
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Result<(), BackendError> {
        self.above.write_zeroes(offset, len, unmap)?;
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
    }
}
