//! A guest package: the directory with `data/guest.cfg` and what that names.

use crate::package_config::{BlockFormat, BlockOption, PackageConfig};
use crate::qcow_chain::open_chain;
use fidl::endpoints::{ClientEnd, Proxy as _, create_proxy};
use fidl_fuchsia_io as fio;
use fidl_fuchsia_virtualization as fvirt;
use fuchsia_zircon as zx;

/// Where a package's configuration is.
pub(crate) const CONFIG_PATH: &str = "data/guest.cfg";

/// A configuration is a page of text; what is larger is something else.
const MAX_CONFIG_BYTES: usize = 64 * 1024;

/// Why a package's configuration cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PackageError {
    #[error("{path} in the guest package cannot be opened: {status}")]
    Open { path: String, status: zx::Status },
    #[error(
        "{path} in the guest package is in use by another guest or program; stop that, or open the disk with `ro` or \
         `volatile` in both"
    )]
    InUse { path: String },
    #[error("{path} in the guest package cannot be read: {source}")]
    Fidl { path: String, source: fidl::Error },
    #[error("{CONFIG_PATH} in the guest package is larger than {MAX_CONFIG_BYTES} bytes")]
    TooLarge,
    #[error("{CONFIG_PATH} in the guest package is not UTF-8")]
    NotText,
    #[error("{CONFIG_PATH} in the guest package: {0}")]
    Parse(#[from] serde_json::Error),
}

/// Reads the package's configuration and opens what it names.
pub(crate) async fn load(
    package: &fio::DirectoryProxy,
) -> Result<fvirt::GuestConfig, PackageError> {
    let text = read_text(package, CONFIG_PATH).await?;
    open_all(package, PackageConfig::parse(&text)?).await
}

async fn open_all(
    package: &fio::DirectoryProxy,
    config: PackageConfig,
) -> Result<fvirt::GuestConfig, PackageError> {
    let (kernel_type, kernel) = match config.kernel {
        Some((kind, path)) => (Some(kind), Some(open(package, &path, fio::PERM_READABLE).await?)),
        None => (None, None),
    };
    let mut block_devices = Vec::with_capacity(config.block.len());
    for option in &config.block {
        block_devices.push(open_block(package, option).await?);
    }
    Ok(fvirt::GuestConfig {
        kernel_type,
        kernel,
        ramdisk: open_optional(package, config.ramdisk).await?,
        dtb_overlay: open_optional(package, config.dtb_overlay).await?,
        cmdline: config.cmdline,
        cmdline_add: (!config.cmdline_add.is_empty()).then_some(config.cmdline_add),
        cpus: config.cpus,
        guest_memory: config.memory,
        block_devices: (!block_devices.is_empty()).then_some(block_devices),
        default_net: config.default_net,
        net_forwards: (!config.net_forwards.is_empty()).then_some(config.net_forwards),
        virtio_balloon: config.virtio_balloon,
        virtio_console: config.virtio_console,
        virtio_gpu: config.virtio_gpu,
        virtio_rng: config.virtio_rng,
        virtio_vsock: config.virtio_vsock,
        virtio_sound: config.virtio_sound,
        virtio_sound_input: config.virtio_sound_input,
        virtio_mem: config.virtio_mem,
        virtio_mem_block_size: config.virtio_mem_block_size,
        virtio_mem_region_size: config.virtio_mem_region_size,
        virtio_mem_region_alignment: config.virtio_mem_region_alignment,
        wayland_device: (config.virtio_wl == Some(true))
            .then(|| fvirt::WaylandDevice { memory: 1 << 30, server: None }),
        magma_device: (config.virtio_magma == Some(true))
            .then_some(fvirt::MagmaDevice { memory: 16 << 30 }),
        ..Default::default()
    })
}

async fn open_block(
    package: &fio::DirectoryProxy,
    option: &BlockOption,
) -> Result<fvirt::BlockSpec, PackageError> {
    // Only a disk whose writes are to stay is opened for writing: no bug further down can harm the others.
    let flags = match option.mode {
        fvirt::BlockMode::ReadWrite => fio::PERM_READABLE | fio::PERM_WRITABLE,
        fvirt::BlockMode::ReadOnly | fvirt::BlockMode::VolatileWrite => fio::PERM_READABLE,
    };
    let format = match option.format {
        BlockFormat::File => {
            fvirt::BlockFormat::File(open_locked(package, &option.path, flags).await?)
        }
        BlockFormat::Qcow => open_chain(package, &option.path, flags).await?,
        BlockFormat::Block => {
            let file = open_locked(package, &option.path, flags).await?;
            fvirt::BlockFormat::Block(ClientEnd::new(file.into_channel()))
        }
    };
    Ok(fvirt::BlockSpec { id: option.device_id(), mode: option.mode, format })
}

async fn open_optional(
    package: &fio::DirectoryProxy,
    path: Option<String>,
) -> Result<Option<ClientEnd<fio::FileMarker>>, PackageError> {
    match path {
        Some(path) => Ok(Some(open(package, &path, fio::PERM_READABLE).await?)),
        None => Ok(None),
    }
}

/// Opens a file and makes sure that it is there: an `Open` alone tells of a failure only by closing the channel later.
pub(crate) async fn open(
    package: &fio::DirectoryProxy,
    path: &str,
    flags: fio::Flags,
) -> Result<ClientEnd<fio::FileMarker>, PackageError> {
    let file = open_checked(package, path, flags).await?;
    into_client(file, path)
}

/// Opens a disk, and locks it: alone if it is to be written, with others that read it otherwise. The lock is the open file's, so it is
/// the device's that gets it, for as long as that lives.
pub(crate) async fn open_locked(
    package: &fio::DirectoryProxy,
    path: &str,
    flags: fio::Flags,
) -> Result<ClientEnd<fio::FileMarker>, PackageError> {
    let file = open_checked(package, path, flags).await?;
    let kind = match flags.contains(fio::PERM_WRITABLE) {
        true => fio::AdvisoryLockType::Write,
        false => fio::AdvisoryLockType::Read,
    };
    let request = fio::AdvisoryLockRequest { type_: Some(kind), ..Default::default() };
    match file.advisory_lock(&request).await.map_err(|error| closed(path, error))? {
        Ok(()) => {}
        Err(raw) => match zx::Status::from_raw(raw) {
            zx::Status::BAD_STATE | zx::Status::SHOULD_WAIT => {
                return Err(PackageError::InUse { path: path.to_owned() });
            }
            // A file that nobody can change, as in a package on Fuchsia, has no locks and needs none.
            zx::Status::NOT_SUPPORTED => {}
            status => return Err(PackageError::Open { path: path.to_owned(), status }),
        },
    }
    into_client(file, path)
}

async fn open_checked(
    package: &fio::DirectoryProxy,
    path: &str,
    flags: fio::Flags,
) -> Result<fio::FileProxy, PackageError> {
    let file = open_proxy(package, path, flags)?;
    match file.get_attributes(fio::NodeAttributesQuery::empty()).await {
        Ok(Ok(_)) => Ok(file),
        Ok(Err(raw)) => {
            let status = zx::Status::from_raw(raw);
            Err(PackageError::Open { path: path.to_owned(), status })
        }
        Err(error) => Err(closed(path, error)),
    }
}

fn into_client(
    file: fio::FileProxy,
    path: &str,
) -> Result<ClientEnd<fio::FileMarker>, PackageError> {
    let channel = file
        .into_channel()
        .map_err(|_| PackageError::Open { path: path.to_owned(), status: zx::Status::BAD_STATE })?;
    Ok(ClientEnd::new(channel.into_zx_channel()))
}

pub(crate) fn open_proxy(
    package: &fio::DirectoryProxy,
    path: &str,
    flags: fio::Flags,
) -> Result<fio::FileProxy, PackageError> {
    let (file, server) = create_proxy::<fio::FileMarker>();
    let flags = flags | fio::Flags::PROTOCOL_FILE;
    package
        .open(path, flags, &fio::Options::default(), server.into_channel())
        .map_err(|error| closed(path, error))?;
    Ok(file)
}

/// A channel that the file server closed says why by its epitaph.
pub(crate) fn closed(path: &str, error: fidl::Error) -> PackageError {
    let path = path.to_owned();
    match error {
        fidl::Error::ClientChannelClosed { status, .. } => PackageError::Open { path, status },
        source => PackageError::Fidl { path, source },
    }
}

async fn read_text(package: &fio::DirectoryProxy, path: &str) -> Result<String, PackageError> {
    let file = open_proxy(package, path, fio::PERM_READABLE)?;
    let mut bytes = Vec::new();
    loop {
        let chunk =
            file.read(fio::MAX_TRANSFER_SIZE).await.map_err(|error| closed(path, error))?.map_err(
                |raw| PackageError::Open {
                    path: path.to_owned(),
                    status: zx::Status::from_raw(raw),
                },
            )?;
        if chunk.is_empty() {
            return String::from_utf8(bytes).map_err(|_| PackageError::NotText);
        }
        bytes.extend_from_slice(&chunk);
        if bytes.len() > MAX_CONFIG_BYTES {
            return Err(PackageError::TooLarge);
        }
    }
}
