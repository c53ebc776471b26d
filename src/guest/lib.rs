//! The `guest` command line: what a person or a script says to guest managers. What may enter is how commands are spelt,
//! what they print, and a terminal's ways; guests themselves are the managers' business.
#![forbid(unsafe_code)]

mod args;
mod attach;
mod balloon;
mod completion;
#[cfg(target_os = "linux")]
mod image;
mod launch;
mod list;
mod mem;
mod outcome;
mod platform;
mod socat;
mod spelling;
mod stop;
mod terminal;
