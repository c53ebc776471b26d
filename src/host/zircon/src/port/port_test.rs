//! Ports, asynchronous waits and events within one process.

use crate::testing::*;
use crate::*;
use fuchsia_zircon_types::*;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

fn queue(port: zx_handle_t, key: u64) -> zx_status_t {
    let packet = zx_port_packet_t { key, union: [9; 32], ..Default::default() };
    // SAFETY: the pointer is to a local.
    unsafe { zx_port_queue(port, &packet) }
}

fn cancel(port: zx_handle_t, source: zx_handle_t, key: u64) -> zx_status_t {
    // SAFETY: always safe.
    unsafe { zx_port_cancel(port, source, key) }
}

#[test]
fn user_packets_come_in_order_and_are_bounded() {
    let port = port();
    assert_eq!(packet_until(port, 0), Err(ZX_ERR_TIMED_OUT));
    assert_eq!(packet_until(port, soon()), Err(ZX_ERR_TIMED_OUT));
    let accepted = (0..).take_while(|&key| queue(port, key) == ZX_OK).count() as u64;
    assert_eq!((accepted, queue(port, 0)), (2048, ZX_ERR_SHOULD_WAIT));
    for key in 0..accepted {
        let packet = packet(port);
        assert_eq!((packet.key, packet.union), (key, [9; 32]));
    }
    assert_eq!(packet_until(port, 0), Err(ZX_ERR_TIMED_OUT));
    close(port);
}

#[test]
fn every_waiting_thread_gets_its_packet() {
    let port = port();
    let threads: Vec<_> = (0..4).map(|_| thread::spawn(move || packet(port).key)).collect();
    (0..4).for_each(|key| assert_eq!(queue(port, key), ZX_OK));
    let mut keys: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    keys.sort_unstable();
    assert_eq!(keys, [0, 1, 2, 3]);
    close(port);
}

#[test]
fn a_wait_reports_once_and_then_again_when_asked() {
    let port = port();
    let (a, b) = channel();
    wait_async(b, port, 1, ZX_CHANNEL_READABLE | ZX_CHANNEL_PEER_CLOSED, 0);
    assert_eq!(packet_until(port, 0), Err(ZX_ERR_TIMED_OUT));
    write(a, b"x", &[]).unwrap();
    let first = packet(port);
    assert_eq!((first.key, observed(&first) & ZX_CHANNEL_READABLE), (1, ZX_CHANNEL_READABLE));
    write(a, b"y", &[]).unwrap();
    assert_eq!(packet_until(port, 0), Err(ZX_ERR_TIMED_OUT));
    // Still readable: a new wait reports at once.
    wait_async(b, port, 2, ZX_CHANNEL_READABLE, 0);
    assert_eq!(packet(port).key, 2);
    read(b).unwrap();
    read(b).unwrap();
    wait_async(b, port, 3, ZX_CHANNEL_READABLE, 0);
    wait_async(b, port, 4, ZX_CHANNEL_PEER_CLOSED, 0);
    assert_eq!(packet_until(port, 0), Err(ZX_ERR_TIMED_OUT));
    close(a);
    let last = packet(port);
    assert_eq!((last.key, observed(&last)), (4, ZX_CHANNEL_PEER_CLOSED));
    assert_eq!(packet_until(port, 0), Err(ZX_ERR_TIMED_OUT));
    close(b);
    close(port);
}

#[test]
fn what_nobody_waits_for_is_not_reported() {
    let port = port();
    let (a, b) = channel();
    let signals = ZX_CHANNEL_READABLE | ZX_CHANNEL_PEER_CLOSED;
    for round in 0..3 {
        wait_async(b, port, round, signals, 0);
        write(a, b"x", &[]).unwrap();
        assert_eq!(packet(port).key, round);
        // It is not read at once, and another one comes.
        assert_eq!(packet_until(port, soon()), Err(ZX_ERR_TIMED_OUT));
        write(a, b"y", &[]).unwrap();
        assert_eq!(packet_until(port, soon()), Err(ZX_ERR_TIMED_OUT));
        wait_async(b, port, round + 10, signals, 0);
        assert_eq!(packet(port).key, round + 10);
        read(b).unwrap();
        read(b).unwrap();
    }
    close(a);
    assert_eq!(packet_until(port, soon()), Err(ZX_ERR_TIMED_OUT));
    wait_async(b, port, 20, signals, 0);
    assert_eq!(packet(port).key, 20);
    close(b);
    close(port);
}

#[test]
fn threads_take_turns_at_a_channel() {
    const MESSAGES: usize = 300;
    const END: u64 = 0;
    let port = port();
    let (a, b) = channel();
    let seen = AtomicUsize::new(0);
    wait_async(b, port, 1, ZX_CHANNEL_READABLE, 0);
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while packet(port).key != END {
                    while read(b).is_ok() {
                        seen.fetch_add(1, Ordering::SeqCst);
                    }
                    wait_async(b, port, 1, ZX_CHANNEL_READABLE, 0);
                }
            });
        }
        for _ in 0..MESSAGES {
            write(a, b"x", &[]).unwrap();
        }
        while seen.load(Ordering::SeqCst) < MESSAGES {
            thread::yield_now();
        }
        (0..3).for_each(|_| assert_eq!(queue(port, END), ZX_OK));
    });
    [a, b, port].into_iter().for_each(close);
}

#[test]
fn several_waits_on_one_object_are_independent() {
    let port = port();
    let event = event();
    wait_async(event, port, 1, ZX_EVENT_SIGNALED, 0);
    wait_async(event, port, 2, ZX_USER_SIGNAL_0, 0);
    wait_async(event, port, 3, ZX_USER_SIGNAL_0 | ZX_USER_SIGNAL_7, 0);
    signal(event, 0, ZX_USER_SIGNAL_7);
    assert_eq!(packet(port).key, 3);
    signal(event, 0, ZX_USER_SIGNAL_0);
    let second = packet(port);
    assert_eq!((second.key, observed(&second)), (2, ZX_USER_SIGNAL_0 | ZX_USER_SIGNAL_7));
    assert_eq!(packet_until(port, 0), Err(ZX_ERR_TIMED_OUT));
    signal(event, ZX_USER_SIGNAL_ALL, ZX_EVENT_SIGNALED);
    assert_eq!(packet(port).key, 1);
    close(event);
    close(port);
}

#[test]
fn a_pulse_is_seen_though_it_is_over() {
    let port = port();
    let event = event();
    wait_async(event, port, 1, ZX_EVENT_SIGNALED, 0);
    signal(event, 0, ZX_EVENT_SIGNALED);
    signal(event, ZX_EVENT_SIGNALED, 0);
    assert_eq!(observed(&packet(port)), ZX_EVENT_SIGNALED);
    wait_async(event, port, 2, ZX_EVENT_SIGNALED, 0);
    assert_eq!(packet_until(port, 0), Err(ZX_ERR_TIMED_OUT));
    close(event);
    close(port);
}

#[test]
fn edge_waits_ignore_what_is_active_already() {
    let port = port();
    let event = event();
    signal(event, 0, ZX_EVENT_SIGNALED);
    wait_async(event, port, 1, ZX_EVENT_SIGNALED, ZX_WAIT_ASYNC_EDGE);
    signal(event, 0, ZX_EVENT_SIGNALED);
    assert_eq!(packet_until(port, 0), Err(ZX_ERR_TIMED_OUT));
    signal(event, ZX_EVENT_SIGNALED, 0);
    signal(event, 0, ZX_EVENT_SIGNALED);
    assert_eq!(packet(port).key, 1);
    let (a, b) = channel();
    write(a, b"old", &[]).unwrap();
    wait_async(b, port, 2, ZX_CHANNEL_READABLE, ZX_WAIT_ASYNC_EDGE | ZX_WAIT_ASYNC_TIMESTAMP);
    assert_eq!(packet_until(port, 0), Err(ZX_ERR_TIMED_OUT));
    read(b).unwrap();
    assert_eq!(read(b), Err(ZX_ERR_SHOULD_WAIT));
    let before = system::now();
    write(a, b"new", &[]).unwrap();
    let edge = packet(port);
    let timestamp = i64::from_ne_bytes(edge.union[16..24].try_into().unwrap());
    assert!(edge.key == 2 && (before..=system::now()).contains(&timestamp));
    [a, b, event, port].into_iter().for_each(close);
}

#[test]
fn cancel_removes_waits_and_packets_of_one_key() {
    let port = port();
    let (one, two) = (event(), event());
    wait_async(one, port, 1, ZX_EVENT_SIGNALED, 0);
    wait_async(one, port, 2, ZX_EVENT_SIGNALED, 0);
    wait_async(two, port, 1, ZX_EVENT_SIGNALED, 0);
    assert_eq!(cancel(port, one, 1), ZX_OK);
    assert_eq!(cancel(port, one, 1), ZX_ERR_NOT_FOUND);
    signal(one, 0, ZX_EVENT_SIGNALED);
    signal(two, 0, ZX_EVENT_SIGNALED);
    let mut keys = [packet(port).key, packet(port).key];
    keys.sort_unstable();
    assert_eq!(keys, [1, 2]);
    // Ready at once, so the packet is in the queue already.
    wait_async(one, port, 5, ZX_EVENT_SIGNALED, 0);
    assert_eq!(cancel(port, one, 5), ZX_OK);
    assert_eq!(packet_until(port, 0), Err(ZX_ERR_TIMED_OUT));
    [one, two, port].into_iter().for_each(close);
}

#[test]
fn closing_a_handle_ends_its_waits_and_no_others() {
    let port = port();
    let event = event();
    let mut other = 0;
    // SAFETY: the pointer is to a local.
    assert_eq!(unsafe { zx_handle_duplicate(event, ZX_RIGHT_SAME_RIGHTS, &mut other) }, ZX_OK);
    wait_async(event, port, 1, ZX_EVENT_SIGNALED, 0);
    wait_async(other, port, 2, ZX_EVENT_SIGNALED, 0);
    close(event);
    signal(other, 0, ZX_EVENT_SIGNALED);
    assert_eq!(packet(port).key, 2);
    assert_eq!(packet_until(port, 0), Err(ZX_ERR_TIMED_OUT));
    // A channel that lives on elsewhere does not report here any more.
    let (a, b) = channel();
    let (carrier, receiver) = channel();
    wait_async(b, port, 3, ZX_CHANNEL_READABLE, 0);
    write(carrier, b"", &[b]).unwrap();
    write(a, b"x", &[]).unwrap();
    assert_eq!(packet_until(port, soon()), Err(ZX_ERR_TIMED_OUT));
    let (_, handles) = read(receiver).unwrap();
    assert_eq!(read(handles[0]).unwrap().0, b"x");
    handles.into_iter().chain([a, carrier, receiver, other, port]).for_each(close);
}

#[test]
fn rights_and_types_are_checked() {
    let (port, event) = (port(), event());
    // SAFETY: always safe.
    let wait = |handle, port, options| unsafe {
        zx_object_wait_async(handle, port, 0, ZX_EVENT_SIGNALED, options)
    };
    assert_eq!(wait(event, event, 0), ZX_ERR_WRONG_TYPE);
    assert_eq!(wait(port, port, 0), ZX_ERR_ACCESS_DENIED);
    assert_eq!(wait(event, port, 4), ZX_ERR_INVALID_ARGS);
    assert_eq!(wait(0x7fff_ffff, port, 0), ZX_ERR_BAD_HANDLE);
    // SAFETY: always safe.
    assert_eq!(unsafe { zx_object_signal(event, 0, ZX_CHANNEL_READABLE) }, ZX_ERR_INVALID_ARGS);
    close(event);
    close(port);
}

#[test]
fn eventpairs_signal_each_other() {
    let (a, b) = pair(zx_eventpair_create, 0);
    // SAFETY: always safe.
    let signal_peer = |handle, set| unsafe { zx_object_signal_peer(handle, 0, set) };
    assert_eq!(signal_peer(a, ZX_USER_SIGNAL_3), ZX_OK);
    assert_eq!((signals(a), signals(b)), (0, ZX_USER_SIGNAL_3));
    signal(a, 0, ZX_EVENTPAIR_SIGNALED);
    assert_eq!((signals(a), signals(b)), (ZX_EVENTPAIR_SIGNALED, ZX_USER_SIGNAL_3));
    assert_eq!(basic_info(a).related_koid, basic_info(b).koid);
    let port = port();
    wait_async(b, port, 1, ZX_EVENTPAIR_PEER_CLOSED, 0);
    let waiter = thread::spawn(move || wait(b, ZX_EVENTPAIR_PEER_CLOSED));
    close(a);
    assert_eq!(packet(port).key, 1);
    assert_eq!(waiter.join().unwrap(), ZX_EVENTPAIR_PEER_CLOSED | ZX_USER_SIGNAL_3);
    assert_eq!(signal_peer(b, ZX_USER_SIGNAL_0), ZX_ERR_PEER_CLOSED);
    close(b);
    close(port);
}

#[test]
fn wait_many_sees_any_of_its_objects() {
    let event = event();
    let (a, b) = channel();
    let mut timer = 0;
    // SAFETY: the pointer is to a local.
    assert_eq!(unsafe { zx_timer_create(0, ZX_CLOCK_MONOTONIC, &mut timer) }, ZX_OK);
    let item = |handle, waitfor| zx_wait_item_t { handle, waitfor, pending: 0 };
    let items = [
        item(event, ZX_EVENT_SIGNALED),
        item(b, ZX_CHANNEL_READABLE),
        item(timer, ZX_TIMER_SIGNALED),
    ];
    let wait_many = move |deadline| {
        let mut items = items;
        // SAFETY: the pointer is to a local array of this length.
        let status = unsafe { zx_object_wait_many(items.as_mut_ptr(), 3, deadline) };
        (status, items.map(|item| item.pending & item.waitfor))
    };
    assert_eq!(wait_many(soon()), (ZX_ERR_TIMED_OUT, [0; 3]));
    let waiter = thread::spawn(move || wait_many(ZX_TIME_INFINITE));
    signal(event, 0, ZX_EVENT_SIGNALED);
    assert_eq!(waiter.join().unwrap(), (ZX_OK, [ZX_EVENT_SIGNALED, 0, 0]));
    signal(event, ZX_EVENT_SIGNALED, 0);
    let waiter = thread::spawn(move || wait_many(ZX_TIME_INFINITE));
    write(a, b"x", &[]).unwrap();
    assert_eq!(waiter.join().unwrap(), (ZX_OK, [0, ZX_CHANNEL_READABLE, 0]));
    read(b).unwrap();
    // SAFETY: always safe.
    assert_eq!(unsafe { zx_timer_set(timer, system::now() + 1_000_000, 0) }, ZX_OK);
    assert_eq!(wait_many(ZX_TIME_INFINITE), (ZX_OK, [0, 0, ZX_TIMER_SIGNALED]));
    // SAFETY: always safe.
    assert_eq!(unsafe { zx_timer_cancel(timer) }, ZX_OK);
    assert_eq!(wait_many(0), (ZX_ERR_TIMED_OUT, [0; 3]));
    [event, a, b, timer].into_iter().for_each(close);
}

#[test]
fn user_signals_of_other_objects_work_within_the_process() {
    let (a, b) = channel();
    let port = port();
    wait_async(a, port, 1, ZX_USER_SIGNAL_1, 0);
    let waiter = thread::spawn(move || wait(a, ZX_USER_SIGNAL_1));
    signal(a, 0, ZX_USER_SIGNAL_1);
    assert_eq!(packet(port).key, 1);
    assert_ne!(waiter.join().unwrap() & ZX_USER_SIGNAL_1, 0);
    [a, b, port].into_iter().for_each(close);
}

/// Another handle to the port, as if it came from another process.
fn shared(port: zx_handle_t) -> zx_handle_t {
    let mut copy = 0;
    // SAFETY: the pointer is to a local.
    assert_eq!(unsafe { zx_handle_duplicate(port, ZX_RIGHT_SAME_RIGHTS, &mut copy) }, ZX_OK);
    let (here, there) = channel();
    write(here, b"", &[copy]).unwrap();
    let (_, handles) = read(there).unwrap();
    [here, there].into_iter().for_each(close);
    assert_eq!(basic_info(handles[0]).koid, basic_info(port).koid);
    handles[0]
}

#[test]
fn a_port_that_was_sent_is_one_port() {
    let (here, event) = (port(), event());
    assert_eq!((queue(here, 1), queue(here, 2)), (ZX_OK, ZX_OK));
    wait_async(event, here, 10, ZX_USER_SIGNAL_0, 0);
    let there = shared(here);
    assert_eq!((queue(there, 3), queue(here, 4)), (ZX_OK, ZX_OK));
    assert_eq!([here, there, here, there].map(|port| packet(port).key), [1, 2, 3, 4]);
    // Waits from before and after, of either side, for whoever asks.
    wait_async(event, here, 11, ZX_USER_SIGNAL_1, 0);
    wait_async(event, there, 12, ZX_USER_SIGNAL_2, 0);
    for (signal_bit, key) in
        [(ZX_USER_SIGNAL_0, 10), (ZX_USER_SIGNAL_2, 12), (ZX_USER_SIGNAL_1, 11)]
    {
        signal(event, 0, signal_bit);
        let packet = packet(if key == 12 { here } else { there });
        assert_eq!((packet.key, observed(&packet) & signal_bit), (key, signal_bit));
    }
    wait_async(event, there, 13, ZX_USER_SIGNAL_3, 0);
    assert_eq!(cancel(there, event, 13), ZX_OK);
    assert_eq!(packet_until(here, soon()), Err(ZX_ERR_TIMED_OUT));
    // The one that is left goes on.
    close(here);
    assert_eq!(queue(there, 5), ZX_OK);
    assert_eq!(packet(there).key, 5);
    [there, event].into_iter().for_each(close);
}

#[test]
fn threads_that_wait_when_a_port_is_sent_get_its_packets() {
    let here = port();
    let threads: Vec<_> = (0..4).map(|_| thread::spawn(move || packet(here).key)).collect();
    let there = shared(here);
    (0..4).for_each(|key| assert_eq!(queue(there, key), ZX_OK));
    let mut keys: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    keys.sort_unstable();
    assert_eq!(keys, [0, 1, 2, 3]);
    [here, there].into_iter().for_each(close);
}

#[test]
fn threads_return_when_the_last_handle_is_closed() {
    for sent in [false, true] {
        let here = port();
        let there = sent.then(|| shared(here));
        let waiting = std::sync::Arc::new(std::sync::Barrier::new(5));
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let waiting = waiting.clone();
                thread::spawn(move || {
                    waiting.wait();
                    packet_until(here, ZX_TIME_INFINITE).unwrap_err()
                })
            })
            .collect();
        waiting.wait();
        close(here);
        for thread in threads {
            // Who came too late finds no handle.
            assert!(matches!(thread.join().unwrap(), ZX_ERR_CANCELED | ZX_ERR_BAD_HANDLE));
        }
        there.into_iter().for_each(close);
    }
}

#[test]
fn what_a_port_that_was_sent_holds_is_bounded_and_not_lost() {
    let here = port();
    let before = (0..).take_while(|&key| queue(here, key) == ZX_OK).count() as u64;
    // The only handle, so that nobody here is left to send on what has no room yet but the port itself.
    let (near, far) = channel();
    write(near, b"", &[here]).unwrap();
    let there = read(far).unwrap().1[0];
    (0..before).for_each(|key| assert_eq!(packet(there).key, key));
    let after = (0..).take_while(|&key| queue(there, key) == ZX_OK).count() as u64;
    assert!(after >= 100, "{after}");
    (0..after).for_each(|key| assert_eq!(packet(there).key, key));
    assert_eq!(packet_until(there, 0), Err(ZX_ERR_TIMED_OUT));
    [near, far, there].into_iter().for_each(close);
}
