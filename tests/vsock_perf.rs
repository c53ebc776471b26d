//! `guest vsock-perf` and `guest socat` against a real guest's vsock driver.
#![cfg(target_os = "linux")]

mod support;

use serde_json::Value;
use std::io::Write as _;
use std::process::Stdio;
use support::{PROMPT, Session, User};

fn with_vsock() -> User {
    User::with_package(
        r#"{
            "linux": "data/vmlinuz", "ramdisk": "data/initramfs.cpio.gz", "cmdline": "console=ttyS0",
            "cpus": 1, "memory": "256M", "virtio-vsock": true
        }"#,
    )
}

#[test]
fn vsock_perf_measures_and_finds_no_corruption() {
    let user = with_vsock();
    let mut session = Session::new(&user, &["launch", "debian"]);
    session.expect(PROMPT);
    let words =
        ["vsock-perf", "debian", "--repeats", "3", "--transfer-size", "4", "--machine", "json"];
    let measured = user.run(&words);
    assert!(measured.status.success(), "{measured:?}");
    let measured: Value = serde_json::from_slice(&measured.stdout).unwrap();
    let measured = &measured["BenchmarkComplete"];
    assert_eq!(measured["data_corruption"], true);
    for (name, unit) in [
        ("round_trip_page", "Nanoseconds"),
        ("tx_throughput", "MebibytesPerSecond"),
        ("rx_throughput", "MebibytesPerSecond"),
        ("single_stream_unidirectional", "MebibytesPerSecond"),
        ("multi_stream_unidirectional", "MebibytesPerSecond"),
    ] {
        let percentiles = &measured[name];
        assert_eq!(percentiles["unit"], unit, "{measured}");
        let value = |key: &str| percentiles[key].as_f64().unwrap();
        assert!(value("min") > 0.0 && value("min") <= value("p_50th"), "{measured}");
        assert!(
            value("p_50th") <= value("p_99th") && value("p_99th") <= value("max"),
            "{measured}"
        );
    }
    // The guest's program has ended with the measurement.
    session.type_line("echo again $((6 * 7)); poweroff -f");
    session.expect("again 42");
    assert_eq!(session.end(), Some(0));
}

#[test]
fn vsock_perf_says_what_it_lacks() {
    let user = User::with_guest();
    assert_eq!(user.run(&["vsock-perf", "debian"]).status.code(), Some(3));
    let other = user.run(&["vsock-perf", "zircon"]);
    assert_eq!(other.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&other.stdout).contains("there is debian"), "{other:?}");
    assert!(user.run(&["launch", "debian", "--detach"]).status.success());
    let without = user.run(&["vsock-perf", "debian"]);
    assert_eq!(without.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&without.stdout).contains("--virtio-vsock"), "{without:?}");
}

#[test]
fn socat_connects_to_a_port_of_the_guest_and_listens_on_one_of_the_host() {
    let user = with_vsock();
    let mut session = Session::new(&user, &["launch", "debian"]);
    session.expect(PROMPT);

    let refused = user.run(&["socat", "connect", "debian", "4000"]);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    assert!(String::from_utf8_lossy(&refused.stdout).contains("port 4000"), "{refused:?}");

    // The guest sends back what it is sent, until the end of our input.
    session.type_line("probe vsock echo 4000 & sleep 1; echo ready $((6 * 7))");
    session.expect("ready 42");
    let mut connect = user.command(&["socat", "connect", "debian", "4000"]);
    let mut connect = connect.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    connect.stdin.take().unwrap().write_all(b"over the wall\n").unwrap();
    let echoed = connect.wait_with_output().unwrap();
    assert!(echoed.status.success(), "{echoed:?}");
    assert_eq!(echoed.stdout, b"over the wall\n");

    // The other way: the host listens, the guest connects; the old spelling does the same.
    for words in [
        &["socat", "listen", "debian", "5000"][..],
        &["socat-listen", "--host-port", "5000", "--guest-type", "debian"],
    ] {
        let mut listen = user.command(words);
        let listen = listen.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        // Until somebody listens the guest is refused.
        session.type_line(
            "until echo from inside | probe vsock connect 2 5000; do sleep 0.1; done 2>/dev/null",
        );
        let heard = listen.wait_with_output().unwrap();
        assert!(heard.status.success(), "{heard:?}");
        assert_eq!(heard.stdout, b"from inside\n");
    }
    session.type_line("poweroff -f");
    assert_eq!(session.end(), Some(0));
}
