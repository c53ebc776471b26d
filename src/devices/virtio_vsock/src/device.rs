//! The device: packets between three queues and the sockets of the host's side (virtio 1.2 §5.10).
//!
//! Everything is bounded: connections, data of the guest's that a client does not take (by credit), and control
//! packets that the guest does not take (by not reading further packets of it).

use std::collections::{BTreeSet, HashMap, VecDeque};

use fuchsia_zircon as zx;
use futures::channel::mpsc;
use virtio_device::{Device, Features, Io, Progress, Queue, QueueError, QueueSet, ReadableChain};

use crate::connection::{Client, ClientInitiated, Connection, GuestInitiated};
use crate::credit::BUF_ALLOC;
use crate::ports::{Pair, Ports};
use crate::wire::{HEADER_SIZE, HOST_CID, Header, Operation, Shutdown, TYPE_STREAM};

/// Number of queues.
pub const QUEUES: u16 = 3;
/// To the guest.
pub const RX: u16 = 0;
/// From the guest.
pub const TX: u16 = 1;
/// To the guest: events, of which there are none.
pub const EVENT: u16 = 2;

/// Most connections, of any state. With [`BUF_ALLOC`] it bounds what the guest can make the device keep: 128 MiB.
const MAX_CONNECTIONS: usize = 1024;
/// Most questions to acceptors that have no answer.
const MAX_PENDING_ACCEPTS: usize = MAX_CONNECTIONS;
/// Control packets that wait for the guest's buffers before no more of its packets are looked at.
const MAX_CONTROL: usize = 4096;
/// Packets in a row before others get their turn.
const BATCH: usize = 64;
/// Most bytes moved between a chain and a socket at a time.
const PIECE: usize = 64 << 10;

/// Seconds that a guest may take to answer a request for a connection.
const CONNECT_TIMEOUT: i64 = 30;
/// Seconds that a guest has to finish after the client closed its socket.
const LEEWAY: i64 = 1;
/// How many of these a guest gets that has unread data.
const MAX_LEEWAYS: u32 = 60;

/// Tokens: bit 16 tells the two directions of a connection apart, below is its place, above its generation.
const WRITABLE: u32 = 1 << 16;
const GENERATION_SHIFT: u32 = 17;
/// Wakes of the device by itself; no connection's place is so high.
const WAKE_RX: u32 = 0xffff;
const WAKE_TX: u32 = 0xfffe;

/// Which connection, as long as the device lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ConnectionId(u32);

impl ConnectionId {
    fn place(self) -> usize {
        (self.0 & 0xffff) as usize
    }
}

/// The guest wants to connect: [`VsockDevice::accepted`] is to be called with the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AcceptRequest {
    /// To answer for.
    pub id: ConnectionId,
    /// The guest's context identifier.
    pub src_cid: u32,
    /// The guest's port.
    pub src_port: u32,
    /// The host's port, one that is listened on.
    pub port: u32,
}

/// A packet without data that the guest is to get.
#[derive(Debug, Clone, Copy)]
struct Control {
    /// The host's, but for an answer to a packet that was for someone else.
    src_cid: u64,
    pair: Pair,
    op: Operation,
    flags: Shutdown,
    socket_type: u16,
}

#[derive(Debug, Default)]
struct Place {
    generation: u32,
    connection: Option<(Pair, Connection, zx::Time)>,
}

/// Data of a socket that is on its way to the guest.
#[derive(Debug)]
struct Staged {
    id: ConnectionId,
    range: std::ops::Range<usize>,
}

/// The vsock device.
#[derive(Debug)]
pub struct VsockDevice {
    guest_cid: u32,
    accepts: mpsc::UnboundedSender<AcceptRequest>,
    pending_accepts: usize,
    ports: Ports,
    places: Vec<Place>,
    free: Vec<usize>,
    pairs: HashMap<Pair, ConnectionId>,
    deadlines: BTreeSet<(zx::Time, ConnectionId)>,
    control: VecDeque<Control>,
    /// Connections whose socket may have data, in turn.
    listed: VecDeque<ConnectionId>,
    staged: Option<Staged>,
    incoming: Box<[u8]>,
    outgoing: Box<[u8]>,
    is_ready: bool,
    is_stalled: bool,
}

impl VsockDevice {
    /// A device for the guest with context identifier `guest_cid`, which asks for acceptors through `accepts`.
    ///
    /// # Errors
    /// `INVALID_ARGS` for a reserved identifier (virtio 1.2 §5.10.4).
    pub fn new(
        guest_cid: u32,
        accepts: mpsc::UnboundedSender<AcceptRequest>,
    ) -> Result<Self, zx::Status> {
        if matches!(guest_cid, 0..=2 | u32::MAX) {
            return Err(zx::Status::INVALID_ARGS);
        }
        Ok(Self {
            guest_cid,
            accepts,
            pending_accepts: 0,
            ports: Ports::default(),
            places: Vec::new(),
            free: Vec::new(),
            pairs: HashMap::new(),
            deadlines: BTreeSet::new(),
            control: VecDeque::new(),
            listed: VecDeque::new(),
            staged: None,
            incoming: vec![0; PIECE].into(),
            outgoing: vec![0; PIECE].into(),
            is_ready: false,
            is_stalled: false,
        })
    }

    /// Takes a port of the host for an acceptor.
    ///
    /// # Errors
    /// `ALREADY_BOUND` if it is taken, `NO_RESOURCES` when there are too many.
    pub fn listen(&mut self, port: u32) -> Result<(), zx::Status> {
        self.ports.listen(port)
    }

    /// Asks the guest for a connection to its port; `client` gets the socket, or `CONNECTION_REFUSED`, `TIMED_OUT`, or
    /// `NO_RESOURCES` when there are too many connections or no ports. Returns the queues that can go on.
    pub fn connect(
        &mut self,
        guest_port: u32,
        client: futures::channel::oneshot::Sender<Result<zx::Socket, zx::Status>>,
    ) -> QueueSet {
        match self.start_connect(guest_port) {
            Ok(pair) => self.add_client(pair, client),
            Err(status) => {
                // A client that is gone needs no answer.
                let _ = client.send(Err(status));
                QueueSet::EMPTY
            }
        }
    }

    fn start_connect(&mut self, guest: u32) -> Result<Pair, zx::Status> {
        if !self.is_ready {
            // Nobody is there who could agree.
            return Err(zx::Status::CONNECTION_REFUSED);
        }
        if self.pairs.len() >= MAX_CONNECTIONS || self.control.len() >= MAX_CONTROL {
            return Err(zx::Status::NO_RESOURCES);
        }
        let pairs = &self.pairs;
        self.ports
            .ephemeral(guest, zx::Time::get_monotonic(), |pair| pairs.contains_key(&pair))
            .ok_or(zx::Status::NO_RESOURCES)
    }

    fn add_client(&mut self, pair: Pair, client: Client) -> QueueSet {
        let state = Connection::ClientInitiated(ClientInitiated::new(client));
        let deadline = zx::Time::after(zx::Duration::from_seconds(CONNECT_TIMEOUT));
        self.add(pair, state, deadline);
        self.tell(pair, Operation::REQUEST);
        QueueSet::of(RX)
    }

    /// The acceptor's answer to an [`AcceptRequest`]. Returns the queues that can go on.
    pub fn accepted(
        &mut self,
        id: ConnectionId,
        answer: Result<zx::Socket, zx::Status>,
        io: &Io<'_>,
    ) -> QueueSet {
        self.pending_accepts = self.pending_accepts.saturating_sub(1);
        // The guest may have gone meanwhile; then the socket is closed.
        let Some((pair, connection)) = self.take(id) else { return QueueSet::EMPTY };
        let connection = match (connection, answer) {
            (Connection::GuestInitiated(state), Ok(socket)) => {
                self.tell(pair, Operation::RESPONSE);
                Connection::ReadWrite(state.accept(socket))
            }
            (Connection::GuestInitiated(state), Err(status)) => {
                tracing::debug!(%status, port = pair.host, "A connection was not accepted");
                self.tell(pair, Operation::RST);
                Connection::ShutdownClean(state.refuse())
            }
            (other, _) => other,
        };
        self.put(id, pair, connection);
        self.list(id);
        self.settle(id, io);
        QueueSet::of(RX)
    }

    fn add(&mut self, pair: Pair, connection: Connection, deadline: zx::Time) -> ConnectionId {
        let place = self.free.pop().unwrap_or_else(|| {
            self.places.push(Place::default());
            self.places.len() - 1
        });
        // Fits: there are at most MAX_CONNECTIONS places.
        let mut id = ConnectionId(place as u32);
        if let Some(slot) = self.places.get_mut(place) {
            slot.generation = slot.generation.wrapping_add(1);
            id.0 |= slot.generation << GENERATION_SHIFT;
            slot.connection = Some((pair, connection, deadline));
        }
        self.pairs.insert(pair, id);
        if deadline != zx::Time::INFINITE {
            self.deadlines.insert((deadline, id));
        }
        id
    }

    fn get(&mut self, id: ConnectionId) -> Option<&mut (Pair, Connection, zx::Time)> {
        let slot = self.places.get_mut(id.place())?;
        let is_same = slot.generation << GENERATION_SHIFT == id.0 & (u32::MAX << GENERATION_SHIFT);
        slot.connection.as_mut().filter(|_| is_same)
    }

    /// Takes a connection out for a transition; [`VsockDevice::put`] has to follow.
    fn take(&mut self, id: ConnectionId) -> Option<(Pair, Connection)> {
        self.get(id)?;
        let (pair, connection, deadline) = self.places.get_mut(id.place())?.connection.take()?;
        self.deadlines.remove(&(deadline, id));
        Some((pair, connection))
    }

    /// Puts a connection back in its new state, which has no deadline, or ends it.
    fn put(&mut self, id: ConnectionId, pair: Pair, connection: Connection) {
        match connection {
            Connection::ShutdownForced(_) => {
                self.ports.quarantine(pair, zx::Time::get_monotonic());
                self.end(id, pair);
            }
            Connection::ShutdownClean(_) => self.end(id, pair),
            open => {
                if let Some(slot) = self.places.get_mut(id.place()) {
                    slot.connection = Some((pair, open, zx::Time::INFINITE));
                }
            }
        }
    }

    fn end(&mut self, id: ConnectionId, pair: Pair) {
        self.pairs.remove(&pair);
        self.free.push(id.place());
        if self.staged.as_ref().is_some_and(|staged| staged.id == id) {
            self.staged = None;
        }
    }

    fn set_deadline(&mut self, id: ConnectionId, deadline: zx::Time) {
        let Some((_, _, current)) = self.get(id) else { return };
        let old = std::mem::replace(current, deadline);
        self.deadlines.remove(&(old, id));
        self.deadlines.insert((deadline, id));
    }

    fn stream(&mut self, id: ConnectionId) -> Option<&mut crate::connection::Stream> {
        self.get(id)?.1.stream()
    }

    fn tell(&mut self, pair: Pair, op: Operation) {
        self.tell_flags(pair, op, Shutdown::empty());
    }

    fn tell_flags(&mut self, pair: Pair, op: Operation, flags: Shutdown) {
        let socket_type = TYPE_STREAM;
        self.control.push_back(Control { src_cid: HOST_CID, pair, op, flags, socket_type });
    }

    /// Resets a connection on the device's account.
    fn reset_connection(&mut self, id: ConnectionId, reason: &'static str) {
        let Some((pair, connection)) = self.take(id) else { return };
        tracing::debug!(?pair, reason, "A connection was reset");
        self.put(id, pair, connection.reset());
        self.tell(pair, Operation::RST);
    }

    /// Has a connection's socket read.
    fn list(&mut self, id: ConnectionId) {
        if let Some(stream) = self.stream(id)
            && !stream.listed
            && !stream.waits_readable
        {
            stream.listed = true;
            self.listed.push_back(id);
        }
    }

    /// After anything that happened to a connection: what follows from it.
    fn settle(&mut self, id: ConnectionId, io: &Io<'_>) {
        let Some((pair, connection, _)) = self.get(id) else { return };
        let pair = *pair;
        let Some(stream) = connection.stream() else { return };
        stream.close_directions();
        if stream.guest_shutdown.is_all() && stream.is_drained() {
            if let Some((pair, connection)) = self.take(id) {
                self.put(id, pair, connection.finish());
                self.tell(pair, Operation::RST);
            }
            return;
        }
        let wait = !stream.is_drained() && !stream.waits_writable;
        if wait {
            let signals = zx::Signals::SOCKET_WRITABLE | zx::Signals::SOCKET_PEER_CLOSED;
            stream.waits_writable = true;
            if let Err(status) = io.wait(&stream.socket, signals, id.0 | WRITABLE) {
                tracing::error!(%status, "A client's socket cannot be waited for");
                self.reset_connection(id, "its socket is broken");
                return;
            }
        }
        if stream.credit.owes_update() && !stream.update_queued {
            stream.update_queued = true;
            self.tell(pair, Operation::CREDIT_UPDATE);
        }
        if self.stream(id).is_some_and(|stream| stream.owes_deafness()) {
            self.client_shutdown(id, Shutdown::RECEIVE);
        }
    }

    /// The client has closed one direction or both: tells the guest.
    fn client_shutdown(&mut self, id: ConnectionId, flags: Shutdown) {
        let Some(stream) = self.stream(id) else { return };
        let flags = stream.host_shutdown | flags;
        if stream.host_shutdown == flags {
            return;
        }
        let Some((pair, connection)) = self.take(id) else { return };
        self.put(id, pair, connection.client_shutdown(flags));
        self.tell_flags(pair, Operation::SHUTDOWN, flags);
        if flags.is_all() {
            self.set_deadline(id, zx::Time::after(zx::Duration::from_seconds(LEEWAY)));
        }
    }

    // From the guest.

    fn transmit(&mut self, queue: &Queue, io: &Io<'_>) -> Result<Progress, QueueError> {
        for _ in 0..BATCH {
            if self.control.len() >= MAX_CONTROL {
                self.is_stalled = true;
                return Ok(Progress::Blocked);
            }
            let Some(mut chain) = queue.pop()? else { return Ok(Progress::Idle) };
            match chain.read_obj::<Header>() {
                Ok(header) => self.packet(&header, &mut chain, io),
                Err(error) => tracing::debug!(%error, "A packet without a whole header"),
            }
        }
        Ok(Progress::More)
    }

    fn packet(&mut self, header: &Header, chain: &mut ReadableChain<'_>, io: &Io<'_>) {
        if header.src_cid.get() != u64::from(self.guest_cid) {
            tracing::debug!(cid = header.src_cid.get(), "A packet in another's name");
            return;
        }
        let pair = Pair { host: header.dst_port.get(), guest: header.src_port.get() };
        let is_ours = header.dst_cid.get() == HOST_CID && header.socket_type.get() == TYPE_STREAM;
        let known = self.pairs.get(&pair).copied().filter(|_| is_ours);
        match (known, Operation(header.op.get())) {
            (Some(id), op) => {
                self.known_packet(id, op, header, chain);
                self.settle(id, io);
            }
            (None, Operation::RST) => {}
            (None, Operation::REQUEST) if is_ours && self.request(pair, header) => {}
            (None, _) => self.control.push_back(Control {
                src_cid: header.dst_cid.get(),
                pair,
                op: Operation::RST,
                flags: Shutdown::empty(),
                socket_type: header.socket_type.get(),
            }),
        }
    }

    /// A request for a connection; false if it is refused right away.
    fn request(&mut self, pair: Pair, header: &Header) -> bool {
        if !self.ports.has_listener(pair.host)
            || self.pairs.len() >= MAX_CONNECTIONS
            || self.pending_accepts >= MAX_PENDING_ACCEPTS
            || self.ports.is_quarantined(pair, zx::Time::get_monotonic())
        {
            return false;
        }
        let state = Connection::GuestInitiated(GuestInitiated::new(header));
        let id = self.add(pair, state, zx::Time::INFINITE);
        let request =
            AcceptRequest { id, src_cid: self.guest_cid, src_port: pair.guest, port: pair.host };
        if self.accepts.unbounded_send(request).is_err() {
            // The component is ending.
            self.reset_connection(id, "nobody accepts");
        } else {
            self.pending_accepts += 1;
        }
        true
    }

    fn known_packet(
        &mut self,
        id: ConnectionId,
        op: Operation,
        header: &Header,
        chain: &mut ReadableChain<'_>,
    ) {
        if op == Operation::RST {
            if let Some((pair, connection)) = self.take(id) {
                self.put(id, pair, connection.guest_reset());
            }
            return;
        }
        if self.stream(id).is_none() {
            return self.answer(id, op, header);
        }
        if let Some(stream) = self.stream(id) {
            stream.credit.update(header);
        }
        match op {
            Operation::RW => self.data(id, header, chain),
            Operation::CREDIT_UPDATE => {}
            Operation::CREDIT_REQUEST => self.credit_update(id),
            Operation::SHUTDOWN => {
                let flags = Shutdown::from_bits_truncate(header.flags.get());
                if let Some((pair, connection)) = self.take(id) {
                    let lingers = matches!(connection, Connection::ClientInitiatedShutdown(_));
                    self.put(id, pair, connection.guest_shutdown(flags));
                    if lingers && self.stream(id).is_some_and(|s| s.host_shutdown.is_all()) {
                        self.set_deadline(id, zx::Time::after(zx::Duration::from_seconds(LEEWAY)));
                    }
                }
            }
            _ => return self.reset_connection(id, "the guest sent what does not belong there"),
        }
        // There may be credit again.
        self.list(id);
    }

    /// The guest's answer to a request of the host.
    fn answer(&mut self, id: ConnectionId, op: Operation, header: &Header) {
        let Some((pair, connection)) = self.take(id) else { return };
        match (connection, op) {
            (Connection::ClientInitiated(state), Operation::RESPONSE) => {
                self.put(id, pair, Connection::ReadWrite(state.respond(header)));
                self.list(id);
            }
            (other, _) => {
                self.put(id, pair, other.reset());
                self.tell(pair, Operation::RST);
            }
        }
    }

    fn data(&mut self, id: ConnectionId, header: &Header, chain: &mut ReadableChain<'_>) {
        let len = header.len.get();
        if chain.remaining() < len as usize {
            return self.reset_connection(id, "the guest's packet is shorter than it says");
        }
        let mut outgoing = std::mem::take(&mut self.outgoing);
        let result = match self.stream(id) {
            Some(stream) if stream.guest_shutdown.contains(Shutdown::SEND) => {
                Err("the guest sent after it said that it would not")
            }
            Some(stream) => stream
                .receive(chain, len, &mut outgoing)
                .map_err(|_| "the guest sent more than it had credit for"),
            None => Ok(()),
        };
        self.outgoing = outgoing;
        if let Err(reason) = result {
            self.reset_connection(id, reason);
        }
    }

    fn credit_update(&mut self, id: ConnectionId) {
        let Some((pair, connection, _)) = self.get(id) else { return };
        let pair = *pair;
        if let Some(stream) = connection.stream()
            && !std::mem::replace(&mut stream.update_queued, true)
        {
            self.tell(pair, Operation::CREDIT_UPDATE);
        }
    }

    // To the guest.

    fn has_news(&self) -> bool {
        !self.control.is_empty() || self.staged.is_some() || !self.listed.is_empty()
    }

    fn receive(&mut self, queue: &Queue, io: &Io<'_>) -> Result<Progress, QueueError> {
        for _ in 0..BATCH {
            if self.control.is_empty() && self.staged.is_none() && !self.stage(io) {
                return Ok(Progress::Blocked);
            }
            if self.control.is_empty() && self.staged.is_none() {
                continue;
            }
            let Some(chain) = queue.pop()? else { return Ok(Progress::Idle) };
            let mut chain = chain.into_writable();
            // A buffer without room for a header goes back unused.
            let Some(room) = chain.remaining().checked_sub(HEADER_SIZE) else { continue };
            if let Some(control) = self.control.pop_front() {
                let header = self.control_header(&control);
                // There is room.
                let _ = chain.write_obj(&header);
                if self.is_stalled && self.control.len() < MAX_CONTROL / 2 {
                    self.is_stalled = false;
                    io.waker(WAKE_TX).wake();
                }
            } else if room > 0
                && let Some((header, range)) = self.data_header(room)
            {
                let _ = chain.write_obj(&header);
                chain.write_bytes(self.incoming.get(range).unwrap_or(&[]));
            }
        }
        Ok(Progress::More)
    }

    fn header(&self, control: &Control, len: usize, fwd_cnt: u32) -> Header {
        Header {
            src_cid: control.src_cid.into(),
            dst_cid: u64::from(self.guest_cid).into(),
            src_port: control.pair.host.into(),
            dst_port: control.pair.guest.into(),
            len: (len as u32).into(),
            socket_type: control.socket_type.into(),
            op: control.op.0.into(),
            flags: control.flags.bits().into(),
            buf_alloc: BUF_ALLOC.into(),
            fwd_cnt: fwd_cnt.into(),
        }
    }

    fn control_header(&mut self, control: &Control) -> Header {
        let id = self.pairs.get(&control.pair).copied();
        let fwd_cnt = id.and_then(|id| self.stream(id)).map_or(0, |stream| {
            if control.op == Operation::CREDIT_UPDATE {
                stream.update_queued = false;
            }
            stream.credit.advertise()
        });
        self.header(control, 0, fwd_cnt)
    }

    /// The next at most `room` bytes of what is staged, with their header.
    fn data_header(&mut self, room: usize) -> Option<(Header, std::ops::Range<usize>)> {
        let staged = self.staged.as_mut()?;
        let (id, start) = (staged.id, staged.range.start);
        let len = staged.range.len().min(room);
        staged.range.start += len;
        if staged.range.is_empty() {
            self.staged = None;
        }
        let (pair, connection, _) = self.get(id)?;
        let pair = *pair;
        let stream = connection.stream()?;
        stream.credit.send(len as u32);
        let fwd_cnt = stream.credit.advertise();
        if self.staged.is_none() {
            self.list(id);
        }
        let (op, flags) = (Operation::RW, Shutdown::empty());
        let control = Control { src_cid: HOST_CID, pair, op, flags, socket_type: TYPE_STREAM };
        Some((self.header(&control, len, fwd_cnt), start..start + len))
    }

    /// Reads the next socket in turn. False if there is none.
    fn stage(&mut self, io: &Io<'_>) -> bool {
        let Some(id) = self.listed.pop_front() else { return false };
        let mut incoming = std::mem::take(&mut self.incoming);
        if let Some(stream) = self.stream(id) {
            stream.listed = false;
            self.read(id, &mut incoming, io);
        }
        self.incoming = incoming;
        true
    }

    fn read(&mut self, id: ConnectionId, buffer: &mut [u8], io: &Io<'_>) {
        let Some(stream) = self.stream(id) else { return };
        if stream.host_shutdown.is_all() {
            return;
        }
        if stream.host_shutdown.contains(Shutdown::SEND) {
            // Nothing comes any more; what is left is to see the client go.
            return self.await_client(id, zx::Signals::SOCKET_PEER_CLOSED, io);
        }
        let discard = stream.guest_shutdown.contains(Shutdown::RECEIVE);
        let most = if discard { buffer.len() } else { stream.credit.available() as usize };
        if most == 0 {
            // The guest's next packet with credit lists the connection again.
            return;
        }
        let most = most.min(buffer.len());
        match stream.socket.read(buffer.get_mut(..most).unwrap_or(&mut [])) {
            Ok(_) if discard => self.list(id),
            Ok(count) => self.staged = (count > 0).then_some(Staged { id, range: 0..count }),
            Err(zx::Status::SHOULD_WAIT) => {
                let signals = zx::Signals::SOCKET_READABLE
                    | zx::Signals::SOCKET_PEER_WRITE_DISABLED
                    | zx::Signals::SOCKET_PEER_CLOSED;
                self.await_client(id, signals, io);
            }
            Err(zx::Status::BAD_STATE) => {
                self.client_shutdown(id, Shutdown::SEND);
                self.await_client(id, zx::Signals::SOCKET_PEER_CLOSED, io);
            }
            Err(_) => self.client_gone(id, io),
        }
    }

    fn await_client(&mut self, id: ConnectionId, signals: zx::Signals, io: &Io<'_>) {
        let Some(stream) = self.stream(id) else { return };
        if !std::mem::replace(&mut stream.waits_readable, true)
            && let Err(status) = io.wait(&stream.socket, signals, id.0)
        {
            tracing::error!(%status, "A client's socket cannot be waited for");
            self.reset_connection(id, "its socket is broken");
        }
    }

    fn client_gone(&mut self, id: ConnectionId, io: &Io<'_>) {
        let Some(stream) = self.stream(id) else { return };
        stream.client_gone();
        self.client_shutdown(id, Shutdown::all());
        self.settle(id, io);
    }

    fn expire(&mut self, id: ConnectionId) {
        let Some((pair, connection, _)) = self.get(id) else { return };
        let pair = *pair;
        let lingers = match connection {
            Connection::ClientInitiatedShutdown(state) => state.lingers(MAX_LEEWAYS),
            _ => false,
        };
        match connection {
            _ if lingers => {
                self.tell(pair, Operation::CREDIT_REQUEST);
                self.set_deadline(id, zx::Time::after(zx::Duration::from_seconds(LEEWAY)));
            }
            Connection::ClientInitiated(_) => {
                if let Some((pair, Connection::ClientInitiated(state))) = self.take(id) {
                    let failed = state.fail(zx::Status::TIMED_OUT);
                    self.put(id, pair, Connection::ShutdownForced(failed));
                    self.tell(pair, Operation::RST);
                }
            }
            _ => self.reset_connection(id, "the guest did not close it in time"),
        }
    }
}

impl Device for VsockDevice {
    fn process(&mut self, index: u16, io: &Io<'_>) -> Result<Progress, QueueError> {
        match (index, io.queue(index)) {
            (RX, Some(queue)) => self.receive(queue, io),
            (TX, Some(queue)) => {
                let progress = self.transmit(queue, io)?;
                if self.has_news()
                    && let Some(queue) = io.queue(RX)
                    && self.receive(queue, io)? != Progress::Blocked
                {
                    // The rest, and to hear of new buffers, as the worker does for a queue in its turn.
                    io.waker(WAKE_RX).wake();
                }
                Ok(progress)
            }
            // There are no events: the buffers stay until the reset.
            _ => Ok(Progress::Blocked),
        }
    }

    fn ready(&mut self, _features: Features, _io: &Io<'_>) -> QueueSet {
        self.is_ready = true;
        QueueSet::ALL
    }

    fn signaled(&mut self, token: u32, _observed: zx::Signals, io: &Io<'_>) -> QueueSet {
        match token {
            WAKE_RX => return QueueSet::of(RX),
            WAKE_TX => return QueueSet::of(TX),
            _ => {}
        }
        let id = ConnectionId(token & !WRITABLE);
        let Some(stream) = self.stream(id) else { return QueueSet::EMPTY };
        if token & WRITABLE != 0 {
            stream.waits_writable = false;
            stream.flush();
            self.settle(id, io);
        } else {
            stream.waits_readable = false;
            if stream.host_shutdown.contains(Shutdown::SEND) {
                // It was the client's leaving that was waited for.
                self.client_gone(id, io);
            } else {
                self.list(id);
            }
        }
        if self.has_news() { QueueSet::of(RX) } else { QueueSet::EMPTY }
    }

    fn deadline(&self) -> zx::Time {
        self.deadlines.first().map_or(zx::Time::INFINITE, |(deadline, _)| *deadline)
    }

    fn deadline_passed(&mut self, _io: &Io<'_>) -> QueueSet {
        let now = zx::Time::get_monotonic();
        while let Some((deadline, id)) = self.deadlines.first().copied()
            && deadline <= now
        {
            self.deadlines.pop_first();
            self.expire(id);
        }
        QueueSet::of(RX)
    }

    fn reset(&mut self) {
        for place in 0..self.places.len() {
            if let Some(slot) = self.places.get_mut(place)
                && let Some((_, connection, _)) = slot.connection.take()
            {
                // Clients learn of it; the guest knows.
                let _ = connection.guest_reset();
                self.free.push(place);
            }
        }
        self.pairs.clear();
        self.deadlines.clear();
        self.control.clear();
        self.listed.clear();
        self.staged = None;
        self.ports.reset();
        self.is_ready = false;
        self.is_stalled = false;
    }
}
