//! A component's two sides: [`client`] connects to the capabilities in its namespace, [`server`] serves what it provides.
//! [`namespace`] is where both meet the process: the directories that it was started with.
//! Only what any component needs may enter, and nothing that knows a particular one.
#![forbid(unsafe_code)]

pub mod client;
pub mod directory;
pub mod namespace;
pub mod server;

/// The directory with the protocols that a component uses, and, in its outgoing directory, those that it provides.
pub const SVC_DIR: &str = "/svc";
