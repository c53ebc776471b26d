//! The guest manager: one actor that owns the guest's state. Everything that happens reaches it as an event, so no two
//! things happen at once and nothing that takes long keeps a caller of `GetInfo` waiting.

use crate::environment::Environment;
use crate::merge::{self, HostResources};
use crate::package::PackageError;
use crate::state::{Idle, State};
use crate::termina::{self, StorageError};
use crate::{memory_pressure, package, problems};
use fidl::endpoints::{Proxy as _, ServerEnd};
use fidl_fuchsia_io as fio;
use fidl_fuchsia_memorypressure::Level;
use fidl_fuchsia_virtualization as fvirt;
use fuchsia_async as fasync;
use fuchsia_zircon as zx;
use futures::channel::mpsc::{UnboundedReceiver, UnboundedSender, unbounded};
use futures::{StreamExt as _, TryStreamExt as _};
use std::cell::Cell;
use std::mem;
use std::rc::Rc;
use tracing::{error, info, warn};

/// How long the devices of a guest that has ended may take to let go of its disks.
const LAST_BREATH: zx::Duration = zx::Duration::from_seconds(1);

/// How long a VMM without a guest is kept for the next launch. With it goes the last reason for the component manager to stay.
const VMM_KEPT: zx::Duration = zx::Duration::from_seconds(5);

/// What happens to the manager.
#[derive(Debug)]
enum Event {
    /// A caller asks for something.
    Request(Box<fvirt::GuestManagerRequest>),
    /// A caller asks for something of Termina's.
    Linux(Box<fvirt::LinuxManagerRequest>),
    /// The VMM answered `Create`.
    Created { connection: u64, result: Result<(), fvirt::GuestError> },
    /// The VMM answered `Run`.
    Ended { connection: u64, error: Option<fvirt::GuestError> },
    /// The VMM went away.
    VmmTerminated { connection: u64 },
    /// The VMM has had no guest for a while.
    VmmUnused { connection: u64 },
}

/// A connection to a VMM, numbered so that news of an earlier one is told from this one's.
struct Vmm {
    connection: u64,
    lifecycle: fvirt::GuestLifecycleProxy,
    /// Waits for the VMM's end. The connection is gone only when this is, too.
    _watch: fasync::Task<()>,
}

/// The component's state.
pub(crate) struct GuestManager<E> {
    environment: Rc<E>,
    package: fio::DirectoryProxy,
    host: HostResources,
    storage: Option<termina::Storage>,
    state: State<fvirt::GuestManagerForceShutdownResponder>,
    vmm: Option<Vmm>,
    /// Tells when the VMM has been without a guest for long.
    unused: Option<fasync::Task<()>>,
    connections: u64,
    launching: Option<fvirt::GuestManagerLaunchResponder>,
    pressure: Option<fasync::Task<()>>,
    level: Rc<Cell<Option<Level>>>,
    sender: UnboundedSender<Event>,
    events: UnboundedReceiver<Event>,
}

/// Brings one client's requests to the manager.
#[derive(Clone)]
pub(crate) struct Entrance(UnboundedSender<Event>);

impl Entrance {
    /// Passes a request of Termina's on.
    pub(crate) fn linux(&self, request: fvirt::LinuxManagerRequest) {
        // Without a manager the request is dropped, which closes its channel.
        let _manager_gone = self.0.unbounded_send(Event::Linux(Box::new(request)));
    }

    /// Serves a connection until the client closes it or breaks the protocol.
    pub(crate) async fn serve(self, mut stream: fvirt::GuestManagerRequestStream) {
        loop {
            match stream.try_next().await {
                Ok(Some(request)) => {
                    if self.0.unbounded_send(Event::Request(Box::new(request))).is_err() {
                        return;
                    }
                }
                Ok(None) => return,
                Err(e) => {
                    warn!("A client of the guest manager broke the protocol: {e}");
                    return;
                }
            }
        }
    }
}

impl<E: Environment + 'static> GuestManager<E> {
    /// A manager with no guest. With a storage it is Termina's.
    pub(crate) fn new(
        environment: E,
        package: fio::DirectoryProxy,
        host: HostResources,
        storage: Option<termina::Storage>,
    ) -> Self {
        let (sender, events) = unbounded();
        Self {
            environment: Rc::new(environment),
            package,
            host,
            storage,
            state: State::Idle(Idle::NotStarted),
            vmm: None,
            unused: None,
            connections: 0,
            launching: None,
            pressure: None,
            level: Rc::default(),
            sender,
            events,
        }
    }

    /// Where requests come in.
    pub(crate) fn entrance(&self) -> Entrance {
        Entrance(self.sender.clone())
    }

    /// Handles events for as long as the component lives.
    pub(crate) async fn run(mut self) {
        while let Some(event) = self.events.next().await {
            match event {
                Event::Request(request) => self.request(*request).await,
                Event::Linux(request) => termina::handle(*request, self.state.is_started()),
                Event::Created { connection, result } if self.is_current(connection) => {
                    self.created(connection, result);
                }
                Event::Ended { connection, error } if self.is_current(connection) => {
                    self.ended(error);
                }
                Event::VmmTerminated { connection } if self.is_current(connection) => {
                    self.vmm_terminated();
                }
                Event::VmmUnused { connection } if self.is_current(connection) => {
                    if matches!(self.state, State::Idle(_)) {
                        // Closing the connection ends the VMM.
                        self.vmm = None;
                    }
                }
                Event::Created { .. }
                | Event::Ended { .. }
                | Event::VmmTerminated { .. }
                | Event::VmmUnused { .. } => {}
            }
        }
    }

    fn is_current(&self, connection: u64) -> bool {
        self.vmm.as_ref().is_some_and(|vmm| vmm.connection == connection)
    }

    /// Moves the state out, to be put back by the transition that is made of it.
    fn take_state(&mut self) -> State<fvirt::GuestManagerForceShutdownResponder> {
        mem::replace(&mut self.state, State::Idle(Idle::NotStarted))
    }

    async fn request(&mut self, request: fvirt::GuestManagerRequest) {
        // A client that is gone does not want the answer: nothing to do about a failure to send it.
        match request {
            fvirt::GuestManagerRequest::Launch { guest_config, controller, responder } => {
                match self.launch(guest_config, controller).await {
                    Ok(()) => self.launching = Some(responder),
                    Err(error) => drop(responder.send(Err(error))),
                }
            }
            fvirt::GuestManagerRequest::ForceShutdown { responder } => {
                self.force_shutdown(responder);
            }
            fvirt::GuestManagerRequest::Connect { controller, responder } => {
                drop(responder.send(self.connect(controller)));
            }
            fvirt::GuestManagerRequest::GetInfo { responder } => self.get_info(responder),
        }
    }

    async fn launch(
        &mut self,
        user: fvirt::GuestConfig,
        controller: ServerEnd<fvirt::GuestMarker>,
    ) -> Result<(), fvirt::GuestManagerError> {
        self.unused = None;
        let idle = match self.take_state() {
            State::Idle(idle) => idle,
            started => {
                self.state = started;
                return Err(fvirt::GuestManagerError::AlreadyRunning);
            }
        };
        match self.prepare(user).await {
            Ok((config, connection, lifecycle)) => {
                let descriptor = merge::describe(&config);
                self.state = State::Starting(idle.launch(zx::Time::get_monotonic(), descriptor));
                self.create(connection, &lifecycle, config, controller);
                Ok(())
            }
            Err(error) => {
                self.state = State::Idle(idle);
                self.keep_vmm_for_a_while();
                Err(error)
            }
        }
    }

    /// All of a launch that can fail before the guest counts as starting.
    async fn prepare(
        &mut self,
        user: fvirt::GuestConfig,
    ) -> Result<(fvirt::GuestConfig, u64, fvirt::GuestLifecycleProxy), fvirt::GuestManagerError>
    {
        let base = self.load_package().await.map_err(|e| {
            error!("{e}");
            match e {
                PackageError::InUse { .. } => fvirt::GuestManagerError::StartFailure,
                _ => fvirt::GuestManagerError::BadConfig,
            }
        })?;
        let base = match &self.storage {
            None => base,
            Some(storage) => merge::merge(base, self.load_storage(storage).await?),
        };
        let config = merge::finish(merge::merge(base, user), self.host).map_err(|e| {
            error!("The guest's configuration cannot be used: {e}");
            fvirt::GuestManagerError::BadConfig
        })?;
        let (connection, lifecycle) = self.lifecycle().map_err(|e| {
            error!("The VMM cannot be reached: {e:#}");
            fvirt::GuestManagerError::StartFailure
        })?;
        Ok((config, connection, lifecycle))
    }

    /// The package's configuration. Where a guest ran before, its devices' last breath may still hold the disks: they have a moment.
    async fn load_package(&self) -> Result<fvirt::GuestConfig, PackageError> {
        let in_use = |error: &PackageError| matches!(error, PackageError::InUse { .. });
        self.patiently(in_use, async || package::load(&self.package).await).await
    }

    async fn patiently<T, Error>(
        &self,
        in_use: impl Fn(&Error) -> bool,
        open: impl AsyncFn() -> Result<T, Error>,
    ) -> Result<T, Error> {
        let patience = if self.connections > 0 { LAST_BREATH } else { zx::Duration::from_nanos(0) };
        let deadline = zx::Time::after(patience);
        loop {
            match open().await {
                Err(error) if in_use(&error) && zx::Time::get_monotonic() < deadline => {
                    fasync::Timer::new(zx::Time::after(LAST_BREATH / 100)).await;
                }
                result => return result,
            }
        }
    }

    /// What a guest with storage has beside its package.
    async fn load_storage(
        &self,
        storage: &termina::Storage,
    ) -> Result<fvirt::GuestConfig, fvirt::GuestManagerError> {
        let additions = self.patiently(StorageError::is_in_use, async || storage.additions().await);
        additions.await.map_err(|e| {
            error!("There is no storage for the guest: {e}");
            fvirt::GuestManagerError::NoStorage
        })
    }

    /// The connection to the VMM, made if there is none.
    fn lifecycle(&mut self) -> anyhow::Result<(u64, fvirt::GuestLifecycleProxy)> {
        if let Some(vmm) = self.vmm.as_ref().filter(|vmm| !vmm.lifecycle.is_closed()) {
            return Ok((vmm.connection, vmm.lifecycle.clone()));
        }
        let lifecycle = self.environment.lifecycle()?;
        self.connections += 1;
        let connection = self.connections;
        let (watched, sender) = (lifecycle.clone(), self.sender.clone());
        let watch = fasync::Task::local(async move {
            // Closed or unwaitable: either way nothing more comes from this VMM.
            let _closed = watched.on_closed().await;
            let _manager_gone = sender.unbounded_send(Event::VmmTerminated { connection });
        });
        self.vmm = Some(Vmm { connection, lifecycle: lifecycle.clone(), _watch: watch });
        Ok((connection, lifecycle))
    }

    /// Sends `Create` and, right behind it, `Bind`, so that the caller's channel is served from the first moment.
    fn create(
        &self,
        connection: u64,
        lifecycle: &fvirt::GuestLifecycleProxy,
        config: fvirt::GuestConfig,
        controller: ServerEnd<fvirt::GuestMarker>,
    ) {
        let created = lifecycle.create(config);
        let bound = lifecycle.bind(controller);
        let sender = self.sender.clone();
        fasync::Task::local(async move {
            let event = match (created.await, bound) {
                (Ok(result), Ok(())) => Event::Created { connection, result },
                (Err(e), _) | (_, Err(e)) => {
                    error!("The VMM did not answer Create: {e}");
                    Event::VmmTerminated { connection }
                }
            };
            let _manager_gone = sender.unbounded_send(event);
        })
        .detach();
    }

    fn created(&mut self, connection: u64, result: Result<(), fvirt::GuestError>) {
        let now = zx::Time::get_monotonic();
        let launching = self.launching.take();
        let mut reply = Ok(());
        self.state = match (self.take_state(), result) {
            (State::Starting(starting), Ok(())) => {
                self.run_guest(connection);
                self.watch_memory_pressure(starting_has_balloon(&starting));
                State::Running(starting.created())
            }
            (State::Starting(starting), Err(error)) => {
                error!("The VMM could not create the guest: {error:?}");
                reply = Err(fvirt::GuestManagerError::StartFailure);
                State::Idle(starting.failed(now, error))
            }
            // Told to stop while it was being created: what Run answers says how that went.
            (State::Stopping(stopping), Ok(())) => {
                reply = Err(fvirt::GuestManagerError::StartFailure);
                self.run_guest(connection);
                State::Stopping(stopping)
            }
            (State::Stopping(stopping), Err(error)) => {
                reply = Err(fvirt::GuestManagerError::StartFailure);
                let (idle, waiting) = stopping.ended(now, Some(error));
                answer_all(waiting);
                State::Idle(idle)
            }
            (state @ (State::Idle(_) | State::Running(_)), _) => state,
        };
        if matches!(self.state, State::Idle(_)) {
            self.keep_vmm_for_a_while();
        }
        if let Some(responder) = launching {
            drop(responder.send(reply));
        }
    }

    /// Sends `Run`, which the VMM answers when the guest has stopped.
    fn run_guest(&self, connection: u64) {
        let Some(vmm) = &self.vmm else { return };
        let ended = vmm.lifecycle.run();
        let sender = self.sender.clone();
        fasync::Task::local(async move {
            let event = match ended.await {
                Ok(result) => Event::Ended { connection, error: result.err() },
                Err(_) => Event::VmmTerminated { connection },
            };
            let _manager_gone = sender.unbounded_send(event);
        })
        .detach();
    }

    fn ended(&mut self, error: Option<fvirt::GuestError>) {
        match error {
            None => info!("The guest has stopped"),
            Some(error) => warn!("The guest has stopped: {error:?}"),
        }
        let now = zx::Time::get_monotonic();
        self.pressure = None;
        self.state = match self.take_state() {
            State::Running(running) => State::Idle(running.ended(now, error)),
            State::Stopping(stopping) => {
                let (idle, waiting) = stopping.ended(now, error);
                answer_all(waiting);
                State::Idle(idle)
            }
            state @ (State::Idle(_) | State::Starting(_)) => state,
        };
        self.keep_vmm_for_a_while();
    }

    /// Lets go of the VMM after a while, unless there is a launch before.
    fn keep_vmm_for_a_while(&mut self) {
        let Some(connection) = self.vmm.as_ref().map(|vmm| vmm.connection) else { return };
        let sender = self.sender.clone();
        self.unused = Some(fasync::Task::local(async move {
            fasync::Timer::new(zx::Time::after(VMM_KEPT)).await;
            let _manager_gone = sender.unbounded_send(Event::VmmUnused { connection });
        }));
    }

    fn vmm_terminated(&mut self) {
        self.vmm = None;
        self.pressure = None;
        self.state = match self.take_state() {
            State::Idle(idle) => State::Idle(idle),
            State::Starting(starting) => State::Idle(starting.vmm_terminated()),
            State::Running(running) => State::Idle(running.vmm_terminated()),
            State::Stopping(stopping) => {
                let (idle, waiting) = stopping.vmm_terminated();
                answer_all(waiting);
                State::Idle(idle)
            }
        };
        if self.state.status() == fvirt::GuestStatus::VmmUnexpectedTermination {
            error!("The VMM has terminated unexpectedly");
        }
        if let Some(responder) = self.launching.take() {
            drop(responder.send(Err(fvirt::GuestManagerError::StartFailure)));
        }
    }

    fn force_shutdown(&mut self, responder: fvirt::GuestManagerForceShutdownResponder) {
        self.state = match self.take_state() {
            State::Idle(idle) => {
                drop(responder.send());
                State::Idle(idle)
            }
            State::Starting(starting) => State::Stopping(starting.shutdown(responder)),
            State::Running(running) => State::Stopping(running.shutdown(responder)),
            State::Stopping(stopping) => State::Stopping(stopping.also(responder)),
        };
        if let (State::Stopping(_), Some(vmm)) = (&self.state, &self.vmm) {
            let stopped = vmm.lifecycle.stop();
            // The answer to Run tells of the end, and the channel's closing of anything else.
            fasync::Task::local(async move { drop(stopped.await) }).detach();
        }
    }

    fn connect(
        &self,
        controller: ServerEnd<fvirt::GuestMarker>,
    ) -> Result<(), fvirt::GuestManagerError> {
        match &self.vmm {
            Some(vmm) if self.state.is_started() => {
                vmm.lifecycle.bind(controller).map_err(|_| fvirt::GuestManagerError::NotRunning)
            }
            _ => Err(fvirt::GuestManagerError::NotRunning),
        }
    }

    fn get_info(&self, responder: fvirt::GuestManagerGetInfoResponder) {
        let uptime = self.state.uptime(zx::Time::get_monotonic());
        let mut info = fvirt::GuestInfo {
            guest_status: Some(self.state.status()),
            uptime: uptime.map(zx::Duration::into_nanos),
            guest_descriptor: self.state.descriptor().cloned(),
            stop_error: self.state.stop_error(),
            ..Default::default()
        };
        let environment = Rc::clone(&self.environment);
        let level = self.level.get();
        fasync::Task::local(async move {
            let descriptor = info.guest_descriptor.as_ref();
            info.detected_problems =
                Some(problems::detect(environment.as_ref(), descriptor, level).await);
            drop(responder.send(&info));
        })
        .detach();
    }

    fn watch_memory_pressure(&mut self, balloon: bool) {
        if !balloon {
            return;
        }
        let environment = Rc::clone(&self.environment);
        let level = Rc::clone(&self.level);
        self.pressure = Some(fasync::Task::local(async move {
            if let Err(e) = memory_pressure::follow(environment.as_ref(), &level).await {
                warn!("The guest's memory will not follow the host's memory pressure: {e:#}");
            }
        }));
    }
}

fn starting_has_balloon(starting: &crate::state::Starting) -> bool {
    starting.descriptor().balloon == Some(true)
}

fn answer_all(waiting: Vec<fvirt::GuestManagerForceShutdownResponder>) {
    for responder in waiting {
        drop(responder.send());
    }
}
