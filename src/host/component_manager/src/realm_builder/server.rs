//! `fuchsia.component.test` and the test's own `fuchsia.component.Realm`: what a test has on Fuchsia from the realm builder server and
//! from the collection in its manifest.

use super::{Capability, RealmBuilder, RealmBuilderError, RealmInstance, Ref};
use crate::builtin::Builtins;
use crate::decl::{CapabilityType, Rights, Startup};
use crate::host_directory::{self, Access};
use crate::manager::Manager;
use crate::resolver::Resolver;
use fidl::endpoints::{ClientEnd, ServerEnd, create_proxy, create_proxy_and_stream};
use fidl_fuchsia_component as fcomponent;
use fidl_fuchsia_component_decl as fdecl;
use fidl_fuchsia_component_runner as fcrunner;
use fidl_fuchsia_component_test as ftest;
use fidl_fuchsia_io as fio;
use fuchsia_async as fasync;
use futures::StreamExt;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use vfs::execution_scope::ExecutionScope;

/// The collection that realms are made in.
const COLLECTION: &str = "realm_builder";

/// Stands for the test manager: what is around a test, and the realms that the test has built. Clones are the same one.
#[derive(Clone, Default)]
pub struct TestManager {
    package: String,
    resolver: Option<Rc<dyn Resolver>>,
    builtins: Option<Rc<dyn Fn(Builtins) -> Builtins>>,
    storages: Vec<(String, PathBuf)>,
    realms: Rc<Realms>,
}

#[derive(Default)]
struct Realms {
    /// Complete, and not yet running, by the URLs that stand for them.
    built: RefCell<HashMap<String, RealmBuilder>>,
    /// By the names that the test gave them.
    running: RefCell<HashMap<String, RealmInstance>>,
    last: Cell<u64>,
}

/// A realm under construction, until it is complete.
type Construction = Rc<RefCell<Option<RealmBuilder>>>;

impl TestManager {
    /// A test whose package is at `package`, such as `fuchsia-pkg://fuchsia.com/tests`. All URLs are `resolver`'s.
    #[must_use]
    pub fn with_package(mut self, package: &str, resolver: Rc<dyn Resolver>) -> Self {
        package.clone_into(&mut self.package);
        self.resolver = Some(resolver);
        self
    }

    /// Adds to what comes from the test's parent, which otherwise is `fuchsia.logger.LogSink`.
    #[must_use]
    pub fn with_builtins(mut self, add: impl Fn(Builtins) -> Builtins + 'static) -> Self {
        self.builtins = Some(Rc::new(add));
        self
    }

    /// A directory of this machine is the storage `name` from the test's parent.
    #[must_use]
    pub fn with_storage(mut self, name: &str, path: &Path) -> Self {
        self.storages.push((name.to_owned(), path.to_owned()));
        self
    }

    /// The component managers of the realms that run.
    #[must_use]
    pub fn managers(&self) -> Vec<Manager> {
        self.realms.running.borrow().values().map(|realm| realm.manager.clone()).collect()
    }

    /// Connects to the realm builder server.
    #[must_use]
    pub fn realm_builder_factory(&self) -> ftest::RealmBuilderFactoryProxy {
        let (proxy, mut requests) = create_proxy_and_stream::<ftest::RealmBuilderFactoryMarker>();
        let this = self.clone();
        fasync::Task::local(async move {
            while let Some(Ok(ftest::RealmBuilderFactoryRequest::Create {
                realm_server_end,
                builder_server_end,
                responder,
                ..
            })) = requests.next().await
            {
                let begun = this.begin(realm_server_end, builder_server_end);
                if responder.send(begun).is_err() {
                    return;
                }
            }
        })
        .detach();
        proxy
    }

    fn begin(
        &self,
        realm: ServerEnd<ftest::RealmMarker>,
        builder: ServerEnd<ftest::BuilderMarker>,
    ) -> Result<(), ftest::RealmBuilderError> {
        let mut native = RealmBuilder::new();
        if let Some(resolver) = &self.resolver {
            native = native.with_resolver(Rc::clone(resolver));
        }
        if let Some(add) = &self.builtins {
            native = native.with_builtins(|builtins| add(builtins));
        }
        for (name, path) in &self.storages {
            native.add_storage(name, path).map_err(|error| as_fidl(&error))?;
        }
        let construction: Construction = Rc::new(RefCell::new(Some(native)));
        fasync::Task::local(self.clone().serve_realm(Rc::clone(&construction), realm)).detach();
        fasync::Task::local(self.clone().serve_builder(construction, builder)).detach();
        Ok(())
    }

    async fn serve_realm(self, construction: Construction, server: ServerEnd<ftest::RealmMarker>) {
        let mut requests = server.into_stream();
        while let Some(Ok(request)) = requests.next().await {
            let mut construction = construction.borrow_mut();
            let builder = construction.as_mut().ok_or(ftest::RealmBuilderError::BuildAlreadyCalled);
            let sent = match request {
                ftest::RealmRequest::AddChild { name, url, options, responder } => responder.send(
                    builder.and_then(|builder| self.add_child(builder, &name, &url, &options)),
                ),
                ftest::RealmRequest::AddLocalChild { name, options, responder } => {
                    responder.send(builder.and_then(|builder| {
                        let added = builder.add_local_child(&name, startup(&options)?);
                        added.map(drop).map_err(|error| as_fidl(&error))
                    }))
                }
                ftest::RealmRequest::AddRoute { capabilities, from, to, responder } => responder
                    .send(
                        builder.and_then(|builder| add_route(builder, &capabilities, &from, &to)),
                    ),
            };
            if sent.is_err() {
                return;
            }
        }
    }

    fn add_child(
        &self,
        builder: &mut RealmBuilder,
        name: &str,
        url: &str,
        options: &ftest::ChildOptions,
    ) -> Result<(), ftest::RealmBuilderError> {
        if !url.ends_with(".cm") {
            return Err(ftest::RealmBuilderError::InvalidManifestExtension);
        }
        let url = match url.strip_prefix('#') {
            Some(_) => format!("{}{url}", self.package),
            None => url.to_owned(),
        };
        let added = builder.add_child(name, &url, startup(options)?);
        added.map(drop).map_err(|error| as_fidl(&error))
    }

    async fn serve_builder(
        self,
        construction: Construction,
        server: ServerEnd<ftest::BuilderMarker>,
    ) {
        let mut requests = server.into_stream();
        while let Some(Ok(ftest::BuilderRequest::Build { runner, responder })) =
            requests.next().await
        {
            let complete = construction.borrow_mut().take();
            let complete = complete.ok_or(ftest::RealmBuilderError::BuildAlreadyCalled);
            let url = complete.map(|builder| self.keep(builder, runner));
            if responder.send(url.as_deref().map_err(|error| *error)).is_err() {
                return;
            }
        }
    }

    /// Keeps a complete realm until it is made a child, and names it.
    fn keep(
        &self,
        mut builder: RealmBuilder,
        runner: ClientEnd<fcrunner::ComponentRunnerMarker>,
    ) -> String {
        builder.runner = Some(runner.into_proxy());
        let number = self.realms.last.get() + 1;
        self.realms.last.set(number);
        let url = format!("{}://{number}/#meta/root.cm", super::SCHEME);
        self.realms.built.borrow_mut().insert(url.clone(), builder);
        url
    }

    /// Connects to the test's own realm, whose one collection holds what was built.
    #[must_use]
    pub fn realm(&self) -> fcomponent::RealmProxy {
        let (proxy, mut requests) = create_proxy_and_stream::<fcomponent::RealmMarker>();
        let this = self.clone();
        fasync::Task::local(async move {
            while let Some(Ok(request)) = requests.next().await {
                if this.answer(request).await.is_err() {
                    return;
                }
            }
        })
        .detach();
        proxy
    }

    async fn answer(&self, request: fcomponent::RealmRequest) -> Result<(), fidl::Error> {
        match request {
            fcomponent::RealmRequest::CreateChild { collection, decl, responder, .. } => {
                responder.send(self.create_child(&collection, decl))
            }
            fcomponent::RealmRequest::DestroyChild { child, responder } => {
                let realm = self.realms.running.borrow_mut().remove(&child.name);
                responder.send(match realm {
                    Some(realm) => {
                        realm.destroy().await;
                        Ok(())
                    }
                    None => Err(fcomponent::Error::InstanceNotFound),
                })
            }
            fcomponent::RealmRequest::OpenExposedDir { child, exposed_dir, responder } => {
                let opened = match self.realms.running.borrow().get(&child.name) {
                    Some(realm) => {
                        realm.manager.open_root(exposed_dir).map_err(|error| error.as_fidl())
                    }
                    None => Err(fcomponent::Error::InstanceNotFound),
                };
                responder.send(opened)
            }
            fcomponent::RealmRequest::OpenController { responder, .. } => {
                responder.send(Err(fcomponent::Error::Unsupported))
            }
            fcomponent::RealmRequest::ListChildren { responder, .. } => {
                responder.send(Err(fcomponent::Error::Unsupported))
            }
        }
    }

    fn create_child(
        &self,
        collection: &fdecl::CollectionRef,
        decl: fdecl::Child,
    ) -> Result<(), fcomponent::Error> {
        if collection.name != COLLECTION {
            return Err(fcomponent::Error::CollectionNotFound);
        }
        let (Some(name), Some(url)) = (decl.name, decl.url) else {
            return Err(fcomponent::Error::InvalidArguments);
        };
        if self.realms.running.borrow().contains_key(&name) {
            return Err(fcomponent::Error::InstanceAlreadyExists);
        }
        let builder = self.realms.built.borrow_mut().remove(&url);
        let builder = builder.ok_or(fcomponent::Error::InstanceCannotResolve)?;
        let realm = builder.build().map_err(|_| fcomponent::Error::InstanceCannotResolve)?;
        self.realms.running.borrow_mut().insert(name, realm);
        Ok(())
    }
}

fn as_fidl(error: &RealmBuilderError) -> ftest::RealmBuilderError {
    match error {
        RealmBuilderError::ChildExists(_) => ftest::RealmBuilderError::ChildAlreadyExists,
        _ => ftest::RealmBuilderError::InvalidComponentDecl,
    }
}

fn startup(options: &ftest::ChildOptions) -> Result<Startup, ftest::RealmBuilderError> {
    if options.environment.is_some() || options.config_overrides.is_some() {
        // Realms here have neither environments nor configuration.
        return Err(ftest::RealmBuilderError::InvalidComponentDecl);
    }
    Ok(match options.startup {
        Some(fdecl::StartupMode::Eager) => Startup::Eager,
        Some(fdecl::StartupMode::Lazy) | None => Startup::Lazy,
    })
}

fn add_route(
    builder: &mut RealmBuilder,
    capabilities: &[ftest::Capability],
    from: &fdecl::Ref,
    to: &[fdecl::Ref],
) -> Result<(), ftest::RealmBuilderError> {
    if capabilities.is_empty() {
        return Err(ftest::RealmBuilderError::CapabilitiesEmpty);
    }
    if to.is_empty() {
        return Err(ftest::RealmBuilderError::TargetsEmpty);
    }
    if to.contains(from) {
        return Err(ftest::RealmBuilderError::SourceAndTargetMatch);
    }
    let source = end(builder, from).ok_or(ftest::RealmBuilderError::NoSuchSource)?;
    let targets: Option<Vec<_>> = to.iter().map(|to| end(builder, to)).collect();
    let targets = targets.ok_or(ftest::RealmBuilderError::NoSuchTarget)?;
    for capability in capabilities {
        let capability = native(capability).ok_or(ftest::RealmBuilderError::CapabilityInvalid)?;
        builder
            .add_route(&capability, source.clone(), &targets)
            .map_err(|error| as_fidl(&error))?;
    }
    Ok(())
}

/// The parent, the framework, or a child that is there.
fn end(builder: &RealmBuilder, end: &fdecl::Ref) -> Option<Ref> {
    match end {
        fdecl::Ref::Parent(_) => Some(Ref::Parent),
        fdecl::Ref::Framework(_) => Some(Ref::Framework),
        fdecl::Ref::Child(child) if child.collection.is_none() => {
            let name = child.name.parse().ok()?;
            builder.root.child(&name)?;
            Some(Ref::Child(super::ChildRef(name)))
        }
        _ => None,
    }
}

/// A capability in our terms, or `None` for one that is not complete, of another kind, or with wishes that no test here has.
fn native(capability: &ftest::Capability) -> Option<Capability> {
    let (kind, name, renamed, path, availability, rights) = match capability {
        ftest::Capability::Protocol(it) => {
            (CapabilityType::Protocol, &it.name, &it.as_, &it.path, it.availability, None)
        }
        ftest::Capability::Directory(it) if it.subdir.is_none() => {
            let rights = it.rights.map(|rights| Rights::from_bits_truncate(rights.bits()));
            (CapabilityType::Directory, &it.name, &it.as_, &it.path, it.availability, rights)
        }
        ftest::Capability::Storage(it) => {
            (CapabilityType::Storage, &it.name, &it.as_, &it.path, it.availability, None)
        }
        _ => return None,
    };
    let is_required = matches!(availability, None | Some(fdecl::Availability::Required));
    if renamed.is_some() || !is_required {
        return None;
    }
    Some(Capability { kind, name: name.clone()?, path: path.clone(), rights })
}

/// Opens a directory of this machine, to be read, written and executed: what a component's directory is in a package of the user's.
#[must_use]
pub fn open_host_directory(path: &Path) -> fio::DirectoryProxy {
    let (proxy, server) = create_proxy::<fio::DirectoryMarker>();
    let rights = fio::RW_STAR_DIR | fio::RX_STAR_DIR;
    let directory = host_directory::directory(path, Access::Package);
    vfs::directory::serve(directory, &ExecutionScope::new(), rights, server);
    proxy
}
