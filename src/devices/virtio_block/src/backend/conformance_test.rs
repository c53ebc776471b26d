//! One suite over every back-end: whatever keeps the bytes, a disk is a disk.

use std::sync::Arc;

use fuchsia_zircon as zx;
use proptest::prelude::*;
use qcow::{BackingOpener, BlockFile, CreateOptions, Image, Mode, NoBacking};
use virtio_device::GuestMemory;

use super::fake_block::FakeBlock;
use super::{
    Backend, BackendError, FileBackend, MemoryBackend, QcowBackend, RemoteBackend, Storage,
    StorageFile, VolatileBackend,
};
use crate::SECTOR_SIZE;

const CAPACITY: u64 = 1 << 20;

/// A file of a test: a VMO that may be read and written directly, or only in messages.
#[derive(Debug)]
struct TestStorage {
    vmo: zx::Vmo,
    direct: bool,
    fail: bool,
}

impl TestStorage {
    fn new(contents: &[u8], direct: bool) -> Self {
        let vmo =
            zx::Vmo::create_with_opts(zx::VmoOptions::RESIZABLE, contents.len() as u64).unwrap();
        vmo.write(contents, 0).unwrap();
        Self { vmo, direct, fail: false }
    }
}

impl Storage for TestStorage {
    fn size(&self) -> Result<u64, BackendError> {
        Ok(self.vmo.get_content_size()?)
    }

    fn read(&self, buf: &mut [u8], offset: u64) -> Result<(), BackendError> {
        Ok(self.vmo.read(buf, offset)?)
    }

    fn write(&self, buf: &[u8], offset: u64) -> Result<(), BackendError> {
        if self.fail {
            return Err(zx::Status::NO_SPACE.into());
        }
        Ok(self.vmo.write(buf, offset)?)
    }

    fn resize(&self, size: u64) -> Result<(), BackendError> {
        Ok(self.vmo.set_size(size)?)
    }

    fn sync(&self) -> Result<(), BackendError> {
        if self.fail { Err(zx::Status::IO.into()) } else { Ok(()) }
    }

    fn vmo(&self) -> Option<&zx::Vmo> {
        Some(&self.vmo).filter(|_| self.direct)
    }
}

/// Gives the one backing file of a test.
struct Base(Arc<dyn BlockFile>);

impl BackingOpener for Base {
    fn open(
        &mut self,
        _: &str,
        _: Option<&str>,
    ) -> Result<Arc<dyn BlockFile>, Box<dyn std::error::Error + Send + Sync>> {
        Ok(self.0.clone())
    }
}

/// A block device of the host as most are.
const SMALL: FakeBlock = FakeBlock {
    block_size: 512,
    max_transfer_size: u32::MAX,
    flags: fidl_fuchsia_storage_block::DeviceFlag::TRIM_SUPPORT,
    fail: zx::Status::OK,
    dies_after: usize::MAX,
};

fn initial() -> Vec<u8> {
    (0..CAPACITY).map(|at| (at / SECTOR_SIZE % 251) as u8).collect()
}

fn file(direct: bool) -> Box<dyn Backend> {
    Box::new(FileBackend::new(TestStorage::new(&initial(), direct)).unwrap())
}

fn empty_image(backing: Option<(String, String)>) -> Arc<StorageFile<TestStorage>> {
    let file = Arc::new(StorageFile::new(TestStorage::new(&[], true)).unwrap());
    Image::create(&*file, &CreateOptions { size: CAPACITY, cluster_bits: 12, backing }).unwrap();
    file
}

fn qcow() -> Box<dyn Backend> {
    let mut image = Image::open(empty_image(None), Mode::ReadWrite, &mut NoBacking).unwrap();
    image.write_at(&initial(), 0).unwrap();
    Box::new(QcowBackend::new(image))
}

fn overlay() -> Box<dyn Backend> {
    let file = empty_image(Some(("base".into(), "raw".into())));
    let base = Arc::new(StorageFile::new(TestStorage::new(&initial(), true)).unwrap());
    Box::new(QcowBackend::new(Image::open(file, Mode::ReadWrite, &mut Base(base)).unwrap()))
}

fn memory() -> Box<dyn Backend> {
    let backend = MemoryBackend::new(CAPACITY).unwrap();
    backend.write(&initial(), 0).unwrap();
    Box::new(backend)
}

fn remote(device: FakeBlock) -> Box<dyn Backend> {
    Box::new(RemoteBackend::new(device.serve(initial()), true).unwrap())
}

fn volatile(below: Box<dyn Backend>) -> Box<dyn Backend> {
    Box::new(VolatileBackend::new(below).unwrap())
}

/// Every back-end, with [`initial`] contents.
fn all() -> Vec<(&'static str, Box<dyn Backend>)> {
    vec![
        ("file", file(true)),
        ("file in messages", file(false)),
        ("memory", memory()),
        ("qcow", qcow()),
        ("qcow overlay", overlay()),
        ("volatile file", volatile(file(true))),
        ("volatile file in messages", volatile(file(false))),
        ("volatile qcow", volatile(qcow())),
        ("remote", remote(SMALL)),
        ("remote in small pieces", remote(FakeBlock { max_transfer_size: 1500, ..SMALL })),
        ("volatile remote", volatile(remote(SMALL))),
    ]
}

fn contents(backend: &dyn Backend) -> Vec<u8> {
    let mut bytes = vec![0xee; CAPACITY as usize];
    backend.read(&mut bytes, 0).unwrap();
    bytes
}

#[test]
fn a_disk_starts_as_it_was_left() {
    for (name, backend) in all() {
        assert_eq!(backend.capacity(), CAPACITY, "{name}");
        assert!(backend.block_size().is_power_of_two() && backend.block_size() >= 512, "{name}");
        assert!(contents(&*backend) == initial(), "{name}");
    }
}

#[test]
fn what_is_written_is_read_and_nothing_else_changes() {
    for (name, backend) in all() {
        let mut model = initial();
        for (offset, len) in
            [(0, 512), (512, 4096), (CAPACITY - 512, 512), (100 * 512, 300 * 512), (8192, 8192)]
        {
            let data: Vec<u8> = (0..len).map(|at| (at * 7 + offset) as u8).collect();
            backend.write(&data, offset).unwrap();
            model[offset as usize..(offset + len) as usize].copy_from_slice(&data);
        }
        backend.flush().unwrap();
        assert!(contents(&*backend) == model, "{name}");
    }
}

#[test]
fn zeroed_ranges_read_as_zeroes() {
    for (name, backend) in all() {
        let mut model = initial();
        for (offset, len, unmap) in
            [(512, 1024, true), (4096, 8192, true), (65536, 5 * 512, false), (0, 0, true)]
        {
            backend.write_zeroes(offset, len, unmap).unwrap();
            model[offset as usize..(offset + len) as usize].fill(0);
        }
        assert!(contents(&*backend) == model, "{name}");
        backend.write(&[3; 512], 1024).unwrap();
        model[1024..1536].fill(3);
        assert!(contents(&*backend) == model, "{name}: zeroed ranges can be written again");
    }
}

#[test]
fn a_discard_touches_nothing_outside() {
    for (name, backend) in all() {
        backend.discard(8192 + 512, 16384).unwrap();
        backend.discard(0, 0).unwrap();
        backend.flush().unwrap();
        let (found, model) = (contents(&*backend), initial());
        let range = 8192 + 512..8192 + 512 + 16384;
        assert!(found[..range.start] == model[..range.start], "{name}");
        assert!(found[range.end..] == model[range.end..], "{name}");
        backend.write(&[5; 16384], range.start as u64).unwrap();
        assert!(contents(&*backend)[range] == [5; 16384], "{name}");
    }
}

#[test]
fn guest_memory_is_filled_and_read_as_any_buffer() {
    let memory = GuestMemory::anonymous(64 << 10);
    for (name, backend) in all() {
        let slice = memory.slice(100, 4096).unwrap();
        if let Some(result) = backend.read_to_guest(slice, 12 * 512) {
            result.unwrap();
            let mut bytes = vec![0; 4096];
            slice.copy_to(&mut bytes);
            assert!(bytes == initial()[12 * 512..][..4096], "{name}");
        }
        slice.copy_from(&[0x42; 4096]);
        if let Some(result) = backend.write_from_guest(slice, 20 * 512) {
            result.unwrap();
            let mut model = initial();
            model[20 * 512..][..4096].fill(0x42);
            assert!(contents(&*backend) == model, "{name}");
        }
    }
}

#[test]
fn threads_do_not_disturb_each_other() {
    for (name, backend) in all() {
        std::thread::scope(|scope| {
            for thread in 0..4u64 {
                let backend = &*backend;
                scope.spawn(move || {
                    for round in 0..20 {
                        let offset = thread * (CAPACITY / 4) + round * 4096;
                        let data = [(thread * 50 + round) as u8; 4096];
                        backend.write(&data, offset).unwrap();
                        let mut back = [0; 4096];
                        backend.read(&mut back, offset).unwrap();
                        assert!(back == data, "{name}");
                        if round % 7 == 0 {
                            backend.flush().unwrap();
                        }
                    }
                });
            }
        });
    }
}

#[test]
fn what_is_below_a_volatile_disk_is_not_written() {
    let storage = TestStorage::new(&initial(), true);
    let vmo = zx::HandleBased::duplicate_handle(&storage.vmo, zx::Rights::SAME_RIGHTS).unwrap();
    let backend = volatile(Box::new(FileBackend::new(storage).unwrap()));
    backend.write(&[1; 4096], 0).unwrap();
    backend.write_zeroes(8192, 4096, true).unwrap();
    backend.discard(16384, 4096).unwrap();
    backend.flush().unwrap();
    let mut below = vec![0; CAPACITY as usize];
    vmo.read(&mut below, 0).unwrap();
    assert!(below == initial());
}

#[test]
fn a_failing_storage_is_an_error() {
    let failing = || TestStorage { fail: true, ..TestStorage::new(&initial(), false) };
    let backend = FileBackend::new(failing()).unwrap();
    assert!(matches!(
        backend.write(&[0; 512], 0),
        Err(BackendError::Storage(zx::Status::NO_SPACE))
    ));
    assert!(matches!(backend.flush(), Err(BackendError::Storage(zx::Status::IO))));
    let file = StorageFile::new(failing()).unwrap();
    let error = file.write_at(&[0; 512], 0).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
}

#[test]
fn a_remote_device_that_fails_or_dies_is_an_error() {
    let backend = remote(FakeBlock { fail: zx::Status::IO_DATA_INTEGRITY, ..SMALL });
    let mut sector = [0; 512];
    for result in [backend.read(&mut sector, 0), backend.write(&[1; 512], 0), backend.flush()] {
        let failed = BackendError::Storage(zx::Status::IO_DATA_INTEGRITY);
        assert_eq!(result.unwrap_err().to_string(), failed.to_string());
    }
    let backend = remote(FakeBlock { dies_after: 3, ..SMALL });
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| while backend.read(&mut [0; 4096], 0).is_ok() {});
        }
    });
    assert!(backend.flush().is_err());
}

#[test]
fn a_remote_device_that_no_disk_can_be_made_of_is_refused() {
    use fidl_fuchsia_storage_block::DeviceFlag;
    for device in [
        FakeBlock { block_size: 100, ..SMALL },
        FakeBlock { block_size: 0, ..SMALL },
        FakeBlock { block_size: 4096, max_transfer_size: 2048, ..SMALL },
        FakeBlock { flags: DeviceFlag::READONLY, ..SMALL },
    ] {
        let result = RemoteBackend::new(device.serve(initial()), true);
        assert!(matches!(result, Err(BackendError::Unusable(_))), "{device:?}");
    }
    let read_only = FakeBlock { flags: DeviceFlag::READONLY, ..SMALL };
    assert!(RemoteBackend::new(read_only.serve(initial()), false).is_ok());
}

#[test]
fn a_remote_device_gets_whole_blocks() {
    let backend = remote(FakeBlock { block_size: 4096, ..SMALL });
    assert_eq!((backend.block_size(), backend.capacity()), (4096, CAPACITY));
    let mut sectors = [0; 8192];
    backend.read(&mut sectors, 4096).unwrap();
    assert!(sectors == initial()[4096..][..8192]);
    assert!(matches!(backend.read(&mut [0; 512], 0), Err(BackendError::Unusable(_))));
    assert!(matches!(backend.write(&[0; 4096], 512), Err(BackendError::Unusable(_))));
    // Of a discard, the blocks inside.
    backend.discard(512, 8192).unwrap();
    backend.read(&mut sectors, 0).unwrap();
    assert!(sectors[..4096] == initial()[..4096] && sectors[4096..] == [0xdd; 4096]);
}

#[test]
fn a_file_of_half_a_sector_is_refused() {
    assert!(matches!(
        FileBackend::new(TestStorage::new(&[0; 700], true)),
        Err(BackendError::Unusable(_))
    ));
}

#[derive(Debug, Clone)]
enum Op {
    Write(u64, u64, u8),
    Zero(u64, u64, bool),
    Flush,
}

fn op() -> impl Strategy<Value = Op> {
    let sectors = CAPACITY / SECTOR_SIZE;
    let range =
        move || (0..sectors, 0..64u64).prop_map(move |(at, len)| (at, len.min(sectors - at)));
    prop_oneof![
        4 => (range(), any::<u8>()).prop_map(|((at, len), byte)| Op::Write(at, len, byte)),
        2 => (range(), any::<bool>()).prop_map(|((at, len), unmap)| Op::Zero(at, len, unmap)),
        1 => Just(Op::Flush),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn all_back_ends_agree_with_a_plain_disk(ops in proptest::collection::vec(op(), 1..30)) {
        for (name, backend) in all() {
            let mut model = initial();
            for op in &ops {
                match *op {
                    Op::Write(at, len, byte) => {
                        let range = (at * SECTOR_SIZE) as usize..((at + len) * SECTOR_SIZE) as usize;
                        model[range.clone()].fill(byte);
                        backend.write(&model[range], at * SECTOR_SIZE).unwrap();
                    }
                    Op::Zero(at, len, unmap) => {
                        model[(at * SECTOR_SIZE) as usize..((at + len) * SECTOR_SIZE) as usize].fill(0);
                        backend.write_zeroes(at * SECTOR_SIZE, len * SECTOR_SIZE, unmap).unwrap();
                    }
                    Op::Flush => backend.flush().unwrap(),
                }
            }
            prop_assert!(contents(&*backend) == model, "{}", name);
        }
    }
}
