//! Realms: real processes, collections, stopping, and the errors of `fuchsia.component.Realm`. What a test plays itself is in `starting.rs` and
//! in the tests of `fuchsia-component-test`.

#![cfg(target_os = "linux")]

use component_manager::decl::Startup;
use component_manager::manager::ExecutionState;
use component_manager::model::InstanceId;
use component_manager::realm_builder::{Capability, ChildRef, RealmBuilder, RealmInstance, Ref};
use fidl::endpoints::{DiscoverableProtocolMarker, ProtocolMarker, Proxy, create_proxy};
use fidl_fuchsia_component as fcomponent;
use fidl_fuchsia_component_decl as fdecl;
use fidl_fuchsia_io as fio;
use fidl_fuchsia_virtualization as fvirtualization;
use fuchsia_async as fasync;
use fuchsia_zircon as zx;
use futures::{AsyncReadExt, StreamExt};
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

/// A program without a lifecycle that serves `protocol: p`, or is said to.
fn bare(binary: &str) -> String {
    format!(
        "{{
            program: {{ runner: 'elf', binary: 'bin/{binary}' }},
            capabilities: [ {{ protocol: 'p' }} ],
            expose: [ {{ protocol: 'p', from: 'self' }} ],
        }}"
    )
}

fn find(realm: &RealmInstance, moniker: &str) -> InstanceId {
    realm.manager().tree().find(&moniker.parse().unwrap()).unwrap()
}

/// A protocol from the child to the test, under its own name.
fn expose<P: DiscoverableProtocolMarker>(builder: &mut RealmBuilder, child: &ChildRef) {
    builder.add_route(&Capability::protocol::<P>(), child, &[Ref::Parent]).unwrap();
}

fn offer_log_sink(builder: &mut RealmBuilder, child: &ChildRef) {
    let log_sink = Capability::protocol_by_name("fuchsia.logger.LogSink");
    builder.add_route(&log_sink, Ref::Parent, &[Ref::from(child)]).unwrap();
}

fn open<P: ProtocolMarker>(
    directory: &fio::DirectoryProxy,
    name: &str,
    flags: fio::Flags,
) -> P::Proxy {
    let (proxy, server) = create_proxy::<P>();
    directory.open(name, flags, &fio::Options::default(), server.into_channel()).unwrap();
    proxy
}

async fn pid_of(lifecycle: &fvirtualization::GuestLifecycleProxy) -> Result<String, fidl::Error> {
    let (guest, server) = create_proxy::<fvirtualization::GuestMarker>();
    lifecycle.bind(server)?;
    let mut serial = fasync::Socket::from_socket(guest.get_serial().await?);
    let mut text = String::new();
    serial.read_to_string(&mut text).await.unwrap();
    Ok(text)
}

#[fuchsia_async::run_singlethreaded(test)]
async fn a_process_is_stopped_by_its_lifecycle_and_starts_again() {
    let package = package();
    let mut builder = RealmBuilder::new();
    let echo = builder.add_child_from_manifest("echo", ECHO, package.path()).unwrap();
    offer_log_sink(&mut builder, &echo);
    expose::<fvirtualization::GuestLifecycleMarker>(&mut builder, &echo);
    let realm = builder.build().unwrap();
    let lifecycle = realm.connect_to_protocol::<fvirtualization::GuestLifecycleMarker>();
    let first = pid_of(&lifecycle).await.unwrap();
    let id = find(&realm, "echo");
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
    let mut builder = RealmBuilder::new();
    builder.add_child_from_manifest("stubborn", &bare("stubborn"), package.path()).unwrap();
    let realm = builder.build().unwrap();
    let id = find(&realm, "stubborn");
    realm.manager().start(id).unwrap();
    realm.manager().stop(id).await;
    let end = realm.manager().last_end(id).unwrap();
    assert_eq!(end.status, zx::Status::OK);
    assert!(end.exit_code.is_some_and(|code| code < 0), "{end:?}");
}

#[fuchsia_async::run_singlethreaded(test)]
async fn a_missing_binary_is_an_instance_that_cannot_start() {
    let package = package();
    let mut builder = RealmBuilder::new();
    let child =
        builder.add_child_from_manifest("missing", &bare("nothing"), package.path()).unwrap();
    builder.add_route(&Capability::protocol_by_name("p"), &child, &[Ref::Parent]).unwrap();
    let realm = builder.build().unwrap();
    let proxy = realm.connect_to_named_protocol::<fvirtualization::GuestLifecycleMarker>("p");
    proxy.on_closed().await.unwrap();
    let id = find(&realm, "missing");
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
        expose::<fvirtualization::GuestLifecycleMarker>(&mut builder, &child);
        let realm = builder.build().unwrap();
        let manager = realm.manager();
        let id = find(&realm, "escrow");
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

/// The realm, and the Realm of its component `parent`.
fn with_collections(package: &Path) -> (RealmInstance, fcomponent::RealmProxy) {
    let mut builder = RealmBuilder::new().with_resolver(Rc::new(Relative(package.to_owned())));
    let parent = builder
        .add_child("parent", "fuchsia-pkg://fuchsia.com/test#meta/parent.cm", Startup::Lazy)
        .unwrap();
    offer_log_sink(&mut builder, &parent);
    expose::<fcomponent::RealmMarker>(&mut builder, &parent);
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

async fn create(
    realm: &fcomponent::RealmProxy,
    place: &str,
    decl: fdecl::Child,
) -> Result<(), fcomponent::Error> {
    let args = fcomponent::CreateChildArgs::default();
    realm.create_child(&collection(place), &decl, args).await.unwrap()
}

async fn open_exposed(
    realm: &fcomponent::RealmProxy,
    child: &fdecl::ChildRef,
) -> Result<fio::DirectoryProxy, fcomponent::Error> {
    let (exposed, server) = create_proxy::<fio::DirectoryMarker>();
    realm.open_exposed_dir(child, server).await.unwrap().map(|()| exposed)
}

fn lifecycle_in(exposed: &fio::DirectoryProxy) -> fvirtualization::GuestLifecycleProxy {
    let name = fvirtualization::GuestLifecycleMarker::PROTOCOL_NAME;
    open::<fvirtualization::GuestLifecycleMarker>(exposed, name, fio::Flags::PROTOCOL_SERVICE)
}

#[fuchsia_async::run_singlethreaded(test)]
async fn children_are_made_reached_listed_and_destroyed() {
    let package = package();
    let (realm, proxy) = with_collections(package.path());
    create(&proxy, "devices", child("one", "#meta/echo.cm")).await.unwrap();
    let id = find(&realm, "parent/devices:one");
    assert!(realm.manager().running().contains(&id), "single-run children start at once");
    let exposed = open_exposed(&proxy, &reference("devices", "one")).await.unwrap();
    let lifecycle = lifecycle_in(&exposed);
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
    let (realm, proxy) = with_collections(package.path());
    create(&proxy, "devices", child("one", "#meta/echo.cm")).await.unwrap();
    let exposed = open_exposed(&proxy, &reference("devices", "one")).await.unwrap();
    let lifecycle = lifecycle_in(&exposed);
    lifecycle.stop().await.unwrap();
    exposed.on_closed().await.unwrap();
    let gone = open_exposed(&proxy, &reference("devices", "one")).await.unwrap_err();
    assert_eq!(gone, fcomponent::Error::InstanceNotFound);
    realm.destroy().await;
}

#[fuchsia_async::run_singlethreaded(test)]
async fn the_realm_answers_with_the_documented_errors() {
    let package = package();
    let (realm, proxy) = with_collections(package.path());
    let environment = Some("e".to_owned());
    for (place, decl, expected) in [
        ("nowhere", child("a", "#meta/echo.cm"), fcomponent::Error::CollectionNotFound),
        ("lazy", child("a b", "#meta/echo.cm"), fcomponent::Error::InvalidArguments),
        ("lazy", child("a", "no url"), fcomponent::Error::InvalidArguments),
        ("lazy", fdecl::Child::default(), fcomponent::Error::InvalidArguments),
        (
            "lazy",
            fdecl::Child { environment, ..child("a", "#meta/echo.cm") },
            fcomponent::Error::InvalidArguments,
        ),
        ("devices", child("a", "#meta/none.cm"), fcomponent::Error::InstanceCannotResolve),
    ] {
        assert_eq!(create(&proxy, place, decl.clone()).await, Err(expected), "{decl:?}");
    }
    create(&proxy, "lazy", child("a", "#meta/echo.cm")).await.unwrap();
    assert_eq!(
        create(&proxy, "lazy", child("a", "#meta/echo.cm")).await,
        Err(fcomponent::Error::InstanceAlreadyExists)
    );
    create(&proxy, "lazy", child("bad", "#meta/none.cm")).await.unwrap();
    assert_eq!(
        open_exposed(&proxy, &reference("lazy", "bad")).await.unwrap_err(),
        fcomponent::Error::InstanceCannotResolve
    );
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
    let (realm, proxy) = with_collections(package.path());
    create(&proxy, "lazy", child("a", "#meta/echo.cm")).await.unwrap();
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
async fn what_is_not_routed_is_refused_and_the_log_says_why() {
    const MANIFEST: &str = "{
        program: { runner: 'elf', binary: 'bin/stubborn' },
        capabilities: [ { service: 's' }, { dictionary: 'd' } ],
        use: [ { event_stream: 'started', from: 'parent' } ],
        expose: [ { service: 's', from: 'self' }, { dictionary: 'd', from: 'self' } ],
    }";
    let package = package();
    let mut builder = RealmBuilder::new();
    builder.add_child_from_manifest("child", MANIFEST, package.path()).unwrap();
    let realm = builder.build().unwrap();
    let (exposed, server) = create_proxy::<fio::DirectoryMarker>();
    realm.manager().open_exposed(find(&realm, "child"), server).unwrap();
    for (kind, name) in [("service", "s"), ("dictionary", "d")] {
        let opened = open::<fio::DirectoryMarker>(&exposed, name, fio::Flags::PROTOCOL_DIRECTORY);
        let error = opened.take_event_stream().next().await.unwrap().unwrap_err();
        assert!(
            matches!(
                error,
                fidl::Error::ClientChannelClosed { status: zx::Status::NOT_SUPPORTED, .. }
            ),
            "{error:?}"
        );
        let (records, _) =
            realm.manager().logs().read(0, 100, |record| &*record.moniker == "child");
        let expected = format!(
            "Its {kind} {name} was asked for: A {kind} cannot be routed by this component manager; it routes protocols, directories, storage, runners and configuration"
        );
        assert!(records.iter().any(|record| record.message == expected), "{records:?}");
    }
    realm.destroy().await;
}
