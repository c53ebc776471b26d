//! Sockets: `AF_UNIX` pairs, a byte stream or packets.

use crate::handle_table::{get, insert_peers};
use crate::object::{Kind, Source, Sources};
use crate::pair_signals::PairSignals;
use crate::rights;
use crate::status::{
    BAD_STATE, INVALID_ARGS, NOT_SUPPORTED, PEER_CLOSED, Result, SHOULD_WAIT, Status, answer,
    buffer, bytes, out, set_optional,
};
use fuchsia_zircon_types::*;
use rustix::event::PollFlags;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, Shutdown, SocketFlags, SocketType, recv, send, socketpair,
};
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

const PEEK: u32 = 1 << 3;
const STREAM_CHUNK: usize = 1 << 30;

/// In a message: the endpoint's side, and whether its user signals come along.
const SIDE: u32 = 1 << 10;
const SIGNALS: u32 = 1 << 11;

/// What is behind a socket handle.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Stream,
    Datagram,
    /// A file of the host: pipe, terminal or the like, which knows read and write only.
    File,
}

/// One endpoint of a socket.
pub(crate) struct Socket {
    fd: OwnedFd,
    mode: Mode,
    user: PairSignals,
    write_disabled: AtomicBool,
    peer_write_disabled: AtomicBool,
    read_threshold: AtomicU64,
    write_threshold: AtomicU64,
}

impl Socket {
    fn new(fd: OwnedFd, mode: Mode, user: PairSignals) -> Socket {
        Socket {
            fd,
            mode,
            user,
            write_disabled: AtomicBool::new(false),
            peer_write_disabled: AtomicBool::new(false),
            read_threshold: AtomicU64::new(0),
            write_threshold: AtomicU64::new(0),
        }
    }

    fn pair(mode: Mode) -> Result<(Socket, Socket)> {
        let kind = if mode == Mode::Datagram { SocketType::SEQPACKET } else { SocketType::STREAM };
        let (first, second) = socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?;
        let (own, peer) = PairSignals::pair();
        Ok((Socket::new(first, mode, own), Socket::new(second, mode, peer)))
    }

    /// A socket handle over a stream of the host: a connected stream socket, or anything else that is read and written.
    /// The descriptor of a file that is not a socket is made non-blocking.
    pub(crate) fn from_host_fd(fd: OwnedFd) -> Result<Socket> {
        match rustix::net::sockopt::socket_type(&fd) {
            Ok(SocketType::STREAM) => Ok(Socket::new(fd, Mode::Stream, PairSignals::none())),
            Ok(SocketType::SEQPACKET) => Ok(Socket::new(fd, Mode::Datagram, PairSignals::none())),
            Ok(_) => Err(INVALID_ARGS),
            Err(_) => {
                let flags = rustix::fs::fcntl_getfl(&fd)?;
                rustix::fs::fcntl_setfl(&fd, flags | rustix::fs::OFlags::NONBLOCK)?;
                Ok(Socket::new(fd, Mode::File, PairSignals::none()))
            }
        }
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub(crate) fn to_wire(&self) -> ([u64; 3], u32) {
        let mode = match self.mode {
            Mode::Stream => 0,
            Mode::Datagram => 1,
            Mode::File => 2,
        };
        let disabled = u32::from(self.write_disabled.load(Ordering::SeqCst)) << 8;
        let peer_disabled = u32::from(self.peer_write_disabled.load(Ordering::SeqCst)) << 9;
        let thresholds = [
            self.read_threshold.load(Ordering::SeqCst),
            self.write_threshold.load(Ordering::SeqCst),
            0,
        ];
        let side = if self.user.side() == 1 { SIDE } else { 0 };
        let signals = if self.user.are_shared() { SIGNALS } else { 0 };
        (thresholds, mode | disabled | peer_disabled | side | signals)
    }

    pub(crate) fn user_signals(&self) -> &PairSignals {
        &self.user
    }

    /// A socket that another process sent; `next` gives its further descriptors.
    pub(crate) fn from_wire(
        fd: OwnedFd,
        extra: [u64; 3],
        flags: u32,
        mut next: impl FnMut() -> Result<OwnedFd>,
    ) -> Result<Socket> {
        let user = if flags & SIGNALS != 0 {
            PairSignals::from_fds(next()?, next()?, usize::from(flags & SIDE != 0))
        } else {
            PairSignals::none()
        };
        let mode = match flags & 0xff {
            0 => Mode::Stream,
            1 => Mode::Datagram,
            _ => Mode::File,
        };
        let socket = Socket::new(fd, mode, user);
        socket.write_disabled.store(flags & 1 << 8 != 0, Ordering::SeqCst);
        socket.peer_write_disabled.store(flags & 1 << 9 != 0, Ordering::SeqCst);
        socket.read_threshold.store(extra[0], Ordering::SeqCst);
        socket.write_threshold.store(extra[1], Ordering::SeqCst);
        Ok(socket)
    }

    pub(crate) fn sources(&self, interest: zx_signals_t) -> Result<Sources<'_>> {
        const INPUT: zx_signals_t = ZX_SOCKET_READABLE | ZX_SOCKET_READ_THRESHOLD;
        const OUTPUT: zx_signals_t = ZX_SOCKET_WRITABLE | ZX_SOCKET_WRITE_THRESHOLD;
        const OTHER: zx_signals_t =
            ZX_SOCKET_PEER_CLOSED | ZX_SOCKET_PEER_WRITE_DISABLED | ZX_SOCKET_WRITE_DISABLED;
        let mut events = PollFlags::empty();
        events.set(PollFlags::IN, interest & INPUT != 0);
        events.set(PollFlags::OUT, interest & OUTPUT != 0);
        // With the end of the data known, readiness can be told from data.
        events.set(PollFlags::RDHUP, interest & (INPUT | ZX_SOCKET_PEER_WRITE_DISABLED) != 0);
        let any = interest & (INPUT | OUTPUT | OTHER) != 0;
        let first = any.then(|| Source { fd: self.fd(), events, edge: false });
        Ok([first, self.user.source(interest)?])
    }

    pub(crate) fn signals(&self, revents: PollFlags) -> zx_signals_t {
        let closed = revents.intersects(PollFlags::HUP | PollFlags::ERR);
        let half_closed = closed || revents.contains(PollFlags::RDHUP);
        let write_disabled = self.write_disabled.load(Ordering::SeqCst);
        let threshold = self.read_threshold.load(Ordering::SeqCst);
        let mut signals = self.user.load();
        let mut set = |signal, on: bool| signals |= if on { signal } else { 0 };
        set(ZX_SOCKET_PEER_CLOSED, closed);
        set(ZX_SOCKET_WRITE_DISABLED, write_disabled);
        set(
            ZX_SOCKET_PEER_WRITE_DISABLED,
            half_closed || self.peer_write_disabled.load(Ordering::SeqCst),
        );
        if revents.contains(PollFlags::IN) {
            // The end of a stream is ready as well; only data makes it readable.
            let waiting = if half_closed || threshold != 0 { self.waiting() } else { 1 };
            set(ZX_SOCKET_READABLE, waiting > 0);
            set(ZX_SOCKET_READ_THRESHOLD, threshold != 0 && waiting >= threshold);
        }
        if revents.contains(PollFlags::OUT) && !closed && !write_disabled {
            let threshold = self.write_threshold.load(Ordering::SeqCst);
            set(ZX_SOCKET_WRITABLE, true);
            set(ZX_SOCKET_WRITE_THRESHOLD, threshold != 0 && self.room() >= threshold);
        }
        signals
    }

    /// `zx_object_signal_peer`.
    pub(crate) fn signal_peer(&self, clear: zx_signals_t, set: zx_signals_t) -> Result<()> {
        let mut fds = [rustix::event::PollFd::new(&self.fd, PollFlags::empty())];
        crate::object::poll_now(&mut fds)?;
        if fds[0].revents().intersects(PollFlags::HUP | PollFlags::ERR) {
            return Err(PEER_CLOSED);
        }
        self.user.signal_peer(clear, set)
    }

    /// Bytes that wait to be read.
    fn waiting(&self) -> u64 {
        rustix::io::ioctl_fionread(&self.fd).unwrap_or(0)
    }

    fn buffer_size(&self) -> u64 {
        rustix::net::sockopt::socket_send_buffer_size(&self.fd).unwrap_or(0) as u64
    }

    /// A lower bound of the bytes that can be written; Linux counts its own overhead in.
    fn room(&self) -> u64 {
        // POLLOUT means that at least three quarters are free.
        self.buffer_size() / 4 * 3
    }

    fn read(&self, options: u32, buffer: &mut [MaybeUninit<u8>]) -> Result<usize> {
        if options & !PEEK != 0 {
            return Err(INVALID_ARGS);
        }
        if buffer.is_empty() {
            return Ok(0);
        }
        let peek = if options & PEEK != 0 { RecvFlags::PEEK } else { RecvFlags::empty() };
        let mut reset = false;
        let read = loop {
            let result = match self.mode {
                Mode::File if options & PEEK != 0 => return Err(NOT_SUPPORTED),
                Mode::File => rustix::io::read(&self.fd, &mut *buffer).map(|(read, _)| read.len()),
                _ => recv(&self.fd, &mut *buffer, RecvFlags::DONTWAIT | peek)
                    .map(|((read, _), _)| read.len()),
            };
            match result {
                Ok(read) => break read,
                Err(Errno::INTR) => {}
                // Reported once when the peer closed without reading all; its own data comes after it.
                Err(Errno::CONNRESET) if !reset => reset = true,
                // How the reading end of a terminal learns that the other is gone.
                Err(Errno::IO) if self.mode == Mode::File => return Err(PEER_CLOSED),
                Err(errno) => return Err(errno.into()),
            }
        };
        if read > 0 {
            return Ok(read);
        }
        Err(self.end_of_data())
    }

    /// Nothing more will come: because the peer is gone, or because it only stopped writing.
    fn end_of_data(&self) -> Status {
        let mut fds = [rustix::event::PollFd::new(&self.fd, PollFlags::RDHUP)];
        let polled = crate::object::poll_now(&mut fds);
        if polled.is_ok()
            && !fds[0].revents().intersects(PollFlags::HUP | PollFlags::ERR)
            && self.mode != Mode::File
        {
            BAD_STATE
        } else {
            PEER_CLOSED
        }
    }

    fn write(&self, options: u32, data: &[u8]) -> Result<usize> {
        if options != 0 {
            return Err(INVALID_ARGS);
        }
        if self.write_disabled.load(Ordering::SeqCst) {
            return Err(BAD_STATE);
        }
        if data.is_empty() {
            return Ok(0);
        }
        let data = &data[..data.len().min(STREAM_CHUNK)];
        loop {
            let result = match self.mode {
                Mode::File => rustix::io::write(&self.fd, data),
                _ => send(&self.fd, data, SendFlags::DONTWAIT | SendFlags::NOSIGNAL),
            };
            match result {
                Ok(written) => return Ok(written),
                Err(Errno::INTR) => {}
                Err(Errno::NOBUFS | Errno::MSGSIZE) if self.mode == Mode::Datagram => {
                    return Err(SHOULD_WAIT);
                }
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// `zx_socket_set_disposition`: Linux can disable a direction and never enable it again.
    fn set_disposition(&self, own: u32, peer: u32) -> Result<()> {
        let own = Disposition::parse(own, self.write_disabled.load(Ordering::SeqCst))?;
        let peer = Disposition::parse(peer, self.peer_write_disabled.load(Ordering::SeqCst))?;
        if self.mode == Mode::File {
            return Err(NOT_SUPPORTED);
        }
        if own == Disposition::Disable {
            ignore_not_connected(rustix::net::shutdown(&self.fd, Shutdown::Write))?;
            self.write_disabled.store(true, Ordering::SeqCst);
        }
        if peer == Disposition::Disable {
            ignore_not_connected(rustix::net::shutdown(&self.fd, Shutdown::Read))?;
            self.peer_write_disabled.store(true, Ordering::SeqCst);
        }
        Ok(())
    }

    /// `ZX_INFO_SOCKET`.
    pub(crate) fn info(&self) -> zx_info_socket_t {
        let waiting = self.waiting() as usize;
        let size = self.buffer_size() as usize;
        zx_info_socket_t {
            options: if self.mode == Mode::Datagram {
                ZX_SOCKET_DATAGRAM
            } else {
                ZX_SOCKET_STREAM
            },
            rx_buf_max: size,
            rx_buf_size: waiting,
            rx_buf_available: waiting,
            tx_buf_max: size,
            tx_buf_size: 0,
        }
    }

    pub(crate) fn threshold(&self, property: u32) -> &AtomicU64 {
        if property == ZX_PROP_SOCKET_RX_THRESHOLD {
            &self.read_threshold
        } else {
            &self.write_threshold
        }
    }

    /// Checks a threshold that a caller wants to set.
    pub(crate) fn check_threshold(&self, threshold: u64) -> Result<()> {
        if threshold > self.buffer_size() { Err(INVALID_ARGS) } else { Ok(()) }
    }
}

#[derive(PartialEq, Eq)]
enum Disposition {
    Keep,
    Disable,
}

impl Disposition {
    fn parse(value: u32, disabled: bool) -> Result<Disposition> {
        match value {
            0 => Ok(Disposition::Keep),
            ZX_SOCKET_DISPOSITION_WRITE_DISABLED => Ok(Disposition::Disable),
            ZX_SOCKET_DISPOSITION_WRITE_ENABLED if disabled => Err(NOT_SUPPORTED),
            ZX_SOCKET_DISPOSITION_WRITE_ENABLED => Ok(Disposition::Keep),
            _ => Err(INVALID_ARGS),
        }
    }
}

fn ignore_not_connected(result: std::result::Result<(), Errno>) -> Result<()> {
    match result {
        Ok(()) | Err(Errno::NOTCONN) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// See the Zircon documentation of `zx_socket_create`.
///
/// # Safety
/// `out0` and `out1` are null or valid for writing.
pub unsafe fn zx_socket_create(
    options: u32,
    out0: *mut zx_handle_t,
    out1: *mut zx_handle_t,
) -> zx_status_t {
    answer((|| {
        // SAFETY: the caller's promise.
        let (out0, out1) = unsafe { (out(out0)?, out(out1)?) };
        let mode = match options {
            ZX_SOCKET_STREAM => Mode::Stream,
            ZX_SOCKET_DATAGRAM => Mode::Datagram,
            _ => return Err(INVALID_ARGS),
        };
        let (first, second) = Socket::pair(mode)?;
        let (first, second) =
            insert_peers(Kind::Socket(first), Kind::Socket(second), rights::SOCKET)?;
        out0.set(first);
        out1.set(second);
        Ok(())
    })())
}

/// See the Zircon documentation of `zx_socket_read`. A datagram longer than the buffer loses its rest, as on Zircon.
///
/// # Safety
/// `read_buffer` is valid for writing `buffer_size` bytes; `actual` is null or valid for writing.
pub unsafe fn zx_socket_read(
    handle: zx_handle_t,
    options: u32,
    read_buffer: *mut u8,
    buffer_size: usize,
    actual: *mut usize,
) -> zx_status_t {
    answer((|| {
        // SAFETY: the caller's promise.
        let data = unsafe { buffer(read_buffer, buffer_size)? };
        let held = get(handle)?;
        let socket = held.socket()?;
        held.require(ZX_RIGHT_READ)?;
        let read = if read_buffer.is_null() {
            // Zircon's way to ask how much is there.
            socket.waiting() as usize
        } else {
            socket.read(options, data)?
        };
        // SAFETY: the caller's promise.
        unsafe { set_optional(actual, read) };
        Ok(())
    })())
}

/// See the Zircon documentation of `zx_socket_write`.
///
/// # Safety
/// `write_buffer` is valid for reading `buffer_size` bytes; `actual` is null or valid for writing.
pub unsafe fn zx_socket_write(
    handle: zx_handle_t,
    options: u32,
    write_buffer: *const u8,
    buffer_size: usize,
    actual: *mut usize,
) -> zx_status_t {
    answer((|| {
        // SAFETY: the caller's promise.
        let data = unsafe { bytes(write_buffer, buffer_size)? };
        let held = get(handle)?;
        let socket = held.socket()?;
        held.require(ZX_RIGHT_WRITE)?;
        let written = socket.write(options, data)?;
        // SAFETY: the caller's promise.
        unsafe { set_optional(actual, written) };
        Ok(())
    })())
}

/// See the Zircon documentation of `zx_socket_set_disposition`. A direction that was disabled cannot be enabled again
/// (`ZX_ERR_NOT_SUPPORTED`), and when both are disabled the peer counts as closed.
///
/// # Safety
/// Always safe; unsafe to have the vDSO's signature.
pub unsafe fn zx_socket_set_disposition(
    handle: zx_handle_t,
    disposition: u32,
    disposition_peer: u32,
) -> zx_status_t {
    answer((|| {
        let held = get(handle)?;
        let socket = held.socket()?;
        held.require(ZX_RIGHT_MANAGE_SOCKET)?;
        socket.set_disposition(disposition, disposition_peer)
    })())
}
