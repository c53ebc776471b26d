//! Names, paths and URLs as manifests write them, checked once and then carried as types.

use std::fmt;
use std::str::FromStr;

/// The longest name of a capability, child, collection or environment, in bytes.
pub const MAX_NAME_LENGTH: usize = 255;
/// The longest name of a child in a collection with `allow_long_names`, in bytes.
pub const MAX_LONG_NAME_LENGTH: usize = 1023;
/// The longest path, in bytes.
pub const MAX_PATH_LENGTH: usize = 4095;
/// The longest URL, in bytes.
pub const MAX_URL_LENGTH: usize = 4096;

/// Why a string is not the name, path or URL it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// Nothing between the quotes.
    #[error("It is empty")]
    Empty,
    /// More bytes than the kind of string may have.
    #[error("It has {length} bytes, and {limit} are the most")]
    TooLong {
        /// What it has.
        length: usize,
        /// What it may have.
        limit: usize,
    },
    /// A character that the kind of string does not allow.
    #[error("The character {0:?} is not allowed in it")]
    BadCharacter(char),
    /// A path that does not start at `/`.
    #[error("It does not start with \"/\"")]
    NotAbsolute,
    /// A path with an empty segment, `.` or `..`.
    #[error("The segment {0:?} is not allowed in it")]
    BadSegment(String),
    /// A URL without the `#resource` that names the manifest.
    #[error("It has no \"#meta/<component>.cm\" part")]
    NoResource,
    /// A URL that is neither absolute nor relative to a package.
    #[error("It is neither \"scheme://host/package#resource\" nor \"#resource\"")]
    BadUrl,
}

fn check_name(text: &str, limit: usize) -> Result<(), ParseError> {
    let first = text.chars().next().ok_or(ParseError::Empty)?;
    if text.len() > limit {
        return Err(ParseError::TooLong { length: text.len(), limit });
    }
    if matches!(first, '.' | '-') {
        return Err(ParseError::BadCharacter(first));
    }
    match text.chars().find(|&c| !(c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.'))) {
        Some(bad) => Err(ParseError::BadCharacter(bad)),
        None => Ok(()),
    }
}

/// A name: letters, digits, `_`, `-`, `.`, not starting with `.` or `-`, at most [`MAX_NAME_LENGTH`] bytes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(String);

impl Name {
    /// A name of a child in a collection that allows long names: at most [`MAX_LONG_NAME_LENGTH`] bytes.
    ///
    /// # Errors
    /// As for [`Name::from_str`], with the longer limit.
    pub fn long(text: &str) -> Result<Self, ParseError> {
        check_name(text, MAX_LONG_NAME_LENGTH).map(|()| Self(text.to_owned()))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        check_name(text, MAX_NAME_LENGTH).map(|()| Self(text.to_owned()))
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

impl PartialEq<str> for Name {
    fn eq(&self, other: &str) -> bool {
        self.0 == other
    }
}

impl PartialEq<&str> for Name {
    fn eq(&self, other: &&str) -> bool {
        self.0 == *other
    }
}

fn check_segments(text: &str) -> Result<(), ParseError> {
    if text.len() > MAX_PATH_LENGTH {
        return Err(ParseError::TooLong { length: text.len(), limit: MAX_PATH_LENGTH });
    }
    for segment in text.split('/') {
        if segment.len() > MAX_NAME_LENGTH {
            return Err(ParseError::TooLong { length: segment.len(), limit: MAX_NAME_LENGTH });
        }
        if matches!(segment, "" | "." | "..") || segment.contains('\0') {
            return Err(ParseError::BadSegment(segment.to_owned()));
        }
    }
    Ok(())
}

/// An absolute path inside a namespace or an outgoing directory, such as `/svc/fuchsia.logger.LogSink`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Path(String);

impl Path {
    /// The path with its leading `/`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The path without its leading `/`, as `fuchsia.io` wants it.
    #[must_use]
    pub fn relative(&self) -> &str {
        self.0.strip_prefix('/').unwrap_or(&self.0)
    }

    /// The directory part, `/` for a path of one segment.
    #[must_use]
    pub fn dirname(&self) -> &str {
        match self.0.rfind('/') {
            Some(0) | None => "/",
            Some(at) => self.0.get(..at).unwrap_or("/"),
        }
    }

    /// The last segment.
    #[must_use]
    pub fn basename(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or_default()
    }

    /// Whether `self` is `other` or lies below it.
    #[must_use]
    pub fn is_within(&self, other: &Self) -> bool {
        self.0
            .strip_prefix(other.as_str())
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }
}

impl FromStr for Path {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        if text.is_empty() {
            return Err(ParseError::Empty);
        }
        check_segments(text.strip_prefix('/').ok_or(ParseError::NotAbsolute)?)?;
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

/// A path below a directory, without a leading `/`; empty means the directory itself.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct RelativePath(String);

impl RelativePath {
    /// The path as text; `""` is the directory itself.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this is the directory itself.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// `self`, then `below`.
    #[must_use]
    pub fn join(&self, below: &Self) -> Self {
        match (self.is_empty(), below.is_empty()) {
            (_, true) => self.clone(),
            (true, false) => below.clone(),
            (false, false) => Self(format!("{}/{}", self.0, below.0)),
        }
    }
}

impl FromStr for RelativePath {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        if !text.is_empty() {
            check_segments(text)?;
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for RelativePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for RelativePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

/// A component URL, absolute (`fuchsia-pkg://fuchsia.com/vmm#meta/vmm.cm`) or relative to its parent's package (`#meta/vmm.cm`).
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Url {
    /// `fuchsia-pkg://fuchsia.com/vmm`; empty in a relative URL.
    package: String,
    resource: RelativePath,
}

impl Url {
    /// Whether the package is the parent's.
    #[must_use]
    pub fn is_relative(&self) -> bool {
        self.package.is_empty()
    }

    /// The part before `#`: scheme, host and package. Empty in a relative URL.
    #[must_use]
    pub fn package(&self) -> &str {
        &self.package
    }

    /// The name of the package: the path's last segment, without host and variant. Empty in a relative URL.
    #[must_use]
    pub fn package_name(&self) -> &str {
        let path = self.package.split_once("://").map_or("", |(_, rest)| rest);
        path.split_once('/')
            .map_or(path, |(_, package)| package)
            .split(['/', '?'])
            .next()
            .unwrap_or_default()
    }

    /// The scheme, such as `fuchsia-pkg`. Empty in a relative URL.
    #[must_use]
    pub fn scheme(&self) -> &str {
        self.package.split_once("://").map_or("", |(scheme, _)| scheme)
    }

    /// The path of the manifest in the package, such as `meta/vmm.cm`.
    #[must_use]
    pub fn resource(&self) -> &RelativePath {
        &self.resource
    }

    /// This URL where a relative one is taken from `parent`'s package.
    #[must_use]
    pub fn resolved_against(&self, parent: &Self) -> Self {
        let package = if self.is_relative() { &parent.package } else { &self.package };
        Self { package: package.clone(), resource: self.resource.clone() }
    }
}

impl FromStr for Url {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        if text.is_empty() {
            return Err(ParseError::Empty);
        }
        if text.len() > MAX_URL_LENGTH {
            return Err(ParseError::TooLong { length: text.len(), limit: MAX_URL_LENGTH });
        }
        if let Some(bad) = text.chars().find(|c| c.is_whitespace() || c.is_control()) {
            return Err(ParseError::BadCharacter(bad));
        }
        let (package, resource) = text.split_once('#').ok_or(ParseError::NoResource)?;
        if resource.is_empty() {
            return Err(ParseError::NoResource);
        }
        let url = Self { package: package.to_owned(), resource: resource.parse()? };
        let named = url.scheme().chars().next().is_some_and(|c| c.is_ascii_lowercase())
            && !url.package_name().is_empty();
        if url.is_relative() || named { Ok(url) } else { Err(ParseError::BadUrl) }
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{}", self.package, self.resource)
    }
}

impl fmt::Debug for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        assert!("fuchsia.virtualization.Guest".parse::<Name>().is_ok());
        assert_eq!("".parse::<Name>(), Err(ParseError::Empty));
        assert_eq!(".a".parse::<Name>(), Err(ParseError::BadCharacter('.')));
        assert_eq!("a/b".parse::<Name>(), Err(ParseError::BadCharacter('/')));
        let long = "a".repeat(256);
        assert_eq!(long.parse::<Name>(), Err(ParseError::TooLong { length: 256, limit: 255 }));
        assert!(Name::long(&long).is_ok());
    }

    #[test]
    fn paths_know_their_parts() {
        let path: Path = "/svc/fuchsia.logger.LogSink".parse().unwrap();
        assert_eq!(
            (path.dirname(), path.basename(), path.relative()),
            ("/svc", "fuchsia.logger.LogSink", "svc/fuchsia.logger.LogSink")
        );
        assert!(path.is_within(&"/svc".parse().unwrap()));
        assert!(!path.is_within(&"/sv".parse().unwrap()));
        assert_eq!("svc".parse::<Path>(), Err(ParseError::NotAbsolute));
        for bad in ["/", "/a//b", "/a/../b", "/a/", "/."] {
            assert!(matches!(bad.parse::<Path>(), Err(ParseError::BadSegment(_))), "{bad}");
        }
    }

    #[test]
    fn urls_resolve_against_the_parent() {
        let parent: Url =
            "fuchsia-pkg://fuchsia.com/debian_guest_manager/0?hash=00#meta/debian_guest_manager.cm"
                .parse()
                .unwrap();
        let child: Url = "#meta/vmm.cm".parse().unwrap();
        assert_eq!(parent.package_name(), "debian_guest_manager");
        assert_eq!(parent.scheme(), "fuchsia-pkg");
        let absolute = child.resolved_against(&parent);
        assert_eq!(absolute.package_name(), "debian_guest_manager");
        assert_eq!(absolute.resource().as_str(), "meta/vmm.cm");
        assert_eq!("fuchsia-pkg://fuchsia.com/x".parse::<Url>(), Err(ParseError::NoResource));
        assert_eq!("nonsense#meta/x.cm".parse::<Url>(), Err(ParseError::BadUrl));
        assert!(matches!("#../x.cm".parse::<Url>(), Err(ParseError::BadSegment(_))));
    }
}
