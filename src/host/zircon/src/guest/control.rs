//! Bells for other processes.
//!
//! A guest handle that was sent away is one end of a socket; requests for bells arrive at the other. All holders of the
//! handle share that end, so a request brings what its answer goes to: the socket of the bell itself. One thread of the
//! process that runs the guest serves it. It believes nothing it is told.

use super::bell::RingerParts;
use super::install_bell;
use crate::remote::receive;
use crate::status::{BAD_STATE, IO_DATA_INTEGRITY, NO_RESOURCES, PEER_CLOSED, Result, answer};
use fuchsia_zircon_types::*;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::{Errno, IoSlice};
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags,
    SocketType, send, sendmsg, socketpair,
};
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

const MAGIC: u32 = u32::from_le_bytes(*b"bell");
/// Bells that other processes may have in one guest.
const MAX_BELLS: usize = 1024;
const REQUEST_FDS: usize = 2;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Request {
    magic: u32,
    reserved: u32,
    addr: u64,
    size: u64,
}

/// Where other processes send requests to. Served until nobody can send any.
pub(crate) struct Control {
    far: OwnedFd,
}

impl Control {
    pub(super) fn new(guest: &Arc<hypervisor::Guest>) -> std::result::Result<Control, Errno> {
        let (near, far) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let server = Server { requests: near, guest: Arc::downgrade(guest), listeners: Vec::new() };
        std::thread::Builder::new()
            .name("zx-guest-bells".into())
            .spawn(|| server.run())
            .map_err(|_| Errno::AGAIN)?;
        Ok(Control { far })
    }

    pub(super) fn duplicate(&self) -> std::result::Result<OwnedFd, Errno> {
        rustix::io::fcntl_dupfd_cloexec(&self.far, 3)
    }
}

/// Asks the process that runs a guest for a bell. The answer goes to the bell's own socket.
pub(super) fn request_bell(
    control: &OwnedFd,
    addr: u64,
    size: usize,
    ringer: &RingerParts,
) -> Result<()> {
    let request = Request { magic: MAGIC, reserved: 0, addr, size: size as u64 };
    let fds = [ringer.memory.as_fd(), ringer.wake.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(REQUEST_FDS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(&fds));
    loop {
        match sendmsg(
            control,
            &[IoSlice::new(request.as_bytes())],
            &mut ancillary,
            SendFlags::NOSIGNAL,
        ) {
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Someone who listens to a bell.
struct Listener {
    /// Hangs up when the listener is gone.
    liveness: OwnedFd,
    closed: Arc<AtomicBool>,
}

struct Server {
    requests: OwnedFd,
    guest: Weak<hypervisor::Guest>,
    listeners: Vec<Listener>,
}

impl Server {
    fn run(mut self) {
        let mut open = true;
        // Without a guest there is nothing to serve; without senders and listeners nobody to serve.
        while open || !self.listeners.is_empty() {
            let mut fds = Vec::with_capacity(self.listeners.len() + 1);
            // Hang-up is reported without being asked for.
            fds.extend(
                self.listeners
                    .iter()
                    .map(|listener| PollFd::new(&listener.liveness, PollFlags::empty())),
            );
            if open {
                fds.push(PollFd::new(&self.requests, PollFlags::IN));
            }
            match poll(&mut fds, None) {
                Ok(_) => {}
                Err(Errno::INTR) => continue,
                Err(_) => return,
            }
            let requested = open && fds.pop().is_some_and(|fd| !fd.revents().is_empty());
            let gone: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
            drop(fds);
            let mut gone = gone.into_iter();
            self.listeners.retain(|listener| {
                let gone = gone.next().unwrap_or(false);
                if gone {
                    listener.closed.store(true, Ordering::Relaxed);
                }
                !gone
            });
            if requested {
                open = self.serve();
            }
        }
    }

    /// Takes one request; whether more can come.
    fn serve(&mut self) -> bool {
        let mut bytes = [0; size_of::<Request>()];
        let received = match receive(self.requests.as_fd(), &mut bytes, RecvFlags::DONTWAIT) {
            Ok(received) => received,
            Err(Errno::AGAIN | Errno::INTR) => return true,
            Err(_) => return false,
        };
        if received.len == 0 {
            return false;
        }
        let whole = received.whole && received.fds.len() <= REQUEST_FDS;
        let mut fds = received.fds;
        fds.truncate(REQUEST_FDS);
        // Without both descriptors there is not even anywhere to answer to.
        if let Ok([memory, wake]) = <[OwnedFd; REQUEST_FDS]>::try_from(fds)
            && let Ok(answer_to) = rustix::io::fcntl_dupfd_cloexec(&wake, 3)
        {
            let parsed =
                Request::read_from_bytes(&bytes[..received.len]).map_err(|_| IO_DATA_INTEGRITY);
            let result = match parsed {
                Ok(request) if whole && request.magic == MAGIC => {
                    self.add(&request, RingerParts { memory, wake })
                }
                _ => Err(IO_DATA_INTEGRITY),
            };
            let status: zx_status_t = answer(result);
            // Who does not take the answer has only itself to blame.
            let _ =
                send(&answer_to, &status.to_ne_bytes(), SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
        }
        true
    }

    fn add(&mut self, request: &Request, parts: RingerParts) -> Result<()> {
        if self.listeners.len() >= MAX_BELLS {
            return Err(NO_RESOURCES);
        }
        let guest = self.guest.upgrade().ok_or(BAD_STATE)?;
        let size = usize::try_from(request.size).map_err(|_| IO_DATA_INTEGRITY)?;
        let mut listener = None;
        install_bell(&guest, request.addr, size, parts, |ringer| {
            let closed = ringer.closed_flag();
            listener = Some(Listener { liveness: ringer.liveness()?, closed });
            Ok(())
        })?;
        self.listeners.push(listener.ok_or(PEER_CLOSED)?);
        Ok(())
    }
}
