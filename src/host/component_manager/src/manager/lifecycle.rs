//! Starting, stopping and destroying instances.
//!
//! An instance runs from the call of its runner's `Start` until the `ComponentController` channel closes. Whoever uses it in between two
//! runs starts it again; nothing else does.

use super::Manager;
use super::namespace::{self, GivenEntry};
use crate::decl::{Durability, Startup};
use crate::model::{InstanceId, RouteError, RouteSource, TreeError};
use crate::runner::{self, RunnerError};
use fidl::endpoints::{ServerEnd, create_proxy};
use fidl_fuchsia_component as fcomponent;
use fidl_fuchsia_component_runner as fcrunner;
use fidl_fuchsia_io as fio;
use fidl_fuchsia_process as fprocess;
use fuchsia_async::{self as fasync, TimeoutExt};
use fuchsia_zircon::{self as zx, AsHandleRef};
use futures::StreamExt;
use futures::channel::oneshot;
use futures::future::join_all;
use std::rc::Rc;
use vfs::execution_scope::ExecutionScope;

/// How long a component has between Stop and Kill, where its environment does not say.
const STOP_TIMEOUT: zx::Duration = zx::Duration::from_seconds(5);
/// How long a runner has to report the end after Kill. Later than that, the component manager gives it up.
const KILL_TIMEOUT: zx::Duration = zx::Duration::from_seconds(2);

/// Why an instance did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// It is gone or its URL leads nowhere.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// It has no program, so it serves nothing itself.
    #[error("It has no program")]
    NoProgram,
    /// Its runner is not to be found.
    #[error("Its runner: {0}")]
    NoRunner(#[source] RouteError),
    /// Its runner did not take it.
    #[error(transparent)]
    Runner(#[from] RunnerError),
    /// Its namespace cannot be made.
    #[error("Its namespace: {0}")]
    Namespace(String),
    /// Whoever started it gave it a directory where one is already, or around or inside it.
    #[error("It was given {given} beside {present} of its namespace")]
    NamespaceConflict {
        /// The path that was given.
        given: String,
        /// The path in its way.
        present: String,
    },
    /// Its configuration is not complete.
    #[error("Its configuration: {0}")]
    Config(String),
    /// It is being destroyed, or everything is being stopped.
    #[error("It is being stopped for good")]
    Stopping,
    /// A component cannot be started through itself.
    #[error("Its runner is run by itself")]
    Circle,
}

impl StartError {
    /// What a client of `fuchsia.component` is told.
    #[must_use]
    pub fn as_fidl(&self) -> fcomponent::Error {
        match self {
            Self::Tree(error) => error.as_fidl(),
            Self::NoProgram
            | Self::Runner(_)
            | Self::Circle
            | Self::NoRunner(_)
            | Self::Namespace(_)
            | Self::Config(_) => fcomponent::Error::InstanceCannotStart,
            Self::NamespaceConflict { .. } => fcomponent::Error::InvalidArguments,
            Self::Stopping => fcomponent::Error::InstanceDied,
        }
    }

    /// The epitaph of a channel that it was started for.
    #[must_use]
    pub fn as_status(&self) -> zx::Status {
        match self {
            Self::Tree(_) | Self::NoProgram | Self::Stopping => zx::Status::NOT_FOUND,
            Self::NoRunner(_)
            | Self::Runner(_)
            | Self::Namespace(_)
            | Self::NamespaceConflict { .. }
            | Self::Config(_)
            | Self::Circle => zx::Status::UNAVAILABLE,
        }
    }
}

impl TreeError {
    /// What a client of `fuchsia.component` is told.
    #[must_use]
    pub fn as_fidl(&self) -> fcomponent::Error {
        match self {
            Self::Destroyed => fcomponent::Error::InstanceDied,
            Self::ChildNotFound { .. } => fcomponent::Error::InstanceNotFound,
            Self::CollectionNotFound { .. } => fcomponent::Error::CollectionNotFound,
            Self::ChildExists { .. } => fcomponent::Error::InstanceAlreadyExists,
            Self::NoDynamicOffers(_) => fcomponent::Error::InvalidArguments,
            Self::Unresolved { .. } => fcomponent::Error::InstanceCannotResolve,
        }
    }
}

/// What an instance is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExecutionState {
    /// Nothing.
    Stopped,
    /// It runs.
    Running,
    /// It was told to stop.
    Stopping,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// OK where it ended by itself or as it was told; else a status, or a value of `fuchsia.component/Error`.
    pub status: zx::Status,
    /// The program's exit code, where the runner knows it.
    pub exit_code: Option<i64>,
}

/// What whoever starts a run gives it beside what its manifest leads to.
#[derive(Default)]
pub(crate) struct Given {
    pub(crate) numbered_handles: Vec<fprocess::HandleInfo>,
    pub(crate) namespace_entries: Vec<GivenEntry>,
}

/// What the manager knows of an instance's runs.
#[derive(Default)]
pub(super) struct Execution {
    run: Option<Run>,
    stopping: bool,
    last: Option<Ended>,
    /// The outgoing directory that this run gave back unserved.
    escrowed: Option<ServerEnd<fio::DirectoryMarker>>,
    /// The dictionary, by token, that this run or an earlier one left for the next.
    dictionary: Option<zx::EventPair>,
    /// The outgoing directory of the next run, with the requests that came since this one was told to stop, or gave its own back.
    next: Option<(fio::DirectoryProxy, Rc<zx::Channel>)>,
    /// Waits for a request in `next`.
    awaiting: Option<fasync::Task<()>>,
    waiters: Vec<oneshot::Sender<Ended>>,
}

struct Run {
    number: u64,
    controller: fcrunner::ComponentControllerProxy,
    outgoing: fio::DirectoryProxy,
    /// What the runner tells of the run; held so that it goes on being served.
    _runtime: fio::DirectoryProxy,
    /// Channels of `fuchsia.component.Binder`, open as long as it runs.
    binders: Vec<zx::Channel>,
    /// The connections to its namespace.
    scope: ExecutionScope,
    /// What watches the controller and opens directories of the namespace; gone with the run.
    _tasks: Vec<fasync::Task<()>>,
}

impl Drop for Run {
    fn drop(&mut self) {
        self.scope.shutdown();
    }
}

/// The outgoing directory of a run that is yet to come, watched while it may be taken.
struct Pending(Rc<zx::Channel>);

impl AsHandleRef for Pending {
    fn as_handle_ref(&self) -> zx::HandleRef<'_> {
        self.0.as_handle_ref()
    }
}

fn pending_outgoing() -> (fio::DirectoryProxy, Rc<zx::Channel>) {
    let (proxy, server) = create_proxy::<fio::DirectoryMarker>();
    (proxy, Rc::new(server.into_channel()))
}

impl Execution {
    pub(super) fn state(&self) -> ExecutionState {
        match (&self.run, self.stopping) {
            (None, _) => ExecutionState::Stopped,
            (Some(_), false) => ExecutionState::Running,
            (Some(_), true) => ExecutionState::Stopping,
        }
    }
}

impl Manager {
    /// What the instance is doing.
    #[must_use]
    pub fn state(&self, id: InstanceId) -> ExecutionState {
        self.executions().get(&id).map_or(ExecutionState::Stopped, Execution::state)
    }

    /// How its last run ended.
    #[must_use]
    pub fn last_end(&self, id: InstanceId) -> Option<Ended> {
        self.executions().get(&id)?.last
    }

    /// Starts the instance unless it runs; its static eager children, too.
    ///
    /// # Errors
    /// [`StartError`]; the reason is also in the log under the instance's moniker.
    pub fn start(&self, id: InstanceId) -> Result<(), StartError> {
        self.start_given(id, Given::default())
    }

    /// As [`Manager::start`], with more for the run that this starts; dropped where it runs already.
    pub(crate) fn start_given(&self, id: InstanceId, given: Given) -> Result<(), StartError> {
        match self.state(id) {
            ExecutionState::Running => return Ok(()),
            ExecutionState::Stopping => {
                self.next_outgoing(id);
                return Ok(());
            }
            ExecutionState::Stopped => {}
        }
        self.start_stopped(id, given).inspect_err(|error| {
            self.logs().error(&self.moniker(id), &format!("Did not start: {error}"));
        })
    }

    fn start_stopped(&self, id: InstanceId, given: Given) -> Result<(), StartError> {
        if self.inner.shutting_down.get() || self.is_destroying(id) {
            return Err(StartError::Stopping);
        }
        let resolved = self.resolve(id)?;
        let Some(program) = &resolved.decl.program else { return Err(StartError::NoProgram) };
        let moniker = self.moniker(id);
        let (outgoing, outgoing_server, dictionary) = {
            let mut executions = self.executions_mut();
            let execution = executions.entry(id).or_default();
            // Its hold on the channel goes first.
            drop(execution.awaiting.take());
            let (proxy, server) = execution.next.take().unwrap_or_else(pending_outgoing);
            let (proxy, server) = match Rc::try_unwrap(server) {
                Ok(channel) => (proxy, ServerEnd::new(channel)),
                Err(_) => create_proxy::<fio::DirectoryMarker>(),
            };
            (proxy, server, execution.dictionary.take())
        };
        let (controller, controller_server) = create_proxy::<fcrunner::ComponentControllerMarker>();
        let number = self.inner.next_run.get();
        self.inner.next_run.set(number + 1);
        let mut tasks = Vec::new();
        let scope = ExecutionScope::new();
        let mut namespace =
            namespace::build(self, id, &scope, &mut tasks).map_err(StartError::Namespace)?;
        namespace::merge(&mut namespace, given.namespace_entries)?;
        let (runtime, runtime_server) = create_proxy::<fio::DirectoryMarker>();
        let info = runner::start_info(
            &resolved,
            namespace,
            outgoing_server,
            runtime_server,
            given.numbered_handles,
            &moniker,
            self.logs(),
        );
        let info = fcrunner::ComponentStartInfo {
            encoded_config: self.encoded_config(id, &resolved)?,
            escrowed_dictionary_handle: dictionary,
            ..info
        };
        // The run is noted before the runner hears of it, so that a runner that is started for it sees it running.
        tasks.push(self.watch(id, number, &controller));
        let run = Run {
            number,
            controller,
            outgoing,
            _runtime: runtime,
            binders: Vec::new(),
            scope,
            _tasks: tasks,
        };
        if let Some(execution) = self.executions_mut().get_mut(&id) {
            execution.stopping = false;
            execution.run = Some(run);
        }
        if let Err(error) =
            self.hand_to_runner(id, program.runner.as_ref(), info, controller_server)
        {
            if let Some(execution) = self.executions_mut().get_mut(&id) {
                execution.run = None;
            }
            return Err(error);
        }
        self.note_change();
        let children = self.tree().children(id);
        for (name, child) in children {
            let eager = name.collection.is_none()
                && self.tree().get(child).is_ok_and(|child| child.startup == Startup::Eager);
            if eager {
                // It has said in the log why it did not start; its parent starts all the same.
                let _logged = self.start(child);
            }
        }
        Ok(())
    }

    fn hand_to_runner(
        &self,
        id: InstanceId,
        name: Option<&crate::name::Name>,
        info: fcrunner::ComponentStartInfo,
        controller: ServerEnd<fcrunner::ComponentControllerMarker>,
    ) -> Result<(), StartError> {
        let Some(name) = name else { return Err(RunnerError::NotNamed.into()) };
        let route = { self.tree().route_runner(id, name) }.map_err(StartError::NoRunner)?;
        match route.source {
            RouteSource::Builtin { name } => {
                let Some(runner) = self.builtins().runner(name.as_str()) else {
                    return Err(RunnerError::NotBuiltin(name).into());
                };
                let resolved = self.resolve(id)?;
                runner.start(&self.moniker(id), &resolved, info, controller);
                Ok(())
            }
            RouteSource::Outgoing { id: provider, path } => {
                if provider == id {
                    return Err(StartError::Circle);
                }
                let (proxy, server) = create_proxy::<fcrunner::ComponentRunnerMarker>();
                self.start(provider)?;
                self.open_outgoing(
                    provider,
                    &path,
                    fio::Flags::PROTOCOL_SERVICE,
                    server.into_channel(),
                )?;
                proxy
                    .start(info, controller)
                    .map_err(|error| RunnerError::Gone(error.to_string()))?;
                Ok(())
            }
            RouteSource::Framework { .. } | RouteSource::Value(_) => {
                Err(RunnerError::NotNamed.into())
            }
        }
    }

    /// Follows a run to its end.
    fn watch(
        &self,
        id: InstanceId,
        number: u64,
        controller: &fcrunner::ComponentControllerProxy,
    ) -> fasync::Task<()> {
        let mut events = controller.take_event_stream();
        let manager = self.downgrade();
        fasync::Task::local(async move {
            let mut said: Option<Ended> = None;
            let mut status = zx::Status::PEER_CLOSED;
            while let Some(event) = events.next().await {
                match event {
                    Ok(fcrunner::ComponentControllerEvent::OnStop { payload }) => {
                        let status =
                            payload.termination_status.map_or(zx::Status::OK, zx::Status::from_raw);
                        said = Some(Ended { status, exit_code: payload.exit_code });
                    }
                    Ok(fcrunner::ComponentControllerEvent::OnEscrow { payload }) => {
                        let Some(manager) = manager.upgrade() else { return };
                        if let Some(execution) = manager.executions_mut().get_mut(&id) {
                            execution.escrowed = payload.outgoing_dir.or(execution.escrowed.take());
                            execution.dictionary =
                                payload.escrowed_dictionary_handle.or(execution.dictionary.take());
                        }
                    }
                    Ok(_) => {}
                    Err(fidl::Error::ClientChannelClosed { status: epitaph, .. }) => {
                        status = epitaph;
                        break;
                    }
                    Err(error) => {
                        tracing::warn!(%error, "A runner broke the protocol of ComponentController");
                        status = zx::Status::IO_INVALID;
                        break;
                    }
                }
            }
            let Some(manager) = manager.upgrade() else { return };
            let ended = said.unwrap_or(Ended { status, exit_code: None });
            // This task is part of the run that ends here, and must not drop itself.
            fasync::Task::local(async move { manager.ended(id, number, ended) }).detach();
        })
    }

    fn ended(&self, id: InstanceId, number: u64, ended: Ended) {
        let (run, waiters, restart) = {
            let mut executions = self.executions_mut();
            let Some(execution) = executions.get_mut(&id) else { return };
            if execution.run.as_ref().is_none_or(|run| run.number != number) {
                return;
            }
            execution.stopping = false;
            execution.last = Some(ended);
            let restart = execution.next.is_some();
            let run = execution.run.take();
            if let (false, Some(run), Some(escrowed)) = (restart, &run, execution.escrowed.take()) {
                execution.next =
                    Some((Clone::clone(&run.outgoing), Rc::new(escrowed.into_channel())));
            }
            (run, std::mem::take(&mut execution.waiters), restart)
        };
        drop(run);
        let moniker = self.moniker(id);
        if ended.status != zx::Status::OK {
            self.logs().note(&moniker, &format!("Ended with {}", describe(ended.status)));
        }
        for waiter in waiters {
            let _gone = waiter.send(ended);
        }
        self.note_change();
        // What a component made at run time does not outlive its run.
        let children = self.tree().children(id);
        for (name, child) in children {
            if name.collection.is_some() {
                self.destroy_in_background(child);
            }
        }
        let durability = self.tree().get(id).ok().and_then(|instance| instance.durability);
        if durability == Some(Durability::SingleRun) {
            self.destroy_in_background(id);
        } else if restart {
            let _logged = self.start(id);
        } else {
            self.await_escrow(id);
        }
    }

    /// Starts the instance again when somebody writes to an outgoing directory that it left behind.
    fn await_escrow(&self, id: InstanceId) {
        let mut executions = self.executions_mut();
        let Some(execution) = executions.get_mut(&id) else { return };
        let Some((_, server)) = &execution.next else { return };
        let (manager, server) = (self.downgrade(), Pending(Rc::clone(server)));
        execution.awaiting = Some(fasync::Task::local(async move {
            let signals = zx::Signals::CHANNEL_READABLE | zx::Signals::CHANNEL_PEER_CLOSED;
            let signalled = fasync::OnSignals::new(server, signals).await;
            if signalled.is_ok_and(|seen| seen.contains(zx::Signals::CHANNEL_READABLE)) {
                // Starting drops this task, so another does it.
                fasync::Task::local(async move {
                    if let Some(manager) =
                        manager.upgrade().filter(|manager| manager.tree().get(id).is_ok())
                    {
                        let _logged = manager.start(id);
                    }
                })
                .detach();
            }
        }));
    }

    pub(super) fn hold_binder(&self, id: InstanceId, channel: zx::Channel) {
        if let Some(run) =
            self.executions_mut().get_mut(&id).and_then(|execution| execution.run.as_mut())
        {
            run.binders.push(channel);
        }
    }

    /// The outgoing directory of the run, or of the next one where this one is ending.
    pub(super) fn outgoing(&self, id: InstanceId) -> Option<fio::DirectoryProxy> {
        match self.state(id) {
            ExecutionState::Stopped => None,
            ExecutionState::Running => {
                self.executions().get(&id)?.run.as_ref().map(|run| Clone::clone(&run.outgoing))
            }
            ExecutionState::Stopping => Some(self.next_outgoing(id)),
        }
    }

    fn next_outgoing(&self, id: InstanceId) -> fio::DirectoryProxy {
        let mut executions = self.executions_mut();
        let execution = executions.entry(id).or_default();
        Clone::clone(&execution.next.get_or_insert_with(pending_outgoing).0)
    }

    /// Ends when the instance's present run does; at once where there is none.
    pub fn on_stopped(&self, id: InstanceId) -> Option<oneshot::Receiver<Ended>> {
        let mut executions = self.executions_mut();
        let execution = executions.get_mut(&id).filter(|execution| execution.run.is_some())?;
        let (sender, receiver) = oneshot::channel();
        execution.waiters.push(sender);
        Some(receiver)
    }

    /// Stops the instance's run: Stop, then Kill after the time-out of its environment, then without its runner.
    pub async fn stop(&self, id: InstanceId) {
        let Some(stopped) = self.on_stopped(id) else { return };
        let (number, controller) = {
            let mut executions = self.executions_mut();
            let Some(execution) = executions.get_mut(&id) else { return };
            let Some(run) = &execution.run else { return };
            let (number, controller) = (run.number, run.controller.clone());
            execution.stopping = true;
            (number, controller)
        };
        // A runner that is gone closes the channel, which ends the run.
        let _gone = controller.stop();
        let configured = self.tree().stop_timeout_ms(id).ok().flatten();
        let patience =
            configured.map_or(STOP_TIMEOUT, |ms| zx::Duration::from_millis(i64::from(ms)));
        let stopped = stopped.map_err_to_none();
        futures::pin_mut!(stopped);
        if (&mut stopped).on_timeout(fasync::Time::after(patience), || None).await.is_some() {
            return;
        }
        let moniker = self.moniker(id);
        self.logs().note(&moniker, "Did not stop in time and is killed");
        let _gone = controller.kill();
        if stopped.on_timeout(fasync::Time::after(KILL_TIMEOUT), || None).await.is_none() {
            self.logs().error(&moniker, "Its runner did not report the end");
            self.ended(id, number, Ended { status: zx::Status::TIMED_OUT, exit_code: None });
        }
    }

    /// Stops the instance and all below it, those below first.
    pub async fn stop_tree(&self, id: InstanceId) {
        let mut levels: Vec<Vec<InstanceId>> = Vec::new();
        let mut level = vec![id];
        while !level.is_empty() {
            let below = level
                .iter()
                .flat_map(|id| self.tree().children(*id))
                .map(|(_, child)| child)
                .collect();
            levels.push(std::mem::replace(&mut level, below));
        }
        for level in levels.into_iter().rev() {
            join_all(level.into_iter().map(|id| self.stop(id))).await;
        }
    }

    fn is_destroying(&self, id: InstanceId) -> bool {
        let destroying = self.inner.destroying.borrow();
        let tree = self.inner.tree.borrow();
        let mut at = Some(id);
        while let Some(id) = at {
            if destroying.contains_key(&id) {
                return true;
            }
            at = tree.get(id).ok().and_then(|instance| instance.parent);
        }
        false
    }

    fn destroy_in_background(&self, id: InstanceId) {
        let manager = self.clone();
        fasync::Task::local(async move { manager.destroy(id).await }).detach();
    }

    /// Stops the instance and all below it and takes them out of the tree, with their storage.
    pub async fn destroy(&self, id: InstanceId) {
        let under_way = self.inner.destroying.borrow_mut().get_mut(&id).map(|waiters| {
            let (sender, receiver) = oneshot::channel();
            waiters.push(sender);
            receiver
        });
        if let Some(receiver) = under_way {
            // Cancelled means that the manager is gone, and the instance with it.
            let _result = receiver.await;
            return;
        }
        if self.tree().get(id).is_err() {
            return;
        }
        self.inner.destroying.borrow_mut().insert(id, Vec::new());
        self.stop_tree(id).await;
        self.delete_storage(id);
        let gone = self.tree().subtree(id);
        self.tree().remove(id);
        for id in gone {
            self.executions_mut().remove(&id);
            if let Some(scope) = self.inner.exposed.borrow_mut().remove(&id) {
                scope.shutdown();
            }
        }
        let waiters = self.inner.destroying.borrow_mut().remove(&id).unwrap_or_default();
        for waiter in waiters {
            let _gone = waiter.send(());
        }
        self.note_change();
    }

    /// Stops everything; nothing starts from here on.
    pub async fn shutdown(&self) {
        self.inner.shutting_down.set(true);
        let root = self.tree().root();
        self.stop_tree(root).await;
    }
}

/// A receiver as a future of `Option`, which a time-out can answer for.
trait MapErrToNone {
    fn map_err_to_none(self) -> impl Future<Output = Option<Ended>>;
}

impl MapErrToNone for oneshot::Receiver<Ended> {
    async fn map_err_to_none(self) -> Option<Ended> {
        self.await.ok()
    }
}

/// A termination status for people: below 20 and above zero it is a value of `fuchsia.component/Error`.
fn describe(status: zx::Status) -> String {
    match u32::try_from(status.into_raw()).ok().and_then(fcomponent::Error::from_primitive) {
        Some(error) => format!("{error:?}"),
        None => format!("{status:?}"),
    }
}
