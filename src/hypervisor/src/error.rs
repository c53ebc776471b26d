//! The errors of the public interface; each says whose fault it is.

use std::io;

/// Why a call of this crate did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// [`crate::VcpuRemote::kick`] asked the vCPU to leave the guest. It may be entered again.
    #[error("the vCPU was kicked")]
    Canceled,
    /// The caller passed an argument that no state of the guest could make valid.
    #[error("invalid argument: {0}")]
    InvalidArgs(&'static str),
    /// An address, size, port or vector lies outside the range the call accepts.
    #[error("out of range: {0}")]
    OutOfRange(&'static str),
    /// The range overlaps a trap or mapping that is already there.
    #[error("the range overlaps an existing one")]
    AlreadyExists,
    /// The object is not in a state in which the call makes sense (a write of port input that nobody
    /// waits for, a bell whose receiver is gone).
    #[error("bad state: {0}")]
    BadState(&'static str),
    /// The guest entered the shutdown state: a fault while delivering a double fault
    /// (SDM vol. 3 §6.15, "Interrupt 8"). The virtual machine cannot continue.
    #[error("triple fault at rip {rip:#x}: the virtual machine shut down")]
    Shutdown {
        /// Linear address of the instruction that could not be resumed.
        rip: u64,
    },
    /// The host lacks what guests need; the text says what, and what to do.
    #[error("unsupported: {0}")]
    NotSupported(&'static str),
    /// The host refused a resource.
    #[error("host: {0}")]
    Host(#[from] io::Error),
}

impl From<rustix::io::Errno> for Error {
    fn from(errno: rustix::io::Errno) -> Self {
        Error::Host(errno.into())
    }
}
