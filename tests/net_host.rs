//! The network of a real guest as the host has it: HTTP and datagrams in both directions over IPv4 and IPv6, names, and
//! forwards of the host's ports. Only for the host, because the programs at the other end are the test's own; the guest's
//! view is in `net.rs`.
#![cfg(target_os = "linux")]

mod support;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

use support::{PROMPT, Session, User};

/// A package of a guest with a network, and with these forwards.
fn user(forwards: &str) -> User {
    User::with_package(&format!(
        r#"{{
            "linux": "data/vmlinuz", "ramdisk": "data/initramfs.cpio.gz", "cmdline": "console=ttyS0 quiet",
            "cpus": 1, "memory": "256M", "virtio-rng": true, "default-net": true, "net-forward": [{forwards}]
        }}"#
    ))
}

/// What the guest does about its network on its own: the DHCP client's script, which has its words in the environment.
const CONFIGURE: &str = "printf '#!/bin/sh\\n[ \"$1\" = bound ] || exit 0\\nifconfig $interface $ip netmask $subnet\\n\
    route add default gw $router\\necho lease $ip $subnet $router $dns\\n' > /tmp/dhcp; chmod +x /tmp/dhcp; \
    ifconfig lo up; ifconfig eth0 up; udhcpc -i eth0 -n -q -s /tmp/dhcp";

/// Waits until the guest's kernel has made its IPv6 address from the router's advertisement.
const AUTOCONFIGURED: &str = "until ip -6 addr show dev eth0 scope site | grep -v tentative | grep fec0::; do sleep 0.1; done";

fn pattern(len: usize) -> Vec<u8> {
    (0..len as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

/// Serves `body` over HTTP to one client after another.
fn serve(address: &str, body: Vec<u8>) -> SocketAddr {
    let listener = TcpListener::bind(address).unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            while lines.next().is_some_and(|line| !line.unwrap().is_empty()) {}
            write!(stream, "HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n", body.len()).unwrap();
            stream.write_all(&body).unwrap();
        }
    });
    address
}

/// Fetches `path` over HTTP; the body.
fn fetch(address: SocketAddr, path: &str) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n").expect("a head");
    assert!(answer.starts_with(b"HTTP/1.") && answer[8..].starts_with(b" 200"), "{path}");
    answer.split_off(end + 4)
}

/// A port that is free now.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[test]
fn http_goes_both_ways_over_both_versions_of_ip() {
    let body = pattern(3 << 20);
    let (v4, v6) = (serve("127.0.0.1:0", body.clone()), serve("[::1]:0", body.clone()));
    let web = free_port();
    let user = user(&format!(r#""{web}:80""#));
    let forward = format!("tcp:127.0.0.1:{}:80", free_port());
    let mut session = Session::new(&user, &["launch", "debian", "--forward", &forward]);
    session.expect(PROMPT);

    session.type_line(CONFIGURE);
    session.expect("lease 10.0.2.15 255.255.255.0 10.0.2.2 10.0.2.3");
    session.type_line("ping -c 2 -W 20 10.0.2.2; echo v4 $?");
    session.expect("2 packets received, 0% packet loss");
    session.expect("v4 0");
    session.type_line(AUTOCONFIGURED);
    session.expect("inet6 fec0::1a:11ff:fe00:100");
    session.type_line("ping6 -c 2 -W 20 fec0::2; echo v6 $?");
    session.expect("v6 0");

    session.type_line("mkdir /tmp/www; cd /tmp/www");
    session.type_line(&format!("wget -q -O v4 http://10.0.2.2:{}/; echo got $?", v4.port()));
    session.expect("got 0");
    session.type_line(&format!("wget -q -O v6 http://[fec0::2]:{}/; echo got $?", v6.port()));
    session.expect("got 0");
    session.type_line("httpd -p 80 -h /tmp/www; echo served $?");
    session.expect("served 0");
    for file in ["/v4", "/v6"] {
        assert!(fetch((Ipv4Addr::LOCALHOST, web).into(), file) == body, "{file} came back changed");
    }
    let given: SocketAddr = forward[4..].rsplit_once(':').unwrap().0.parse().unwrap();
    assert!(fetch(given, "/v6") == body);

    session.type_line("echo complaints $(dmesg | grep -c 'virtio_net.*\\(error\\|fail\\|bad\\)')");
    session.expect("complaints 0");
    session.type_line("poweroff -f");
    assert_eq!(session.end(), Some(0));
}

#[test]
fn datagrams_go_both_ways_and_a_closed_port_is_told() {
    let host = UdpSocket::bind("127.0.0.1:0").unwrap();
    // A port for the forward: it was free, and is of no use to who wants any.
    let port = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let user = user("");
    let forward = format!("udp:127.0.0.1:{port}:7");
    let mut session = Session::new(&user, &["launch", "debian", "--forward", &forward]);
    session.expect(PROMPT);
    session.type_line(CONFIGURE);
    session.expect("lease 10.0.2.15");

    session.type_line("probe udp echo 7; echo echoed $?");
    session.expect("bound");
    host.send_to(b"from the host", ("127.0.0.1", port)).unwrap();
    session.expect("echoed 0");
    let mut answer = [0; 64];
    let (len, from) = host.recv_from(&mut answer).unwrap();
    assert_eq!((&answer[..len], from.port()), (&b"from the host"[..], port));

    let asked = UdpSocket::bind("127.0.0.1:0").unwrap();
    let to = asked.local_addr().unwrap().port();
    let echo = thread::spawn(move || {
        let mut question = [0; 64];
        let (len, from) = asked.recv_from(&mut question).unwrap();
        asked.send_to(&question[..len], from).unwrap();
    });
    session.type_line(&format!("probe udp ask 10.0.2.2 {to} twice-$((1+1))"));
    session.expect("twice-2");
    echo.join().unwrap();
    // Who takes datagrams of one sender only refuses all others.
    let closed = UdpSocket::bind("127.0.0.1:0").unwrap();
    closed.connect(closed.local_addr().unwrap()).unwrap();
    let to = closed.local_addr().unwrap().port();
    session.type_line(&format!("probe udp ask 10.0.2.2 {to} anyone"));
    session.expect("Connection refused");
    session.type_line("poweroff -f");
    assert_eq!(session.end(), Some(0));
}

#[test]
fn a_name_is_asked_of_the_hosts_name_server() {
    // A query for the root's name servers, which every resolver knows or can say that it does not.
    let query = [0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 1];
    let configuration = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let mut words = configuration.lines().map(|line| line.split_whitespace());
    let server = words.find_map(|mut line| {
        (line.next() == Some("nameserver")).then(|| line.next()?.parse().ok()).flatten()
    });
    if let Some(server) = server {
        let server: std::net::IpAddr = server;
        let any = if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(any).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let sent = socket.send_to(&query, (server, 53));
        if sent.is_err() || socket.recv(&mut [0; 4096]).is_err() {
            eprintln!("The host's name server does not answer the host; nothing to compare with");
            return;
        }
    }
    let user = user("");
    let mut session = Session::new(&user, &["launch", "debian"]);
    session.expect(PROMPT);
    session.type_line(CONFIGURE);
    session.expect("lease 10.0.2.15");
    session.type_line(AUTOCONFIGURED);
    session.expect("inet6 fec0::1a:11ff:fe00:100");
    for dns in ["10.0.2.3", "fec0::3"] {
        session.type_line(&format!(
            "nslookup -type=ns . {dns} > /tmp/dns 2>&1; echo lost $(grep -c 'timed out' /tmp/dns)"
        ));
        session.expect("lost 0");
    }
    session.type_line("poweroff -f");
    assert_eq!(session.end(), Some(0));
}

#[test]
fn a_port_that_is_taken_is_told_in_the_log() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let user = user("");
    let forward = format!("{address}:80");
    let launched = user.run(&["launch", "debian", "--detach", "--forward", &forward]);
    assert_eq!(launched.status.code(), Some(1));
    let logs = user.run(&["logs", "debian"]);
    let logs = String::from_utf8_lossy(&logs.stdout).into_owned();
    assert!(logs.contains(&format!("TCP {address} cannot be forwarded to the guest")), "{logs}");
}

#[test]
fn mistakes_in_forwards_are_told_where_they_are() {
    let user = user(r#""80""#);
    let launched = user.run(&["launch", "debian", "--detach"]);
    assert_eq!(launched.status.code(), Some(1));
    let logs = user.run(&["logs", "debian"]);
    let logs = String::from_utf8_lossy(&logs.stdout).into_owned();
    assert!(logs.contains("\"80\" is not a forward") && logs.contains("at line 3"), "{logs}");

    let wrong = user.run(&["launch", "debian", "--forward", "http:80"]);
    assert_eq!(wrong.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("is not a port"), "{wrong:?}");

    let user = self::user("");
    let words = ["launch", "debian", "--detach", "--default-net", "false", "--forward", "8080:80"];
    assert_eq!(user.run(&words).status.code(), Some(1));
    let logs = user.run(&["logs", "debian"]);
    let logs = String::from_utf8_lossy(&logs.stdout).into_owned();
    assert!(logs.contains("no network device"), "{logs}");
}
