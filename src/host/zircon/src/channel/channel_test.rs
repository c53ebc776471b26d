//! Channels within one process.

use super::{MAX_PENDING, Outgoing};
use crate::handle_table::get;
use crate::testing::*;
use crate::*;
use fuchsia_zircon_types::*;
use std::thread;

#[test]
fn messages_keep_bytes_and_order() {
    let (a, b) = channel();
    assert_eq!(read(b), Err(ZX_ERR_SHOULD_WAIT));
    write(a, b"one", &[]).unwrap();
    write(a, b"", &[]).unwrap();
    write(a, &[7; 65536], &[]).unwrap();
    assert_eq!(signals(b), ZX_CHANNEL_READABLE | ZX_CHANNEL_WRITABLE);
    assert_eq!(read(b).unwrap().0, b"one");
    assert_eq!(read(b).unwrap().0, b"");
    assert_eq!(read(b).unwrap().0, [7; 65536]);
    assert_eq!(signals(b), ZX_CHANNEL_WRITABLE);
    assert_eq!(write(a, &[0; 65537], &[]), Err(ZX_ERR_OUT_OF_RANGE));
    close(a);
    close(b);
}

#[test]
fn a_closed_peer_is_seen_after_its_messages() {
    let (a, b) = channel();
    write(a, b"last", &[]).unwrap();
    write(b, b"never read", &[]).unwrap();
    close(a);
    assert_eq!(signals(b), ZX_CHANNEL_READABLE | ZX_CHANNEL_PEER_CLOSED);
    assert_eq!(write(b, b"x", &[]), Err(ZX_ERR_PEER_CLOSED));
    assert_eq!(read(b).unwrap().0, b"last");
    assert_eq!(signals(b), ZX_CHANNEL_PEER_CLOSED);
    assert_eq!(read(b), Err(ZX_ERR_PEER_CLOSED));
    close(b);
}

#[test]
fn a_small_buffer_leaves_the_message() {
    let (a, b) = channel();
    write(a, b"12345", &[event(), event()]).unwrap();
    write(a, b"next", &[]).unwrap();
    assert_eq!(read_sized(b, 4, 64), Err(ZX_ERR_BUFFER_TOO_SMALL));
    assert_eq!(read_sized(b, 65536, 1), Err(ZX_ERR_BUFFER_TOO_SMALL));
    assert_eq!(signals(b) & ZX_CHANNEL_READABLE, ZX_CHANNEL_READABLE);
    let (bytes, handles) = read_sized(b, 5, 2).unwrap();
    assert_eq!(bytes, b"12345");
    assert_eq!(read_sized(b, 4, 0).unwrap().0, b"next");
    assert_eq!(read(b), Err(ZX_ERR_SHOULD_WAIT));
    handles.into_iter().chain([a, b]).for_each(close);
}

#[test]
fn a_discarding_read_loses_what_does_not_fit() {
    let (a, b) = channel();
    write(a, b"12345", &[event()]).unwrap();
    let (mut bytes, mut handles) = (0, 0);
    let (buffer, none) = (std::ptr::null_mut(), std::ptr::null_mut());
    // SAFETY: null buffers have no room; the counts are locals.
    let status = unsafe { zx_channel_read(b, 1, buffer, none, 0, 0, &mut bytes, &mut handles) };
    assert_eq!((status, bytes, handles), (ZX_ERR_BUFFER_TOO_SMALL, 5, 1));
    assert_eq!(read(b), Err(ZX_ERR_SHOULD_WAIT));
    close(a);
    close(b);
}

#[test]
fn handles_keep_type_rights_and_identity() {
    let (a, b) = channel();
    let event = event();
    let koid = basic_info(event).koid;
    let mut reduced = 0;
    let rights = ZX_RIGHT_TRANSFER | ZX_RIGHT_WAIT;
    // SAFETY: the pointer is to a local.
    assert_eq!(unsafe { zx_handle_duplicate(event, rights, &mut reduced) }, ZX_OK);
    write(a, b"", &[reduced]).unwrap();
    let (_, handles) = read(b).unwrap();
    let info = basic_info(handles[0]);
    assert_eq!((info.koid, info.rights, info.type_), (koid, rights, ZX_OBJ_TYPE_EVENT));
    signal(event, 0, ZX_EVENT_SIGNALED);
    assert_eq!(wait(handles[0], ZX_EVENT_SIGNALED), ZX_EVENT_SIGNALED);
    // SAFETY: always safe.
    assert_eq!(unsafe { zx_object_signal(handles[0], 0, ZX_USER_SIGNAL_0) }, ZX_ERR_ACCESS_DENIED);
    [a, b, event, handles[0]].into_iter().for_each(close);
}

#[test]
fn sixty_four_handles_of_every_kind_go_in_one_message() {
    let (a, b) = channel();
    let mut handles = Vec::new();
    let mut kept = Vec::new();
    while handles.len() < 64 {
        let (x, y) = pair(zx_eventpair_create, 0);
        let (p, q) = channel();
        let (s, t) = pair(zx_socket_create, ZX_SOCKET_STREAM);
        handles.extend([x, p, s, event(), vmo(4096, 0)]);
        kept.extend([y, q, t]);
    }
    handles.drain(64..).for_each(close);
    let types: Vec<_> = handles.iter().map(|&handle| basic_info(handle).type_).collect();
    write(a, b"all", &handles).unwrap();
    let (_, received) = read(b).unwrap();
    assert_eq!(received.iter().map(|&handle| basic_info(handle).type_).collect::<Vec<_>>(), types);
    assert!(handles.iter().all(|&handle| !handle_table::is_valid(handle)));
    received.iter().copied().for_each(close);
    for &peer in &kept[..36] {
        assert_eq!(signals(peer) & ZX_CHANNEL_PEER_CLOSED, ZX_CHANNEL_PEER_CLOSED);
    }
    kept.into_iter().chain([a, b]).for_each(close);
}

#[test]
fn an_announcement_of_handles_is_no_message() {
    let (a, b) = channel();
    let held = get(a).unwrap();
    Outgoing::announcement().send(held.channel().unwrap()).unwrap();
    assert_eq!(signals(b), ZX_CHANNEL_WRITABLE);
    assert_eq!(read(b), Err(ZX_ERR_SHOULD_WAIT));
    Outgoing::announcement().send(held.channel().unwrap()).unwrap();
    write(a, b"bytes", &[event()]).unwrap();
    let (bytes, handles) = read(b).unwrap();
    assert_eq!((&bytes[..], handles.len()), (&b"bytes"[..], 1));
    drop(held);
    [a, b, handles[0]].into_iter().for_each(close);
}

#[test]
fn a_peer_that_closes_at_the_announcement_closes_after_the_message() {
    let (a, b) = channel();
    close(b);
    let held = get(a).unwrap();
    let event = handle_table::take(event()).unwrap();
    let message = Outgoing::new(b"", vec![event]);
    assert!(message.send(held.channel().unwrap()).is_err());
    assert!(message.send_announced(held.channel().unwrap()).is_ok());
    drop((held, message));
    close(a);
}

#[test]
fn an_endpoint_takes_along_that_handles_follow() {
    let ((a, b), (c, d)) = (channel(), channel());
    write(a, b"bytes", &[]).unwrap();
    write(a, b"handle", &[event()]).unwrap();
    assert_eq!(read(b).unwrap().1.len(), 0);
    let first = read(b).unwrap().1;
    write(c, b"", &[b]).unwrap();
    let moved = read(d).unwrap().1[0];
    write(a, b"another", &[event()]).unwrap();
    let second = read(moved).unwrap().1;
    assert_eq!(basic_info(second[0]).type_, ZX_OBJ_TYPE_EVENT);
    [a, c, d, moved, first[0], second[0]].into_iter().for_each(close);
}

#[test]
fn handles_that_were_not_announced_break_the_message_only() {
    let (a, b) = channel();
    get(a).unwrap().channel().unwrap().pretend_announced();
    write(a, b"handle", &[event()]).unwrap();
    write(a, b"bytes", &[]).unwrap();
    assert_eq!(read(b), Err(ZX_ERR_IO_DATA_INTEGRITY));
    assert_eq!(read(b).unwrap().0, b"bytes");
    [a, b].into_iter().for_each(close);
}

#[test]
fn a_failed_write_consumes_its_handles() {
    let (a, b) = channel();
    let too_many: Vec<_> = (0..65).map(|_| event()).collect();
    assert_eq!(write(a, b"", &too_many), Err(ZX_ERR_OUT_OF_RANGE));
    assert!(too_many.iter().all(|&handle| !handle_table::is_valid(handle)));
    let (good, mut fixed) = (event(), event());
    let rights = rights::EVENT & !ZX_RIGHT_TRANSFER;
    // SAFETY: the pointer is to a local.
    assert_eq!(unsafe { zx_handle_replace(fixed, rights, &mut fixed) }, ZX_OK);
    assert_eq!(write(a, b"", &[good, fixed]), Err(ZX_ERR_ACCESS_DENIED));
    assert!(!handle_table::is_valid(good) && !handle_table::is_valid(fixed));
    let good = event();
    assert_eq!(write(a, b"", &[good, 0xdead_beef]), Err(ZX_ERR_BAD_HANDLE));
    assert!(!handle_table::is_valid(good));
    assert_eq!(read(b), Err(ZX_ERR_SHOULD_WAIT));
    close(b);
    let good = event();
    assert_eq!(write(a, b"", &[good]), Err(ZX_ERR_PEER_CLOSED));
    assert!(!handle_table::is_valid(good));
    close(a);
}

#[test]
fn dispositions_check_type_and_reduce_rights() {
    let (a, b) = channel();
    let event = event();
    let disposition = |operation, type_, rights| zx_handle_disposition_t {
        operation,
        handle: event,
        type_,
        rights,
        result: ZX_ERR_INTERNAL,
    };
    let mut wrong = [disposition(ZX_HANDLE_OP_DUPLICATE, ZX_OBJ_TYPE_VMO, ZX_RIGHT_SAME_RIGHTS)];
    assert_eq!(
        // SAFETY: the pointers are to locals.
        unsafe { zx_channel_write_etc(a, 0, [].as_ptr(), 0, wrong.as_mut_ptr(), 1) },
        ZX_ERR_WRONG_TYPE
    );
    assert_eq!(wrong[0].result, ZX_ERR_WRONG_TYPE);
    let rights = ZX_RIGHT_WAIT | ZX_RIGHT_TRANSFER;
    let mut good = [
        disposition(ZX_HANDLE_OP_DUPLICATE, ZX_OBJ_TYPE_EVENT, rights),
        disposition(ZX_HANDLE_OP_MOVE, ZX_OBJ_TYPE_NONE, ZX_RIGHT_SAME_RIGHTS),
    ];
    // SAFETY: the pointers are to locals.
    assert_eq!(unsafe { zx_channel_write_etc(a, 0, [].as_ptr(), 0, good.as_mut_ptr(), 2) }, ZX_OK);
    assert!(!handle_table::is_valid(event));
    let (_, handles) = read(b).unwrap();
    assert_eq!(basic_info(handles[0]).rights, rights);
    assert_eq!(basic_info(handles[1]).rights, crate::rights::EVENT);
    handles.into_iter().chain([a, b]).for_each(close);
}

#[test]
fn writes_beyond_the_socket_buffer_queue_in_order_up_to_the_limit() {
    let (a, b) = channel();
    let mut sent = 0_u32;
    let status = loop {
        let mut message = vec![0; 4096];
        message[..4].copy_from_slice(&sent.to_ne_bytes());
        match write(a, &message, &[]) {
            Ok(()) => sent += 1,
            Err(status) => break status,
        }
    };
    assert_eq!(status, ZX_ERR_SHOULD_WAIT);
    assert!(sent >= MAX_PENDING as u32);
    // The endpoint is closed while most is still queued: all of it arrives all the same, and then the end.
    close(a);
    for number in 0..sent {
        wait(b, ZX_CHANNEL_READABLE);
        let (bytes, _) = read(b).unwrap();
        assert_eq!(bytes[..4], number.to_ne_bytes());
    }
    assert_eq!(wait(b, ZX_CHANNEL_PEER_CLOSED) & ZX_CHANNEL_READABLE, 0);
    close(b);
}

#[test]
fn a_channel_that_is_sent_keeps_its_order() {
    let (a, b) = channel();
    let (carrier, receiver) = channel();
    // Fill the socket so that the rest queues in this process, then send the endpoint on and write more from there.
    let count = 1000_u32;
    let message = |number: u32| [&number.to_ne_bytes()[..], &[0; 4092]].concat();
    (0..count).for_each(|number| write(a, &message(number), &[]).unwrap());
    // A message that was taken out of the socket at the other end goes along as well.
    assert_eq!(read_sized(b, 1, 0), Err(ZX_ERR_BUFFER_TOO_SMALL));
    write(carrier, b"", &[a, b]).unwrap();
    let (_, handles) = read(receiver).unwrap();
    let [a, b] = handles[..] else { panic!("two handles") };
    (count..2 * count).for_each(|number| write(a, &message(number), &[]).unwrap());
    for number in 0..2 * count {
        wait(b, ZX_CHANNEL_READABLE);
        assert_eq!(read(b).unwrap().0[..4], number.to_ne_bytes());
    }
    [a, b, carrier, receiver].into_iter().for_each(close);
}

#[test]
fn a_backlog_may_hold_channels_with_a_backlog() {
    let (mut outer, near) = channel();
    write(outer, b"innermost", &[]).unwrap();
    // In each round the channel with a message taken out of its socket goes into such a message of the next.
    let mut inner = near;
    let mut kept = Vec::new();
    for _ in 0..3 {
        assert_eq!(read_sized(inner, 1, 0), Err(ZX_ERR_BUFFER_TOO_SMALL));
        let (next, near) = channel();
        write(next, b"wrapped", &[inner]).unwrap();
        kept.push(std::mem::replace(&mut outer, next));
        inner = near;
    }
    for _ in 0..3 {
        assert_eq!(read_sized(inner, 1, 0), Err(ZX_ERR_BUFFER_TOO_SMALL));
        let (bytes, handles) = read_sized(inner, 1000, 1).unwrap();
        assert_eq!(bytes, b"wrapped");
        close(std::mem::replace(&mut inner, handles[0]));
    }
    assert_eq!(read_sized(inner, 1000, 0).unwrap().0, b"innermost");
    kept.into_iter().chain([outer, inner]).for_each(close);
}

#[test]
fn calls_find_their_replies_whatever_else_comes() {
    let (client, server) = channel();
    let calls = 8;
    let server_thread = thread::spawn(move || {
        let mut requests = Vec::new();
        while requests.len() < calls {
            wait(server, ZX_CHANNEL_READABLE);
            requests.push(read(server).unwrap().0);
            write(server, &[0, 0, 0, 0, b'e'], &[]).unwrap();
        }
        // Backwards, so that every reply but the last is received by another caller.
        requests.into_iter().rev().for_each(|request| write(server, &request, &[]).unwrap());
        server
    });
    let callers: Vec<_> = (0..calls as u8)
        .map(|number| {
            thread::spawn(move || {
                let reply = call(client, &[0, 0, 0, 0, number], ZX_TIME_INFINITE).unwrap();
                assert_eq!(reply[4..], [number]);
                assert_ne!(reply[3] & 0x80, 0, "the kernel's identifiers have the top bit set");
            })
        })
        .collect();
    // Meanwhile a reader gets the events, through a port as an executor would.
    let port = port();
    for _ in 0..calls {
        loop {
            wait_async(client, port, 1, ZX_CHANNEL_READABLE, 0);
            packet(port);
            match read(client) {
                Ok((bytes, _)) => break assert_eq!(bytes, [0, 0, 0, 0, b'e']),
                Err(status) => assert_eq!(status, ZX_ERR_SHOULD_WAIT),
            }
        }
    }
    callers.into_iter().for_each(|caller| caller.join().unwrap());
    let server = server_thread.join().unwrap();
    [client, server, port].into_iter().for_each(close);
}

#[test]
fn a_call_ends_with_its_deadline_or_its_peer() {
    let (client, server) = channel();
    assert_eq!(call(client, b"abc", ZX_TIME_INFINITE), Err(ZX_ERR_INVALID_ARGS));
    assert_eq!(call(client, b"abcd", soon()), Err(ZX_ERR_TIMED_OUT));
    // The late reply is an ordinary message.
    let (request, _) = read(server).unwrap();
    write(server, &request, &[]).unwrap();
    assert_eq!(read(client).unwrap().0, request);
    let caller = thread::spawn(move || call(client, b"abcd", ZX_TIME_INFINITE));
    wait(server, ZX_CHANNEL_READABLE);
    close(server);
    assert_eq!(caller.join().unwrap(), Err(ZX_ERR_PEER_CLOSED));
    close(client);
}
