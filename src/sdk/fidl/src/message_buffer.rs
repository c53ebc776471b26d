//! One buffer a thread for messages that are read, kept for its capacity.

use fuchsia_zircon::{Channel, MessageBufEtc, Status, sys};
use std::cell::Cell;

thread_local! {
    /// In a box, so that it is taken and given back without being moved.
    static BUFFER: Cell<Option<Box<MessageBufEtc>>> = const { Cell::new(None) };
}

/// The thread's buffer, or a new one while somebody further up the stack has that.
#[inline]
pub(crate) fn take() -> Box<MessageBufEtc> {
    // `try_with`: a thread that ends may have lost the variable already.
    BUFFER.try_with(Cell::take).ok().flatten().unwrap_or_default()
}

/// Gives a buffer back. Handles that are still in it are closed.
#[inline]
pub(crate) fn give_back(mut message: Box<MessageBufEtc>) {
    if is_large(&mut message) {
        message.clear();
        let _ = BUFFER.try_with(|buffer| buffer.set(Some(message)));
    }
}

/// Reads a message into the thread's buffer.
#[inline]
pub(crate) fn read(channel: &Channel) -> Result<Box<MessageBufEtc>, Status> {
    let mut message = take();
    match channel.read_etc(&mut message) {
        Ok(()) => Ok(message),
        Err(status) => {
            give_back(message);
            Err(status)
        }
    }
}

/// Moves a message that is to be kept out of the thread's buffer, into memory of its own size.
pub(crate) fn keep(mut message: Box<MessageBufEtc>) -> Box<MessageBufEtc> {
    if !is_large(&mut message) {
        return message;
    }
    let (bytes, handles) = message.split_mut();
    let kept = Box::new(MessageBufEtc::new_with(bytes.to_vec(), handles.split_off(0)));
    give_back(message);
    kept
}

/// Whether messages have been read into this buffer; otherwise it holds one that was kept.
fn is_large(message: &mut MessageBufEtc) -> bool {
    message.split_mut().0.capacity() >= sys::ZX_CHANNEL_MAX_MSG_BYTES as usize
}
