//! The device against a fake driver.

use std::sync::{Arc, Mutex};

use fuchsia_zircon as zx;
use proptest::prelude::*;
use virtio_device::fake_queue::{ChainBuilder, FakeDriver, Used, hostile_queue};
use virtio_device::{
    DescriptorFlags, Device as _, Features, GuestMemory, GuestSlice, Io, Progress, Queue,
    QueueError, RING_FEATURES,
};
use zerocopy::IntoBytes as _;

use crate::backend::{Backend, BackendError};
use crate::device::{BlockDevice, DiskInfo};
use crate::wire::{
    F_FLUSH, RANGE_F_UNMAP, RequestHeader, RequestType, SECTOR_SIZE, SectorRange, Status,
};

const SECTORS: u64 = 4096;
const MEMORY: u64 = 16 << 20;

/// A disk that records what was asked of it.
#[derive(Debug)]
struct TestDisk {
    state: Mutex<State>,
    /// Whether guest memory is read and written without a bounce buffer.
    direct: bool,
}

#[derive(Debug, Default)]
struct State {
    bytes: Vec<u8>,
    calls: Vec<String>,
    fail: bool,
}

impl TestDisk {
    fn call(&self, call: String) -> Result<std::sync::MutexGuard<'_, State>, BackendError> {
        let mut state = self.state.lock().unwrap();
        state.calls.push(call);
        if state.fail { Err(zx::Status::IO.into()) } else { Ok(state) }
    }
}

fn range(offset: u64, len: usize) -> std::ops::Range<usize> {
    offset as usize..offset as usize + len
}

impl Backend for TestDisk {
    fn capacity(&self) -> u64 {
        SECTORS * SECTOR_SIZE
    }

    fn read(&self, buf: &mut [u8], offset: u64) -> Result<(), BackendError> {
        let state = self.call(format!("read {offset} {}", buf.len()))?;
        buf.copy_from_slice(&state.bytes[range(offset, buf.len())]);
        Ok(())
    }

    fn write(&self, buf: &[u8], offset: u64) -> Result<(), BackendError> {
        let mut state = self.call(format!("write {offset} {}", buf.len()))?;
        state.bytes[range(offset, buf.len())].copy_from_slice(buf);
        Ok(())
    }

    fn read_to_guest(&self, to: GuestSlice<'_>, offset: u64) -> Option<Result<(), BackendError>> {
        if !self.direct {
            return None;
        }
        Some(self.call(format!("direct read {offset} {}", to.len())).map(|state| {
            to.copy_from(&state.bytes[range(offset, to.len())]);
        }))
    }

    fn write_from_guest(
        &self,
        from: GuestSlice<'_>,
        offset: u64,
    ) -> Option<Result<(), BackendError>> {
        if !self.direct {
            return None;
        }
        Some(self.call(format!("direct write {offset} {}", from.len())).map(|mut state| {
            from.copy_to(&mut state.bytes[range(offset, from.len())]);
        }))
    }

    fn flush(&self) -> Result<(), BackendError> {
        self.call("flush".into()).map(drop)
    }

    fn discard(&self, offset: u64, len: u64) -> Result<(), BackendError> {
        self.call(format!("discard {offset} {len}")).map(drop)
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Result<(), BackendError> {
        self.call(format!("zero {offset} {len} {unmap}")).map(drop)
    }
}

struct Bed {
    disk: Arc<TestDisk>,
    device: BlockDevice,
    driver: FakeDriver,
    queues: [Option<Queue>; 1],
    port: Arc<zx::Port>,
}

impl Bed {
    fn with(direct: bool, read_only: bool) -> Self {
        let bytes = (0..SECTORS * SECTOR_SIZE).map(|at| (at / SECTOR_SIZE) as u8).collect();
        let state = Mutex::new(State { bytes, ..State::default() });
        let disk = Arc::new(TestDisk { state, direct });
        let memory = Arc::new(GuestMemory::anonymous(MEMORY as usize));
        let driver = FakeDriver::new(&memory, 0..MEMORY, 128, RING_FEATURES);
        let queues = [Some(driver.queue())];
        let device = BlockDevice::new(disk.clone(), DiskInfo::new("disk-0", read_only));
        let port = Arc::new(zx::Port::create());
        let mut bed = Self { disk, device, driver, queues, port };
        bed.device.ready(F_FLUSH, &Io::new(&bed.queues, &bed.port));
        bed
    }

    fn new() -> Self {
        Self::with(false, false)
    }

    fn request(&mut self, kind: RequestType, sector: u64) -> ChainBuilder<'_> {
        self.driver.chain().readable(header(kind, sector).as_bytes())
    }

    /// Has the device work; the oldest answer's status and the rest of its buffers.
    fn answer(&mut self) -> (u8, Used) {
        let progress = self.device.process(0, &Io::new(&self.queues, &self.port));
        assert_eq!(progress, Ok(Progress::Idle));
        let mut used = self.driver.take_used().expect("every request is answered");
        assert_eq!(
            used.len as usize,
            used.data.len(),
            "all of the writable part counts as written"
        );
        (used.data.pop().unwrap(), used)
    }

    #[track_caller]
    fn status(&mut self) -> u8 {
        self.answer().0
    }

    fn calls(&self) -> Vec<String> {
        std::mem::take(&mut self.disk.state.lock().unwrap().calls)
    }

    fn bytes(&self, sector: u64, sectors: u64) -> Vec<u8> {
        let state = self.disk.state.lock().unwrap();
        state.bytes[range(sector * SECTOR_SIZE, (sectors * SECTOR_SIZE) as usize)].to_vec()
    }
}

fn header(kind: RequestType, sector: u64) -> RequestHeader {
    RequestHeader { request_type: kind.0.into(), reserved: 0.into(), sector: sector.into() }
}

fn sectors(sector: u64, num_sectors: u32, flags: u32) -> SectorRange {
    SectorRange { sector: sector.into(), num_sectors: num_sectors.into(), flags: flags.into() }
}

const OK: u8 = Status::Ok as u8;
const IOERR: u8 = Status::IoError as u8;
const UNSUPP: u8 = Status::Unsupported as u8;

#[test]
fn reads_come_from_the_disk() {
    for direct in [false, true] {
        let mut bed = Bed::with(direct, false);
        bed.request(RequestType::IN, 7).writable(512).writable(1024).writable(1).publish();
        let (status, used) = bed.answer();
        assert_eq!(status, OK);
        assert_eq!(used.data, bed.bytes(7, 3));
    }
}

#[test]
fn writes_reach_the_disk() {
    for direct in [false, true] {
        let mut bed = Bed::with(direct, false);
        let data: Vec<u8> = (0..3 * 512).map(|at| (at % 101) as u8).collect();
        bed.request(RequestType::OUT, 9)
            .readable(&data[..512])
            .readable(&data[512..])
            .writable(1)
            .publish();
        assert_eq!(bed.status(), OK);
        assert_eq!(bed.bytes(9, 3), data);
        assert_eq!(bed.bytes(12, 1), [12; 512]);
    }
}

#[test]
fn buffers_may_be_split_anywhere() {
    for direct in [false, true] {
        let mut bed = Bed::with(direct, false);
        bed.request(RequestType::IN, 20)
            .writable(1)
            .writable(600)
            .writable(423)
            .writable(1)
            .publish();
        let (status, used) = bed.answer();
        assert_eq!((status, used.data), (OK, bed.bytes(20, 2)));

        let data: Vec<u8> = (0..1024).map(|at| (at % 7) as u8).collect();
        let bytes = [header(RequestType::OUT, 30).as_bytes(), &data].concat();
        bed.driver
            .chain()
            .readable(&bytes[..5])
            .readable(&bytes[5..900])
            .readable(&bytes[900..])
            .writable(1)
            .publish();
        assert_eq!((bed.status(), bed.bytes(30, 2)), (OK, data));
        // The status with the data in one buffer, and everything indirect.
        bed.request(RequestType::IN, 1).writable(513).indirect().publish();
        let (status, used) = bed.answer();
        assert_eq!((status, used.data), (OK, bed.bytes(1, 1)));
    }
}

#[test]
fn large_buffers_go_straight_and_small_ones_together() {
    let mut bed = Bed::with(true, false);
    bed.request(RequestType::IN, 0)
        .writable(65536)
        .writable(4096)
        .writable(4096)
        .writable(1)
        .publish();
    assert_eq!(bed.status(), OK);
    assert_eq!(bed.calls(), ["direct read 0 65536", "read 65536 8192"]);
    bed.request(RequestType::OUT, 0).readable(&[1; 4096]).writable(1).publish();
    assert_eq!(bed.status(), OK);
    assert_eq!(bed.calls(), ["direct write 0 4096"]);
}

#[test]
fn a_read_of_nothing_is_a_read() {
    let mut bed = Bed::new();
    bed.request(RequestType::IN, 0).writable(1).publish();
    assert_eq!(bed.status(), OK);
    assert!(bed.calls().is_empty());
}

#[test]
fn requests_beyond_the_disk_fail_and_leak_nothing() {
    for (sector, len) in
        [(SECTORS, 512), (SECTORS - 1, 1024), (u64::MAX, 512), (u64::MAX / 512, 512)]
    {
        let mut bed = Bed::new();
        bed.request(RequestType::IN, sector).writable(len).writable(1).publish();
        let (status, used) = bed.answer();
        assert_eq!(status, IOERR);
        assert!(used.data.iter().all(|byte| *byte == 0), "buffers are zeroed on an error");
        bed.request(RequestType::OUT, sector)
            .readable(&vec![0; len as usize])
            .writable(1)
            .publish();
        assert_eq!(bed.status(), IOERR);
        assert!(bed.calls().is_empty());
    }
}

#[test]
fn requests_of_partial_sectors_fail() {
    let mut bed = Bed::new();
    bed.request(RequestType::IN, 0).writable(511).writable(1).publish();
    assert_eq!(bed.status(), IOERR);
    bed.request(RequestType::OUT, 0).readable(&[0; 513]).writable(1).publish();
    assert_eq!(bed.status(), IOERR);
    bed.request(RequestType::IN, 0).readable(&[0; 512]).writable(512).writable(1).publish();
    assert_eq!(bed.status(), IOERR);
    assert!(bed.calls().is_empty());
}

#[test]
fn a_failing_disk_is_an_io_error() {
    let mut bed = Bed::new();
    bed.disk.state.lock().unwrap().fail = true;
    bed.request(RequestType::IN, 3).writable(512).writable(1).publish();
    let (status, used) = bed.answer();
    assert_eq!((status, used.data), (IOERR, vec![0; 512]));
    bed.request(RequestType::OUT, 3).readable(&[0; 512]).writable(1).publish();
    assert_eq!(bed.status(), IOERR);
    bed.request(RequestType::FLUSH, 0).writable(1).publish();
    assert_eq!(bed.status(), IOERR);
}

#[test]
fn flushes_reach_the_disk_in_order() {
    let mut bed = Bed::new();
    bed.request(RequestType::OUT, 0).readable(&[1; 512]).writable(1).publish();
    assert_eq!(bed.status(), OK);
    bed.request(RequestType::FLUSH, 0).writable(1).publish();
    assert_eq!(bed.status(), OK);
    assert_eq!(bed.calls(), ["write 0 512", "flush"]);
    bed.request(RequestType::FLUSH, 1).writable(1).publish();
    assert_eq!(bed.status(), IOERR);
    assert!(bed.calls().is_empty());
}

#[test]
fn without_flushes_every_write_is_flushed() {
    let mut bed = Bed::new();
    bed.device.ready(Features::empty(), &Io::new(&bed.queues, &bed.port));
    bed.request(RequestType::OUT, 0).readable(&[1; 512]).writable(1).publish();
    assert_eq!(bed.status(), OK);
    assert_eq!(bed.calls(), ["write 0 512", "flush"]);
    bed.device.reset();
    bed.device.ready(F_FLUSH, &Io::new(&bed.queues, &bed.port));
    bed.request(RequestType::OUT, 0).readable(&[1; 512]).writable(1).publish();
    assert_eq!(bed.status(), OK);
    assert_eq!(bed.calls(), ["write 0 512"]);
}

#[test]
fn the_id_is_padded() {
    let mut bed = Bed::new();
    bed.request(RequestType::GET_ID, 0).writable(20).writable(1).publish();
    let (status, used) = bed.answer();
    assert_eq!((status, &used.data[..]), (OK, &b"disk-0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"[..]));
    bed.request(RequestType::GET_ID, 0).writable(19).writable(1).publish();
    assert_eq!(bed.status(), IOERR);
    assert_eq!(
        DiskInfo::new("a name that is longer than it may be", false).id,
        *b"a name that is longe"
    );
}

#[test]
fn ranges_are_discarded_and_zeroed() {
    let mut bed = Bed::new();
    let ranges = [sectors(1, 2, 0), sectors(100, 8, 0)];
    bed.request(RequestType::DISCARD, 0).readable(ranges.as_bytes()).writable(1).publish();
    assert_eq!(bed.status(), OK);
    assert_eq!(bed.calls(), ["discard 512 1024", "discard 51200 4096"]);
    let ranges = [sectors(1, 2, 0), sectors(4, 1, RANGE_F_UNMAP)];
    bed.request(RequestType::WRITE_ZEROES, 0).readable(ranges.as_bytes()).writable(1).publish();
    assert_eq!(bed.status(), OK);
    assert_eq!(bed.calls(), ["zero 512 1024 false", "zero 2048 512 true"]);
}

#[test]
fn malformed_ranges_are_refused() {
    let cases: [(RequestType, Vec<u8>, u8); 8] = [
        (RequestType::DISCARD, vec![], IOERR),
        (RequestType::DISCARD, vec![0; 15], IOERR),
        (RequestType::WRITE_ZEROES, vec![0; 17], IOERR),
        (RequestType::DISCARD, vec![0; 16 * 33], IOERR),
        (RequestType::DISCARD, sectors(0, 1, RANGE_F_UNMAP).as_bytes().to_vec(), UNSUPP),
        (RequestType::WRITE_ZEROES, sectors(0, 1, 2).as_bytes().to_vec(), UNSUPP),
        (RequestType::DISCARD, sectors(SECTORS, 1, 0).as_bytes().to_vec(), IOERR),
        (RequestType::WRITE_ZEROES, sectors(u64::MAX, u32::MAX, 0).as_bytes().to_vec(), IOERR),
    ];
    for (kind, bytes, expected) in cases {
        let mut bed = Bed::new();
        let request = bed.request(kind, 0);
        let request = if bytes.is_empty() { request } else { request.readable(&bytes) };
        request.writable(1).publish();
        assert_eq!(bed.status(), expected, "{kind:?} {bytes:?}");
        assert!(bed.calls().is_empty());
    }
}

#[test]
fn a_read_only_disk_is_not_written() {
    let mut bed = Bed::with(false, true);
    bed.request(RequestType::OUT, 0).readable(&[1; 512]).writable(1).publish();
    assert_eq!(bed.status(), IOERR);
    for kind in [RequestType::DISCARD, RequestType::WRITE_ZEROES] {
        bed.request(kind, 0).readable(sectors(0, 1, 0).as_bytes()).writable(1).publish();
        assert_eq!(bed.status(), IOERR);
    }
    assert!(bed.calls().is_empty());
    bed.request(RequestType::IN, 0).writable(512).writable(1).publish();
    assert_eq!(bed.status(), OK);
}

#[test]
fn unknown_requests_are_unsupported() {
    for kind in [2, 3, 5, 10, 12, 14, 16, 99, u32::MAX] {
        let mut bed = Bed::new();
        bed.request(RequestType(kind), 0).readable(&[0; 64]).writable(64).writable(1).publish();
        assert_eq!(bed.status(), UNSUPP);
        assert!(bed.calls().is_empty());
    }
}

#[test]
fn a_short_header_is_an_error() {
    let mut bed = Bed::new();
    bed.driver.chain().readable(&[0; 15]).writable(1).publish();
    assert_eq!(bed.status(), IOERR);
    bed.driver.chain().writable(1).publish();
    assert_eq!(bed.status(), IOERR);
}

#[test]
fn nothing_is_done_for_a_request_without_a_status() {
    let mut bed = Bed::new();
    for kind in [
        RequestType::IN,
        RequestType::OUT,
        RequestType::FLUSH,
        RequestType::GET_ID,
        RequestType::DISCARD,
    ] {
        bed.request(kind, 0).readable(&[0; 512]).publish();
        let io = Io::new(&bed.queues, &bed.port);
        assert_eq!(bed.device.process(0, &io), Ok(Progress::Idle));
        assert_eq!(bed.driver.take_used().unwrap().len, 0);
    }
    assert!(bed.calls().is_empty());
}

#[test]
fn a_buffer_that_overlaps_the_rings_stays_the_guests_problem() {
    let mut bed = Bed::new();
    let rings = bed.driver.config().used & !511;
    bed.driver
        .chain()
        .readable(header(RequestType::IN, 0).as_bytes())
        .raw(rings, 512, DescriptorFlags::WRITE)
        .writable(1)
        .publish();
    let io = Io::new(&bed.queues, &bed.port);
    // The answer is lost in a ring that was overwritten; the device lives on or reports the ring.
    let _ = bed.device.process(0, &io);
}

#[test]
fn a_broken_ring_is_reported() {
    let mut bed = Bed::new();
    bed.driver.raw_publish(4000);
    let io = Io::new(&bed.queues, &bed.port);
    assert_eq!(
        bed.device.process(0, &io),
        Err(QueueError::DescriptorIndex { index: 4000, size: 128 })
    );
}

#[test]
fn many_requests_are_done_in_rounds() {
    let mut bed = Bed::new();
    for sector in 0..40 {
        bed.request(RequestType::IN, sector).writable(512).writable(1).publish();
    }
    let io = Io::new(&bed.queues, &bed.port);
    assert_eq!(bed.device.process(0, &io), Ok(Progress::More));
    assert_eq!(bed.device.process(0, &io), Ok(Progress::Idle));
    let used = bed.driver.take_all_used();
    assert_eq!(used.len(), 40);
    assert!(
        used.iter().zip(0..).all(|(used, sector)| used.data[0] == sector && used.data[512] == OK)
    );
}

proptest! {
    #[test]
    fn a_hostile_driver_harms_nobody(choices in proptest::collection::vec(any::<u8>(), 0..400)) {
        let mut bed = Bed::new();
        bed.queues = [Some(hostile_queue(&choices))];
        for _ in 0..4 {
            let _ = bed.device.process(0, &Io::new(&bed.queues, &bed.port));
        }
    }
}
