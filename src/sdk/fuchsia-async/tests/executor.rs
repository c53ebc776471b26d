//! Tasks, timers and wake-ups on the three executors.

use std::cell::Cell;
use std::future::{pending, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::thread;

use fuchsia_async as fasync;
use fuchsia_async::TimeoutExt;
use fuchsia_zircon::{self as zx, AsHandleRef, Peered};
use futures::channel::{mpsc, oneshot};
use futures::{FutureExt, SinkExt, StreamExt};

#[fuchsia_async::run_singlethreaded(test)]
async fn a_task_gives_its_result() {
    assert_eq!(fasync::Task::spawn(async { 7 }).await, 7);
    let not_send = Rc::new(Cell::new(1));
    let shared = not_send.clone();
    fasync::Task::local(async move { shared.set(2) }).await;
    assert_eq!(not_send.get(), 2);
}

#[fuchsia_async::run_singlethreaded(test)]
async fn a_dropped_task_is_cancelled_and_a_detached_one_is_not() {
    let (dropped, was_dropped) = oneshot::channel::<()>();
    let task = fasync::Task::local(async move {
        let _dropped = dropped;
        pending::<()>().await;
    });
    drop(task);
    assert!(was_dropped.await.is_err());

    let (sender, receiver) = oneshot::channel();
    fasync::Task::local(async move {
        fasync::Timer::new(zx::Duration::from_millis(1)).await;
        let _ = sender.send(5);
    })
    .detach();
    assert_eq!(receiver.await, Ok(5));
}

#[fuchsia_async::run_singlethreaded(test)]
async fn cancel_waits_for_the_future_to_go() {
    let alive = Rc::new(());
    let held = alive.clone();
    let task = fasync::Task::local(async move {
        let _held = held;
        pending::<u8>().await
    });
    assert_eq!(task.cancel().await, None);
    assert_eq!(Rc::strong_count(&alive), 1);

    let finished = fasync::Task::local(async { 3 });
    fasync::Task::local(async {}).await;
    assert_eq!(finished.cancel().await, Some(3));
}

#[fuchsia_async::run_singlethreaded(test)]
async fn a_task_may_cancel_itself() {
    let (sender, receiver) = oneshot::channel::<fasync::Task<()>>();
    let (done, was_done) = oneshot::channel::<()>();
    let task = fasync::Task::local(async move {
        let _done = done;
        drop(receiver.await);
        pending::<()>().await;
    });
    assert!(sender.send(task).is_ok());
    assert!(was_done.await.is_err());
}

#[test]
fn dropping_the_executor_drops_its_tasks() {
    let alive = Arc::new(());
    let mut executor = fasync::LocalExecutor::new();
    for local in [true, false] {
        let held = alive.clone();
        let future = async move {
            let _held = held;
            pending::<()>().await;
        };
        if local {
            fasync::Task::local(future).detach();
        } else {
            fasync::Task::spawn(future).detach();
        }
    }
    executor.run_singlethreaded(async {});
    assert_eq!(Arc::strong_count(&alive), 3);
    drop(executor);
    assert_eq!(Arc::strong_count(&alive), 1);
    // And the thread can have another.
    fasync::LocalExecutor::new().run_singlethreaded(async {});
}

#[test]
fn other_threads_wake_a_sleeping_executor() {
    let mut executor = fasync::LocalExecutor::new();
    let (sender, receiver) = mpsc::channel(1);
    let producers: Vec<_> = (0..4)
        .map(|producer| {
            let mut sender = sender.clone();
            thread::spawn(move || {
                futures::executor::block_on(async move {
                    for number in 0..250 {
                        sender.send(producer * 250 + number).await.expect("the receiver lives");
                    }
                });
            })
        })
        .collect();
    drop(sender);
    let mut received = executor.run_singlethreaded(receiver.collect::<Vec<u32>>());
    received.sort_unstable();
    assert_eq!(received, (0..1000).collect::<Vec<_>>());
    for producer in producers {
        producer.join().expect("the producer does not panic");
    }
}

#[test]
fn a_full_port_keeps_nobody_asleep() {
    let mut executor = fasync::LocalExecutor::new();
    let port = executor.ehandle();
    executor.run_singlethreaded(async move {
        let (started, starts) = oneshot::channel();
        let (sender, receiver) = oneshot::channel();
        let task = fasync::Task::local(async move {
            started.send(()).expect("somebody waits");
            receiver.await
        });
        starts.await.expect("the task starts");
        // Nobody has this key.
        let packet =
            zx::Packet::from_user_packet(u64::MAX - 1, 0, zx::UserPacket::from_u8_array([0; 32]));
        while port.port().queue(&packet).is_ok() {}
        thread::spawn(move || sender.send(7)).join().expect("it does not panic").expect("it waits");
        assert_eq!(task.await, Ok(7));
    });
}

#[test]
fn a_timer_of_another_thread_wakes_the_executor() {
    let mut executor = fasync::LocalExecutor::new();
    let timer = fasync::Timer::new(zx::Duration::from_millis(1));
    let (sender, receiver) = oneshot::channel();
    let other = thread::spawn(move || {
        futures::executor::block_on(timer);
        sender.send(()).expect("somebody waits");
    });
    assert_eq!(executor.run_singlethreaded(receiver), Ok(()));
    other.join().expect("it does not panic");
}

#[fuchsia_async::run(3, test)]
async fn tasks_run_on_all_threads() {
    let count = Arc::new(AtomicUsize::new(0));
    let tasks: Vec<_> = (0..300)
        .map(|_| {
            let count = count.clone();
            fasync::Task::spawn(async move {
                let (ours, theirs) = zx::Channel::create();
                let ours = fasync::Channel::from_channel(ours);
                fasync::Task::spawn(async move { theirs.write(b"x", &mut []) }).detach();
                let mut buf = zx::MessageBuf::new();
                ours.recv_msg(&mut buf).await.expect("a message comes");
                count.fetch_add(buf.bytes().len(), Ordering::SeqCst);
            })
        })
        .collect();
    futures::future::join_all(tasks).await;
    assert_eq!(count.load(Ordering::SeqCst), 300);
}

#[test]
#[should_panic(expected = "on a worker")]
fn a_panic_on_any_thread_ends_the_run() {
    fasync::SendExecutor::new(2).run(async {
        fasync::Task::spawn(async { panic!("on a worker") }).detach();
        pending::<()>().await;
    });
}

#[fuchsia_async::run_singlethreaded(test)]
async fn timers_fire_in_order() {
    let (sender, mut receiver) = mpsc::unbounded();
    let now = fasync::Time::now();
    for delay in [3, 1, 2] {
        let sender = sender.clone();
        fasync::Task::local(async move {
            fasync::Timer::new(now + zx::Duration::from_millis(delay)).await;
            sender.unbounded_send(delay).expect("the receiver lives");
        })
        .detach();
    }
    for expected in [1, 2, 3] {
        assert_eq!(receiver.next().await, Some(expected));
    }
    assert!(fasync::Time::now() >= now + zx::Duration::from_millis(3));
}

#[fuchsia_async::run_singlethreaded(test)]
async fn a_timeout_ends_the_wait() {
    let late = pending::<u8>().on_timeout(zx::Duration::from_millis(1), || 1).await;
    assert_eq!(late, 1);
    let early = async { 2 }.on_timeout(fasync::Time::INFINITE, || 1).await;
    assert_eq!(early, 2);
}

#[test]
fn fake_time_stands_still_until_set() {
    let mut executor = fasync::TestExecutor::new_with_fake_time();
    let mut timer = fasync::Timer::new(zx::Duration::from_seconds(15));
    let mut interval = fasync::Interval::new(zx::Duration::from_seconds(10));
    assert_eq!(executor.run_until_stalled(&mut timer), Poll::Pending);
    assert_eq!(executor.next_timer(), Some(fasync::Time::from_nanos(15_000_000_000)));
    executor.set_fake_time(fasync::Time::from_nanos(14_999_999_999));
    assert_eq!(executor.run_until_stalled(&mut timer), Poll::Pending);
    assert_eq!(executor.run_until_stalled(&mut interval.next()), Poll::Ready(Some(())));
    assert_eq!(executor.run_until_stalled(&mut interval.next()), Poll::Pending);
    executor.set_fake_time(fasync::Time::from_nanos(15_000_000_000));
    assert_eq!(executor.run_until_stalled(&mut timer), Poll::Ready(()));
}

#[test]
fn run_until_stalled_runs_all_that_can_run() {
    let mut executor = fasync::TestExecutor::new();
    let (ours, theirs) = zx::EventPair::create();
    let (sender, mut receiver) = oneshot::channel();
    let task = fasync::Task::local(async move {
        let signals = fasync::OnSignals::new(&ours, zx::Signals::USER_0).await;
        let _ = sender.send(signals);
        ours
    });
    let mut main = pin!(poll_fn(|context| receiver.poll_unpin(context)));
    assert!(executor.run_until_stalled(&mut main).is_pending());
    theirs.signal_peer(zx::Signals::NONE, zx::Signals::USER_0).expect("it can be signalled");
    let Poll::Ready(Ok(Ok(signals))) = executor.run_until_stalled(&mut main) else {
        panic!("the signal was not seen");
    };
    assert!(signals.contains(zx::Signals::USER_0));
    drop(task);
}

#[fuchsia_async::run_singlethreaded(test)]
async fn signals_are_seen_before_and_after_the_wait_begins() {
    let event = zx::Event::create();
    event.signal_handle(zx::Signals::NONE, zx::Signals::EVENT_SIGNALED).expect("it is ours");
    let signals = fasync::OnSignals::new(&event, zx::Signals::EVENT_SIGNALED).await;
    assert!(signals.is_ok_and(|signals| signals.contains(zx::Signals::EVENT_SIGNALED)));

    let (ours, theirs) = zx::EventPair::create();
    let closer = thread::spawn(move || drop(theirs));
    let signals = fasync::OnSignals::new(&ours, zx::Signals::EVENTPAIR_PEER_CLOSED).await;
    assert!(signals.is_ok_and(|signals| signals.contains(zx::Signals::EVENTPAIR_PEER_CLOSED)));
    closer.join().expect("it does not panic");
}

#[fuchsia_async::run_singlethreaded(test)]
async fn a_wait_that_was_given_up_leaves_nothing_behind() {
    let event = zx::Event::create();
    for _ in 0..100 {
        let mut wait = fasync::OnSignals::new(&event, zx::Signals::USER_1);
        assert!((&mut wait).now_or_never().is_none());
    }
    event.signal_handle(zx::Signals::NONE, zx::Signals::USER_1).expect("it is ours");
    let signals = fasync::OnSignals::new(&event, zx::Signals::USER_1).await;
    assert!(signals.is_ok_and(|signals| signals.contains(zx::Signals::USER_1)));
}

#[fuchsia_async::run_singlethreaded(test)]
async fn what_blocks_does_not_block_the_executor() {
    let (sender, receiver) = std::sync::mpsc::channel();
    let blocked = fasync::unblock(move || receiver.recv());
    fasync::Timer::new(zx::Duration::from_millis(1)).await;
    sender.send(9).expect("the receiver lives");
    assert_eq!(blocked.await, Ok(9));
    let many = (0..200u64).map(|number| fasync::unblock(move || number));
    assert_eq!(futures::future::join_all(many).await.iter().sum::<u64>(), 19900);
}
