//! Resources. There is nothing behind them on Linux; they carry the right to ask, as the Fuchsia interfaces expect.

use crate::status::{IO_DATA_INTEGRITY, Result};
use fuchsia_zircon_types::*;

/// A resource that Linux programs can hold: a `ZX_RSRC_KIND_SYSTEM` resource.
pub(crate) struct Resource {
    /// A `ZX_RSRC_SYSTEM_*_BASE`.
    pub(crate) base: u64,
}

impl Resource {
    pub(crate) fn is_hypervisor(&self) -> bool {
        self.base == ZX_RSRC_SYSTEM_HYPERVISOR_BASE
    }

    pub(crate) fn is_vmex(&self) -> bool {
        self.base == ZX_RSRC_SYSTEM_VMEX_BASE
    }

    /// `ZX_INFO_RESOURCE`.
    pub(crate) fn info(&self) -> zx_info_resource_t {
        zx_info_resource_t {
            kind: ZX_RSRC_KIND_SYSTEM,
            base: self.base,
            size: 1,
            ..Default::default()
        }
    }

    pub(crate) fn to_wire(&self) -> ([u64; 3], u32) {
        ([self.base, 0, 0], ZX_RSRC_KIND_SYSTEM)
    }

    pub(crate) fn from_wire(extra: [u64; 3], flags: u32) -> Result<Resource> {
        if flags == ZX_RSRC_KIND_SYSTEM {
            Ok(Resource { base: extra[0] })
        } else {
            Err(IO_DATA_INTEGRITY)
        }
    }
}

/// See the Zircon documentation of `zx_resource_create`. Not supported: there is no root resource to derive from;
/// [`crate::linux::system_resource`] makes the ones that exist.
///
/// # Safety
/// Always safe; unsafe to have the vDSO's signature.
pub unsafe fn zx_resource_create(
    _parent_rsrc: zx_handle_t,
    _options: u32,
    _base: u64,
    _size: usize,
    _name: *const u8,
    _name_size: usize,
    _resource_out: *mut zx_handle_t,
) -> zx_status_t {
    ZX_ERR_NOT_SUPPORTED
}
