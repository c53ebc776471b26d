//! What a hostile process can send: requests to an owner, and answers to who asks.

use super::connection::socket_pair;
use super::{Connection, ENFORCED, Operation, Request, connect, home};
use crate::handle_table::{Held, get, take};
use crate::object::Object;
use crate::rights;
use crate::status::{ACCESS_DENIED, BAD_STATE, IO_DATA_INTEGRITY, Status};
use crate::testing::{close, vmo};
use crate::*;
use fuchsia_zircon_types::*;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::IoSlice;
use rustix::net::{
    RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, recv, send, sendmsg, shutdown,
};
use std::mem::MaybeUninit;
use std::sync::Arc;

const PAGE: usize = 4096;
/// Bytes of a request on the wire.
const REQUEST: usize = 96;

fn region() -> (zx_handle_t, usize) {
    let options = ZX_VM_CAN_MAP_READ | ZX_VM_CAN_MAP_WRITE | ZX_VM_CAN_MAP_SPECIFIC;
    crate::testing::region(options, 4 * PAGE)
}

fn object(handle: zx_handle_t) -> Arc<Object> {
    get(handle).unwrap().object
}

fn send_with(socket: &OwnedFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    assert!(fds.is_empty() || ancillary.push(SendAncillaryMessage::ScmRights(fds)));
    sendmsg(socket, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL).unwrap();
}

/// The status of the answer to raw bytes; `None` when there is no answer.
fn raw_answer(socket: &OwnedFd, bytes: &[u8], more: &[BorrowedFd<'_>]) -> Option<zx_status_t> {
    let (near, far) = socket_pair().unwrap();
    let fds: Vec<_> = std::iter::once(far.as_fd()).chain(more.iter().copied()).collect();
    send_with(socket, bytes, &fds);
    drop(far);
    let mut reply = [0; 64];
    match recv(&near, &mut reply, RecvFlags::empty()).unwrap().0 {
        0 => None,
        _ => Some(i32::from_ne_bytes(reply[4..8].try_into().unwrap())),
    }
}

/// A request of no arguments.
fn raw_request(magic: &[u8; 4], operation: u32) -> Vec<u8> {
    let mut bytes = vec![0; REQUEST];
    bytes[..4].copy_from_slice(magic);
    bytes[4..8].copy_from_slice(&operation.to_ne_bytes());
    bytes[8..12].copy_from_slice(&u32::MAX.to_ne_bytes());
    bytes
}

#[test]
fn malformed_requests_are_answered_and_forgotten() {
    let (region, base) = region();
    let socket = connect(&object(region), rights::VMAR | ENFORCED).unwrap();
    let refused = Some(ZX_ERR_IO_DATA_INTEGRITY);
    assert_eq!(raw_answer(&socket, b"", &[]), refused);
    assert_eq!(raw_answer(&socket, b"zxr1", &[]), refused);
    assert_eq!(raw_answer(&socket, &raw_request(b"zxr0", 8), &[]), refused);
    assert_eq!(raw_answer(&socket, &[0xff; 4096], &[]), refused);
    for operation in [0, 9, u32::MAX] {
        assert_eq!(raw_answer(&socket, &raw_request(b"zxr1", operation), &[]), refused);
    }
    // Of a vCPU; a mapping without a VMO; with descriptors that do not belong to one; with too many.
    assert_eq!(raw_answer(&socket, &raw_request(b"zxr1", 2), &[]), refused);
    assert_eq!(raw_answer(&socket, &raw_request(b"zxr1", 4), &[]), refused);
    assert_eq!(raw_answer(&socket, &raw_request(b"zxr1", 4), &[socket.as_fd(); 3]), refused);
    assert_eq!(raw_answer(&socket, &raw_request(b"zxr1", 4), &[socket.as_fd(); 12]), refused);
    // Nobody to answer to.
    for bytes in [&b""[..], b"x", &raw_request(b"zxr1", 8)] {
        send(&socket, bytes, SendFlags::NOSIGNAL).unwrap();
    }
    // Somebody who cannot be answered.
    let file = std::fs::File::open("/dev/null").unwrap();
    send_with(&socket, b"x", &[file.as_fd()]);
    // Ranges that no region has.
    let connection = Connection::new(socket, rights::VMAR | ENFORCED);
    let vmo = vmo(PAGE as u64, 0);
    for operation in [Operation::VmarMap, Operation::VmarUnmap, Operation::VmarProtect] {
        for arguments in [[u64::MAX; 3], [u64::MAX - 4095; 3], [0, 0, u64::MAX], [1; 3]] {
            for options in [u32::MAX, ZX_VM_ALLOW_FAULTS, ZX_VM_ALLOW_FAULTS | ZX_VM_SPECIFIC, 0] {
                let rights = ENFORCED;
                let request = Request { operation, rights, options, arguments };
                assert!(connection.call(&request, Some(&get(vmo).unwrap())).is_err());
            }
        }
    }
    // After all that it still does what it is asked for.
    let mut request = Request::new(Operation::VmarMap, ENFORCED);
    request.options = ZX_VM_PERM_READ;
    request.arguments = [0, 0, PAGE as u64];
    assert_eq!(connection.call(&request, Some(&get(vmo).unwrap())).unwrap().value, base as u64);
    assert!(connection.call(&Request::new(Operation::VmarDestroy, ENFORCED), None).is_ok());
    [region, vmo].into_iter().for_each(close);
}

#[test]
fn the_owner_keeps_the_rights() {
    let (region, _) = region();
    let object = object(region);
    let vmo = vmo(PAGE as u64, 0);
    let map = |connection: &Connection, options| {
        let mut request = Request::new(Operation::VmarMap, !0);
        request.options = options;
        request.arguments[2] = PAGE as u64;
        connection.call(&request, Some(&get(vmo).unwrap())).map(drop)
    };
    let socket = connect(&object, ZX_RIGHT_READ).unwrap();
    // Whatever the holder says.
    let connection = Connection::new(socket, !0);
    assert_eq!(map(&connection, ZX_VM_PERM_READ | ZX_VM_PERM_WRITE), Err(ACCESS_DENIED));
    assert_eq!(map(&connection, ZX_VM_PERM_READ), Ok(()));
    let mut allocate = Request::new(Operation::VmarAllocate, !0);
    allocate.options = ZX_VM_CAN_MAP_WRITE;
    allocate.arguments[1] = PAGE as u64;
    assert_eq!(connection.call(&allocate, None).unwrap_err(), ACCESS_DENIED);
    let destroy = Request::new(Operation::VmarDestroy, !0);
    assert_eq!(connection.call(&destroy, None).unwrap_err(), ACCESS_DENIED);
    // A connection that is asked for has no more either.
    let answer = connection.call(&Request::new(Operation::Connect, !0), None).unwrap();
    let more = answer.socket.unwrap();
    let (found, rights) = home(more.as_fd()).unwrap();
    assert!(Arc::ptr_eq(&found, &object));
    assert_eq!(rights, ZX_RIGHT_READ);
    assert_eq!(map(&Connection::new(more, !0), ZX_VM_PERM_WRITE | 1), Err(ACCESS_DENIED));
    // The rights of the handle count as well.
    let full = Connection::new(connect(&object, !0).unwrap(), !0);
    assert_eq!(
        full.call(&Request::new(Operation::VmarDestroy, 0), None).unwrap_err(),
        ACCESS_DENIED
    );
    // As many as are asked for: not without end.
    let mut held = Vec::new();
    let refused = loop {
        match full.call(&Request::new(Operation::Connect, !0), None) {
            Ok(answer) => held.push(answer),
            Err(status) => break status,
        }
    };
    assert_eq!(refused, Status(ZX_ERR_NO_RESOURCES));
    drop(held);
    [region, vmo].into_iter().for_each(close);
}

#[test]
fn a_connection_that_is_shut_down_is_the_holders_loss() {
    use rustix::net::Shutdown;
    let (region, _) = region();
    for how in [Shutdown::Both, Shutdown::Read, Shutdown::Write] {
        let socket = connect(&object(region), !0).unwrap();
        shutdown(&socket, how).unwrap();
        let kept = rustix::io::fcntl_dupfd_cloexec(&socket, 3).unwrap();
        let connection = Connection::new(socket, !0);
        let interrupt = Request::new(Operation::VcpuInterrupt, !0);
        let status = connection.call(&interrupt, None).unwrap_err();
        // Nothing is ever read there.
        let expected = if how == Shutdown::Read { IO_DATA_INTEGRITY } else { BAD_STATE };
        assert_eq!(status, expected);
        // The owner has no more to do with it, and does not look for ever.
        while how != Shutdown::Read && home(kept.as_fd()).is_some() {
            std::thread::yield_now();
        }
    }
    let other = Connection::new(connect(&object(region), !0).unwrap(), !0);
    assert!(other.call(&Request::new(Operation::VmarDestroy, !0), None).is_ok());
    close(region);
}

#[test]
fn an_open_connection_keeps_the_object() {
    let (region, _) = region();
    let held: Held = take(region).unwrap();
    let weak = Arc::downgrade(&held.object);
    let socket = connect(&held.object, held.rights).unwrap();
    drop(held);
    assert!(weak.upgrade().is_some());
    drop(socket);
    while weak.upgrade().is_some() {
        std::thread::yield_now();
    }
}

#[test]
fn a_false_owner_gets_nobody_into_trouble() {
    let reply = |status: i32| {
        let mut bytes = b"zxa1".to_vec();
        bytes.extend(status.to_ne_bytes());
        bytes.resize(24, 0xff);
        bytes
    };
    let cases = [
        (Vec::new(), BAD_STATE),
        (b"zxa1".to_vec(), IO_DATA_INTEGRITY),
        (vec![0; 24], IO_DATA_INTEGRITY),
        (vec![0; 4096], IO_DATA_INTEGRITY),
        (reply(1), IO_DATA_INTEGRITY),
        (reply(ZX_ERR_NO_SPACE), Status(ZX_ERR_NO_SPACE)),
        // Of an allocation, a success without a connection to what was allocated.
        (reply(ZX_OK), IO_DATA_INTEGRITY),
    ];
    for (bytes, expected) in cases {
        let (near, far) = socket_pair().unwrap();
        let owner = std::thread::spawn(move || {
            let super::wire::Arrival::Request(answer_to, Ok(_)) = arrival(&near) else {
                panic!("no request")
            };
            if !bytes.is_empty() {
                send(&answer_to, &bytes, SendFlags::NOSIGNAL).unwrap();
            }
        });
        let info = zx_info_vmar_t::default();
        let vmar = vmar::Vmar::Remote { connection: Connection::new(far, !0), info };
        let handle =
            handle_table::insert(Object::new(object::Kind::Vmar(vmar)), rights::VMAR).unwrap();
        let (mut child, mut address) = (0, 0);
        // SAFETY: the pointers are to locals.
        let status = unsafe { zx_vmar_allocate(handle, 0, 0, PAGE, &mut child, &mut address) };
        assert_eq!(status, expected.0);
        owner.join().unwrap();
        close(handle);
    }
    // Nor what is no socket at all.
    let file = std::fs::File::open("/dev/null").unwrap();
    assert!(home(file.as_fd()).is_none());
    let connection = Connection::new(file.into(), !0);
    assert!(connection.call(&Request::new(Operation::VcpuKick, !0), None).is_err());
}

/// The next request, when it is there.
fn arrival(socket: &OwnedFd) -> super::wire::Arrival {
    use rustix::event::{PollFd, PollFlags, poll};
    poll(&mut [PollFd::new(socket, PollFlags::IN)], None).unwrap();
    super::wire::receive_request(socket.as_fd())
}
