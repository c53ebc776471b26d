//! `fuchsia.virtualization.hardware.VirtioBlock`.

use std::sync::Arc;

use anyhow::{Context as _, bail};
use fidl::endpoints::{ClientEnd, Proxy as _};
use fidl_fuchsia_io as fio;
use fidl_fuchsia_virtualization::{BlockFormat, BlockMode, BlockSpec};
use fidl_fuchsia_virtualization_hardware::{VirtioBlockRequest, VirtioBlockRequestStream};
use fuchsia_zircon as zx;
use futures::TryStreamExt as _;
use qcow::{BackingOpener, BlockFile, Image, Mode};
use virtio_device::{Attachment, Worker};

use crate::backend::{
    Backend, BackendError, FileBackend, FileStorage, QcowBackend, RemoteBackend, StorageFile,
    VolatileBackend,
};
use crate::device::{BlockDevice, DiskInfo};

/// Most queues that a driver may use; the VMM offers at most so many (`num_queues`).
pub const MAX_QUEUES: u16 = 16;
/// Most threads that serve them.
const MAX_LANES: usize = 4;
/// Where the manifest puts storage that need not outlive the component.
const TEMPORARY_STORAGE: &str = "/tmp";

/// Runs the component: one device, until its client leaves.
///
/// # Errors
/// When the component was started without an outgoing directory, the disk cannot be opened, or the client does not
/// keep to the protocol.
pub async fn run() -> anyhow::Result<()> {
    virtio_device::serve_one(serve).await?.unwrap_or(Ok(()))
}

pub(crate) async fn serve(mut requests: VirtioBlockRequestStream) -> anyhow::Result<()> {
    let Some(VirtioBlockRequest::Start { start_info, spec, responder }) =
        requests.try_next().await?
    else {
        bail!("Start was not the first request");
    };
    // Start has no error to answer with: the VMM sees the channel close, and the reason is in the log.
    let disk = DiskInfo::new(&spec.id, spec.mode == BlockMode::ReadOnly);
    let backend = open(spec).await.context("The disk cannot be opened")?;
    let mut worker = start(Attachment::new(start_info)?, &backend, disk)?;
    responder
        .send(backend.capacity(), backend.block_size())
        .context("Start could not be answered")?;
    while let Some(request) = requests.try_next().await? {
        virtio_device::answer!(worker, request, VirtioBlockRequest, {
            VirtioBlockRequest::Start { .. } => bail!("Start came twice"),
        })?;
    }
    // The VMM has gone in peace: what the guest has written need not be lost although it was not flushed.
    drop(worker);
    backend.flush().context("The disk could not be flushed")
}

fn start(
    attachment: Attachment,
    backend: &Arc<dyn Backend>,
    disk: DiskInfo,
) -> Result<Worker<BlockDevice>, virtio_device::StartError> {
    let lanes = std::thread::available_parallelism().map_or(1, usize::from).min(MAX_LANES);
    let devices = (0..lanes).map(|_| BlockDevice::new(backend.clone(), disk)).collect();
    attachment.start(devices, MAX_QUEUES)
}

/// Opens the disk that the configuration describes.
async fn open(spec: BlockSpec) -> Result<Arc<dyn Backend>, BackendError> {
    let writable = spec.mode == BlockMode::ReadWrite;
    let below: Box<dyn Backend> = match spec.format {
        BlockFormat::File(file) => Box::new(FileBackend::new(open_file(file, writable)?)?),
        BlockFormat::Qcow(channel) => open_image(vec![ClientEnd::new(channel)], writable)?,
        BlockFormat::QcowChain(files) => open_image(files, writable)?,
        BlockFormat::Block(device) => Box::new(RemoteBackend::new(device, writable)?),
    };
    match spec.mode {
        BlockMode::VolatileWrite => Ok(Arc::new(volatile(below).await?)),
        BlockMode::ReadOnly | BlockMode::ReadWrite => Ok(below.into()),
    }
}

/// A disk over `below` that forgets what is written to it, which is kept in the component's temporary storage.
async fn volatile(below: Box<dyn Backend>) -> Result<VolatileBackend, BackendError> {
    match temporary_file(below.capacity()).await {
        Ok(file) => VolatileBackend::over(below, Box::new(FileBackend::new(file)?)),
        Err(error) => {
            tracing::warn!(?error, "No temporary storage: a volatile disk keeps 1 GiB in memory");
            VolatileBackend::new(below)
        }
    }
}

/// A file of `size` bytes, with holes for all of them, which is gone when nobody has it open.
async fn temporary_file(size: u64) -> anyhow::Result<FileStorage> {
    const NAME: &str = "volatile";
    let flags = fio::PERM_READABLE | fio::PERM_WRITABLE;
    let directory = fuchsia_fs::directory::open_in_namespace(TEMPORARY_STORAGE, flags)?;
    let create = flags | fio::Flags::FLAG_MAYBE_CREATE;
    let file = fuchsia_fs::directory::open_file(&directory, NAME, create).await?;
    let unlinked = directory.unlink(NAME, &fio::UnlinkOptions::default()).await?;
    unlinked.map_err(zx::Status::from_raw)?;
    file.resize(size).await?.map_err(zx::Status::from_raw)?;
    let channel = file.into_channel().map_err(|_| anyhow::anyhow!("The file is in use"))?;
    let file = fio::FileSynchronousProxy::new(channel.into_zx_channel());
    Ok(FileStorage::new(file, true)?)
}

/// Opens a qcow2 image; `files` are it and its backing files, in the order in which they name each other.
fn open_image(
    files: Vec<ClientEnd<fio::FileMarker>>,
    writable: bool,
) -> Result<Box<dyn Backend>, BackendError> {
    let mut files = Chain(files.into_iter());
    let file = files.next(writable)?;
    let mode = if writable { Mode::ReadWrite } else { Mode::ReadOnly };
    Ok(Box::new(QcowBackend::new(Image::open(file, mode, &mut files)?)))
}

/// The files that were handed in. The device has no name space to open others in, so what an image calls its backing
/// file does not matter here: whoever handed the files in has looked at it.
struct Chain(std::vec::IntoIter<ClientEnd<fio::FileMarker>>);

impl Chain {
    fn next(&mut self, writable: bool) -> Result<Arc<dyn BlockFile>, BackendError> {
        let missing =
            BackendError::Unusable("The image has a backing file, which was not handed in");
        let file = self.0.next().ok_or(missing)?;
        Ok(Arc::new(StorageFile::new(open_file(file, writable)?)?))
    }
}

impl BackingOpener for Chain {
    fn open(
        &mut self,
        _name: &str,
        _format: Option<&str>,
    ) -> Result<Arc<dyn BlockFile>, Box<dyn std::error::Error + Send + Sync>> {
        Ok(self.next(false)?)
    }
}

fn open_file(
    file: ClientEnd<fio::FileMarker>,
    writable: bool,
) -> Result<FileStorage, BackendError> {
    FileStorage::new(fio::FileSynchronousProxy::new(file.into_channel()), writable)
}
