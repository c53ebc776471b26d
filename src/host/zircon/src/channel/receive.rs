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
use std::cell::UnsafeCell;
use std::mem::MaybeUninit;
use std::sync::atomic::Ordering;
use zerocopy::FromBytes;

/// A message that was taken out of the socket.
pub(crate) struct Incoming {
    pub(crate) bytes: Vec<u8>,
    pub(crate) handles: Vec<Held>,
}

/// Room for the largest packet and one byte, which only a packet that is too long fills.
const ROOM: usize = HEADER + MAX_BYTES + MAX_HANDLES * DESCRIPTOR + 1;

thread_local! {
    /// The packet that the thread takes out of a socket. Not a vector, as that would have to be looked for, and dropped.
    static PACKET: UnsafeCell<[u8; ROOM]> = const { UnsafeCell::new([0; ROOM]) };
}

#[repr(C, align(8))]
struct ControlIn([u8; CONTROL_OUT + 64]);

/// A message on its way from the socket to who wants it.
pub(super) enum Packet {
    /// So many bytes, which are in the thread's [`PACKET`] until it receives again.
    Bytes(usize),
    Whole(Box<Incoming>),
}

impl Packet {
    /// The message's bytes. What is done with them must not receive.
    #[inline]
    pub(super) fn with_bytes<R>(&self, look: impl FnOnce(&[u8]) -> R) -> R {
        match self {
            Packet::Bytes(length) => PACKET.with(|cell| {
                // SAFETY: the cell is this thread's, and nothing writes to it while `look` runs.
                let packet = unsafe { &*cell.get() };
                look(&packet[HEADER..][..*length])
            }),
            Packet::Whole(message) => look(&message.bytes),
        }
    }

    /// The message, out of the way of others.
    pub(super) fn into_incoming(self) -> Incoming {
        match self {
            Packet::Bytes(_) => {
                Incoming { bytes: self.with_bytes(<[u8]>::to_vec), handles: Vec::new() }
            }
            Packet::Whole(message) => *message,
        }
    }
}

impl Channel {
    /// Takes the next message out of the socket, and control messages before it.
    pub(super) fn receive(&self, block: bool) -> Result<Packet> {
        loop {
            let (total, fds) = PACKET.with(|cell| {
                // SAFETY: the cell is this thread's, and this is the only reference to it: what is called does not receive.
                self.next_packet(unsafe { &mut *cell.get() }, block)
            })?;
            let parts = PACKET.with(|cell| {
                // SAFETY: as above.
                let packet = unsafe { &(&*cell.get())[..total] };
                match Header::ref_from_prefix(packet) {
                    Ok((header, _)) if header.is_plain(total) && fds.is_empty() => Ok(None),
                    _ => Parts::read(packet, fds).map(Some),
                }
            })?;
            let Some(parts) = parts else { return Ok(Packet::Bytes(total - HEADER)) };
            if let Some(message) = self.open(parts)? {
                return Ok(Packet::Whole(Box::new(message)));
            }
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

    /// Takes the next packet out of the socket: its length, and the file descriptors that came with it.
    #[inline]
    fn next_packet(&self, packet: &mut [u8; ROOM], block: bool) -> Result<(usize, Vec<OwnedFd>)> {
        if self.handles_follow.load(Ordering::Relaxed) {
            return self.next_packet_with_fds(packet, block);
        }
        let flags = if block { RecvFlags::empty() } else { RecvFlags::DONTWAIT };
        match patiently(|| recv(self.fd(), &mut packet[..], flags))? {
            (0, _) => Err(PEER_CLOSED),
            (total, _) => Ok((total, Vec::new())),
        }
    }

    fn next_packet_with_fds(
        &self,
        packet: &mut [u8; ROOM],
        block: bool,
    ) -> Result<(usize, Vec<OwnedFd>)> {
        let mut ancillary = MaybeUninit::<ControlIn>::uninit();
        let mut iov = libc::iovec { iov_base: packet.as_mut_ptr().cast(), iov_len: ROOM };
        // SAFETY: all-zero is a valid msghdr.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = &raw mut iov;
        message.msg_iovlen = 1;
        message.msg_control = ancillary.as_mut_ptr().cast();
        message.msg_controllen = size_of::<ControlIn>() as _;
        let flags = libc::MSG_CMSG_CLOEXEC | if block { 0 } else { libc::MSG_DONTWAIT };
        // SAFETY: both buffers are valid for writing their lengths.
        let total = patiently(|| unsafe {
            let received = libc::recvmsg(self.fd().as_raw_fd(), &raw mut message, flags);
            usize::try_from(received).map_err(|_| last_errno())
        })?;
        if total == 0 {
            return Err(PEER_CLOSED);
        }
        // SAFETY: the kernel filled in `message`; its control buffer is ours.
        let fds = unsafe { take_fds(&message) };
        if message.msg_flags & libc::MSG_CTRUNC != 0 {
            // This process has no room for the descriptors; the message cannot be whole any more.
            return Err(NO_RESOURCES);
        }
        Ok((total, fds))
    }

    /// The message that a packet is; none where it was for the endpoint itself.
    #[cold]
    fn open(&self, parts: Parts) -> Result<Option<Incoming>> {
        let message =
            Incoming { bytes: parts.bytes, handles: import_all(&parts.descriptors, parts.fds)? };
        match parts.control {
            0 => Ok(Some(message)),
            number => {
                let control = Control::from_wire(number).ok_or(IO_DATA_INTEGRITY)?;
                self.adopt(control, message).map(|()| None)
            }
        }
    }
}

/// The parts of a packet that is more than bytes. They are copies: a message can hold a channel whose backlog is received while
/// this one is.
struct Parts {
    bytes: Vec<u8>,
    descriptors: Vec<u8>,
    fds: Vec<OwnedFd>,
    control: u32,
}

impl Parts {
    /// Checks sizes. A packet that was cut off is longer than any can be, one that lost its file descriptors came too soon.
    #[cold]
    fn read(packet: &[u8], fds: Vec<OwnedFd>) -> Result<Parts> {
        let (header, body) = Header::read_from_prefix(packet).map_err(|_| IO_DATA_INTEGRITY)?;
        let (length, _) = header.sizes(packet.len())?;
        let (bytes, descriptors) = body.split_at_checked(length).ok_or(IO_DATA_INTEGRITY)?;
        let (bytes, descriptors) = (bytes.to_vec(), descriptors.to_vec());
        Ok(Parts { bytes, descriptors, fds, control: header.control })
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
