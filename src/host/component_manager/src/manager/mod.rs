//! Instances at run time: what is started, how it is reached, how it ends. One thread, one executor; starting never waits, so no two
//! changes of an instance overlap.

mod config;
mod lifecycle;
mod namespace;
mod open;
mod storage;

pub(crate) use lifecycle::Given;
pub use lifecycle::{Ended, ExecutionState, StartError};
pub(crate) use namespace::GivenEntry;

use crate::builtin::Builtins;
use crate::log::LogStore;
use crate::model::{InstanceId, Tree, TreeError};
use crate::moniker::Moniker;
use crate::name::Url;
use crate::resolver::{Resolved, Resolver};
use fidl::endpoints::ServerEnd;
use fidl_fuchsia_io as fio;
use futures::channel::{mpsc, oneshot};
use lifecycle::Execution;
use std::cell::{Cell, Ref, RefCell, RefMut};
use std::collections::{HashMap, HashSet};
use std::rc::{Rc, Weak};
use vfs::execution_scope::ExecutionScope;

/// The component manager. Clones are the same one.
#[derive(Clone)]
pub struct Manager {
    inner: Rc<Inner>,
}

/// A reference that does not keep the component manager, for tasks that it holds itself.
#[derive(Clone)]
pub struct WeakManager(Weak<Inner>);

impl WeakManager {
    pub(crate) fn upgrade(&self) -> Option<Manager> {
        self.0.upgrade().map(|inner| Manager { inner })
    }
}

struct Inner {
    tree: RefCell<Tree>,
    executions: RefCell<HashMap<InstanceId, Execution>>,
    /// Who is being destroyed, and who waits for it.
    destroying: RefCell<HashMap<InstanceId, Vec<oneshot::Sender<()>>>>,
    /// The connections to what an instance exposes, closed with the instance.
    exposed: RefCell<HashMap<InstanceId, ExecutionScope>>,
    requests: mpsc::UnboundedSender<open::Request>,
    builtins: Builtins,
    logs: LogStore,
    shutting_down: Cell<bool>,
    next_run: Cell<u64>,
    changed: RefCell<Vec<oneshot::Sender<()>>>,
}

impl Manager {
    /// A component manager whose root is the component at `root`.
    ///
    /// # Panics
    /// Without an executor on this thread.
    #[must_use]
    pub fn new(root: Url, resolver: Rc<dyn Resolver>, builtins: Builtins, logs: LogStore) -> Self {
        let (requests, incoming) = mpsc::unbounded();
        let inner = Inner {
            tree: RefCell::new(Tree::new(root, resolver)),
            executions: RefCell::default(),
            destroying: RefCell::default(),
            exposed: RefCell::default(),
            requests,
            builtins,
            logs,
            shutting_down: Cell::new(false),
            next_run: Cell::new(0),
            changed: RefCell::default(),
        };
        let manager = Self { inner: Rc::new(inner) };
        open::serve(manager.downgrade(), incoming);
        manager
    }

    /// A reference that does not keep it.
    #[must_use]
    pub fn downgrade(&self) -> WeakManager {
        WeakManager(Rc::downgrade(&self.inner))
    }

    /// The tree. Do not hold it across a call of the manager.
    pub fn tree(&self) -> RefMut<'_, Tree> {
        self.inner.tree.borrow_mut()
    }

    /// What the components have written.
    #[must_use]
    pub fn logs(&self) -> &LogStore {
        &self.inner.logs
    }

    pub(crate) fn builtins(&self) -> &Builtins {
        &self.inner.builtins
    }

    fn executions(&self) -> Ref<'_, HashMap<InstanceId, Execution>> {
        self.inner.executions.borrow()
    }

    fn executions_mut(&self) -> RefMut<'_, HashMap<InstanceId, Execution>> {
        self.inner.executions.borrow_mut()
    }

    pub(crate) fn resolve(&self, id: InstanceId) -> Result<Rc<Resolved>, TreeError> {
        self.tree().resolve(id)
    }

    /// Where the instance is.
    #[must_use]
    pub fn moniker(&self, id: InstanceId) -> Moniker {
        self.inner.tree.borrow().moniker(id)
    }

    /// Serves what the root exposes.
    ///
    /// # Errors
    /// Where the root's manifest cannot be resolved.
    pub fn open_root(&self, server: ServerEnd<fio::DirectoryMarker>) -> Result<(), TreeError> {
        let root = self.tree().root();
        self.open_exposed(root, server)
    }

    /// Serves what `id` exposes, for as long as the instance exists. Starts nothing.
    ///
    /// # Errors
    /// Where the instance is gone or cannot be resolved.
    pub fn open_exposed(
        &self,
        id: InstanceId,
        server: ServerEnd<fio::DirectoryMarker>,
    ) -> Result<(), TreeError> {
        let directory = namespace::exposed_directory(self, id)?;
        let scope = self.inner.exposed.borrow_mut().entry(id).or_default().clone();
        let rights = fio::RW_STAR_DIR | fio::RX_STAR_DIR;
        vfs::directory::serve(directory, &scope, rights, server);
        Ok(())
    }

    /// What runs now.
    #[must_use]
    pub fn running(&self) -> HashSet<InstanceId> {
        self.executions()
            .iter()
            .filter(|(_, execution)| execution.state() != ExecutionState::Stopped)
            .map(|(id, _)| *id)
            .collect()
    }

    /// Ends when the next instance starts or ends.
    pub fn on_change(&self) -> oneshot::Receiver<()> {
        let (sender, receiver) = oneshot::channel();
        self.inner.changed.borrow_mut().push(sender);
        receiver
    }

    fn note_change(&self) {
        for waiter in self.inner.changed.take() {
            // Whoever stopped waiting does not want to know.
            let _gone = waiter.send(());
        }
    }
}
