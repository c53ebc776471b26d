//! Messages on the wire between processes of one machine.
//!
//! A message is one packet: a header, the bytes, one descriptor per handle. Most messages of most channels are bytes alone,
//! and `recv` takes those in for less than `recvmsg`, but `recv` would lose file descriptors that come along. So an endpoint
//! uses `recv` until its peer, once, before its first message with handles, sends an empty control message to say so.

use super::Channel;
use super::user_signals::Control;
use crate::handle_table::Held;
use crate::object::Object;
use crate::status::{IO_DATA_INTEGRITY, OUT_OF_RANGE, Result};
use crate::transfer::{Descriptor, Export, MAX_FDS};
use fuchsia_zircon_types::*;
use rustix::fd::BorrowedFd;
use rustix::io::{Errno, IoSlice};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, send, sendmsg};
use std::borrow::Cow;
use std::mem::MaybeUninit;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use zerocopy::{FromBytes, IntoBytes};

pub(crate) const MAX_BYTES: usize = ZX_CHANNEL_MAX_MSG_BYTES as usize;
pub(crate) const MAX_HANDLES: usize = ZX_CHANNEL_MAX_MSG_HANDLES as usize;
const MAGIC: u32 = u32::from_le_bytes(*b"zxm2");
pub(super) const DESCRIPTOR: usize = size_of::<Descriptor>();
pub(super) const CONTROL_OUT: usize = rustix::cmsg_space!(ScmRights(MAX_HANDLES * MAX_FDS));

/// The largest message that is brought into one piece to be sent, in bytes: the kernel takes less time for one range of
/// memory than a copy into one does.
const SMALL: usize = 2048;

#[derive(Clone, Copy, FromBytes, IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout)]
#[repr(C)]
pub(super) struct Header {
    magic: u32,
    handles: u32,
    bytes: u32,
    /// 0 for readers, else a [`Control`].
    pub(super) control: u32,
}

pub(super) const HEADER: usize = size_of::<Header>();

/// A message that is ready to be sent, or waits for room in the socket.
pub(crate) struct Outgoing<'a> {
    /// What the first bytes are replaced by on the way, in a call.
    txid: Option<[u8; 4]>,
    bytes: Cow<'a, [u8]>,
    pub(crate) handles: Vec<Held>,
    /// For the other endpoint itself and not for its readers.
    control: Option<Control>,
}

impl<'a> Outgoing<'a> {
    pub(crate) fn new(bytes: &'a [u8], handles: Vec<Held>) -> Outgoing<'a> {
        Outgoing { txid: None, bytes: bytes.into(), handles, control: None }
    }

    /// Tells the other endpoint that messages with handles come from now on.
    pub(super) fn announcement() -> Outgoing<'static> {
        Outgoing { control: Some(Control::HandlesFollow), ..Outgoing::new(&[], Vec::new()) }
    }

    /// A message that brings an event to the other endpoint itself.
    pub(super) fn control(control: Control, event: Arc<Object>) -> Outgoing<'a> {
        let handles = vec![Held { object: event, rights: 0 }];
        Outgoing { control: Some(control), ..Outgoing::new(&[], handles) }
    }

    /// The message with another transaction identifier in place of its first four bytes, if there is one.
    pub(super) fn with_txid(self, txid: Option<[u8; 4]>) -> Outgoing<'a> {
        Outgoing { txid, ..self }
    }

    /// The message's bytes, in two parts.
    fn parts(&self) -> (&[u8], &[u8]) {
        parts(self.txid.as_ref(), &self.bytes)
    }

    /// Sends without waiting: all of it, or an error.
    pub(crate) fn send(&self, channel: &Channel) -> std::result::Result<(), Errno> {
        if self.handles.is_empty() {
            return match self.control {
                None => channel.send_bytes(self.txid, &self.bytes),
                Some(_) => self.send_parts(channel, &[], &[]),
            };
        }
        if channel.announced.load(Ordering::Acquire) {
            return self.send_handles(channel);
        }
        // Twice where two threads come here at once, which does no harm.
        Outgoing::announcement().send(channel)?;
        channel.announced.store(true, Ordering::Release);
        self.send_announced(channel)
    }

    /// Sends what was announced a moment ago. The peer was there for the announcement, and may have closed because of it:
    /// then this is a message that it did not read.
    pub(super) fn send_announced(&self, channel: &Channel) -> std::result::Result<(), Errno> {
        match self.send_handles(channel) {
            Err(Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN) => Ok(()),
            sent => sent,
        }
    }

    fn send_handles(&self, channel: &Channel) -> std::result::Result<(), Errno> {
        let exports: Vec<Export<'_>> =
            self.handles.iter().map(Export::new).collect::<std::result::Result<_, _>>()?;
        let descriptors: Vec<Descriptor> = exports.iter().map(|export| export.descriptor).collect();
        let fds: Vec<_> = exports.iter().flat_map(Export::fds).collect();
        self.send_parts(channel, &descriptors, &fds)
    }

    fn send_parts(
        &self,
        channel: &Channel,
        descriptors: &[Descriptor],
        fds: &[BorrowedFd<'_>],
    ) -> std::result::Result<(), Errno> {
        let control = self.control.map_or(0, |control| control as u32);
        let header = Header::new(self.bytes.len(), descriptors.len(), control);
        let (start, rest) = self.parts();
        let iov = [header.as_bytes(), start, rest, descriptors.as_bytes()].map(IoSlice::new);
        let mut space = [MaybeUninit::uninit(); CONTROL_OUT];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(fds));
        }
        uninterrupted(|| sendmsg(channel.fd(), &iov, &mut control, SENDING))
    }

    pub(crate) fn into_owned(self) -> Outgoing<'static> {
        Outgoing {
            txid: self.txid,
            bytes: self.bytes.into_owned().into(),
            handles: self.handles,
            control: self.control,
        }
    }
}

const SENDING: SendFlags = SendFlags::DONTWAIT.union(SendFlags::NOSIGNAL);

/// A message's bytes, in two parts: the first is another transaction identifier, if there is one.
fn parts<'a>(txid: Option<&'a [u8; 4]>, bytes: &'a [u8]) -> (&'a [u8], &'a [u8]) {
    match txid {
        Some(txid) => (txid, bytes.get(txid.len()..).unwrap_or_default()),
        None => (bytes, &[]),
    }
}

impl Channel {
    /// Sends a message without handles: all of it without waiting, or an error. `txid` replaces its first bytes.
    pub(super) fn send_bytes(
        &self,
        txid: Option<[u8; 4]>,
        bytes: &[u8],
    ) -> std::result::Result<(), Errno> {
        let header = Header::new(bytes.len(), 0, 0);
        let (start, rest) = parts(txid.as_ref(), bytes);
        if bytes.len() > SMALL {
            let iov = [header.as_bytes(), start, rest].map(IoSlice::new);
            let mut none = SendAncillaryBuffer::default();
            return uninterrupted(|| sendmsg(self.fd(), &iov, &mut none, SENDING));
        }
        let mut whole = [MaybeUninit::<u8>::uninit(); HEADER + SMALL];
        let mut len = 0;
        for part in [header.as_bytes(), start, rest] {
            whole[len..len + part.len()].write_copy_of_slice(part);
            len += part.len();
        }
        // SAFETY: the loop has filled so many bytes.
        let whole = unsafe { whole[..len].assume_init_ref() };
        uninterrupted(|| send(self.fd(), whole, SENDING))
    }
}

/// Repeats a sending call that a signal interrupted.
fn uninterrupted(
    mut send: impl FnMut() -> std::result::Result<usize, Errno>,
) -> std::result::Result<(), Errno> {
    loop {
        match send() {
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

impl Header {
    fn new(bytes: usize, handles: usize, control: u32) -> Header {
        Header { magic: MAGIC, handles: handles as u32, bytes: bytes as u32, control }
    }

    /// The header of a message of bytes alone, and for readers; `total` is its length with the header.
    #[inline]
    pub(super) fn is_plain(&self, total: usize) -> bool {
        self.magic == MAGIC
            && self.handles == 0
            && self.control == 0
            && total == HEADER + self.bytes as usize
    }

    /// Whether this is all of a [`Control::HandlesFollow`].
    pub(super) fn is_announcement(&self) -> bool {
        self.magic == MAGIC && self.control == Control::HandlesFollow as u32
    }

    /// The bytes and handles of the message, which is `total` bytes long with everything.
    pub(super) fn sizes(&self, total: usize) -> Result<(usize, usize)> {
        let (length, handles) = (self.bytes as usize, self.handles as usize);
        let exact = length <= MAX_BYTES
            && handles <= MAX_HANDLES
            && total == HEADER + length + handles * DESCRIPTOR;
        if self.magic != MAGIC || !exact {
            return Err(IO_DATA_INTEGRITY);
        }
        Ok((length, handles))
    }
}

/// Checks the sizes of a message to write.
pub(super) fn check_sizes(bytes: usize, handles: usize) -> Result<()> {
    if bytes > MAX_BYTES || handles > MAX_HANDLES { Err(OUT_OF_RANGE) } else { Ok(()) }
}
