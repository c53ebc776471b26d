//! Where an instance is in the tree, as people and logs write it: `core/debian-guest-manager/vmm/virtio_rng_devices:virtio_rng`.

use crate::decl::ChildName;
use crate::name::{Name, ParseError};
use std::fmt;
use std::str::FromStr;

/// The path of an instance from the root; the root itself is written `.`.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moniker(Vec<ChildName>);

impl Moniker {
    /// The root.
    #[must_use]
    pub fn root() -> Self {
        Self::default()
    }

    /// The child `name` of this instance.
    #[must_use]
    pub fn child(&self, name: &ChildName) -> Self {
        let mut path = self.0.clone();
        path.push(name.clone());
        Self(path)
    }

    /// The names from the root down.
    #[must_use]
    pub fn path(&self) -> &[ChildName] {
        &self.0
    }
}

impl fmt::Display for Moniker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str(".");
        }
        for (index, name) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("/")?;
            }
            write!(f, "{name}")?;
        }
        Ok(())
    }
}

impl FromStr for ChildName {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        match text.split_once(':') {
            Some((collection, name)) => {
                Ok(Self { collection: Some(collection.parse()?), name: Name::long(name)? })
            }
            None => Ok(Self { collection: None, name: text.parse()? }),
        }
    }
}

impl FromStr for Moniker {
    type Err = ParseError;

    /// Reads `a/b:c`, with or without a leading `/`; `.` and `/` are the root.
    fn from_str(text: &str) -> Result<Self, ParseError> {
        if text.is_empty() {
            return Err(ParseError::Empty);
        }
        let text = text.strip_prefix('/').unwrap_or(text);
        if matches!(text, "" | ".") {
            return Ok(Self::root());
        }
        text.split('/').map(str::parse).collect::<Result<_, _>>().map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_goes_both_ways() {
        for text in [".", "core", "core/debian-guest-manager/vmm/virtio_rng_devices:virtio_rng"] {
            assert_eq!(text.parse::<Moniker>().unwrap().to_string(), text);
        }
        assert_eq!("/core".parse::<Moniker>().unwrap().to_string(), "core");
        for bad in ["", "a//b", "a/..", "a b"] {
            assert!(bad.parse::<Moniker>().is_err(), "{bad}");
        }
    }
}
