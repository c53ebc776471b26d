use crate::handle::impl_handle_based;
use crate::{Handle, sys};

/// The right to something of the system's, such as its hypervisor.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Resource(Handle);
impl_handle_based!(Resource);

/// A clock object.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Clock(Handle);
impl_handle_based!(Clock);

/// The machine's physical memory in bytes.
#[must_use]
pub fn system_get_physmem() -> u64 {
    // SAFETY: the call has no arguments and cannot fail.
    unsafe { sys::zx_system_get_physmem() }
}

/// The number of the machine's CPUs.
#[must_use]
pub fn system_get_num_cpus() -> u32 {
    // SAFETY: the call has no arguments and cannot fail.
    unsafe { sys::zx_system_get_num_cpus() }
}

/// The size of a page in bytes.
#[must_use]
pub fn system_get_page_size() -> u32 {
    // SAFETY: the call has no arguments and cannot fail.
    unsafe { sys::zx_system_get_page_size() }
}

/// Fills a buffer from the kernel's cryptographic random number generator.
pub fn cprng_draw(buffer: &mut [u8]) {
    // SAFETY: the buffer is valid for its length.
    unsafe { sys::zx_cprng_draw(buffer.as_mut_ptr(), buffer.len()) };
}
