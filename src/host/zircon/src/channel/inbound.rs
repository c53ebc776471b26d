//! Reading: straight from the socket, or from messages that were taken out of it before.

use super::message::{Incoming, MAX_BYTES, Received, check_room};
use super::{CALLS, Channel, MAX_PENDING, STASH};
use crate::handle_table::Held;
use crate::object::lock;
use crate::status::{PEER_CLOSED, Result, SHOULD_WAIT};
use std::collections::VecDeque;
use std::sync::atomic::Ordering;

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
        // A caller that begins sees `readers` and waits for it, a reader that begins sees `flags` and steps back.
        self.readers.fetch_add(1, Ordering::SeqCst);
        let direct = self.flags.load(Ordering::SeqCst) == 0;
        let received = if !direct {
            None
        } else if capacity >= MAX_BYTES {
            // SAFETY: room for the largest message, by the check and the caller's promise.
            Some(unsafe { self.receive_into(bytes, false) }.map(Place::InPlace))
        } else {
            Some(self.receive(false).map(Place::Apart))
        };
        self.readers.fetch_sub(1, Ordering::SeqCst);
        let message = match received {
            Some(Ok(Place::InPlace(Received { bytes, handles })))
                if handles.len() <= handle_capacity =>
            {
                return Ok(Delivered { bytes, handles });
            }
            Some(Ok(Place::InPlace(received))) => {
                // SAFETY: `receive_into` filled this many bytes.
                let copy = unsafe { std::slice::from_raw_parts(bytes, received.bytes) }.to_vec();
                Incoming { bytes: copy, handles: received.handles }
            }
            Some(Ok(Place::Apart(message))) => message,
            Some(Err(status)) => {
                if status == SHOULD_WAIT {
                    self.drains.fetch_add(1, Ordering::SeqCst);
                }
                return Err(status.into());
            }
            None => self.read_stashed()?,
        };
        if check_room(&message, capacity, handle_capacity).is_err() {
            let error =
                ReadError::TooSmall { bytes: message.bytes.len(), handles: message.handles.len() };
            if !may_discard {
                let mut inbound = lock(&self.inbound);
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

    /// The next message while messages are stashed or calls are under way.
    fn read_stashed(&self) -> Result<Incoming> {
        let mut inbound = lock(&self.inbound);
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

    /// Moves stashed messages into a socket for the process that the endpoint is sent to.
    pub(crate) fn backlog_for_transfer(
        &self,
    ) -> std::result::Result<Option<rustix::fd::OwnedFd>, rustix::io::Errno> {
        if self.flags.load(Ordering::SeqCst) & STASH == 0 {
            return Ok(None);
        }
        let inbound = lock(&self.inbound);
        let (near, far) = Channel::pair().map_err(|_| rustix::io::Errno::MFILE)?;
        let _ = rustix::net::sockopt::set_socket_send_buffer_size(near.fd(), 64 * MAX_BYTES);
        for message in &inbound.stash {
            let copy = super::Outgoing {
                bytes: message.bytes.as_slice().into(),
                handles: message.handles.clone(),
            };
            copy.send(&near)?;
        }
        Ok(Some(far.into_fd()))
    }
}

enum Place {
    InPlace(Received),
    Apart(Incoming),
}
