//! Handles to what cannot leave its process: vCPUs, which are threads of it, and VMARs, which are its address space.
//!
//! Such a handle travels as one end of a socket, a connection; the owner serves the other end and does there what the
//! holder asks for. One thread serves all connections of a process. It believes nothing it is told:
//!
//! * A connection stands for one object and for rights, both of which the owner keeps. Who is sent a handle with fewer
//!   rights gets a connection of its own that has no more of them, so that what the holder's process says of its rights
//!   does not matter. Of rights that only matter to the holder's process ([`ENFORCED`] has the others) that process is the
//!   judge, as for every other kind of handle.
//! * All holders of one connection share its socket, so a request brings the socket that its answer goes to.
//!
//! A call takes as long as the owner does: a stopped owner is waited for, a dead one gives `ZX_ERR_BAD_STATE`. An open
//! connection keeps the object alive. A handle that comes home is a handle to the object itself, since the owner knows its
//! connections again by their sockets' cookies (`SO_COOKIE`).

mod connection;
#[cfg(test)]
mod remote_test;
mod server;
mod wire;

pub(crate) use connection::Connection;
pub(crate) use server::{connect, home, settle};
pub(crate) use wire::{Answer, Operation, Request, receive};

use fuchsia_zircon_types::*;

/// The rights that the owner of an object knows of each connection.
pub(crate) const ENFORCED: zx_rights_t =
    ZX_RIGHT_READ | ZX_RIGHT_WRITE | ZX_RIGHT_EXECUTE | ZX_RIGHT_SIGNAL | ZX_RIGHT_OP_CHILDREN;
