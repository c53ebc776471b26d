//! Realms for tests, as Fuchsia's crate of this name has them: a test puts real components beside some that it plays itself, routes
//! capabilities between them and uses what they expose. What may enter is the client's side of `fuchsia.component.test`, in the API
//! of mid-2024, as far as the suites here need it. In-tree code could use `//src/lib/fuchsia-component-test` in its place; this one
//! exists because the suites run on Linux, too, where they speak the same FIDL to the component manager's test manager, so that what
//! runs on Fuchsia is what is tested here. Where the two systems differ is `platform`.
#![forbid(unsafe_code)]

mod capability;
pub mod error;
mod local_component_runner;
#[cfg_attr(target_os = "fuchsia", path = "platform_fuchsia.rs")]
#[cfg_attr(target_os = "linux", path = "platform_linux.rs")]
mod platform;
mod route;

pub use capability::{Capability, DirectoryCapability, ProtocolCapability, StorageCapability};
pub use local_component_runner::LocalComponentHandles;
pub use route::{ChildRef, Ref, Route};

use error::Error;
use fidl::endpoints::{DiscoverableProtocolMarker, ProtocolMarker, create_proxy};
use fidl_fuchsia_component as fcomponent;
use fidl_fuchsia_component_decl as fdecl;
use fidl_fuchsia_component_test as ftest;
use fidl_fuchsia_io as fio;
use fuchsia_async as fasync;
use fuchsia_component::client;
use fuchsia_zircon::{self as zx, AsHandleRef as _};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use local_component_runner::Implementation;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// The collection of the test's that realms are made in, which its manifest has from the shard of the realm builder.
pub const DEFAULT_COLLECTION_NAME: &str = "realm_builder";

/// What is around a realm.
#[derive(Default)]
pub struct RealmBuilderParams {
    realm_name: Option<String>,
    platform: platform::Params,
}

impl RealmBuilderParams {
    /// What [`RealmBuilder::new`] takes.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The realm's name in its collection, instead of one that nothing else has.
    #[must_use]
    pub fn realm_name(mut self, name: impl Into<String>) -> Self {
        self.realm_name = Some(name.into());
        self
    }
}

/// What is said of a child beside its name and where it comes from.
#[derive(Debug, Clone, Default)]
pub struct ChildOptions {
    eager: bool,
}

impl ChildOptions {
    /// A child that starts when one of its capabilities is first used.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A child that starts with its realm.
    #[must_use]
    pub fn eager(mut self) -> Self {
        self.eager = true;
        self
    }
}

impl From<ChildOptions> for ftest::ChildOptions {
    fn from(options: ChildOptions) -> Self {
        let startup =
            if options.eager { fdecl::StartupMode::Eager } else { fdecl::StartupMode::Lazy };
        Self { startup: Some(startup), ..Default::default() }
    }
}

/// Puts a realm together.
pub struct RealmBuilder {
    /// The test's own realm, in which the new one is made.
    outside: fcomponent::RealmProxy,
    realm: ftest::RealmProxy,
    builder: ftest::BuilderProxy,
    local: Mutex<HashMap<String, Implementation>>,
    name: String,
}

impl RealmBuilder {
    /// Begins a realm with nothing in it.
    ///
    /// # Errors
    /// Where the realm builder server cannot be reached, or refuses.
    pub async fn new() -> Result<Self, Error> {
        Self::with_params(RealmBuilderParams::new()).await
    }

    /// Begins a realm.
    ///
    /// # Errors
    /// As [`RealmBuilder::new`].
    pub async fn with_params(params: RealmBuilderParams) -> Result<Self, Error> {
        let connections = platform::connect(params.platform).await?;
        let (realm, realm_server) = create_proxy::<ftest::RealmMarker>();
        let (builder, builder_server) = create_proxy::<ftest::BuilderMarker>();
        connections.factory.create(connections.package, realm_server, builder_server).await??;
        let name = match params.realm_name {
            Some(name) => name,
            // No two objects of a system have one koid.
            None => format!(
                "auto-{:x}",
                zx::Event::create().get_koid().map_err(Error::Name)?.raw_koid()
            ),
        };
        Ok(Self { outside: connections.realm, realm, builder, local: Mutex::default(), name })
    }

    /// Adds the component at `url`: absolute, in a package of the test's package (`package#meta/….cm`), or in the test's own
    /// (`#meta/….cm`).
    ///
    /// # Errors
    /// [`Error::ServerError`]
    pub async fn add_child(
        &self,
        name: impl Into<String>,
        url: impl Into<String>,
        options: ChildOptions,
    ) -> Result<ChildRef, Error> {
        let name = name.into();
        self.realm.add_child(&name, &url.into(), &options.into()).await??;
        Ok(name.into())
    }

    /// Adds a component that the test plays itself: `implementation` is called for each of its runs, which ends with the future.
    ///
    /// # Errors
    /// [`Error::ServerError`]
    pub async fn add_local_child<I>(
        &self,
        name: impl Into<String>,
        implementation: I,
        options: ChildOptions,
    ) -> Result<ChildRef, Error>
    where
        I: Fn(LocalComponentHandles) -> BoxFuture<'static, Result<(), anyhow::Error>>
            + Send
            + Sync
            + 'static,
    {
        let name = name.into();
        self.realm.add_local_child(&name, &options.into()).await??;
        let mut local = self.local.lock().unwrap_or_else(PoisonError::into_inner);
        local.insert(name.clone(), Arc::new(implementation));
        Ok(name.into())
    }

    /// Adds a route. The ends that are local components get the declarations that it needs; others have theirs.
    ///
    /// # Errors
    /// [`Error::ServerError`], [`Error::MissingSource`]
    pub async fn add_route(&self, route: Route) -> Result<(), Error> {
        let from = route.from.ok_or(Error::MissingSource)?;
        let to: Vec<fdecl::Ref> = route.to.into_iter().map(Into::into).collect();
        Ok(self.realm.add_route(&route.capabilities, &from.into(), &to).await??)
    }

    /// Makes the realm, and starts its eager children.
    ///
    /// # Errors
    /// [`Error::ServerError`], [`Error::FailedToCreateChild`]
    pub async fn build(self) -> Result<RealmInstance, Error> {
        let local = self.local.into_inner().unwrap_or_else(PoisonError::into_inner);
        let (runner, local_component_runner_task) = local_component_runner::serve(local);
        let url = self.builder.build(runner).await??;
        let root = ScopedInstance::create(self.outside, self.name, url).await?;
        // The connection starts the root, and with it its eager children; it needs nothing of it.
        drop(root.connect_to_protocol_at_exposed_dir::<fcomponent::BinderMarker>());
        Ok(RealmInstance { root, local_component_runner_task })
    }
}

/// A realm that runs. Dropped, it is destroyed some time later.
pub struct RealmInstance {
    /// The realm's root, which exposes what was routed to [`Ref::parent`].
    pub root: ScopedInstance,
    local_component_runner_task: fasync::Task<()>,
}

impl RealmInstance {
    /// Destroys the realm, and waits until its components have stopped.
    ///
    /// # Errors
    /// [`Error::FailedToDestroyChild`]
    pub async fn destroy(mut self) -> Result<(), Error> {
        let destroyed = self.root.destroy().await;
        drop(self.local_component_runner_task);
        destroyed
    }
}

/// A component in a collection of the test's that is destroyed with this.
pub struct ScopedInstance {
    realm: fcomponent::RealmProxy,
    child: fdecl::ChildRef,
    exposed: fio::DirectoryProxy,
    destroyed: bool,
}

impl ScopedInstance {
    async fn create(
        realm: fcomponent::RealmProxy,
        name: String,
        url: String,
    ) -> Result<Self, Error> {
        let collection = DEFAULT_COLLECTION_NAME.to_owned();
        let decl = fdecl::Child {
            name: Some(name.clone()),
            url: Some(url),
            startup: Some(fdecl::StartupMode::Lazy),
            ..Default::default()
        };
        let place = fdecl::CollectionRef { name: collection.clone() };
        let created = realm.create_child(&place, &decl, fcomponent::CreateChildArgs::default());
        created.await?.map_err(Error::FailedToCreateChild)?;
        let child = fdecl::ChildRef { name, collection: Some(collection) };
        let (exposed, server) = create_proxy::<fio::DirectoryMarker>();
        let this = Self { realm, child, exposed, destroyed: false };
        let opened = this.realm.open_exposed_dir(&this.child, server).await?;
        opened.map_err(Error::FailedToOpenExposedDir)?;
        Ok(this)
    }

    /// Its name in its collection.
    #[must_use]
    pub fn child_name(&self) -> &str {
        &self.child.name
    }

    /// The directory of what it exposes.
    #[must_use]
    pub fn get_exposed_dir(&self) -> &fio::DirectoryProxy {
        &self.exposed
    }

    /// Connects to a protocol that it exposes.
    ///
    /// # Errors
    /// Where it is gone.
    pub fn connect_to_protocol_at_exposed_dir<P: DiscoverableProtocolMarker>(
        &self,
    ) -> Result<P::Proxy, anyhow::Error> {
        client::connect_to_protocol_at_dir_root::<P>(&self.exposed)
    }

    /// Connects to a protocol that it exposes under another name than the protocol's.
    ///
    /// # Errors
    /// Where it is gone.
    pub fn connect_to_named_protocol_at_exposed_dir<P: ProtocolMarker>(
        &self,
        name: &str,
    ) -> Result<P::Proxy, anyhow::Error> {
        client::connect_to_named_protocol_at_dir_root::<P>(&self.exposed, name)
    }

    async fn destroy(&mut self) -> Result<(), Error> {
        self.destroyed = true;
        self.realm.destroy_child(&self.child).await?.map_err(Error::FailedToDestroyChild)
    }
}

impl Drop for ScopedInstance {
    fn drop(&mut self) {
        if !self.destroyed {
            // The request is on its way with the first poll; nobody waits for the answer.
            let _answered = self.realm.destroy_child(&self.child).now_or_never();
        }
    }
}
