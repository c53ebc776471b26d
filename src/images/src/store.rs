//! The package store: one directory a package, made whole or not at all.

use crate::error::Error;
use crate::tools;
use rustix::fs::{FlockOperation, flock};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The prefix of directories that are not packages yet.
const STAGING: &str = ".building-";

/// The user's guest packages, a directory with one directory `<name>_guest` for each.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
}

/// A package that exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Package {
    /// The guest type, such as `debian`.
    pub name: String,
    /// The package's directory; `data/guest.cfg` is below it.
    pub path: PathBuf,
    /// The bytes that its files take on the disk.
    pub disk_bytes: u64,
}

/// A package in the making. Dropped before [`Staging::commit`], it takes everything with it.
#[derive(Debug)]
pub struct Staging {
    name: String,
    root: PathBuf,
    directory: tempfile::TempDir,
    // Held, never read: closing it gives the lock back.
    _lock: File,
}

impl Store {
    /// The store at `root`, which is made when the first package is.
    #[must_use]
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The store's directory.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where the package of this guest type is, or would be.
    ///
    /// # Errors
    /// [`Error::BadName`] where `name` could mean another directory.
    pub fn path(&self, name: &str) -> Result<PathBuf, Error> {
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if name.is_empty() || name.starts_with('.') || !name.chars().all(fits) {
            return Err(Error::BadName(name.to_owned()));
        }
        Ok(self.root.join(format!("{name}_guest")))
    }

    /// Whether the package exists.
    ///
    /// # Errors
    /// As [`Store::path`].
    pub fn contains(&self, name: &str) -> Result<bool, Error> {
        Ok(self.path(name)?.join("data/guest.cfg").is_file())
    }

    /// Every package, by name.
    ///
    /// # Errors
    /// [`Error::Io`] where the store cannot be read; a store that was never made is empty.
    pub fn list(&self) -> Result<Vec<Package>, Error> {
        let entries = match fs::read_dir(&self.root) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(Error::io("read", &self.root)(e)),
        };
        let mut packages = Vec::new();
        for entry in entries {
            let entry = entry.map_err(Error::io("read", &self.root))?;
            let file_name = entry.file_name();
            let Some(name) = file_name.to_str().and_then(|n| n.strip_suffix("_guest")) else {
                continue;
            };
            if !name.starts_with('.') && self.contains(name)? {
                let path = entry.path();
                let disk_bytes = disk_bytes(&path);
                packages.push(Package { name: name.to_owned(), path, disk_bytes });
            }
        }
        packages.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(packages)
    }

    /// Removes a package and what its guest has written.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Busy`], [`Error::Io`].
    pub fn remove(&self, name: &str) -> Result<(), Error> {
        let path = self.path(name)?;
        if !self.contains(name)? {
            return Err(Error::NotFound { name: name.to_owned(), path: self.root.clone() });
        }
        let _lock = self.lock()?;
        // Renamed first: whoever looks meanwhile sees a whole package or none.
        let doomed = tempfile::Builder::new()
            .prefix(STAGING)
            .tempdir_in(&self.root)
            .map_err(Error::io("write to", &self.root))?;
        fs::rename(&path, doomed.path().join("removed")).map_err(Error::io("remove", &path))?;
        doomed.close().map_err(Error::io("remove", &path))
    }

    /// Begins a package, after clearing what an interrupted build has left.
    ///
    /// # Errors
    /// [`Error::Busy`] while another build or removal runs, [`Error::BadName`], [`Error::Io`].
    pub fn stage(&self, name: &str) -> Result<Staging, Error> {
        self.path(name)?;
        fs::create_dir_all(&self.root).map_err(Error::io("create", &self.root))?;
        let lock = self.lock()?;
        self.clear_leftovers()?;
        let directory = tempfile::Builder::new()
            .prefix(STAGING)
            .tempdir_in(&self.root)
            .map_err(Error::io("write to", &self.root))?;
        let data = directory.path().join("data");
        fs::create_dir(&data).map_err(Error::io("create", data))?;
        Ok(Staging { name: name.to_owned(), root: self.root.clone(), directory, _lock: lock })
    }

    fn lock(&self) -> Result<File, Error> {
        let path = self.root.join(".lock");
        let file = File::create(&path).map_err(Error::io("create", &path))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(file),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(Error::Busy(self.root.clone())),
            Err(e) => Err(Error::io("lock", &path)(e.into())),
        }
    }

    /// Only to be called under the lock: nobody else's build can be at work then.
    fn clear_leftovers(&self) -> Result<(), Error> {
        for entry in fs::read_dir(&self.root).map_err(Error::io("read", &self.root))? {
            let entry = entry.map_err(Error::io("read", &self.root))?;
            if entry.file_name().to_string_lossy().starts_with(STAGING) {
                let path = entry.path();
                refuse_mounts_below(&path)?;
                remove_tree(&path).map_err(Error::io("remove", path))?;
            }
        }
        Ok(())
    }
}

/// Removes a directory, also one with files whose owners are other users of the user's own user namespaces.
fn remove_tree(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {}
        result => return result,
    }
    let mut command = Command::new("unshare");
    command
        .args(tools::AS_ROOT_OF_A_USER_NAMESPACE)
        .args(["rm", "--recursive", "--force"])
        .arg(path);
    let output = command.output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}

/// What is mounted in a directory is not ours to remove, and might be all of `/proc` or `/dev`.
fn refuse_mounts_below(directory: &Path) -> Result<(), Error> {
    let table = Path::new("/proc/self/mountinfo");
    let mounts = fs::read_to_string(table).map_err(Error::io("read", table))?;
    let directory = fs::canonicalize(directory).map_err(Error::io("read", directory))?;
    match mounts.lines().filter_map(mount_point).find(|point| point.starts_with(&directory)) {
        Some(point) => Err(Error::Mounted(point)),
        None => Ok(()),
    }
}

/// The mount point of a line of `/proc/self/mountinfo`, in which a backslash and three octal digits stand for a character that
/// would end the word.
fn mount_point(line: &str) -> Option<PathBuf> {
    let mut word = line.split(' ').nth(4)?.to_owned();
    for (code, character) in [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")] {
        word = word.replace(code, character);
    }
    Some(word.into())
}

impl Staging {
    /// The package's `data` directory, to be filled.
    #[must_use]
    pub fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// A directory beside it for what the package will not hold.
    #[must_use]
    pub fn scratch(&self) -> PathBuf {
        self.directory.path().to_owned()
    }

    /// Makes the package visible under its name, in place of an older one.
    ///
    /// # Errors
    /// [`Error::Io`]; the store is then as it was.
    pub fn commit(self) -> Result<PathBuf, Error> {
        let target = self.root.join(format!("{}_guest", self.name));
        let whole = self.directory.path().join("whole");
        fs::create_dir(&whole).map_err(Error::io("create", &whole))?;
        let data = self.data();
        fs::rename(&data, whole.join("data")).map_err(Error::io("move", data))?;
        if target.exists() {
            let old = self.directory.path().join("old");
            fs::rename(&target, &old).map_err(Error::io("replace", &target))?;
        }
        fs::rename(&whole, &target).map_err(Error::io("create", &target))?;
        if let Ok(directory) = File::open(&self.root) {
            directory.sync_all().map_err(Error::io("write", &self.root))?;
        }
        Ok(target)
    }
}

/// The blocks that a tree's files take, so that a sparse disk image counts for what it holds.
fn disk_bytes(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let Ok(metadata) = fs::symlink_metadata(path) else { return 0 };
    let own = metadata.blocks() * 512;
    if !metadata.is_dir() {
        return own;
    }
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    own + entries.map(|entry| disk_bytes(&entry.path())).sum::<u64>()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn build(store: &Store, name: &str, config: &str) -> PathBuf {
        let staging = store.stage(name).unwrap();
        fs::write(staging.data().join("guest.cfg"), config).unwrap();
        staging.commit().unwrap()
    }

    #[test]
    fn a_committed_package_is_listed_and_removed() {
        let root = tempfile::tempdir().unwrap();
        let store = Store::new(root.path().join("packages"));
        assert_eq!(store.list().unwrap(), []);
        let path = build(&store, "debian", "{}");
        let packages = store.list().unwrap();
        assert_eq!(packages.len(), 1);
        assert_eq!((packages[0].name.as_str(), &packages[0].path), ("debian", &path));
        store.remove("debian").unwrap();
        assert!(!path.exists());
        assert!(matches!(store.remove("debian"), Err(Error::NotFound { .. })));
    }

    #[test]
    fn an_abandoned_build_leaves_nothing_and_a_killed_one_is_cleared_by_the_next() {
        let root = tempfile::tempdir().unwrap();
        let store = Store::new(root.path());
        drop(store.stage("debian").unwrap());
        assert!(store.list().unwrap().is_empty());
        let killed = root.path().join(".building-dead/data");
        fs::create_dir_all(&killed).unwrap();
        build(&store, "debian", "{}");
        assert!(!killed.exists());
    }

    #[test]
    fn a_new_build_replaces_the_old_package_whole() {
        let root = tempfile::tempdir().unwrap();
        let store = Store::new(root.path());
        build(&store, "zircon", "old");
        let path = build(&store, "zircon", "new");
        assert_eq!(fs::read_to_string(path.join("data/guest.cfg")).unwrap(), "new");
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 2); // The package and the lock.
    }

    #[test]
    fn two_builds_at_once_are_refused() {
        let root = tempfile::tempdir().unwrap();
        let store = Store::new(root.path());
        let _first = store.stage("debian").unwrap();
        assert!(matches!(store.stage("zircon"), Err(Error::Busy(_))));
    }

    #[test]
    fn mount_points_are_words_without_spaces() {
        let line = r"36 35 98:0 / /a\040b/proc ro,relatime - proc proc ro";
        assert_eq!(mount_point(line), Some("/a b/proc".into()));
        assert_eq!(mount_point("36 35"), None);
        refuse_mounts_below(tempfile::tempdir().unwrap().path()).unwrap();
        assert!(matches!(refuse_mounts_below(Path::new("/")), Err(Error::Mounted(_))));
    }

    #[test]
    fn names_cannot_leave_the_store() {
        let store = Store::new("/nonexistent");
        for name in ["", "..", "a/b", ".hidden", "a b", "ä"] {
            assert!(matches!(store.path(name), Err(Error::BadName(_))), "{name}");
        }
    }
}
