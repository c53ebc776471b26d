//! The device: requests from the queue to the back-end and back (virtio 1.2 §5.2.6).
//!
//! A request that breaks the rules gets a status that says so; only a broken ring breaks the device.

use std::sync::Arc;

use virtio_device::{
    ChainTooShort, Device, Features, GuestSlice, Io, Progress, QueueError, QueueSet, ReadableChain,
    WritableChain,
};

use crate::backend::{Backend, BackendError};
use crate::wire::{
    F_FLUSH, ID_SIZE, MAX_RANGES, RANGE_F_UNMAP, RequestHeader, RequestType, SECTOR_SIZE,
    SectorRange, Status,
};

/// Requests in a row before the driver hears of them and others get their turn.
const BATCH: usize = 32;
/// Size of the bounce buffer in bytes: the most that one call of the back-end moves through it.
const BOUNCE: usize = 256 << 10;
/// Buffers of at least this many bytes go to the back-end on their own; smaller ones are gathered, because a call
/// costs more than copying them.
const DIRECT_MIN: usize = 16 << 10;

/// What a disk is, apart from its contents.
#[derive(Debug, Clone, Copy)]
pub struct DiskInfo {
    /// The answer to `GET_ID`, zero padded.
    pub id: [u8; ID_SIZE],
    /// Whether the guest may not write.
    pub read_only: bool,
}

impl DiskInfo {
    /// `id` is cut to [`ID_SIZE`] bytes.
    pub fn new(id: &str, read_only: bool) -> Self {
        let mut bytes = [0; ID_SIZE];
        for (to, from) in bytes.iter_mut().zip(id.bytes()) {
            *to = from;
        }
        Self { id: bytes, read_only }
    }
}

/// One lane of a block device: some of its queues.
pub struct BlockDevice {
    backend: Arc<dyn Backend>,
    info: DiskInfo,
    /// Whether every write has to be on the disk before it completes: virtio 1.2 §5.2.6.2, for a driver that will
    /// not flush.
    write_through: bool,
    bounce: Box<[u8]>,
}

impl std::fmt::Debug for BlockDevice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BlockDevice")
            .field("info", &self.info)
            .field("write_through", &self.write_through)
            .finish_non_exhaustive()
    }
}

/// Why a request got no `Ok`.
#[derive(Debug, thiserror::Error)]
enum RequestError {
    #[error("The request is shorter than its kind needs")]
    TooShort(#[from] ChainTooShort),
    #[error("The data is not a number of whole sectors")]
    NotSectors,
    #[error("{sectors} sectors from {sector} are not on the disk")]
    BeyondEnd { sector: u64, sectors: u64 },
    #[error("A read request carries data")]
    ReadWithData,
    #[error("The disk is read only")]
    ReadOnly,
    #[error("A flush names sector {0}")]
    FlushSector(u64),
    #[error("A discard or write-zeroes request has no ranges, or more than {MAX_RANGES}")]
    Ranges,
    #[error("The disk failed")]
    Backend(#[from] BackendError),
    #[error("Request type {0} is unknown")]
    Unknown(u32),
    #[error("Flags {0:#x} of a range are unknown")]
    Flags(u32),
}

impl RequestError {
    fn status(&self) -> Status {
        match self {
            Self::Unknown(_) | Self::Flags(_) => Status::Unsupported,
            _ => Status::IoError,
        }
    }
}

impl BlockDevice {
    /// A lane that serves `backend`.
    pub fn new(backend: Arc<dyn Backend>, info: DiskInfo) -> Self {
        Self { backend, info, write_through: true, bounce: vec![0; BOUNCE].into() }
    }

    /// Answers one request.
    fn answer(&mut self, mut chain: ReadableChain<'_>) {
        let header = chain.read_obj::<RequestHeader>();
        let (result, mut chain) = match header {
            Ok(header) => self.dispatch(header, chain),
            Err(error) => (Err(error.into()), reserve_status(chain)),
        };
        let status = match result {
            Ok(()) => Status::Ok,
            Err(error) => {
                tracing::debug!(error = &error as &dyn std::error::Error, "A request failed");
                error.status()
            }
        };
        // A chain without a byte for the status cannot be answered; it goes back as it is. Otherwise what was not
        // filled is zeroed: the status comes last, and the used length counts from the front.
        chain.release_tail();
        chain.write_bytes(&[status as u8]);
    }

    fn dispatch<'q>(
        &mut self,
        header: RequestHeader,
        chain: ReadableChain<'q>,
    ) -> (Result<(), RequestError>, WritableChain<'q>) {
        let sector = header.sector.get();
        match RequestType(header.request_type.get()) {
            RequestType::IN => {
                let has_data = chain.remaining() > 0;
                let mut chain = reserve_status(chain);
                let result = if has_data {
                    Err(RequestError::ReadWithData)
                } else {
                    self.read(sector, &mut chain)
                };
                (result, chain)
            }
            RequestType::OUT => with_status(chain, |chain| self.write(sector, chain)),
            RequestType::FLUSH => with_status(chain, |_| match sector {
                0 => Ok(self.backend.flush()?),
                sector => Err(RequestError::FlushSector(sector)),
            }),
            RequestType::GET_ID => {
                let mut chain = reserve_status(chain);
                let result = chain.write_obj(&self.info.id).map_err(RequestError::from);
                (result, chain)
            }
            RequestType::DISCARD => with_status(chain, |chain| self.discard(chain)),
            RequestType::WRITE_ZEROES => with_status(chain, |chain| self.write_zeroes(chain)),
            RequestType(other) => with_status(chain, |_| Err(RequestError::Unknown(other))),
        }
    }

    /// The position of `len` bytes from `sector`, if they are sectors of the disk.
    fn position(&self, sector: u64, len: u64) -> Result<u64, RequestError> {
        if !len.is_multiple_of(SECTOR_SIZE) {
            return Err(RequestError::NotSectors);
        }
        let beyond_end = RequestError::BeyondEnd { sector, sectors: len / SECTOR_SIZE };
        let Some(offset) = sector.checked_mul(SECTOR_SIZE) else { return Err(beyond_end) };
        match offset.checked_add(len) {
            Some(end) if end <= self.backend.capacity() => Ok(offset),
            _ => Err(beyond_end),
        }
    }

    fn read(&mut self, sector: u64, chain: &mut WritableChain<'_>) -> Result<(), RequestError> {
        let mut offset = self.position(sector, chain.remaining() as u64)?;
        while chain.remaining() > 0 {
            if let Some(slice) = chain.peek().filter(|slice| goes_direct(*slice, chain.remaining()))
                && let Some(result) = self.backend.read_to_guest(slice, offset)
            {
                result?;
                offset += slice.len() as u64;
                chain.take(slice.len());
                continue;
            }
            let len = chain.remaining().min(self.bounce.len());
            let piece = self.bounce.get_mut(..len).unwrap_or_default();
            self.backend.read(piece, offset)?;
            chain.write_bytes(piece);
            offset += len as u64;
        }
        Ok(())
    }

    fn write(&mut self, sector: u64, chain: &mut ReadableChain<'_>) -> Result<(), RequestError> {
        if self.info.read_only {
            return Err(RequestError::ReadOnly);
        }
        let mut offset = self.position(sector, chain.remaining() as u64)?;
        while chain.remaining() > 0 {
            if let Some(slice) = chain.peek().filter(|slice| goes_direct(*slice, chain.remaining()))
                && let Some(result) = self.backend.write_from_guest(slice, offset)
            {
                result?;
                offset += slice.len() as u64;
                chain.take(slice.len());
                continue;
            }
            let len = chain.remaining().min(self.bounce.len());
            let piece = self.bounce.get_mut(..len).unwrap_or_default();
            chain.read_bytes(piece);
            self.backend.write(piece, offset)?;
            offset += len as u64;
        }
        self.written()
    }

    fn discard(&mut self, chain: &mut ReadableChain<'_>) -> Result<(), RequestError> {
        self.each_range(chain, 0, |backend, offset, len, _| backend.discard(offset, len))
    }

    fn write_zeroes(&mut self, chain: &mut ReadableChain<'_>) -> Result<(), RequestError> {
        self.each_range(chain, RANGE_F_UNMAP, |backend, offset, len, flags| {
            backend.write_zeroes(offset, len, flags & RANGE_F_UNMAP != 0)
        })
    }

    fn each_range(
        &mut self,
        chain: &mut ReadableChain<'_>,
        known_flags: u32,
        act: impl Fn(&dyn Backend, u64, u64, u32) -> Result<(), BackendError>,
    ) -> Result<(), RequestError> {
        if self.info.read_only {
            return Err(RequestError::ReadOnly);
        }
        let count = chain.remaining() / size_of::<SectorRange>();
        if count == 0
            || count > MAX_RANGES as usize
            || !chain.remaining().is_multiple_of(size_of::<SectorRange>())
        {
            return Err(RequestError::Ranges);
        }
        for _ in 0..count {
            let range: SectorRange = chain.read_obj()?;
            // virtio 1.2 §5.2.6.2: unknown flags, and unmap for a discard, get UNSUPP.
            let flags = range.flags.get();
            if flags & !known_flags != 0 {
                return Err(RequestError::Flags(flags));
            }
            let len = u64::from(range.num_sectors.get()) * SECTOR_SIZE;
            let offset = self.position(range.sector.get(), len)?;
            act(&*self.backend, offset, len, flags)?;
        }
        self.written()
    }

    /// Ends a request that changed the disk.
    fn written(&self) -> Result<(), RequestError> {
        if self.write_through {
            self.backend.flush()?;
        }
        Ok(())
    }
}

/// Whether a buffer goes to the back-end on its own: it is whole sectors, and large or all that is left.
fn goes_direct(slice: GuestSlice<'_>, remaining: usize) -> bool {
    slice.len().is_multiple_of(SECTOR_SIZE as usize)
        && (slice.len() >= DIRECT_MIN || slice.len() == remaining)
}

/// Goes on to the writable part with the status byte set aside. If there is none, nothing is writable at all.
fn reserve_status(chain: ReadableChain<'_>) -> WritableChain<'_> {
    let mut chain = chain.into_writable();
    // Fails only when the writable part is empty.
    let _ = chain.reserve_tail(1);
    chain
}

/// Runs what reads the request's data, then goes on to the status.
fn with_status<'q>(
    mut chain: ReadableChain<'q>,
    f: impl FnOnce(&mut ReadableChain<'q>) -> Result<(), RequestError>,
) -> (Result<(), RequestError>, WritableChain<'q>) {
    // Without a place for the status the driver could not know what was done, so nothing is.
    let result = match chain.writable_len() {
        0 => Err(ChainTooShort { wanted: 1, remaining: 0 }.into()),
        _ => f(&mut chain),
    };
    (result, reserve_status(chain))
}

impl Device for BlockDevice {
    fn ready(&mut self, features: Features, _io: &Io<'_>) -> QueueSet {
        self.write_through = !features.contains(F_FLUSH);
        QueueSet::ALL
    }

    fn process(&mut self, queue: u16, io: &Io<'_>) -> Result<Progress, QueueError> {
        let Some(queue) = io.queue(queue) else { return Ok(Progress::Idle) };
        for _ in 0..BATCH {
            match queue.pop()? {
                Some(chain) => self.answer(chain),
                None => return Ok(Progress::Idle),
            }
        }
        Ok(Progress::More)
    }

    fn reset(&mut self) {
        self.write_through = true;
    }
}
