//! `guest launch zircon` as a person uses it: the package is made on the way, the kernel's shell answers, and each way
//! out ends the command as it should.
#![cfg(target_os = "linux")]

mod support;

use serde_json::Value;
use std::fs;
use support::{Session, User};

/// The end of the kernel's start, and its first prompt.
const READY: &str = "type help for a list of commands\r\n$ ";

fn details(user: &User) -> Value {
    let output = user.run(&["list", "zircon", "--machine", "json"]);
    serde_json::from_slice::<Value>(&output.stdout).unwrap()["Details"].clone()
}

#[test]
fn the_package_is_made_the_shell_answers_and_poweroff_ends_the_command() {
    let user = User::new();
    let mut session = Session::new(&user, &["launch", "zircon", "--cpus", "3"]);
    let start = session.expect(READY);
    assert!(start.contains("command line \"kernel.serial=legacy\""), "{start}");
    assert!(start.contains("3 of 3 CPUs are up"), "{start}");
    let details = details(&user);
    assert_eq!((&details["status"], &details["cpu_count"]), (&"Running".into(), &3.into()));
    session.type_line("work 1000");
    session.expect("3 CPUs have counted to 3000");
    session.type_line("echo that is all");
    session.expect("\r\nthat is all\r\n$ ");
    session.type_line("poweroff");
    assert_eq!(session.end(), Some(0));
    let images = user.run(&["image", "list"]);
    assert!(String::from_utf8_lossy(&images.stdout).contains("zircon"), "{images:?}");
}

#[test]
fn it_is_stopped_by_asking_it() {
    let user = User::new();
    let mut session = Session::new(&user, &["launch", "zircon"]);
    session.expect(READY);
    let stopped = user.run(&["stop", "zircon", "--machine", "json"]);
    let outcome: Value = serde_json::from_slice(&stopped.stdout).unwrap();
    assert_eq!(outcome["status"], "Graceful");
    assert_eq!(session.end(), Some(0));
}

#[test]
fn a_crash_is_the_launchs_failure() {
    let user = User::new();
    let mut session = Session::new(&user, &["launch", "zircon"]);
    session.expect(READY);
    session.type_line("crash triple-fault");
    let (code, rest) = session.end_with_text();
    assert_eq!(code, Some(1));
    assert!(rest.contains("VcpuRuntimeFailure") && rest.contains("guest logs"), "{rest}");
    assert_eq!(details(&user)["stop_reason"], "VcpuRuntimeFailure");
}

#[test]
fn another_boot_image_takes_the_kernels_place() {
    let user = User::new();
    assert_eq!(user.run(&["image", "build", "zircon"]).status.code(), Some(0));
    // Once is enough, and what the user may have changed is not thrown away unasked.
    assert_eq!(user.run(&["image", "build", "zircon"]).status.code(), Some(1));
    let data = user.data("zircon");
    fs::rename(data.join("kernel.zbi"), data.join("other.zbi")).unwrap();
    let config = r#"{"zircon": "data/other.zbi", "cmdline": "other", "memory": "64M", "cpus": 1}"#;
    fs::write(data.join("guest.cfg"), config).unwrap();
    let mut session = Session::new(&user, &["launch", "zircon"]);
    assert!(session.expect(READY).contains("command line \"other\""));
    session.type_line("power shutdown");
    assert_eq!(session.end(), Some(0));
}
