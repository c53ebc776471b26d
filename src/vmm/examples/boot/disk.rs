//! A disk served by the block device's own code on threads of this process.

use anyhow::Context as _;
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use fuchsia_zircon as zx;
use virtio_block::{Backend, BackendError as StorageError, BlockDevice, DiskInfo};
use virtio_device::{Features, GuestMemory, QueueConfig as RingConfig, Worker};
use vmm::virtio_pci::{
    BackendError, DeviceConfig, DeviceEvents, QueueConfig, VirtioBackend, VirtioIdentity,
};
use vmm::vm::VmBuilder;

const QUEUE_SIZE: u16 = 256;
const F_SEG_MAX: u64 = 1 << 2;
const F_FLUSH: u64 = 1 << 9;

/// A file as it is. Portable rather than fast: one request at a time.
struct Image {
    file: Mutex<File>,
    size: u64,
}

impl Image {
    fn at(&self, offset: u64) -> std::io::Result<std::sync::MutexGuard<'_, File>> {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.seek(SeekFrom::Start(offset))?;
        Ok(file)
    }
}

fn io_error(error: &std::io::Error) -> StorageError {
    eprintln!("boot: disk: {error}");
    StorageError::Storage(zx::Status::IO)
}

impl Backend for Image {
    fn capacity(&self) -> u64 {
        self.size
    }

    fn read(&self, buf: &mut [u8], offset: u64) -> Result<(), StorageError> {
        self.at(offset).and_then(|mut file| file.read_exact(buf)).map_err(|error| io_error(&error))
    }

    fn write(&self, buf: &[u8], offset: u64) -> Result<(), StorageError> {
        self.at(offset).and_then(|mut file| file.write_all(buf)).map_err(|error| io_error(&error))
    }

    fn flush(&self) -> Result<(), StorageError> {
        self.at(0).and_then(|file| file.sync_data()).map_err(|error| io_error(&error))
    }
}

/// The queues' side of the disk; it starts to exist with the handles that [`VmBuilder::add_virtio`] gives.
#[derive(Clone, Default)]
struct Queues(Arc<Mutex<Option<Worker<BlockDevice>>>>);

impl Queues {
    fn with(&self, call: impl FnOnce(&mut Worker<BlockDevice>)) -> Result<(), BackendError> {
        let mut worker = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        worker.as_mut().map(call).ok_or_else(|| BackendError("not started".to_owned()))
    }
}

impl VirtioBackend for Queues {
    fn configure_queue(&mut self, index: u16, queue: &QueueConfig) -> Result<(), BackendError> {
        let ring = RingConfig {
            size: queue.size,
            desc: queue.descriptors,
            avail: queue.available,
            used: queue.used,
        };
        self.with(|worker| worker.configure(index, ring))
    }

    fn ready(&mut self, features: u32) -> Result<(), BackendError> {
        self.with(|worker| worker.ready(Features::from_bits_retain(features)))
    }

    fn reset(&mut self) -> Result<(), BackendError> {
        self.with(Worker::reset)
    }
}

/// Adds the file at `path` as disk number `index`.
pub(crate) fn add(
    builder: &mut VmBuilder,
    events: &DeviceEvents,
    index: usize,
    path: &Path,
) -> anyhow::Result<()> {
    let file = File::options()
        .read(true)
        .write(true)
        .open(path)
        .with_context(|| format!("opening {path:?}"))?;
    let size = file.metadata()?.len() / 512 * 512;
    let mut config = vec![0; 24];
    config[..8].copy_from_slice(&(size / 512).to_le_bytes());
    config[12..16].copy_from_slice(&u32::from(QUEUE_SIZE - 2).to_le_bytes());
    let identity = VirtioIdentity {
        name: format!("disk {index}"),
        device_id: 2,
        class: 0x01_8000,
        features: F_SEG_MAX | F_FLUSH,
        queue_sizes: vec![QUEUE_SIZE],
        breaks_queues: false,
    };
    let queues = Queues::default();
    let (_, handles) = builder.add_virtio(
        &identity,
        DeviceConfig::read_only(config),
        Box::new(queues.clone()),
        events,
    )?;
    let backend: Arc<dyn Backend> = Arc::new(Image { file: Mutex::new(file), size });
    let device = BlockDevice::new(backend, DiskInfo::new("disk", false));
    let memory = Arc::new(GuestMemory::map(handles.vmo)?);
    let worker = Worker::start(vec![device], 1, memory, handles.trap.start, handles.event)?;
    let trap_size = usize::try_from(handles.trap.end - handles.trap.start)?;
    handles.guest.set_trap_bell(
        handles.trap.start,
        trap_size,
        worker.port(),
        Worker::<BlockDevice>::BELL_KEY,
    )?;
    *queues.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(worker);
    Ok(())
}
