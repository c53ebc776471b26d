//! Realms for tests, in the manner of Fuchsia's library `fuchsia-component-test`: real components beside fakes that are closures of the
//! test, with the routes between them. [`TestManager`] builds them for that library; this crate's own tests use [`RealmBuilder`].
//!
//! A realm runs in the test's own process and executor; its components that have a binary are processes all the same.

mod server;

pub use server::{TestManager, open_host_directory};

use crate::builtin::Builtins;
use crate::cml::{self, Diagnostics, NoIncludes};
use crate::decl::*;
use crate::log::LogStore;
use crate::manager::Manager;
use crate::model::TreeError;
use crate::moniker::Moniker;
use crate::name::{Name, ParseError, RelativePath, Url};
use crate::resolver::{Package, ResolveError, Resolved, Resolver};
use crate::runner::{Elf, Runner};
use fidl::endpoints::{DiscoverableProtocolMarker, ProtocolMarker, ServerEnd, create_proxy};
use fidl_fuchsia_component_runner as fcrunner;
use fidl_fuchsia_component_test as ftest;
use fidl_fuchsia_io as fio;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// The scheme of the URLs of a realm's own components.
const SCHEME: &str = "realm-builder";
/// The runner of local components.
const RUNNER: &str = "realm_builder";

/// Why a realm cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum RealmBuilderError {
    /// A name or URL is none.
    #[error("{text:?}: {error}")]
    Parse {
        /// It.
        text: String,
        /// Why.
        error: ParseError,
    },
    /// A manifest is wrong.
    #[error(transparent)]
    Manifest(#[from] Diagnostics),
    /// Two children have one name.
    #[error("There is a child {0} already")]
    ChildExists(Name),
    /// The framework takes nothing.
    #[error("A route of {0} cannot end in the framework")]
    EndsInFramework(Name),
    /// The realm does not resolve.
    #[error(transparent)]
    Tree(#[from] TreeError),
}

fn parse<T: std::str::FromStr<Err = ParseError>>(text: &str) -> Result<T, RealmBuilderError> {
    text.parse().map_err(|error| RealmBuilderError::Parse { text: text.to_owned(), error })
}

/// A child of the realm under construction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChildRef(Name);

/// The start or end of a route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ref {
    /// A child.
    Child(ChildRef),
    /// The test, or above it what the builder provides.
    Parent,
    /// The component manager, for the realm itself. Only the start of a route.
    Framework,
}

impl From<&ChildRef> for Ref {
    fn from(child: &ChildRef) -> Self {
        Self::Child(child.clone())
    }
}

/// What goes along a route.
#[derive(Debug, Clone)]
pub struct Capability {
    kind: CapabilityType,
    name: String,
    path: Option<String>,
    rights: Option<Rights>,
}

impl Capability {
    /// The protocol of this marker.
    #[must_use]
    pub fn protocol<P: DiscoverableProtocolMarker>() -> Self {
        Self::protocol_by_name(P::PROTOCOL_NAME)
    }

    /// The protocol of this name.
    #[must_use]
    pub fn protocol_by_name(name: &str) -> Self {
        Self { kind: CapabilityType::Protocol, name: name.to_owned(), path: None, rights: None }
    }

    /// A directory, which local components have and see at `path`.
    #[must_use]
    pub fn directory(name: &str, path: &str, rights: Rights) -> Self {
        Self {
            kind: CapabilityType::Directory,
            name: name.to_owned(),
            path: Some(path.to_owned()),
            rights: Some(rights),
        }
    }

    /// Storage, which local components see at `path`.
    #[must_use]
    pub fn storage(name: &str, path: &str) -> Self {
        Self {
            kind: CapabilityType::Storage,
            name: name.to_owned(),
            path: Some(path.to_owned()),
            rights: None,
        }
    }
}

/// Puts a realm together.
pub struct RealmBuilder {
    root: ComponentDecl,
    components: HashMap<String, (ComponentDecl, Package)>,
    /// The components that the test runs itself, by `runner`.
    locals: HashSet<String>,
    runner: Option<fcrunner::ComponentRunnerProxy>,
    builtins: Builtins,
    resolver: Option<Rc<dyn Resolver>>,
    logs: LogStore,
}

impl Default for RealmBuilder {
    fn default() -> Self {
        Self::new()
    }
}

impl RealmBuilder {
    /// A realm with nothing in it. `fuchsia.logger.LogSink` and the runner `elf` come from its parent.
    #[must_use]
    pub fn new() -> Self {
        let logs = LogStore::default();
        let builtins =
            Builtins::default().with_log_sink(logs.clone()).with_runner("elf", Rc::new(Elf));
        Self {
            root: ComponentDecl::default(),
            components: HashMap::new(),
            locals: HashSet::new(),
            runner: None,
            builtins,
            resolver: None,
            logs,
        }
    }

    /// Takes URLs that are not the realm's own to `resolver`.
    #[must_use]
    pub fn with_resolver(mut self, resolver: Rc<dyn Resolver>) -> Self {
        self.resolver = Some(resolver);
        self
    }

    /// Adds to what the realm's parent provides.
    #[must_use]
    pub fn with_builtins(mut self, add: impl FnOnce(Builtins) -> Builtins) -> Self {
        self.builtins = add(std::mem::take(&mut self.builtins));
        self
    }

    /// Makes a directory of this machine the storage `name`, for routes from the parent.
    ///
    /// # Errors
    /// [`RealmBuilderError::Parse`]
    pub fn add_storage(&mut self, name: &str, path: &Path) -> Result<(), RealmBuilderError> {
        let backing = format!("host_{name}");
        let declaration = CapabilityDecl::Storage {
            name: parse(name)?,
            source: Source::Parent,
            backing_dir: parse(&backing)?,
            subdir: RelativePath::default(),
        };
        self.root.capabilities.push(declaration);
        self.builtins = std::mem::take(&mut self.builtins).with_directory(&backing, path);
        Ok(())
    }

    fn add(
        &mut self,
        name: &str,
        url: &str,
        startup: Startup,
    ) -> Result<ChildRef, RealmBuilderError> {
        let name: Name = parse(name)?;
        if self.root.child(&name).is_some() {
            return Err(RealmBuilderError::ChildExists(name));
        }
        self.root.children.push(ChildDecl {
            name: name.clone(),
            url: parse(url)?,
            startup,
            environment: None,
        });
        Ok(ChildRef(name))
    }

    /// Adds the component at `url`.
    ///
    /// # Errors
    /// [`RealmBuilderError`]
    pub fn add_child(
        &mut self,
        name: &str,
        url: &str,
        startup: Startup,
    ) -> Result<ChildRef, RealmBuilderError> {
        self.add(name, url, startup)
    }

    /// Adds a component by the text of its manifest, whose binaries are in the directory `package`.
    ///
    /// # Errors
    /// [`RealmBuilderError`]
    pub fn add_child_from_manifest(
        &mut self,
        name: &str,
        manifest: &str,
        package: &Path,
    ) -> Result<ChildRef, RealmBuilderError> {
        let child = self.add(name, &own_url(name), Startup::Lazy)?;
        let decl = cml::compile(&format!("{name}.cml"), manifest, &NoIncludes)?;
        self.components.insert(name.to_owned(), (decl, Package::Directory(package.to_owned())));
        Ok(child)
    }

    /// Adds a component that the test runs as a runner does.
    fn add_local_child(
        &mut self,
        name: &str,
        startup: Startup,
    ) -> Result<ChildRef, RealmBuilderError> {
        let child = self.add(name, &own_url(name), startup)?;
        let key = ftest::LOCAL_COMPONENT_NAME_KEY.to_owned();
        let info = BTreeMap::from([(key, ProgramValue::Str(name.to_owned()))]);
        let program = ProgramDecl { runner: Some(parse(RUNNER)?), info };
        let decl = ComponentDecl { program: Some(program), ..Default::default() };
        self.components
            .insert(name.to_owned(), (decl, Package::Directory(PathBuf::from("/nonexistent"))));
        self.locals.insert(name.to_owned());
        Ok(child)
    }

    /// Routes a capability. A local component at either end gets the declaration that this needs; others have theirs.
    ///
    /// # Errors
    /// [`RealmBuilderError`]
    pub fn add_route(
        &mut self,
        capability: &Capability,
        from: impl Into<Ref>,
        to: &[Ref],
    ) -> Result<(), RealmBuilderError> {
        let from = from.into();
        let name: Name = parse(&capability.name)?;
        if let Ref::Child(child) = &from {
            self.provide(child, capability, &name)?;
        }
        let source = match &from {
            Ref::Child(child) => {
                Source::Child(ChildName { collection: None, name: child.0.clone() })
            }
            Ref::Parent if capability.kind == CapabilityType::Storage => Source::Itself,
            Ref::Parent => Source::Parent,
            Ref::Framework => Source::Framework,
        };
        for to in to {
            let (rights, subdir, availability) =
                (None, RelativePath::default(), Availability::Required);
            match to {
                Ref::Framework => return Err(RealmBuilderError::EndsInFramework(name)),
                Ref::Parent => self.root.exposes.push(ExposeDecl {
                    kind: capability.kind,
                    source_name: name.clone(),
                    source: source.clone(),
                    target_name: name.clone(),
                    rights,
                    subdir,
                    availability,
                }),
                Ref::Child(child) => {
                    self.consume(child, capability, &name)?;
                    self.root.offers.push(OfferDecl {
                        kind: capability.kind,
                        source_name: name.clone(),
                        source: source.clone(),
                        target: OfferTarget::Child(child.0.clone()),
                        target_name: name.clone(),
                        rights,
                        subdir,
                        availability,
                    });
                }
            }
        }
        Ok(())
    }

    fn provide(
        &mut self,
        child: &ChildRef,
        capability: &Capability,
        name: &Name,
    ) -> Result<(), RealmBuilderError> {
        let Some((decl, _)) = self.local_decl(child) else { return Ok(()) };
        if decl.capability(capability.kind, name).is_some() {
            return Ok(());
        }
        let path = match &capability.path {
            Some(path) => parse(path)?,
            None => parse(&format!("/svc/{name}"))?,
        };
        decl.capabilities.push(match capability.kind {
            CapabilityType::Directory => CapabilityDecl::Directory {
                name: name.clone(),
                path,
                rights: capability.rights.unwrap_or(Rights::READ),
            },
            _ => CapabilityDecl::Protocol { name: name.clone(), path },
        });
        decl.exposes.push(ExposeDecl {
            kind: capability.kind,
            source_name: name.clone(),
            source: Source::Itself,
            target_name: name.clone(),
            rights: None,
            subdir: RelativePath::default(),
            availability: Availability::Required,
        });
        Ok(())
    }

    fn consume(
        &mut self,
        child: &ChildRef,
        capability: &Capability,
        name: &Name,
    ) -> Result<(), RealmBuilderError> {
        let Some((decl, _)) = self.local_decl(child) else { return Ok(()) };
        let path = match &capability.path {
            Some(path) => parse(path)?,
            None => parse(&format!("/svc/{name}"))?,
        };
        decl.uses.push(UseDecl {
            kind: capability.kind,
            source_name: name.clone(),
            source: Source::Parent,
            target_path: Some(path),
            rights: capability.rights,
            subdir: RelativePath::default(),
            availability: Availability::Required,
            config_key: None,
            config_default: None,
        });
        Ok(())
    }

    fn local_decl(&mut self, child: &ChildRef) -> Option<&mut (ComponentDecl, Package)> {
        let name = child.0.as_str();
        if self.locals.contains(name) { self.components.get_mut(name) } else { None }
    }

    /// Builds the realm and starts its eager children.
    ///
    /// # Errors
    /// [`RealmBuilderError`]
    pub fn build(self) -> Result<RealmInstance, RealmBuilderError> {
        let mut components = HashMap::new();
        let root_url: Url = parse(&own_url("root"))?;
        let package = Package::Directory(PathBuf::from("/nonexistent"));
        let eager: Vec<_> = self
            .root
            .children
            .iter()
            .filter(|child| child.startup == Startup::Eager)
            .map(|child| child.name.clone())
            .collect();
        for (name, (decl, package)) in self.components {
            let url: Url = parse(&own_url(&name))?;
            components.insert(url.to_string(), Rc::new(Resolved { url, decl, package }));
        }
        components.insert(
            root_url.to_string(),
            Rc::new(Resolved { url: root_url.clone(), decl: self.root, package }),
        );
        let resolver = Rc::new(RealmResolver { components, outside: self.resolver });
        let mut builtins = self.builtins;
        if let Some(runner) = self.runner {
            builtins = builtins.with_runner(RUNNER, Rc::new(TestRunner(runner)));
        }
        let manager = Manager::new(root_url, resolver, builtins, self.logs);
        let (exposed, server) = create_proxy::<fio::DirectoryMarker>();
        manager.open_root(server)?;
        for name in eager {
            let root = manager.tree().root();
            let child = manager.tree().child(root, &ChildName { collection: None, name })?;
            // Why it did not start is in its log.
            let _logged = manager.start(child);
        }
        Ok(RealmInstance { manager, exposed })
    }
}

fn own_url(name: &str) -> String {
    format!("{SCHEME}://realm/{name}#meta/{name}.cm")
}

struct RealmResolver {
    components: HashMap<String, Rc<Resolved>>,
    outside: Option<Rc<dyn Resolver>>,
}

impl Resolver for RealmResolver {
    fn resolve(&self, url: &Url) -> Result<Rc<Resolved>, ResolveError> {
        match (self.components.get(&url.to_string()), &self.outside) {
            (Some(found), _) => Ok(Rc::clone(found)),
            (None, Some(outside)) if url.scheme() != SCHEME => outside.resolve(url),
            (None, _) if url.scheme() == SCHEME => {
                Err(ResolveError::PackageNotFound(url.package_name().to_owned()))
            }
            (None, _) => Err(ResolveError::UnknownScheme(url.scheme().to_owned())),
        }
    }
}

/// The runner that the test serves.
struct TestRunner(fcrunner::ComponentRunnerProxy);

impl Runner for TestRunner {
    fn start(
        &self,
        _moniker: &Moniker,
        _resolved: &Resolved,
        info: fcrunner::ComponentStartInfo,
        controller: ServerEnd<fcrunner::ComponentControllerMarker>,
    ) {
        // A test that is gone closes the controller, which tells enough.
        let _gone = self.0.start(info, controller);
    }
}

fn connect_at<P: ProtocolMarker>(directory: &fio::DirectoryProxy, path: &str) -> P::Proxy {
    let (proxy, server) = create_proxy::<P>();
    // A directory that is gone closes the channel, which its user sees.
    let _gone = directory.open(
        path,
        fio::Flags::PROTOCOL_SERVICE,
        &fio::Options::default(),
        server.into_channel(),
    );
    proxy
}

/// A realm that runs. Dropped, it ends with its processes; [`RealmInstance::destroy`] lets its components stop.
pub struct RealmInstance {
    manager: Manager,
    exposed: fio::DirectoryProxy,
}

impl RealmInstance {
    /// Connects to a protocol that is routed to the test.
    #[must_use]
    pub fn connect_to_protocol<P: DiscoverableProtocolMarker>(&self) -> P::Proxy {
        connect_at::<P>(&self.exposed, P::PROTOCOL_NAME)
    }

    /// Connects to the protocol that is routed to the test under this name.
    #[must_use]
    pub fn connect_to_named_protocol<P: ProtocolMarker>(&self, name: &str) -> P::Proxy {
        connect_at::<P>(&self.exposed, name)
    }

    /// What is routed to the test.
    #[must_use]
    pub fn exposed_dir(&self) -> &fio::DirectoryProxy {
        &self.exposed
    }

    /// The component manager of the realm.
    #[must_use]
    pub fn manager(&self) -> &Manager {
        &self.manager
    }

    /// Stops all components.
    pub async fn destroy(self) {
        self.manager.shutdown().await;
    }
}
