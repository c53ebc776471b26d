//! Status codes: what Linux's errno means in Zircon's terms, and how results leave a system call.

use fuchsia_zircon_types::*;
use rustix::io::Errno;

/// A Zircon error code; never `ZX_OK`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status(pub zx_status_t);

/// The result of a system call before it becomes a status code.
pub(crate) type Result<T> = std::result::Result<T, Status>;

pub(crate) const INVALID_ARGS: Status = Status(ZX_ERR_INVALID_ARGS);
pub(crate) const BAD_HANDLE: Status = Status(ZX_ERR_BAD_HANDLE);
pub(crate) const WRONG_TYPE: Status = Status(ZX_ERR_WRONG_TYPE);
pub(crate) const ACCESS_DENIED: Status = Status(ZX_ERR_ACCESS_DENIED);
pub(crate) const NOT_SUPPORTED: Status = Status(ZX_ERR_NOT_SUPPORTED);
pub(crate) const OUT_OF_RANGE: Status = Status(ZX_ERR_OUT_OF_RANGE);
pub(crate) const SHOULD_WAIT: Status = Status(ZX_ERR_SHOULD_WAIT);
pub(crate) const PEER_CLOSED: Status = Status(ZX_ERR_PEER_CLOSED);
pub(crate) const BUFFER_TOO_SMALL: Status = Status(ZX_ERR_BUFFER_TOO_SMALL);
pub(crate) const TIMED_OUT: Status = Status(ZX_ERR_TIMED_OUT);
pub(crate) const BAD_STATE: Status = Status(ZX_ERR_BAD_STATE);
pub(crate) const NOT_FOUND: Status = Status(ZX_ERR_NOT_FOUND);
pub(crate) const NO_MEMORY: Status = Status(ZX_ERR_NO_MEMORY);
pub(crate) const CANCELED: Status = Status(ZX_ERR_CANCELED);
pub(crate) const NO_RESOURCES: Status = Status(ZX_ERR_NO_RESOURCES);
pub(crate) const IO_DATA_INTEGRITY: Status = Status(ZX_ERR_IO_DATA_INTEGRITY);

impl From<Errno> for Status {
    fn from(errno: Errno) -> Self {
        Status(match errno {
            Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN => ZX_ERR_PEER_CLOSED,
            Errno::AGAIN => ZX_ERR_SHOULD_WAIT,
            Errno::NOMEM | Errno::NOBUFS => ZX_ERR_NO_MEMORY,
            Errno::MFILE | Errno::NFILE | Errno::TOOMANYREFS => ZX_ERR_NO_RESOURCES,
            Errno::INVAL => ZX_ERR_INVALID_ARGS,
            Errno::ACCESS | Errno::PERM | Errno::ROFS => ZX_ERR_ACCESS_DENIED,
            Errno::NOSPC | Errno::DQUOT => ZX_ERR_NO_SPACE,
            Errno::FBIG | Errno::OVERFLOW | Errno::NXIO => ZX_ERR_OUT_OF_RANGE,
            Errno::NOENT | Errno::SRCH => ZX_ERR_NOT_FOUND,
            Errno::EXIST => ZX_ERR_ALREADY_EXISTS,
            Errno::TIMEDOUT | Errno::TIME => ZX_ERR_TIMED_OUT,
            Errno::OPNOTSUPP | Errno::NOSYS | Errno::NODEV | Errno::SPIPE => ZX_ERR_NOT_SUPPORTED,
            Errno::NOTDIR => ZX_ERR_NOT_DIR,
            Errno::IO => ZX_ERR_IO,
            Errno::BADF => ZX_ERR_BAD_STATE,
            Errno::MSGSIZE => ZX_ERR_OUT_OF_RANGE,
            _ => ZX_ERR_INTERNAL,
        })
    }
}

/// The status code of a call.
pub(crate) fn answer(result: Result<()>) -> zx_status_t {
    match result {
        Ok(()) => ZX_OK,
        Err(Status(code)) => code,
    }
}

/// A required out-parameter: a null pointer is the caller's error, found before anything is created.
///
/// # Safety
/// `pointer` is null or valid for writing a `T` for as long as `'a`.
pub(crate) unsafe fn out<'a, T>(pointer: *mut T) -> Result<Out<'a, T>> {
    if pointer.is_null() {
        return Err(INVALID_ARGS);
    }
    Ok(Out(pointer, std::marker::PhantomData))
}

/// A checked out-parameter.
pub(crate) struct Out<'a, T>(*mut T, std::marker::PhantomData<&'a mut T>);

impl<T> Out<'_, T> {
    /// Stores the value for the caller.
    pub(crate) fn set(self, value: T) {
        // SAFETY: `out` was promised a pointer that is valid for writing.
        unsafe { self.0.write(value) };
    }
}

/// Stores `value` where the caller asked for it, if it did.
///
/// # Safety
/// `pointer` is null or valid for writing a `T`.
pub(crate) unsafe fn set_optional<T>(pointer: *mut T, value: T) {
    if !pointer.is_null() {
        // SAFETY: not null, so valid for writing by the caller's promise.
        unsafe { pointer.write(value) };
    }
}

/// The caller's bytes to read.
///
/// # Safety
/// `pointer` is valid for reading `len` bytes, or null with `len` 0, for as long as `'a`.
pub(crate) unsafe fn bytes<'a>(pointer: *const u8, len: usize) -> Result<&'a [u8]> {
    if len == 0 {
        return Ok(&[]);
    }
    if pointer.is_null() || len > isize::MAX as usize {
        return Err(INVALID_ARGS);
    }
    // SAFETY: the caller's promise.
    Ok(unsafe { std::slice::from_raw_parts(pointer, len) })
}

/// The caller's buffer to fill, which may be uninitialized.
///
/// # Safety
/// `pointer` is valid for writing `len` bytes, or null with `len` 0, for as long as `'a`.
pub(crate) unsafe fn buffer<'a>(
    pointer: *mut u8,
    len: usize,
) -> Result<&'a mut [std::mem::MaybeUninit<u8>]> {
    if len == 0 {
        return Ok(&mut []);
    }
    if pointer.is_null() || len > isize::MAX as usize {
        return Err(INVALID_ARGS);
    }
    // SAFETY: the caller's promise; uninitialized bytes are allowed in this slice.
    Ok(unsafe { std::slice::from_raw_parts_mut(pointer.cast(), len) })
}
