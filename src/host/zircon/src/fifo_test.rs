//! FIFOs within one process.

use crate::testing::*;
use crate::*;
use fuchsia_zircon_types::*;

fn create(count: usize, size: usize) -> Result<(zx_handle_t, zx_handle_t), zx_status_t> {
    let (mut first, mut second) = (0, 0);
    // SAFETY: the pointers are to locals.
    check(unsafe { zx_fifo_create(count, size, 0, &mut first, &mut second) })?;
    Ok((first, second))
}

fn put(fifo: zx_handle_t, elements: &[[u8; 3]]) -> Result<usize, zx_status_t> {
    let mut actual = 0;
    let data = elements.as_ptr().cast();
    // SAFETY: the pointers are to a slice of this length and to a local.
    check(unsafe { zx_fifo_write(fifo, 3, data, elements.len(), &mut actual) })?;
    Ok(actual)
}

fn get(fifo: zx_handle_t, count: usize) -> Result<Vec<[u8; 3]>, zx_status_t> {
    let mut elements = vec![[0; 3]; count];
    let mut actual = 0;
    let data = elements.as_mut_ptr().cast();
    // SAFETY: the pointers are to a buffer of this length and to a local.
    check(unsafe { zx_fifo_read(fifo, 3, data, count, &mut actual) })?;
    elements.truncate(actual);
    Ok(elements)
}

#[test]
fn shapes_are_checked() {
    for (count, size) in [(0, 1), (1, 0), (4097, 1), (1, 4097), (1025, 4), (usize::MAX, 2)] {
        assert_eq!(create(count, size), Err(ZX_ERR_OUT_OF_RANGE), "{count} of {size}");
    }
    let (a, b) = create(1024, 4).unwrap();
    let info = basic_info(a);
    assert_eq!((info.type_, info.rights), (ZX_OBJ_TYPE_FIFO, rights::FIFO));
    assert_eq!(info.related_koid, basic_info(b).koid);
    assert_eq!(put(a, &[[0; 3]]), Err(ZX_ERR_OUT_OF_RANGE), "the size of an element is another");
    [a, b].into_iter().for_each(close);
}

#[test]
fn elements_keep_their_order_and_number() {
    let (a, b) = create(5, 3).unwrap();
    assert_eq!(get(b, 1), Err(ZX_ERR_SHOULD_WAIT));
    assert_eq!(put(a, &[]), Err(ZX_ERR_OUT_OF_RANGE));
    let (mut sent, mut received) = (0_u8, 0_u8);
    let element = |number: u8| [number, !number, 7];
    // Runs of all lengths, so that the ring wraps at every offset.
    for round in 0..200 {
        let run: Vec<_> = (0..1 + round % 7).map(|step| element(sent.wrapping_add(step))).collect();
        match put(a, &run) {
            Ok(count) => sent = sent.wrapping_add(count as u8),
            Err(status) => assert_eq!(status, ZX_ERR_SHOULD_WAIT),
        }
        for got in get(b, usize::from(1 + round % 4)).unwrap() {
            assert_eq!(got, element(received));
            received = received.wrapping_add(1);
        }
    }
    // The other direction is another ring.
    assert_eq!(put(b, &[element(1); 9]), Ok(5));
    assert_eq!(put(b, &[element(1)]), Err(ZX_ERR_SHOULD_WAIT));
    assert_eq!(get(a, 9).unwrap().len(), 5);
    [a, b].into_iter().for_each(close);
}

#[test]
fn signals_follow_the_rings() {
    let (a, b) = create(2, 3).unwrap();
    assert_eq!(signals(a), ZX_FIFO_WRITABLE);
    put(a, &[[1; 3]]).unwrap();
    assert_eq!(signals(b), ZX_FIFO_READABLE | ZX_FIFO_WRITABLE);
    put(a, &[[2; 3]]).unwrap();
    assert_eq!(signals(a), 0);
    let port = port();
    wait_async(a, port, 1, ZX_FIFO_WRITABLE, 0);
    assert_eq!(packet_until(port, soon()), Err(ZX_ERR_TIMED_OUT));
    get(b, 1).unwrap();
    assert_eq!(packet(port).key, 1);
    wait_async(b, port, 2, ZX_FIFO_PEER_CLOSED, 0);
    close(a);
    assert_eq!(observed(&packet(port)), ZX_FIFO_READABLE | ZX_FIFO_PEER_CLOSED);
    assert_eq!(put(b, &[[3; 3]]), Err(ZX_ERR_PEER_CLOSED));
    assert_eq!(get(b, 2), Ok(vec![[2; 3]]));
    assert_eq!(get(b, 2), Err(ZX_ERR_PEER_CLOSED));
    assert_eq!(signals(b), ZX_FIFO_PEER_CLOSED);
    [b, port].into_iter().for_each(close);
}

#[test]
fn an_edge_is_each_time_the_ring_was_empty() {
    let (a, b) = create(2, 3).unwrap();
    let port = port();
    put(a, &[[1; 3]]).unwrap();
    wait_async(b, port, 1, ZX_FIFO_READABLE, ZX_WAIT_ASYNC_EDGE);
    put(a, &[[2; 3]]).unwrap();
    assert_eq!(packet_until(port, soon()), Err(ZX_ERR_TIMED_OUT));
    get(b, 2).unwrap();
    put(a, &[[3; 3]]).unwrap();
    assert_eq!(packet(port).key, 1);
    [a, b, port].into_iter().for_each(close);
}

#[test]
fn user_signals_reach_the_peer() {
    let (a, b) = create(2, 3).unwrap();
    check_user_signals(a, b);
}

#[test]
fn user_signals_reach_the_peer_of_a_socket() {
    let (a, b) = pair(zx_socket_create, ZX_SOCKET_STREAM);
    check_user_signals(a, b);
    // Also when an endpoint has been sent, before or after the first signal.
    let (carrier, receiver) = channel();
    for signal_first in [false, true] {
        let (a, b) = pair(zx_socket_create, ZX_SOCKET_DATAGRAM);
        if signal_first {
            signal(b, 0, ZX_USER_SIGNAL_1);
        }
        write(carrier, b"", &[b]).unwrap();
        let b = read(receiver).unwrap().1[0];
        assert_eq!(signals(b) & ZX_USER_SIGNAL_1 != 0, signal_first);
        check_user_signals(a, b);
    }
    [carrier, receiver].into_iter().for_each(close);
}

fn check_user_signals(a: zx_handle_t, b: zx_handle_t) {
    let port = port();
    wait_async(b, port, 1, ZX_USER_SIGNAL_4, 0);
    // SAFETY: always safe.
    assert_eq!(unsafe { zx_object_signal_peer(a, 0, ZX_USER_SIGNAL_4) }, ZX_OK);
    assert_ne!(observed(&packet(port)) & ZX_USER_SIGNAL_4, 0);
    assert_eq!(signals(a) & ZX_USER_SIGNAL_ALL, 0);
    // SAFETY: always safe.
    assert_eq!(unsafe { zx_object_signal_peer(a, 0, ZX_FIFO_READABLE) }, ZX_ERR_INVALID_ARGS);
    close(b);
    // SAFETY: always safe.
    assert_eq!(unsafe { zx_object_signal_peer(a, 0, ZX_USER_SIGNAL_4) }, ZX_ERR_PEER_CLOSED);
    [a, port].into_iter().for_each(close);
}

#[test]
fn many_threads_lose_and_repeat_nothing() {
    const EACH: u32 = 20_000;
    let (a, b) = create(8, 3).unwrap();
    let writers: Vec<_> = (0..2_u32)
        .map(|writer| {
            std::thread::spawn(move || {
                for number in 0..EACH {
                    let [low, high, ..] = number.to_le_bytes();
                    while put(a, &[[low, high, writer as u8]]) == Err(ZX_ERR_SHOULD_WAIT) {
                        wait(a, ZX_FIFO_WRITABLE);
                    }
                }
            })
        })
        .collect();
    let mut next = [0; 2];
    while next != [EACH; 2] {
        wait(b, ZX_FIFO_READABLE);
        for [low, high, writer] in get(b, 5).unwrap() {
            let expected = &mut next[usize::from(writer)];
            assert_eq!([low, high], expected.to_le_bytes()[..2]);
            *expected += 1;
        }
    }
    writers.into_iter().for_each(|writer| writer.join().unwrap());
    [a, b].into_iter().for_each(close);
}

#[test]
fn rights_are_checked() {
    let (a, b) = create(2, 3).unwrap();
    let mut reader = 0;
    let rights = ZX_RIGHT_READ | ZX_RIGHT_WAIT;
    // SAFETY: the pointer is to a local.
    assert_eq!(unsafe { zx_handle_duplicate(a, rights, &mut reader) }, ZX_OK);
    assert_eq!(put(reader, &[[1; 3]]), Err(ZX_ERR_ACCESS_DENIED));
    assert_eq!(get(reader, 1), Err(ZX_ERR_SHOULD_WAIT));
    let event = event();
    assert_eq!(put(event, &[[1; 3]]), Err(ZX_ERR_WRONG_TYPE));
    [a, b, reader, event].into_iter().for_each(close);
}
