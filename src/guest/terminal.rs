//! The person's (or script's) end of a guest's console: standard input read by a thread, standard output, raw mode for
//! as long as a [`Terminal`] lives, and the key that leaves.

use crate::platform::RawMode;
use futures::channel::mpsc::{Receiver, channel};
use futures::{SinkExt as _, StreamExt as _};
use std::io::{self, IsTerminal as _, Read as _, Write as _};
use std::thread;

/// Ctrl-], as in telnet: the one key that does not go to the guest.
const ESCAPE: u8 = 0x1d;
/// How much is read from standard input at once.
const CHUNK: usize = 4096;

/// Standard input and output, in raw mode where they are a terminal.
pub(crate) struct Terminal {
    input: Receiver<Vec<u8>>,
    raw: Option<RawMode>,
}

/// What comes from standard input.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Input {
    /// Bytes for the guest.
    Bytes(Vec<u8>),
    /// Bytes for the guest, and then the escape key.
    Escape(Vec<u8>),
    /// The end of a file or pipe.
    End,
}

impl Terminal {
    /// Takes standard input over.
    ///
    /// # Errors
    /// Those of making the terminal raw and of starting the reader.
    pub(crate) fn open() -> io::Result<Self> {
        let raw = match io::stdin().is_terminal() {
            true => Some(RawMode::enter()?),
            false => None,
        };
        let (mut sender, input) = channel(4);
        // Never joined: a read of standard input cannot be interrupted, and the process ends soon after us.
        thread::Builder::new().name("stdin".to_owned()).spawn(move || {
            let mut buffer = [0; CHUNK];
            loop {
                match io::stdin().lock().read(&mut buffer) {
                    Ok(0) => return,
                    Ok(n) => {
                        let send = sender.send(buffer[..n].to_vec());
                        if futures::executor::block_on(send).is_err() {
                            return;
                        }
                    }
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    Err(_) => return,
                }
            }
        })?;
        Ok(Self { input, raw })
    }

    /// Whether a person sits there.
    pub(crate) fn is_interactive(&self) -> bool {
        self.raw.is_some()
    }

    /// Waits for input.
    pub(crate) async fn read(&mut self) -> Input {
        match self.input.next().await {
            None => Input::End,
            Some(bytes) if self.raw.is_some() => split_at_escape(bytes),
            Some(bytes) => Input::Bytes(bytes),
        }
    }
}

fn split_at_escape(mut bytes: Vec<u8>) -> Input {
    match bytes.iter().position(|&byte| byte == ESCAPE) {
        Some(index) => {
            bytes.truncate(index);
            Input::Escape(bytes)
        }
        None => Input::Bytes(bytes),
    }
}

/// Writes to standard output at once.
///
/// # Errors
/// Those of writing, a closed pipe among them.
pub(crate) fn write(bytes: &[u8]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(bytes)?;
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_typed_before_the_escape_still_goes_to_the_guest() {
        assert_eq!(split_at_escape(b"ls\n".to_vec()), Input::Bytes(b"ls\n".to_vec()));
        assert_eq!(split_at_escape(b"ls\n\x1drest".to_vec()), Input::Escape(b"ls\n".to_vec()));
        assert_eq!(split_at_escape(b"\x1d".to_vec()), Input::Escape(Vec::new()));
    }
}
