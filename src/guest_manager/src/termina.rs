//! What Termina's manager adds: the guest's own disk in the storage that its namespace has, and `LinuxManager`, which
//! for now says what it lacks: the services that Termina's container needs on the host (`maitred`, `tremplin`, `garcon`
//! and the others, gRPC over vsock) are not implemented, so the virtual machine boots and no container is started in it.

use crate::manager::Entrance;
use fidl::endpoints::{ClientEnd, Proxy as _, create_proxy};
use fidl_fuchsia_io as fio;
use fidl_fuchsia_virtualization as fvirt;
use fuchsia_zircon as zx;
use futures::TryStreamExt as _;
use tracing::{error, warn};

/// The one environment that there is, as `LinuxManager` calls it.
const LABEL: &str = "termina";
/// The guest's own disk, in the storage.
const STATEFUL_PATH: &str = "stateful.img";
/// What the guest sees the disk called.
const STATEFUL_ID: &str = "stateful";
/// The disk's size in bytes. The file is sparse, so only what is used counts.
const STATEFUL_SIZE: u64 = 40 << 30;

const LACKING: &str = "Termina's container needs host services (maitred, tremplin, garcon: gRPC over vsock) that this \
                       manager does not have; GuestManager.Launch boots the virtual machine without the container";

/// Why the guest's own disk cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StorageError {
    #[error("the storage for {STATEFUL_PATH} does not answer: {0}")]
    Fidl(fidl::Error),
    #[error("{STATEFUL_PATH}, the guest's own disk, cannot be {action}: {status}")]
    Refused { action: &'static str, status: zx::Status },
}

impl StorageError {
    /// Whether somebody else has the disk.
    pub(crate) fn is_in_use(&self) -> bool {
        matches!(
            self,
            Self::Refused { status: zx::Status::BAD_STATE | zx::Status::SHOULD_WAIT, .. }
        )
    }
}

/// The storage of a manager that has some.
pub(crate) struct Storage(fio::DirectoryProxy);

impl Storage {
    pub(crate) fn new(directory: fio::DirectoryProxy) -> Self {
        Self(directory)
    }

    /// What the guest gets beside its package and what its user asks for.
    pub(crate) async fn additions(&self) -> Result<fvirt::GuestConfig, StorageError> {
        let file = self.open_stateful().await?;
        let stateful = fvirt::BlockSpec {
            id: STATEFUL_ID.to_owned(),
            mode: fvirt::BlockMode::ReadWrite,
            format: fvirt::BlockFormat::File(file),
        };
        Ok(fvirt::GuestConfig {
            virtio_gpu: Some(false),
            block_devices: Some(vec![stateful]),
            ..Default::default()
        })
    }

    /// The disk, made where it is missing, extended where it is short, and locked, since two guests would destroy it.
    async fn open_stateful(&self) -> Result<ClientEnd<fio::FileMarker>, StorageError> {
        let (file, server) = create_proxy::<fio::FileMarker>();
        let flags = fio::PERM_READABLE
            | fio::PERM_WRITABLE
            | fio::Flags::PROTOCOL_FILE
            | fio::Flags::FLAG_MAYBE_CREATE;
        self.0
            .open(STATEFUL_PATH, flags, &fio::Options::default(), server.into_channel())
            .map_err(StorageError::Fidl)?;
        let attributes = file.get_attributes(fio::NodeAttributesQuery::CONTENT_SIZE).await;
        let (_, attributes) = answer("opened", attributes)?;
        let request = fio::AdvisoryLockRequest {
            type_: Some(fio::AdvisoryLockType::Write),
            ..Default::default()
        };
        match answer("locked", file.advisory_lock(&request).await) {
            // A file system without locks has one user.
            Ok(()) | Err(StorageError::Refused { status: zx::Status::NOT_SUPPORTED, .. }) => {}
            Err(error) => return Err(error),
        }
        if attributes.content_size.is_none_or(|size| size < STATEFUL_SIZE) {
            answer("extended", file.resize(STATEFUL_SIZE).await)?;
        }
        let channel = file.into_channel().map_err(|_| StorageError::Refused {
            action: "handed over",
            status: zx::Status::BAD_STATE,
        })?;
        Ok(ClientEnd::new(channel.into_zx_channel()))
    }
}

/// An answer of the file server, or why there is none.
fn answer<T>(
    action: &'static str,
    result: Result<Result<T, i32>, fidl::Error>,
) -> Result<T, StorageError> {
    match result {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(raw)) => Err(StorageError::Refused { action, status: zx::Status::from_raw(raw) }),
        // A channel that the file server closed says why by its epitaph.
        Err(fidl::Error::ClientChannelClosed { status, .. }) => {
            Err(StorageError::Refused { action, status })
        }
        Err(error) => Err(StorageError::Fidl(error)),
    }
}

/// Serves a connection to `LinuxManager` until the client closes it or breaks the protocol.
pub(crate) async fn serve(entrance: Entrance, mut stream: fvirt::LinuxManagerRequestStream) {
    loop {
        match stream.try_next().await {
            Ok(Some(request)) => entrance.linux(request),
            Ok(None) => return,
            Err(e) => {
                warn!("A client of the Linux manager broke the protocol: {e}");
                return;
            }
        }
    }
}

/// Answers a request. A client that is gone does not want the answer.
pub(crate) fn handle(request: fvirt::LinuxManagerRequest, guest_is_started: bool) {
    match request {
        fvirt::LinuxManagerRequest::StartAndGetLinuxGuestInfo { label, responder } => {
            let status = if label == LABEL {
                error!("{LACKING}");
                zx::Status::NOT_SUPPORTED
            } else {
                zx::Status::UNAVAILABLE
            };
            drop(responder.send(Err(status.into_raw())));
        }
        fvirt::LinuxManagerRequest::WipeData { responder } => {
            let status = match guest_is_started {
                true => zx::Status::BAD_STATE,
                false => zx::Status::NOT_SUPPORTED,
            };
            drop(responder.send(Err(status.into_raw())));
        }
        fvirt::LinuxManagerRequest::GracefulShutdown { .. } => {
            error!("The guest cannot be asked to shut down: {LACKING}");
        }
    }
}
