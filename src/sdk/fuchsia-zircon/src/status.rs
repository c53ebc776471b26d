use crate::sys;
use std::{error, fmt, io};

/// A status code of the kernel, `ZX_OK` or one of the `ZX_ERR_*` values.
#[derive(Debug, Copy, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(transparent)]
pub struct Status(sys::zx_status_t);

/// Turns a raw status into a result.
///
/// # Errors
/// Every status but `ZX_OK`.
#[inline]
pub fn ok(raw: sys::zx_status_t) -> Result<(), Status> {
    Status::ok(raw)
}

macro_rules! statuses {
    ($($name:ident = $raw:ident;)*) => {
        impl Status {
            $(
                #[doc = concat!("`", stringify!($raw), "`.")]
                pub const $name: Status = Status(sys::$raw);
            )*

            fn name(self) -> Option<&'static str> {
                match self {
                    $(Status::$name => Some(stringify!($name)),)*
                    _ => None,
                }
            }
        }
    };
}

statuses! {
    OK = ZX_OK;
    INTERNAL = ZX_ERR_INTERNAL;
    NOT_SUPPORTED = ZX_ERR_NOT_SUPPORTED;
    NO_RESOURCES = ZX_ERR_NO_RESOURCES;
    NO_MEMORY = ZX_ERR_NO_MEMORY;
    INTERRUPTED_RETRY = ZX_ERR_INTERRUPTED_RETRY;
    INVALID_ARGS = ZX_ERR_INVALID_ARGS;
    BAD_HANDLE = ZX_ERR_BAD_HANDLE;
    WRONG_TYPE = ZX_ERR_WRONG_TYPE;
    BAD_SYSCALL = ZX_ERR_BAD_SYSCALL;
    OUT_OF_RANGE = ZX_ERR_OUT_OF_RANGE;
    BUFFER_TOO_SMALL = ZX_ERR_BUFFER_TOO_SMALL;
    BAD_STATE = ZX_ERR_BAD_STATE;
    TIMED_OUT = ZX_ERR_TIMED_OUT;
    SHOULD_WAIT = ZX_ERR_SHOULD_WAIT;
    CANCELED = ZX_ERR_CANCELED;
    PEER_CLOSED = ZX_ERR_PEER_CLOSED;
    NOT_FOUND = ZX_ERR_NOT_FOUND;
    ALREADY_EXISTS = ZX_ERR_ALREADY_EXISTS;
    ALREADY_BOUND = ZX_ERR_ALREADY_BOUND;
    UNAVAILABLE = ZX_ERR_UNAVAILABLE;
    ACCESS_DENIED = ZX_ERR_ACCESS_DENIED;
    IO = ZX_ERR_IO;
    IO_REFUSED = ZX_ERR_IO_REFUSED;
    IO_DATA_INTEGRITY = ZX_ERR_IO_DATA_INTEGRITY;
    IO_DATA_LOSS = ZX_ERR_IO_DATA_LOSS;
    IO_NOT_PRESENT = ZX_ERR_IO_NOT_PRESENT;
    IO_OVERRUN = ZX_ERR_IO_OVERRUN;
    IO_MISSED_DEADLINE = ZX_ERR_IO_MISSED_DEADLINE;
    IO_INVALID = ZX_ERR_IO_INVALID;
    BAD_PATH = ZX_ERR_BAD_PATH;
    NOT_DIR = ZX_ERR_NOT_DIR;
    NOT_FILE = ZX_ERR_NOT_FILE;
    FILE_BIG = ZX_ERR_FILE_BIG;
    NO_SPACE = ZX_ERR_NO_SPACE;
    NOT_EMPTY = ZX_ERR_NOT_EMPTY;
    STOP = ZX_ERR_STOP;
    NEXT = ZX_ERR_NEXT;
    ASYNC = ZX_ERR_ASYNC;
    PROTOCOL_NOT_SUPPORTED = ZX_ERR_PROTOCOL_NOT_SUPPORTED;
    ADDRESS_UNREACHABLE = ZX_ERR_ADDRESS_UNREACHABLE;
    ADDRESS_IN_USE = ZX_ERR_ADDRESS_IN_USE;
    NOT_CONNECTED = ZX_ERR_NOT_CONNECTED;
    CONNECTION_REFUSED = ZX_ERR_CONNECTION_REFUSED;
    CONNECTION_RESET = ZX_ERR_CONNECTION_RESET;
    CONNECTION_ABORTED = ZX_ERR_CONNECTION_ABORTED;
}

impl Status {
    /// Turns a raw status into a result.
    ///
    /// # Errors
    /// Every status but `ZX_OK`.
    #[inline]
    pub fn ok(raw: sys::zx_status_t) -> Result<(), Status> {
        if raw == sys::ZX_OK { Ok(()) } else { Err(Status(raw)) }
    }

    /// The status with this number, whether it has a name or not.
    #[must_use]
    pub const fn from_raw(raw: sys::zx_status_t) -> Self {
        Status(raw)
    }

    /// The status' number.
    #[must_use]
    pub const fn into_raw(self) -> sys::zx_status_t {
        self.0
    }

    /// The status of a result.
    #[must_use]
    pub fn from_result(result: Result<(), Status>) -> Self {
        match result {
            Ok(()) => Status::OK,
            Err(status) => status,
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "Status({})", self.0),
        }
    }
}

impl error::Error for Status {}

impl From<io::ErrorKind> for Status {
    fn from(kind: io::ErrorKind) -> Self {
        use io::ErrorKind;
        match kind {
            ErrorKind::NotFound => Status::NOT_FOUND,
            ErrorKind::PermissionDenied => Status::ACCESS_DENIED,
            ErrorKind::ConnectionRefused => Status::CONNECTION_REFUSED,
            ErrorKind::ConnectionReset => Status::CONNECTION_RESET,
            ErrorKind::ConnectionAborted => Status::CONNECTION_ABORTED,
            ErrorKind::NotConnected => Status::NOT_CONNECTED,
            ErrorKind::AddrInUse => Status::ADDRESS_IN_USE,
            ErrorKind::BrokenPipe => Status::PEER_CLOSED,
            ErrorKind::AlreadyExists => Status::ALREADY_EXISTS,
            ErrorKind::WouldBlock => Status::SHOULD_WAIT,
            ErrorKind::InvalidInput => Status::INVALID_ARGS,
            ErrorKind::TimedOut => Status::TIMED_OUT,
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Status::NO_SPACE,
            ErrorKind::FileTooLarge => Status::FILE_BIG,
            ErrorKind::NotADirectory => Status::NOT_DIR,
            ErrorKind::IsADirectory => Status::NOT_FILE,
            ErrorKind::DirectoryNotEmpty => Status::NOT_EMPTY,
            ErrorKind::ReadOnlyFilesystem => Status::ACCESS_DENIED,
            ErrorKind::OutOfMemory => Status::NO_MEMORY,
            ErrorKind::Unsupported => Status::NOT_SUPPORTED,
            ErrorKind::Interrupted => Status::INTERRUPTED_RETRY,
            ErrorKind::UnexpectedEof => Status::PEER_CLOSED,
            _ => Status::IO,
        }
    }
}

impl From<io::Error> for Status {
    fn from(error: io::Error) -> Self {
        error.kind().into()
    }
}

impl From<Status> for io::ErrorKind {
    fn from(status: Status) -> Self {
        use io::ErrorKind;
        match status {
            Status::NOT_FOUND => ErrorKind::NotFound,
            Status::ACCESS_DENIED => ErrorKind::PermissionDenied,
            Status::CONNECTION_REFUSED | Status::IO_REFUSED => ErrorKind::ConnectionRefused,
            Status::CONNECTION_RESET => ErrorKind::ConnectionReset,
            Status::CONNECTION_ABORTED => ErrorKind::ConnectionAborted,
            Status::NOT_CONNECTED => ErrorKind::NotConnected,
            Status::ADDRESS_IN_USE => ErrorKind::AddrInUse,
            Status::PEER_CLOSED => ErrorKind::BrokenPipe,
            Status::ALREADY_EXISTS => ErrorKind::AlreadyExists,
            Status::SHOULD_WAIT => ErrorKind::WouldBlock,
            Status::INVALID_ARGS => ErrorKind::InvalidInput,
            Status::TIMED_OUT => ErrorKind::TimedOut,
            Status::NO_SPACE => ErrorKind::StorageFull,
            Status::NO_MEMORY => ErrorKind::OutOfMemory,
            Status::NOT_SUPPORTED => ErrorKind::Unsupported,
            _ => ErrorKind::Other,
        }
    }
}

impl From<Status> for io::Error {
    fn from(status: Status) -> Self {
        io::Error::new(status.into(), status)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_zircon() {
        assert_eq!(Status::PEER_CLOSED.to_string(), "PEER_CLOSED");
        assert_eq!(Status::from_raw(-24), Status::PEER_CLOSED);
        assert_eq!(Status::from_raw(-9999).to_string(), "Status(-9999)");
        assert_eq!(ok(0), Ok(()));
        assert_eq!(ok(-10), Err(Status::INVALID_ARGS));
    }

    #[test]
    fn round_trips_through_io_errors() {
        for status in [Status::NOT_FOUND, Status::SHOULD_WAIT, Status::PEER_CLOSED] {
            assert_eq!(Status::from(io::Error::from(status)), status);
        }
    }
}
