//! Channels and sockets that are awaited.

use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;
use std::thread;

use fuchsia_async as fasync;
use fuchsia_zircon::{self as zx, AsHandleRef, HandleBased, Peered};
use futures::channel::oneshot;
use futures::{AsyncReadExt, AsyncWriteExt, FutureExt, TryStreamExt};

#[fuchsia_async::run_singlethreaded(test)]
async fn user_signals_of_a_channel_and_its_messages_are_awaited_side_by_side() {
    let (ours, theirs) = zx::Channel::create();
    let ours = fasync::Channel::from_channel(ours);
    for message in [&b"first"[..], b"second"] {
        let mut buf = zx::MessageBuf::new();
        let mut message_comes = Box::pin(ours.recv_msg(&mut buf));
        let mut signal_comes = fasync::OnSignals::new(&ours, zx::Signals::USER_0);
        assert!((&mut message_comes).now_or_never().is_none());
        assert!((&mut signal_comes).now_or_never().is_none());
        theirs.signal_peer(zx::Signals::NONE, zx::Signals::USER_0).expect("it is there");
        let signals = signal_comes.await.expect("it can be waited for");
        assert!(signals.contains(zx::Signals::USER_0));
        assert!((&mut message_comes).now_or_never().is_none());
        theirs.write(message, &mut []).expect("there is room");
        message_comes.await.expect("it comes");
        assert_eq!(buf.bytes(), message);
        ours.signal_handle(zx::Signals::USER_0, zx::Signals::NONE).expect("it is ours");
    }
}

#[fuchsia_async::run_singlethreaded(test)]
async fn a_message_arrives_whether_it_was_there_or_not() {
    let (ours, theirs) = zx::Channel::create();
    let ours = fasync::Channel::from_channel(ours);
    let event = zx::Event::create();
    let koid = event.get_koid();
    theirs.write(b"first", &mut [event.into_handle()]).expect("there is room");
    let mut buf = zx::MessageBuf::new();
    ours.recv_msg(&mut buf).await.expect("it is there");
    assert_eq!(buf.bytes(), b"first");
    assert_eq!(buf.take_handle(0).expect("it came along").get_koid(), koid);

    let writer = thread::spawn(move || {
        theirs.write(b"second", &mut []).expect("there is room");
        theirs.write(b"third", &mut []).expect("there is room");
    });
    for expected in [&b"second"[..], b"third"] {
        let mut buf = zx::MessageBufEtc::new();
        ours.recv_etc_msg(&mut buf).await.expect("it comes");
        assert_eq!(buf.bytes(), expected);
    }
    writer.join().expect("it does not panic");
    assert_eq!(ours.recv_msg(&mut buf).await, Err(zx::Status::PEER_CLOSED));
    assert!(ours.is_closed());
    assert!(ours.on_closed().await.is_ok());
}

#[fuchsia_async::run_singlethreaded(test)]
async fn a_channel_can_be_taken_back_while_waited_for() {
    let (ours, theirs) = zx::Channel::create();
    let ours = fasync::Channel::from_channel(ours);
    {
        let mut buf = zx::MessageBuf::new();
        let mut read = ours.recv_msg(&mut buf);
        assert!(futures::poll!(&mut read).is_pending());
    }
    let ours = fasync::Channel::from_channel(ours.into_zx_channel());
    theirs.write(b"x", &mut []).expect("there is room");
    let mut buf = zx::MessageBuf::new();
    ours.recv_msg(&mut buf).await.expect("it is there");
}

#[fuchsia_async::run_singlethreaded(test)]
async fn who_waits_for_a_message_can_be_woken_without_one() {
    let (ours, theirs) = zx::Channel::create();
    let ours = Rc::new(fasync::Channel::from_channel(ours));
    for _ in 0..2 {
        let (started, starts) = oneshot::channel();
        let mut started = Some(started);
        let channel = ours.clone();
        let mut buf = zx::MessageBuf::new();
        let reader = fasync::Task::local(poll_fn(move |context| {
            assert!(channel.recv_from(context, &mut buf).is_pending());
            match started.take() {
                Some(started) => {
                    started.send(()).expect("somebody waits");
                    Poll::Pending
                }
                None => Poll::Ready(()),
            }
        }));
        starts.await.expect("the reader starts");
        ours.wake_reader();
        reader.await;
    }
    let mut buf = zx::MessageBuf::new();
    // The wait has gone on.
    theirs.write(b"x", &mut []).expect("it is open");
    ours.recv_msg(&mut buf).await.expect("it comes");
    assert_eq!(buf.bytes(), b"x");
}

#[fuchsia_async::run_singlethreaded(test)]
async fn two_tasks_play_ping_pong() {
    let (left, right) = zx::Channel::create();
    let left = fasync::Channel::from_channel(left);
    let right = fasync::Channel::from_channel(right);
    let echo = fasync::Task::local(async move {
        let mut buf = zx::MessageBuf::new();
        while right.recv_msg(&mut buf).await.is_ok() {
            right.write(buf.bytes(), &mut []).expect("the other side lives");
        }
    });
    let mut buf = zx::MessageBuf::new();
    for number in 0u32..1000 {
        left.write(&number.to_le_bytes(), &mut []).expect("the other side lives");
        left.recv_msg(&mut buf).await.expect("the echo comes");
        assert_eq!(buf.bytes(), number.to_le_bytes());
    }
    drop(left);
    echo.await;
}

#[fuchsia_async::run_singlethreaded(test)]
async fn a_stream_socket_carries_more_than_it_holds() {
    let (left, right) = zx::Socket::create_stream();
    let mut left = fasync::Socket::from_socket(left);
    let mut right = fasync::Socket::from_socket(right);
    let sent: Vec<u8> = (0..3_000_000u32).map(|number| (number % 251) as u8).collect();
    let expected = sent.clone();
    let writer = fasync::Task::local(async move {
        left.write_all(&sent).await.expect("the other side reads");
    });
    let mut received = Vec::new();
    right.read_to_end(&mut received).await.expect("it ends");
    assert!(received == expected);
    writer.await;
    assert!(right.is_closed());
}

#[fuchsia_async::run_singlethreaded(test)]
async fn a_half_closed_socket_reads_to_its_end() {
    let (left, right) = zx::Socket::create_stream();
    let mut right = fasync::Socket::from_socket(right);
    let reader = fasync::Task::local(async move {
        let mut received = Vec::new();
        right.read_to_end(&mut received).await.expect("it ends");
        right.write_all(b"seen").await.expect("the other direction is open");
        received
    });
    left.write(b"all").expect("there is room");
    left.half_close().expect("it is open");
    assert_eq!(reader.await, b"all");
    let mut left = fasync::Socket::from_socket(left);
    let mut answer = String::new();
    left.read_to_string(&mut answer).await.expect("it ends");
    assert_eq!(answer, "seen");
}

#[fuchsia_async::run_singlethreaded(test)]
async fn datagrams_keep_their_bounds() {
    let (left, right) = zx::Socket::create_datagram();
    let right = fasync::Socket::from_socket(right);
    let reader = fasync::Task::local(async move {
        right.into_datagram_stream().try_collect::<Vec<_>>().await.expect("it ends")
    });
    let long = vec![7; 9000];
    for datagram in [&b"one"[..], &long, b"three"] {
        left.write(datagram).expect("there is room");
    }
    drop(left);
    assert_eq!(reader.await, [b"one".to_vec(), long.clone(), b"three".to_vec()]);
}
