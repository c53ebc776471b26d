//! What a command comes to: a value that prints as text or as JSON, and an exit code.

use crate::spelling::Output;
use serde::Serialize;
use std::fmt;
use std::io::{self, Write as _};

/// Exit code: a signal asked the command to end, 128 + SIGINT as shells have it.
pub(crate) const EXIT_INTERRUPTED: u8 = 130;
/// Exit code: the guest is not running, or lacks what the command needs.
pub(crate) const EXIT_NOT_RUNNING: u8 = 3;
/// Exit code: the command line was not understood.
pub(crate) const EXIT_USAGE: u8 = 2;
/// Exit code: the command failed.
pub(crate) const EXIT_FAILURE: u8 = 1;

/// The result of a command.
pub(crate) trait Outcome: Serialize + fmt::Display {
    /// 0 where the command did what it was asked to.
    fn exit_code(&self) -> u8;
}

/// Prints an outcome the way the caller wants it and returns its exit code.
pub(crate) fn print(outcome: &impl Outcome, output: Output) -> io::Result<u8> {
    let mut out = io::stdout().lock();
    match output {
        Output::Text => write!(out, "{outcome}")?,
        Output::Json => {
            serde_json::to_writer(&mut out, outcome)?;
            writeln!(out)?;
        }
    }
    out.flush()?;
    Ok(outcome.exit_code())
}
