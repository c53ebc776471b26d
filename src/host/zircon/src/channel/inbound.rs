//! Reading: straight from the socket, or from messages that were taken out of it before.

use super::message::MAX_BYTES;
use super::receive::{Incoming, Packet};
use super::{Channel, MAX_PENDING};
use crate::handle_table::Held;
use crate::object::lock;
use crate::status::{PEER_CLOSED, Result, SHOULD_WAIT, Status};
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
    /// None, or some.
    pub(super) handles: Option<Box<[Held]>>,
}

/// Why a read gave nothing.
pub(super) enum ReadError {
    /// The message needs this much room; it is still there, unless the reader asked to discard it.
    TooSmall {
        bytes: usize,
        handles: usize,
    },
    Status(Status),
}

impl From<Status> for ReadError {
    fn from(status: Status) -> Self {
        ReadError::Status(status)
    }
}

impl ReadError {
    fn too_small(message: &Incoming) -> ReadError {
        ReadError::TooSmall { bytes: message.bytes.len(), handles: message.handles.len() }
    }
}

/// Where a reader wants a message.
#[derive(Clone, Copy)]
pub(super) struct Destination {
    bytes: *mut u8,
    capacity: usize,
    handles: usize,
}

impl Destination {
    /// A place for `capacity` bytes, whose reader takes up to `handles` handles.
    ///
    /// # Safety
    /// `bytes` is valid for writing `capacity` bytes while this is in use.
    pub(super) unsafe fn new(bytes: *mut u8, capacity: usize, handles: usize) -> Destination {
        Destination { bytes, capacity, handles }
    }

    /// Copies a message to its reader; gives it back, whole, where it does not fit.
    #[inline]
    fn deliver(&self, packet: Packet) -> std::result::Result<Delivered, Incoming> {
        let bytes = packet.bytes();
        if matches!(packet, Packet::Bytes(_)) && bytes.len() <= self.capacity {
            self.fill(bytes);
            return Ok(Delivered { bytes: bytes.len(), handles: None });
        }
        self.deliver_whole(packet.into_incoming())
    }

    #[cold]
    fn deliver_whole(&self, message: Incoming) -> std::result::Result<Delivered, Incoming> {
        let Incoming { bytes, handles } = &message;
        if bytes.len() > self.capacity || handles.len() > self.handles {
            return Err(message);
        }
        self.fill(bytes);
        let some = !handles.is_empty();
        let bytes = bytes.len();
        Ok(Delivered { bytes, handles: some.then(|| message.handles.into_boxed_slice()) })
    }

    /// # Panics
    /// If there is no room.
    #[inline]
    fn fill(&self, bytes: &[u8]) {
        assert!(bytes.len() <= self.capacity);
        // SAFETY: there is room by the check, by the promise made to `new`; null has capacity 0.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.bytes, bytes.len()) };
    }

    /// As [`Self::deliver`], for a reply: one that does not fit is lost, as on Zircon.
    pub(super) fn deliver_or_drop(
        &self,
        packet: Packet,
    ) -> std::result::Result<Delivered, ReadError> {
        self.deliver(packet).map_err(|message| ReadError::too_small(&message))
    }
}

impl Channel {
    /// Reads the next message.
    pub(super) fn read(
        &self,
        destination: &Destination,
        may_discard: bool,
    ) -> std::result::Result<Delivered, ReadError> {
        let mut inbound = lock(&self.inbound);
        // Callers note themselves under this lock, so none begins while a message is taken out for a reader.
        let next = if inbound.stash.is_empty() && inbound.calls.is_empty() {
            self.receive(false).inspect_err(|status| self.note_drained(*status))
        } else {
            self.next_stashed(&mut inbound)
        };
        match next.map(|message| destination.deliver(message)) {
            Ok(Ok(delivered)) => Ok(delivered),
            Ok(Err(message)) => Err(self.too_small(&mut inbound, message, may_discard)),
            Err(status) => Err(status.into()),
        }
    }

    /// Puts a message back that its reader has no room for, unless that is to lose it.
    #[cold]
    fn too_small(&self, inbound: &mut Inbound, message: Incoming, may_discard: bool) -> ReadError {
        let error = ReadError::too_small(&message);
        if !may_discard {
            inbound.stash.push_front(message);
            self.stashed.store(true, Ordering::SeqCst);
        }
        error
    }

    fn note_drained(&self, status: Status) {
        if status == SHOULD_WAIT {
            self.drains.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// The next message while messages are stashed or calls are under way.
    #[cold]
    fn next_stashed(&self, inbound: &mut Inbound) -> Result<Packet> {
        if let Some(message) = inbound.stash.pop_front() {
            if inbound.stash.is_empty() {
                self.stashed.store(false, Ordering::SeqCst);
            }
            return Ok(Packet::Whole(Box::new(message)));
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
        self.stashed.store(true, Ordering::SeqCst);
        Ok(())
    }

    /// Moves stashed messages, and the events of user signals, into a socket for the process that the endpoint is sent to.
    pub(crate) fn backlog_for_transfer(
        &self,
    ) -> std::result::Result<Option<rustix::fd::OwnedFd>, rustix::io::Errno> {
        let mut controls = self.controls_for_transfer().peekable();
        if !self.stashed.load(Ordering::SeqCst) && controls.peek().is_none() {
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
