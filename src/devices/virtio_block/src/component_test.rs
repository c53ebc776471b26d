//! The component over FIDL, on real files that a file server of `fuchsia.io` gives it.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use fidl::endpoints::{ClientEnd, create_endpoints};
use fidl_fuchsia_io as fio;
use fidl_fuchsia_virtualization::{BlockFormat, BlockMode, BlockSpec};
use fidl_fuchsia_virtualization_hardware::{VirtioBlockMarker, VirtioBlockSynchronousProxy};
use fuchsia_zircon as zx;
use virtio_device::fake_queue::FakeDriver;
use virtio_device::fake_transport::{
    FakeTransport, configure_arguments, ready_argument, serve_in_thread,
};
use zerocopy::IntoBytes as _;

use crate::component::serve;
use crate::wire::{F_DISCARD, F_FLUSH, RequestHeader, RequestType, SectorRange, Status};

/// A file of the host, as the component manager serves it.
struct HostFile {
    file: fs::File,
    /// Whether there is a VMO of it.
    backing: bool,
    syncs: Arc<AtomicU32>,
}

impl vfs::file::File for HostFile {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<usize, zx::Status> {
        self.file.read_at(buffer, offset).map_err(|_| zx::Status::IO)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<usize, zx::Status> {
        self.file.write_at(bytes, offset).map_err(|_| zx::Status::IO)
    }

    fn size(&self) -> Result<u64, zx::Status> {
        Ok(self.file.metadata().map_err(|_| zx::Status::IO)?.len())
    }

    fn resize(&self, size: u64) -> Result<(), zx::Status> {
        self.file.set_len(size).map_err(|_| zx::Status::IO)
    }

    fn sync(&self) -> Result<(), zx::Status> {
        self.syncs.fetch_add(1, Ordering::Relaxed);
        self.file.sync_all().map_err(|_| zx::Status::IO)
    }

    fn backing_memory(&self, _: fio::VmoFlags) -> Result<zx::Vmo, zx::Status> {
        if !self.backing {
            return Err(zx::Status::NOT_SUPPORTED);
        }
        let file = self.file.try_clone().map_err(|_| zx::Status::IO)?;
        zx::linux::vmo_from_file(file.into(), zx::Rights::SAME_RIGHTS)
    }

    fn abilities(&self) -> fio::Operations {
        fio::Operations::READ_BYTES | fio::Operations::WRITE_BYTES | fio::Operations::GET_ATTRIBUTES
    }
}

/// A folder with images, and the server of its files.
struct Folder {
    folder: tempfile::TempDir,
    syncs: Arc<AtomicU32>,
}

impl Folder {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), syncs: Arc::default() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn serve(&self, name: &str, backing: bool) -> ClientEnd<fio::FileMarker> {
        let file = fs::File::options().read(true).write(true).open(self.path(name)).unwrap();
        let file = Arc::new(HostFile { file, backing, syncs: self.syncs.clone() });
        let (client, server) = create_endpoints::<fio::FileMarker>();
        std::thread::spawn(move || {
            let scope = vfs::execution_scope::ExecutionScope::new();
            let flags = fio::PERM_READABLE | fio::PERM_WRITABLE | fio::Flags::PROTOCOL_FILE;
            let all = fio::Operations::all();
            let options =
                vfs::OpenOptions::from_flags(flags, fio::Options::default(), all).unwrap();
            fuchsia_async::LocalExecutor::new().run_singlethreaded(async {
                let path = vfs::path::Path::dot();
                let channel = server.into_channel();
                vfs::file::open(
                    file,
                    vfs::OpenRequest::new(scope.clone(), path, options, all, channel),
                );
                std::future::poll_fn(|context| scope.poll_empty(context)).await;
            });
        });
        client
    }

    fn qemu_img(&self, args: &[&str]) {
        let output = Command::new("qemu-img")
            .current_dir(self.folder.path())
            .args(args)
            .output()
            .expect("qemu-img is needed for this test (Debian: qemu-utils)");
        assert!(
            output.status.success(),
            "qemu-img {args:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

struct Disk {
    device: VirtioBlockSynchronousProxy,
    transport: FakeTransport,
    driver: FakeDriver,
    capacity: u64,
}

impl Disk {
    fn try_start(format: BlockFormat, mode: BlockMode) -> Result<Self, fidl::Error> {
        let (transport, mut drivers) = FakeTransport::new(1);
        let device = serve_in_thread::<VirtioBlockMarker>(async |server| {
            let _ = serve(server.into_stream()).await;
        });
        let spec = BlockSpec { id: "test".into(), mode, format };
        let (capacity, block_size) =
            device.start(transport.start_info(), spec, zx::Time::INFINITE)?;
        assert_eq!(block_size, 512);
        let driver = drivers.remove(0);
        let (size, desc, avail, used) = configure_arguments(driver.config());
        device.configure_queue(0, size, desc, avail, used, zx::Time::INFINITE)?;
        device.ready(ready_argument(F_FLUSH | F_DISCARD), zx::Time::INFINITE)?;
        Ok(Self { device, transport, driver, capacity })
    }

    fn start(format: BlockFormat, mode: BlockMode) -> Self {
        Self::try_start(format, mode).unwrap()
    }

    fn request(
        &mut self,
        kind: RequestType,
        sector: u64,
        data: &[u8],
        answer: u32,
    ) -> (u8, Vec<u8>) {
        let header = RequestHeader {
            request_type: kind.0.into(),
            reserved: 0.into(),
            sector: sector.into(),
        };
        let chain = self.driver.chain().readable(header.as_bytes());
        let chain = if data.is_empty() { chain } else { chain.readable(data) };
        chain.writable(answer + 1).publish();
        if self.driver.take_kick() {
            self.device.notify_queue(0).unwrap();
        }
        let mut used = self.transport.answer(&mut self.driver);
        (used.data.pop().unwrap(), used.data)
    }

    #[track_caller]
    fn write(&mut self, sector: u64, data: &[u8]) {
        assert_eq!(self.request(RequestType::OUT, sector, data, 0).0, Status::Ok as u8);
    }

    #[track_caller]
    fn read(&mut self, sector: u64, len: u32) -> Vec<u8> {
        let (status, data) = self.request(RequestType::IN, sector, &[], len);
        assert_eq!(status, Status::Ok as u8);
        data
    }

    #[track_caller]
    fn flush(&mut self) {
        assert_eq!(self.request(RequestType::FLUSH, 0, &[], 0).0, Status::Ok as u8);
    }
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at / 512 * 3 + at % 17) as u8).collect()
}

fn read_file(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap()
}

#[test]
fn a_raw_file_is_read_written_and_synced() {
    for backing in [true, false] {
        let folder = Folder::new();
        let mut model = pattern(1 << 20);
        fs::write(folder.path("disk"), &model).unwrap();
        let mut disk =
            Disk::start(BlockFormat::File(folder.serve("disk", backing)), BlockMode::ReadWrite);
        assert_eq!(disk.capacity, 1 << 20);
        assert_eq!(disk.read(3, 8192), model[3 * 512..][..8192]);
        disk.write(100, &[0x55; 20_480]);
        model[51_200..71_680].fill(0x55);
        let before = folder.syncs.load(Ordering::Relaxed);
        disk.flush();
        assert_eq!(
            folder.syncs.load(Ordering::Relaxed),
            before + 1,
            "a flush is a sync of the file"
        );
        assert!(read_file(&folder.path("disk")) == model);
        assert_eq!(disk.read(100, 512), [0x55; 512]);
        let range = SectorRange { sector: 0.into(), num_sectors: 64.into(), flags: 0.into() };
        assert_eq!(disk.request(RequestType::DISCARD, 0, range.as_bytes(), 0).0, Status::Ok as u8);
        assert!(read_file(&folder.path("disk"))[64 * 512..] == model[64 * 512..]);
    }
}

#[test]
fn read_only_and_volatile_disks_leave_the_file_alone() {
    for mode in [BlockMode::ReadOnly, BlockMode::VolatileWrite] {
        let folder = Folder::new();
        let model = pattern(1 << 20);
        fs::write(folder.path("disk"), &model).unwrap();
        let mut disk = Disk::start(BlockFormat::File(folder.serve("disk", true)), mode);
        let (status, _) = disk.request(RequestType::OUT, 7, &[1; 1024], 0);
        if mode == BlockMode::VolatileWrite {
            assert_eq!(status, Status::Ok as u8);
            assert_eq!(
                disk.read(6, 2048),
                [&model[6 * 512..7 * 512], &[1; 1024], &model[9 * 512..10 * 512]].concat()
            );
        } else {
            assert_eq!(status, Status::IoError as u8);
        }
        disk.flush();
        assert!(read_file(&folder.path("disk")) == model);
    }
}

#[test]
fn an_image_is_read_and_written_and_grows() {
    let folder = Folder::new();
    folder.qemu_img(&["create", "-f", "qcow2", "image", "64M"]);
    let channel = folder.serve("image", true).into_channel();
    let mut disk = Disk::start(BlockFormat::Qcow(channel), BlockMode::ReadWrite);
    assert_eq!(disk.capacity, 64 << 20);
    assert_eq!(disk.read(1000, 512), [0; 512]);
    let data = pattern(256 << 10);
    for piece in 0..40 {
        disk.write(piece * 1024, &data);
    }
    disk.flush();
    assert_eq!(disk.read(39 * 1024, 4096), data[..4096]);
    folder.qemu_img(&["check", "image"]);
    folder.qemu_img(&["convert", "-O", "raw", "image", "raw"]);
    assert!(read_file(&folder.path("raw"))[39 * 1024 * 512..][..256 << 10] == data);
}

#[test]
fn an_overlay_leaves_its_backing_file_alone() {
    let folder = Folder::new();
    let base = pattern(4 << 20);
    fs::write(folder.path("base"), &base).unwrap();
    folder.qemu_img(&["create", "-f", "qcow2", "-b", "base", "-F", "raw", "overlay"]);
    let files = vec![folder.serve("overlay", true), folder.serve("base", true)];
    let mut disk = Disk::start(BlockFormat::QcowChain(files), BlockMode::ReadWrite);
    assert_eq!(disk.read(4000, 4096), base[4000 * 512..][..4096]);
    disk.write(4001, &[9; 512]);
    disk.flush();
    folder.qemu_img(&["convert", "-O", "raw", "overlay", "raw"]);
    let mut expected = base.clone();
    expected[4001 * 512..4002 * 512].fill(9);
    assert!(read_file(&folder.path("raw")) == expected);
    assert!(read_file(&folder.path("base")) == base);
}

#[test]
fn a_disk_that_cannot_be_opened_closes_the_channel() {
    let folder = Folder::new();
    fs::write(folder.path("odd"), [0; 700]).unwrap();
    fs::write(folder.path("text"), "not an image").unwrap();
    folder.qemu_img(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "-u",
        "-b",
        "elsewhere",
        "-F",
        "raw",
        "lonely",
        "1M",
    ]);
    let (gone, _) = create_endpoints::<fio::FileMarker>();
    let (no_device, _) = create_endpoints();
    for format in [
        BlockFormat::File(folder.serve("odd", true)),
        BlockFormat::Qcow(folder.serve("text", true).into_channel()),
        BlockFormat::Qcow(folder.serve("lonely", true).into_channel()),
        BlockFormat::QcowChain(vec![]),
        BlockFormat::File(gone),
        BlockFormat::Block(no_device),
    ] {
        assert!(Disk::try_start(format, BlockMode::ReadWrite).is_err());
    }
}

#[test]
fn several_queues_are_served() {
    let folder = Folder::new();
    fs::write(folder.path("disk"), pattern(1 << 20)).unwrap();
    let (transport, mut drivers) = FakeTransport::new(4);
    let device = serve_in_thread::<VirtioBlockMarker>(async |server| {
        let _ = serve(server.into_stream()).await;
    });
    let format = BlockFormat::File(folder.serve("disk", true));
    let spec = BlockSpec { id: String::new(), mode: BlockMode::ReadWrite, format };
    device.start(transport.start_info(), spec, zx::Time::INFINITE).unwrap();
    for (queue, driver) in (0..).zip(&drivers) {
        let (size, desc, avail, used) = configure_arguments(driver.config());
        device.configure_queue(queue, size, desc, avail, used, zx::Time::INFINITE).unwrap();
    }
    device.ready(ready_argument(F_FLUSH), zx::Time::INFINITE).unwrap();
    for (queue, driver) in (0..).zip(&mut drivers) {
        let header = RequestHeader {
            request_type: 0.into(),
            reserved: 0.into(),
            sector: u64::from(queue).into(),
        };
        driver.chain().readable(header.as_bytes()).writable(513).publish();
        device.notify_queue(queue).unwrap();
    }
    for (queue, driver) in (0..).zip(&mut drivers) {
        let used = transport.answer(driver);
        assert!(used.data[..512] == pattern(1 << 20)[queue * 512..][..512]);
    }
}
