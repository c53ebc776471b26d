//! Frames of the router itself that wait for the guest.

use std::collections::VecDeque;

/// Most that wait at a time; further ones are lost.
const MAX: usize = 256;
/// Largest buffer that is kept for another frame, in bytes.
const MAX_SPARE: usize = 2048;

/// A bounded queue, whose buffers are used again.
#[derive(Debug, Default)]
pub(super) struct Answers {
    queue: VecDeque<Vec<u8>>,
    spare: Vec<Vec<u8>>,
}

impl Answers {
    /// Appends a frame that `fill` makes, if there is room.
    pub(super) fn push(&mut self, fill: impl FnOnce(&mut Vec<u8>)) {
        if self.queue.len() >= MAX {
            return;
        }
        let mut frame = self.spare.pop().unwrap_or_default();
        fill(&mut frame);
        self.queue.push_back(frame);
    }

    /// Takes the oldest frame; to be given to [`Answers::recycle`].
    pub(super) fn pop(&mut self) -> Option<Vec<u8>> {
        self.queue.pop_front()
    }

    pub(super) fn recycle(&mut self, mut frame: Vec<u8>) {
        frame.clear();
        if frame.capacity() <= MAX_SPARE && self.spare.len() < MAX {
            self.spare.push(frame);
        }
    }

    pub(super) fn clear(&mut self) {
        self.queue.clear();
    }
}
