//! A guest's console, as a script has it: wait for a text, run a command, get what it printed.

use crate::PATIENCE;
use crate::packages::GuestKernel;
use fuchsia_async::{self as fasync, TimeoutExt as _};
use fuchsia_zircon as zx;
use futures::{AsyncReadExt as _, AsyncWriteExt as _};

/// The shell's prompt in the Linux guest, before the harness has silenced it.
const LINUX_PROMPT: &str = "guest# ";
/// The shell's prompt in the Zircon guest.
const ZIRCON_PROMPT: &str = "\n$ ";

/// One port of a guest, both ways.
pub struct GuestConsole {
    socket: fasync::Socket,
    kernel: GuestKernel,
    seen: String,
    commands: u32,
}

impl GuestConsole {
    pub(crate) fn new(socket: zx::Socket, kernel: GuestKernel) -> Self {
        let socket = fasync::Socket::from_socket(socket);
        Self { socket, kernel, seen: String::new(), commands: 0 }
    }

    /// Another port of a guest, such as what `Guest.GetConsole` gives, with whatever shell the test has put there.
    #[must_use]
    pub fn on(socket: zx::Socket, kernel: GuestKernel) -> Self {
        Self::new(socket, kernel)
    }

    /// Reads until `text` has come, and returns what came before its end.
    ///
    /// # Panics
    /// Where the guest ends or is silent instead.
    pub async fn wait_for(&mut self, text: &str) -> String {
        loop {
            if let Some(index) = self.seen.find(text) {
                let rest = self.seen.split_off(index + text.len());
                return std::mem::replace(&mut self.seen, rest);
            }
            let mut buffer = [0; 16384];
            let read = self.socket.read(&mut buffer);
            let Some(result) =
                async { Some(read.await) }.on_timeout(zx::Time::after(PATIENCE), || None).await
            else {
                panic!("no {text:?} from the guest, only:\n{}", self.seen);
            };
            let n = result.expect("the guest's console broke");
            assert!(n > 0, "the guest has ended without {text:?}; it said:\n{}", self.seen);
            self.seen.push_str(&String::from_utf8_lossy(&buffer[..n]));
        }
    }

    /// Reads to the guest's end, and returns all that came.
    pub async fn wait_for_end(&mut self) -> String {
        let mut rest = Vec::new();
        let read = self.socket.read_to_end(&mut rest);
        let ended = async { Some(read.await) }.on_timeout(zx::Time::after(PATIENCE), || None).await;
        assert!(ended.is_some(), "the guest does not end");
        self.seen.push_str(&String::from_utf8_lossy(&rest));
        std::mem::take(&mut self.seen)
    }

    /// Writes, as a keyboard would.
    ///
    /// # Panics
    /// Where the guest has ended.
    pub async fn write(&mut self, text: &str) {
        self.socket.write_all(text.as_bytes()).await.expect("the guest's console broke");
    }

    /// Waits until the shell takes commands.
    pub async fn wait_for_shell(&mut self) {
        match self.kernel {
            GuestKernel::Zircon => drop(self.wait_for(ZIRCON_PROMPT).await),
            GuestKernel::Linux => {
                self.wait_for(LINUX_PROMPT).await;
                // Commands neither echoed nor edited from here on: a shell without a terminal, whose lines are as long
                // as the terminal driver takes, 4095 bytes.
                self.write("stty -echo; sh 2>&1 | cat\n").await;
            }
        }
    }

    /// Runs a shell command and returns what it printed, with line feeds alone at the ends of lines.
    ///
    /// # Panics
    /// Where the guest ends first; on Linux, where the command fails.
    pub async fn run(&mut self, command: &str) -> String {
        let (status, output) = self.try_run(command).await;
        assert_eq!(status, 0, "{command:?} failed in the guest:\n{output}");
        output
    }

    /// Runs a shell command and returns its exit status (0 on Zircon, whose commands have none) and what it printed.
    ///
    /// # Panics
    /// Where the guest ends first.
    pub async fn try_run(&mut self, command: &str) -> (i32, String) {
        self.commands += 1;
        let output = match self.kernel {
            GuestKernel::Zircon => {
                self.write(&format!("{command}\n")).await;
                // What was typed comes back first.
                self.wait_for("\n").await;
                let mut output = self.wait_for(ZIRCON_PROMPT).await;
                output.truncate(output.len() - ZIRCON_PROMPT.len() + 1);
                (0, output)
            }
            GuestKernel::Linux => {
                // In two halves, so that an echo of the command would not be taken for its output.
                let number = self.commands;
                let line =
                    format!("echo be''gin {number}; {command}\necho en''d {number} $? end\n");
                self.write(&line).await;
                self.wait_for(&format!("begin {number}\r\n")).await;
                let end = format!("end {number} ");
                let mut output = self.wait_for(&end).await;
                output.truncate(output.len() - end.len());
                let status = self.wait_for(" end").await;
                let status = status.trim_end_matches(" end").parse().expect("an exit status");
                (status, output)
            }
        };
        (output.0, output.1.replace("\r\n", "\n"))
    }
}
