//! Routes and their ends.

use fidl_fuchsia_component_decl as fdecl;
use fidl_fuchsia_component_test as ftest;

/// A child of the realm.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChildRef(String);

impl From<String> for ChildRef {
    fn from(name: String) -> Self {
        Self(name)
    }
}

impl From<&str> for ChildRef {
    fn from(name: &str) -> Self {
        Self(name.to_owned())
    }
}

/// The source or a target of a route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ref(Place);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    Child(String),
    Framework,
    Parent,
}

impl Ref {
    /// The child of this name.
    pub fn child(name: impl Into<String>) -> Self {
        Self(Place::Child(name.into()))
    }

    /// The component manager, for the realm itself; only a source.
    #[must_use]
    pub fn framework() -> Self {
        Self(Place::Framework)
    }

    /// The realm's parent: the test, and what is routed to it.
    #[must_use]
    pub fn parent() -> Self {
        Self(Place::Parent)
    }
}

impl From<&ChildRef> for Ref {
    fn from(child: &ChildRef) -> Self {
        Self::child(&child.0)
    }
}

impl From<Ref> for fdecl::Ref {
    fn from(place: Ref) -> Self {
        match place.0 {
            Place::Child(name) => Self::Child(fdecl::ChildRef { name, collection: None }),
            Place::Framework => Self::Framework(fdecl::FrameworkRef {}),
            Place::Parent => Self::Parent(fdecl::ParentRef {}),
        }
    }
}

/// Capabilities on their way from one component to others.
#[derive(Debug, Clone, Default)]
pub struct Route {
    pub(crate) capabilities: Vec<ftest::Capability>,
    pub(crate) from: Option<Ref>,
    pub(crate) to: Vec<Ref>,
}

impl Route {
    /// A route without capabilities or ends.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a capability.
    #[must_use]
    pub fn capability(mut self, capability: impl Into<ftest::Capability>) -> Self {
        self.capabilities.push(capability.into());
        self
    }

    /// Begins it there.
    #[must_use]
    pub fn from(mut self, source: impl Into<Ref>) -> Self {
        self.from = Some(source.into());
        self
    }

    /// Adds a target.
    #[must_use]
    pub fn to(mut self, target: impl Into<Ref>) -> Self {
        self.to.push(target.into());
        self
    }
}
