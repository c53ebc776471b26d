//! A client and a server of generated bindings over a real channel.

use fidl::endpoints::{
    ClientEnd, ControlHandle as _, Proxy as _, RequestStream as _, Responder as _,
    create_endpoints, create_proxy, create_proxy_and_stream, create_sync_proxy,
};
use fidl::epitaph::ChannelEpitaphExt as _;
use fidl::{AsHandleRef as _, Error, Event, HandleBased as _, MethodType, Signals, Status, Time};
use fidl_test_wire::*;
use fuchsia_async as fasync;
use fuchsia_zircon as zx;
use futures::future::{join, try_join_all};
use futures::{StreamExt as _, TryStreamExt as _, poll};

/// Serves [`Echo`] until the client is gone.
async fn serve_echo(mut stream: EchoRequestStream) -> Result<(), Error> {
    while let Some(request) = stream.try_next().await? {
        match request {
            EchoRequest::EchoString { value, responder } => responder.send(&value)?,
            EchoRequest::Swap { a, b, responder } => responder.send(&b, a)?,
            EchoRequest::EchoEverything { value, responder } => responder.send(&value)?,
            EchoRequest::EchoHandles { value, responder } => responder.send(value)?,
            EchoRequest::EchoTable { payload, responder } => responder.send(&payload)?,
            EchoRequest::Ping { responder } => responder.send()?,
            EchoRequest::Divide { dividend, divisor, responder } => {
                let quotient = dividend.checked_div(divisor);
                responder.send(quotient.ok_or(StrictError::DivisionByZero))?;
            }
            EchoRequest::Check { value, responder } => {
                responder.send(if value == 0 { Ok(()) } else { Err(value) })?;
            }
            EchoRequest::Fire { count, control_handle } => {
                for index in 0..count {
                    control_handle.send_on_fired(index, &format!("event {index}"))?;
                }
                control_handle.send_on_handle(Event::create())?;
                control_handle.send_on_done()?;
            }
            EchoRequest::Bulk { data, responder } => responder.send(&data)?,
        }
    }
    Ok(())
}

/// A client of a server that runs on the same executor.
fn echo() -> EchoProxy {
    let (proxy, stream) = create_proxy_and_stream::<EchoMarker>();
    fasync::Task::local(async move {
        let _ = serve_echo(stream).await;
    })
    .detach();
    proxy
}

fn closed(status: Status) -> Error {
    Error::ClientChannelClosed { status, protocol_name: "test.wire.Echo" }
}

#[fasync::run_singlethreaded(test)]
async fn calls_come_back() {
    let proxy = echo();
    assert_eq!(proxy.echo_string("hello").await, Ok("hello".to_owned()));
    assert_eq!(proxy.swap(7, "seven").await, Ok(("seven".to_owned(), 7)));
    assert_eq!(proxy.ping().await, Ok(()));
    let table = Table { small: Some(3), word: Some(4), ..Default::default() };
    assert_eq!(proxy.echo_table(&table).await, Ok(table));
    let data = vec![5; 60_000];
    assert_eq!(proxy.bulk(&data).await, Ok(data));
}

#[fasync::run_singlethreaded(test)]
async fn errors_of_methods_are_results() {
    let proxy = echo();
    assert_eq!(proxy.divide(42, 6).await, Ok(Ok(7)));
    assert_eq!(proxy.divide(42, 0).await, Ok(Err(StrictError::DivisionByZero)));
    assert_eq!(proxy.check(0).await, Ok(Ok(())));
    assert_eq!(proxy.check(-25).await, Ok(Err(-25)));
}

#[fasync::run_singlethreaded(test)]
async fn many_calls_wait_at_once() {
    let proxy = echo();
    let texts: Vec<String> = (0..200).map(|i| format!("call {i}")).collect();
    let calls: Vec<_> = texts.iter().map(|text| proxy.echo_string(text)).collect();
    // Those that are dropped do not disturb the others.
    drop(proxy.echo_string("dropped"));
    assert_eq!(try_join_all(calls).await, Ok(texts));
    assert_eq!(proxy.ping().await, Ok(()));
    // The channel comes back only while nobody waits.
    let call = proxy.ping();
    let proxy = proxy.into_channel().unwrap_err();
    assert_eq!(call.await, Ok(()));
    assert!(proxy.into_channel().is_ok());
}

#[fasync::run_singlethreaded(test)]
async fn handles_travel_both_ways() {
    let proxy = echo();
    let (event, any) = (Event::create(), Event::create());
    let koids = (event.get_koid().unwrap(), any.get_koid().unwrap());
    let value = Handles {
        any: any.into_handle(),
        event,
        reduced: Event::create(),
        absent: None,
        more: vec![zx::Vmo::create(4096).unwrap()],
    };
    let value = proxy.echo_handles(value).await.unwrap();
    assert_eq!((value.event.get_koid().unwrap(), value.any.get_koid().unwrap()), koids);
    let rights = value.reduced.basic_info().unwrap().rights;
    assert_eq!(rights, zx::Rights::WAIT | zx::Rights::TRANSFER);
    assert_eq!(value.more.len(), 1);
    assert!(value.absent.is_none());
}

#[fasync::run_singlethreaded(test)]
async fn events_come_in_order() {
    let proxy = echo();
    let mut events = proxy.take_event_stream();
    proxy.fire(3).unwrap();
    // A call between the events finds its response.
    assert_eq!(proxy.echo_string("between").await, Ok("between".to_owned()));
    for index in 0..3 {
        let event = events.next().await.unwrap().unwrap();
        assert_eq!(event.into_on_fired(), Some((index, format!("event {index}"))));
    }
    let event = events.next().await.unwrap().unwrap().into_on_handle().unwrap();
    assert!(event.get_koid().is_ok());
    assert!(matches!(events.next().await, Some(Ok(EchoEvent::OnDone {}))));
    drop(proxy);
}

#[fasync::run_singlethreaded(test)]
async fn events_that_nobody_takes_are_bounded() {
    let proxy = echo();
    for _ in 0..10 {
        proxy.fire(1000).unwrap();
        assert_eq!(proxy.ping().await, Ok(()));
    }
    // The oldest are gone, the newest is there, and the connection lives.
    let events: Vec<EchoEvent> =
        proxy.take_event_stream().take(4096).map(Result::unwrap).collect().await;
    assert!(matches!(events.last(), Some(EchoEvent::OnDone {})));
    assert_eq!(proxy.ping().await, Ok(()));
}

#[fasync::run_singlethreaded(test)]
async fn an_epitaph_ends_everything() {
    let (proxy, mut stream) = create_proxy_and_stream::<EchoMarker>();
    let mut events = proxy.take_event_stream();
    let call = proxy.ping();
    let server = async move {
        let request = stream.try_next().await.unwrap().unwrap();
        request.into_ping().unwrap().drop_without_shutdown();
        stream.control_handle().shutdown_with_epitaph(Status::ACCESS_DENIED);
        assert!(stream.next().await.is_none());
    };
    let (result, ()) = join(call, server).await;
    assert_eq!(result, Err(closed(Status::ACCESS_DENIED)));
    let event = events.next().await.map(|event| event.map(drop));
    assert_eq!(event, Some(Err(closed(Status::ACCESS_DENIED))));
    assert!(events.next().await.is_none());
    assert_eq!(proxy.ping().await, Err(closed(Status::ACCESS_DENIED)));
    assert!(proxy.is_closed());
}

#[fasync::run_singlethreaded(test)]
async fn closing_without_an_epitaph_is_peer_closed() {
    let (proxy, server) = create_proxy::<EchoMarker>();
    let call = proxy.ping();
    let mut events = proxy.take_event_stream();
    drop(server);
    assert_eq!(call.await, Err(closed(Status::PEER_CLOSED)));
    assert!(events.next().await.is_none());
    proxy.on_closed().await.unwrap();

    let (proxy, server) = create_proxy::<EchoMarker>();
    server.close_with_epitaph(Status::NOT_FOUND).unwrap();
    assert_eq!(proxy.ping().await, Err(closed(Status::NOT_FOUND)));
}

#[fasync::run_singlethreaded(test)]
async fn a_responder_dropped_unsent_ends_the_connection() {
    let (proxy, mut stream) = create_proxy_and_stream::<EchoMarker>();
    let call = proxy.ping();
    let server = async move {
        drop(stream.try_next().await.unwrap().unwrap());
        assert!(stream.next().await.is_none());
    };
    let (result, ()) = join(call, server).await;
    assert_eq!(result, Err(closed(Status::PEER_CLOSED)));

    // Told not to, it goes on.
    let (proxy, mut stream) = create_proxy_and_stream::<EchoMarker>();
    let unanswered = proxy.ping();
    let answered = proxy.ping();
    let server = async move {
        stream.try_next().await.unwrap().unwrap().into_ping().unwrap().drop_without_shutdown();
        stream.try_next().await.unwrap().unwrap().into_ping().unwrap().send().unwrap();
        stream
    };
    let (result, _stream) = join(answered, server).await;
    assert_eq!(result, Ok(()));
    drop(unanswered);
}

#[fasync::run_singlethreaded(test)]
async fn a_server_that_waits_learns_that_its_side_has_ended_the_connection() {
    let (_proxy, mut stream) = create_proxy_and_stream::<EchoMarker>();
    let control_handle = stream.control_handle();
    let (next, ()) = join(stream.next(), async move { control_handle.shutdown() }).await;
    assert!(next.is_none());

    let (proxy, mut stream) = create_proxy_and_stream::<EchoMarker>();
    let control_handle = stream.control_handle();
    let end = move || control_handle.shutdown_with_epitaph(Status::BAD_PATH);
    let (next, ()) = join(stream.next(), fasync::unblock(end)).await;
    assert!(next.is_none());
    assert_eq!(proxy.ping().await, Err(closed(Status::BAD_PATH)));
}

#[fasync::run_singlethreaded(test)]
async fn whoever_reads_wakes_the_others() {
    let (proxy, mut stream) = create_proxy_and_stream::<EchoMarker>();
    let mut events = proxy.take_event_stream();
    let mut first = proxy.ping();
    // Alone, it is woken itself; from then on all are.
    assert!(poll!(&mut first).is_pending());
    let second = fasync::Task::local(proxy.ping());
    let third = fasync::Task::local(proxy.echo_string("third"));
    let event = fasync::Task::local(async move { events.next().await });
    let server = async move {
        let mut pings = Vec::new();
        for _ in 0..2 {
            pings.push(stream.try_next().await.unwrap().unwrap().into_ping().unwrap());
        }
        let (value, responder) =
            stream.try_next().await.unwrap().unwrap().into_echo_string().unwrap();
        responder.send(&value).unwrap();
        stream.control_handle().send_on_fired(1, "event").unwrap();
        for ping in pings.into_iter().rev() {
            ping.send().unwrap();
        }
        stream
    };
    let (third, mut stream) = join(third, server).await;
    assert_eq!(third, Ok("third".to_owned()));
    let fired = event.await.unwrap().unwrap().into_on_fired().unwrap();
    assert_eq!(fired, (1, "event".to_owned()));
    assert_eq!(second.await, Ok(()));
    assert_eq!(first.await, Ok(()));

    // One that is dropped while it is the one that is woken leaves the others.
    let mut dropped = proxy.ping();
    assert!(poll!(&mut dropped).is_pending());
    let left = fasync::Task::local(proxy.ping());
    drop(dropped);
    for _ in 0..2 {
        stream.try_next().await.unwrap().unwrap().into_ping().unwrap().send().unwrap();
    }
    assert_eq!(left.await, Ok(()));
}

#[fasync::run_singlethreaded(test)]
async fn a_request_that_cannot_be_sent_fails_early() {
    let proxy = echo();
    let long = Everything {
        strings: Strings { plain: String::new(), bounded: "too long".into(), absent: None },
        ..everything()
    };
    let error = Error::StringTooLong { max_bytes: 4, actual_bytes: 8 };
    assert_eq!(proxy.echo_everything(&long).check().map(drop), Err(error));
    let large = vec![0; 70_000];
    assert_eq!(proxy.bulk(&large).await, Err(Error::ClientWrite(Status::OUT_OF_RANGE)));
    assert_eq!(proxy.ping().await, Ok(()));
}

fn everything() -> Everything {
    Everything {
        strict_enum: StrictEnum::Zero,
        flexible_enum: FlexibleEnum::from_primitive_allow_unknown(1234),
        strict_bits: StrictBits::TWO,
        flexible_bits: FlexibleBits::HIGH,
        numbers: Numbers { b: true, i8: 1, u16: 2, i32: 3, u64: 4, f32: 5.0, u8: 6, f64: 7.0 },
        strings: Strings { plain: "p".into(), bounded: "b".into(), absent: None },
        vectors: Vectors {
            bytes: vec![1],
            words: vec![2],
            strings: None,
            flags: vec![true],
            nested: vec![vec![3]],
        },
        arrays: Arrays {
            bytes: [1, 2, 3],
            smalls: [Small { a: 1, b: 2 }; 2],
            strings: ["x".into(), "y".into()],
        },
        node: Some(Box::new(Node { value: 1, next: None })),
        table: Table::default(),
        strict_union: StrictUnion::Number(1),
        flexible_union: FlexibleUnion::Number(2),
        absent_union: Some(Box::new(StrictUnion::Text("t".into()))),
        tables: vec![Table { small: Some(1), ..Default::default() }],
    }
}

#[fasync::run_singlethreaded(test)]
async fn everything_comes_back() {
    let proxy = echo();
    assert_eq!(proxy.echo_everything(&everything()).await, Ok(everything()));
}

#[fasync::run_singlethreaded(test)]
async fn open_protocols_tolerate_what_they_do_not_know() {
    let (client, server) = create_endpoints::<OlderMarker>();
    // The client believes that the server is newer.
    let proxy = ClientEnd::<NewerMarker>::new(client.into_channel()).into_proxy();
    let mut stream = server.into_stream();
    let serve = async move {
        let mut unknown = Vec::new();
        while let Some(request) = stream.next().await {
            match request {
                Ok(OlderRequest::Known { value, responder }) => responder.send(value + 1).unwrap(),
                Ok(OlderRequest::KnownWithError { responder }) => responder.send(Err(5)).unwrap(),
                Ok(OlderRequest::_UnknownMethod { method_type, .. }) => unknown.push(method_type),
                Err(error) => return (unknown, error),
            }
        }
        panic!("the strict call is an error");
    };
    let call = async move {
        assert_eq!(proxy.known(1).await, Ok(2));
        assert_eq!(proxy.known_with_error().await, Ok(Err(5)));
        let unsupported = |method_name| Error::UnsupportedMethod {
            method_name,
            protocol_name: "(anonymous) Newer",
        };
        assert_eq!(proxy.added_two_way().await, Err(unsupported("added_two_way")));
        assert_eq!(proxy.added_with_error().await, Err(unsupported("added_with_error")));
        proxy.added_one_way().unwrap();
        proxy.added_strict().unwrap();
        proxy.on_closed().await.unwrap();
    };
    let ((unknown, error), ()) = join(serve, call).await;
    assert_eq!(unknown, [MethodType::TwoWay, MethodType::TwoWay, MethodType::OneWay]);
    assert!(matches!(error, Error::UnknownOrdinal { protocol_name: "(anonymous) Older", .. }));
}

#[fasync::run_singlethreaded(test)]
async fn unknown_events_are_tolerated_by_openness() {
    let (client, server) = create_endpoints::<NewerMarker>();
    let older = ClientEnd::<OlderMarker>::new(client.into_channel()).into_proxy();
    let (_stream, control) = server.into_stream_and_control_handle();
    control.send_on_added().unwrap();
    let mut events = older.take_event_stream();
    let event = events.next().await.unwrap().unwrap();
    assert!(matches!(event, OlderEvent::_UnknownEvent { .. }));
}

#[fasync::run_singlethreaded(test)]
async fn composed_methods_are_those_of_the_composed_protocol() {
    let (client, server) = create_endpoints::<AjarMarker>();
    let echo = ClientEnd::<EchoMarker>::new(client.into_channel()).into_proxy();
    let stream = server.into_stream().cast_stream::<EchoRequestStream>();
    let serve = serve_echo(stream);
    let call = async move {
        assert_eq!(echo.echo_string("composed").await, Ok("composed".to_owned()));
        drop(echo);
    };
    assert_eq!(join(serve, call).await, (Ok(()), ()));
}

#[fasync::run_singlethreaded(test)]
async fn a_server_rejects_messages_that_are_not_requests() {
    for (message, expected) in [
        (vec![1, 2, 3], Error::InvalidHeader),
        (vec![0; 16], Error::IncompatibleMagicNumber(0)),
        (vec![0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0], Error::UnsupportedWireFormatVersion),
        (
            vec![0, 0, 0, 0, 2, 0, 0, 1, 9, 0, 0, 0, 0, 0, 0, 0],
            Error::UnknownOrdinal { ordinal: 9, protocol_name: "test.wire.Echo" },
        ),
    ] {
        let (client, server) = create_endpoints::<EchoMarker>();
        let mut stream = server.into_stream();
        let channel = client.into_channel();
        channel.write(&message, &mut []).unwrap();
        assert_eq!(stream.next().await.map(|r| r.map(drop)), Some(Err(expected)));
        assert!(stream.next().await.is_none(), "an error is the last item");
        drop(stream);
        let signals = channel.wait_handle(Signals::CHANNEL_PEER_CLOSED, Time::INFINITE);
        assert!(signals.is_ok());
    }
}

#[fasync::run_singlethreaded(test)]
async fn a_client_rejects_messages_that_are_not_responses() {
    let cases: [(&[u8], Error); 3] = [
        (&[1, 2, 3], Error::InvalidHeader),
        (&[99, 0, 0, 0, 2, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 0], Error::InvalidResponseTxid),
        (&[1, 0, 0, 0, 2, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 0], Error::InvalidResponseOrdinal),
    ];
    for (message, expected) in cases {
        let (proxy, server) = create_proxy::<EchoMarker>();
        let call = proxy.ping();
        server.channel().write(message, &mut []).unwrap();
        assert_eq!(call.await, Err(expected));
    }
}

#[test]
fn synchronous_clients_block() {
    let (proxy, server) = create_sync_proxy::<EchoMarker>();
    let thread = std::thread::spawn(move || {
        fasync::LocalExecutor::new().run_singlethreaded(async move {
            serve_echo(server.into_stream()).await.unwrap();
        });
    });
    assert_eq!(proxy.echo_string("sync", Time::INFINITE), Ok("sync".to_owned()));
    assert_eq!(proxy.divide(1, 0, Time::INFINITE), Ok(Err(StrictError::DivisionByZero)));
    proxy.fire(1).unwrap();
    let event = proxy.wait_for_event(Time::INFINITE).unwrap();
    assert_eq!(event.into_on_fired(), Some((0, "event 0".to_owned())));
    assert!(proxy.wait_for_event(Time::INFINITE).unwrap().into_on_handle().is_some());
    assert!(matches!(proxy.wait_for_event(Time::INFINITE), Ok(EchoEvent::OnDone {})));
    drop(proxy);
    thread.join().unwrap();
}

#[test]
fn synchronous_clients_see_epitaphs_and_deadlines() {
    let (proxy, server) = create_sync_proxy::<EchoMarker>();
    assert_eq!(proxy.ping(Time::INFINITE_PAST), Err(Error::ClientCall(Status::TIMED_OUT)));
    server.into_channel().close_with_epitaph(Status::BAD_STATE).unwrap();
    assert_eq!(proxy.ping(Time::INFINITE), Err(closed(Status::BAD_STATE)));
}
