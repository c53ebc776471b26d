use crate::{HandleRef, Koid, ObjectType, Rights, Status, ok, sys};
use std::ptr;

/// What `ZX_INFO_HANDLE_BASIC` says of a handle.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub struct HandleBasicInfo {
    /// The object's koid.
    pub koid: Koid,
    /// What this handle allows.
    pub rights: Rights,
    /// The object's type.
    pub object_type: ObjectType,
    /// The koid of the peer, where the object has one, otherwise zero.
    pub related_koid: Koid,
}

pub(crate) fn handle_basic(handle: &HandleRef<'_>) -> Result<HandleBasicInfo, Status> {
    let mut raw =
        sys::zx_info_handle_basic_t { koid: 0, rights: 0, type_: 0, related_koid: 0, reserved: 0 };
    // SAFETY: the topic's record is `zx_info_handle_basic_t`, plain integers of which any value is valid.
    unsafe { get(handle, sys::ZX_INFO_HANDLE_BASIC, &raw mut raw)? };
    Ok(HandleBasicInfo {
        koid: Koid::from_raw(raw.koid),
        rights: Rights::from_raw(raw.rights),
        object_type: ObjectType::from_raw(raw.type_),
        related_koid: Koid::from_raw(raw.related_koid),
    })
}

/// Reads the one record of a topic.
///
/// # Safety
/// `record` must be valid for writing, and `T` the topic's record type.
pub(crate) unsafe fn get<T>(
    handle: &HandleRef<'_>,
    topic: sys::zx_object_info_topic_t,
    record: *mut T,
) -> Result<(), Status> {
    // SAFETY: the buffer is one whole `T`, as the caller promises; the counts may be left out.
    ok(unsafe {
        sys::zx_object_get_info(
            handle.raw_handle(),
            topic,
            record.cast(),
            size_of::<T>(),
            ptr::null_mut(),
            ptr::null_mut(),
        )
    })
}
