//! The raw system calls, their types, and what a process finds at its start.

#[cfg(target_os = "fuchsia")]
pub use fuchsia_runtime_sys::*;
#[cfg(target_os = "fuchsia")]
pub use fuchsia_zircon_sys::*;
pub use fuchsia_zircon_types::*;
#[cfg(target_os = "linux")]
pub use linux_runtime::*;
#[cfg(target_os = "linux")]
pub use zircon::*;

/// What Linux' Zircon knows of the process' start.
#[cfg(target_os = "linux")]
mod linux_runtime {
    use fuchsia_zircon_types::{ZX_HANDLE_INVALID, zx_handle_t};
    use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

    /// What the bootstrap message held, taken piece by piece.
    #[derive(Default)]
    struct Startup {
        handles: Vec<(u32, zx_handle_t)>,
        namespace: Vec<(String, zx_handle_t)>,
    }

    static ROOT_VMAR: LazyLock<zx_handle_t> =
        LazyLock::new(|| zircon::linux::vmar_root_self().unwrap_or(ZX_HANDLE_INVALID));
    static STARTUP: LazyLock<Mutex<Startup>> = LazyLock::new(Mutex::default);

    fn startup() -> MutexGuard<'static, Startup> {
        STARTUP.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// This process' default job, which the caller does not own.
    #[must_use]
    pub fn job_default() -> zx_handle_t {
        ZX_HANDLE_INVALID
    }

    /// This process' root VMAR, which the caller does not own.
    #[must_use]
    pub fn vmar_root_self() -> zx_handle_t {
        *ROOT_VMAR
    }

    /// Takes the startup handle with this `PA_HND` number.
    #[must_use]
    pub fn take_startup_handle(info: u32) -> zx_handle_t {
        let mut startup = startup();
        match startup.handles.iter().position(|(id, _)| *id == info) {
            Some(index) => startup.handles.swap_remove(index).1,
            None => ZX_HANDLE_INVALID,
        }
    }

    /// Takes the directories of the namespace.
    #[must_use]
    pub fn take_namespace() -> Vec<(String, zx_handle_t)> {
        std::mem::take(&mut startup().namespace)
    }
}

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
