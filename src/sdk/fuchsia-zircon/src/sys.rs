//! The raw system calls, their types, and what a process finds at its start.

#[cfg(target_os = "fuchsia")]
pub use fuchsia_runtime_sys::*;
#[cfg(target_os = "fuchsia")]
pub use fuchsia_zircon_sys::*;
pub use fuchsia_zircon_types::*;
#[cfg(target_os = "linux")]
pub use zircon::linux::{job_default, take_namespace, take_startup_handle, vmar_root_self};
#[cfg(target_os = "linux")]
pub use zircon::*;

/// What Fuchsia's libc and fdio know of the process' start.
#[cfg(target_os = "fuchsia")]
mod fuchsia_runtime_sys {
    use fuchsia_zircon_types::zx_handle_t;
    use std::ffi::{CStr, c_char};

    #[repr(C)]
    struct FlatNamespace {
        count: usize,
        handles: *mut zx_handle_t,
        paths: *const *const c_char,
    }

    #[link(name = "fdio")]
    unsafe extern "C" {
        fn fdio_ns_export_root(out: *mut *mut FlatNamespace) -> i32;
        fn fdio_ns_free_flat_ns(namespace: *mut FlatNamespace);
    }

    unsafe extern "C" {
        fn zx_job_default() -> zx_handle_t;
        fn zx_take_startup_handle(info: u32) -> zx_handle_t;
        fn zx_vmar_root_self() -> zx_handle_t;
    }

    /// This process' default job, which it does not own.
    #[must_use]
    pub fn job_default() -> zx_handle_t {
        // SAFETY: the call has no arguments.
        unsafe { zx_job_default() }
    }

    /// This process' root VMAR, which it does not own.
    #[must_use]
    pub fn vmar_root_self() -> zx_handle_t {
        // SAFETY: the call has no arguments.
        unsafe { zx_vmar_root_self() }
    }

    /// Takes the startup handle with this `PA_HND` number.
    #[must_use]
    pub fn take_startup_handle(info: u32) -> zx_handle_t {
        // SAFETY: the call takes a number only.
        unsafe { zx_take_startup_handle(info) }
    }

    /// The directories of the namespace, cloned, since fdio has taken the handles themselves.
    #[must_use]
    pub fn take_namespace() -> Vec<(String, zx_handle_t)> {
        let mut flat = std::ptr::null_mut();
        // SAFETY: the result has a valid place.
        if unsafe { fdio_ns_export_root(&raw mut flat) } != 0 {
            return Vec::new();
        }
        // SAFETY: the call gave us a namespace with `count` handles and as many NUL-terminated paths.
        let entries = unsafe {
            let namespace = &mut *flat;
            (0..namespace.count)
                .map(|index| {
                    let path = CStr::from_ptr(*namespace.paths.add(index));
                    // Taken out, so that freeing the namespace does not close it.
                    let handle = std::mem::take(&mut *namespace.handles.add(index));
                    (path.to_string_lossy().into_owned(), handle)
                })
                .collect()
        };
        // SAFETY: the namespace is ours to free, once.
        unsafe { fdio_ns_free_flat_ns(flat) };
        entries
    }
}
