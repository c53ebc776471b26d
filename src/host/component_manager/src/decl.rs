//! A component's declaration: what a manifest says, checked, with every shorthand written out. Pure data.

use crate::name::{Name, Path, RelativePath, Url};
use std::collections::BTreeMap;
use std::fmt;

bitflags::bitflags! {
    /// What may be done through a directory capability; the bits are those of `fuchsia.io/Operations`.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    pub struct Rights: u64 {
        /// Connect to a service in it.
        const CONNECT = 0x1;
        /// Read a file's bytes.
        const READ_BYTES = 0x2;
        /// Write a file's bytes.
        const WRITE_BYTES = 0x4;
        /// Execute a file.
        const EXECUTE = 0x8;
        /// Read attributes.
        const GET_ATTRIBUTES = 0x10;
        /// Change attributes.
        const UPDATE_ATTRIBUTES = 0x20;
        /// List a directory.
        const ENUMERATE = 0x40;
        /// Open what lies in a directory.
        const TRAVERSE = 0x80;
        /// Make, rename and remove entries.
        const MODIFY_DIRECTORY = 0x100;
    }
}

impl Rights {
    /// The alias `r*`.
    pub const READ: Self = Self::CONNECT
        .union(Self::ENUMERATE)
        .union(Self::TRAVERSE)
        .union(Self::READ_BYTES)
        .union(Self::GET_ATTRIBUTES);
    /// The alias `w*`.
    pub const WRITE: Self = Self::CONNECT
        .union(Self::ENUMERATE)
        .union(Self::TRAVERSE)
        .union(Self::WRITE_BYTES)
        .union(Self::MODIFY_DIRECTORY)
        .union(Self::UPDATE_ATTRIBUTES);
    /// The alias `x*`.
    pub const EXEC: Self =
        Self::CONNECT.union(Self::ENUMERATE).union(Self::TRAVERSE).union(Self::EXECUTE);

    /// The rights that a manifest's token stands for, or `None` where it is no token.
    #[must_use]
    pub fn from_token(token: &str) -> Option<Self> {
        Some(match token {
            "r*" => Self::READ,
            "w*" => Self::WRITE,
            "x*" => Self::EXEC,
            "rw*" => Self::READ.union(Self::WRITE),
            "rx*" => Self::READ.union(Self::EXEC),
            "connect" => Self::CONNECT,
            "read_bytes" => Self::READ_BYTES,
            "write_bytes" => Self::WRITE_BYTES,
            "execute" => Self::EXECUTE,
            "get_attributes" => Self::GET_ATTRIBUTES,
            "update_attributes" => Self::UPDATE_ATTRIBUTES,
            "enumerate" => Self::ENUMERATE,
            "traverse" => Self::TRAVERSE,
            "modify_directory" => Self::MODIFY_DIRECTORY,
            _ => return None,
        })
    }
}

/// The kinds of capability.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CapabilityType {
    /// A FIDL protocol.
    Protocol,
    /// A FIDL service.
    Service,
    /// A directory of `fuchsia.io`.
    Directory,
    /// A private part of a directory, one for each component.
    Storage,
    /// What starts components.
    Runner,
    /// What turns URLs into components.
    Resolver,
    /// A bundle of capabilities.
    Dictionary,
    /// Events of the framework.
    EventStream,
    /// A configuration value.
    Config,
}

impl fmt::Display for CapabilityType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Protocol => "protocol",
            Self::Service => "service",
            Self::Directory => "directory",
            Self::Storage => "storage",
            Self::Runner => "runner",
            Self::Resolver => "resolver",
            Self::Dictionary => "dictionary",
            Self::EventStream => "event_stream",
            Self::Config => "config",
        })
    }
}

/// Where a capability comes from, seen from the component whose manifest says so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// Whoever holds this component.
    Parent,
    /// The component itself.
    Itself,
    /// The component framework.
    Framework,
    /// A static child, or one in a collection of a dynamic offer.
    Child(ChildName),
    /// Every child of a collection.
    Collection(Name),
    /// The debug capabilities of the environment.
    Debug,
    /// The runners and resolvers of the environment.
    Environment,
    /// Nowhere: it is left out on purpose.
    Void,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Parent => f.write_str("parent"),
            Self::Itself => f.write_str("self"),
            Self::Framework => f.write_str("framework"),
            Self::Child(child) => write!(f, "#{child}"),
            Self::Collection(name) => write!(f, "#{name}"),
            Self::Debug => f.write_str("debug"),
            Self::Environment => f.write_str("environment"),
            Self::Void => f.write_str("void"),
        }
    }
}

/// The name of a child under its parent: static, or in a collection.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChildName {
    /// The collection, absent for a static child.
    pub collection: Option<Name>,
    /// The name in the collection or manifest.
    pub name: Name,
}

impl fmt::Display for ChildName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.collection {
            Some(collection) => write!(f, "{collection}:{}", self.name),
            None => write!(f, "{}", self.name),
        }
    }
}

/// Whether the component can do without the capability.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Availability {
    /// It cannot.
    #[default]
    Required,
    /// It can.
    Optional,
    /// It can for now; treated as optional without a warning.
    Transitional,
    /// As the target says.
    SameAsTarget,
}

/// `use`: a capability that comes into the namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UseDecl {
    /// The kind.
    pub kind: CapabilityType,
    /// What the source calls it.
    pub source_name: Name,
    /// Where it comes from.
    pub source: Source,
    /// Where it appears; `None` for kinds that appear nowhere (runner, config).
    pub target_path: Option<Path>,
    /// For a directory: the rights asked for.
    pub rights: Option<Rights>,
    /// For a directory: the part of it that is wanted.
    pub subdir: RelativePath,
    /// Whether the component can do without it.
    pub availability: Availability,
    /// For config: the field that it fills.
    pub config_key: Option<String>,
    /// For config: the value where the source has none.
    pub config_default: Option<ConfigValue>,
}

/// Who an offer is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OfferTarget {
    /// A static child.
    Child(Name),
    /// All children of a collection.
    Collection(Name),
    /// A dictionary of the component's own.
    Capability(Name),
}

/// `offer`: a capability handed to a child.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OfferDecl {
    /// The kind.
    pub kind: CapabilityType,
    /// What the source calls it.
    pub source_name: Name,
    /// Where it comes from.
    pub source: Source,
    /// Who gets it.
    pub target: OfferTarget,
    /// What the target calls it.
    pub target_name: Name,
    /// For a directory: the most rights that go on.
    pub rights: Option<Rights>,
    /// For a directory: the part that goes on.
    pub subdir: RelativePath,
    /// Whether the target must be able to do without it.
    pub availability: Availability,
}

/// `expose`: a capability handed to the parent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExposeDecl {
    /// The kind.
    pub kind: CapabilityType,
    /// What the source calls it.
    pub source_name: Name,
    /// Where it comes from.
    pub source: Source,
    /// What the parent calls it.
    pub target_name: Name,
    /// For a directory: the most rights that go on.
    pub rights: Option<Rights>,
    /// For a directory: the part that goes on.
    pub subdir: RelativePath,
    /// Whether the parent must be able to do without it.
    pub availability: Availability,
}

/// `capabilities`: something the component itself provides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CapabilityDecl {
    /// A protocol, served in the outgoing directory.
    Protocol {
        /// Its name.
        name: Name,
        /// Its place in the outgoing directory.
        path: Path,
    },
    /// A service, served in the outgoing directory.
    Service {
        /// Its name.
        name: Name,
        /// Its place in the outgoing directory.
        path: Path,
    },
    /// A directory, served in the outgoing directory.
    Directory {
        /// Its name.
        name: Name,
        /// Its place in the outgoing directory.
        path: Path,
        /// The most rights anyone gets.
        rights: Rights,
    },
    /// Storage made from a directory.
    Storage {
        /// Its name.
        name: Name,
        /// Where the directory comes from.
        source: Source,
        /// The directory's name there.
        backing_dir: Name,
        /// The part of the directory that is used.
        subdir: RelativePath,
    },
    /// A runner: `fuchsia.component.runner.ComponentRunner` in the outgoing directory.
    Runner {
        /// Its name.
        name: Name,
        /// Its place in the outgoing directory.
        path: Path,
    },
    /// A configuration value.
    Config {
        /// Its name.
        name: Name,
        /// The value.
        value: ConfigValue,
    },
    /// A kind that is declared but not routed on this system.
    Other {
        /// The kind.
        kind: CapabilityType,
        /// Its name.
        name: Name,
    },
}

impl CapabilityDecl {
    /// What it is called.
    #[must_use]
    pub fn name(&self) -> &Name {
        match self {
            Self::Protocol { name, .. }
            | Self::Service { name, .. }
            | Self::Directory { name, .. }
            | Self::Storage { name, .. }
            | Self::Runner { name, .. }
            | Self::Config { name, .. }
            | Self::Other { name, .. } => name,
        }
    }

    /// Its kind.
    #[must_use]
    pub fn kind(&self) -> CapabilityType {
        match self {
            Self::Protocol { .. } => CapabilityType::Protocol,
            Self::Service { .. } => CapabilityType::Service,
            Self::Directory { .. } => CapabilityType::Directory,
            Self::Storage { .. } => CapabilityType::Storage,
            Self::Runner { .. } => CapabilityType::Runner,
            Self::Config { .. } => CapabilityType::Config,
            Self::Other { kind, .. } => *kind,
        }
    }
}

/// When a child starts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Startup {
    /// When somebody uses one of its capabilities.
    #[default]
    Lazy,
    /// With its parent.
    Eager,
}

/// `children`: a static child.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChildDecl {
    /// Its name.
    pub name: Name,
    /// Where its manifest is.
    pub url: Url,
    /// When it starts.
    pub startup: Startup,
    /// The environment it lives in; `None` is the parent's.
    pub environment: Option<Name>,
}

/// How long the children of a collection live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// Until destroyed, or until the parent is.
    Transient,
    /// Started when made, destroyed when it ends.
    SingleRun,
}

/// `collections`: a place for children made at run time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CollectionDecl {
    /// Its name.
    pub name: Name,
    /// How long its children live.
    pub durability: Durability,
    /// The environment they live in; `None` is the parent's.
    pub environment: Option<Name>,
    /// Whether `CreateChild` may bring offers along.
    pub allows_dynamic_offers: bool,
    /// Whether names may have up to [`crate::name::MAX_LONG_NAME_LENGTH`] bytes.
    pub allow_long_names: bool,
}

/// A runner that an environment brings in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunnerRegistration {
    /// What the source calls it.
    pub source_name: Name,
    /// Where it comes from: parent, self or a child.
    pub source: Source,
    /// What programs in the environment call it.
    pub target_name: Name,
}

/// `environments`: the runners that children find.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnvironmentDecl {
    /// Its name.
    pub name: Name,
    /// Whether what is not registered here is looked up in the parent's environment.
    pub extends_realm: bool,
    /// The runners.
    pub runners: Vec<RunnerRegistration>,
    /// How long a component has between Stop and Kill, in milliseconds.
    pub stop_timeout_ms: Option<u32>,
}

/// A value of the program section.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProgramValue {
    /// One string.
    Str(String),
    /// Several strings.
    StrVec(Vec<String>),
    /// Several sections.
    ObjVec(Vec<BTreeMap<String, ProgramValue>>),
}

/// `program`: what runs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProgramDecl {
    /// The runner, as the environment (or a `use runner`) calls it.
    pub runner: Option<Name>,
    /// What the runner gets to read, nested keys joined with `.`.
    pub info: BTreeMap<String, ProgramValue>,
}

impl ProgramDecl {
    /// The string under `key`.
    #[must_use]
    pub fn str(&self, key: &str) -> Option<&str> {
        match self.info.get(key) {
            Some(ProgramValue::Str(value)) => Some(value),
            _ => None,
        }
    }
}

/// The type of a configuration field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConfigType {
    /// `bool`
    Bool,
    /// An integer: its size in bits and whether it has a sign.
    Integer {
        /// 8, 16, 32 or 64.
        bits: u8,
        /// `int` or `uint`.
        signed: bool,
    },
    /// A string of at most so many bytes.
    String {
        /// The most bytes.
        max_size: u32,
    },
    /// A vector of at most so many of another type.
    Vector {
        /// The elements' type; not a vector.
        element: Box<ConfigType>,
        /// The most elements.
        max_count: u32,
    },
}

/// A configuration value, checked against its type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConfigValue {
    /// Of [`ConfigType::Bool`].
    Bool(bool),
    /// Of [`ConfigType::Integer`].
    Integer(i128),
    /// Of [`ConfigType::String`].
    String(String),
    /// Of [`ConfigType::Vector`].
    Vector(Vec<ConfigValue>),
}

/// A field of the configuration, in the manifest's order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigField {
    /// The key.
    pub key: String,
    /// The type.
    pub kind: ConfigType,
    /// The value where nothing else gives one.
    pub default: Option<ConfigValue>,
}

/// Everything a manifest says.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ComponentDecl {
    /// What runs, or `None` for a component that only routes.
    pub program: Option<ProgramDecl>,
    /// What it uses.
    pub uses: Vec<UseDecl>,
    /// What it offers to children.
    pub offers: Vec<OfferDecl>,
    /// What it exposes to its parent.
    pub exposes: Vec<ExposeDecl>,
    /// What it provides.
    pub capabilities: Vec<CapabilityDecl>,
    /// Its static children.
    pub children: Vec<ChildDecl>,
    /// Its collections.
    pub collections: Vec<CollectionDecl>,
    /// Its environments.
    pub environments: Vec<EnvironmentDecl>,
    /// The fields of its configuration.
    pub config: Vec<ConfigField>,
    /// What others than the framework want to know about it.
    pub facets: serde_json::Map<String, serde_json::Value>,
}

impl ComponentDecl {
    /// The static child of this name.
    #[must_use]
    pub fn child(&self, name: &Name) -> Option<&ChildDecl> {
        self.children.iter().find(|child| child.name == *name)
    }

    /// The collection of this name.
    #[must_use]
    pub fn collection(&self, name: &Name) -> Option<&CollectionDecl> {
        self.collections.iter().find(|collection| collection.name == *name)
    }

    /// The environment of this name.
    #[must_use]
    pub fn environment(&self, name: &Name) -> Option<&EnvironmentDecl> {
        self.environments.iter().find(|environment| environment.name == *name)
    }

    /// The capability of this kind and name that the component itself provides.
    #[must_use]
    pub fn capability(&self, kind: CapabilityType, name: &Name) -> Option<&CapabilityDecl> {
        self.capabilities
            .iter()
            .find(|capability| capability.kind() == kind && capability.name() == name)
    }
}
