//! A served outgoing directory, and clients of it.

use fidl::endpoints::{Proxy as _, create_proxy};
use fidl_fuchsia_component as fcomponent;
use fidl_fuchsia_io as fio;
use fidl_fuchsia_memorypressure as fpressure;
use fuchsia_async as fasync;
use fuchsia_component::client::{
    connect_to_named_protocol_at_dir_root, connect_to_protocol_at_dir_root,
    connect_to_protocol_at_dir_svc, connect_to_protocol_at_path, open_exposed_directory_in,
};
use fuchsia_component::namespace::Namespace;
use fuchsia_component::server::ServiceFs;
use fuchsia_zircon::Status;
use futures::{StreamExt, TryStreamExt};

enum Incoming {
    Provider(fpressure::ProviderRequestStream),
    Realm(fcomponent::RealmRequestStream),
}

/// Tells watchers of a level and is a realm without children but `child`, whose exposed directory is empty.
async fn handle(incoming: Incoming) {
    match incoming {
        Incoming::Provider(mut requests) => {
            while let Ok(Some(request)) = requests.try_next().await {
                let fpressure::ProviderRequest::RegisterWatcher { watcher, .. } = request;
                let watcher = watcher.into_proxy();
                watcher.on_level_changed(fpressure::Level::Warning).await.expect("it acknowledges");
            }
        }
        Incoming::Realm(mut requests) => {
            while let Ok(Some(request)) = requests.try_next().await {
                if let fcomponent::RealmRequest::OpenExposedDir { child, exposed_dir, responder } =
                    request
                {
                    let found = child.name == "child" && child.collection.is_none();
                    drop(exposed_dir);
                    let result =
                        if found { Ok(()) } else { Err(fcomponent::Error::InstanceNotFound) };
                    responder.send(result).expect("the client lives");
                }
            }
        }
    }
}

fn serve() -> (fio::DirectoryProxy, fasync::Task<()>) {
    let mut fs = ServiceFs::new_local();
    fs.dir("svc").add_fidl_service(Incoming::Provider).add_fidl_service(Incoming::Realm);
    fs.dir("svc").add_fidl_service_at("renamed", Incoming::Provider);
    fs.dir("deep").dir("er").add_entry_at("file", vfs::file::read_only(b"text".to_vec()));
    fs.root_dir().add_fidl_service(Incoming::Provider);
    let outgoing = fs.create_directory_proxy().expect("it can be served");
    let task = fasync::Task::local(fs.for_each_concurrent(None, handle));
    (outgoing, task)
}

async fn level(provider: &fpressure::ProviderProxy) -> fpressure::Level {
    let (watcher, mut requests) =
        fidl::endpoints::create_request_stream::<fpressure::WatcherMarker>();
    provider.register_watcher(watcher).expect("the server lives");
    let request = requests.try_next().await.expect("no error").expect("the level comes");
    let fpressure::WatcherRequest::OnLevelChanged { level, responder } = request;
    responder.send().expect("the server lives");
    level
}

#[fuchsia_async::run_singlethreaded(test)]
async fn protocols_are_found_where_they_were_added() {
    let (outgoing, task) = serve();
    let at_svc = connect_to_protocol_at_dir_svc::<fpressure::ProviderMarker>(&outgoing);
    let at_root = connect_to_protocol_at_dir_root::<fpressure::ProviderMarker>(&outgoing);
    let renamed = connect_to_named_protocol_at_dir_root::<fpressure::ProviderMarker>(
        &outgoing,
        "svc/renamed",
    );
    for provider in [at_svc, at_root, renamed] {
        let provider = provider.expect("the request is sent");
        assert_eq!(level(&provider).await, fpressure::Level::Warning);
    }
    let missing = connect_to_protocol_at_dir_root::<fcomponent::RealmMarker>(&outgoing)
        .expect("the request is sent");
    match missing.take_event_stream().next().await {
        Some(Err(fidl::Error::ClientChannelClosed { status, .. })) => {
            assert_eq!(status, Status::NOT_FOUND);
        }
        other => panic!("the epitaph says why: {other:?}"),
    }
    drop(outgoing);
    // Nobody has the directory open: the component may end.
    task.await;
}

#[fuchsia_async::run_singlethreaded(test)]
async fn the_namespace_leads_to_directories() {
    let (outgoing, _task) = serve();
    let (svc, server) = create_proxy::<fio::DirectoryMarker>();
    outgoing
        .open("svc", fio::PERM_READABLE, &fio::Options::default(), server.into_channel())
        .expect("the server lives");
    // A path of its own, since tests of one process share the namespace.
    let namespace = Namespace::installed();
    let client_end = svc.into_client_end().expect("nobody else has it");
    namespace.bind("/test/svc", client_end).expect("the path is free");
    let path = "/test/svc/fuchsia.memorypressure.Provider";
    let provider = connect_to_protocol_at_path::<fpressure::ProviderMarker>(path);
    assert_eq!(level(&provider.expect("the request is sent")).await, fpressure::Level::Warning);
    let nowhere = "/test/nowhere/fuchsia.memorypressure.Provider";
    let error = connect_to_protocol_at_path::<fpressure::ProviderMarker>(nowhere)
        .expect_err("the namespace ends before");
    assert!(format!("{error:#}").contains("/test/nowhere"), "{error:#}");
    namespace.unbind("/test/svc").expect("it was bound");
}

#[fuchsia_async::run_singlethreaded(test)]
async fn children_are_reached_through_the_realm() {
    let (outgoing, _task) = serve();
    let realm = connect_to_protocol_at_dir_svc::<fcomponent::RealmMarker>(&outgoing)
        .expect("the request is sent");
    let exposed = open_exposed_directory_in(&realm, "child", None).await.expect("there is one");
    assert!(exposed.on_closed().await.is_ok());
    let error = open_exposed_directory_in(&realm, "stranger", Some("guests".to_owned())).await;
    let error = error.expect_err("there is none");
    assert!(error.to_string().contains("InstanceNotFound"), "{error}");
}

#[fuchsia_async::run_singlethreaded(test)]
async fn a_server_that_ends_closes_its_connections() {
    let (outgoing, task) = serve();
    let provider = connect_to_protocol_at_dir_svc::<fpressure::ProviderMarker>(&outgoing)
        .expect("the request is sent");
    assert_eq!(level(&provider).await, fpressure::Level::Warning);
    drop(task);
    assert!(outgoing.on_closed().await.is_ok());
    assert!(provider.on_closed().await.is_ok());
}

#[test]
#[should_panic(expected = "cannot be added")]
fn a_name_is_taken_once() {
    let mut executor = fasync::LocalExecutor::new();
    executor.run_singlethreaded(async {
        let mut fs = ServiceFs::new_local();
        fs.dir("svc").add_fidl_service(Incoming::Provider).add_fidl_service(Incoming::Provider);
    });
}
