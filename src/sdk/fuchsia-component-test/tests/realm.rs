//! Realms of components that the test plays itself, on the system's own realm builder.
#![cfg(target_os = "linux")]

use component_manager::realm_builder::TestManager;
use fidl::endpoints::{Proxy as _, create_proxy};
use fidl_fuchsia_component_test::RealmBuilderError;
use fidl_fuchsia_io as fio;
use fidl_fuchsia_virtualization as fvirtualization;
use fuchsia_component::server::ServiceFs;
use fuchsia_component_test::error::Error;
use fuchsia_component_test::{
    Capability, ChildOptions, LocalComponentHandles, RealmBuilder, RealmBuilderParams, Ref, Route,
};
use fuchsia_zircon as zx;
use futures::channel::mpsc;
use futures::{FutureExt as _, StreamExt as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

type Lifecycle = fvirtualization::GuestLifecycleMarker;

/// Answers one request, and ends.
async fn answer_once(handles: LocalComponentHandles) -> Result<(), anyhow::Error> {
    let mut fs = ServiceFs::new();
    fs.dir("svc").add_fidl_service(|stream: fvirtualization::GuestLifecycleRequestStream| stream);
    fs.serve_connection(handles.outgoing_dir)?;
    let Some(mut stream) = fs.next().await else { return Ok(()) };
    if let Some(Ok(fvirtualization::GuestLifecycleRequest::Stop { responder })) =
        stream.next().await
    {
        responder.send()?;
    }
    Ok(())
}

#[fuchsia_async::run_singlethreaded(test)]
async fn a_local_child_starts_on_first_use_and_again_after_its_end() {
    let runs = Arc::new(AtomicUsize::new(0));
    let builder = RealmBuilder::new().await.unwrap();
    let counter = Arc::clone(&runs);
    let run = move |handles| {
        counter.fetch_add(1, Ordering::Relaxed);
        answer_once(handles).boxed()
    };
    let child = builder.add_local_child("fake", run, ChildOptions::new()).await.unwrap();
    let route = Route::new().capability(Capability::protocol::<Lifecycle>());
    builder.add_route(route.from(&child).to(Ref::parent())).await.unwrap();
    let realm = builder.build().await.unwrap();
    assert_eq!(runs.load(Ordering::Relaxed), 0);
    for run in 1..=3 {
        let lifecycle = realm.root.connect_to_protocol_at_exposed_dir::<Lifecycle>().unwrap();
        lifecycle.stop().await.unwrap();
        lifecycle.on_closed().await.unwrap();
        assert_eq!(runs.load(Ordering::Relaxed), run);
    }
    realm.destroy().await.unwrap();
}

#[fuchsia_async::run_singlethreaded(test)]
async fn a_local_child_that_listens_is_waited_for() {
    let builder = RealmBuilder::new().await.unwrap();
    let (sender, mut seen) = mpsc::unbounded();
    let run = move |handles: LocalComponentHandles| {
        let sender = sender.clone();
        async move {
            let stop = handles.register_stop_notifier().await;
            sender.unbounded_send("runs")?;
            stop.await?;
            sender.unbounded_send("was asked to stop")?;
            Ok(())
        }
        .boxed()
    };
    builder.add_local_child("listener", run, ChildOptions::new().eager()).await.unwrap();
    let realm = builder.build().await.unwrap();
    assert_eq!(seen.next().await, Some("runs"));
    realm.destroy().await.unwrap();
    assert_eq!(seen.next().await, Some("was asked to stop"));
}

#[fuchsia_async::run_singlethreaded(test)]
async fn local_children_use_each_other() {
    let builder = RealmBuilder::new().await.unwrap();
    let run = |handles| answer_once(handles).boxed();
    let server = builder.add_local_child("server", run, ChildOptions::new()).await.unwrap();
    let (sender, mut seen) = mpsc::unbounded();
    let run = move |handles: LocalComponentHandles| {
        let sender = sender.clone();
        async move {
            handles.connect_to_protocol::<Lifecycle>()?.stop().await?;
            sender.unbounded_send("answered")?;
            Ok(())
        }
        .boxed()
    };
    let options = ChildOptions::new().eager();
    let client = builder.add_local_child("client", run, options).await.unwrap();
    let route = Route::new().capability(Capability::protocol::<Lifecycle>());
    builder.add_route(route.from(&server).to(&client)).await.unwrap();
    let realm = builder.build().await.unwrap();
    assert_eq!(seen.next().await, Some("answered"));
    realm.destroy().await.unwrap();
}

#[fuchsia_async::run_singlethreaded(test)]
async fn what_makes_no_realm_is_refused() {
    let refusal = |result: Result<(), Error>| match result {
        Err(Error::ServerError(error)) => error,
        other => panic!("{other:?}"),
    };
    let builder = RealmBuilder::new().await.unwrap();
    let run = |handles| answer_once(handles).boxed();
    let child = builder.add_local_child("one", run, ChildOptions::new()).await.unwrap();
    let again = builder.add_local_child("one", run, ChildOptions::new()).await.map(drop);
    assert_eq!(refusal(again), RealmBuilderError::ChildAlreadyExists);
    let url = "fuchsia-pkg://fuchsia.com/old#meta/old.cmx";
    let old = builder.add_child("old", url, ChildOptions::new()).await.map(drop);
    assert_eq!(refusal(old), RealmBuilderError::InvalidManifestExtension);
    let route = || Route::new().capability(Capability::protocol::<Lifecycle>());
    let cases = [
        (Route::new().from(&child).to(Ref::parent()), RealmBuilderError::CapabilitiesEmpty),
        (route().from(&child), RealmBuilderError::TargetsEmpty),
        (route().from(&child).to(&child), RealmBuilderError::SourceAndTargetMatch),
        (route().from(Ref::child("none")).to(&child), RealmBuilderError::NoSuchSource),
        (route().from(&child).to(Ref::child("none")), RealmBuilderError::NoSuchTarget),
    ];
    for (route, error) in cases {
        assert_eq!(refusal(builder.add_route(route).await), error);
    }
    let nowhere = builder.add_route(route().to(&child)).await;
    assert!(matches!(nowhere, Err(Error::MissingSource)), "{nowhere:?}");
}

#[fuchsia_async::run_singlethreaded(test)]
async fn storage_is_each_components_own() {
    let place = tempfile::tempdir().unwrap();
    let (sender, mut seen) = mpsc::unbounded();
    let manager = TestManager::default().with_storage("tmp", place.path());
    let params = RealmBuilderParams::new().test_manager(manager);
    let builder = RealmBuilder::with_params(params).await.unwrap();
    for name in ["one", "two"] {
        let sender = sender.clone();
        let run = move |handles: LocalComponentHandles| {
            let sender = sender.clone();
            async move {
                let tmp = handles.clone_from_namespace("tmp")?;
                let (file, server) = create_proxy::<fio::FileMarker>();
                let flags = fio::Flags::PROTOCOL_FILE
                    | fio::Flags::FLAG_MUST_CREATE
                    | fio::Flags::PERM_WRITE_BYTES
                    | fio::Flags::PERM_READ_BYTES;
                tmp.open("file", flags, &fio::Options::default(), server.into_channel())?;
                let written = file.write(name.as_bytes()).await?.map_err(zx::Status::from_raw)?;
                sender.unbounded_send((name, written))?;
                Ok(())
            }
            .boxed()
        };
        let options = ChildOptions::new().eager();
        let child = builder.add_local_child(name, run, options).await.unwrap();
        let route = Route::new().capability(Capability::storage("tmp").path("/tmp"));
        builder.add_route(route.from(Ref::parent()).to(&child)).await.unwrap();
    }
    let realm = builder.build().await.unwrap();
    let mut both = [seen.next().await.unwrap(), seen.next().await.unwrap()];
    both.sort_unstable();
    assert_eq!(both, [("one", 3), ("two", 3)]);
    for name in ["one", "two"] {
        assert_eq!(std::fs::read_to_string(place.path().join(name).join("file")).unwrap(), name);
    }
    realm.destroy().await.unwrap();
}

#[fuchsia_async::run_singlethreaded(test)]
async fn a_directory_gives_no_more_rights_than_its_route() {
    let files = tempfile::tempdir().unwrap();
    std::fs::write(files.path().join("file"), "text").unwrap();
    let (sender, mut seen) = mpsc::unbounded();
    let path = files.path().to_owned();
    let manager = TestManager::default()
        .with_builtins(move |builtins| builtins.with_directory("files", &path));
    let params = RealmBuilderParams::new().test_manager(manager);
    let builder = RealmBuilder::with_params(params).await.unwrap();
    let run = move |handles: LocalComponentHandles| {
        let sender = sender.clone();
        async move {
            let directory = handles.clone_from_namespace("files")?;
            for (flags, name) in [
                (fio::Flags::PERM_READ_BYTES, "read"),
                (fio::Flags::PERM_READ_BYTES | fio::Flags::PERM_WRITE_BYTES, "write"),
            ] {
                let (file, server) = create_proxy::<fio::FileMarker>();
                let flags = flags | fio::Flags::PROTOCOL_FILE;
                directory.open("file", flags, &fio::Options::default(), server.into_channel())?;
                let bytes = file.read(16).await.ok().and_then(Result::ok);
                sender.unbounded_send((name, bytes))?;
            }
            Ok(())
        }
        .boxed()
    };
    let options = ChildOptions::new().eager();
    let child = builder.add_local_child("reader", run, options).await.unwrap();
    let capability = Capability::directory("files").path("/files").rights(fio::R_STAR_DIR);
    let route = Route::new().capability(capability);
    builder.add_route(route.from(Ref::parent()).to(&child)).await.unwrap();
    let realm = builder.build().await.unwrap();
    assert_eq!(seen.next().await.unwrap(), ("read", Some(b"text".to_vec())));
    assert_eq!(seen.next().await.unwrap(), ("write", None));
    realm.destroy().await.unwrap();
}
