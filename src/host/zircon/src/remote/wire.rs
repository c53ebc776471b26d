//! Requests and replies on a connection.

use crate::status::{IO_DATA_INTEGRITY, Result, Status, answer};
use crate::transfer::{Descriptor, MAX_FDS};
use fuchsia_zircon_types::*;
use rustix::fd::{BorrowedFd, OwnedFd};
use rustix::io::{Errno, IoSlice, IoSliceMut};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use std::mem::MaybeUninit;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

const REQUEST: u32 = u32::from_le_bytes(*b"zxr1");
const REPLY: u32 = u32::from_le_bytes(*b"zxa1");
/// The socket for the answer, and what a VMO needs.
const MAX_REQUEST_FDS: usize = 1 + MAX_FDS;

/// What a holder asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Operation {
    /// A connection with the request's rights.
    Connect = 1,
    VcpuKick = 2,
    /// Argument: vector.
    VcpuInterrupt = 3,
    /// Arguments: VMAR offset, VMO offset, length. Value: address.
    VmarMap = 4,
    /// Arguments: address, length.
    VmarUnmap = 5,
    /// Arguments: address, length.
    VmarProtect = 6,
    /// Arguments: offset, size. Value: address; with the connection and koid of the new VMAR.
    VmarAllocate = 7,
    VmarDestroy = 8,
}

impl Operation {
    fn from_wire(number: u32) -> Option<Operation> {
        use Operation::*;
        [
            Connect,
            VcpuKick,
            VcpuInterrupt,
            VmarMap,
            VmarUnmap,
            VmarProtect,
            VmarAllocate,
            VmarDestroy,
        ]
        .into_iter()
        .find(|known| *known as u32 == number)
    }
}

/// A request as its sender makes it and as its receiver has checked it.
pub(crate) struct Request {
    pub(crate) operation: Operation,
    /// The rights of the handle that it is made with.
    pub(crate) rights: zx_rights_t,
    pub(crate) options: u32,
    pub(crate) arguments: [u64; 3],
}

impl Request {
    pub(crate) fn new(operation: Operation, rights: zx_rights_t) -> Request {
        Request { operation, rights, options: 0, arguments: [0; 3] }
    }
}

/// What came of a request.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    pub(crate) value: u64,
    pub(crate) koid: zx_koid_t,
    pub(crate) socket: Option<OwnedFd>,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct WireRequest {
    magic: u32,
    operation: u32,
    rights: u32,
    options: u32,
    arguments: [u64; 3],
    /// Zeros, except in a request to map a VMO.
    vmo: Descriptor,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct WireReply {
    magic: u32,
    status: i32,
    value: u64,
    koid: u64,
}

/// Sends a request; waits for room. `fds` are the socket for the answer, then those of the VMO.
pub(super) fn send_request(
    socket: BorrowedFd<'_>,
    request: &Request,
    vmo: Descriptor,
    fds: &[BorrowedFd<'_>],
) -> std::result::Result<(), Errno> {
    let Request { operation, rights, options, arguments } = *request;
    let wire = WireRequest {
        magic: REQUEST,
        operation: operation as u32,
        rights,
        options,
        arguments,
        vmo,
    };
    send(socket, wire.as_bytes(), fds, SendFlags::empty())
}

/// What arrived at the owner.
pub(super) enum Arrival {
    /// A request and what belongs to it: the socket for the answer, the VMO, the file descriptors of the VMO.
    Request(OwnedFd, Result<(Request, Descriptor, Vec<OwnedFd>)>),
    /// Nothing that could be answered.
    Nothing,
    /// Nobody can ask any more.
    End,
}

/// Takes the next request, without waiting for one.
pub(super) fn receive_request(socket: BorrowedFd<'_>) -> Arrival {
    let mut bytes = [0; size_of::<WireRequest>()];
    let received = match receive(socket, &mut bytes, RecvFlags::DONTWAIT) {
        Ok(received) => received,
        Err(Errno::AGAIN | Errno::INTR) => return Arrival::Nothing,
        Err(_) => return Arrival::End,
    };
    if received.len == 0 && received.fds.is_empty() {
        // An empty message is no end, though any holder can bring the end about, by shutting down the socket.
        return if is_hung_up(socket) { Arrival::End } else { Arrival::Nothing };
    }
    let Received { len, whole, fds } = received;
    let mut fds = fds.into_iter();
    let Some(answer_to) = fds.next() else { return Arrival::Nothing };
    let parse = || {
        let wire = WireRequest::read_from_bytes(bytes.get(..len)?).ok()?;
        let operation = Operation::from_wire(wire.operation)?;
        let WireRequest { magic, rights, options, arguments, vmo, .. } = wire;
        let request = Request { operation, rights, options, arguments };
        (whole && magic == REQUEST).then(|| (request, vmo, fds.collect()))
    };
    Arrival::Request(answer_to, parse().ok_or(IO_DATA_INTEGRITY))
}

fn is_hung_up(socket: BorrowedFd<'_>) -> bool {
    use rustix::event::{PollFd, PollFlags};
    // A holder can shut one direction down without the other.
    let mut fds = [PollFd::from_borrowed_fd(socket, PollFlags::RDHUP)];
    crate::object::poll_now(&mut fds).is_err() || !fds[0].revents().is_empty()
}

/// Answers, if the asker takes it: one that does not has only itself to blame.
pub(super) fn send_reply(socket: BorrowedFd<'_>, result: Result<Answer>) {
    use rustix::fd::AsFd;
    let status = answer(result.as_ref().map(|_| ()).map_err(|status| *status));
    let Answer { value, koid, socket: carried } = result.unwrap_or_default();
    let wire = WireReply { magic: REPLY, status, value, koid };
    let carried: Vec<_> = carried.iter().map(AsFd::as_fd).collect();
    if let Err(errno) = send(socket, wire.as_bytes(), &carried, SendFlags::DONTWAIT) {
        let status = Status::from(errno).0;
        let wire = WireReply { magic: REPLY, status, value: 0, koid: 0 };
        let _ = send(socket, wire.as_bytes(), &[], SendFlags::DONTWAIT);
    }
}

/// Waits for the answer; `None` when there will be none.
pub(super) fn receive_reply(socket: BorrowedFd<'_>) -> Option<Result<Answer>> {
    let mut bytes = [0; size_of::<WireReply>()];
    let received = loop {
        match receive(socket, &mut bytes, RecvFlags::empty()) {
            Err(Errno::INTR) => {}
            Err(Errno::CONNRESET) => return None,
            Err(errno) => return Some(Err(errno.into())),
            Ok(received) => break received,
        }
    };
    if received.len == 0 {
        return None;
    }
    let reply = bytes.get(..received.len).and_then(|bytes| WireReply::read_from_bytes(bytes).ok());
    Some(match reply.filter(|reply| reply.magic == REPLY && received.whole) {
        Some(WireReply { status: ZX_OK, value, koid, .. }) => {
            Ok(Answer { value, koid, socket: received.fds.into_iter().next() })
        }
        Some(WireReply { status: status @ ..0, .. }) => Err(Status(status)),
        _ => Err(IO_DATA_INTEGRITY),
    })
}

fn send(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    fds: &[BorrowedFd<'_>],
    flags: SendFlags,
) -> std::result::Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_REQUEST_FDS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(Errno::INVAL);
    }
    loop {
        match sendmsg(socket, &[IoSlice::new(bytes)], &mut ancillary, flags | SendFlags::NOSIGNAL) {
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            // Another holder made the socket non-blocking.
            Err(Errno::AGAIN) if !flags.contains(SendFlags::DONTWAIT) => await_room(socket)?,
            Err(errno) => return Err(errno),
        }
    }
}

fn await_room(socket: BorrowedFd<'_>) -> std::result::Result<(), Errno> {
    use rustix::event::{PollFd, PollFlags, poll};
    match poll(&mut [PollFd::from_borrowed_fd(socket, PollFlags::OUT)], None) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// A packet with what file descriptors came along, at most [`MAX_REQUEST_FDS`].
pub(crate) struct Received {
    pub(crate) len: usize,
    /// Neither bytes nor descriptors were cut off.
    pub(crate) whole: bool,
    pub(crate) fds: Vec<OwnedFd>,
}

/// Takes a packet out of a socket into `bytes`.
pub(crate) fn receive(
    socket: BorrowedFd<'_>,
    bytes: &mut [u8],
    flags: RecvFlags,
) -> std::result::Result<Received, Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_REQUEST_FDS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(
        socket,
        &mut [IoSliceMut::new(bytes)],
        &mut ancillary,
        flags | RecvFlags::CMSG_CLOEXEC,
    )?;
    let fds = ancillary
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds),
            _ => None,
        })
        .flatten()
        .collect();
    let whole = !received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC);
    Ok(Received { len: received.bytes, whole, fds })
}
