//! How a handle travels to another process: a descriptor in the message and up to three file descriptors beside it.
//!
//! A receiver trusts none of it. The descriptor says what the sender claims; whatever is behind a file descriptor only
//! ever gets calls that are harmless on the wrong kind of file.

use crate::channel::Channel;
use crate::event::Event;
use crate::fifo::Fifo;
use crate::guest::{Guest, Vcpu};
use crate::handle_table::Held;
use crate::object::{Kind, Object};
use crate::port::{Port, Sharing};
use crate::remote::{Connection, ENFORCED, home};
use crate::resource::Resource;
use crate::socket::Socket;
use crate::status::{IO_DATA_INTEGRITY, Result};
use crate::task::{Job, Process, Thread};
use crate::timer::Timer;
use crate::vmar::Vmar;
use crate::vmo::Vmo;
use fuchsia_zircon_types::*;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use std::sync::Arc;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// File descriptors of one handle. 64 handles stay below the 253 that one message can carry.
pub(crate) const MAX_FDS: usize = 3;

const CHANNEL_GATE: u32 = 1;
const CHANNEL_BACKLOG: u32 = 2;
const CHANNEL_HANDLES_FOLLOW: u32 = 4;

/// A handle in a message.
///
/// `Default` is no object's.
#[derive(Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct Descriptor {
    koid: u64,
    related: u64,
    /// What the kind of object needs beside its file descriptors.
    extra: [u64; 3],
    object_type: u32,
    rights: u32,
    fds: u32,
    flags: u32,
}

enum Fd<'a> {
    Borrowed(BorrowedFd<'a>),
    Owned(OwnedFd),
}

/// A handle on its way into a message.
pub(crate) struct Export<'a> {
    pub(crate) descriptor: Descriptor,
    fds: Vec<Fd<'a>>,
}

/// Does what has to be done before a handle with these rights can be sent, and can take a while.
///
/// Errors: `ZX_ERR_NO_RESOURCES` when the process that the object belongs to cannot serve more.
pub(crate) fn prepare(held: Held) -> Result<Held> {
    let connection = match &held.object.kind {
        Kind::Vcpu(vcpu) => vcpu.connection(),
        Kind::Vmar(vmar) => vmar.connection(),
        _ => None,
    };
    if let Some(connection) = connection {
        connection.prepare(held.rights)?;
    }
    Ok(held)
}

/// The connection that a message carries for an object that cannot leave its process.
fn connection_for_transfer(
    held: &Held,
    connection: Option<&Connection>,
) -> std::result::Result<OwnedFd, Errno> {
    match connection {
        Some(connection) => connection.for_transfer(held.rights),
        None => crate::remote::connect(&held.object, held.rights),
    }
}

impl Descriptor {
    /// The VMO that a request brings.
    pub(crate) fn import_vmo(&self, fds: Vec<OwnedFd>) -> Result<Held> {
        // Not any object: the import of some has effects of its own.
        if self.object_type != ZX_OBJ_TYPE_VMO || fds.len() != self.fds as usize {
            return Err(IO_DATA_INTEGRITY);
        }
        import(self, &mut fds.into_iter())
    }
}

impl<'a> Export<'a> {
    pub(crate) fn new(held: &'a Held) -> std::result::Result<Export<'a>, Errno> {
        let object: &'a Object = &held.object;
        let mut fds = Vec::with_capacity(MAX_FDS);
        let (mut extra, mut flags) = ([0; 3], 0);
        match &object.kind {
            Kind::Channel(channel) => {
                fds.push(Fd::Borrowed(channel.fd()));
                extra[0] = channel.local_user_signals().into();
                if channel.handles_follow() {
                    flags |= CHANNEL_HANDLES_FOLLOW;
                }
                for (flag, fd) in [
                    (CHANNEL_GATE, channel.gate_for_transfer()?),
                    (CHANNEL_BACKLOG, channel.backlog_for_transfer()?),
                ] {
                    if let Some(fd) = fd {
                        flags |= flag;
                        fds.push(Fd::Owned(fd));
                    }
                }
            }
            Kind::Event(event) => {
                fds.extend(event.fds().into_iter().flatten().map(Fd::Borrowed));
                extra[0] = event.side() as u64;
            }
            Kind::Fifo(fifo) => {
                fds.extend(fifo.fds().map(Fd::Borrowed));
                extra = fifo.to_wire();
            }
            Kind::Guest(guest) => fds.push(Fd::Owned(guest.control_for_transfer()?)),
            Kind::Job(job) => fds.push(Fd::Owned(job.control_for_transfer(&held.object)?)),
            Kind::Port(port) => {
                let sharing = port.share(&held.object).map_err(|_| Errno::MFILE)?;
                fds.extend(sharing.fds().map(Fd::Borrowed));
            }
            Kind::Process(process) => {
                fds.push(Fd::Borrowed(process.fd()));
                extra[0] = process.pid().into();
            }
            Kind::Resource(resource) => (extra, flags) = resource.to_wire(),
            Kind::Socket(socket) => {
                fds.push(Fd::Borrowed(socket.fd()));
                let signals = socket.user_signals().fds().map_err(|_| Errno::MFILE)?;
                fds.extend(signals.into_iter().flatten().map(Fd::Borrowed));
                (extra, flags) = socket.to_wire();
            }
            Kind::Thread(thread) => fds.extend(thread.fd().map(Fd::Borrowed)),
            Kind::Timer(timer) => fds.push(Fd::Borrowed(timer.fd())),
            Kind::Vcpu(vcpu) => {
                fds.push(Fd::Owned(connection_for_transfer(held, vcpu.connection())?));
            }
            Kind::Vmar(vmar) => {
                fds.push(Fd::Owned(connection_for_transfer(held, vmar.connection())?));
                let zx_info_vmar_t { base, len } = vmar.info();
                extra = [base as u64, len as u64, 0];
            }
            Kind::Vmo(vmo) => {
                fds.push(Fd::Borrowed(vmo.fd()));
                (extra, flags) = vmo.to_wire();
            }
        }
        let descriptor = Descriptor {
            koid: object.koid,
            related: object.related,
            extra,
            object_type: object.object_type(),
            rights: held.rights,
            fds: fds.len() as u32,
            flags,
        };
        Ok(Export { descriptor, fds })
    }

    pub(crate) fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.fds.iter().map(|fd| match fd {
            Fd::Borrowed(fd) => *fd,
            Fd::Owned(fd) => fd.as_fd(),
        })
    }
}

/// Makes an object of what another process sent.
pub(crate) fn import(
    descriptor: &Descriptor,
    fds: &mut impl Iterator<Item = OwnedFd>,
) -> Result<Held> {
    if descriptor.fds as usize > MAX_FDS {
        return Err(IO_DATA_INTEGRITY);
    }
    let mut fds = fds.take(descriptor.fds as usize);
    let mut next = || fds.next().ok_or(IO_DATA_INTEGRITY);
    let (extra, flags) = (descriptor.extra, descriptor.flags);
    let kind = match descriptor.object_type {
        ZX_OBJ_TYPE_CHANNEL => {
            let fd = next()?;
            let gate = (flags & CHANNEL_GATE != 0).then(&mut next).transpose()?;
            let backlog = (flags & CHANNEL_BACKLOG != 0).then(&mut next).transpose()?;
            let (signals, handles) =
                (extra[0] as zx_signals_t, flags & CHANNEL_HANDLES_FOLLOW != 0);
            Kind::Channel(Channel::from_transfer(fd, gate, backlog, signals, handles)?)
        }
        ZX_OBJ_TYPE_EVENT => Kind::Event(Event::from_fds(next()?, next()?, None)),
        ZX_OBJ_TYPE_EVENTPAIR => {
            let side = usize::from(extra[0] != 0);
            Kind::Event(Event::from_fds(next()?, next()?, Some((next()?, side))))
        }
        ZX_OBJ_TYPE_FIFO => Kind::Fifo(Fifo::from_wire([next()?, next()?, next()?], extra)?),
        ZX_OBJ_TYPE_GUEST => Kind::Guest(Guest::from_control(next()?)),
        ZX_OBJ_TYPE_JOB => Kind::Job(Job::from_control(next()?)),
        ZX_OBJ_TYPE_PORT => Kind::Port(Port::shared(Sharing::from_fds([next()?, next()?])?)?),
        ZX_OBJ_TYPE_PROCESS => {
            let pid = u32::try_from(extra[0]).map_err(|_| IO_DATA_INTEGRITY)?;
            Kind::Process(Process::from_fd(next()?, pid))
        }
        ZX_OBJ_TYPE_RESOURCE => Kind::Resource(Resource::from_wire(extra, flags)?),
        ZX_OBJ_TYPE_SOCKET => Kind::Socket(Socket::from_wire(next()?, extra, flags, next)?),
        ZX_OBJ_TYPE_THREAD => {
            Kind::Thread(Thread::from_fd((descriptor.fds > 0).then(&mut next).transpose()?))
        }
        ZX_OBJ_TYPE_TIMER => Kind::Timer(Timer::from_fd(next()?)),
        ZX_OBJ_TYPE_VCPU | ZX_OBJ_TYPE_VMAR => {
            let socket = next()?;
            if let Some((object, rights)) = home(socket.as_fd()) {
                if object.object_type() != descriptor.object_type || fds.next().is_some() {
                    return Err(IO_DATA_INTEGRITY);
                }
                return Ok(Held { object, rights: descriptor.rights & (rights | !ENFORCED) });
            }
            let connection = Connection::new(socket, descriptor.rights);
            if descriptor.object_type == ZX_OBJ_TYPE_VCPU {
                Kind::Vcpu(Vcpu::Remote(connection))
            } else {
                let [base, len] = [extra[0], extra[1]].map(|it| it as usize);
                Kind::Vmar(Vmar::Remote { connection, info: zx_info_vmar_t { base, len } })
            }
        }
        ZX_OBJ_TYPE_VMO => Kind::Vmo(Vmo::from_wire(next()?, extra, flags)?),
        _ => return Err(IO_DATA_INTEGRITY),
    };
    if fds.next().is_some() {
        return Err(IO_DATA_INTEGRITY);
    }
    let object: Arc<Object> = Object::with_koid(kind, descriptor.koid, descriptor.related);
    Ok(Held { object, rights: descriptor.rights })
}
