//! Descriptor chains: one request of the driver, read from the front, then written, then returned.
//!
//! The typestate follows virtio 1.2 §2.7.4.2: a [`ReadableChain`] can be turned into a [`WritableChain`] and never
//! back. Whichever of the two is dropped returns the chain to the used ring with the number of bytes written, so a
//! device can neither forget a request nor complete it twice. The descriptors were copied out of guest memory and
//! checked when the chain was taken from the queue: what the guest does to them afterwards has no effect.

use std::io;

use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::error::ChainTooShort;
use crate::memory::GuestSlice;
use crate::queue::Queue;

/// One buffer of a chain, checked to be in guest memory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Segment {
    pub(crate) addr: u64,
    pub(crate) len: u32,
}

/// The buffers of one chain: the readable ones, then the writable ones.
#[derive(Debug, Default)]
pub(crate) struct Segments {
    pub(crate) list: Vec<Segment>,
    /// How many of `list` are readable.
    pub(crate) readable: usize,
    /// Bytes in the readable ones. Fits u32, as does the sum of both (checked on the walk).
    pub(crate) readable_len: u32,
    /// Bytes in the writable ones.
    pub(crate) writable_len: u32,
}

impl Segments {
    pub(crate) fn clear(&mut self) {
        self.list.clear();
        self.readable = 0;
        self.readable_len = 0;
        self.writable_len = 0;
    }
}

/// A chain in the device's hands; dropping it returns it to the driver.
#[derive(Debug)]
struct Loan<'q> {
    queue: &'q Queue,
    head: u16,
    segments: Segments,
    written: u32,
}

impl Drop for Loan<'_> {
    fn drop(&mut self) {
        self.queue.put_back(self.head, self.written, std::mem::take(&mut self.segments));
    }
}

/// A position in one part of a chain.
#[derive(Debug, Clone)]
struct Cursor {
    segment: usize,
    offset: u32,
    remaining: u32,
}

impl Cursor {
    /// The next bytes that lie together, at most `max`; none at the end of the part.
    fn take<'q>(&mut self, loan: &Loan<'q>, max: usize) -> Option<GuestSlice<'q>> {
        if max == 0 || self.remaining == 0 {
            return None;
        }
        let segment = loan.segments.list.get(self.segment)?;
        let here = segment.len - self.offset;
        let len = here.min(self.remaining).min(u32::try_from(max).unwrap_or(u32::MAX));
        let slice = loan
            .queue
            .memory()
            .slice(segment.addr + u64::from(self.offset), u64::from(len))
            .expect("the walk checked every segment and guest memory does not shrink");
        self.remaining -= len;
        if len == here {
            self.segment += 1;
            self.offset = 0;
        } else {
            self.offset += len;
        }
        Some(slice)
    }
}

/// A chain whose readable part is being read; its writable part has not been touched.
#[derive(Debug)]
pub struct ReadableChain<'q> {
    loan: Loan<'q>,
    cursor: Cursor,
}

impl<'q> ReadableChain<'q> {
    pub(crate) fn new(queue: &'q Queue, head: u16, segments: Segments) -> Self {
        let cursor = Cursor { segment: 0, offset: 0, remaining: segments.readable_len };
        Self { loan: Loan { queue, head, segments, written: 0 }, cursor }
    }

    /// Bytes of the readable part that were not read yet.
    pub fn remaining(&self) -> usize {
        self.cursor.remaining as usize
    }

    /// Bytes of the writable part.
    pub fn writable_len(&self) -> usize {
        self.loan.segments.writable_len as usize
    }

    /// Number of descriptors in the readable part and in the writable part.
    pub fn descriptors(&self) -> (usize, usize) {
        let readable = self.loan.segments.readable;
        (readable, self.loan.segments.list.len() - readable)
    }

    /// The next bytes that lie together in guest memory, at most `max`; none at the end of the readable part.
    pub fn take(&mut self, max: usize) -> Option<GuestSlice<'q>> {
        self.cursor.take(&self.loan, max)
    }

    /// What [`ReadableChain::take`] would yield without a limit, without taking it.
    pub fn peek(&self) -> Option<GuestSlice<'q>> {
        self.cursor.clone().take(&self.loan, usize::MAX)
    }

    /// Reads a value, wherever the driver split it.
    ///
    /// # Errors
    /// [`ChainTooShort`] when fewer bytes are left; none are consumed then.
    pub fn read_obj<T: FromBytes + IntoBytes>(&mut self) -> Result<T, ChainTooShort> {
        let remaining = self.remaining();
        if remaining < size_of::<T>() {
            return Err(ChainTooShort { wanted: size_of::<T>(), remaining });
        }
        let mut value = T::new_zeroed();
        self.read_bytes(value.as_mut_bytes());
        Ok(value)
    }

    /// Reads into `to` until it is full or the readable part ends; returns how many bytes.
    pub fn read_bytes(&mut self, to: &mut [u8]) -> usize {
        let mut done = 0;
        while let Some(rest) = to.get_mut(done..) {
            let Some(slice) = self.take(rest.len()) else { break };
            done += slice.copy_to(rest);
        }
        done
    }

    /// Skips `len` bytes, or what is left.
    pub fn skip(&mut self, mut len: usize) {
        while let Some(slice) = self.take(len) {
            len -= slice.len();
        }
    }

    /// Starts reading from the front again.
    #[must_use]
    pub fn rewind(mut self) -> Self {
        self.cursor = Cursor { segment: 0, offset: 0, remaining: self.loan.segments.readable_len };
        self
    }

    /// Goes on to the writable part; readable bytes not read yet are skipped.
    pub fn into_writable(self) -> WritableChain<'q> {
        let segments = &self.loan.segments;
        let cursor =
            Cursor { segment: segments.readable, offset: 0, remaining: segments.writable_len };
        WritableChain { cursor, reserved: 0, loan: self.loan }
    }

    /// Keeps the chain beyond this borrow of the queue, to be resumed with [`Queue::resume`].
    ///
    /// A held chain that is never resumed is lost to the driver until it resets the device.
    pub fn hold(mut self) -> HeldChain {
        let segments = std::mem::take(&mut self.loan.segments);
        let held = HeldChain { queue: self.loan.queue.id(), head: self.loan.head, segments };
        // The loan must not return the chain: it goes on in `held`.
        std::mem::forget(self.loan);
        held
    }
}

impl io::Read for ReadableChain<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        Ok(self.read_bytes(buf))
    }
}

/// A chain whose writable part is being written.
#[derive(Debug)]
pub struct WritableChain<'q> {
    loan: Loan<'q>,
    cursor: Cursor,
    reserved: u32,
}

impl<'q> WritableChain<'q> {
    /// Bytes of the writable part that were not written yet, without reserved ones.
    pub fn remaining(&self) -> usize {
        self.cursor.remaining as usize
    }

    /// Bytes written so far: what the used ring will tell the driver.
    pub fn written(&self) -> usize {
        self.loan.written as usize
    }

    /// Sets the last `len` bytes of the writable part aside, for a trailer such as the block device's status.
    ///
    /// # Errors
    /// [`ChainTooShort`] when fewer are left.
    pub fn reserve_tail(&mut self, len: u32) -> Result<(), ChainTooShort> {
        match self.cursor.remaining.checked_sub(len) {
            Some(rest) => {
                self.cursor.remaining = rest;
                self.reserved += len;
                Ok(())
            }
            None => Err(ChainTooShort { wanted: len as usize, remaining: self.remaining() }),
        }
    }

    /// Makes reserved bytes writable again.
    ///
    /// What was not written before them has to be by then, because the used ring's length counts from the front
    /// (virtio 1.2 §2.7.8.2): the rest is therefore zeroed here.
    pub fn release_tail(&mut self) {
        self.zero_remaining();
        self.cursor.remaining = std::mem::take(&mut self.reserved);
    }

    /// The next bytes that lie together in guest memory, at most `max`; none at the end. They count as written.
    pub fn take(&mut self, max: usize) -> Option<GuestSlice<'q>> {
        let slice = self.cursor.take(&self.loan, max)?;
        // No overflow: all lengths of a chain together fit u32.
        self.loan.written += slice.len() as u32;
        Some(slice)
    }

    /// What [`WritableChain::take`] would yield without a limit, without taking it.
    pub fn peek(&self) -> Option<GuestSlice<'q>> {
        self.cursor.clone().take(&self.loan, usize::MAX)
    }

    /// Writes a value, wherever the driver split the buffer.
    ///
    /// # Errors
    /// [`ChainTooShort`] when it does not fit; nothing is written then.
    pub fn write_obj<T: IntoBytes + Immutable>(&mut self, value: &T) -> Result<(), ChainTooShort> {
        let (wanted, remaining) = (size_of::<T>(), self.remaining());
        if remaining < wanted {
            return Err(ChainTooShort { wanted, remaining });
        }
        self.write_bytes(value.as_bytes());
        Ok(())
    }

    /// Writes from `from` until it is used up or the writable part ends; returns how many bytes.
    pub fn write_bytes(&mut self, from: &[u8]) -> usize {
        let mut done = 0;
        while let Some(rest) = from.get(done..) {
            let Some(slice) = self.take(rest.len()) else { break };
            done += slice.copy_from(rest);
        }
        done
    }

    /// Writes zeroes to all of the writable part that was not written yet, reserved bytes left out.
    pub fn zero_remaining(&mut self) {
        while let Some(slice) = self.take(usize::MAX) {
            slice.fill_zero();
        }
    }
}

impl io::Write for WritableChain<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        Ok(self.write_bytes(buf))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A chain set aside with [`ReadableChain::hold`].
#[derive(Debug)]
pub struct HeldChain {
    pub(crate) queue: u64,
    pub(crate) head: u16,
    pub(crate) segments: Segments,
}
