//! What a client asks for when it opens a node: the two generations of flags, checked and brought to one form.

use fidl_fuchsia_io as fio;
use fuchsia_zircon::Status;

/// The rights among [`fio::Flags`], which have the values of [`fio::Operations`].
const PERMISSIONS: u64 = 0x1ff;

/// What every connection can do that was opened with the older flags, as far as the connection that it came from could.
fn deprecated_base() -> fio::Operations {
    fio::Operations::CONNECT
        | fio::Operations::ENUMERATE
        | fio::Operations::TRAVERSE
        | fio::Operations::GET_ATTRIBUTES
}

fn write_rights() -> fio::Operations {
    fio::Operations::WRITE_BYTES
        | fio::Operations::UPDATE_ATTRIBUTES
        | fio::Operations::MODIFY_DIRECTORY
}

/// Whether a node may or must be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Creation {
    Never,
    Maybe,
    Always,
}

/// What is to be told first on a new connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Describe {
    Nothing,
    OnOpen,
    OnRepresentation(fio::NodeAttributesQuery),
}

/// The flags as they are to be passed on to another server.
#[derive(Debug, Clone)]
pub(crate) enum WireFlags {
    Current(fio::Flags, fio::Options),
    Deprecated(fio::OpenFlags),
}

/// What is asked for when a node is opened.
#[derive(Debug, Clone)]
pub struct OpenOptions {
    pub(crate) rights: fio::Operations,
    /// Further rights if the node is a directory.
    inherited: fio::Operations,
    /// What the client can deal with; empty for anything. Never has `PROTOCOL_NODE`.
    protocols: fio::Flags,
    /// A reference to the node is wanted, and not the node.
    pub(crate) node: bool,
    pub(crate) creation: Creation,
    pub(crate) truncate: bool,
    pub(crate) append: bool,
    pub(crate) describe: Describe,
    pub(crate) wire: WireFlags,
}

impl OpenOptions {
    /// Checks the flags of `Directory.Open` on a connection with `granted` rights.
    ///
    /// # Errors
    /// `INVALID_ARGS` for flags that do not go together, `ACCESS_DENIED` for rights that the connection does not have,
    /// `NOT_SUPPORTED` for unnamed files.
    pub fn from_flags(
        flags: fio::Flags,
        options: fio::Options,
        granted: fio::Operations,
    ) -> Result<OpenOptions, Status> {
        use fio::Flags;
        let protocols = flags & protocol_kinds();
        if flags.bits() & !Flags::all().bits() != 0 {
            return Err(Status::INVALID_ARGS);
        }
        let other = flags.bits() & !(protocol_kinds() | Flags::PROTOCOL_NODE).bits();
        if flags.contains(Flags::PROTOCOL_NODE) {
            if other & !Flags::FLAG_SEND_REPRESENTATION.bits() != 0 {
                return Err(Status::INVALID_ARGS);
            }
        } else if flags.contains(Flags::PROTOCOL_SERVICE) && other != 0 {
            return Err(Status::INVALID_ARGS);
        }
        if flags.intersects(Flags::PERM_TRAVERSE | Flags::PERM_MODIFY_DIRECTORY)
            && !flags.contains(Flags::PERM_ENUMERATE)
        {
            return Err(Status::INVALID_ARGS);
        }
        if flags.contains(Flags::FLAG_CREATE_AS_UNNAMED_TEMPORARY) {
            return Err(Status::NOT_SUPPORTED);
        }
        let creation = if flags.contains(Flags::FLAG_MUST_CREATE) {
            Creation::Always
        } else if flags.contains(Flags::FLAG_MAYBE_CREATE) {
            Creation::Maybe
        } else {
            Creation::Never
        };
        if creation == Creation::Never {
            if options.create_attributes.is_some() {
                return Err(Status::INVALID_ARGS);
            }
        } else if protocols.bits().count_ones() != 1 {
            return Err(Status::INVALID_ARGS);
        }
        if flags.contains(Flags::FILE_TRUNCATE) && !flags.contains(Flags::PERM_WRITE_BYTES) {
            return Err(Status::INVALID_ARGS);
        }
        let rights = fio::Operations::from_bits_retain(flags.bits() & PERMISSIONS);
        if !granted.contains(rights) {
            return Err(Status::ACCESS_DENIED);
        }
        let mut inherited = fio::Operations::empty();
        let mut forward = flags;
        for (flag, take) in [
            (Flags::PERM_INHERIT_WRITE, fio::INHERITED_WRITE_PERMISSIONS),
            (Flags::PERM_INHERIT_EXECUTE, fio::Operations::EXECUTE),
        ] {
            if !flags.contains(flag) {
                continue;
            }
            if granted.contains(take) {
                inherited |= take;
            } else {
                forward.remove(flag);
            }
        }
        let describe = if flags.contains(Flags::FLAG_SEND_REPRESENTATION) {
            let query = options.attributes.unwrap_or(fio::NodeAttributesQuery::empty());
            Describe::OnRepresentation(query)
        } else {
            Describe::Nothing
        };
        Ok(OpenOptions {
            rights,
            inherited,
            protocols,
            node: flags.contains(Flags::PROTOCOL_NODE),
            creation,
            truncate: flags.contains(Flags::FILE_TRUNCATE),
            append: flags.contains(Flags::FILE_APPEND),
            describe,
            wire: WireFlags::Current(forward, options),
        })
    }

    /// Checks the flags of `Directory.DeprecatedOpen` on a connection with `granted` rights.
    ///
    /// # Errors
    /// `INVALID_ARGS` for flags that do not go together, `ACCESS_DENIED` for rights that the connection does not have.
    pub fn from_deprecated_flags(
        flags: fio::OpenFlags,
        granted: fio::Operations,
    ) -> Result<OpenOptions, Status> {
        use fio::OpenFlags;
        let conflict = flags.contains(OpenFlags::DIRECTORY | OpenFlags::NOT_DIRECTORY)
            || flags.contains(OpenFlags::CLONE_SAME_RIGHTS)
            || (flags.contains(OpenFlags::CREATE_IF_ABSENT) && !flags.contains(OpenFlags::CREATE))
            || (flags.contains(OpenFlags::TRUNCATE) && !flags.contains(OpenFlags::RIGHT_WRITABLE));
        let node = flags.contains(OpenFlags::NODE_REFERENCE);
        if conflict || (node && !fio::OPEN_FLAGS_ALLOWED_WITH_NODE_REFERENCE.contains(flags)) {
            return Err(Status::INVALID_ARGS);
        }
        let mut asked = fio::Operations::empty();
        for (flag, rights) in [
            (OpenFlags::RIGHT_READABLE, fio::Operations::READ_BYTES),
            (OpenFlags::RIGHT_WRITABLE, write_rights()),
            (OpenFlags::RIGHT_EXECUTABLE, fio::Operations::EXECUTE),
        ] {
            if flags.contains(flag) {
                asked |= rights;
            }
        }
        if !granted.contains(asked) {
            return Err(Status::ACCESS_DENIED);
        }
        let mut inherited = fio::Operations::empty();
        let mut forward = flags;
        for (flag, take) in [
            (OpenFlags::POSIX_WRITABLE, write_rights()),
            (OpenFlags::POSIX_EXECUTABLE, fio::Operations::EXECUTE),
        ] {
            if !flags.contains(flag) {
                continue;
            }
            if granted.contains(take) {
                inherited |= take;
            } else {
                forward.remove(flag);
            }
        }
        let protocols = if flags.contains(OpenFlags::DIRECTORY) {
            fio::Flags::PROTOCOL_DIRECTORY
        } else if flags.contains(OpenFlags::NOT_DIRECTORY) {
            protocol_kinds() - fio::Flags::PROTOCOL_DIRECTORY
        } else {
            fio::Flags::empty()
        };
        let creation = match (
            flags.contains(OpenFlags::CREATE),
            flags.contains(OpenFlags::CREATE_IF_ABSENT),
        ) {
            (false, _) => Creation::Never,
            (true, false) => Creation::Maybe,
            (true, true) => Creation::Always,
        };
        Ok(OpenOptions {
            rights: asked | (deprecated_base() & granted),
            inherited,
            protocols,
            node,
            creation,
            truncate: flags.contains(OpenFlags::TRUNCATE),
            append: flags.contains(OpenFlags::APPEND),
            describe: if flags.contains(OpenFlags::DESCRIBE) {
                Describe::OnOpen
            } else {
                Describe::Nothing
            },
            wire: WireFlags::Deprecated(forward),
        })
    }

    /// What a path with a `/` at its end adds.
    ///
    /// # Errors
    /// `INVALID_ARGS` if the client cannot deal with a directory.
    pub(crate) fn require_directory(&mut self) -> Result<(), Status> {
        let directory = fio::Flags::PROTOCOL_DIRECTORY;
        if !self.protocols.is_empty() && !self.protocols.contains(directory) {
            return Err(Status::INVALID_ARGS);
        }
        self.protocols = directory;
        Ok(())
    }

    /// Checks that the client can deal with a node of the kind `protocol`.
    ///
    /// # Errors
    /// `NOT_DIR`, `NOT_FILE` or `WRONG_TYPE`, by what it can deal with.
    pub(crate) fn accept(&self, protocol: fio::Flags) -> Result<(), Status> {
        if self.protocols.is_empty() || self.protocols.contains(protocol) {
            Ok(())
        } else if self.protocols.contains(fio::Flags::PROTOCOL_DIRECTORY) {
            Err(Status::NOT_DIR)
        } else if self.protocols.contains(fio::Flags::PROTOCOL_FILE) {
            Err(Status::NOT_FILE)
        } else {
            Err(Status::WRONG_TYPE)
        }
    }

    /// Whether what is to be made is a directory.
    pub(crate) fn creates_directory(&self) -> bool {
        self.protocols == fio::Flags::PROTOCOL_DIRECTORY
    }

    /// Whether a node that is made is to have certain attributes.
    pub(crate) fn sets_attributes(&self) -> bool {
        matches!(&self.wire, WireFlags::Current(_, options) if options.create_attributes.is_some())
    }

    /// The rights of a connection to a directory that can do `abilities`.
    ///
    /// # Errors
    /// `ACCESS_DENIED` if more was asked for.
    pub(crate) fn directory_rights(
        &self,
        abilities: fio::Operations,
    ) -> Result<fio::Operations, Status> {
        let rights = self.checked(abilities)?;
        Ok(rights | (self.inherited & abilities))
    }

    /// The rights of a connection to a file that can do `abilities`.
    ///
    /// # Errors
    /// `ACCESS_DENIED` if more was asked for.
    pub(crate) fn file_rights(
        &self,
        abilities: fio::Operations,
    ) -> Result<fio::Operations, Status> {
        Ok(self.checked(abilities)? & file_operations())
    }

    fn checked(&self, abilities: fio::Operations) -> Result<fio::Operations, Status> {
        // The others say what a file or directory may also do, and go where there is nothing of the kind.
        let matter =
            fio::Operations::READ_BYTES | fio::Operations::WRITE_BYTES | fio::Operations::EXECUTE;
        if abilities.contains(self.rights & matter) {
            Ok(self.rights & (abilities | deprecated_base()))
        } else {
            Err(Status::ACCESS_DENIED)
        }
    }
}

fn file_operations() -> fio::Operations {
    fio::Operations::READ_BYTES
        | fio::Operations::WRITE_BYTES
        | fio::Operations::EXECUTE
        | fio::Operations::GET_ATTRIBUTES
        | fio::Operations::UPDATE_ATTRIBUTES
}

fn protocol_kinds() -> fio::Flags {
    fio::Flags::PROTOCOL_DIRECTORY
        | fio::Flags::PROTOCOL_FILE
        | fio::Flags::PROTOCOL_SYMLINK
        | fio::Flags::PROTOCOL_SERVICE
}

/// The older flags that say the same as `rights`.
pub(crate) fn deprecated_rights(rights: fio::Operations) -> fio::OpenFlags {
    let mut flags = fio::OpenFlags::empty();
    if rights.contains(fio::Operations::READ_BYTES) {
        flags |= fio::OpenFlags::RIGHT_READABLE;
    }
    if rights.contains(fio::Operations::WRITE_BYTES) {
        flags |= fio::OpenFlags::RIGHT_WRITABLE;
    }
    if rights.contains(fio::Operations::EXECUTE) {
        flags |= fio::OpenFlags::RIGHT_EXECUTABLE;
    }
    flags
}

/// The rights of a clone that is asked for with the older flags.
///
/// # Errors
/// `INVALID_ARGS` for flags that do not go together, `ACCESS_DENIED` for rights that the original does not have.
pub(crate) fn clone_rights(
    flags: fio::OpenFlags,
    granted: fio::Operations,
) -> Result<fio::Operations, Status> {
    if flags.contains(fio::OpenFlags::CLONE_SAME_RIGHTS) {
        if flags.intersects(fio::OPEN_RIGHTS) {
            return Err(Status::INVALID_ARGS);
        }
        return Ok(granted);
    }
    let kept = flags & (fio::OPEN_RIGHTS | fio::OpenFlags::DESCRIBE);
    Ok(OpenOptions::from_deprecated_flags(kept, granted)?.rights)
}

#[cfg(test)]
mod tests {
    use super::*;
    use fio::{Flags, OpenFlags, Operations};

    fn open(flags: Flags, granted: Operations) -> Result<OpenOptions, Status> {
        OpenOptions::from_flags(flags, fio::Options::default(), granted)
    }

    #[test]
    fn rights_are_never_gained() {
        let read_only = fio::R_STAR_DIR;
        assert!(open(fio::PERM_READABLE, read_only).is_ok());
        assert_eq!(open(fio::PERM_WRITABLE, read_only).err(), Some(Status::ACCESS_DENIED));
        assert_eq!(open(Flags::PERM_EXECUTE, read_only).err(), Some(Status::ACCESS_DENIED));
        let inherits = fio::PERM_READABLE | Flags::PERM_INHERIT_WRITE | Flags::PERM_INHERIT_EXECUTE;
        let options = open(inherits, read_only).expect("inheriting nothing is no error");
        assert_eq!(options.directory_rights(Operations::all()), Ok(read_only));
        let options = open(inherits, fio::RW_STAR_DIR).expect("it has the rights");
        let rights = options.directory_rights(Operations::all()).expect("it has the rights");
        assert!(rights.contains(Operations::WRITE_BYTES) && !rights.contains(Operations::EXECUTE));
        assert_eq!(
            options.file_rights(Operations::all()).map(|r| r.contains(Operations::WRITE_BYTES)),
            Ok(false)
        );
    }

    #[test]
    fn deprecated_rights_are_never_gained() {
        let read_only = fio::R_STAR_DIR;
        let open = |flags| OpenOptions::from_deprecated_flags(flags, read_only);
        assert!(open(OpenFlags::RIGHT_READABLE).is_ok_and(|o| read_only.contains(o.rights)));
        assert_eq!(open(OpenFlags::RIGHT_WRITABLE).err(), Some(Status::ACCESS_DENIED));
        assert_eq!(open(OpenFlags::RIGHT_EXECUTABLE).err(), Some(Status::ACCESS_DENIED));
        let posix =
            open(OpenFlags::POSIX_WRITABLE | OpenFlags::POSIX_EXECUTABLE).expect("no error");
        assert_eq!(
            posix.directory_rights(Operations::all()).map(|r| read_only.contains(r)),
            Ok(true)
        );
        assert_eq!(clone_rights(OpenFlags::CLONE_SAME_RIGHTS, read_only), Ok(read_only));
        assert_eq!(clone_rights(OpenFlags::RIGHT_WRITABLE, read_only), Err(Status::ACCESS_DENIED));
        let both = OpenFlags::CLONE_SAME_RIGHTS | OpenFlags::RIGHT_READABLE;
        assert_eq!(clone_rights(both, read_only), Err(Status::INVALID_ARGS));
    }

    #[test]
    fn flags_that_do_not_go_together_are_refused() {
        let all = Operations::all();
        let bad = [
            Flags::PERM_TRAVERSE,
            Flags::PERM_MODIFY_DIRECTORY,
            Flags::PROTOCOL_NODE | Flags::PERM_READ_BYTES,
            Flags::PROTOCOL_SERVICE | Flags::PERM_READ_BYTES,
            Flags::FLAG_MAYBE_CREATE,
            Flags::FLAG_MUST_CREATE | Flags::PROTOCOL_FILE | Flags::PROTOCOL_DIRECTORY,
            Flags::FILE_TRUNCATE,
            Flags::from_bits_retain(1 << 63),
        ];
        for flags in bad {
            assert_eq!(open(flags, all).err(), Some(Status::INVALID_ARGS), "{flags:?}");
        }
        assert!(open(Flags::PROTOCOL_NODE | Flags::PROTOCOL_FILE, all).is_ok());
    }

    #[test]
    fn the_error_says_what_was_expected() {
        let accept = |flags, kind| open(flags, Operations::all()).expect("flags").accept(kind);
        let (directory, file) = (Flags::PROTOCOL_DIRECTORY, Flags::PROTOCOL_FILE);
        assert_eq!(accept(directory | file, Flags::PROTOCOL_SERVICE), Err(Status::NOT_DIR));
        assert_eq!(accept(file, directory), Err(Status::NOT_FILE));
        assert_eq!(accept(Flags::PROTOCOL_SYMLINK, directory), Err(Status::WRONG_TYPE));
        assert_eq!(accept(directory | file, file), Ok(()));
        assert_eq!(accept(Flags::empty(), directory), Ok(()));
    }
}
