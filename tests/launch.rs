//! `guest` as a person uses it, on a real Debian kernel: the command line, the daemon, the manager, the runner, the VMM
//! and the device processes, from the first launch to the last process' end.
#![cfg(target_os = "linux")]

mod support;

use serde_json::Value;
use support::{PROMPT, Session, User, process, wait_until};

#[test]
fn a_guest_boots_runs_commands_and_powers_off() {
    let user = User::with_guest();
    assert_eq!(user.status(), "Not started");
    let mut session = Session::new(&user, &["launch", "debian"]);
    session.expect(PROMPT);
    assert_eq!(user.status(), "Running");
    session.type_line("echo sum $((6 * 7)); ls /sys/bus/virtio/drivers");
    session.expect("sum 42");
    session.expect("virtio_balloon");
    session.expect(PROMPT);
    session.type_line("poweroff -f");
    assert_eq!(session.end(), Some(0));
    assert_eq!(user.status(), "Stopped");
}

#[test]
fn two_cpus_are_there_when_asked_for() {
    let user = User::with_guest();
    let run = ["--cmdline-add", "guest.run=grep,-c,^processor,/proc/cpuinfo"];
    let words = [&["launch", "debian", "--cpus", "2"], &run[..]].concat();
    let mut session = Session::new(&user, &words);
    session.expect("on 2 CPUs");
    session.expect("\n2");
    assert_eq!(session.end(), Some(0));
}

#[test]
fn a_second_launch_is_told_of_the_first_and_force_stops_it() {
    let user = User::with_guest();
    let launched = user.run(&["launch", "debian", "--detach"]);
    assert!(launched.status.success(), "{launched:?}");
    let second = user.run(&["launch", "debian", "--detach"]);
    assert_eq!(second.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&second.stdout).contains("runs already"), "{second:?}");
    let stopped = user.run(&["stop", "debian", "--force", "--machine", "json"]);
    let outcome: Value = serde_json::from_slice(&stopped.stdout).unwrap();
    assert_eq!(outcome["status"], "Forced");
    assert_eq!(user.status(), "Stopped");
    assert_eq!(user.run(&["stop", "debian"]).status.code(), Some(3));
}

#[test]
fn a_second_terminal_is_told_of_the_first() {
    let user = User::with_guest();
    let mut first = Session::new(&user, &["launch", "debian"]);
    first.expect(PROMPT);
    let mut second = Session::new(&user, &["attach", "debian"]);
    // What is typed there waits for the guest, and so for the word of the first.
    second.type_line("poweroff -f");
    let (_, told) = second.end_with_text();
    assert!(told.contains("Another terminal is on debian"), "{told}");
    let (code, told) = first.end_with_text();
    assert!(code == Some(0) && !told.contains("Another terminal"), "{told}");
}

#[test]
fn a_vmm_that_is_killed_is_reported_and_the_next_launch_works() {
    let user = User::with_guest();
    assert!(user.run(&["launch", "debian", "--detach"]).status.success());
    user.kill("-KILL", user.pid_of("vmm"));
    user.wait_for_status("VMM Unexpectedly Terminated");
    wait_until("nothing of the VMM is left", || {
        !user.processes().values().any(|name| name.contains("virtio") || name.contains("vmm"))
    });
    let mut session = Session::new(&user, &["launch", "debian"]);
    session.expect(PROMPT);
    session.type_line("poweroff -f");
    assert_eq!(session.end(), Some(0));
}

#[test]
fn when_the_component_manager_goes_everything_goes() {
    for signal in ["-TERM", "-KILL"] {
        let user = User::with_guest();
        assert!(user.run(&["launch", "debian", "--detach"]).status.success());
        let pids: Vec<u32> = user.processes().into_keys().collect();
        assert!(pids.len() >= 5, "{:?}", user.processes());
        user.kill(signal, user.pid_of("component_manager"));
        wait_until("everything has gone", || pids.iter().all(|pid| process(*pid).is_none()));
    }
}

#[test]
fn an_unusable_package_is_explained_in_the_log() {
    let user = User::with_package(r#"{"linux": "data/nonexistent", "cpus": 1, "memory": "64M"}"#);
    let launched = user.run(&["launch", "debian", "--detach"]);
    assert_eq!(launched.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&launched.stdout).contains("guest logs"), "{launched:?}");
    let told = String::from_utf8_lossy(&launched.stderr).into_owned();
    assert!(told.contains("data/nonexistent"), "{told}");
    let logs = user.run(&["logs", "debian"]);
    let logs = String::from_utf8_lossy(&logs.stdout).into_owned();
    assert!(logs.contains("data/nonexistent") && logs.contains("NOT_FOUND"), "{logs}");
}

#[test]
fn mistakes_on_the_command_line_are_told_with_exit_code_2() {
    let user = User::new();
    for words in [&["launch", "plan9"][..], &["lunch"], &["list", "--machine", "xml"], &[]] {
        let output = user.run(words);
        assert_eq!(output.status.code(), Some(2), "{words:?}");
        assert!(!output.stderr.is_empty() && output.stdout.is_empty(), "{words:?}");
    }
    assert_eq!(user.run(&["--help"]).status.code(), Some(0));
    assert_eq!(user.run(&["attach", "debian"]).status.code(), Some(3));
}
