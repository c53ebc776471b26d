//! Instances: made from static children when their parent is resolved, and in collections when somebody asks.

use crate::decl::{ChildName, Durability, OfferDecl, Startup};
use crate::moniker::Moniker;
use crate::name::{Name, Url};
use crate::resolver::{ResolveError, Resolved, Resolver};
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

/// An instance, for as long as the tree lives: numbers are not used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InstanceId(u64);

/// Why the tree did not change, or an instance was not found.
#[derive(Debug, Clone, thiserror::Error)]
pub enum TreeError {
    /// It was destroyed.
    #[error("The instance has been destroyed")]
    Destroyed,
    /// No such child.
    #[error("{parent} has no child {child}")]
    ChildNotFound {
        /// The parent.
        parent: Moniker,
        /// The child's name.
        child: ChildName,
    },
    /// No such collection.
    #[error("{parent} has no collection {collection}")]
    CollectionNotFound {
        /// The parent.
        parent: Moniker,
        /// The collection's name.
        collection: Name,
    },
    /// The name is taken.
    #[error("{parent} has a child {child} already")]
    ChildExists {
        /// The parent.
        parent: Moniker,
        /// The child's name.
        child: ChildName,
    },
    /// The collection does not take offers along with children.
    #[error("The collection {0} allows no dynamic offers")]
    NoDynamicOffers(Name),
    /// Its URL leads nowhere.
    #[error("{moniker} ({url}): {error}")]
    Unresolved {
        /// The instance.
        moniker: Moniker,
        /// Its URL.
        url: Url,
        /// Why.
        error: ResolveError,
    },
}

/// One component instance.
#[derive(Debug)]
pub struct Instance {
    /// Its name under its parent; `None` for the root.
    pub name: Option<ChildName>,
    /// Who holds it; `None` for the root.
    pub parent: Option<InstanceId>,
    /// The URL as its parent wrote it.
    pub url: Url,
    /// When it starts.
    pub startup: Startup,
    /// The environment of the parent's manifest in which it lives; `None` is the parent's own.
    pub environment: Option<Name>,
    /// How long it lives; `None` for a static instance: as long as the parent.
    pub durability: Option<Durability>,
    /// What `CreateChild` offered to this instance alone.
    pub dynamic_offers: Vec<OfferDecl>,
    children: BTreeMap<ChildName, InstanceId>,
    resolved: Option<Rc<Resolved>>,
}

/// All instances.
pub struct Tree {
    instances: HashMap<InstanceId, Instance>,
    resolver: Rc<dyn Resolver>,
    root: InstanceId,
    next: u64,
}

impl Tree {
    /// A tree with nothing but its root, the component at `url`.
    #[must_use]
    pub fn new(url: Url, resolver: Rc<dyn Resolver>) -> Self {
        let root = InstanceId(0);
        let instance = Instance {
            name: None,
            parent: None,
            url,
            startup: Startup::Lazy,
            environment: None,
            durability: None,
            dynamic_offers: Vec::new(),
            children: BTreeMap::new(),
            resolved: None,
        };
        Self { instances: HashMap::from([(root, instance)]), resolver, root, next: 1 }
    }

    /// The root.
    #[must_use]
    pub fn root(&self) -> InstanceId {
        self.root
    }

    /// The instance.
    ///
    /// # Errors
    /// [`TreeError::Destroyed`]
    pub fn get(&self, id: InstanceId) -> Result<&Instance, TreeError> {
        self.instances.get(&id).ok_or(TreeError::Destroyed)
    }

    /// Its moniker, as far up as the tree still goes.
    #[must_use]
    pub fn moniker(&self, id: InstanceId) -> Moniker {
        let mut names = Vec::new();
        let mut at = self.instances.get(&id);
        while let Some(instance) = at {
            names.extend(instance.name.clone());
            at = instance.parent.and_then(|parent| self.instances.get(&parent));
        }
        names.iter().rev().fold(Moniker::root(), |moniker, name| moniker.child(name))
    }

    /// Its manifest and package; the first time, this also makes its static children.
    ///
    /// # Errors
    /// [`TreeError::Destroyed`], [`TreeError::Unresolved`]
    pub fn resolve(&mut self, id: InstanceId) -> Result<Rc<Resolved>, TreeError> {
        let instance = self.get(id)?;
        if let Some(resolved) = &instance.resolved {
            return Ok(Rc::clone(resolved));
        }
        let url = match instance.parent {
            Some(parent) if instance.url.is_relative() => {
                let parent = self.resolve(parent)?;
                self.get(id)?.url.resolved_against(&parent.url)
            }
            _ => instance.url.clone(),
        };
        let resolved = self.resolver.resolve(&url).map_err(|error| TreeError::Unresolved {
            moniker: self.moniker(id),
            url,
            error,
        })?;
        for child in &resolved.decl.children {
            let name = ChildName { collection: None, name: child.name.clone() };
            self.insert(
                id,
                name,
                child.url.clone(),
                child.startup,
                child.environment.clone(),
                None,
                Vec::new(),
            );
        }
        if let Some(instance) = self.instances.get_mut(&id) {
            instance.resolved = Some(Rc::clone(&resolved));
        }
        Ok(resolved)
    }

    /// Its manifest and package where they have been read already.
    #[must_use]
    pub fn resolved(&self, id: InstanceId) -> Option<&Rc<Resolved>> {
        self.instances.get(&id)?.resolved.as_ref()
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "the parts of an instance, all given by the two callers"
    )]
    fn insert(
        &mut self,
        parent: InstanceId,
        name: ChildName,
        url: Url,
        startup: Startup,
        environment: Option<Name>,
        durability: Option<Durability>,
        dynamic_offers: Vec<OfferDecl>,
    ) -> InstanceId {
        let id = InstanceId(self.next);
        self.next += 1;
        if let Some(parent) = self.instances.get_mut(&parent) {
            parent.children.insert(name.clone(), id);
        }
        let (name, parent) = (Some(name), Some(parent));
        let (children, resolved) = (BTreeMap::new(), None);
        let instance = Instance {
            name,
            parent,
            url,
            startup,
            environment,
            durability,
            dynamic_offers,
            children,
            resolved,
        };
        self.instances.insert(id, instance);
        id
    }

    /// The child `name` of `parent`.
    ///
    /// # Errors
    /// [`TreeError::ChildNotFound`], [`TreeError::CollectionNotFound`], and what [`Tree::resolve`] of the parent says.
    pub fn child(&mut self, parent: InstanceId, name: &ChildName) -> Result<InstanceId, TreeError> {
        let resolved = self.resolve(parent)?;
        if let Some(collection) = &name.collection
            && resolved.decl.collection(collection).is_none()
        {
            return Err(TreeError::CollectionNotFound {
                parent: self.moniker(parent),
                collection: collection.clone(),
            });
        }
        let found = self.get(parent)?.children.get(name).copied();
        found.ok_or_else(|| TreeError::ChildNotFound {
            parent: self.moniker(parent),
            child: name.clone(),
        })
    }

    /// The instance at `moniker`.
    ///
    /// # Errors
    /// As [`Tree::child`].
    pub fn find(&mut self, moniker: &Moniker) -> Result<InstanceId, TreeError> {
        let mut at = self.root;
        for name in moniker.path() {
            at = self.child(at, name)?;
        }
        Ok(at)
    }

    /// The children of `parent`, by name; none where it was not resolved.
    #[must_use]
    pub fn children(&self, parent: InstanceId) -> Vec<(ChildName, InstanceId)> {
        let children = self.instances.get(&parent).map(|instance| &instance.children);
        children.into_iter().flatten().map(|(name, id)| (name.clone(), *id)).collect()
    }

    /// `id` and all below it, parents before children.
    #[must_use]
    pub fn subtree(&self, id: InstanceId) -> Vec<InstanceId> {
        let mut list = vec![id];
        let mut at = 0;
        while let Some(&id) = list.get(at) {
            list.extend(
                self.instances.get(&id).into_iter().flat_map(|instance| instance.children.values()),
            );
            at += 1;
        }
        list
    }

    /// Makes a child in a collection.
    ///
    /// # Errors
    /// [`TreeError::CollectionNotFound`], [`TreeError::ChildExists`], [`TreeError::NoDynamicOffers`], and what
    /// [`Tree::resolve`] of the parent says.
    pub fn create_child(
        &mut self,
        parent: InstanceId,
        collection: &Name,
        name: Name,
        url: Url,
        startup: Startup,
        dynamic_offers: Vec<OfferDecl>,
    ) -> Result<InstanceId, TreeError> {
        let resolved = self.resolve(parent)?;
        let Some(place) = resolved.decl.collection(collection) else {
            return Err(TreeError::CollectionNotFound {
                parent: self.moniker(parent),
                collection: collection.clone(),
            });
        };
        if !dynamic_offers.is_empty() && !place.allows_dynamic_offers {
            return Err(TreeError::NoDynamicOffers(collection.clone()));
        }
        let name = ChildName { collection: Some(collection.clone()), name };
        if self.get(parent)?.children.contains_key(&name) {
            return Err(TreeError::ChildExists { parent: self.moniker(parent), child: name });
        }
        Ok(self.insert(
            parent,
            name,
            url,
            startup,
            place.environment.clone(),
            Some(place.durability),
            dynamic_offers,
        ))
    }

    /// Takes `id` and all below it out of the tree. What is not there stays away.
    pub fn remove(&mut self, id: InstanceId) {
        for gone in self.subtree(id) {
            let Some(instance) = self.instances.remove(&gone) else { continue };
            if let (Some(parent), Some(name)) = (instance.parent, instance.name)
                && let Some(parent) = self.instances.get_mut(&parent)
            {
                parent.children.remove(&name);
            }
        }
    }
}
