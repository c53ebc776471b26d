//! The FIDL runtime: wire format v2, endpoints, clients and request streams, in the shape of
//! Fuchsia's crate of this name. Generated bindings and hand-written components both stand on it;
//! whatever is true of every protocol belongs here, whatever knows a protocol does not.
//!
//! Decoding trusts nothing: every rule of the wire format is checked, and a message that breaks one
//! is an [`Error`], with all its handles closed.

#![forbid(unsafe_code)]

#[cfg(target_endian = "big")]
compile_error!("the FIDL wire format is little endian, and bulk copies rely on it");

pub mod client;
pub mod encoding;
pub mod endpoints;
pub mod epitaph;
mod error;
pub mod marker;
mod message_buffer;
mod persistence;
pub mod prelude;
mod server;

pub use error::{Error, Result};
pub use persistence::{Persistable, persist, unpersist};
pub use server::{MethodType, RequestMessage, ServeInner};

pub use fuchsia_async::{Channel as AsyncChannel, OnSignalsRef, Socket as AsyncSocket};
pub use fuchsia_zircon::{
    AsHandleRef, Channel, Clock, Event, EventPair, Fifo, Guest, Handle, HandleBased,
    HandleDisposition, HandleInfo, HandleOp, HandleRef, Job, MessageBufEtc, ObjectType, Peered,
    Port, Process, Resource, Rights, Signals, Socket, Status, Thread, Time, Timer, Vcpu, Vmar, Vmo,
};
