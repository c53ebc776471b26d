//! What the tests of the whole program share: a user of their own, with packages, processes and sessions. They are only for the
//! host, because the program, its daemon and the user's files are Linux'; what a client sees of a guest is in the suites over
//! `enclosed_guest`, which are for Fuchsia, too.
#![allow(dead_code, reason = "every test file is a crate of its own and uses its part")]

pub(crate) mod terminal;

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
pub(crate) const PATIENCE: Duration = Duration::from_secs(240);

/// The shell's prompt in the test guest.
pub(crate) const PROMPT: &str = "guest# ";

/// Kernel and initramfs, made once a test run.
pub(crate) fn images() -> &'static Path {
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
pub(crate) struct User {
    pub(crate) home: tempfile::TempDir,
}

impl User {
    pub(crate) fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        for directory in ["data", "run"] {
            fs::create_dir(home.path().join(directory)).unwrap();
        }
        Self { home }
    }

    /// A user with a package of the test guest.
    pub(crate) fn with_package(config: &str) -> Self {
        let user = Self::new();
        user.add_package("debian", config);
        user
    }

    /// Adds a package of the test guest, as a guest of this type, and returns where its files are.
    pub(crate) fn add_package(&self, guest: &str, config: &str) -> PathBuf {
        let data = self.data(guest);
        fs::create_dir_all(&data).unwrap();
        for file in ["vmlinuz", "initramfs.cpio.gz"] {
            // Nobody writes them, so one copy does for all.
            let (from, to) = (images().join(file), data.join(file));
            fs::hard_link(&from, &to).or_else(|_| fs::copy(&from, &to).map(|_| ())).unwrap();
        }
        fs::write(data.join("guest.cfg"), config).unwrap();
        data
    }

    /// Where the files of a guest's package are.
    pub(crate) fn data(&self, guest: &str) -> PathBuf {
        self.home.path().join(format!("data/guest/packages/{guest}_guest/data"))
    }

    pub(crate) fn with_guest() -> Self {
        Self::with_package(
            r#"{
                "linux": "data/vmlinuz", "ramdisk": "data/initramfs.cpio.gz", "cmdline": "console=ttyS0",
                "cpus": 1, "memory": "256M", "virtio-rng": true, "virtio-balloon": true
            }"#,
        )
    }

    pub(crate) fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_guest"));
        command
            .args(words)
            .env("XDG_DATA_HOME", self.home.path().join("data"))
            .env("XDG_RUNTIME_DIR", self.home.path().join("run"));
        command
    }

    /// A command of `guest` behind another program, such as one that sets limits.
    pub(crate) fn wrapped(&self, mut wrapper: Command, words: &[&str]) -> Command {
        let command = self.command(words);
        wrapper.arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            wrapper.env(name, value.unwrap_or_default());
        }
        wrapper
    }

    pub(crate) fn run(&self, words: &[&str]) -> Output {
        self.command(words).stdin(Stdio::null()).output().unwrap()
    }

    /// A guest's status, as `guest list --machine json` has it.
    pub(crate) fn status(&self) -> String {
        let output = self.run(&["list", "--machine", "json"]);
        let list: Value = serde_json::from_slice(&output.stdout).unwrap();
        let guests = list["Summary"]["guests"].as_array().unwrap();
        let debian = guests.iter().find(|guest| guest["name"] == "debian").unwrap();
        debian["status"].as_str().unwrap().to_owned()
    }

    pub(crate) fn wait_for_status(&self, status: &str) {
        wait_until(status, || self.status() == status);
    }

    /// The component manager and all its descendants, by name.
    pub(crate) fn processes(&self) -> BTreeMap<u32, String> {
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

    pub(crate) fn pid_of(&self, name: &str) -> u32 {
        let processes = self.processes();
        let found = processes.iter().find(|(_, process)| process.ends_with(name));
        *found.unwrap_or_else(|| panic!("no {name} in {processes:?}")).0
    }

    pub(crate) fn kill(&self, signal: &str, pid: u32) {
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

/// Waits for something that will be.
pub(crate) fn wait_until(what: &str, mut is: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !is() {
        assert!(begin.elapsed() < PATIENCE, "not so in time: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

pub(crate) struct ProcessEntry {
    pub(crate) pid: u32,
    pub(crate) parent: u32,
    pub(crate) words: Vec<String>,
}

pub(crate) fn every_process() -> Vec<ProcessEntry> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    entries.filter_map(|entry| process(entry.file_name().to_str()?.parse().ok()?)).collect()
}

pub(crate) fn process(pid: u32) -> Option<ProcessEntry> {
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
pub(crate) struct Session {
    pub(crate) child: Child,
    pub(crate) output: ChildStdout,
    errors: Option<thread::JoinHandle<String>>,
    seen: String,
}

impl Session {
    pub(crate) fn new(user: &User, words: &[&str]) -> Self {
        Self::with_command(user.command(words))
    }

    pub(crate) fn with_command(mut command: Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let output = child.stdout.take().unwrap();
        let mut errors = child.stderr.take().unwrap();
        // Read all the time, so that the command never waits for it to be.
        let errors = thread::spawn(move || {
            let mut text = String::new();
            errors.read_to_string(&mut text).unwrap();
            text
        });
        Self { child, output, errors: Some(errors), seen: String::new() }
    }

    /// Reads until `text` has come, and forgets what was before its end.
    pub(crate) fn expect(&mut self, text: &str) -> String {
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

    pub(crate) fn type_line(&mut self, line: &str) {
        let input = self.child.stdin.as_mut().unwrap();
        writeln!(input, "{line}").unwrap();
    }

    /// Reads to the end and returns the exit code.
    pub(crate) fn end(self) -> Option<i32> {
        self.end_with_text().0
    }

    /// Reads to the end and returns the exit code, and what was said on standard error and since then on standard output.
    pub(crate) fn end_with_text(mut self) -> (Option<i32>, String) {
        let mut rest = Vec::new();
        self.output.read_to_end(&mut rest).unwrap();
        let code = self.child.wait().unwrap().code();
        let mut text = self.errors.take().unwrap().join().unwrap();
        text.push_str(&self.seen);
        text.push_str(&String::from_utf8_lossy(&rest));
        (code, text)
    }
}
