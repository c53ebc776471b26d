//! The handles that a process is started with (zircon/processargs.h).
//!
//! On Fuchsia this is the crate `fuchsia-runtime`; it is a module here because what it reads is the bootstrap message
//! that the syscall layer keeps.

use crate::{AsHandleRef, Channel, Handle, sys};

/// What a startup handle is for.
#[derive(Debug, Copy, Clone, PartialEq, Eq, Hash)]
#[repr(u8)]
#[non_exhaustive]
pub enum HandleType {
    /// `PA_PROC_SELF`: the process itself.
    ProcessSelf = 0x01,
    /// `PA_THREAD_SELF`: its first thread.
    ThreadSelf = 0x02,
    /// `PA_JOB_DEFAULT`: the job in which it may make processes.
    DefaultJob = 0x03,
    /// `PA_VMAR_ROOT`: its address space.
    RootVmar = 0x04,
    /// `PA_VMO_COMPONENT_CONFIG`: its structured configuration.
    ComponentConfigVmo = 0x1d,
    /// `PA_NS_DIR`: a directory of its namespace; the argument is an index of the name table.
    NamespaceDirectory = 0x20,
    /// `PA_FD`: a file descriptor; the argument is its number.
    FileDescriptor = 0x30,
    /// `PA_LIFECYCLE`: the server end of its `fuchsia.process.lifecycle.Lifecycle`.
    Lifecycle = 0x3a,
    /// `PA_DIRECTORY_REQUEST`: the server end of its outgoing directory.
    DirectoryRequest = 0x3b,
    /// `PA_ESCROWED_DICTIONARY`: the dictionary that an earlier run left with the component manager, by token.
    EscrowedDictionary = 0x3c,
    /// `PA_RESOURCE`: a kernel resource.
    Resource = 0x3f,
    /// `PA_CLOCK_UTC`: the UTC clock.
    ClockUtc = 0x40,
    /// `PA_USER0`: for the two sides to agree on.
    User0 = 0xf0,
    /// `PA_USER1`: for the two sides to agree on.
    User1 = 0xf1,
    /// `PA_USER2`: for the two sides to agree on.
    User2 = 0xf2,
}

/// A handle's type and argument, as in `PA_HND(type, arg)`.
#[derive(Debug, Copy, Clone, PartialEq, Eq, Hash)]
pub struct HandleInfo {
    handle_type: HandleType,
    argument: u16,
}

impl HandleInfo {
    /// The description with this type and argument.
    #[must_use]
    pub const fn new(handle_type: HandleType, argument: u16) -> Self {
        Self { handle_type, argument }
    }

    /// The number that stands for it: the type in the low byte, the argument in the high half.
    #[must_use]
    pub const fn as_raw(self) -> u32 {
        self.handle_type as u32 | (self.argument as u32) << 16
    }

    /// The type.
    #[must_use]
    pub const fn handle_type(self) -> HandleType {
        self.handle_type
    }

    /// The argument.
    #[must_use]
    pub const fn arg(self) -> u16 {
        self.argument
    }
}

impl From<HandleType> for HandleInfo {
    fn from(handle_type: HandleType) -> Self {
        Self::new(handle_type, 0)
    }
}

/// Takes a startup handle; a second call for the same one finds nothing.
#[must_use]
pub fn take_startup_handle(info: HandleInfo) -> Option<Handle> {
    let raw = sys::take_startup_handle(info.as_raw());
    // SAFETY: the syscall layer gives each startup handle away once.
    let handle = unsafe { Handle::from_raw(raw) };
    (!handle.is_invalid()).then_some(handle)
}

/// Takes the namespace: absolute paths and the directories that are there.
#[must_use]
pub fn take_namespace() -> Vec<(String, Channel)> {
    let entries = sys::take_namespace().into_iter();
    entries
        .map(|(path, raw)| {
            // SAFETY: the syscall layer gives each namespace entry away once.
            (path, Channel::from(unsafe { Handle::from_raw(raw) }))
        })
        .filter(|(_, channel)| !channel.as_handle_ref().is_invalid())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_is_that_of_processargs() {
        let info = HandleInfo::new(HandleType::FileDescriptor, 2);
        assert_eq!(info.as_raw(), 0x0002_0030);
        assert_eq!(HandleInfo::from(HandleType::DirectoryRequest).as_raw(), 0x3b);
    }

    #[test]
    fn what_was_not_given_is_not_there() {
        let info = HandleInfo::new(HandleType::User2, 77);
        assert_eq!(take_startup_handle(info), None);
    }
}
