//! Routing: from a use (or an exposed capability, or a program's runner) along offers and exposes to whoever provides it.

use super::tree::{InstanceId, Tree, TreeError};
use crate::decl::*;
use crate::moniker::Moniker;
use crate::name::{Name, Path, RelativePath};

/// The most steps of a route; more than any tree of ours is deep.
const MAX_STEPS: usize = 256;

/// Why there is no way from a use to a provider.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RouteError {
    /// A parent does not offer it.
    #[error(
        "{parent} does not offer the {kind} {name} to its child {child}; add an \"offer\" to its manifest"
    )]
    NotOffered {
        /// The kind.
        kind: CapabilityType,
        /// What the child calls it.
        name: Name,
        /// The parent.
        parent: Moniker,
        /// The child.
        child: ChildName,
    },
    /// A child does not expose it.
    #[error("{child} does not expose the {kind} {name}; add an \"expose\" to its manifest")]
    NotExposed {
        /// The kind.
        kind: CapabilityType,
        /// What the parent calls it.
        name: Name,
        /// The child.
        child: Moniker,
    },
    /// The root asks for something that the system lacks.
    #[error("The system has no {kind} {name}")]
    NotBuiltin {
        /// The kind.
        kind: CapabilityType,
        /// Its name.
        name: Name,
    },
    /// The framework has nothing of that name.
    #[error("The framework has no {kind} {name}")]
    NotFramework {
        /// The kind.
        kind: CapabilityType,
        /// Its name.
        name: Name,
    },
    /// It was left out on purpose.
    #[error("The {kind} {name} of {at} comes from void")]
    Void {
        /// The kind.
        kind: CapabilityType,
        /// Its name.
        name: Name,
        /// Who says so.
        at: Moniker,
    },
    /// More rights than some step lets through.
    #[error(
        "{at} passes the directory {name} on with fewer rights than are asked for: lacking {lacking:?}"
    )]
    Rights {
        /// What the step calls it.
        name: Name,
        /// Whose manifest it is.
        at: Moniker,
        /// The difference.
        lacking: Rights,
    },
    /// An environment without the runner.
    #[error("The environment of {moniker} has no runner {runner}")]
    RunnerNotFound {
        /// The runner.
        runner: Name,
        /// The component.
        moniker: Moniker,
    },
    /// A kind that this component manager does not route.
    #[error(
        "A {0} cannot be routed by this component manager; it routes protocols, directories, storage, runners and configuration"
    )]
    Unsupported(CapabilityType),
    /// A source that this component manager does not know for this kind.
    #[error("A {0} cannot come from there")]
    UnsupportedSource(CapabilityType),
    /// A route without an end.
    #[error("The route has more than {MAX_STEPS} steps")]
    TooLong,
    /// An instance on the way is gone or cannot be resolved.
    #[error(transparent)]
    Tree(#[from] TreeError),
}

/// Who provides a capability.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RouteSource {
    /// A component, in its outgoing directory.
    Outgoing {
        /// The component.
        id: InstanceId,
        /// The place in its outgoing directory.
        path: Path,
    },
    /// The framework, for the component that asked.
    Framework {
        /// For whom.
        scope: InstanceId,
        /// What.
        name: Name,
    },
    /// The component manager itself, as if it were the root's parent.
    Builtin {
        /// What.
        name: Name,
    },
    /// A value in a manifest.
    Value(ConfigValue),
}

/// Where a route ends, and what the way there allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// The kind.
    pub kind: CapabilityType,
    /// Who provides it.
    pub source: RouteSource,
    /// For a directory: the rights of the use, or of the narrowest step where the use names none.
    pub rights: Option<Rights>,
    /// For a directory: the part of it.
    pub subdir: RelativePath,
}

/// Where storage comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StorageRoute {
    /// The component whose manifest declares the storage; monikers below it name its parts.
    pub declared_by: InstanceId,
    /// The storage's name there.
    pub name: Name,
    /// The directory that is shared out.
    pub backing: Route,
}

/// A capability as one step of a route knows it.
struct Step<'a> {
    tree: &'a mut Tree,
    kind: CapabilityType,
    name: Name,
    rights: Option<Rights>,
    subdir: RelativePath,
    left: usize,
}

enum End {
    Route(RouteSource),
    Storage { id: InstanceId, decl: CapabilityDecl },
}

impl Tree {
    /// The way of a `use` of `id`.
    ///
    /// # Errors
    /// [`RouteError`]
    pub fn route_use(&mut self, id: InstanceId, decl: &UseDecl) -> Result<Route, RouteError> {
        let step =
            Step::new(self, decl.kind, decl.source_name.clone(), decl.rights, decl.subdir.clone());
        step.finish(id, &decl.source)
    }

    /// The way of a `use` of storage.
    ///
    /// # Errors
    /// [`RouteError`]
    pub fn route_storage(
        &mut self,
        id: InstanceId,
        decl: &UseDecl,
    ) -> Result<StorageRoute, RouteError> {
        let mut step =
            Step::new(self, decl.kind, decl.source_name.clone(), None, RelativePath::default());
        let (declared_by, declaration) = match step.follow(id, &decl.source)? {
            End::Storage { id, decl } => (id, decl),
            End::Route(_) => return Err(RouteError::UnsupportedSource(CapabilityType::Storage)),
        };
        let CapabilityDecl::Storage { name, source, backing_dir, subdir } = declaration else {
            return Err(RouteError::UnsupportedSource(CapabilityType::Storage));
        };
        let rights = Some(Rights::READ | Rights::WRITE);
        let backing = Step::new(self, CapabilityType::Directory, backing_dir, rights, subdir)
            .finish(declared_by, &source)?;
        Ok(StorageRoute { declared_by, name, backing })
    }

    /// The way of what `id` exposes as `name`.
    ///
    /// # Errors
    /// [`RouteError`]
    pub fn route_expose(
        &mut self,
        id: InstanceId,
        kind: CapabilityType,
        name: &Name,
    ) -> Result<Route, RouteError> {
        let step = Step::new(self, kind, name.clone(), None, RelativePath::default());
        step.finish_exposed(id)
    }

    /// Who runs programs for `id` under the name `runner`.
    ///
    /// # Errors
    /// [`RouteError`]
    pub fn route_runner(&mut self, id: InstanceId, runner: &Name) -> Result<Route, RouteError> {
        let resolved = self.resolve(id)?;
        let used = resolved
            .decl
            .uses
            .iter()
            .find(|used| used.kind == CapabilityType::Runner && used.source_name == *runner);
        if let Some(used) = used.filter(|used| used.source != Source::Environment) {
            return self.route_use(id, used);
        }
        let mut at = id;
        loop {
            let instance = self.get(at)?;
            let Some(parent) = instance.parent else {
                let source = RouteSource::Builtin { name: runner.clone() };
                return Ok(Route {
                    kind: CapabilityType::Runner,
                    source,
                    rights: None,
                    subdir: RelativePath::default(),
                });
            };
            if let Some(name) = instance.environment.clone() {
                let holder = self.resolve(parent)?;
                let not_found = || RouteError::RunnerNotFound {
                    runner: runner.clone(),
                    moniker: Moniker::root(),
                };
                let environment = holder.decl.environment(&name).ok_or_else(not_found)?;
                if let Some(found) =
                    environment.runners.iter().find(|found| found.target_name == *runner)
                {
                    let step = Step::new(
                        self,
                        CapabilityType::Runner,
                        found.source_name.clone(),
                        None,
                        RelativePath::default(),
                    );
                    return step.finish(parent, &found.source);
                }
                if !environment.extends_realm {
                    return Err(RouteError::RunnerNotFound {
                        runner: runner.clone(),
                        moniker: self.moniker(id),
                    });
                }
            }
            at = parent;
        }
    }

    /// How long `id` has between Stop and Kill, in milliseconds, if an environment says so.
    ///
    /// # Errors
    /// [`TreeError`] where an instance on the way up is gone.
    pub fn stop_timeout_ms(&mut self, id: InstanceId) -> Result<Option<u32>, TreeError> {
        let mut at = id;
        loop {
            let instance = self.get(at)?;
            let Some(parent) = instance.parent else { return Ok(None) };
            if let Some(name) = instance.environment.clone() {
                let holder = self.resolve(parent)?;
                if let Some(environment) = holder.decl.environment(&name)
                    && (environment.stop_timeout_ms.is_some() || !environment.extends_realm)
                {
                    return Ok(environment.stop_timeout_ms);
                }
            }
            at = parent;
        }
    }
}

impl<'a> Step<'a> {
    fn new(
        tree: &'a mut Tree,
        kind: CapabilityType,
        name: Name,
        rights: Option<Rights>,
        subdir: RelativePath,
    ) -> Self {
        Self { tree, kind, name, rights, subdir, left: MAX_STEPS }
    }

    fn finish(mut self, id: InstanceId, source: &Source) -> Result<Route, RouteError> {
        let end = self.follow(id, source)?;
        self.end(end)
    }

    fn finish_exposed(mut self, id: InstanceId) -> Result<Route, RouteError> {
        let end = self.exposed_by(id)?;
        self.end(end)
    }

    fn end(self, end: End) -> Result<Route, RouteError> {
        match end {
            End::Route(source) => {
                Ok(Route { kind: self.kind, source, rights: self.rights, subdir: self.subdir })
            }
            End::Storage { .. } => Err(RouteError::UnsupportedSource(CapabilityType::Storage)),
        }
    }

    /// From `id`, whose manifest says that the capability comes from `source`.
    fn follow(&mut self, id: InstanceId, source: &Source) -> Result<End, RouteError> {
        self.left = self.left.checked_sub(1).ok_or(RouteError::TooLong)?;
        self.check_kind()?;
        match source {
            Source::Parent => self.offered_to(id),
            Source::Itself => self.declared_by(id),
            Source::Child(name) => {
                let child = self.tree.child(id, name)?;
                self.exposed_by(child)
            }
            Source::Framework => self.framework(id),
            Source::Void => Err(RouteError::Void {
                kind: self.kind,
                name: self.name.clone(),
                at: self.tree.moniker(id),
            }),
            Source::Debug | Source::Environment | Source::Collection(_) => {
                Err(RouteError::UnsupportedSource(self.kind))
            }
        }
    }

    fn offered_to(&mut self, id: InstanceId) -> Result<End, RouteError> {
        let instance = self.tree.get(id)?;
        let (Some(parent), Some(name)) = (instance.parent, instance.name.clone()) else {
            return Ok(End::Route(RouteSource::Builtin { name: self.name.clone() }));
        };
        let target = match &name.collection {
            Some(collection) => OfferTarget::Collection(collection.clone()),
            None => OfferTarget::Child(name.name.clone()),
        };
        let fits = |offer: &&OfferDecl| offer.kind == self.kind && offer.target_name == self.name;
        let dynamic = instance.dynamic_offers.iter().find(fits).cloned();
        let resolved = self.tree.resolve(parent)?;
        let offer = dynamic.or_else(|| {
            resolved.decl.offers.iter().filter(|offer| offer.target == target).find(fits).cloned()
        });
        let Some(offer) = offer else {
            let parent = self.tree.moniker(parent);
            return Err(RouteError::NotOffered {
                kind: self.kind,
                name: self.name.clone(),
                parent,
                child: name,
            });
        };
        self.pass(parent, offer.source_name, offer.rights, &offer.subdir)?;
        self.follow(parent, &offer.source)
    }

    /// Fails for what is not routed at all, rather than somewhere on the way.
    fn check_kind(&self) -> Result<(), RouteError> {
        match self.kind {
            CapabilityType::Protocol
            | CapabilityType::Directory
            | CapabilityType::Storage
            | CapabilityType::Runner
            | CapabilityType::Config => Ok(()),
            CapabilityType::Service
            | CapabilityType::Resolver
            | CapabilityType::Dictionary
            | CapabilityType::EventStream => Err(RouteError::Unsupported(self.kind)),
        }
    }

    fn exposed_by(&mut self, id: InstanceId) -> Result<End, RouteError> {
        self.check_kind()?;
        let resolved = self.tree.resolve(id)?;
        let expose = resolved
            .decl
            .exposes
            .iter()
            .find(|expose| expose.kind == self.kind && expose.target_name == self.name);
        let Some(expose) = expose else {
            return Err(RouteError::NotExposed {
                kind: self.kind,
                name: self.name.clone(),
                child: self.tree.moniker(id),
            });
        };
        self.pass(id, expose.source_name.clone(), expose.rights, &expose.subdir)?;
        self.follow(id, &expose.source)
    }

    fn declared_by(&mut self, id: InstanceId) -> Result<End, RouteError> {
        let resolved = self.tree.resolve(id)?;
        let Some(capability) = resolved.decl.capability(self.kind, &self.name) else {
            return Err(RouteError::NotExposed {
                kind: self.kind,
                name: self.name.clone(),
                child: self.tree.moniker(id),
            });
        };
        match capability {
            CapabilityDecl::Protocol { path, .. } | CapabilityDecl::Runner { path, .. } => {
                Ok(End::Route(RouteSource::Outgoing { id, path: path.clone() }))
            }
            CapabilityDecl::Directory { path, rights, name } => {
                let (path, rights, name) = (path.clone(), *rights, name.clone());
                self.pass(id, name, Some(rights), &RelativePath::default())?;
                Ok(End::Route(RouteSource::Outgoing { id, path }))
            }
            CapabilityDecl::Storage { .. } => Ok(End::Storage { id, decl: capability.clone() }),
            CapabilityDecl::Config { value, .. } => {
                Ok(End::Route(RouteSource::Value(value.clone())))
            }
            CapabilityDecl::Service { .. } | CapabilityDecl::Other { .. } => {
                Err(RouteError::Unsupported(self.kind))
            }
        }
    }

    fn framework(&mut self, scope: InstanceId) -> Result<End, RouteError> {
        let known = match self.kind {
            CapabilityType::Protocol => {
                self.name == "fuchsia.component.Realm" || self.name == "fuchsia.component.Binder"
            }
            CapabilityType::Directory => {
                // On Linux a package is the user's own, and the disks in it may be written.
                let rights = Rights::READ | Rights::WRITE | Rights::EXEC;
                let known = self.name == "pkg";
                if known {
                    let name = self.name.clone();
                    self.pass(scope, name, Some(rights), &RelativePath::default())?;
                }
                known
            }
            _ => false,
        };
        let name = self.name.clone();
        if known {
            Ok(End::Route(RouteSource::Framework { scope, name }))
        } else {
            Err(RouteError::NotFramework { kind: self.kind, name })
        }
    }

    /// Goes through a step that calls it `name` and lets at most `rights` through.
    fn pass(
        &mut self,
        at: InstanceId,
        name: Name,
        rights: Option<Rights>,
        subdir: &RelativePath,
    ) -> Result<(), RouteError> {
        if let Some(limit) = rights {
            match self.rights {
                Some(asked) if !limit.contains(asked) => {
                    return Err(RouteError::Rights {
                        name,
                        at: self.tree.moniker(at),
                        lacking: asked - limit,
                    });
                }
                Some(_) => {}
                None => self.rights = Some(limit),
            }
        }
        self.subdir = subdir.join(&self.subdir);
        self.name = name;
        Ok(())
    }
}
