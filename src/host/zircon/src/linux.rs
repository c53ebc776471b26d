//! What a process finds at its start, and what only Linux has.
//!
//! `fuchsia-zircon`'s `sys` module imports `job_default`, `vmar_root_self`, `take_startup_handle` and `take_namespace`
//! from here; on Fuchsia they are libc's and fdio's.

use fuchsia_zircon_types::{ZX_HANDLE_INVALID, zx_handle_t};
use std::sync::{Mutex, OnceLock, PoisonError};

static ROOT_VMAR: OnceLock<zx_handle_t> = OnceLock::new();
static DEFAULT_JOB: OnceLock<zx_handle_t> = OnceLock::new();
static STARTUP_HANDLES: Mutex<Vec<(u32, zx_handle_t)>> = Mutex::new(Vec::new());
static NAMESPACE: Mutex<Vec<(String, zx_handle_t)>> = Mutex::new(Vec::new());

/// This process' root VMAR, which the caller does not own.
#[must_use]
pub fn vmar_root_self() -> zx_handle_t {
    ROOT_VMAR.get().copied().unwrap_or(ZX_HANDLE_INVALID)
}

/// This process' default job, which the caller does not own.
#[must_use]
pub fn job_default() -> zx_handle_t {
    DEFAULT_JOB.get().copied().unwrap_or(ZX_HANDLE_INVALID)
}

/// Takes the startup handle with this `PA_HND` number; zero where there is none or it was taken.
#[must_use]
pub fn take_startup_handle(info: u32) -> zx_handle_t {
    let mut handles = STARTUP_HANDLES.lock().unwrap_or_else(PoisonError::into_inner);
    match handles.iter().position(|(id, _)| *id == info) {
        Some(index) => handles.swap_remove(index).1,
        None => ZX_HANDLE_INVALID,
    }
}

/// Takes the namespace: absolute paths and the directories' channels.
#[must_use]
pub fn take_namespace() -> Vec<(String, zx_handle_t)> {
    std::mem::take(&mut NAMESPACE.lock().unwrap_or_else(PoisonError::into_inner))
}
