//! User signals of channels within one process.

use crate::testing::*;
use crate::*;
use fuchsia_zircon_types::*;
use std::thread;

const ALL: zx_signals_t = ZX_USER_SIGNAL_ALL;

fn signal_peer(channel: zx_handle_t, clear: zx_signals_t, set: zx_signals_t) {
    // SAFETY: always safe.
    assert_eq!(unsafe { zx_object_signal_peer(channel, clear, set) }, ZX_OK);
}

/// The endpoint as it is after it was sent.
fn sent(channel_end: zx_handle_t) -> zx_handle_t {
    let (here, there) = channel();
    write(here, b"", &[channel_end]).unwrap();
    let (_, handles) = read(there).unwrap();
    close(here);
    close(there);
    handles[0]
}

#[test]
fn endpoints_signal_each_other_and_themselves() {
    let (a, b) = channel();
    signal(b, 0, ZX_USER_SIGNAL_7);
    signal_peer(a, 0, ZX_USER_SIGNAL_0 | ZX_USER_SIGNAL_1);
    assert_eq!(
        signals(b),
        ZX_CHANNEL_WRITABLE | ZX_USER_SIGNAL_0 | ZX_USER_SIGNAL_1 | ZX_USER_SIGNAL_7
    );
    assert_eq!(signals(a), ZX_CHANNEL_WRITABLE);
    signal_peer(a, ZX_USER_SIGNAL_0, ZX_USER_SIGNAL_2);
    signal(b, ZX_USER_SIGNAL_1, ZX_USER_SIGNAL_3);
    assert_eq!(signals(b) & ALL, ZX_USER_SIGNAL_2 | ZX_USER_SIGNAL_3 | ZX_USER_SIGNAL_7);
    signal_peer(b, 0, ZX_USER_SIGNAL_4);
    assert_eq!(signals(a) & ALL, ZX_USER_SIGNAL_4);
    assert_eq!(read(a), Err(ZX_ERR_SHOULD_WAIT));
    close(a);
    assert_eq!(signals(b) & ALL, ZX_USER_SIGNAL_2 | ZX_USER_SIGNAL_3 | ZX_USER_SIGNAL_7);
    // SAFETY: always safe.
    assert_eq!(unsafe { zx_object_signal_peer(b, 0, ZX_USER_SIGNAL_0) }, ZX_ERR_PEER_CLOSED);
    close(b);
}

#[test]
fn the_first_signal_of_a_peer_may_clear() {
    let (a, b) = channel();
    signal(b, 0, ZX_USER_SIGNAL_0 | ZX_USER_SIGNAL_1);
    signal_peer(a, ZX_USER_SIGNAL_0, 0);
    assert_eq!(signals(b) & ALL, ZX_USER_SIGNAL_1);
    [a, b].into_iter().for_each(close);
}

#[test]
fn every_kind_of_wait_sees_them() {
    let (a, b) = channel();
    let port = port();
    // Twice, since the first signal comes by another way than the others.
    for round in 0..2 {
        wait_async(b, port, round, ZX_USER_SIGNAL_0, 0);
        let item = zx_wait_item_t { handle: b, waitfor: ZX_USER_SIGNAL_0, pending: 0 };
        let waiters = [
            thread::spawn(move || wait(b, ZX_USER_SIGNAL_0)),
            thread::spawn(move || {
                let mut items = [item];
                // SAFETY: the pointer is to a local array of this length.
                let status =
                    unsafe { zx_object_wait_many(items.as_mut_ptr(), 1, ZX_TIME_INFINITE) };
                assert_eq!(status, ZX_OK);
                items[0].pending
            }),
        ];
        signal_peer(a, 0, ZX_USER_SIGNAL_0);
        let packet = packet(port);
        assert_eq!((packet.key, observed(&packet) & ALL), (round, ZX_USER_SIGNAL_0));
        for waiter in waiters {
            assert_eq!(waiter.join().unwrap() & ALL, ZX_USER_SIGNAL_0);
        }
        signal(b, ZX_USER_SIGNAL_0, 0);
        wait_async(b, port, 9, ZX_USER_SIGNAL_0, 0);
        assert_eq!(packet_until(port, 0), Err(ZX_ERR_TIMED_OUT));
        // SAFETY: always safe.
        assert_eq!(unsafe { zx_port_cancel(port, b, 9) }, ZX_OK);
    }
    [a, b, port].into_iter().for_each(close);
}

#[test]
fn they_overtake_messages_and_disturb_no_reader() {
    let (a, b) = channel();
    let (readers, others) = (port(), port());
    wait_async(b, readers, 1, ZX_CHANNEL_READABLE, 0);
    wait_async(b, others, 2, ZX_USER_SIGNAL_0, 0);
    let reader = thread::spawn(move || wait(b, ZX_CHANNEL_READABLE));
    write(a, b"one", &[event()]).unwrap();
    signal_peer(a, 0, ZX_USER_SIGNAL_0);
    write(a, b"two", &[]).unwrap();
    assert_eq!(packet(others).key, 2);
    assert_eq!(packet(readers).key, 1);
    assert_ne!(reader.join().unwrap() & ZX_CHANNEL_READABLE, 0);
    let (bytes, handles) = read(b).unwrap();
    assert_eq!((bytes.as_slice(), handles.len()), (b"one".as_slice(), 1));
    assert_eq!(read(b).unwrap().0, b"two");
    assert_eq!(read(b), Err(ZX_ERR_SHOULD_WAIT));
    wait_async(b, readers, 3, ZX_CHANNEL_READABLE, 0);
    assert_eq!(packet_until(readers, 0), Err(ZX_ERR_TIMED_OUT));
    write(a, b"three", &[]).unwrap();
    assert_eq!(packet(readers).key, 3);
    [a, b, readers, others, handles[0]].into_iter().for_each(close);
}

#[test]
fn where_user_signals_are_waited_for_nobody_takes_them_for_messages() {
    let (a, b) = channel();
    let (port, others) = (port(), port());
    wait_async(b, others, 1, ZX_USER_SIGNAL_0, 0);
    wait_async(b, port, 2, ZX_CHANNEL_READABLE, 0);
    signal_peer(a, 0, ZX_USER_SIGNAL_0);
    let none = wait_until(b, ZX_CHANNEL_READABLE, soon()).map_err(|(status, _)| status);
    assert_eq!(none, Err(ZX_ERR_TIMED_OUT));
    assert_eq!(packet_until(port, soon()), Err(ZX_ERR_TIMED_OUT));
    assert_eq!(packet(others).key, 1);
    write(a, b"x", &[]).unwrap();
    assert_eq!(packet(port).key, 2);
    assert_eq!(read(b).unwrap().0, b"x");
    [a, b, port, others].into_iter().for_each(close);
}

#[test]
fn readers_pass_over_what_brings_them() {
    for sizes in [(65536, 64), (8, 0)] {
        let (a, b) = channel();
        signal_peer(a, 0, ZX_USER_SIGNAL_0);
        assert_eq!(read_sized(b, sizes.0, sizes.1), Err(ZX_ERR_SHOULD_WAIT));
        signal_peer(b, 0, ZX_USER_SIGNAL_1);
        write(b, b"first", &[]).unwrap();
        write(b, b"second", &[]).unwrap();
        assert_eq!(read_sized(a, sizes.0, sizes.1).unwrap().0, b"first");
        assert_eq!(read_sized(a, sizes.0, sizes.1).unwrap().0, b"second");
        assert_eq!((signals(a) & ALL, signals(b) & ALL), (ZX_USER_SIGNAL_1, ZX_USER_SIGNAL_0));
        [a, b].into_iter().for_each(close);
    }
}

#[test]
fn a_call_passes_over_them_and_takes_them_in() {
    let (a, b) = channel();
    let port = port();
    wait_async(a, port, 1, ZX_USER_SIGNAL_5, 0);
    let caller = thread::spawn(move || call(a, b"\0\0\0\0ask", ZX_TIME_INFINITE).unwrap());
    wait(b, ZX_CHANNEL_READABLE);
    let (question, _) = read(b).unwrap();
    signal_peer(b, 0, ZX_USER_SIGNAL_5);
    assert_eq!(packet(port).key, 1);
    write(b, &question, &[]).unwrap();
    assert_eq!(caller.join().unwrap()[4..], *b"ask");
    [a, b, port].into_iter().for_each(close);
}

#[test]
fn they_travel_with_either_endpoint() {
    let (mut a, mut b) = channel();
    signal(b, 0, ZX_USER_SIGNAL_0);
    // Its own only; then with the peer's on the way; then with everything known, and with messages.
    b = sent(b);
    assert_eq!(signals(b) & ALL, ZX_USER_SIGNAL_0);
    signal_peer(a, 0, ZX_USER_SIGNAL_1);
    b = sent(b);
    assert_eq!(signals(b) & ALL, ZX_USER_SIGNAL_0 | ZX_USER_SIGNAL_1);
    write(a, b"one", &[]).unwrap();
    write(a, b"two", &[]).unwrap();
    assert_eq!(read_sized(b, 1, 0), Err(ZX_ERR_BUFFER_TOO_SMALL));
    b = sent(b);
    a = sent(a);
    signal_peer(a, ZX_USER_SIGNAL_0, ZX_USER_SIGNAL_2);
    signal_peer(b, 0, ZX_USER_SIGNAL_3);
    let waiter = thread::spawn(move || wait(b, ZX_USER_SIGNAL_4));
    signal_peer(a, 0, ZX_USER_SIGNAL_4);
    assert_eq!(
        waiter.join().unwrap() & ALL,
        ZX_USER_SIGNAL_1 | ZX_USER_SIGNAL_2 | ZX_USER_SIGNAL_4
    );
    assert_eq!(signals(a) & ALL, ZX_USER_SIGNAL_3);
    assert_eq!(read(b).unwrap().0, b"one");
    assert_eq!(read(b).unwrap().0, b"two");
    [a, b].into_iter().for_each(close);
}

#[test]
fn they_wait_their_turn_behind_messages_that_wait_for_room() {
    let (a, b) = channel();
    let mut written = 0_usize;
    // More than any socket holds.
    while written < 200 {
        write(a, &[0; 65536], &[]).unwrap();
        written += 1;
    }
    signal_peer(a, 0, ZX_USER_SIGNAL_6);
    wait(b, ZX_USER_SIGNAL_6);
    for _ in 0..written {
        wait(b, ZX_CHANNEL_READABLE);
        assert_eq!(read(b).unwrap().0.len(), 65536);
    }
    assert_eq!(read(b), Err(ZX_ERR_SHOULD_WAIT));
    [a, b].into_iter().for_each(close);
}

#[test]
fn rights_and_signals_are_checked() {
    let (a, b) = channel();
    let mut silent = 0;
    // SAFETY: always safe.
    assert_eq!(unsafe { zx_object_signal_peer(a, 0, ZX_CHANNEL_READABLE) }, ZX_ERR_INVALID_ARGS);
    // SAFETY: always safe.
    assert_eq!(unsafe { zx_object_signal(a, ZX_CHANNEL_WRITABLE, 0) }, ZX_ERR_INVALID_ARGS);
    // SAFETY: the pointer is to a local.
    assert_eq!(unsafe { zx_handle_replace(a, ZX_RIGHT_WAIT, &mut silent) }, ZX_OK);
    // SAFETY: always safe.
    let peer = unsafe { zx_object_signal_peer(silent, 0, ZX_USER_SIGNAL_0) };
    assert_eq!(peer, ZX_ERR_ACCESS_DENIED);
    [silent, b].into_iter().for_each(close);
}
