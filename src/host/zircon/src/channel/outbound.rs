//! Writes that do not fit the socket: a queue per endpoint and one thread per process that empties the queues.
//!
//! Writing to a channel never blocks on Zircon. Messages that the socket cannot take wait here in order, at most
//! `MAX_PENDING` of them; then `ZX_ERR_SHOULD_WAIT`. They are lost when the process dies before its peer read on.

use super::{Channel, MAX_PENDING, Outgoing};
use crate::object::{Object, lock, ring};
use crate::status::{Result, SHOULD_WAIT};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use rustix::time::Timespec;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

/// Room to ask for when a socket is full for the first time, in bytes; the kernel may give less.
const SEND_BUFFER: usize = 1 << 20;

/// What waits to be written to an endpoint.
#[derive(Default)]
pub(super) struct Outbound {
    queue: VecDeque<Outgoing<'static>>,
    /// Hangs up when the endpoint's previous process has written what it had queued.
    pub(super) gate: Option<OwnedFd>,
    /// Held until the queue is empty, for the process that the endpoint was sent to.
    gate_keeper: Option<OwnedFd>,
    enlarged: bool,
    scheduled: bool,
}

enum Progress {
    Done,
    /// Go on when this descriptor is ready.
    Blocked(PollFlags),
    /// Too many descriptors are in flight; nothing tells when there are fewer.
    Later,
}

impl Channel {
    /// As [`Channel::write`], for a message without handles. `txid` replaces its first bytes.
    #[inline]
    pub(super) fn write_bytes(
        &self,
        this: &Arc<Object>,
        txid: Option<[u8; 4]>,
        bytes: &[u8],
    ) -> Result<()> {
        if !self.overflow.load(Ordering::SeqCst) && self.send_bytes(txid, bytes).is_ok() {
            return Ok(());
        }
        // Tried once more, for its error or else to queue it.
        self.write(this, Outgoing::new(bytes, Vec::new()).with_txid(txid))
    }

    /// Writes a message, or queues it.
    pub(crate) fn write(&self, this: &Arc<Object>, message: Outgoing<'_>) -> Result<()> {
        if !self.overflow.load(Ordering::SeqCst) {
            match message.send(self) {
                Ok(()) => return Ok(()),
                Err(Errno::AGAIN | Errno::NOBUFS | Errno::TOOMANYREFS) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        let mut outbound = lock(&self.outbound);
        if outbound.queue.is_empty() && outbound.gate.is_none() {
            if !outbound.enlarged {
                outbound.enlarged = true;
                let _ = rustix::net::sockopt::set_socket_send_buffer_size(self.fd(), SEND_BUFFER);
            }
            match message.send(self) {
                Ok(()) => return Ok(()),
                Err(Errno::AGAIN | Errno::NOBUFS | Errno::TOOMANYREFS) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        if outbound.queue.len() >= MAX_PENDING {
            return Err(SHOULD_WAIT);
        }
        outbound.queue.push_back(message.into_owned());
        self.overflow.store(true, Ordering::SeqCst);
        if !outbound.scheduled {
            Flusher::get()?.schedule(this.clone());
            outbound.scheduled = true;
            UNFLUSHED.fetch_add(1, Ordering::SeqCst);
        }
        Ok(())
    }

    /// Writes what the socket takes now.
    fn flush(&self) -> Progress {
        let mut outbound = lock(&self.outbound);
        if let Some(gate) = &outbound.gate {
            let mut fds = [PollFd::from_borrowed_fd(gate.as_fd(), PollFlags::IN)];
            if crate::object::poll_now(&mut fds).is_ok() && fds[0].revents().is_empty() {
                return Progress::Blocked(PollFlags::IN);
            }
            outbound.gate = None;
        }
        while let Some(message) = outbound.queue.front() {
            match message.send(self) {
                Ok(()) => {
                    outbound.queue.pop_front();
                }
                Err(Errno::AGAIN) => return Progress::Blocked(PollFlags::OUT),
                Err(
                    Errno::NOBUFS | Errno::NOMEM | Errno::TOOMANYREFS | Errno::MFILE | Errno::NFILE,
                ) => {
                    return Progress::Later;
                }
                // The peer is gone, and with it everything that was meant for it.
                Err(_) => outbound.queue.clear(),
            }
        }
        outbound.scheduled = false;
        UNFLUSHED.fetch_sub(1, Ordering::SeqCst);
        outbound.gate_keeper = None;
        self.overflow.store(false, Ordering::SeqCst);
        Progress::Done
    }

    /// For a process that the endpoint is sent to while messages of ours are still queued: hangs up when they are out.
    pub(crate) fn gate_for_transfer(&self) -> std::result::Result<Option<OwnedFd>, Errno> {
        if !self.overflow.load(Ordering::SeqCst) {
            return Ok(None);
        }
        let mut outbound = lock(&self.outbound);
        if outbound.queue.is_empty() {
            // Nothing of ours is queued, but the process before us may not be done.
            return outbound
                .gate
                .as_ref()
                .map(|gate| rustix::io::fcntl_dupfd_cloexec(gate, 3))
                .transpose();
        }
        let (gate, keeper) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        outbound.gate_keeper = Some(keeper);
        Ok(Some(gate))
    }
}

/// The thread that empties queues.
struct Flusher {
    wake: OwnedFd,
    scheduled: Mutex<Vec<Arc<Object>>>,
}

impl Flusher {
    fn get() -> Result<&'static Flusher> {
        static FLUSHER: OnceLock<std::result::Result<Flusher, Errno>> = OnceLock::new();
        static THREAD: OnceLock<bool> = OnceLock::new();
        let flusher = FLUSHER.get_or_init(|| {
            let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
            Ok(Flusher { wake, scheduled: Mutex::default() })
        });
        let flusher = flusher.as_ref().map_err(|&errno| crate::status::Status::from(errno))?;
        let started = THREAD.get_or_init(|| {
            std::thread::Builder::new()
                .name("zx-channel-flush".into())
                .spawn(|| flusher.run())
                .is_ok()
        });
        if *started { Ok(flusher) } else { Err(crate::status::NO_RESOURCES) }
    }

    fn schedule(&self, channel: Arc<Object>) {
        lock(&self.scheduled).push(channel);
        ring(&self.wake);
    }

    fn run(&self) {
        let mut busy: Vec<Arc<Object>> = Vec::new();
        loop {
            busy.append(&mut lock(&self.scheduled));
            let mut later = false;
            let mut waits = Vec::with_capacity(busy.len());
            busy.retain(|object| {
                let Ok(channel) = object.channel() else { return false };
                match channel.flush() {
                    Progress::Done => return false,
                    Progress::Blocked(events) => waits.push(events),
                    Progress::Later => {
                        later = true;
                        waits.push(PollFlags::empty());
                    }
                }
                true
            });
            let gates: Vec<_> =
                busy.iter().map(|object| object.channel().ok().and_then(Channel::gate)).collect();
            let mut fds = vec![PollFd::from_borrowed_fd(self.wake.as_fd(), PollFlags::IN)];
            for ((object, events), gate) in busy.iter().zip(waits).zip(&gates) {
                match (object.channel(), gate) {
                    (_, Some(gate)) => {
                        fds.push(PollFd::from_borrowed_fd(gate.as_fd(), PollFlags::IN));
                    }
                    (Ok(channel), None) if !events.is_empty() => {
                        fds.push(PollFd::from_borrowed_fd(channel.fd(), events));
                    }
                    _ => {}
                }
            }
            let timeout = later.then_some(Timespec { tv_sec: 0, tv_nsec: 1_000_000 });
            // An error leaves the next round to find out; the pause keeps it from spinning.
            if poll(&mut fds, timeout.as_ref()).is_err() {
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            let _ = rustix::io::read(&self.wake, &mut [0; 8]);
        }
    }
}

impl Channel {
    fn gate(&self) -> Option<OwnedFd> {
        lock(&self.outbound)
            .gate
            .as_ref()
            .and_then(|gate| rustix::io::fcntl_dupfd_cloexec(gate, 3).ok())
    }
}

/// Channels of this process with messages that have not reached the socket yet.
static UNFLUSHED: AtomicUsize = AtomicUsize::new(0);

/// Whether everything that this process wrote has reached the sockets.
pub(crate) fn all_flushed() -> bool {
    UNFLUSHED.load(Ordering::SeqCst) == 0
}
