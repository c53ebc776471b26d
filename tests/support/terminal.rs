//! A person's terminal: a pty with a program on it.

use super::{PATIENCE, User};
use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Termios, tcgetattr};
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::process::{Child, Command};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Instant;

/// Ctrl-C.
pub(crate) const INTERRUPT: u8 = 0x03;
/// Ctrl-], which detaches.
pub(crate) const ESCAPE: u8 = 0x1d;

/// A terminal on which a command of `guest` runs, as the leader of a session.
pub(crate) struct Terminal {
    pub(crate) child: Child,
    keyboard: File,
    screen: Receiver<Vec<u8>>,
    /// The program's end of the terminal, to ask for its modes.
    line: File,
    before: Termios,
    seen: String,
}

impl Terminal {
    pub(crate) fn new(user: &User, words: &[&str]) -> Self {
        Self::with_command(&user.command(words))
    }

    pub(crate) fn with_command(command: &Command) -> Self {
        let keyboard =
            openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&keyboard).unwrap();
        unlockpt(&keyboard).unwrap();
        let name = ptsname(&keyboard, Vec::new()).unwrap();
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let line = File::from(rustix::fs::open(name, flags, Mode::empty()).unwrap());
        let before = tcgetattr(&line).unwrap();
        // It becomes the command, so the process that it starts as is the command's.
        let mut session = Command::new("setsid");
        session.arg("--ctty").arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            session.env(name, value.unwrap_or_default());
        }
        let end = || line.try_clone().unwrap();
        let child = session.stdin(end()).stdout(end()).stderr(end()).spawn().unwrap();
        let keyboard = File::from(keyboard);
        let mut output = keyboard.try_clone().unwrap();
        let (sender, screen) = channel();
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(n) = output.read(&mut buffer) {
                if sender.send(buffer[..n].to_vec()).is_err() {
                    return;
                }
            }
        });
        Self { child, keyboard, screen, line, before, seen: String::new() }
    }

    /// Presses keys.
    pub(crate) fn press(&mut self, keys: &[u8]) {
        self.keyboard.write_all(keys).unwrap();
    }

    /// Reads until `text` has come, and forgets what was before its end.
    pub(crate) fn expect(&mut self, text: &str) {
        let begin = Instant::now();
        loop {
            if let Some(index) = self.seen.find(text) {
                self.seen.drain(..index + text.len());
                return;
            }
            let rest = PATIENCE.saturating_sub(begin.elapsed());
            let bytes = self.screen.recv_timeout(rest);
            let bytes = bytes.unwrap_or_else(|_| panic!("no {text:?} in: {}", self.seen));
            self.seen.push_str(&String::from_utf8_lossy(&bytes));
        }
    }

    /// Whether keys go to the program as they are.
    pub(crate) fn is_raw(&self) -> bool {
        !tcgetattr(&self.line).unwrap().local_modes.contains(LocalModes::ICANON)
    }

    /// Whether the terminal is as it was before the program came.
    pub(crate) fn is_restored(&self) -> bool {
        let now = tcgetattr(&self.line).unwrap();
        now.local_modes == self.before.local_modes
            && now.input_modes == self.before.input_modes
            && now.output_modes == self.before.output_modes
            && now.control_modes == self.before.control_modes
    }

    /// Waits for the program's end and returns its exit code; a signal counts as a shell has it.
    pub(crate) fn end(&mut self) -> i32 {
        use std::os::unix::process::ExitStatusExt as _;
        let begin = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code().or(status.signal().map(|signal| 128 + signal)).unwrap();
            }
            assert!(begin.elapsed() < PATIENCE, "it does not end: {}", self.seen);
            thread::sleep(std::time::Duration::from_millis(5));
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}
