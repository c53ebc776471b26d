//! A disk that is a block device of the host: `fuchsia.storage.block`.
//!
//! Data goes through a VMO that is shared with the device's driver; guest memory is not. The VMO has a slot for each
//! request that can be under way, and a request's slot is its identity on the FIFO. Whoever waits first reads the FIFO
//! for all who wait.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use fidl::endpoints::{ClientEnd, create_endpoints};
use fidl_fuchsia_storage_block as fblock;
use fuchsia_zircon::{self as zx, AsHandleRef as _, HandleBased as _};
use virtio_device::GuestSlice;
use zerocopy::little_endian::{I32, U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use super::{Backend, BackendError};
use crate::SECTOR_SIZE;

/// Requests under way at once: as many as there are threads that serve queues.
const SLOTS: usize = 4;
/// Bytes of each slot, and so the most that a request moves.
const SLOT_SIZE: u64 = 256 << 10;
/// How long the device may take to answer while it is being opened, in seconds: the guest's creation waits for it.
const OPEN_TIMEOUT: i64 = 10;
/// Responses read at once.
const RESPONSES: usize = 8;

/// A request on the FIFO; see `Session.GetFifo` for what is not used here.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct FifoRequest {
    opcode: u8,
    reserved: [u8; 3],
    flags: U32,
    request: U32,
    group: U16,
    vmo: U16,
    /// Blocks.
    length: U32,
    decompression: U32,
    /// Blocks.
    vmo_offset: U64,
    /// Blocks.
    device_offset: U64,
    trace: U64,
    inline_encryption: [u8; 4],
    /// 0xff: the data is not encrypted.
    key_slot: u8,
    inline_rest: [u8; 11],
}

/// A response on the FIFO.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct FifoResponse {
    status: I32,
    request: U32,
    group: U16,
    reserved: U16,
    count: U32,
    rest: [u8; 48],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Slot {
    Free,
    /// A request is under way.
    Busy,
    Answered(zx::Status),
}

#[derive(Debug)]
struct Session {
    slots: [Slot; SLOTS],
    /// Somebody reads the FIFO.
    is_reading: bool,
    /// The driver is gone.
    closed: Option<zx::Status>,
}

/// A block device of the host as a disk.
#[derive(Debug)]
pub struct RemoteBackend {
    /// Ends the session when it is closed.
    _session: ClientEnd<fblock::SessionMarker>,
    fifo: zx::Fifo<FifoResponse, FifoRequest>,
    buffer: zx::Vmo,
    buffer_id: u16,
    capacity: u64,
    block_size: u32,
    /// The most bytes of a request: whole blocks, and not more than a slot.
    max_transfer: u64,
    trims: bool,
    state: Mutex<Session>,
    changed: Condvar,
}

fn status(raw: i32) -> BackendError {
    zx::Status::from_raw(raw).into()
}

impl RemoteBackend {
    /// Opens a session with `device`.
    ///
    /// # Errors
    /// [`BackendError::Unusable`] if the device is not one that a disk can be made of, or is read-only and `writable`;
    /// else what the device answers with.
    pub fn new(
        device: ClientEnd<fblock::BlockMarker>,
        writable: bool,
    ) -> Result<Self, BackendError> {
        let device = fblock::BlockSynchronousProxy::new(device.into_channel());
        let deadline = zx::Time::after(zx::Duration::from_seconds(OPEN_TIMEOUT));
        let info = device.get_info(deadline)?;
        let info = info.map_err(status)?;
        let (block_size, max_transfer) = (info.block_size, u64::from(info.max_transfer_size));
        if !block_size.is_power_of_two() || !(512..=SLOT_SIZE as u32).contains(&block_size) {
            return Err(BackendError::Unusable("The device's block size is impossible"));
        }
        let capacity = info.block_count.checked_mul(block_size.into());
        let capacity = capacity.ok_or(BackendError::Unusable("The device's size is impossible"))?;
        let max_transfer = max_transfer.min(SLOT_SIZE) / u64::from(block_size);
        if max_transfer == 0 {
            return Err(BackendError::Unusable("The device cannot transfer a single block"));
        }
        if writable && info.flags.contains(fblock::DeviceFlag::READONLY) {
            return Err(BackendError::Unusable("The device is read-only"));
        }
        let (session, server) = create_endpoints::<fblock::SessionMarker>();
        device.open_session(server)?;
        let session = fblock::SessionSynchronousProxy::new(session.into_channel());
        let fifo = session.get_fifo(deadline)?.map_err(status)?;
        let buffer = zx::Vmo::create(SLOTS as u64 * SLOT_SIZE)?;
        let shared = buffer.duplicate_handle(zx::Rights::SAME_RIGHTS)?;
        let id = session.attach_vmo(shared, deadline)?.map_err(status)?;
        Ok(Self {
            _session: ClientEnd::new(session.into_channel()),
            fifo: fifo.cast(),
            buffer,
            buffer_id: id.id,
            capacity,
            block_size,
            max_transfer: max_transfer * u64::from(block_size),
            trims: info.flags.contains(fblock::DeviceFlag::TRIM_SUPPORT),
            state: Mutex::new(Session {
                slots: [Slot::Free; SLOTS],
                is_reading: false,
                closed: None,
            }),
            changed: Condvar::new(),
        })
    }

    fn state(&self) -> MutexGuard<'_, Session> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_for_change<'a>(&self, state: MutexGuard<'a, Session>) -> MutexGuard<'a, Session> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls `f` with a slot that nobody else has meanwhile.
    fn with_slot<R>(&self, f: impl FnOnce(usize) -> R) -> R {
        let slot = {
            let mut state = self.state();
            loop {
                match state.slots.iter_mut().enumerate().find(|(_, slot)| **slot == Slot::Free) {
                    Some((index, slot)) => {
                        *slot = Slot::Busy;
                        break index;
                    }
                    None => state = self.wait_for_change(state),
                }
            }
        };
        let result = f(slot);
        if let Some(slot) = self.state().slots.get_mut(slot) {
            *slot = Slot::Free;
        }
        self.changed.notify_all();
        result
    }

    /// Has the driver do something with a slot, and waits until it is done.
    fn request(
        &self,
        opcode: fblock::BlockOpcode,
        slot: usize,
        offset: u64,
        len: u64,
    ) -> Result<(), BackendError> {
        let block = u64::from(self.block_size);
        if !offset.is_multiple_of(block) || !len.is_multiple_of(block) {
            return Err(BackendError::Unusable("The host's device takes whole blocks only"));
        }
        // No length is larger than a slot or, of a trim, than what 32 bits of blocks are cut to.
        let length = u32::try_from(len / block).unwrap_or(u32::MAX);
        let has_data = matches!(opcode, fblock::BlockOpcode::Read | fblock::BlockOpcode::Write);
        let request = FifoRequest {
            opcode: opcode.into_primitive(),
            reserved: [0; 3],
            flags: 0.into(),
            request: (slot as u32).into(),
            group: 0.into(),
            vmo: if has_data { self.buffer_id } else { fblock::VMOID_INVALID }.into(),
            length: length.into(),
            decompression: 0.into(),
            vmo_offset: (slot as u64 * SLOT_SIZE / block).into(),
            device_offset: (offset / block).into(),
            trace: 0.into(),
            inline_encryption: [0; 4],
            key_slot: 0xff,
            inline_rest: [0; 11],
        };
        loop {
            match self.fifo.write_one(&request) {
                Ok(()) => break,
                Err(zx::Status::SHOULD_WAIT) => {
                    let signals = zx::Signals::OBJECT_WRITABLE | zx::Signals::OBJECT_PEER_CLOSED;
                    self.fifo.wait_handle(signals, zx::Time::INFINITE)?;
                }
                Err(status) => return Err(status.into()),
            }
        }
        match self.answer(slot) {
            zx::Status::OK => Ok(()),
            status => Err(status.into()),
        }
    }

    fn answer(&self, slot: usize) -> zx::Status {
        let mut state = self.state();
        loop {
            if let Some(Slot::Answered(status)) = state.slots.get(slot).copied() {
                return status;
            }
            if let Some(status) = state.closed {
                return status;
            }
            if state.is_reading {
                state = self.wait_for_change(state);
                continue;
            }
            state.is_reading = true;
            drop(state);
            let mut responses: [FifoResponse; RESPONSES] = FromZeros::new_zeroed();
            let read = self.read(&mut responses);
            state = self.state();
            state.is_reading = false;
            match read {
                Ok(count) => {
                    for response in responses.iter().take(count) {
                        note(&mut state, response);
                    }
                }
                Err(status) => state.closed = Some(status),
            }
            self.changed.notify_all();
        }
    }

    fn read(&self, responses: &mut [FifoResponse]) -> Result<usize, zx::Status> {
        loop {
            match self.fifo.read(responses) {
                Err(zx::Status::SHOULD_WAIT) => {
                    let signals = zx::Signals::OBJECT_READABLE | zx::Signals::OBJECT_PEER_CLOSED;
                    self.fifo.wait_handle(signals, zx::Time::INFINITE)?;
                }
                result => return result,
            }
        }
    }

    /// Splits a range into requests and calls `f` with the slot, the range's part, and where that is on the disk.
    fn each_piece(
        &self,
        offset: u64,
        len: u64,
        mut f: impl FnMut(usize, u64, u64, u64) -> Result<(), BackendError>,
    ) -> Result<(), BackendError> {
        self.with_slot(|slot| {
            let mut done = 0;
            while done < len {
                let piece = (len - done).min(self.max_transfer);
                self.reuse(slot);
                f(slot, done, piece, offset + done)?;
                done += piece;
            }
            Ok(())
        })
    }

    /// Makes a slot whose request is answered ready for the next one.
    fn reuse(&self, slot: usize) {
        if let Some(slot) = self.state().slots.get_mut(slot) {
            *slot = Slot::Busy;
        }
    }
}

/// A response to a request that is not under way is the driver's fault, and nobody's answer.
fn note(state: &mut Session, response: &FifoResponse) {
    let slot = state.slots.get_mut(response.request.get() as usize);
    match slot.filter(|slot| **slot == Slot::Busy) {
        Some(slot) => *slot = Slot::Answered(zx::Status::from_raw(response.status.get())),
        None => tracing::warn!(
            request = response.request.get(),
            "The host's block device answered what it was not asked"
        ),
    }
}

fn slot_offset(slot: usize) -> u64 {
    slot as u64 * SLOT_SIZE
}

impl Backend for RemoteBackend {
    fn capacity(&self) -> u64 {
        self.capacity
    }

    fn block_size(&self) -> u32 {
        self.block_size
    }

    fn read(&self, buf: &mut [u8], offset: u64) -> Result<(), BackendError> {
        self.each_piece(offset, buf.len() as u64, |slot, done, len, at| {
            self.request(fblock::BlockOpcode::Read, slot, at, len)?;
            let piece = buf.get_mut(done as usize..(done + len) as usize).unwrap_or_default();
            Ok(self.buffer.read(piece, slot_offset(slot))?)
        })
    }

    fn write(&self, buf: &[u8], offset: u64) -> Result<(), BackendError> {
        self.each_piece(offset, buf.len() as u64, |slot, done, len, at| {
            let piece = buf.get(done as usize..(done + len) as usize).unwrap_or_default();
            self.buffer.write(piece, slot_offset(slot))?;
            self.request(fblock::BlockOpcode::Write, slot, at, len)
        })
    }

    fn read_to_guest(&self, to: GuestSlice<'_>, offset: u64) -> Option<Result<(), BackendError>> {
        Some(self.each_piece(offset, to.len() as u64, |slot, done, len, at| {
            self.request(fblock::BlockOpcode::Read, slot, at, len)?;
            match to.get(done as usize, len as usize) {
                Some(piece) => Ok(piece.read_from_vmo(&self.buffer, slot_offset(slot))?),
                None => Ok(()),
            }
        }))
    }

    fn write_from_guest(
        &self,
        from: GuestSlice<'_>,
        offset: u64,
    ) -> Option<Result<(), BackendError>> {
        Some(self.each_piece(offset, from.len() as u64, |slot, done, len, at| {
            if let Some(piece) = from.get(done as usize, len as usize) {
                piece.write_to_vmo(&self.buffer, slot_offset(slot))?;
            }
            self.request(fblock::BlockOpcode::Write, slot, at, len)
        }))
    }

    fn flush(&self) -> Result<(), BackendError> {
        self.with_slot(|slot| self.request(fblock::BlockOpcode::Flush, slot, 0, 0))
    }

    fn discard(&self, offset: u64, len: u64) -> Result<(), BackendError> {
        // A hint: what is not whole blocks, or not supported, is left as it is.
        let block = u64::from(self.block_size);
        let (start, end) = (offset.next_multiple_of(block), (offset + len) / block * block);
        if !self.trims || start >= end {
            return Ok(());
        }
        self.with_slot(|slot| self.request(fblock::BlockOpcode::Trim, slot, start, end - start))
    }
}

const _: () = assert!(size_of::<FifoRequest>() == 64 && size_of::<FifoResponse>() == 64);
const _: () = assert!(SLOT_SIZE.is_multiple_of(SECTOR_SIZE));
