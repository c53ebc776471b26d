use crate::{HandleRef, Signals, Status, Time, ok, sys};

/// One object of a wait for several.
#[derive(Debug)]
pub struct WaitItem<'a> {
    /// The object.
    pub handle: HandleRef<'a>,
    /// The signals to wait for.
    pub waitfor: Signals,
    /// After the wait, the signals that were set.
    pub pending: Signals,
}

/// Waits until one of the items' signals is set, and fills in `pending` of each.
///
/// Returns whether a handle was closed meanwhile.
///
/// # Errors
/// `TIMED_OUT` after `deadline`; `OUT_OF_RANGE` for more than 64 items.
pub fn object_wait_many(items: &mut [WaitItem<'_>], deadline: Time) -> Result<bool, Status> {
    let mut raw: Vec<_> = items
        .iter()
        .map(|item| sys::zx_wait_item_t {
            handle: item.handle.raw_handle(),
            waitfor: item.waitfor.bits(),
            pending: 0,
        })
        .collect();
    // SAFETY: the buffer is valid for its length.
    let status =
        unsafe { sys::zx_object_wait_many(raw.as_mut_ptr(), raw.len(), deadline.into_nanos()) };
    for (item, raw) in items.iter_mut().zip(&raw) {
        item.pending = Signals::from_raw(raw.pending);
    }
    match ok(status) {
        Ok(()) => Ok(false),
        Err(Status::CANCELED) => Ok(true),
        Err(status) => Err(status),
    }
}
