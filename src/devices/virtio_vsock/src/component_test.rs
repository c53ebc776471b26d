//! The component over FIDL.

use fidl::endpoints::{create_endpoints, create_sync_proxy};
use fidl_fuchsia_virtualization::{
    HostVsockAcceptorMarker, HostVsockAcceptorRequest, HostVsockEndpointMarker,
    HostVsockEndpointSynchronousProxy, Listener,
};
use fidl_fuchsia_virtualization_hardware::{VirtioVsockMarker, VirtioVsockSynchronousProxy};
use fuchsia_zircon::{self as zx, AsHandleRef as _};
use futures::StreamExt as _;
use virtio_device::Features;
use virtio_device::fake_queue::FakeDriver;
use virtio_device::fake_transport::{FakeTransport, configure_arguments, ready_argument};
use zerocopy::{FromBytes as _, IntoBytes as _};

use crate::component::{Incoming, serve};
use crate::wire::HEADER_SIZE;
use crate::{Header, Operation, QUEUES, RX, TX};

fn start() -> (VirtioVsockSynchronousProxy, HostVsockEndpointSynchronousProxy) {
    let (device, device_server) = create_sync_proxy::<VirtioVsockMarker>();
    let (endpoint, endpoint_server) = create_sync_proxy::<HostVsockEndpointMarker>();
    std::thread::spawn(move || {
        fuchsia_async::LocalExecutor::new().run_singlethreaded(async {
            let clients = [
                Incoming::Endpoint(endpoint_server.into_stream()),
                Incoming::Device(device_server.into_stream()),
            ];
            let _ = serve(futures::stream::iter(clients)).await;
        });
    });
    (device, endpoint)
}

/// An acceptor that gives its client's ends to `sockets`.
fn acceptor(
    sockets: std::sync::mpsc::Sender<zx::Socket>,
) -> fidl::endpoints::ClientEnd<HostVsockAcceptorMarker> {
    let (client, server) = create_endpoints::<HostVsockAcceptorMarker>();
    std::thread::spawn(move || {
        fuchsia_async::LocalExecutor::new().run_singlethreaded(async {
            let mut requests = server.into_stream();
            while let Some(Ok(HostVsockAcceptorRequest::Accept { responder, .. })) =
                requests.next().await
            {
                let (ours, theirs) = zx::Socket::create_stream();
                responder.send(Ok(theirs)).unwrap();
                sockets.send(ours).unwrap();
            }
        });
    });
    client
}

fn packet(guest: u32, host: u32, op: Operation, len: usize) -> Header {
    Header {
        src_cid: 3.into(),
        dst_cid: 2.into(),
        src_port: guest.into(),
        dst_port: host.into(),
        len: (len as u32).into(),
        socket_type: 1.into(),
        op: op.0.into(),
        flags: 0.into(),
        buf_alloc: (1 << 16).into(),
        fwd_cnt: 0.into(),
    }
}

fn next(transport: &FakeTransport, driver: &mut FakeDriver) -> (Operation, Header, Vec<u8>) {
    let used = transport.answer(driver);
    let header = Header::read_from_bytes(&used.data[..HEADER_SIZE]).unwrap();
    (Operation(header.op.get()), header, used.data[HEADER_SIZE..used.len as usize].to_vec())
}

#[test]
fn both_sides_connect_through_the_component() {
    let (transport, mut drivers) = FakeTransport::new(QUEUES);
    let (device, endpoint) = start();
    let (sender, sockets) = std::sync::mpsc::channel();
    let listeners = vec![Listener { port: 7777, acceptor: acceptor(sender.clone()) }];
    device.start(transport.start_info(), 3, listeners, zx::Time::INFINITE).unwrap().unwrap();
    for (queue, driver) in (0..).zip(&drivers) {
        let (size, desc, avail, used) = configure_arguments(driver.config());
        device.configure_queue(queue, size, desc, avail, used, zx::Time::INFINITE).unwrap();
    }
    device.ready(ready_argument(Features::empty()), zx::Time::INFINITE).unwrap();
    let (rx, tx) = (usize::from(RX), usize::from(TX));
    for _ in 0..8 {
        drivers[rx].chain().writable(4096).publish();
    }
    device.notify_queue(RX).unwrap();

    let taken = endpoint.listen(7777, acceptor(sender.clone()), zx::Time::INFINITE).unwrap();
    assert_eq!(taken, Err(zx::Status::ALREADY_BOUND.into_raw()));
    endpoint.listen(7778, acceptor(sender), zx::Time::INFINITE).unwrap().unwrap();

    for port in [7777, 7778] {
        let request = packet(5000, port, Operation::REQUEST, 0);
        drivers[tx].chain().readable(request.as_bytes()).publish();
        device.notify_queue(TX).unwrap();
        assert_eq!(next(&transport, &mut drivers[rx]).0, Operation::RESPONSE);
        let data = packet(5000, port, Operation::RW, 5);
        drivers[tx].chain().readable(data.as_bytes()).readable(b"hello").publish();
        device.notify_queue(TX).unwrap();
        let socket = sockets.recv().unwrap();
        socket.wait_handle(zx::Signals::SOCKET_READABLE, zx::Time::INFINITE).unwrap();
        let mut bytes = [0; 8];
        assert_eq!(socket.read(&mut bytes), Ok(5));
        socket.write(b"hi").unwrap();
        let (op, _, data) = next(&transport, &mut drivers[rx]);
        assert_eq!((op, &data[..]), (Operation::RW, &b"hi"[..]));
        drop(socket);
        assert_eq!(next(&transport, &mut drivers[rx]).0, Operation::SHUTDOWN);
        let reset = packet(5000, port, Operation::RST, 0);
        drivers[tx].chain().readable(reset.as_bytes()).publish();
        device.notify_queue(TX).unwrap();
    }

    let connecting = std::thread::spawn(move || endpoint.connect(22, zx::Time::INFINITE).unwrap());
    let (op, header, _) = next(&transport, &mut drivers[rx]);
    assert_eq!((op, header.dst_port.get()), (Operation::REQUEST, 22));
    let refusal = packet(22, header.src_port.get(), Operation::RST, 0);
    drivers[tx].chain().readable(refusal.as_bytes()).publish();
    device.notify_queue(TX).unwrap();
    let refused = connecting.join().unwrap();
    assert_eq!(refused.unwrap_err(), zx::Status::CONNECTION_REFUSED.into_raw());
}

#[test]
fn start_refuses_what_cannot_be() {
    let (transport, _drivers) = FakeTransport::new(QUEUES);
    let (device, _endpoint) = start();
    let answer = device.start(transport.start_info(), 2, Vec::new(), zx::Time::INFINITE).unwrap();
    assert_eq!(answer, Err(zx::Status::INVALID_ARGS.into_raw()));

    let (device, _endpoint) = start();
    let (first, _first) = create_endpoints::<HostVsockAcceptorMarker>();
    let (second, _second) = create_endpoints::<HostVsockAcceptorMarker>();
    let listeners =
        vec![Listener { port: 1, acceptor: first }, Listener { port: 1, acceptor: second }];
    let answer = device.start(transport.start_info(), 3, listeners, zx::Time::INFINITE).unwrap();
    assert_eq!(answer, Err(zx::Status::ALREADY_BOUND.into_raw()));
}
