//! A namespace and an outgoing directory that are given to another process. This program is both: with the argument
//! `component` it passes on, in its outgoing directory, a protocol that it finds in its namespace.

use fuchsia_component::namespace::Namespace;
use fuchsia_component::server::ServiceFs;
use futures::StreamExt;

#[fuchsia_async::run_singlethreaded]
async fn component() {
    assert_eq!(Namespace::installed().paths(), ["/svc"]);
    let mut fs = ServiceFs::<fuchsia_component::server::ServiceObjLocal<'_, ()>>::new_local();
    fs.dir("svc").add_proxy_service::<fidl_fuchsia_memorypressure::ProviderMarker>();
    fs.take_and_serve_directory_handle().expect("the process was given one");
    assert!(fs.take_and_serve_directory_handle().is_err(), "a handle can be taken once");
    fs.collect::<()>().await;
}

#[cfg(target_os = "linux")]
mod parent {
    use std::fs::File;

    use fidl::endpoints::{Proxy as _, create_endpoints, create_request_stream};
    use fidl_fuchsia_io as fio;
    use fidl_fuchsia_memorypressure as fpressure;
    use fuchsia_async as fasync;
    use fuchsia_component::client::connect_to_protocol_at_dir_svc;
    use fuchsia_component::server::ServiceFs;
    use fuchsia_zircon::processargs::HandleType;
    use fuchsia_zircon::{self as zx, HandleBased, Task};
    use futures::{StreamExt, TryStreamExt};

    fn spawn(svc: zx::Channel, outgoing: zx::Channel) -> zx::Process {
        let program = std::env::current_exe().and_then(File::open).expect("it is this program");
        let rights =
            zx::Rights::READ | zx::Rights::EXECUTE | zx::Rights::MAP | zx::Rights::TRANSFER;
        let program = zx::linux::vmo_from_file(program.into(), rights).expect("it can be read");
        let job = zx::Job::default_job();
        let mut builder = zx::ProcessBuilder::new("component", &job, program);
        builder.add_argument("component");
        builder.add_argument("component");
        builder.add_namespace_entry("/svc", svc);
        builder.add_handle(HandleType::DirectoryRequest.into(), outgoing.into_handle());
        builder.spawn().expect("the process starts")
    }

    async fn provide(mut requests: fpressure::ProviderRequestStream) {
        while let Ok(Some(request)) = requests.try_next().await {
            let fpressure::ProviderRequest::RegisterWatcher { watcher, .. } = request;
            let told = watcher.into_proxy().on_level_changed(fpressure::Level::Critical).await;
            told.expect("the watcher acknowledges");
        }
    }

    async fn level(provider: &fpressure::ProviderProxy) -> fpressure::Level {
        let (watcher, mut requests) = create_request_stream::<fpressure::WatcherMarker>();
        provider.register_watcher(watcher).expect("the component lives");
        let request = requests.try_next().await.expect("no error").expect("the level comes");
        let fpressure::WatcherRequest::OnLevelChanged { level, responder } = request;
        responder.send().expect("the provider lives");
        level
    }

    #[fuchsia_async::run_singlethreaded]
    pub(super) async fn run() {
        let mut fs = ServiceFs::new_local();
        fs.root_dir().add_fidl_service(|requests: fpressure::ProviderRequestStream| requests);
        let (svc, svc_server) = create_endpoints::<fio::DirectoryMarker>();
        fs.serve_connection(svc_server).expect("it can be served");
        let _provider = fasync::Task::local(fs.for_each_concurrent(None, provide));

        let (outgoing, outgoing_server) = create_endpoints::<fio::DirectoryMarker>();
        let process = spawn(svc.into_channel(), outgoing_server.into_channel());
        let outgoing = outgoing.into_proxy();
        let provider = connect_to_protocol_at_dir_svc::<fpressure::ProviderMarker>(&outgoing)
            .expect("the request is sent");
        assert_eq!(level(&provider).await, fpressure::Level::Critical);

        process.kill().expect("it can be killed");
        assert!(outgoing.on_closed().await.is_ok(), "its directory goes with it");
        let ended = fasync::OnSignals::new(&process, zx::Signals::PROCESS_TERMINATED).await;
        assert!(ended.is_ok());
    }
}

fn main() {
    if std::env::args().nth(1).as_deref() == Some("component") {
        return component();
    }
    #[cfg(target_os = "linux")]
    parent::run();
}
