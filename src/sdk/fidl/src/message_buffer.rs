//! One buffer a thread for messages that are read, kept for its capacity.

use fuchsia_zircon::MessageBufEtc;
use std::cell::RefCell;

thread_local! {
    static BUFFER: RefCell<MessageBufEtc> = const { RefCell::new(MessageBufEtc::new()) };
}

/// Calls `f` with the thread's buffer. Handles that it leaves in there are closed.
#[inline]
pub(crate) fn with<R>(f: impl FnOnce(&mut MessageBufEtc) -> R) -> R {
    BUFFER.with(|buffer| match buffer.try_borrow_mut() {
        Ok(mut message) => {
            let result = f(&mut message);
            message.clear();
            result
        }
        // Somebody further up the stack reads a message.
        Err(_) => f(&mut MessageBufEtc::new()),
    })
}

/// Moves a message out of the buffer, for who keeps it: into memory of its own size.
pub(crate) fn keep(message: &mut MessageBufEtc) -> MessageBufEtc {
    let (bytes, handles) = message.split_mut();
    MessageBufEtc::new_with(bytes.to_vec(), handles.split_off(0))
}
