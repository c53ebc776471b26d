//! The guest manager: the component that launches one kind of guest, and is itself the runner of the VMM that the guest
//! runs in. What may enter is what concerns a guest as a whole: its package and configuration, its life, its problems;
//! the machine is the VMM's.
#![forbid(unsafe_code)]

mod environment;
mod manager;
mod memory_pressure;
mod merge;
mod package;
mod package_config;
mod problems;
mod state;
