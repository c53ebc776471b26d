//! One buffer a thread for messages that are read, kept for its capacity.

use fuchsia_zircon::MessageBufEtc;
use std::cell::Cell;

thread_local! {
    static BUFFER: Cell<MessageBufEtc> = Cell::default();
}

/// Larger buffers are not kept.
const KEPT_CAPACITY: usize = 128 * 1024;

/// The thread's buffer, or a new one while somebody else has that; empty either way.
pub(crate) fn take() -> MessageBufEtc {
    BUFFER.take()
}

/// Gives a buffer back. Handles that are still in it are closed.
pub(crate) fn give_back(mut message: MessageBufEtc) {
    message.clear();
    if message.split_mut().0.capacity() <= KEPT_CAPACITY {
        BUFFER.set(message);
    }
}
