//! `guest` as a person uses it, on a real Debian kernel: the command line, the daemon, the manager, the runner, the VMM
//! and the device processes, from the first launch to the last process' end.
#![cfg(target_os = "linux")]

use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

/// Far longer than anything here takes, also on a machine that has much else to do.
const PATIENCE: Duration = Duration::from_secs(240);

/// The shell's prompt in the test guest.
const PROMPT: &str = "guest# ";

/// Kernel and initramfs, made once a test run.
fn images() -> &'static Path {
    static IMAGES: OnceLock<PathBuf> = OnceLock::new();
    IMAGES.get_or_init(|| {
        let output = Path::new(env!("CARGO_TARGET_TMPDIR")).join("guest");
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guests/build-initramfs.sh");
        let status = Command::new("sh").arg(script).arg(&output).status().unwrap();
        assert!(status.success(), "tests/guests/build-initramfs.sh failed");
        output
    })
}

/// A user with a data directory, a runtime directory and a component manager of their own.
struct User {
    home: tempfile::TempDir,
}

impl User {
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        for directory in ["data", "run"] {
            fs::create_dir(home.path().join(directory)).unwrap();
        }
        Self { home }
    }

    /// A user with a package of the test guest.
    fn with_package(config: &str) -> Self {
        let user = Self::new();
        let data = user.home.path().join("data/guest/packages/debian_guest/data");
        fs::create_dir_all(&data).unwrap();
        for file in ["vmlinuz", "initramfs.cpio.gz"] {
            fs::copy(images().join(file), data.join(file)).unwrap();
        }
        fs::write(data.join("guest.cfg"), config).unwrap();
        user
    }

    fn with_guest() -> Self {
        Self::with_package(
            r#"{
                "linux": "data/vmlinuz", "ramdisk": "data/initramfs.cpio.gz", "cmdline": "console=ttyS0",
                "cpus": 1, "memory": "256M", "virtio-rng": true, "virtio-balloon": true
            }"#,
        )
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_guest"));
        command
            .args(words)
            .env("XDG_DATA_HOME", self.home.path().join("data"))
            .env("XDG_RUNTIME_DIR", self.home.path().join("run"));
        command
    }

    fn run(&self, words: &[&str]) -> Output {
        self.command(words).stdin(Stdio::null()).output().unwrap()
    }

    /// A guest's status, as `guest list --machine json` has it.
    fn status(&self) -> String {
        let output = self.run(&["list", "--machine", "json"]);
        let list: Value = serde_json::from_slice(&output.stdout).unwrap();
        let guests = list["Summary"]["guests"].as_array().unwrap();
        let debian = guests.iter().find(|guest| guest["name"] == "debian").unwrap();
        debian["status"].as_str().unwrap().to_owned()
    }

    fn wait_for_status(&self, status: &str) {
        let begin = Instant::now();
        while self.status() != status {
            assert!(begin.elapsed() < PATIENCE, "{} and not {status}", self.status());
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// The component manager and all its descendants, by name.
    fn processes(&self) -> BTreeMap<u32, String> {
        let marker = format!("XDG_RUNTIME_DIR={}", self.home.path().join("run").display());
        let mut found = BTreeMap::new();
        let all = every_process();
        for process in &all {
            let environ = fs::read(format!("/proc/{}/environ", process.pid)).unwrap_or_default();
            let ours = environ.split(|byte| *byte == 0).any(|word| word == marker.as_bytes());
            if ours && process.words.iter().any(|word| word == "component_manager") {
                found.insert(process.pid, "component_manager".to_owned());
            }
        }
        loop {
            let before = found.len();
            for process in &all {
                if found.contains_key(&process.parent) {
                    let name = process.words.first().cloned().unwrap_or_default();
                    found.entry(process.pid).or_insert(name);
                }
            }
            if found.len() == before {
                return found;
            }
        }
    }

    fn pid_of(&self, name: &str) -> u32 {
        let processes = self.processes();
        let found = processes.iter().find(|(_, process)| process.ends_with(name));
        *found.unwrap_or_else(|| panic!("no {name} in {processes:?}")).0
    }

    fn kill(&self, signal: &str, pid: u32) {
        let killed = Command::new("kill").args([signal, &pid.to_string()]).status().unwrap();
        assert!(killed.success());
    }
}

impl Drop for User {
    fn drop(&mut self) {
        for (pid, name) in self.processes() {
            if name == "component_manager" {
                // Whatever the test came to, nothing of it stays.
                let _gone = Command::new("kill").args(["-KILL", &pid.to_string()]).status();
            }
        }
    }
}

struct ProcessEntry {
    pid: u32,
    parent: u32,
    words: Vec<String>,
}

fn every_process() -> Vec<ProcessEntry> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    entries.filter_map(|entry| process(entry.file_name().to_str()?.parse().ok()?)).collect()
}

fn process(pid: u32) -> Option<ProcessEntry> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    if status.lines().any(|line| line.starts_with("State:\tZ")) {
        return None;
    }
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:\t")?.parse().ok())?;
    let words = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let words = words.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into());
    Some(ProcessEntry { pid, parent, words: words.collect() })
}

/// A session with a guest through pipes, as a script has it.
struct Session {
    child: Child,
    output: ChildStdout,
    seen: String,
}

impl Session {
    fn new(user: &User, words: &[&str]) -> Self {
        let mut command = user.command(words);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let output = child.stdout.take().unwrap();
        Self { child, output, seen: String::new() }
    }

    /// Reads until `text` has come, and forgets what was before its end.
    fn expect(&mut self, text: &str) -> String {
        let begin = Instant::now();
        loop {
            if let Some(index) = self.seen.find(text) {
                let rest = self.seen.split_off(index + text.len());
                return std::mem::replace(&mut self.seen, rest);
            }
            let mut buffer = [0; 4096];
            let n = self.output.read(&mut buffer).unwrap();
            assert!(n > 0, "the guest has ended without {text:?}: {}", self.seen);
            assert!(begin.elapsed() < PATIENCE, "no {text:?} in: {}", self.seen);
            self.seen.push_str(&String::from_utf8_lossy(&buffer[..n]));
        }
    }

    fn type_line(&mut self, line: &str) {
        let input = self.child.stdin.as_mut().unwrap();
        writeln!(input, "{line}").unwrap();
    }

    /// Reads to the end and returns the exit code.
    fn end(mut self) -> Option<i32> {
        let mut rest = Vec::new();
        self.output.read_to_end(&mut rest).unwrap();
        self.child.wait().unwrap().code()
    }
}

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
fn a_vmm_that_is_killed_is_reported_and_the_next_launch_works() {
    let user = User::with_guest();
    assert!(user.run(&["launch", "debian", "--detach"]).status.success());
    user.kill("-KILL", user.pid_of("vmm"));
    user.wait_for_status("VMM Unexpectedly Terminated");
    let begin = Instant::now();
    while user.processes().values().any(|name| name.contains("virtio") || name.contains("vmm")) {
        assert!(begin.elapsed() < PATIENCE, "left behind: {:?}", user.processes());
        thread::sleep(Duration::from_millis(20));
    }
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
        let begin = Instant::now();
        while pids.iter().any(|pid| process(*pid).is_some()) {
            assert!(begin.elapsed() < PATIENCE, "{signal} left some of {pids:?}");
            thread::sleep(Duration::from_millis(20));
        }
    }
}

#[test]
fn an_unusable_package_is_explained_in_the_log() {
    let user = User::with_package(r#"{"linux": "data/nonexistent", "cpus": 1, "memory": "64M"}"#);
    let launched = user.run(&["launch", "debian", "--detach"]);
    assert_eq!(launched.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&launched.stdout).contains("guest logs"), "{launched:?}");
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
