//! A device as a component: what the VMM hands over, and the requests that all kinds of devices share.

use std::future::Future;
use std::sync::Arc;

use fidl::endpoints::{DiscoverableProtocolMarker, RequestStream};
use fidl_fuchsia_virtualization_hardware as hardware;
use fuchsia_component::server::ServiceFs;
use fuchsia_zircon as zx;
use futures::StreamExt as _;
use futures::future::{Either, ready, select};

use crate::memory::GuestMemory;
use crate::worker::{Device, Worker};

/// Why a device cannot start: the VMM's or the host's fault.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Guest memory cannot be mapped.
    #[error("Guest memory cannot be mapped: {0}")]
    Memory(zx::Status),
    /// The bell trap cannot be set.
    #[error("The bell cannot be installed: {0}")]
    Bell(zx::Status),
    /// No thread for the queues.
    #[error("A worker thread cannot be started")]
    Thread(#[from] std::io::Error),
}

impl StartError {
    /// What to tell the VMM.
    pub fn status(&self) -> zx::Status {
        match self {
            Self::Memory(status) | Self::Bell(status) => *status,
            Self::Thread(_) => zx::Status::NO_RESOURCES,
        }
    }
}

/// What the VMM hands a device with `Start`, checked and mapped.
#[derive(Debug)]
pub struct Attachment {
    memory: Arc<GuestMemory>,
    trap: hardware::Trap,
    guest: Option<zx::Guest>,
    event: zx::Event,
}

impl Attachment {
    /// Maps guest memory.
    ///
    /// # Errors
    /// [`StartError::Memory`].
    pub fn new(info: hardware::StartInfo) -> Result<Self, StartError> {
        let memory = Arc::new(GuestMemory::map(info.vmo).map_err(StartError::Memory)?);
        Ok(Self { memory, trap: info.trap, guest: info.guest, event: info.event })
    }

    /// The guest's memory.
    pub fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    /// Starts a worker (see [`Worker::start`]) that hears the guest's bells, and lets go of the guest.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn start<D: Device>(
        self,
        devices: Vec<D>,
        queue_count: u16,
    ) -> Result<Worker<D>, StartError> {
        let worker = Worker::start(devices, queue_count, self.memory, self.trap.addr, self.event)?;
        if let Some(guest) = self.guest {
            let size = usize::try_from(self.trap.size)
                .map_err(|_| StartError::Bell(zx::Status::OUT_OF_RANGE))?;
            guest
                .set_trap_bell(self.trap.addr, size, worker.port(), Worker::<D>::BELL_KEY)
                .map_err(StartError::Bell)?;
        }
        Ok(worker)
    }
}

/// Answers a request of a device protocol: those of `VirtioDevice` by the worker, the others by the given arms.
///
/// Evaluates to a `Result<(), fidl::Error>`.
#[macro_export]
macro_rules! answer {
    ($worker:expr, $request:expr, $Request:ident, { $($pattern:pat => $answer:expr,)* }) => {
        match $request {
            $Request::ConfigureQueue { queue, size, desc, avail, used, responder } => {
                $worker.configure(queue, $crate::QueueConfig { size, desc, avail, used });
                responder.send()
            }
            $Request::NotifyQueue { queue, .. } => {
                $worker.notify(queue);
                Ok(())
            }
            $Request::Ready { negotiated_features, responder } => {
                $worker.ready($crate::Features::from_bits_retain(negotiated_features));
                responder.send()
            }
            $Request::Reset { responder } => {
                $worker.reset();
                responder.send()
            }
            $($pattern => $answer,)*
        }
    };
}

/// Publishes protocol `S` in the component's outgoing directory and serves the first client with `serve`; a component
/// instance is one device. Returns what `serve` does, or none if the directory is closed before there is a client.
///
/// # Errors
/// When the component was started without an outgoing directory.
pub async fn serve_one<S, Served>(
    serve: impl FnOnce(S) -> Served,
) -> Result<Option<Served::Output>, anyhow::Error>
where
    S: RequestStream<Protocol: DiscoverableProtocolMarker> + 'static,
    Served: Future,
{
    let mut fs = ServiceFs::new_local();
    fs.dir("svc").add_fidl_service(|stream: S| stream);
    fs.take_and_serve_directory_handle()?;
    let Some(stream) = fs.next().await else { return Ok(None) };
    // Further clients are turned away, by closing their channels.
    let directory = fs.for_each(|_| ready(()));
    let served = std::pin::pin!(serve(stream));
    Ok(Some(match select(served, directory).await {
        Either::Left((output, _)) => output,
        Either::Right(((), served)) => served.await,
    }))
}
