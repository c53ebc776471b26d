//! What the host would give a guest manager, under the test's control.

use component_manager::realm_builder::LocalComponentHandles;
use fidl::endpoints::ClientEnd;
use fidl_fuchsia_hardware_network::PortClass;
use fidl_fuchsia_memorypressure::{
    Level, ProviderRequest, ProviderRequestStream, WatcherMarker, WatcherProxy,
};
use fidl_fuchsia_net_interfaces as finterfaces;
use fuchsia_async as fasync;
use fuchsia_component::server::ServiceFs;
use futures::StreamExt as _;
use std::cell::{Cell, RefCell};
use std::rc::Rc;

/// `fuchsia.memorypressure.Provider`: the level is what the test says.
#[derive(Clone)]
pub struct FakeMemoryPressure {
    level: Rc<Cell<Level>>,
    watchers: Rc<RefCell<Vec<WatcherProxy>>>,
}

impl Default for FakeMemoryPressure {
    fn default() -> Self {
        Self { level: Rc::new(Cell::new(Level::Normal)), watchers: Rc::default() }
    }
}

impl FakeMemoryPressure {
    /// Changes the level and tells all who watch it.
    pub fn set(&self, level: Level) {
        self.level.set(level);
        for watcher in self.watchers.borrow().iter() {
            tell(watcher.clone(), level);
        }
    }

    /// How many watch the level, or did before they ended.
    #[must_use]
    pub fn watchers(&self) -> usize {
        self.watchers.borrow().len()
    }

    pub(crate) async fn run(self, handles: LocalComponentHandles) -> anyhow::Result<()> {
        let mut fs = ServiceFs::new_local();
        fs.dir("svc").add_fidl_service(|stream: ProviderRequestStream| stream);
        fs.serve_connection(handles.outgoing_dir)?;
        while let Some(mut stream) = fs.next().await {
            let this = self.clone();
            fasync::Task::local(async move {
                while let Some(Ok(ProviderRequest::RegisterWatcher { watcher, .. })) =
                    stream.next().await
                {
                    this.register(watcher);
                }
            })
            .detach();
        }
        Ok(())
    }

    fn register(&self, watcher: ClientEnd<WatcherMarker>) {
        let watcher = watcher.into_proxy();
        tell(watcher.clone(), self.level.get());
        self.watchers.borrow_mut().push(watcher);
    }
}

fn tell(watcher: WatcherProxy, level: Level) {
    // One that has ended needs no telling.
    fasync::Task::local(async move { drop(watcher.on_level_changed(level).await) }).detach();
}

/// `fuchsia.net.interfaces.State`: the host's network ports, all online, are what the test says.
#[derive(Clone)]
pub struct FakeNetwork(Rc<RefCell<Vec<PortClass>>>);

impl Default for FakeNetwork {
    fn default() -> Self {
        Self(Rc::new(RefCell::new(vec![PortClass::Ethernet])))
    }
}

impl FakeNetwork {
    /// Changes the ports, for those who look from now on.
    pub fn set(&self, ports: &[PortClass]) {
        *self.0.borrow_mut() = ports.to_vec();
    }

    pub(crate) async fn run(self, handles: LocalComponentHandles) -> anyhow::Result<()> {
        let mut fs = ServiceFs::new_local();
        fs.dir("svc").add_fidl_service(|stream: finterfaces::StateRequestStream| stream);
        fs.serve_connection(handles.outgoing_dir)?;
        while let Some(mut stream) = fs.next().await {
            let this = self.clone();
            fasync::Task::local(async move {
                while let Some(Ok(finterfaces::StateRequest::GetWatcher { watcher, .. })) =
                    stream.next().await
                {
                    let events = this.events();
                    fasync::Task::local(watch(watcher.into_stream(), events)).detach();
                }
            })
            .detach();
        }
        Ok(())
    }

    /// What a watcher sees: each port, and then that these were all.
    fn events(&self) -> Vec<finterfaces::Event> {
        let ports = self.0.borrow();
        let existing = ports.iter().zip(1..).map(|(class, id)| {
            finterfaces::Event::Existing(finterfaces::Properties {
                id: Some(id),
                name: Some(format!("fake{id}")),
                online: Some(true),
                port_class: Some(finterfaces::PortClass::Device(*class)),
                ..Default::default()
            })
        });
        existing.chain([finterfaces::Event::Idle(finterfaces::Empty {})]).collect()
    }
}

async fn watch(mut stream: finterfaces::WatcherRequestStream, events: Vec<finterfaces::Event>) {
    let mut events = events.into_iter();
    while let Some(Ok(finterfaces::WatcherRequest::Watch { responder })) = stream.next().await {
        match events.next() {
            // A watcher that is gone does not want the answer.
            Some(event) => drop(responder.send(&event)),
            // Nothing changes any more: the answer never comes.
            None => futures::future::pending().await,
        }
    }
}
