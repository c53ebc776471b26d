//! The holder's side of a connection.

use super::wire::{receive_reply, send_request};
use super::{Answer, ENFORCED, Operation, Request};
use crate::handle_table::Held;
use crate::object::lock;
use crate::status::{BAD_STATE, IO_DATA_INTEGRITY, Result};
use crate::transfer::{Descriptor, Export};
use fuchsia_zircon_types::*;
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::{Errno, fcntl_dupfd_cloexec};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use std::sync::Mutex;

/// The way to an object of another process.
#[derive(Debug)]
pub(crate) struct Connection {
    socket: OwnedFd,
    /// What the owner lets its holders do, of [`ENFORCED`].
    rights: zx_rights_t,
    /// Connections with fewer rights, made for handles that were sent on; at most one for each set of rights.
    reduced: Mutex<Vec<(zx_rights_t, OwnedFd)>>,
}

pub(super) fn socket_pair() -> std::result::Result<(OwnedFd, OwnedFd), Errno> {
    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
}

impl Connection {
    /// The connection that came with a handle that has these rights.
    pub(crate) fn new(socket: OwnedFd, rights: zx_rights_t) -> Connection {
        Connection { socket, rights: rights & ENFORCED, reduced: Mutex::default() }
    }

    /// Asks the owner to do something, and waits for its answer. `vmo` goes with the request.
    ///
    /// Errors: what the owner answers; `ZX_ERR_BAD_STATE` when it is gone.
    pub(crate) fn call(&self, request: &Request, vmo: Option<&Held>) -> Result<Answer> {
        let (near, far) = socket_pair()?;
        let export = vmo.map(Export::new).transpose()?;
        let descriptor = export.as_ref().map_or_else(Descriptor::default, |it| it.descriptor);
        let mut fds = vec![far.as_fd()];
        fds.extend(export.iter().flat_map(Export::fds));
        match send_request(self.socket.as_fd(), request, descriptor, &fds) {
            Ok(()) => {}
            Err(Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN) => return Err(BAD_STATE),
            Err(errno) => return Err(errno.into()),
        }
        // Ours of the other end, or we would wait for ever when the owner dies.
        drop(fds);
        drop(far);
        receive_reply(near.as_fd()).unwrap_or(Err(BAD_STATE))
    }

    /// Makes sure that a handle with these rights can be sent on, which can take a call to the owner.
    pub(crate) fn prepare(&self, rights: zx_rights_t) -> Result<()> {
        let rights = rights & self.rights;
        if rights == self.rights || lock(&self.reduced).iter().any(|it| it.0 == rights) {
            return Ok(());
        }
        let socket = match self.call(&Request::new(Operation::Connect, rights), None) {
            Ok(answer) => answer.socket.ok_or(IO_DATA_INTEGRITY)?,
            // The handle travels all the same; its connection is one that leads nowhere.
            Err(BAD_STATE) => socket_pair()?.0,
            Err(status) => return Err(status),
        };
        let mut reduced = lock(&self.reduced);
        if !reduced.iter().any(|it| it.0 == rights) {
            reduced.push((rights, socket));
        }
        Ok(())
    }

    /// The descriptor that a message carries for a handle with these rights, after [`Connection::prepare`].
    pub(crate) fn for_transfer(&self, rights: zx_rights_t) -> std::result::Result<OwnedFd, Errno> {
        let rights = rights & self.rights;
        if rights == self.rights {
            return fcntl_dupfd_cloexec(&self.socket, 3);
        }
        let reduced = lock(&self.reduced);
        let (_, socket) = reduced.iter().find(|it| it.0 == rights).ok_or(Errno::IO)?;
        fcntl_dupfd_cloexec(socket, 3)
    }
}
