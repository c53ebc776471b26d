//! Reading: straight from the socket, or from messages that were taken out of it before.

use super::message::{Ahead, Incoming, MAX_BYTES, Received, check_room};
use super::{CALLS, Channel, MAX_PENDING, STASH};
use crate::handle_table::Held;
use crate::object::lock;
use crate::status::{PEER_CLOSED, Result, SHOULD_WAIT};
use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::atomic::Ordering;

thread_local! {
    /// For a reader whose buffer is too small for the largest message.
    static WHOLE: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Messages and callers inside this process.
#[derive(Default)]
pub(super) struct Inbound {
    /// Messages taken out of the socket that nobody has read; they come before what is in the socket.
    pub(super) stash: VecDeque<Incoming>,
    pub(super) calls: Vec<Call>,
    /// A caller is taking messages out of the socket.
    pub(super) receiving: bool,
    /// The endpoint was closed under its callers.
    pub(super) canceled: bool,
}

/// A `zx_channel_call` that waits for its reply.
pub(super) struct Call {
    pub(super) txid: u32,
    pub(super) reply: Option<Incoming>,
}

/// The sizes and handles of a message that was read; its bytes are where the caller wanted them.
pub(super) struct Delivered {
    pub(super) bytes: usize,
    pub(super) handles: Vec<Held>,
}

/// Why a read gave nothing.
pub(super) enum ReadError {
    /// The message needs this much room; it is still there, unless the reader asked to discard it.
    TooSmall {
        bytes: usize,
        handles: usize,
    },
    Status(crate::status::Status),
}

impl From<crate::status::Status> for ReadError {
    fn from(status: crate::status::Status) -> Self {
        ReadError::Status(status)
    }
}

impl Channel {
    /// Reads the next message into `bytes`, which has room for `capacity` bytes.
    ///
    /// # Safety
    /// `bytes` is valid for writing `capacity` bytes.
    pub(super) unsafe fn read(
        &self,
        bytes: *mut u8,
        capacity: usize,
        handle_capacity: usize,
        may_discard: bool,
    ) -> std::result::Result<Delivered, ReadError> {
        let mut inbound = lock(&self.inbound);
        // Callers note themselves under this lock, so none begins while a message is taken out for a reader.
        let message = if self.flags.load(Ordering::SeqCst) != 0 {
            self.read_stashed(&mut inbound)?
        } else if capacity >= MAX_BYTES {
            // SAFETY: room for the largest message, by the check and the caller's promise.
            let received = unsafe { self.read_ahead(&mut inbound, bytes) }?;
            if received.handles.len() <= handle_capacity {
                return Ok(Delivered { bytes: received.bytes, handles: received.handles });
            }
            // SAFETY: `read_ahead` filled this many bytes.
            let copy = unsafe { std::slice::from_raw_parts(bytes, received.bytes) }.to_vec();
            Incoming { bytes: copy, handles: received.handles }
        } else {
            let mut whole = WHOLE.take();
            whole.reserve_exact(MAX_BYTES);
            // SAFETY: room for the largest message was reserved.
            let received = unsafe { self.read_ahead(&mut inbound, whole.as_mut_ptr()) };
            let message = received.map(|received| {
                // SAFETY: `read_ahead` filled this many bytes.
                let bytes = unsafe { std::slice::from_raw_parts(whole.as_ptr(), received.bytes) };
                Incoming { bytes: bytes.to_vec(), handles: received.handles }
            });
            WHOLE.set(whole);
            message?
        };
        if check_room(&message, capacity, handle_capacity).is_err() {
            let error =
                ReadError::TooSmall { bytes: message.bytes.len(), handles: message.handles.len() };
            if !may_discard {
                inbound.stash.push_front(message);
                self.flags.fetch_or(STASH, Ordering::SeqCst);
            }
            return Err(error);
        }
        // SAFETY: `capacity` is enough by the check, and valid by the caller's promise; null has capacity 0.
        unsafe {
            std::ptr::copy_nonoverlapping(message.bytes.as_ptr(), bytes, message.bytes.len());
        };
        Ok(Delivered { bytes: message.bytes.len(), handles: message.handles })
    }

    /// The next message out of the socket, with nothing in its way. Stashes the one behind it, or notes that there is none.
    ///
    /// # Safety
    /// `bytes` is valid for writing `MAX_BYTES` bytes.
    unsafe fn read_ahead(&self, inbound: &mut Inbound, bytes: *mut u8) -> Result<Received> {
        let arrivals = self.arrivals.load(Ordering::SeqCst);
        // SAFETY: the caller's promise.
        let (received, ahead) = unsafe { self.receive_ahead(bytes) };
        match ahead {
            Ahead::Nothing => self.empty_at.store(Self::empty_mark(arrivals), Ordering::SeqCst),
            Ahead::Unknown => {}
            Ahead::Message(message) => self.stash(inbound, message)?,
        }
        if matches!(received, Err(SHOULD_WAIT)) {
            self.drains.fetch_add(1, Ordering::SeqCst);
        }
        received
    }

    /// The next message while messages are stashed or calls are under way.
    fn read_stashed(&self, inbound: &mut Inbound) -> Result<Incoming> {
        if let Some(message) = inbound.stash.pop_front() {
            if inbound.stash.is_empty() {
                self.flags.fetch_and(!STASH, Ordering::SeqCst);
            }
            return Ok(message);
        }
        if inbound.calls.is_empty() {
            return self.receive(false);
        }
        // What is in the socket now is for the callers to sort.
        self.drains.fetch_add(1, Ordering::SeqCst);
        Err(SHOULD_WAIT)
    }

    /// Keeps a message for readers. Fails when there are too many, as a peer that floods deserves.
    pub(super) fn stash(&self, inbound: &mut Inbound, message: Incoming) -> Result<()> {
        if inbound.stash.len() >= MAX_PENDING {
            return Err(PEER_CLOSED);
        }
        inbound.stash.push_back(message);
        self.flags.fetch_or(STASH, Ordering::SeqCst);
        Ok(())
    }

    pub(super) fn calls_changed(&self, inbound: &Inbound) {
        if inbound.calls.is_empty() {
            self.flags.fetch_and(!CALLS, Ordering::SeqCst);
        } else {
            self.flags.fetch_or(CALLS, Ordering::SeqCst);
        }
    }

    /// Moves stashed messages, and the events of user signals, into a socket for the process that the endpoint is sent to.
    pub(crate) fn backlog_for_transfer(
        &self,
    ) -> std::result::Result<Option<rustix::fd::OwnedFd>, rustix::io::Errno> {
        let mut controls = self.controls_for_transfer().peekable();
        if self.flags.load(Ordering::SeqCst) & STASH == 0 && controls.peek().is_none() {
            return Ok(None);
        }
        let inbound = lock(&self.inbound);
        let (near, far) = Channel::pair().map_err(|_| rustix::io::Errno::MFILE)?;
        let _ = rustix::net::sockopt::set_socket_send_buffer_size(near.fd(), 64 * MAX_BYTES);
        for control in controls {
            control.send(&near)?;
        }
        for message in &inbound.stash {
            let copy = super::Outgoing::new(&message.bytes, message.handles.clone());
            copy.send(&near)?;
        }
        Ok(Some(far.into_fd()))
    }
}
