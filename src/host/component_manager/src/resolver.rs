//! From a URL to a component: a package and the manifest in it.
//!
//! A package is either *built in* (manifests embedded in this program, whose binaries are this program under other names) or a
//! directory of the user's, such as a guest package with its `data/`.

use crate::cml::{self, Diagnostics, Includes};
use crate::decl::ComponentDecl;
use crate::name::Url;
use std::cell::RefCell;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// Why a URL leads to no component.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ResolveError {
    /// No resolver for the scheme.
    #[error("No resolver handles the scheme {0:?}")]
    UnknownScheme(String),
    /// No such package.
    #[error("There is no package {0:?}")]
    PackageNotFound(String),
    /// The package has no such manifest.
    #[error("The package {package:?} has no manifest {manifest:?}")]
    ManifestNotFound {
        /// The package.
        package: String,
        /// The path in it.
        manifest: String,
    },
    /// The manifest is wrong.
    #[error("The manifest is invalid:\n{0}")]
    InvalidManifest(Rc<Diagnostics>),
}

/// A package.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Package {
    /// Part of this program: `bin/<name>` is the program at `executable`, called `bin/<name>` (its `argv[0]`).
    Builtin {
        /// The program.
        executable: PathBuf,
    },
    /// A directory.
    Directory(PathBuf),
}

/// What a URL leads to.
#[derive(Debug)]
pub struct Resolved {
    /// The URL, absolute.
    pub url: Url,
    /// What the manifest says.
    pub decl: ComponentDecl,
    /// The package that it is in.
    pub package: Package,
}

/// Turns absolute URLs into components.
pub trait Resolver {
    /// The component at `url`, which is absolute.
    ///
    /// # Errors
    /// [`ResolveError`]
    fn resolve(&self, url: &Url) -> Result<Rc<Resolved>, ResolveError>;
}

/// A manifest or shard that is part of this program.
#[derive(Debug, Clone, Copy)]
pub struct Embedded {
    /// Its name, such as `meta/vmm.cml` or `syslog/client.shard.cml`.
    pub name: &'static str,
    /// Its text.
    pub text: &'static str,
}

/// Resolves `fuchsia-pkg://` URLs: built-in packages first, then directories below the package directories.
#[derive(Debug)]
pub struct PackageResolver {
    executable: PathBuf,
    embedded: Vec<Embedded>,
    directories: Vec<PathBuf>,
    cache: RefCell<HashMap<String, Rc<Resolved>>>,
}

/// The manifest that a package directory without one of its own gets: a guest package, which shows its files and runs nothing.
const GUEST_PACKAGE: Embedded = Embedded {
    name: "meta/guest_package.cml",
    text: include_str!("../../../../meta/guest_package.cml"),
};

impl PackageResolver {
    /// A resolver over the built-in manifests, whose binaries are `executable`, and the packages below `directories`.
    #[must_use]
    pub fn new(executable: PathBuf, embedded: Vec<Embedded>, directories: Vec<PathBuf>) -> Self {
        Self { executable, embedded, directories, cache: RefCell::default() }
    }

    fn find(&self, name: &str) -> Option<(String, String)> {
        let found = self.embedded.iter().find(|embedded| embedded.name == name)?;
        Some((found.name.to_owned(), found.text.to_owned()))
    }

    fn read(&self, url: &Url) -> Result<Resolved, ResolveError> {
        let manifest = url.resource().as_str();
        let source = format!("{}.cml", manifest.strip_suffix(".cm").unwrap_or(manifest));
        let package_name = url.package_name();
        if let Some(directory) =
            self.directories.iter().map(|root| root.join(package_name)).find(|path| path.is_dir())
        {
            let beside = Beside { directory: &directory, resolver: Some(self) };
            let (file, text) = match std::fs::read_to_string(directory.join(&source)) {
                Ok(text) => (format!("{package_name}/{source}"), text),
                Err(_) if directory.join("data").is_dir() => {
                    (GUEST_PACKAGE.name.to_owned(), GUEST_PACKAGE.text.to_owned())
                }
                Err(_) => return Err(not_found(url)),
            };
            let decl = cml::compile(&file, &text, &beside).map_err(invalid)?;
            return Ok(Resolved { url: url.clone(), decl, package: Package::Directory(directory) });
        }
        let Some((file, text)) = self.find(&source) else {
            return Err(ResolveError::PackageNotFound(package_name.to_owned()));
        };
        let decl =
            cml::compile(&file, &text, &Beside { directory: Path::new(""), resolver: Some(self) })
                .map_err(invalid)?;
        Ok(Resolved {
            url: url.clone(),
            decl,
            package: Package::Builtin { executable: self.executable.clone() },
        })
    }
}

fn not_found(url: &Url) -> ResolveError {
    ResolveError::ManifestNotFound {
        package: url.package_name().to_owned(),
        manifest: url.resource().to_string(),
    }
}

fn invalid(problems: Diagnostics) -> ResolveError {
    ResolveError::InvalidManifest(Rc::new(problems))
}

impl Resolver for PackageResolver {
    fn resolve(&self, url: &Url) -> Result<Rc<Resolved>, ResolveError> {
        if url.scheme() != "fuchsia-pkg" {
            return Err(ResolveError::UnknownScheme(url.scheme().to_owned()));
        }
        let key = url.to_string();
        if let Some(resolved) = self.cache.borrow().get(&key) {
            return Ok(Rc::clone(resolved));
        }
        let resolved = Rc::new(self.read(url)?);
        // A directory may change between two uses, and be made by then; what is part of the program cannot.
        if matches!(resolved.package, Package::Builtin { .. }) {
            self.cache.borrow_mut().insert(key, Rc::clone(&resolved));
        }
        Ok(resolved)
    }
}

/// Shards in the package's own directory, then the embedded ones.
struct Beside<'a> {
    directory: &'a Path,
    resolver: Option<&'a PackageResolver>,
}

impl Includes for Beside<'_> {
    fn load(&self, path: &str, from: &str) -> Option<(String, String)> {
        let path = path.trim_start_matches('/');
        if path.split('/').any(|segment| matches!(segment, "" | "." | "..")) {
            return None;
        }
        let beside = match from.rsplit_once('/') {
            Some((directory, _)) => format!("{directory}/{path}"),
            None => path.to_owned(),
        };
        for name in [beside.as_str(), path] {
            if !self.directory.as_os_str().is_empty()
                && let Ok(text) = std::fs::read_to_string(self.directory.join(name))
            {
                return Some((name.to_owned(), text));
            }
            if let Some(found) = self.resolver.and_then(|resolver| resolver.find(name)) {
                return Some(found);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANIFESTS: &[Embedded] = &[
        Embedded {
            name: "meta/a.cml",
            text: "{ include: [ 's.shard.cml', 'syslog/client.shard.cml' ], program: { runner: 'elf', binary: 'bin/a' } }",
        },
        Embedded { name: "meta/s.shard.cml", text: "{ use: [ { protocol: 'p' } ] }" },
        Embedded { name: "syslog/client.shard.cml", text: "{ use: [ { protocol: 'q' } ] }" },
        Embedded { name: "meta/bad.cml", text: "{ use: 1 }" },
    ];

    fn resolver(directories: Vec<PathBuf>) -> PackageResolver {
        PackageResolver::new("/proc/self/exe".into(), MANIFESTS.to_vec(), directories)
    }

    fn url(text: &str) -> Url {
        text.parse().unwrap()
    }

    #[test]
    fn embedded_manifests_find_their_shards() {
        let resolved =
            resolver(Vec::new()).resolve(&url("fuchsia-pkg://fuchsia.com/any#meta/a.cm")).unwrap();
        assert_eq!(resolved.decl.uses.len(), 2);
        assert!(matches!(resolved.package, Package::Builtin { .. }));
    }

    #[test]
    fn what_is_not_there_is_said() {
        let resolver = resolver(Vec::new());
        let error = |text| resolver.resolve(&url(text)).unwrap_err();
        assert!(matches!(error("fuchsia-boot:///x#meta/a.cm"), ResolveError::UnknownScheme(_)));
        assert!(matches!(
            error("fuchsia-pkg://fuchsia.com/x#meta/none.cm"),
            ResolveError::PackageNotFound(_)
        ));
        assert!(matches!(
            error("fuchsia-pkg://fuchsia.com/x#meta/bad.cm"),
            ResolveError::InvalidManifest(_)
        ));
    }

    #[test]
    fn a_directory_with_data_is_a_guest_package() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("debian_guest/data")).unwrap();
        let resolver = resolver(vec![root.path().to_owned()]);
        let resolved = resolver
            .resolve(&url("fuchsia-pkg://fuchsia.com/debian_guest#meta/debian_guest.cm"))
            .unwrap();
        assert_eq!(resolved.package, Package::Directory(root.path().join("debian_guest")));
        assert_eq!(resolved.decl.exposes[0].target_name, "pkg");
    }
}
