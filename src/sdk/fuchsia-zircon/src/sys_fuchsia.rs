//! What a process starts with and how it starts others, on Fuchsia: libc's and fdio's part.

use super::ProcessStart;
use fuchsia_zircon_types::{ZX_HANDLE_INVALID, zx_handle_t, zx_status_t};
use std::ffi::{CStr, CString, c_char};
use std::ptr;

const PA_NS_DIR: u32 = 0x20;

const FDIO_SPAWN_DEFAULT_LDSVC: u32 = 0x0002;
const FDIO_SPAWN_ACTION_ADD_NS_ENTRY: u32 = 3;
const FDIO_SPAWN_ACTION_ADD_HANDLE: u32 = 4;
const FDIO_SPAWN_ACTION_SET_NAME: u32 = 5;

#[repr(C)]
struct FlatNamespace {
    count: usize,
    handles: *mut zx_handle_t,
    paths: *const *const c_char,
}

/// `fdio_spawn_action_t`: the union's largest member is a pointer and a handle.
#[repr(C)]
struct SpawnAction {
    action: u32,
    union: SpawnActionUnion,
}

#[repr(C)]
union SpawnActionUnion {
    namespace: SpawnNamespace,
    handle: SpawnHandle,
    name: *const c_char,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct SpawnNamespace {
    prefix: *const c_char,
    handle: zx_handle_t,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct SpawnHandle {
    id: u32,
    handle: zx_handle_t,
}

#[link(name = "fdio")]
unsafe extern "C" {
    fn fdio_ns_export_root(out: *mut *mut FlatNamespace) -> zx_status_t;
    fn fdio_ns_free_flat_ns(namespace: *mut FlatNamespace);
    fn fdio_spawn_vmo(
        job: zx_handle_t,
        flags: u32,
        executable: zx_handle_t,
        argv: *const *const c_char,
        environ: *const *const c_char,
        action_count: usize,
        actions: *const SpawnAction,
        process: *mut zx_handle_t,
        message: *mut c_char,
    ) -> zx_status_t;
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
    let mut flat = ptr::null_mut();
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

/// Starts a process; consumes the startup handles.
///
/// # Errors
/// Those of `fdio_spawn_vmo`.
pub fn start_process(start: ProcessStart) -> Result<zx_handle_t, zx_status_t> {
    let text = |word: &String| CString::new(word.as_str()).unwrap_or_default();
    let arguments: Vec<_> = start.arguments.iter().map(text).collect();
    let environment: Vec<_> = start.environment.iter().map(text).collect();
    let names: Vec<_> = start.names.iter().map(text).collect();
    let name = text(&start.name);
    let mut actions = vec![SpawnAction {
        action: FDIO_SPAWN_ACTION_SET_NAME,
        union: SpawnActionUnion { name: name.as_ptr() },
    }];
    for (id, handle) in start.handles {
        actions.push(match names.get((id >> 16) as usize).filter(|_| id & 0xff == PA_NS_DIR) {
            Some(path) => SpawnAction {
                action: FDIO_SPAWN_ACTION_ADD_NS_ENTRY,
                union: SpawnActionUnion {
                    namespace: SpawnNamespace { prefix: path.as_ptr(), handle },
                },
            },
            None => SpawnAction {
                action: FDIO_SPAWN_ACTION_ADD_HANDLE,
                union: SpawnActionUnion { handle: SpawnHandle { id, handle } },
            },
        });
    }
    let pointers = |words: &[CString]| -> Vec<*const c_char> {
        words.iter().map(|word| word.as_ptr()).chain([ptr::null()]).collect()
    };
    let (argv, environ) = (pointers(&arguments), pointers(&environment));
    // The call consumes the program's handle, which stays the caller's here.
    let mut executable = ZX_HANDLE_INVALID;
    // SAFETY: the result has a valid place.
    let status = unsafe {
        fuchsia_zircon_sys::zx_handle_duplicate(
            start.executable,
            fuchsia_zircon_types::ZX_RIGHT_SAME_RIGHTS,
            &raw mut executable,
        )
    };
    if status != 0 {
        return Err(status);
    }
    let mut process = ZX_HANDLE_INVALID;
    // SAFETY: the vectors end in null pointers and, like the actions' strings, outlive the call; the handles are ours.
    let status = unsafe {
        fdio_spawn_vmo(
            start.job,
            FDIO_SPAWN_DEFAULT_LDSVC,
            executable,
            argv.as_ptr(),
            environ.as_ptr(),
            actions.len(),
            actions.as_ptr(),
            &raw mut process,
            ptr::null_mut(),
        )
    };
    if status == 0 { Ok(process) } else { Err(status) }
}

/// A vCPU's counters, of which there are none: Zircon counts for each CPU of the machine only (`ZX_INFO_GUEST_STATS`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VcpuStats {}

/// A vCPU's counters. Zircon does not count by vCPU.
///
/// # Errors
/// Always `ZX_ERR_NOT_SUPPORTED`.
pub fn vcpu_stats(_vcpu: zx_handle_t) -> Result<VcpuStats, zx_status_t> {
    Err(fuchsia_zircon_types::ZX_ERR_NOT_SUPPORTED)
}
