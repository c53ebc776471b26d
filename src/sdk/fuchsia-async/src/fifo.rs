//! FIFOs that can be awaited.

use std::future::Future;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::slice;
use std::task::{Context, Poll, ready};

use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::rwhandle::RWHandle;
use crate::zx::{self, AsHandleRef};

/// What a FIFO can carry: plain bytes.
pub trait FifoEntry: IntoBytes + FromBytes + Immutable {}

impl<T: IntoBytes + FromBytes + Immutable> FifoEntry for T {}

/// What can be written to a FIFO: an element or a slice of them.
pub trait FifoWriteBuffer<T> {
    /// The elements.
    fn entries(&self) -> &[T];
}

impl<T: FifoEntry> FifoWriteBuffer<T> for T {
    fn entries(&self) -> &[T] {
        slice::from_ref(self)
    }
}

impl<T: FifoEntry> FifoWriteBuffer<T> for [T] {
    fn entries(&self) -> &[T] {
        self
    }
}

/// What a FIFO can be read into: an element or a slice of them, initialized or not.
pub trait FifoReadBuffer<T> {
    /// Reads what there is and fits, from the front; how many elements that were.
    ///
    /// # Errors
    /// Those of [`zx::Fifo::read`].
    fn read_from<W: FifoEntry>(&mut self, fifo: &zx::Fifo<T, W>) -> Result<usize, zx::Status>;
}

impl<T: FifoEntry> FifoReadBuffer<T> for T {
    fn read_from<W: FifoEntry>(&mut self, fifo: &zx::Fifo<T, W>) -> Result<usize, zx::Status> {
        fifo.read(slice::from_mut(self))
    }
}

impl<T: FifoEntry> FifoReadBuffer<T> for [T] {
    fn read_from<W: FifoEntry>(&mut self, fifo: &zx::Fifo<T, W>) -> Result<usize, zx::Status> {
        fifo.read(self)
    }
}

impl<T: FifoEntry> FifoReadBuffer<T> for MaybeUninit<T> {
    fn read_from<W: FifoEntry>(&mut self, fifo: &zx::Fifo<T, W>) -> Result<usize, zx::Status> {
        fifo.read_uninit(slice::from_mut(self)).map(|read| read.len())
    }
}

impl<T: FifoEntry> FifoReadBuffer<T> for [MaybeUninit<T>] {
    fn read_from<W: FifoEntry>(&mut self, fifo: &zx::Fifo<T, W>) -> Result<usize, zx::Status> {
        fifo.read_uninit(self).map(|read| read.len())
    }
}

/// What elements can be written to.
pub trait FifoWritable<W: FifoEntry>: Sized {
    /// Writes all of `entries`, waiting for room as often as needed.
    fn write_entries<'a, B: ?Sized + FifoWriteBuffer<W>>(
        &'a self,
        entries: &'a B,
    ) -> WriteEntries<'a, Self, W> {
        WriteEntries { fifo: self, entries: entries.entries() }
    }

    /// Writes what there is room for, which is at least one element, or waits for room; how many elements that were.
    ///
    /// # Errors
    /// Those of [`zx::Fifo::write`], but for `SHOULD_WAIT`.
    fn write<B: ?Sized + FifoWriteBuffer<W>>(
        &self,
        context: &mut Context<'_>,
        entries: &B,
    ) -> Poll<Result<usize, zx::Status>>;
}

/// What elements can be read from.
pub trait FifoReadable<R: FifoEntry>: Sized {
    /// Waits for elements and reads as many as there are and fit; how many that were.
    fn read_entries<'a, B: ?Sized + FifoReadBuffer<R>>(
        &'a self,
        entries: &'a mut B,
    ) -> ReadEntries<'a, Self, B> {
        ReadEntries { fifo: self, entries }
    }

    /// Waits for an element and reads it.
    fn read_entry(&self) -> ReadOne<'_, Self> {
        ReadOne { fifo: self }
    }

    /// Reads what there is and fits, which is at least one element, or waits for it; how many elements that were.
    ///
    /// # Errors
    /// Those of [`zx::Fifo::read`], but for `SHOULD_WAIT`.
    fn read<B: ?Sized + FifoReadBuffer<R>>(
        &self,
        context: &mut Context<'_>,
        entries: &mut B,
    ) -> Poll<Result<usize, zx::Status>>;

    /// Reads an element, or waits for it.
    ///
    /// # Errors
    /// As [`FifoReadable::read`].
    fn read_one(&self, context: &mut Context<'_>) -> Poll<Result<R, zx::Status>>;
}

/// A FIFO that belongs to the executor on which it was made.
pub struct Fifo<R, W = R>(RWHandle<zx::Fifo<R, W>>);

impl<R: FifoEntry, W: FifoEntry> Fifo<R, W> {
    /// Adopts a FIFO into the current executor.
    ///
    /// # Panics
    /// Without an executor on this thread.
    pub fn from_fifo(fifo: impl Into<zx::Fifo<R, W>>) -> Self {
        Fifo(RWHandle::new(fifo.into()))
    }

    /// As [`FifoWritable::write`].
    ///
    /// # Errors
    /// As [`FifoWritable::write`].
    pub fn try_write<B: ?Sized + FifoWriteBuffer<W>>(
        &self,
        context: &mut Context<'_>,
        entries: &B,
    ) -> Poll<Result<usize, zx::Status>> {
        ready!(self.0.poll_writable(context));
        match self.0.get_ref().write(entries.entries()) {
            Err(zx::Status::SHOULD_WAIT) => match ready!(self.0.need_writable(context)) {
                Ok(()) => Poll::Pending,
                Err(status) => Poll::Ready(Err(status)),
            },
            result => Poll::Ready(result),
        }
    }

    /// As [`FifoReadable::read`].
    ///
    /// # Errors
    /// As [`FifoReadable::read`].
    pub fn try_read<B: ?Sized + FifoReadBuffer<R>>(
        &self,
        context: &mut Context<'_>,
        entries: &mut B,
    ) -> Poll<Result<usize, zx::Status>> {
        self.poll_read(context, |fifo| entries.read_from(fifo))
    }

    fn poll_read<T>(
        &self,
        context: &mut Context<'_>,
        read: impl FnOnce(&zx::Fifo<R, W>) -> Result<T, zx::Status>,
    ) -> Poll<Result<T, zx::Status>> {
        ready!(self.0.poll_readable(context));
        match read(self.0.get_ref()) {
            Err(zx::Status::SHOULD_WAIT) => match ready!(self.0.need_readable(context)) {
                Ok(()) => Poll::Pending,
                Err(status) => Poll::Ready(Err(status)),
            },
            result => Poll::Ready(result),
        }
    }
}

impl<R: FifoEntry, W: FifoEntry> FifoReadable<R> for Fifo<R, W> {
    fn read<B: ?Sized + FifoReadBuffer<R>>(
        &self,
        context: &mut Context<'_>,
        entries: &mut B,
    ) -> Poll<Result<usize, zx::Status>> {
        self.try_read(context, entries)
    }

    fn read_one(&self, context: &mut Context<'_>) -> Poll<Result<R, zx::Status>> {
        self.poll_read(context, zx::Fifo::read_one)
    }
}

impl<R: FifoEntry, W: FifoEntry> FifoWritable<W> for Fifo<R, W> {
    fn write<B: ?Sized + FifoWriteBuffer<W>>(
        &self,
        context: &mut Context<'_>,
        entries: &B,
    ) -> Poll<Result<usize, zx::Status>> {
        self.try_write(context, entries)
    }
}

impl<R, W> AsRef<zx::Fifo<R, W>> for Fifo<R, W> {
    fn as_ref(&self) -> &zx::Fifo<R, W> {
        self.0.get_ref()
    }
}

impl<R, W> AsHandleRef for Fifo<R, W> {
    fn as_handle_ref(&self) -> zx::HandleRef<'_> {
        self.0.get_ref().as_handle_ref()
    }
}

impl<R, W> From<Fifo<R, W>> for zx::Fifo<R, W> {
    fn from(fifo: Fifo<R, W>) -> zx::Fifo<R, W> {
        fifo.0.into_inner()
    }
}

impl<R, W> std::fmt::Debug for Fifo<R, W> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(formatter)
    }
}

/// Completes when all elements are written; from [`FifoWritable::write_entries`].
#[derive(Debug)]
#[must_use = "futures do nothing unless polled"]
pub struct WriteEntries<'a, F, W> {
    fifo: &'a F,
    entries: &'a [W],
}

impl<W: FifoEntry, F: FifoWritable<W>> Future for WriteEntries<'_, F, W> {
    type Output = Result<(), zx::Status>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        while !self.entries.is_empty() {
            match ready!(self.fifo.write(context, self.entries)) {
                Ok(written) => self.entries = self.entries.get(written..).unwrap_or_default(),
                Err(status) => return Poll::Ready(Err(status)),
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// Completes with the number of elements read; from [`FifoReadable::read_entries`].
#[derive(Debug)]
#[must_use = "futures do nothing unless polled"]
pub struct ReadEntries<'a, F, B: ?Sized> {
    fifo: &'a F,
    entries: &'a mut B,
}

impl<R: FifoEntry, W: FifoEntry, B: ?Sized + FifoReadBuffer<R>> Future
    for ReadEntries<'_, Fifo<R, W>, B>
{
    type Output = Result<usize, zx::Status>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        this.fifo.read(context, this.entries)
    }
}

/// Completes with an element; from [`FifoReadable::read_entry`].
#[derive(Debug)]
#[must_use = "futures do nothing unless polled"]
pub struct ReadOne<'a, F> {
    fifo: &'a F,
}

impl<R: FifoEntry, W: FifoEntry> Future for ReadOne<'_, Fifo<R, W>> {
    type Output = Result<R, zx::Status>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.fifo.read_one(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{LocalExecutor, Task};

    #[test]
    fn entries_wait_for_room_and_for_each_other() {
        LocalExecutor::new().run_singlethreaded(async {
            let (left, right) = zx::Fifo::<u64>::create(4).unwrap();
            let (left, right) = (Fifo::from_fifo(left), Fifo::from_fifo(right));
            let writer = Task::local(async move {
                let numbers: Vec<u64> = (0..100).collect();
                left.write_entries(&numbers[..]).await.unwrap();
                left.write_entries(&100).await.unwrap();
            });
            assert_eq!(right.read_entry().await, Ok(0));
            let mut received = vec![0];
            while received.last() != Some(&100) {
                let mut buffer = [0; 3];
                let count = right.read_entries(&mut buffer[..]).await.unwrap();
                received.extend(&buffer[..count]);
            }
            assert_eq!(received, (0..=100).collect::<Vec<u64>>());
            writer.await;
            assert_eq!(right.read_entry().await, Err(zx::Status::PEER_CLOSED));
            assert_eq!(right.write_entries(&1).await, Err(zx::Status::PEER_CLOSED));
        });
    }

    #[test]
    fn an_untyped_fifo_gets_its_types_here() {
        LocalExecutor::new().run_singlethreaded(async {
            let (left, right) = zx::Fifo::<u32, [u8; 4]>::create(4).unwrap();
            let right = Fifo::<[u8; 4], u32>::from_fifo(right.downcast());
            left.write_one(&[1, 0, 0, 0]).unwrap();
            let mut entry = MaybeUninit::uninit();
            assert_eq!(right.read_entries(&mut entry).await, Ok(1));
            right.write_entries(&5).await.unwrap();
            assert_eq!(left.read_one(), Ok(5));
            // Elements of another size are an error and not a wait.
            let wrong = Fifo::<u8>::from_fifo(left.downcast());
            assert_eq!(wrong.read_entry().await, Err(zx::Status::OUT_OF_RANGE));
        });
    }
}
