//! What a run of a component is started with through `fuchsia.component.Controller`, as a local component of the test sees it.
#![cfg(target_os = "linux")]

use fidl::endpoints::{ClientEnd, Proxy as _, create_endpoints, create_proxy};
use fidl_fuchsia_component as fcomponent;
use fidl_fuchsia_component_decl as fdecl;
use fidl_fuchsia_io as fio;
use fidl_fuchsia_process as fprocess;
use fuchsia_component_test::{
    Capability, ChildOptions, LocalComponentHandles, RealmBuilder, RealmInstance, Ref, Route,
};
use fuchsia_zircon::{self as zx, AsHandleRef as _, HandleBased as _};
use futures::future::BoxFuture;
use futures::{FutureExt as _, StreamExt as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// `PA_HND(PA_USER0, 0)`.
const USER_HANDLE: u32 = 0xf0;

/// A realm with one child, `child`, that exposes itself to the test.
async fn realm_with(
    run: impl Fn(LocalComponentHandles) -> BoxFuture<'static, Result<(), anyhow::Error>>
    + Send
    + Sync
    + 'static,
) -> RealmInstance {
    let builder = RealmBuilder::new().await.unwrap();
    let child = builder.add_local_child("child", run, ChildOptions::new()).await.unwrap();
    let realm = Route::new().capability(Capability::protocol::<fcomponent::RealmMarker>());
    builder.add_route(realm.from(Ref::framework()).to(Ref::parent())).await.unwrap();
    let log = Route::new().capability(Capability::protocol_by_name("fuchsia.logger.LogSink"));
    builder.add_route(log.from(Ref::parent()).to(&child)).await.unwrap();
    builder.build().await.unwrap()
}

/// A directory with one file, `note`.
fn note(text: &str) -> ClientEnd<fio::DirectoryMarker> {
    let directory = vfs::directory::simple();
    directory.add_entry("note", vfs::file::read_only(text.as_bytes().to_vec())).unwrap();
    let (client, server) = create_endpoints::<fio::DirectoryMarker>();
    let scope = vfs::execution_scope::ExecutionScope::new();
    vfs::directory::serve(directory, &scope, fio::R_STAR_DIR, server);
    client
}

fn namespace_entry(path: &str) -> fcomponent::NamespaceEntry {
    fcomponent::NamespaceEntry {
        path: Some(path.to_owned()),
        directory: Some(note(path)),
        ..Default::default()
    }
}

/// The controller of the realm's own child.
async fn controller_of_child(realm: &RealmInstance) -> fcomponent::ControllerProxy {
    let (controller, server) = create_proxy::<fcomponent::ControllerMarker>();
    let child = fdecl::ChildRef { name: "child".to_owned(), collection: None };
    let proxy = realm.root.connect_to_protocol_at_exposed_dir::<fcomponent::RealmMarker>().unwrap();
    proxy.open_controller(&child, server).await.unwrap().unwrap();
    controller
}

#[fuchsia_async::run_singlethreaded(test)]
async fn a_run_has_what_its_starter_gave_and_the_next_run_has_not() {
    let (sender, mut seen) = futures::channel::mpsc::unbounded();
    let run = move |mut handles: LocalComponentHandles| {
        let sender = sender.clone();
        async move {
            let mut notes = Vec::new();
            for path in ["given/one", "given/two"] {
                let Ok(directory) = handles.clone_from_namespace(path) else { continue };
                let (file, server) = create_proxy::<fio::FileMarker>();
                let flags = fio::Flags::PROTOCOL_FILE | fio::Flags::PERM_READ_BYTES;
                directory.open("note", flags, &fio::Options::default(), server.into_channel())?;
                notes.push(String::from_utf8(file.read(64).await?.unwrap())?);
            }
            let handle = handles.take_numbered_handle(USER_HANDLE);
            sender.unbounded_send((notes, handle.map(|handle| handle.get_koid())))?;
            Ok(())
        }
        .boxed()
    };
    let realm = realm_with(run).await;
    let controller = controller_of_child(&realm).await;
    let event = zx::Event::create();
    let koid = event.get_koid();
    let args = fcomponent::StartChildArgs {
        numbered_handles: Some(vec![fprocess::HandleInfo {
            handle: event.into_handle(),
            id: USER_HANDLE,
        }]),
        namespace_entries: Some(vec![namespace_entry("/given/one"), namespace_entry("/given/two")]),
        ..Default::default()
    };
    for (args, notes, handle) in [
        (args, vec!["/given/one".to_owned(), "/given/two".to_owned()], Some(koid)),
        (fcomponent::StartChildArgs::default(), Vec::new(), None),
    ] {
        let (execution, server) = create_proxy::<fcomponent::ExecutionControllerMarker>();
        controller.start(args, server).await.unwrap().unwrap();
        assert_eq!(seen.next().await.unwrap(), (notes, handle));
        execution.on_closed().await.unwrap();
    }
    realm.destroy().await.unwrap();
}

#[fuchsia_async::run_singlethreaded(test)]
async fn what_a_starter_gives_must_not_overlap() {
    let runs = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&runs);
    let run = move |_| {
        counter.fetch_add(1, Ordering::Relaxed);
        futures::future::pending().boxed()
    };
    let realm = realm_with(run).await;
    let controller = controller_of_child(&realm).await;
    let incomplete = fcomponent::NamespaceEntry { directory: None, ..namespace_entry("/a") };
    let unnamed = fcomponent::NamespaceEntry { path: None, ..namespace_entry("/a") };
    for entries in [
        vec![namespace_entry("/a"), namespace_entry("/a")],
        vec![namespace_entry("/a"), namespace_entry("/a/b")],
        vec![namespace_entry("/a/b"), namespace_entry("/a")],
        // What its manifest leads to.
        vec![namespace_entry("/svc")],
        vec![namespace_entry("/svc/sub")],
        vec![namespace_entry("/pkg")],
        vec![namespace_entry("/")],
        vec![namespace_entry("relative")],
        vec![incomplete],
        vec![unnamed],
    ] {
        let paths: Vec<_> = entries.iter().map(|entry| entry.path.clone()).collect();
        let args =
            fcomponent::StartChildArgs { namespace_entries: Some(entries), ..Default::default() };
        let (execution, server) = create_proxy::<fcomponent::ExecutionControllerMarker>();
        let result = controller.start(args, server).await.unwrap();
        assert_eq!(result, Err(fcomponent::Error::InvalidArguments), "{paths:?}");
        execution.on_closed().await.unwrap();
    }
    let started = runs.load(Ordering::Relaxed);
    assert_eq!((started, controller.is_started().await.unwrap()), (0, Ok(false)));
    // Names that only begin alike are in nobody's way, and nothing is left of the failures.
    let args = fcomponent::StartChildArgs {
        namespace_entries: Some(vec![namespace_entry("/a"), namespace_entry("/ab")]),
        ..Default::default()
    };
    let (_execution, server) = create_proxy::<fcomponent::ExecutionControllerMarker>();
    controller.start(args, server).await.unwrap().unwrap();
    // The test is the runner, and has not been asked before it waits.
    while runs.load(Ordering::Relaxed) == 0 {
        fuchsia_async::Timer::new(zx::Time::after(zx::Duration::from_millis(1))).await;
    }
    realm.destroy().await.unwrap();
}
