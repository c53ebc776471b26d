//! Messages on the wire between processes of one machine.

use super::Channel;
use super::user_signals::Control;
use crate::handle_table::Held;
use crate::object::Object;
use crate::status::{
    INVALID_ARGS, IO_DATA_INTEGRITY, NO_RESOURCES, OUT_OF_RANGE, PEER_CLOSED, Result,
};
use crate::transfer::{Descriptor, Export, MAX_FDS, import};
use fuchsia_zircon_types::*;
use rustix::fd::{AsRawFd, FromRawFd, OwnedFd};
use rustix::io::{Errno, IoSlice};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use std::borrow::Cow;
use std::cell::Cell;
use std::mem::MaybeUninit;
use std::sync::Arc;
use zerocopy::{FromBytes, IntoBytes};

pub(crate) const MAX_BYTES: usize = ZX_CHANNEL_MAX_MSG_BYTES as usize;
pub(crate) const MAX_HANDLES: usize = ZX_CHANNEL_MAX_MSG_HANDLES as usize;
const MAGIC: u32 = u32::from_le_bytes(*b"zxm1");
const DESCRIPTOR: usize = size_of::<Descriptor>();
const TAIL: usize = MAX_HANDLES * DESCRIPTOR;
const CONTROL_OUT: usize = rustix::cmsg_space!(ScmRights(MAX_HANDLES * MAX_FDS));

#[derive(Clone, Copy, FromBytes, IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout)]
#[repr(C)]
struct Header {
    magic: u32,
    handles: u32,
    bytes: u32,
    /// 0 for readers, else a [`Control`].
    control: u32,
}

const HEADER: usize = size_of::<Header>();

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

    /// A message that brings an event to the other endpoint itself.
    pub(super) fn control(control: Control, event: Arc<Object>) -> Outgoing<'a> {
        let handles = vec![Held { object: event, rights: 0 }];
        Outgoing { control: Some(control), ..Outgoing::new(&[], handles) }
    }

    /// The message with another transaction identifier, which is its first four bytes.
    pub(super) fn with_txid(self, txid: u32) -> Result<Outgoing<'a>> {
        let txid = txid.to_ne_bytes();
        if self.bytes.len() < txid.len() {
            return Err(INVALID_ARGS);
        }
        Ok(Outgoing { txid: Some(txid), ..self })
    }

    /// The message's bytes, in two parts.
    fn parts(&self) -> (&[u8], &[u8]) {
        match &self.txid {
            Some(txid) => (txid, self.bytes.get(txid.len()..).unwrap_or_default()),
            None => (&self.bytes, &[]),
        }
    }

    /// Sends without waiting: all of it, or an error.
    pub(crate) fn send(&self, channel: &Channel) -> std::result::Result<(), Errno> {
        let header = Header {
            magic: MAGIC,
            handles: self.handles.len() as u32,
            bytes: self.bytes.len() as u32,
            control: self.control.map_or(0, |control| control as u32),
        };
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let (start, rest) = self.parts();
        if self.handles.is_empty() && self.bytes.len() <= SMALL {
            // The kernel takes less time for one range of memory than a copy into one does.
            let mut whole = WHOLE.take();
            whole.clear();
            [header.as_bytes(), start, rest].iter().for_each(|part| whole.extend_from_slice(part));
            let sent = uninterrupted(|| rustix::net::send(channel.fd(), &whole, flags));
            WHOLE.set(whole);
            return sent;
        }
        if self.handles.is_empty() {
            let iov = [header.as_bytes(), start, rest].map(IoSlice::new);
            let mut none = SendAncillaryBuffer::default();
            return uninterrupted(|| sendmsg(channel.fd(), &iov, &mut none, flags));
        }
        let exports: Vec<Export<'_>> =
            self.handles.iter().map(Export::new).collect::<std::result::Result<_, _>>()?;
        let descriptors: Vec<Descriptor> = exports.iter().map(|export| export.descriptor).collect();
        let fds: Vec<_> = exports.iter().flat_map(Export::fds).collect();
        let iov =
            [header.as_bytes(), start, rest, descriptors.as_slice().as_bytes()].map(IoSlice::new);
        let mut space = [MaybeUninit::uninit(); CONTROL_OUT];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(&fds));
        }
        uninterrupted(|| sendmsg(channel.fd(), &iov, &mut control, flags))
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

/// A message that was taken out of the socket.
pub(crate) struct Incoming {
    pub(crate) bytes: Vec<u8>,
    pub(crate) handles: Vec<Held>,
}

/// Where a message ended up.
pub(super) struct Received {
    pub(super) bytes: usize,
    pub(super) handles: Vec<Held>,
    /// Not for readers.
    control: Option<Control>,
}

thread_local! {
    /// For a message that is read before it is known where to.
    static SCRATCH: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
    /// For a message to write, in one piece.
    static WHOLE: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// The largest message that is brought into one piece, in bytes.
const SMALL: usize = 2048;

#[repr(C, align(8))]
struct ControlIn([u8; CONTROL_OUT + 64]);

impl Channel {
    /// Takes the next message out of the socket.
    pub(super) fn receive(&self, block: bool) -> Result<Incoming> {
        self.receive_with(block, |bytes, handles| Incoming { bytes: bytes.to_vec(), handles })
    }

    /// Takes the next message out of the socket and gives its bytes and handles to `take`.
    pub(super) fn receive_with<R>(
        &self,
        block: bool,
        take: impl FnOnce(&[u8], Vec<Held>) -> R,
    ) -> Result<R> {
        // Taken, not borrowed: a message can hold a channel whose backlog is received while this one is.
        let mut scratch = SCRATCH.take();
        scratch.reserve_exact(MAX_BYTES);
        // SAFETY: room for MAX_BYTES was reserved.
        let received = unsafe { self.receive_into(scratch.as_mut_ptr(), block) };
        let result = received.map(|received| {
            // SAFETY: `receive_into` filled this many bytes, at most MAX_BYTES.
            let bytes = unsafe { std::slice::from_raw_parts(scratch.as_ptr(), received.bytes) };
            take(bytes, received.handles)
        });
        SCRATCH.set(scratch);
        result
    }

    /// Takes the next message out of the socket, into memory that holds the largest one. What lies behind the message's
    /// own bytes may be overwritten.
    ///
    /// # Safety
    /// `bytes` is valid for writing `MAX_BYTES` bytes.
    pub(super) unsafe fn receive_into(&self, bytes: *mut u8, block: bool) -> Result<Received> {
        loop {
            // SAFETY: the caller's promise.
            let received = unsafe { self.receive_any(bytes, block) }?;
            match received.control {
                None => return Ok(received),
                Some(control) => self.adopt(control, received)?,
            }
        }
    }

    /// As [`Channel::receive_into`]; control messages, too.
    ///
    /// # Safety
    /// `bytes` is valid for writing `MAX_BYTES` bytes.
    unsafe fn receive_any(&self, bytes: *mut u8, block: bool) -> Result<Received> {
        // Locals each, as a structure of them would be copied into its place.
        let mut header = MaybeUninit::<Header>::uninit();
        let mut tail = MaybeUninit::<[u8; TAIL]>::uninit();
        let mut ancillary = MaybeUninit::<ControlIn>::uninit();
        let mut iov = [
            libc::iovec { iov_base: header.as_mut_ptr().cast(), iov_len: HEADER },
            libc::iovec { iov_base: bytes.cast(), iov_len: MAX_BYTES },
            libc::iovec { iov_base: tail.as_mut_ptr().cast(), iov_len: TAIL },
        ];
        // SAFETY: all-zero is a valid msghdr.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = iov.as_mut_ptr();
        message.msg_iovlen = iov.len() as _;
        message.msg_control = ancillary.as_mut_ptr().cast();
        message.msg_controllen = size_of::<ControlIn>() as _;
        let flags = libc::MSG_CMSG_CLOEXEC | if block { 0 } else { libc::MSG_DONTWAIT };
        // SAFETY: every buffer is valid for writing its length, `bytes` by the caller's promise.
        let total =
            patiently(|| unsafe { libc::recvmsg(self.fd().as_raw_fd(), &mut message, flags) })?;
        if total == 0 {
            return Err(PEER_CLOSED);
        }
        // SAFETY: the kernel filled in `message`; its control buffer is ours.
        let fds = unsafe { take_fds(&message) };
        if message.msg_flags & libc::MSG_CTRUNC != 0 {
            // This process has no room for the descriptors; the message cannot be whole any more.
            return Err(NO_RESOURCES);
        }
        if total < HEADER || message.msg_flags & libc::MSG_TRUNC != 0 {
            return Err(IO_DATA_INTEGRITY);
        }
        // SAFETY: the kernel filled the whole header.
        let header = unsafe { header.assume_init() };
        let (length, handles) = header.sizes(total)?;
        let control = match header.control {
            0 => None,
            number => Some(Control::from_wire(number).ok_or(IO_DATA_INTEGRITY)?),
        };
        if handles == 0 {
            return if fds.is_empty() {
                Ok(Received { bytes: length, handles: Vec::new(), control })
            } else {
                Err(IO_DATA_INTEGRITY)
            };
        }
        let mut descriptors = vec![0; handles * DESCRIPTOR];
        let first = descriptors.len().min(MAX_BYTES - length);
        // SAFETY: the kernel filled `total` bytes, that is these ranges: the end of the message's bytes, then the tail.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.add(length), descriptors.as_mut_ptr(), first);
            let rest = descriptors.len() - first;
            std::ptr::copy_nonoverlapping(
                tail.as_ptr().cast(),
                descriptors.as_mut_ptr().add(first),
                rest,
            );
        }
        Ok(Received { bytes: length, handles: import_all(&descriptors, fds)?, control })
    }
}

impl Header {
    /// The bytes and handles of the message, which is `total` bytes long with everything.
    fn sizes(&self, total: usize) -> Result<(usize, usize)> {
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

/// The objects that descriptors stand for, which take all of the file descriptors that came with them.
fn import_all(descriptors: &[u8], fds: Vec<OwnedFd>) -> Result<Vec<Held>> {
    let mut fds = fds.into_iter();
    let mut objects = Vec::with_capacity(descriptors.len() / DESCRIPTOR);
    for descriptor in descriptors.chunks_exact(DESCRIPTOR) {
        let descriptor = Descriptor::read_from_bytes(descriptor).map_err(|_| IO_DATA_INTEGRITY)?;
        objects.push(import(&descriptor, &mut fds)?);
    }
    if fds.next().is_some() {
        return Err(IO_DATA_INTEGRITY);
    }
    Ok(objects)
}

/// Repeats a receiving call that a signal interrupted, or that reports something else than the next message.
fn patiently(mut receive: impl FnMut() -> isize) -> Result<usize> {
    let mut reset = false;
    loop {
        match usize::try_from(receive()) {
            Ok(result) => return Ok(result),
            Err(_) => match last_errno() {
                Errno::INTR => {}
                // The peer closed without reading all; reported once, messages that it sent come after it.
                Errno::CONNRESET if !reset => reset = true,
                errno => return Err(errno.into()),
            },
        }
    }
}

/// The error of the C library call that just failed.
fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// Takes ownership of the descriptors that came with a message.
///
/// # Safety
/// `message` was filled by a successful `recvmsg` and its control buffer is still there.
unsafe fn take_fds(message: &libc::msghdr) -> Vec<OwnedFd> {
    let mut fds = Vec::new();
    // SAFETY: the control buffer was written by the kernel, so the chain of headers in it is well-formed, and each
    // descriptor in an SCM_RIGHTS message was just opened for this process and belongs to nobody else.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(message);
        while !header.is_null() {
            if (*header).cmsg_level == libc::SOL_SOCKET && (*header).cmsg_type == libc::SCM_RIGHTS {
                let data = libc::CMSG_DATA(header);
                let length = (*header).cmsg_len as usize - (data as usize - header as usize);
                for index in 0..length / size_of::<i32>() {
                    let fd = data.cast::<i32>().add(index).read_unaligned();
                    fds.push(OwnedFd::from_raw_fd(fd));
                }
            }
            header = libc::CMSG_NXTHDR(message, header);
        }
    }
    fds
}

/// Checks the sizes of a message to write.
pub(super) fn check_sizes(bytes: usize, handles: usize) -> Result<()> {
    if bytes > MAX_BYTES || handles > MAX_HANDLES { Err(OUT_OF_RANGE) } else { Ok(()) }
}
