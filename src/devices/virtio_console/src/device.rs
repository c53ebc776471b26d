//! The device: one port, a stream of bytes in each direction (virtio 1.2 §5.3), whose host side is a Zircon socket.
//!
//! Nothing is dropped: while the host does not read, the guest's buffers stay in the transmit queue, and while the
//! guest gives no buffers, the host's bytes stay in the socket.

use fuchsia_zircon as zx;
use virtio_device::{Device, Features, HeldChain, Io, Progress, Queue, QueueError, QueueSet};

/// Number of queues: without `VIRTIO_CONSOLE_F_MULTIPORT`, those of port 0.
pub const QUEUES: u16 = 2;
/// `receiveq(port0)`: to the guest.
pub const RX: u16 = 0;
/// `transmitq(port0)`: from the guest.
pub const TX: u16 = 1;

/// Buffers in a row before others get their turn.
const BATCH: usize = 64;
/// Bytes moved between a chain and the socket at a time.
const PIECE: usize = 32 << 10;

/// The socket's signals that the device waits for, by the token it uses.
const READABLE: usize = 0;
const WRITABLE: usize = 1;

/// The console device.
#[derive(Debug)]
pub struct ConsoleDevice {
    socket: zx::Socket,
    /// From the socket, and not in a buffer of the guest's yet.
    incoming: Box<[u8]>,
    incoming_range: std::ops::Range<usize>,
    outgoing: Box<[u8]>,
    /// A transmitted chain of which so many bytes are in the socket.
    unfinished: Option<(HeldChain, usize)>,
    /// Whether the signal of each token is waited for, so that a guest that notifies for nothing adds no second wait.
    waiting: [bool; 2],
}

/// What the socket said.
enum Flow {
    Moved(usize),
    /// Nothing now.
    Wait,
    /// Nothing ever again.
    Closed,
}

impl Flow {
    fn of(result: Result<usize, zx::Status>) -> Self {
        match result {
            Ok(count) => Self::Moved(count),
            Err(zx::Status::SHOULD_WAIT) => Self::Wait,
            Err(zx::Status::PEER_CLOSED | zx::Status::BAD_STATE) => Self::Closed,
            Err(status) => {
                tracing::warn!(%status, "The console's socket failed");
                Self::Closed
            }
        }
    }
}

impl ConsoleDevice {
    /// A console whose other side reads and writes the peer of `socket`, a stream socket.
    pub fn new(socket: zx::Socket) -> Self {
        Self {
            socket,
            incoming: vec![0; PIECE].into(),
            incoming_range: 0..0,
            outgoing: vec![0; PIECE].into(),
            unfinished: None,
            waiting: [false; 2],
        }
    }

    fn receive(&mut self, queue: &Queue, io: &Io<'_>) -> Result<Progress, QueueError> {
        for _ in 0..BATCH {
            if !queue.has_available() {
                // Tells a broken queue from an empty one.
                return queue.pop().map(|_| Progress::Idle);
            }
            if self.incoming_range.is_empty() {
                match Flow::of(self.socket.read(&mut self.incoming)) {
                    Flow::Moved(count) => self.incoming_range = 0..count,
                    Flow::Wait => {
                        return Ok(self.block(io, zx::Signals::SOCKET_READABLE, READABLE));
                    }
                    Flow::Closed => return Ok(Progress::Blocked),
                }
            }
            let Some(chain) = queue.pop()? else { return Ok(Progress::Idle) };
            let bytes = self.incoming.get(self.incoming_range.clone()).unwrap_or(&[]);
            self.incoming_range.start += chain.into_writable().write_bytes(bytes);
        }
        Ok(Progress::More)
    }

    fn transmit(&mut self, queue: &Queue, io: &Io<'_>) -> Result<Progress, QueueError> {
        for _ in 0..BATCH {
            let resumed =
                self.unfinished.take().and_then(|(held, done)| Some((queue.resume(held)?, done)));
            let (mut chain, mut done) = match resumed {
                Some(resumed) => resumed,
                None => match queue.pop()? {
                    Some(chain) => (chain, 0),
                    None => return Ok(Progress::Idle),
                },
            };
            chain.skip(done);
            loop {
                let count = chain.read_bytes(&mut self.outgoing);
                if count == 0 {
                    break;
                }
                match Flow::of(self.socket.write(self.outgoing.get(..count).unwrap_or(&[]))) {
                    Flow::Moved(moved) if moved == count => done += moved,
                    Flow::Moved(moved) => {
                        self.unfinished = Some((chain.rewind().hold(), done + moved));
                        return Ok(self.block(io, zx::Signals::SOCKET_WRITABLE, WRITABLE));
                    }
                    Flow::Wait => {
                        self.unfinished = Some((chain.rewind().hold(), done));
                        return Ok(self.block(io, zx::Signals::SOCKET_WRITABLE, WRITABLE));
                    }
                    // Nobody listens; the guest must not notice.
                    Flow::Closed => break,
                }
            }
        }
        Ok(Progress::More)
    }

    fn block(&mut self, io: &Io<'_>, signal: zx::Signals, token: usize) -> Progress {
        let signals = signal | zx::Signals::SOCKET_PEER_CLOSED;
        if !std::mem::replace(&mut self.waiting[token], true)
            && let Err(status) = io.wait(&self.socket, signals, token as u32)
        {
            tracing::error!(%status, "The console's socket cannot be waited for");
        }
        Progress::Blocked
    }
}

impl Device for ConsoleDevice {
    fn process(&mut self, index: u16, io: &Io<'_>) -> Result<Progress, QueueError> {
        match (index, io.queue(index)) {
            (RX, Some(queue)) => self.receive(queue, io),
            (TX, Some(queue)) => self.transmit(queue, io),
            _ => Ok(Progress::Idle),
        }
    }

    fn ready(&mut self, _features: Features, _io: &Io<'_>) -> QueueSet {
        QueueSet::ALL
    }

    fn signaled(&mut self, token: u32, _observed: zx::Signals, _io: &Io<'_>) -> QueueSet {
        let token = token as usize;
        if let Some(waiting) = self.waiting.get_mut(token) {
            *waiting = false;
        }
        match token {
            READABLE => QueueSet::of(RX),
            WRITABLE => QueueSet::of(TX),
            _ => QueueSet::EMPTY,
        }
    }

    fn reset(&mut self) {
        self.unfinished = None;
    }
}
