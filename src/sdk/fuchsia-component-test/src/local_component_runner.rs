//! Runs the components that the test plays itself.

use anyhow::{Context as _, Error, format_err};
use fidl::endpoints::{
    ClientEnd, ControlHandle as _, DiscoverableProtocolMarker, ProtocolMarker, RequestStream as _,
    ServerEnd, create_request_stream,
};
use fidl_fuchsia_component as fcomponent;
use fidl_fuchsia_component_runner as fcrunner;
use fidl_fuchsia_component_test as ftest;
use fidl_fuchsia_data as fdata;
use fidl_fuchsia_io as fio;
use fuchsia_async as fasync;
use fuchsia_component::client;
use fuchsia_zircon as zx;
use futures::channel::oneshot;
use futures::future::{BoxFuture, Either, select};
use futures::stream::FuturesUnordered;
use futures::{FutureExt as _, StreamExt as _};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// What a local component does in each of its runs.
pub(crate) type Implementation =
    Arc<dyn Fn(LocalComponentHandles) -> BoxFuture<'static, Result<(), Error>> + Send + Sync>;

/// How a run is asked to end; empty where the component has not said that it listens.
type StopNotifier = Arc<Mutex<Option<oneshot::Sender<()>>>>;

/// What a local component is given: its namespace, and the other side of its outgoing directory.
pub struct LocalComponentHandles {
    namespace: HashMap<String, fio::DirectoryProxy>,
    numbered_handles: HashMap<u32, zx::Handle>,
    stop_notifier: StopNotifier,
    /// The server end of its outgoing directory; serve it with `ServiceFs::serve_connection`.
    pub outgoing_dir: ServerEnd<fio::DirectoryMarker>,
}

impl LocalComponentHandles {
    /// Takes a handle that whoever started the component passed along.
    pub fn take_numbered_handle(&mut self, id: u32) -> Option<zx::Handle> {
        self.numbered_handles.remove(&id)
    }

    /// Ends when the component is asked to stop, and is then not ended before it returns, or is killed.
    ///
    /// # Panics
    /// When called a second time.
    #[expect(clippy::unused_async, reason = "as in Fuchsia's crate")]
    pub async fn register_stop_notifier(&self) -> oneshot::Receiver<()> {
        let (sender, receiver) = oneshot::channel();
        let mut notifier = self.stop_notifier.lock().unwrap_or_else(PoisonError::into_inner);
        assert!(notifier.replace(sender).is_none(), "there is a stop notifier already");
        receiver
    }

    /// Connects to a protocol that is routed to the component.
    ///
    /// # Errors
    /// Where nothing is.
    pub fn connect_to_protocol<P: DiscoverableProtocolMarker>(&self) -> Result<P::Proxy, Error> {
        self.connect_to_named_protocol::<P>(P::PROTOCOL_NAME)
    }

    /// Connects to a protocol that is routed to the component under this name.
    ///
    /// # Errors
    /// Where nothing is.
    pub fn connect_to_named_protocol<P: ProtocolMarker>(
        &self,
        name: &str,
    ) -> Result<P::Proxy, Error> {
        client::connect_to_named_protocol_at_dir_root::<P>(self.entry("svc")?, name)
    }

    /// Another connection to a directory of the namespace: `tmp` for what is at `/tmp`.
    ///
    /// # Errors
    /// Where there is no such directory.
    pub fn clone_from_namespace(&self, directory: &str) -> Result<fio::DirectoryProxy, Error> {
        fuchsia_fs::directory::clone(self.entry(directory)?).context("cloning the directory")
    }

    fn entry(&self, directory: &str) -> Result<&fio::DirectoryProxy, Error> {
        let found = self.namespace.get(&format!("/{directory}"));
        found.ok_or_else(|| format_err!("the component's namespace has no /{directory}"))
    }
}

/// Runs local components as they are asked for on the channel, and as long as the task lives.
pub(crate) fn serve(
    implementations: HashMap<String, Implementation>,
) -> (ClientEnd<fcrunner::ComponentRunnerMarker>, fasync::Task<()>) {
    let (client, requests) = create_request_stream::<fcrunner::ComponentRunnerMarker>();
    (client, fasync::Task::spawn(run(implementations, requests)))
}

async fn run(
    implementations: HashMap<String, Implementation>,
    requests: fcrunner::ComponentRunnerRequestStream,
) {
    let mut requests = requests.fuse();
    let mut running = FuturesUnordered::new();
    loop {
        futures::select! {
            request = requests.next() => match request {
                Some(Ok(fcrunner::ComponentRunnerRequest::Start { start_info, controller, .. })) => {
                    running.push(start(&implementations, start_info, controller));
                }
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return,
            },
            () = running.select_next_some() => {}
        }
    }
}

/// A run of the component that the start info names. What cannot be started is told on `controller`.
fn start(
    implementations: &HashMap<String, Implementation>,
    mut info: fcrunner::ComponentStartInfo,
    controller: ServerEnd<fcrunner::ComponentControllerMarker>,
) -> BoxFuture<'static, ()> {
    let name = info.program.take().and_then(local_component_name);
    let implementation = name.as_ref().and_then(|name| implementations.get(name));
    let (Some(name), Some(implementation), Some(outgoing_dir)) =
        (name.clone(), implementation, info.outgoing_dir)
    else {
        // A component manager that is gone needs no telling.
        let _gone = controller.close_with_epitaph(framework(fcomponent::Error::InvalidArguments));
        return futures::future::ready(()).boxed();
    };
    let entries = info.ns.into_iter().flatten();
    let namespace = entries.filter_map(|entry| Some((entry.path?, entry.directory?.into_proxy())));
    let handles = info.numbered_handles.into_iter().flatten();
    let stop_notifier = StopNotifier::default();
    let handles = LocalComponentHandles {
        namespace: namespace.collect(),
        numbered_handles: handles.map(|handle| (handle.id, handle.handle)).collect(),
        stop_notifier: Arc::clone(&stop_notifier),
        outgoing_dir,
    };
    control(name, implementation(handles), stop_notifier, controller).boxed()
}

fn local_component_name(program: fdata::Dictionary) -> Option<String> {
    let mut entries = program.entries?.into_iter();
    let entry = entries.find(|entry| entry.key == ftest::LOCAL_COMPONENT_NAME_KEY)?;
    match *entry.value? {
        fdata::DictionaryValue::Str(name) => Some(name),
        _ => None,
    }
}

fn framework(error: fcomponent::Error) -> zx::Status {
    zx::Status::from_raw(error.into_primitive().cast_signed())
}

/// Obeys the component manager until the component ends.
async fn control(
    name: String,
    mut component: BoxFuture<'static, Result<(), Error>>,
    stop_notifier: StopNotifier,
    controller: ServerEnd<fcrunner::ComponentControllerMarker>,
) {
    let mut requests = controller.into_stream();
    let control = requests.control_handle();
    let status = loop {
        match select(&mut component, requests.next()).await {
            Either::Left((Ok(()), _)) => break zx::Status::OK,
            Either::Left((Err(error), _)) => {
                eprintln!("The local component {name} failed: {error:#}");
                break framework(fcomponent::Error::InstanceDied);
            }
            Either::Right((Some(Ok(fcrunner::ComponentControllerRequest::Stop { .. })), _)) => {
                let notifier = stop_notifier.lock().unwrap_or_else(PoisonError::into_inner).take();
                // Who does not listen, or no longer, is not asked.
                if notifier.is_none_or(|notifier| notifier.send(()).is_err()) {
                    break zx::Status::OK;
                }
            }
            Either::Right((Some(Ok(fcrunner::ComponentControllerRequest::Kill { .. })), _)) => {
                break zx::Status::OK;
            }
            Either::Right((Some(Ok(_)), _)) => {}
            Either::Right((Some(Err(_)) | None, _)) => return,
        }
    };
    drop(component);
    let payload = fcrunner::ComponentStopInfo {
        termination_status: Some(status.into_raw()),
        ..Default::default()
    };
    // A component manager that is gone needs no telling.
    let _gone = control.send_on_stop(&payload);
    control.shutdown_with_epitaph(status);
}
