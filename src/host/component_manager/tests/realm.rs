//! Realms: real processes beside fakes, collections, storage, stopping, and the errors of `fuchsia.component.Realm`.

#![cfg(target_os = "linux")]

use component_manager::decl::{Rights, Startup};
use component_manager::manager::ExecutionState;
use component_manager::realm_builder::{Capability, LocalComponentHandles, RealmBuilder, Ref};
use fidl::endpoints::{Proxy, create_proxy};
use fidl_fuchsia_component as fcomponent;
use fidl_fuchsia_component_decl as fdecl;
use fidl_fuchsia_io as fio;
use fidl_fuchsia_virtualization as fvirtualization;
use fuchsia_async as fasync;
use fuchsia_component::server::ServiceFs;
use fuchsia_zircon as zx;
use futures::{AsyncReadExt, StreamExt};
use std::cell::Cell;
use std::path::Path;
use std::rc::Rc;

const PROGRAM: &str = env!("CARGO_BIN_EXE_component_manager_test_components");
const ECHO: &str = include_str!("components/meta/echo_elf.cml");

/// A package directory whose binaries are the test components.
fn package() -> tempfile::TempDir {
    let package = tempfile::tempdir().unwrap();
    std::fs::create_dir(package.path().join("bin")).unwrap();
    for name in ["echo", "crash", "escrow", "stubborn"] {
        std::os::unix::fs::symlink(PROGRAM, package.path().join("bin").join(name)).unwrap();
    }
    package
}

async fn pid_of(lifecycle: &fvirtualization::GuestLifecycleProxy) -> Result<String, fidl::Error> {
    let (guest, server) = create_proxy::<fvirtualization::GuestMarker>();
    lifecycle.bind(server)?;
    let mut serial = fasync::Socket::from_socket(guest.get_serial().await?);
    let mut text = String::new();
    serial.read_to_string(&mut text).await.unwrap();
    Ok(text)
}

/// A fake of the echo component: a closure that counts its runs and says a fixed text.
fn fake(
    runs: Rc<Cell<usize>>,
) -> impl Fn(LocalComponentHandles) -> futures::future::LocalBoxFuture<'static, anyhow::Result<()>>
{
    move |handles| {
        runs.set(runs.get() + 1);
        Box::pin(async move {
            let mut fs = ServiceFs::new_local();
            fs.dir("svc")
                .add_fidl_service(|stream: fvirtualization::GuestLifecycleRequestStream| stream);
            fs.serve_connection(handles.outgoing_dir)?;
            let Some(mut stream) = fs.next().await else { return Ok(()) };
            if let Some(Ok(fvirtualization::GuestLifecycleRequest::Stop { responder })) =
                stream.next().await
            {
                responder.send()?;
            }
            Ok(())
        })
    }
}

#[fuchsia_async::run_singlethreaded(test)]
async fn a_fake_starts_on_first_use_and_again_after_its_end() {
    let runs = Rc::new(Cell::new(0));
    let mut builder = RealmBuilder::new();
    let child = builder.add_local_child("fake", fake(Rc::clone(&runs)), Startup::Lazy).unwrap();
    builder
        .add_route(
            &Capability::protocol::<fvirtualization::GuestLifecycleMarker>(),
            &child,
            &[Ref::Parent],
        )
        .unwrap();
    let realm = builder.build().unwrap();
    assert_eq!(runs.get(), 0);
    for run in 1..=3 {
        let lifecycle = realm.connect_to_protocol::<fvirtualization::GuestLifecycleMarker>();
        lifecycle.stop().await.unwrap();
        lifecycle.on_closed().await.unwrap();
        assert_eq!(runs.get(), run);
    }
    realm.destroy().await;
}

#[fuchsia_async::run_singlethreaded(test)]
async fn a_process_is_stopped_by_its_lifecycle_and_starts_again() {
    let package = package();
    let mut builder = RealmBuilder::new();
    let echo = builder.add_child_from_manifest("echo", ECHO, package.path()).unwrap();
    builder
        .add_route(
            &Capability::protocol_by_name("fuchsia.logger.LogSink"),
            Ref::Parent,
            &[Ref::from(&echo)],
        )
        .unwrap();
    builder
        .add_route(
            &Capability::protocol::<fvirtualization::GuestLifecycleMarker>(),
            &echo,
            &[Ref::Parent],
        )
        .unwrap();
    let realm = builder.build().unwrap();
    let lifecycle = realm.connect_to_protocol::<fvirtualization::GuestLifecycleMarker>();
    let first = pid_of(&lifecycle).await.unwrap();
    let id = realm.manager().tree().find(&"echo".parse().unwrap()).unwrap();
    realm.manager().stop(id).await;
    assert_eq!(realm.manager().last_end(id).unwrap().status, zx::Status::OK);
    assert_eq!(realm.manager().last_end(id).unwrap().exit_code, Some(0));
    lifecycle.on_closed().await.unwrap();
    let again = realm.connect_to_protocol::<fvirtualization::GuestLifecycleMarker>();
    assert_ne!(pid_of(&again).await.unwrap(), first);
    realm.destroy().await;
}

#[fuchsia_async::run_singlethreaded(test)]
async fn a_process_without_a_lifecycle_is_killed() {
    let package = package();
    let manifest = "{ program: { runner: 'elf', binary: 'bin/stubborn' }, capabilities: [ { protocol: 'p' } ], expose: [ { protocol: 'p', from: 'self' } ] }";
    let mut builder = RealmBuilder::new();
    builder.add_child_from_manifest("stubborn", manifest, package.path()).unwrap();
    let realm = builder.build().unwrap();
    let id = realm.manager().tree().find(&"stubborn".parse().unwrap()).unwrap();
    realm.manager().start(id).unwrap();
    realm.manager().stop(id).await;
    let end = realm.manager().last_end(id).unwrap();
    assert_eq!(end.status, zx::Status::OK);
    assert!(end.exit_code.is_some_and(|code| code < 0), "{end:?}");
}

#[fuchsia_async::run_singlethreaded(test)]
async fn a_missing_binary_is_an_instance_that_cannot_start() {
    let package = package();
    let manifest = "{ program: { runner: 'elf', binary: 'bin/nothing' }, capabilities: [ { protocol: 'p' } ], expose: [ { protocol: 'p', from: 'self' } ] }";
    let mut builder = RealmBuilder::new();
    let child = builder.add_child_from_manifest("missing", manifest, package.path()).unwrap();
    builder.add_route(&Capability::protocol_by_name("p"), &child, &[Ref::Parent]).unwrap();
    let realm = builder.build().unwrap();
    let proxy = realm.connect_to_named_protocol::<fvirtualization::GuestLifecycleMarker>("p");
    proxy.on_closed().await.unwrap();
    let id = realm.manager().tree().find(&"missing".parse().unwrap()).unwrap();
    while realm.manager().last_end(id).is_none() {
        fasync::Timer::new(zx::Duration::from_millis(10)).await;
    }
    let expected = fcomponent::Error::InstanceCannotStart.into_primitive().cast_signed();
    assert_eq!(realm.manager().last_end(id).unwrap().status.into_raw(), expected);
}

#[fuchsia_async::run_singlethreaded(test)]
async fn what_a_run_escrows_comes_with_the_next_one() {
    const MANIFEST: &str = "{
        program: { runner: 'elf', binary: 'bin/escrow', lifecycle: { stop_event: 'notify' } },
        capabilities: [ { protocol: 'fuchsia.virtualization.GuestLifecycle' } ],
        expose: [ { protocol: 'fuchsia.virtualization.GuestLifecycle', from: 'self' } ],
    }";
    let package = package();
    for request_comes_first in [true, false] {
        let mut builder = RealmBuilder::new();
        let child = builder.add_child_from_manifest("escrow", MANIFEST, package.path()).unwrap();
        let lifecycle = Capability::protocol::<fvirtualization::GuestLifecycleMarker>();
        builder.add_route(&lifecycle, &child, &[Ref::Parent]).unwrap();
        let realm = builder.build().unwrap();
        let manager = realm.manager();
        let id = manager.tree().find(&"escrow".parse().unwrap()).unwrap();
        if !request_comes_first {
            // Nobody asks for anything, so what it left stays where it is, and it stopped.
            manager.start(id).unwrap();
            let end = manager.on_stopped(id).unwrap().await.unwrap();
            assert_eq!((end.status, end.exit_code), (zx::Status::OK, Some(0)));
            fasync::Timer::new(zx::Duration::from_millis(50)).await;
            assert_eq!(manager.state(id), ExecutionState::Stopped);
        }
        // The first run takes no request, so that it is the second one that answers, with the dictionary of the first.
        let lifecycle = realm.connect_to_protocol::<fvirtualization::GuestLifecycleMarker>();
        pid_of(&lifecycle).await.unwrap();
        assert_eq!(manager.state(id), ExecutionState::Running);
        realm.destroy().await;
    }
}

/// A realm whose child `parent` has collections and gives the test its own Realm.
const PARENT: &str = "{
    program: { runner: 'elf', binary: 'bin/stubborn' },
    collections: [ { name: 'devices', durability: 'single_run' }, { name: 'lazy', durability: 'transient' } ],
    offer: [ { protocol: 'fuchsia.logger.LogSink', from: 'parent', to: [ '#devices', '#lazy' ] } ],
    expose: [ { protocol: 'fuchsia.component.Realm', from: 'framework' } ],
}";

/// Resolves `#meta/<name>.cm` of the parent's package to its manifest and the test package.
struct Relative(std::path::PathBuf);

impl component_manager::resolver::Resolver for Relative {
    fn resolve(
        &self,
        url: &component_manager::name::Url,
    ) -> Result<Rc<component_manager::resolver::Resolved>, component_manager::resolver::ResolveError>
    {
        use component_manager::resolver::{Package, ResolveError, Resolved};
        let text = match url.resource().as_str() {
            "meta/parent.cm" => PARENT,
            "meta/echo.cm" => ECHO,
            _ => return Err(ResolveError::PackageNotFound(url.to_string())),
        };
        let decl =
            component_manager::cml::compile("t.cml", text, &component_manager::cml::NoIncludes)
                .map_err(|error| ResolveError::InvalidManifest(Rc::new(error)))?;
        Ok(Rc::new(Resolved {
            url: url.clone(),
            decl,
            package: Package::Directory(self.0.clone()),
        }))
    }
}

async fn with_collections(
    package: &Path,
) -> (component_manager::realm_builder::RealmInstance, fcomponent::RealmProxy) {
    let mut builder = RealmBuilder::new().with_resolver(Rc::new(Relative(package.to_owned())));
    let parent = builder
        .add_child("parent", "fuchsia-pkg://fuchsia.com/test#meta/parent.cm", Startup::Lazy)
        .unwrap();
    builder
        .add_route(
            &Capability::protocol_by_name("fuchsia.logger.LogSink"),
            Ref::Parent,
            &[Ref::from(&parent)],
        )
        .unwrap();
    builder
        .add_route(&Capability::protocol::<fcomponent::RealmMarker>(), &parent, &[Ref::Parent])
        .unwrap();
    let realm = builder.build().unwrap();
    let proxy = realm.connect_to_protocol::<fcomponent::RealmMarker>();
    (realm, proxy)
}

fn child(name: &str, url: &str) -> fdecl::Child {
    fdecl::Child {
        name: Some(name.to_owned()),
        url: Some(url.to_owned()),
        startup: Some(fdecl::StartupMode::Lazy),
        ..Default::default()
    }
}

fn collection(name: &str) -> fdecl::CollectionRef {
    fdecl::CollectionRef { name: name.to_owned() }
}

fn reference(collection: &str, name: &str) -> fdecl::ChildRef {
    fdecl::ChildRef { name: name.to_owned(), collection: Some(collection.to_owned()) }
}

#[fuchsia_async::run_singlethreaded(test)]
async fn children_are_made_reached_listed_and_destroyed() {
    let package = package();
    let (realm, proxy) = with_collections(package.path()).await;
    let args = fcomponent::CreateChildArgs::default;
    proxy
        .create_child(&collection("devices"), &child("one", "#meta/echo.cm"), args())
        .await
        .unwrap()
        .unwrap();
    let id = realm.manager().tree().find(&"parent/devices:one".parse().unwrap()).unwrap();
    assert!(realm.manager().running().contains(&id), "single-run children start at once");
    let (exposed, server) = create_proxy::<fio::DirectoryMarker>();
    proxy.open_exposed_dir(&reference("devices", "one"), server).await.unwrap().unwrap();
    let (lifecycle, server) = create_proxy::<fvirtualization::GuestLifecycleMarker>();
    exposed
        .open(
            "fuchsia.virtualization.GuestLifecycle",
            fio::Flags::PROTOCOL_SERVICE,
            &fio::Options::default(),
            server.into_channel(),
        )
        .unwrap();
    pid_of(&lifecycle).await.unwrap();
    let (iterator, server) = create_proxy::<fcomponent::ChildIteratorMarker>();
    proxy.list_children(&collection("devices"), server).await.unwrap().unwrap();
    assert_eq!(iterator.next().await.unwrap(), [reference("devices", "one")]);
    assert_eq!(iterator.next().await.unwrap(), []);
    proxy.destroy_child(&reference("devices", "one")).await.unwrap().unwrap();
    lifecycle.on_closed().await.unwrap();
    exposed.on_closed().await.unwrap();
    assert!(realm.manager().tree().find(&"parent/devices:one".parse().unwrap()).is_err());
    realm.destroy().await;
}

#[fuchsia_async::run_singlethreaded(test)]
async fn a_single_run_child_that_ends_is_destroyed() {
    let package = package();
    let (realm, proxy) = with_collections(package.path()).await;
    proxy
        .create_child(
            &collection("devices"),
            &child("one", "#meta/echo.cm"),
            fcomponent::CreateChildArgs::default(),
        )
        .await
        .unwrap()
        .unwrap();
    let (exposed, server) = create_proxy::<fio::DirectoryMarker>();
    proxy.open_exposed_dir(&reference("devices", "one"), server).await.unwrap().unwrap();
    let (lifecycle, server) = create_proxy::<fvirtualization::GuestLifecycleMarker>();
    exposed
        .open(
            "fuchsia.virtualization.GuestLifecycle",
            fio::Flags::PROTOCOL_SERVICE,
            &fio::Options::default(),
            server.into_channel(),
        )
        .unwrap();
    lifecycle.stop().await.unwrap();
    exposed.on_closed().await.unwrap();
    let (_again, server) = create_proxy::<fio::DirectoryMarker>();
    let gone = proxy.open_exposed_dir(&reference("devices", "one"), server).await.unwrap();
    assert_eq!(gone, Err(fcomponent::Error::InstanceNotFound));
    realm.destroy().await;
}

#[fuchsia_async::run_singlethreaded(test)]
async fn the_realm_answers_with_the_documented_errors() {
    let package = package();
    let (realm, proxy) = with_collections(package.path()).await;
    let args = fcomponent::CreateChildArgs::default;
    let create = async |place: &str, decl: fdecl::Child| {
        proxy.create_child(&collection(place), &decl, args()).await.unwrap().unwrap_err()
    };
    assert_eq!(
        create("nowhere", child("a", "#meta/echo.cm")).await,
        fcomponent::Error::CollectionNotFound
    );
    assert_eq!(
        create("lazy", child("a b", "#meta/echo.cm")).await,
        fcomponent::Error::InvalidArguments
    );
    assert_eq!(create("lazy", child("a", "no url")).await, fcomponent::Error::InvalidArguments);
    assert_eq!(create("lazy", fdecl::Child::default()).await, fcomponent::Error::InvalidArguments);
    assert_eq!(
        create(
            "lazy",
            fdecl::Child { environment: Some("e".to_owned()), ..child("a", "#meta/echo.cm") }
        )
        .await,
        fcomponent::Error::InvalidArguments
    );
    assert_eq!(
        create("devices", child("a", "#meta/none.cm")).await,
        fcomponent::Error::InstanceCannotResolve
    );
    proxy
        .create_child(&collection("lazy"), &child("a", "#meta/echo.cm"), args())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        create("lazy", child("a", "#meta/echo.cm")).await,
        fcomponent::Error::InstanceAlreadyExists
    );
    proxy
        .create_child(&collection("lazy"), &child("bad", "#meta/none.cm"), args())
        .await
        .unwrap()
        .unwrap();
    let (_exposed, server) = create_proxy::<fio::DirectoryMarker>();
    let unresolved = proxy.open_exposed_dir(&reference("lazy", "bad"), server).await.unwrap();
    assert_eq!(unresolved, Err(fcomponent::Error::InstanceCannotResolve));
    assert_eq!(
        proxy.destroy_child(&reference("lazy", "b")).await.unwrap(),
        Err(fcomponent::Error::InstanceNotFound)
    );
    let (_iterator, server) = create_proxy::<fcomponent::ChildIteratorMarker>();
    assert_eq!(
        proxy.list_children(&collection("nowhere"), server).await.unwrap(),
        Err(fcomponent::Error::CollectionNotFound)
    );
    realm.destroy().await;
}

#[fuchsia_async::run_singlethreaded(test)]
async fn an_execution_controller_tells_the_end() {
    let package = package();
    let (realm, proxy) = with_collections(package.path()).await;
    proxy
        .create_child(
            &collection("lazy"),
            &child("a", "#meta/echo.cm"),
            fcomponent::CreateChildArgs::default(),
        )
        .await
        .unwrap()
        .unwrap();
    let (controller, server) = create_proxy::<fcomponent::ControllerMarker>();
    proxy.open_controller(&reference("lazy", "a"), server).await.unwrap().unwrap();
    assert_eq!(controller.is_started().await.unwrap(), Ok(false));
    let (execution, server) = create_proxy::<fcomponent::ExecutionControllerMarker>();
    controller.start(fcomponent::StartChildArgs::default(), server).await.unwrap().unwrap();
    assert_eq!(controller.is_started().await.unwrap(), Ok(true));
    let mut events = execution.take_event_stream();
    execution.stop().unwrap();
    let Some(Ok(fcomponent::ExecutionControllerEvent::OnStop { stopped_payload })) =
        events.next().await
    else {
        panic!("no OnStop")
    };
    assert_eq!(stopped_payload.status, Some(0));
    realm.destroy().await;
}

#[fuchsia_async::run_singlethreaded(test)]
async fn storage_is_each_components_own_and_rights_are_kept() {
    let place = tempfile::tempdir().unwrap();
    let (sender, mut seen) = futures::channel::mpsc::unbounded();
    let mut builder = RealmBuilder::new();
    builder.add_storage("tmp", place.path()).unwrap();
    let mut children = Vec::new();
    for name in ["one", "two"] {
        let sender = sender.clone();
        let run = move |handles: LocalComponentHandles| {
            let sender = sender.clone();
            async move {
                let tmp = handles.directory("/tmp").unwrap();
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
        };
        let child = builder.add_local_child(name, run, Startup::Eager).unwrap();
        builder
            .add_route(&Capability::storage("tmp", "/tmp"), Ref::Parent, &[Ref::from(&child)])
            .unwrap();
        children.push(child);
    }
    let realm = builder.build().unwrap();
    let mut both = [seen.next().await.unwrap(), seen.next().await.unwrap()];
    both.sort_unstable();
    assert_eq!(both, [("one", 3), ("two", 3)]);
    for name in ["one", "two"] {
        assert_eq!(std::fs::read_to_string(place.path().join(name).join("file")).unwrap(), name);
    }
    realm.destroy().await;
}

#[fuchsia_async::run_singlethreaded(test)]
async fn a_directory_gives_no_more_rights_than_its_route() {
    let files = tempfile::tempdir().unwrap();
    std::fs::write(files.path().join("file"), "text").unwrap();
    let (sender, mut seen) = futures::channel::mpsc::unbounded();
    let mut builder = RealmBuilder::new()
        .with_builtins(|builtins| builtins.with_directory("files", files.path()));
    let run = move |handles: LocalComponentHandles| {
        let sender = sender.clone();
        async move {
            let directory = handles.directory("/files").unwrap();
            for (flags, name) in [
                (fio::Flags::PERM_READ_BYTES, "read"),
                (fio::Flags::PERM_READ_BYTES | fio::Flags::PERM_WRITE_BYTES, "write"),
            ] {
                let (file, server) = create_proxy::<fio::FileMarker>();
                directory.open(
                    "file",
                    flags | fio::Flags::PROTOCOL_FILE,
                    &fio::Options::default(),
                    server.into_channel(),
                )?;
                let bytes = file.read(16).await.ok().and_then(Result::ok);
                sender.unbounded_send((name, bytes))?;
            }
            Ok(())
        }
    };
    let child = builder.add_local_child("reader", run, Startup::Eager).unwrap();
    let capability = Capability::directory("files", "/files", Rights::READ);
    builder.add_route(&capability, Ref::Parent, &[Ref::from(&child)]).unwrap();
    let realm = builder.build().unwrap();
    assert_eq!(seen.next().await.unwrap(), ("read", Some(b"text".to_vec())));
    assert_eq!(seen.next().await.unwrap(), ("write", None));
    realm.destroy().await;
}
