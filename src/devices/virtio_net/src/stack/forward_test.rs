//! Ports of the host that are the guest's.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};

use smoltcp::socket::{tcp, udp};

use super::test_guest::{Guest, pattern};
use super::{Capabilities, Forward, GATEWAY, Transport};

fn forward(guest: &mut Guest, transport: Transport, guest_port: u16) -> SocketAddr {
    let host = "127.0.0.1:0".parse().unwrap();
    guest.stack.forward(&Forward { transport, host, guest_port }).unwrap()
}

#[test]
fn a_host_talks_to_a_server_in_the_guest() {
    let mut guest = Guest::new();
    let address = forward(&mut guest, Transport::Tcp, 80);
    let handle = guest.tcp_socket();
    guest.sockets.get_mut::<tcp::Socket>(handle).listen(80).unwrap();
    let host = std::thread::spawn(move || {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(&pattern(300_000)).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut received = Vec::new();
        stream.read_to_end(&mut received).unwrap();
        received
    });
    let (mut received, mut sent) = (Vec::new(), 0);
    let answer = pattern(200_000);
    guest.run_until(|sockets| {
        let socket = sockets.get_mut::<tcp::Socket>(handle);
        if socket.can_recv() {
            socket
                .recv(|data| {
                    received.extend_from_slice(data);
                    (data.len(), ())
                })
                .unwrap();
        }
        if socket.can_send() && sent < answer.len() {
            assert_eq!(socket.remote_endpoint().unwrap().addr, GATEWAY.into());
            sent += socket.send_slice(&answer[sent..]).unwrap();
        }
        if sent == answer.len() && received.len() == 300_000 {
            socket.close();
        }
        matches!(socket.state(), tcp::State::Closed | tcp::State::TimeWait)
    });
    assert!(received == pattern(300_000));
    assert!(host.join().unwrap() == answer);
    guest.settle();
    assert!(guest.stack.tcp.is_empty());
}

#[test]
fn a_port_without_a_server_resets_the_host() {
    let mut guest = Guest::new();
    let address = forward(&mut guest, Transport::Tcp, 81);
    let mut stream = TcpStream::connect(address).unwrap();
    // Its connection comes and goes.
    stream.set_nonblocking(true).unwrap();
    guest.run_until(|_| {
        matches!(stream.read(&mut [0]), Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset)
    });
    assert!(guest.stack.tcp.is_empty());
}

#[test]
fn datagrams_of_several_hosts_are_answered_to_each() {
    let mut guest = Guest::new();
    let address = forward(&mut guest, Transport::Udp, 53);
    let handle = guest.udp_socket(53);
    let hosts: Vec<_> = (0..3u8)
        .map(|number| {
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            socket.send_to(&[number; 5], address).unwrap();
            socket
        })
        .collect();
    let mut answered = 0;
    guest.run_until(|sockets| {
        let socket = sockets.get_mut::<udp::Socket>(handle);
        while let Ok((data, from)) = socket.recv() {
            let answer = [data, b" too"].concat();
            assert_eq!(from.endpoint.addr, GATEWAY.into());
            socket.send_slice(&answer, from.endpoint).unwrap();
            answered += 1;
        }
        answered == 3
    });
    guest.settle();
    for (number, socket) in (0u8..).zip(hosts) {
        let mut buffer = [0; 64];
        let (len, from) = socket.recv_from(&mut buffer).unwrap();
        assert_eq!((&buffer[..len], from), (&[&[number; 5], &b" too"[..]].concat()[..], address));
    }
    assert_eq!((guest.stack.flows.len(), guest.stack.peers.len()), (3, 3));
    guest.stack.reset();
    assert!(guest.stack.flows.is_empty() && guest.stack.peers.is_empty());
}

#[test]
fn a_port_that_is_taken_is_an_error() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let host = taken.local_addr().unwrap();
    let mut guest = Guest::new();
    let forward = Forward { transport: Transport::Tcp, host, guest_port: 80 };
    let error = guest.stack.forward(&forward).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse);
    assert!(guest.stack.tokens.is_empty());
}

#[test]
fn a_host_that_came_before_the_guest_waits_for_it() {
    let mut guest = Guest::new();
    let address = forward(&mut guest, Transport::Tcp, 80);
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(b"early").unwrap();
    guest.stack.handle_events(std::time::Instant::now());
    guest.stack.reset();
    guest.stack.start(Capabilities::default(), std::time::Instant::now());
    let handle = guest.tcp_socket();
    guest.sockets.get_mut::<tcp::Socket>(handle).listen(80).unwrap();
    let mut received = Vec::new();
    guest.run_until(|sockets| {
        let socket = sockets.get_mut::<tcp::Socket>(handle);
        if socket.can_recv() {
            let mut bytes = [0; 16];
            let len = socket.recv_slice(&mut bytes).unwrap();
            received.extend_from_slice(&bytes[..len]);
        }
        received == b"early"
    });
}
