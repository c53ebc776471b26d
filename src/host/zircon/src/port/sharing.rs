//! Ports that several processes have handles to.
//!
//! Sent for the first time, a port moves its packets to a pair of sockets: who queues sends into one end, who waits receives
//! from the other, and the kernel gives each packet to one of those who wait, whoever dies meanwhile. Both ends travel with
//! the handle. Asynchronous waits and bells stay where they were made, in the epoll set of that process, where a thread
//! makes packets of them and sends those on. So a port that is never sent costs nothing more, and one that was sent costs
//! its processes a thread where they wait for objects with it.

use crate::object::{poll_now, ring};
use crate::status::{CANCELED, Result, SHOULD_WAIT, TIMED_OUT};
use crate::system::{now, until};
use fuchsia_zircon_types::*;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair,
};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Room to ask for, in bytes, which is that for as many packets as may be queued; the kernel may give less.
const SEND_BUFFER: usize = 2 << 20;

/// A packet between processes.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Wire {
    key: u64,
    packet_type: u32,
    status: i32,
    union: [u8; 32],
}

impl Wire {
    fn new(packet: &zx_port_packet_t) -> Wire {
        let packet_type = packet.packet_type as u32;
        Wire { key: packet.key, packet_type, status: packet.status, union: packet.union }
    }

    /// `None` for what no port makes: the other processes are not trusted.
    fn packet(self) -> Option<zx_port_packet_t> {
        let packet_type = [
            zx_packet_type_t::ZX_PKT_TYPE_USER,
            zx_packet_type_t::ZX_PKT_TYPE_SIGNAL_ONE,
            zx_packet_type_t::ZX_PKT_TYPE_GUEST_BELL,
        ]
        .into_iter()
        .find(|known| *known as u32 == self.packet_type)?;
        Some(zx_port_packet_t {
            key: self.key,
            packet_type,
            status: self.status,
            union: self.union,
        })
    }
}

/// What the processes share.
pub(crate) struct Sharing {
    inlet: OwnedFd,
    outlet: OwnedFd,
    /// Rings when this process has closed its last handle.
    closing: OwnedFd,
}

impl Sharing {
    pub(crate) fn new() -> Result<Sharing> {
        let (inlet, outlet) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let _ = rustix::net::sockopt::set_socket_send_buffer_size(&inlet, SEND_BUFFER);
        Self::from_fds([inlet, outlet])
    }

    /// The sharing of a port that another process sent.
    pub(crate) fn from_fds([inlet, outlet]: [OwnedFd; 2]) -> Result<Sharing> {
        let closing = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Sharing { inlet, outlet, closing })
    }

    /// The descriptors for a message, in the order of [`Sharing::from_fds`].
    pub(crate) fn fds(&self) -> [BorrowedFd<'_>; 2] {
        [self.inlet.as_fd(), self.outlet.as_fd()]
    }

    /// This process has no handle any more: who waits returns.
    pub(crate) fn close(&self) {
        ring(&self.closing);
    }

    /// Queues a packet; `ZX_ERR_SHOULD_WAIT` when there is no room.
    pub(crate) fn queue(&self, packet: &zx_port_packet_t) -> Result<()> {
        let wire = Wire::new(packet);
        loop {
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            match send(&self.inlet, wire.as_bytes(), flags) {
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(Errno::NOBUFS) => return Err(SHOULD_WAIT),
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Queues a packet, when there is room.
    ///
    /// Errors: `ZX_ERR_CANCELED` when this process closes its last handle meanwhile.
    pub(crate) fn queue_patiently(&self, packet: &zx_port_packet_t) -> Result<()> {
        loop {
            match self.queue(packet) {
                Err(SHOULD_WAIT) => {
                    self.await_ready(&self.inlet, PollFlags::OUT, ZX_TIME_INFINITE)?;
                }
                other => return other,
            }
        }
    }

    /// `zx_port_wait`.
    pub(crate) fn wait(&self, deadline: zx_time_t) -> Result<zx_port_packet_t> {
        let mut wire = [0; size_of::<Wire>()];
        loop {
            match recv(&self.outlet, &mut wire, RecvFlags::DONTWAIT) {
                Ok((length, _)) => {
                    let wire = wire.get(..length).and_then(|wire| Wire::read_from_bytes(wire).ok());
                    if let Some(packet) = wire.and_then(Wire::packet) {
                        return Ok(packet);
                    }
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => self.await_ready(&self.outlet, PollFlags::IN, deadline)?,
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    fn await_ready(&self, fd: &OwnedFd, events: PollFlags, deadline: zx_time_t) -> Result<()> {
        let mut fds = [PollFd::new(&self.closing, PollFlags::IN), PollFd::new(fd, events)];
        if deadline <= now() {
            poll_now(&mut fds)?;
        } else {
            match poll(&mut fds, until(deadline).as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        if !fds[0].revents().is_empty() {
            return Err(CANCELED);
        }
        if fds[1].revents().is_empty() && deadline <= now() {
            return Err(TIMED_OUT);
        }
        Ok(())
    }
}
