//! What the host would give a guest manager, under the test's control.

use fidl::endpoints::ClientEnd;
use fidl_fuchsia_hardware_network::PortClass;
use fidl_fuchsia_memorypressure::{
    Level, ProviderRequest, ProviderRequestStream, WatcherMarker, WatcherProxy,
};
use fidl_fuchsia_net_interfaces as finterfaces;
use fuchsia_async as fasync;
use fuchsia_component::server::ServiceFs;
use fuchsia_component_test::LocalComponentHandles;
use futures::StreamExt as _;
use std::sync::{Arc, Mutex, PoisonError};

/// `fuchsia.memorypressure.Provider`: the level is what the test says.
#[derive(Clone)]
pub struct FakeMemoryPressure(Arc<Mutex<Pressure>>);

struct Pressure {
    level: Level,
    watchers: Vec<WatcherProxy>,
}

impl Default for FakeMemoryPressure {
    fn default() -> Self {
        let pressure = Pressure { level: Level::Normal, watchers: Vec::new() };
        Self(Arc::new(Mutex::new(pressure)))
    }
}

impl FakeMemoryPressure {
    /// Changes the level and tells all who watch it.
    pub fn set(&self, level: Level) {
        let mut pressure = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        pressure.level = level;
        for watcher in &pressure.watchers {
            tell(watcher.clone(), level);
        }
    }

    /// How many watch the level, or did before they ended.
    #[must_use]
    pub fn watchers(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).watchers.len()
    }

    pub(crate) async fn run(self, handles: LocalComponentHandles) -> anyhow::Result<()> {
        let mut fs = ServiceFs::new();
        fs.dir("svc").add_fidl_service(|stream: ProviderRequestStream| stream);
        fs.serve_connection(handles.outgoing_dir)?;
        while let Some(mut stream) = fs.next().await {
            let this = self.clone();
            fasync::Task::spawn(async move {
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
        let mut pressure = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tell(watcher.clone(), pressure.level);
        pressure.watchers.push(watcher);
    }
}

fn tell(watcher: WatcherProxy, level: Level) {
    // One that has ended needs no telling.
    fasync::Task::spawn(async move { drop(watcher.on_level_changed(level).await) }).detach();
}

/// `fuchsia.net.interfaces.State`: the host's network ports, all online, are what the test says.
#[derive(Clone)]
pub struct FakeNetwork(Arc<Mutex<Vec<PortClass>>>);

impl Default for FakeNetwork {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(vec![PortClass::Ethernet])))
    }
}

impl FakeNetwork {
    /// Changes the ports, for those who look from now on.
    pub fn set(&self, ports: &[PortClass]) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = ports.to_vec();
    }

    pub(crate) async fn run(self, handles: LocalComponentHandles) -> anyhow::Result<()> {
        let mut fs = ServiceFs::new();
        fs.dir("svc").add_fidl_service(|stream: finterfaces::StateRequestStream| stream);
        fs.serve_connection(handles.outgoing_dir)?;
        while let Some(mut stream) = fs.next().await {
            let this = self.clone();
            fasync::Task::spawn(async move {
                while let Some(Ok(finterfaces::StateRequest::GetWatcher { watcher, .. })) =
                    stream.next().await
                {
                    let events = this.events();
                    fasync::Task::spawn(watch(watcher.into_stream(), events)).detach();
                }
            })
            .detach();
        }
        Ok(())
    }

    /// What a watcher sees: each port, and then that these were all.
    fn events(&self) -> Vec<finterfaces::Event> {
        let ports = self.0.lock().unwrap_or_else(PoisonError::into_inner);
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
