//! What goes along a route.

use fidl::endpoints::DiscoverableProtocolMarker;
use fidl_fuchsia_component_test as ftest;
use fidl_fuchsia_io as fio;

/// Makes capabilities.
pub struct Capability;

impl Capability {
    /// The protocol of this marker.
    #[must_use]
    pub fn protocol<P: DiscoverableProtocolMarker>() -> ProtocolCapability {
        Self::protocol_by_name(P::PROTOCOL_NAME)
    }

    /// The protocol of this name.
    pub fn protocol_by_name(name: impl Into<String>) -> ProtocolCapability {
        ProtocolCapability(ftest::Protocol { name: Some(name.into()), ..Default::default() })
    }

    /// The directory of this name.
    pub fn directory(name: impl Into<String>) -> DirectoryCapability {
        DirectoryCapability(ftest::Directory { name: Some(name.into()), ..Default::default() })
    }

    /// The storage of this name.
    pub fn storage(name: impl Into<String>) -> StorageCapability {
        StorageCapability(ftest::Storage { name: Some(name.into()), ..Default::default() })
    }
}

/// A protocol.
#[derive(Debug, Clone, PartialEq)]
pub struct ProtocolCapability(ftest::Protocol);

impl ProtocolCapability {
    /// Where a local component has it, if not below `/svc`.
    #[must_use]
    pub fn path(mut self, path: impl Into<String>) -> Self {
        self.0.path = Some(path.into());
        self
    }
}

impl From<ProtocolCapability> for ftest::Capability {
    fn from(capability: ProtocolCapability) -> Self {
        Self::Protocol(capability.0)
    }
}

/// A directory. Local components at either end need its path and rights.
#[derive(Debug, Clone, PartialEq)]
pub struct DirectoryCapability(ftest::Directory);

impl DirectoryCapability {
    /// Where a local component has it.
    #[must_use]
    pub fn path(mut self, path: impl Into<String>) -> Self {
        self.0.path = Some(path.into());
        self
    }

    /// What may be done in it.
    #[must_use]
    pub fn rights(mut self, rights: fio::Operations) -> Self {
        self.0.rights = Some(rights);
        self
    }
}

impl From<DirectoryCapability> for ftest::Capability {
    fn from(capability: DirectoryCapability) -> Self {
        Self::Directory(capability.0)
    }
}

/// Storage. Local components need its path.
#[derive(Debug, Clone, PartialEq)]
pub struct StorageCapability(ftest::Storage);

impl StorageCapability {
    /// Where a local component has it.
    #[must_use]
    pub fn path(mut self, path: impl Into<String>) -> Self {
        self.0.path = Some(path.into());
        self
    }
}

impl From<StorageCapability> for ftest::Capability {
    fn from(capability: StorageCapability) -> Self {
        Self::Storage(capability.0)
    }
}
