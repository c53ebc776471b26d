//! Taking messages out of the socket.

use super::Channel;
use super::message::{CONTROL_OUT, DESCRIPTOR, HEADER, Header, MAX_BYTES, MAX_HANDLES};
use super::user_signals::Control;
use crate::handle_table::Held;
use crate::object::lock;
use crate::status::{IO_DATA_INTEGRITY, NO_RESOURCES, PEER_CLOSED, Result};
use crate::transfer::{Descriptor, import};
use rustix::fd::{AsRawFd, FromRawFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use std::cell::Cell;
use std::mem::MaybeUninit;
use std::sync::atomic::Ordering;
use zerocopy::FromBytes;

/// A message that was taken out of the socket.
pub(crate) struct Incoming {
    pub(crate) bytes: Vec<u8>,
    pub(crate) handles: Vec<Held>,
}

/// The length of the largest packet, in bytes, and one more, which only a packet that is too long has.
const LONGEST: usize = HEADER + MAX_BYTES + MAX_HANDLES * DESCRIPTOR + 1;

thread_local! {
    static ROOM: Cell<Option<Box<[MaybeUninit<u8>]>>> = const { Cell::new(None) };
}

/// Memory for a packet, which is the thread's and goes back to it. Whoever receives while another packet is in use, as when a
/// message holds a channel with a backlog, gets memory of its own.
pub(super) struct Buffer {
    room: Box<[MaybeUninit<u8>]>,
    /// How much of it a packet has filled.
    filled: usize,
}

impl Buffer {
    #[inline]
    fn new() -> Buffer {
        // `try_with`: a thread that ends may have lost the variable already.
        let room = ROOM.try_with(Cell::take).ok().flatten();
        Buffer { room: room.unwrap_or_else(|| Box::new_uninit_slice(LONGEST)), filled: 0 }
    }

    #[inline]
    fn packet(&self) -> &[u8] {
        // SAFETY: so many bytes were filled.
        unsafe { self.room[..self.filled].assume_init_ref() }
    }

    #[inline]
    fn is_plain(&self) -> bool {
        Header::ref_from_prefix(self.packet()).is_ok_and(|(header, _)| header.is_plain(self.filled))
    }
}

impl Drop for Buffer {
    #[inline]
    fn drop(&mut self) {
        let room = std::mem::take(&mut self.room);
        let _ = ROOM.try_with(|thread| thread.set(Some(room)));
    }
}

#[repr(C, align(8))]
struct ControlIn([u8; CONTROL_OUT + 64]);

/// A message on its way from the socket to who wants it.
pub(super) enum Packet {
    /// Of bytes alone, which are behind the header.
    Bytes(Buffer),
    Whole(Box<Incoming>),
}

impl Packet {
    #[inline]
    pub(super) fn bytes(&self) -> &[u8] {
        match self {
            Packet::Bytes(buffer) => buffer.packet().get(HEADER..).unwrap_or_default(),
            Packet::Whole(message) => &message.bytes,
        }
    }

    /// The message, in memory of its own.
    pub(super) fn into_incoming(self) -> Incoming {
        match self {
            Packet::Bytes(_) => Incoming { bytes: self.bytes().to_vec(), handles: Vec::new() },
            Packet::Whole(message) => *message,
        }
    }
}

impl Channel {
    /// Takes the next message out of the socket, and control messages before it.
    #[inline]
    pub(super) fn receive(&self, block: bool) -> Result<Packet> {
        let mut buffer = Buffer::new();
        let fds = self.next_packet(&mut buffer, block)?;
        if fds.is_empty() && buffer.is_plain() {
            return Ok(Packet::Bytes(buffer));
        }
        self.receive_other(buffer, fds, block)
    }

    /// Goes on with a packet that is more than bytes.
    #[cold]
    #[inline(never)]
    fn receive_other(
        &self,
        mut buffer: Buffer,
        mut fds: Vec<OwnedFd>,
        block: bool,
    ) -> Result<Packet> {
        loop {
            if fds.is_empty() && buffer.is_plain() {
                return Ok(Packet::Bytes(buffer));
            }
            if let Some(message) = self.open(buffer.packet(), fds)? {
                return Ok(Packet::Whole(Box::new(message)));
            }
            fds = self.next_packet(&mut buffer, block)?;
        }
    }

    /// Takes the announcement of messages with handles out of the socket, if that is next. What waits for a message has to look
    /// for it, as it makes the socket ready as well. Whether it was there.
    pub(crate) fn take_announcement(&self) -> bool {
        if self.handles_follow() {
            return false;
        }
        let inbound = lock(&self.inbound);
        // Callers take what they find.
        if !inbound.calls.is_empty() {
            return false;
        }
        let mut header = [0; HEADER];
        let next = |header: &mut [u8], flags| recv(self.fd(), header, flags | RecvFlags::DONTWAIT);
        let announced = matches!(next(&mut header, RecvFlags::PEEK), Ok((HEADER, _)))
            && Header::read_from_bytes(&header).is_ok_and(|header| header.is_announcement());
        if announced && next(&mut header, RecvFlags::empty()).is_ok() {
            self.handles_follow.store(true, Ordering::SeqCst);
        }
        announced
    }

    /// Takes the next packet out of the socket, and gives the file descriptors that came with it.
    #[inline]
    fn next_packet(&self, buffer: &mut Buffer, block: bool) -> Result<Vec<OwnedFd>> {
        if self.handles_follow.load(Ordering::Relaxed) {
            return self.next_packet_with_fds(buffer, block);
        }
        let flags = if block { RecvFlags::empty() } else { RecvFlags::DONTWAIT };
        buffer.filled = 0;
        let room = &mut buffer.room;
        let total = patiently(|| recv(self.fd(), &mut **room, flags).map(|(_, total)| total))?;
        if total == 0 {
            return Err(PEER_CLOSED);
        }
        buffer.filled = total;
        Ok(Vec::new())
    }

    fn next_packet_with_fds(&self, buffer: &mut Buffer, block: bool) -> Result<Vec<OwnedFd>> {
        let mut ancillary = MaybeUninit::<ControlIn>::uninit();
        let room = &mut buffer.room;
        let mut iov = libc::iovec { iov_base: room.as_mut_ptr().cast(), iov_len: room.len() };
        // SAFETY: all-zero is a valid msghdr.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = &raw mut iov;
        message.msg_iovlen = 1;
        message.msg_control = ancillary.as_mut_ptr().cast();
        message.msg_controllen = size_of::<ControlIn>() as _;
        let flags = libc::MSG_CMSG_CLOEXEC | if block { 0 } else { libc::MSG_DONTWAIT };
        buffer.filled = 0;
        // SAFETY: both buffers are valid for writing their lengths.
        let total = patiently(|| unsafe {
            let received = libc::recvmsg(self.fd().as_raw_fd(), &raw mut message, flags);
            usize::try_from(received).map_err(|_| last_errno())
        })?;
        if total == 0 {
            return Err(PEER_CLOSED);
        }
        buffer.filled = total;
        // SAFETY: the kernel filled in `message`; its control buffer is ours.
        let fds = unsafe { take_fds(&message) };
        if message.msg_flags & libc::MSG_CTRUNC != 0 {
            // This process has no room for the descriptors; the message cannot be whole any more.
            return Err(NO_RESOURCES);
        }
        Ok(fds)
    }

    /// The message that a packet is; none where it was for the endpoint itself. A packet that was cut off is longer than any can
    /// be, and one that lost its file descriptors came too soon.
    #[cold]
    fn open(&self, packet: &[u8], fds: Vec<OwnedFd>) -> Result<Option<Incoming>> {
        let (header, body) = Header::read_from_prefix(packet).map_err(|_| IO_DATA_INTEGRITY)?;
        let (length, _) = header.sizes(packet.len())?;
        let (bytes, descriptors) = body.split_at_checked(length).ok_or(IO_DATA_INTEGRITY)?;
        let message = Incoming { bytes: bytes.to_vec(), handles: import_all(descriptors, fds)? };
        match header.control {
            0 => Ok(Some(message)),
            number => {
                let control = Control::from_wire(number).ok_or(IO_DATA_INTEGRITY)?;
                self.adopt(control, message).map(|()| None)
            }
        }
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
#[inline]
fn patiently<T>(mut receive: impl FnMut() -> std::result::Result<T, Errno>) -> Result<T> {
    let mut reset = false;
    loop {
        match receive() {
            Ok(received) => return Ok(received),
            Err(Errno::INTR) => {}
            // The peer closed without reading all; reported once, messages that it sent come after it.
            Err(Errno::CONNRESET) if !reset => reset = true,
            Err(errno) => return Err(errno.into()),
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
