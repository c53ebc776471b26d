//! Messages on the wire between processes of one machine.

use super::Channel;
use super::user_signals::Control;
use crate::handle_table::Held;
use crate::object::Object;
use crate::status::{
    BUFFER_TOO_SMALL, INVALID_ARGS, IO_DATA_INTEGRITY, NO_RESOURCES, OUT_OF_RANGE, PEER_CLOSED,
    Result, SHOULD_WAIT, Status,
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
        if self.handles.is_empty() {
            let iov = [header.as_bytes(), start, rest].map(IoSlice::new);
            return send(channel, &iov, &mut SendAncillaryBuffer::default(), flags);
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
        send(channel, &iov, &mut control, flags)
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

fn send(
    channel: &Channel,
    iov: &[IoSlice<'_>],
    control: &mut SendAncillaryBuffer<'_, '_, '_>,
    flags: SendFlags,
) -> std::result::Result<(), Errno> {
    loop {
        match sendmsg(channel.fd(), iov, control, flags) {
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
    static SCRATCH: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

#[repr(C, align(8))]
struct ControlIn([u8; CONTROL_OUT + 64]);

impl Channel {
    /// Takes the next message out of the socket.
    pub(super) fn receive(&self, block: bool) -> Result<Incoming> {
        // Taken, not borrowed: a message can hold a channel whose backlog is received while this one is.
        let mut scratch = SCRATCH.take();
        scratch.reserve_exact(MAX_BYTES);
        // SAFETY: room for MAX_BYTES was reserved.
        let received = unsafe { self.receive_into(scratch.as_mut_ptr(), block) };
        let received = received.map(|received| {
            // SAFETY: `receive_into` filled this many bytes, at most MAX_BYTES.
            let bytes = unsafe { std::slice::from_raw_parts(scratch.as_ptr(), received.bytes) };
            Incoming { bytes: bytes.to_vec(), handles: received.handles }
        });
        SCRATCH.set(scratch);
        received
    }

    /// Takes the next message out of the socket, into memory that holds the largest one. What lies behind the message's
    /// own bytes may be overwritten.
    ///
    /// # Safety
    /// `bytes` is valid for writing `MAX_BYTES` bytes.
    unsafe fn receive_into(&self, bytes: *mut u8, block: bool) -> Result<Received> {
        let mut place = Place::new();
        let flags = libc::MSG_CMSG_CLOEXEC | if block { 0 } else { libc::MSG_DONTWAIT };
        loop {
            let mut message = place.header_for(bytes);
            // SAFETY: every buffer is valid for writing its length, `bytes` by the caller's promise.
            let total =
                patiently(|| unsafe { libc::recvmsg(self.fd().as_raw_fd(), &mut message, flags) })?;
            // SAFETY: the kernel filled in the message, whose buffers are these.
            let received = unsafe { place.finish(&message, bytes, total) }?;
            match received.control {
                None => return Ok(received),
                Some(control) => self.adopt(control, received)?,
            }
        }
    }

    /// As [`Channel::receive_into`] without waiting; and in the same system call the message behind it, or the knowledge
    /// that there is none.
    ///
    /// # Safety
    /// `bytes` is valid for writing `MAX_BYTES` bytes.
    pub(super) unsafe fn receive_ahead(&self, bytes: *mut u8) -> (Result<Received>, Ahead) {
        // SAFETY: the caller's promise.
        match unsafe { self.receive_two(bytes) } {
            (Ok(received @ Received { control: Some(_), .. }), ahead) => {
                // SAFETY: the caller's promise.
                unsafe { self.receive_behind_control(bytes, received, ahead) }
            }
            two => two,
        }
    }

    /// What a reader gets who finds a control message first.
    ///
    /// # Safety
    /// `bytes` is valid for writing `MAX_BYTES` bytes.
    #[cold]
    unsafe fn receive_behind_control(
        &self,
        bytes: *mut u8,
        received: Received,
        ahead: Ahead,
    ) -> (Result<Received>, Ahead) {
        if let Some(control) = received.control
            && let Err(status) = self.adopt(control, received)
        {
            return (Err(status), ahead);
        }
        match ahead {
            Ahead::Nothing => (Err(SHOULD_WAIT), Ahead::Nothing),
            Ahead::Message(Incoming { bytes: behind, handles }) => {
                // SAFETY: no message is longer than MAX_BYTES, for which the caller has promised room.
                unsafe { std::ptr::copy_nonoverlapping(behind.as_ptr(), bytes, behind.len()) };
                (Ok(Received { bytes: behind.len(), handles, control: None }), Ahead::Unknown)
            }
            // SAFETY: the caller's promise.
            Ahead::Unknown => (unsafe { self.receive_into(bytes, false) }, Ahead::Unknown),
        }
    }

    /// Takes up to two messages of any kind; the first may be a control message.
    ///
    /// # Safety
    /// `bytes` is valid for writing `MAX_BYTES` bytes.
    unsafe fn receive_two(&self, bytes: *mut u8) -> (Result<Received>, Ahead) {
        let mut scratch = SCRATCH.take();
        scratch.reserve_exact(MAX_BYTES);
        let (mut first, mut second) = (Place::new(), Place::new());
        let place = |place: &mut Place, bytes| libc::mmsghdr {
            msg_hdr: place.header_for(bytes),
            msg_len: 0,
        };
        let mut messages = [place(&mut first, bytes), place(&mut second, scratch.as_mut_ptr())];
        let flags = libc::MSG_CMSG_CLOEXEC | libc::MSG_DONTWAIT;
        // SAFETY: every buffer is valid for writing its length, `bytes` by the caller's promise.
        let received = patiently(|| unsafe {
            let (fd, none) = (self.fd().as_raw_fd(), std::ptr::null_mut());
            libc::recvmmsg(fd, messages.as_mut_ptr(), 2, flags as _, none) as isize
        });
        let [message, behind] = messages;
        let result = match received {
            Err(status) => {
                let empty = if status == SHOULD_WAIT { Ahead::Nothing } else { Ahead::Unknown };
                (Err(status), empty)
            }
            Ok(count) => {
                // SAFETY: the kernel filled in the message, whose buffers are these; and the second one if it says two.
                let (message, behind) = unsafe {
                    let behind = (count > 1).then(|| {
                        second.finish(
                            &behind.msg_hdr,
                            scratch.as_mut_ptr(),
                            behind.msg_len as usize,
                        )
                    });
                    (first.finish(&message.msg_hdr, bytes, message.msg_len as usize), behind)
                };
                let ahead = match behind {
                    None => Ahead::Nothing,
                    Some(Ok(received @ Received { control: Some(_), .. })) => {
                        if let Some(control) = received.control {
                            // A bad one is no message to anybody.
                            let _ = self.adopt(control, received);
                        }
                        Ahead::Unknown
                    }
                    Some(Ok(received)) => {
                        // SAFETY: `finish` says that this many bytes were filled, at most MAX_BYTES.
                        let bytes =
                            unsafe { std::slice::from_raw_parts(scratch.as_ptr(), received.bytes) };
                        let bytes = bytes.to_vec();
                        Ahead::Message(Incoming { bytes, handles: received.handles })
                    }
                    // The end, which the next read finds again, or a message that is none.
                    Some(Err(_)) => Ahead::Unknown,
                };
                (message, ahead)
            }
        };
        SCRATCH.set(scratch);
        result
    }
}

/// What came behind a message.
pub(super) enum Ahead {
    /// Nothing, so far.
    Nothing,
    Message(Incoming),
    /// Nobody has looked, or the look cannot be relied on.
    Unknown,
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

/// Where the parts of a message go, apart from its bytes.
struct Place {
    header: MaybeUninit<Header>,
    tail: MaybeUninit<[u8; TAIL]>,
    control: MaybeUninit<ControlIn>,
    iov: [libc::iovec; 3],
}

impl Place {
    fn new() -> Place {
        let empty = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        Place {
            header: MaybeUninit::uninit(),
            tail: MaybeUninit::uninit(),
            control: MaybeUninit::uninit(),
            iov: [empty; 3],
        }
    }

    /// What the kernel is told: `bytes` has room for `MAX_BYTES`. Points into this place, which must stay where it is.
    fn header_for(&mut self, bytes: *mut u8) -> libc::msghdr {
        self.iov = [
            libc::iovec { iov_base: self.header.as_mut_ptr().cast(), iov_len: HEADER },
            libc::iovec { iov_base: bytes.cast(), iov_len: MAX_BYTES },
            libc::iovec { iov_base: self.tail.as_mut_ptr().cast(), iov_len: TAIL },
        ];
        // SAFETY: all-zero is a valid msghdr.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = self.iov.as_mut_ptr();
        message.msg_iovlen = self.iov.len() as _;
        message.msg_control = self.control.as_mut_ptr().cast();
        message.msg_controllen = size_of::<ControlIn>() as _;
        message
    }

    /// Makes a message of what the kernel filled in.
    ///
    /// # Safety
    /// `message` came from `header_for` of this place with these `bytes`, and the kernel has filled it with `total` bytes.
    unsafe fn finish(
        &self,
        message: &libc::msghdr,
        bytes: *mut u8,
        total: usize,
    ) -> Result<Received> {
        if total == 0 {
            return Err(PEER_CLOSED);
        }
        // SAFETY: the kernel filled in `message`; its control buffer is ours.
        let fds = unsafe { take_fds(message) };
        if message.msg_flags & libc::MSG_CTRUNC != 0 {
            // This process has no room for the descriptors; the message cannot be whole any more.
            return Err(NO_RESOURCES);
        }
        if total < HEADER || message.msg_flags & libc::MSG_TRUNC != 0 {
            return Err(IO_DATA_INTEGRITY);
        }
        // SAFETY: the kernel filled the whole header.
        let header = unsafe { self.header.assume_init() };
        let (length, handles) = (header.bytes as usize, header.handles as usize);
        let exact = length <= MAX_BYTES
            && handles <= MAX_HANDLES
            && total == HEADER + length + handles * DESCRIPTOR;
        if header.magic != MAGIC || !exact {
            return Err(IO_DATA_INTEGRITY);
        }
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
                self.tail.as_ptr().cast(),
                descriptors.as_mut_ptr().add(first),
                rest,
            );
        }
        let mut fds = fds.into_iter();
        let mut objects = Vec::with_capacity(handles);
        for descriptor in descriptors.chunks_exact(DESCRIPTOR) {
            let descriptor =
                Descriptor::read_from_bytes(descriptor).map_err(|_| IO_DATA_INTEGRITY)?;
            objects.push(import(&descriptor, &mut fds)?);
        }
        if fds.next().is_some() {
            return Err(IO_DATA_INTEGRITY);
        }
        Ok(Received { bytes: length, handles: objects, control })
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

/// Checks that a message fits the buffers of a reader.
pub(super) fn check_room(
    message: &Incoming,
    bytes: usize,
    handles: usize,
) -> std::result::Result<(), Status> {
    if message.bytes.len() > bytes || message.handles.len() > handles {
        Err(BUFFER_TOO_SMALL)
    } else {
        Ok(())
    }
}
