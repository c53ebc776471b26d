//! The bytes of one direction of a connection that are under way.

use std::io::{self, Read, Write};

use smoltcp::storage::RingBuffer;

/// A bounded queue of bytes, whose memory is taken when it is first needed.
#[derive(Debug)]
pub(super) struct Buffer {
    ring: RingBuffer<'static, u8>,
    capacity: usize,
}

impl Buffer {
    pub(super) fn new(capacity: usize) -> Self {
        Self { ring: RingBuffer::new(Vec::new()), capacity }
    }

    pub(super) fn capacity(&self) -> usize {
        self.capacity
    }

    pub(super) fn len(&self) -> usize {
        self.ring.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.ring.is_empty()
    }

    /// How many more bytes fit.
    pub(super) fn free(&self) -> usize {
        self.capacity - self.ring.len()
    }

    fn ring(&mut self) -> &mut RingBuffer<'static, u8> {
        if self.ring.capacity() == 0 {
            self.ring = RingBuffer::new(vec![0; self.capacity]);
        }
        &mut self.ring
    }

    /// Appends as much of `bytes` as fits; how much.
    pub(super) fn push(&mut self, bytes: &[u8]) -> usize {
        if bytes.is_empty() { 0 } else { self.ring().enqueue_slice(bytes) }
    }

    /// Appends what one read of `from` yields.
    ///
    /// # Errors
    /// Those of reading.
    pub(super) fn read_from(&mut self, mut from: impl Read) -> io::Result<usize> {
        self.ring()
            .enqueue_many_with(|space| {
                let result = from.read(space);
                (*result.as_ref().unwrap_or(&0), result)
            })
            .1
    }

    /// Removes from the front what one write to `to` takes.
    ///
    /// # Errors
    /// Those of writing.
    pub(super) fn write_to(&mut self, mut to: impl Write) -> io::Result<usize> {
        let count = to.write(self.ring.get_allocated(0, self.ring.len()))?;
        self.ring.dequeue_allocated(count);
        Ok(count)
    }

    /// Removes `count` bytes from the front, which are there.
    pub(super) fn discard(&mut self, count: usize) {
        self.ring.dequeue_allocated(count.min(self.ring.len()));
    }

    /// The `count` bytes after the first `offset`, as far as they are there.
    pub(super) fn slices(&self, offset: usize, count: usize) -> [&[u8]; 2] {
        let first = self.ring.get_allocated(offset, count);
        [first, self.ring.get_allocated(offset + first.len(), count - first.len())]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_go_round_the_end() {
        let mut buffer = Buffer::new(8);
        assert_eq!((buffer.len(), buffer.free()), (0, 8));
        assert_eq!(buffer.slices(0, 4), [&[] as &[u8], &[]]);
        assert_eq!(buffer.push(b"abcdef"), 6);
        buffer.discard(4);
        assert_eq!(buffer.push(b"ghijklm"), 6);
        assert_eq!(buffer.free(), 0);
        assert_eq!(buffer.slices(1, 7).concat(), b"fghijkl");
        assert_eq!(buffer.slices(5, 9).concat(), b"jkl");
        let mut out = Vec::new();
        while !buffer.is_empty() {
            buffer.write_to(&mut out).unwrap();
        }
        assert_eq!(out, b"efghijkl");
        assert_eq!(buffer.read_from(&b"xyz"[..]).unwrap(), 3);
        assert_eq!(buffer.slices(0, 3).concat(), b"xyz");
    }
}
