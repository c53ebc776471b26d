//! The block device behind queues of any driver, before a disk that insists on what the device promises its back-end.
#![no_main]

mod driver;

use std::sync::{Arc, Mutex};

use arbitrary::{Result, Unstructured};
use driver::{Request, Target};
use libfuzzer_sys::fuzz_target;
use virtio_block::{
    Backend, BackendError, BlockDevice, DiskInfo, F_FLUSH, ID_SIZE, RequestType, SECTOR_SIZE,
};
use virtio_device::{Features, GuestSlice};

const SECTORS: u64 = 256;

struct Disk {
    bytes: Mutex<Vec<u8>>,
    /// Takes large buffers as they are.
    is_direct: bool,
}

impl Disk {
    fn with(&self, offset: u64, len: u64, act: impl FnOnce(&mut [u8])) -> Result<(), BackendError> {
        assert!(offset.is_multiple_of(SECTOR_SIZE) && len.is_multiple_of(SECTOR_SIZE));
        let mut bytes = self.bytes.lock().expect("nobody panics");
        act(&mut bytes[offset as usize..][..len as usize]);
        Ok(())
    }
}

impl Backend for Disk {
    fn capacity(&self) -> u64 {
        SECTORS * SECTOR_SIZE
    }

    fn read(&self, buf: &mut [u8], offset: u64) -> Result<(), BackendError> {
        self.with(offset, buf.len() as u64, |bytes| buf.copy_from_slice(bytes))
    }

    fn write(&self, buf: &[u8], offset: u64) -> Result<(), BackendError> {
        self.with(offset, buf.len() as u64, |bytes| bytes.copy_from_slice(buf))
    }

    fn read_to_guest(&self, to: GuestSlice<'_>, offset: u64) -> Option<Result<(), BackendError>> {
        let read = || self.with(offset, to.len() as u64, |bytes| _ = to.copy_from(bytes));
        self.is_direct.then(read)
    }

    fn write_from_guest(
        &self,
        from: GuestSlice<'_>,
        offset: u64,
    ) -> Option<Result<(), BackendError>> {
        let write = || self.with(offset, from.len() as u64, |bytes| _ = from.copy_to(bytes));
        self.is_direct.then(write)
    }

    fn flush(&self) -> Result<(), BackendError> {
        Ok(())
    }

    fn discard(&self, offset: u64, len: u64) -> Result<(), BackendError> {
        self.with(offset, len, |_| ())
    }

    fn write_zeroes(&self, offset: u64, len: u64, _unmap: bool) -> Result<(), BackendError> {
        self.with(offset, len, |bytes| bytes.fill(0))
    }
}

struct Block;

/// A position on the disk, near its end, or anywhere.
fn sector(input: &mut Unstructured<'_>) -> Result<u64> {
    Ok(match input.int_in_range(0..=3)? {
        0u8 => input.arbitrary()?,
        1 => SECTORS - 2 + input.int_in_range(0..=3)?,
        _ => input.int_in_range(0..=SECTORS)?,
    })
}

impl Target for Block {
    type Device = BlockDevice;
    const QUEUES: u16 = 2;

    fn request(&mut self, _queue: u16, input: &mut Unstructured<'_>) -> Result<Request> {
        let known = [
            RequestType::IN,
            RequestType::OUT,
            RequestType::FLUSH,
            RequestType::GET_ID,
            RequestType::DISCARD,
            RequestType::WRITE_ZEROES,
        ];
        let kind = match input.int_in_range(0..=15)? {
            0u8 => RequestType(input.arbitrary()?),
            _ => *input.choose(&known)?,
        };
        let place = match kind {
            RequestType::FLUSH => input.int_in_range(0..=1)?,
            _ => sector(input)?,
        };
        let mut readable = Vec::new();
        readable.extend(kind.0.to_le_bytes());
        readable.extend([0; 4]);
        readable.extend(place.to_le_bytes());
        let sectors = SECTOR_SIZE as usize * input.int_in_range(0..=130)?;
        let mut writable = 1;
        match kind {
            RequestType::IN => writable += sectors,
            RequestType::OUT => readable.resize(readable.len() + sectors, input.arbitrary()?),
            RequestType::GET_ID => writable += ID_SIZE,
            RequestType::DISCARD | RequestType::WRITE_ZEROES => {
                for _ in 0..input.int_in_range(0..=34)? {
                    readable.extend(sector(input)?.to_le_bytes());
                    let count = if input.ratio(1, 8)? { input.arbitrary()? } else { 1u32 };
                    readable.extend(count.to_le_bytes());
                    readable.extend(input.int_in_range(0..=2u32)?.to_le_bytes());
                }
            }
            _ => {}
        }
        if input.ratio(1, 8)? {
            readable.truncate(input.int_in_range(0..=readable.len())?);
            readable.extend(driver::bytes(64, input)?);
            writable = input.int_in_range(0..=2048)?;
        }
        Ok(Request { readable, writable })
    }

    fn check(&mut self, _queue: u16, request: &[u8], answer: &[u8], room: usize) {
        assert_eq!(answer.len(), room, "every request with room for it has a status");
        if let Some(status) = answer.last() {
            assert!(*status <= 2);
            let is_read = request.starts_with(&RequestType::IN.0.to_le_bytes());
            assert!(!(is_read && *status == 0) || (room - 1) % SECTOR_SIZE as usize == 0);
        }
    }
}

fuzz_target!(|choices: &[u8]| {
    let mut input = Unstructured::new(choices);
    let mut play = || -> Result<()> {
        let bytes = Mutex::new(vec![0x5a; (SECTORS * SECTOR_SIZE) as usize]);
        let disk = Arc::new(Disk { bytes, is_direct: input.arbitrary()? });
        let device = BlockDevice::new(disk, DiskInfo::new("fuzz", input.ratio(1, 8)?));
        let features = Features::from_bits_retain(input.arbitrary()?) | F_FLUSH;
        driver::play(&mut Block, device, features, &mut input)
    };
    // The input may end anywhere.
    let _ = play();
});
