//! The device against a fake driver and host sockets.

use std::sync::Arc;

use fuchsia_zircon::{self as zx};
use futures::channel::{mpsc, oneshot};
use proptest::prelude::*;
use virtio_device::fake_queue::{FakeDriver, hostile_queue};
use virtio_device::{Device as _, Features, GuestMemory, Io, Queue, RING_FEATURES};
use zerocopy::{FromBytes as _, IntoBytes as _};

use crate::credit::BUF_ALLOC;
use crate::wire::HEADER_SIZE;
use crate::{AcceptRequest, Header, Operation, RX, Shutdown, TX, VsockDevice};

const GUEST: u32 = 3;
const GUEST_ROOM: u32 = 1 << 20;

struct Vsock {
    device: VsockDevice,
    rx: FakeDriver,
    tx: FakeDriver,
    queues: [Option<Queue>; 3],
    port: Arc<zx::Port>,
    accepts: mpsc::UnboundedReceiver<AcceptRequest>,
    /// `fwd_cnt` and `buf_alloc` of the guest's packets.
    forwarded: u32,
    room: u32,
    /// Allocations of the device's own work.
    allocated: u64,
}

impl Vsock {
    fn new() -> Self {
        let memory = Arc::new(GuestMemory::anonymous(16 << 20));
        let rx = FakeDriver::new(&memory, 0..8 << 20, 64, RING_FEATURES);
        let tx = FakeDriver::new(&memory, 8 << 20..16 << 20, 64, RING_FEATURES);
        let queues = [Some(rx.queue()), Some(tx.queue()), None];
        let (sender, accepts) = mpsc::unbounded();
        let port = Arc::new(zx::Port::create());
        let mut device = VsockDevice::new(GUEST, sender).unwrap();
        device.listen(8000).unwrap();
        device.ready(Features::empty(), &Io::new(&queues, &port));
        Self { device, rx, tx, queues, port, accepts, forwarded: 0, room: GUEST_ROOM, allocated: 0 }
    }

    fn header(&self, guest: u32, host: u32, op: Operation) -> Header {
        Header {
            src_cid: u64::from(GUEST).into(),
            dst_cid: 2.into(),
            src_port: guest.into(),
            dst_port: host.into(),
            len: 0.into(),
            socket_type: 1.into(),
            op: op.0.into(),
            flags: 0.into(),
            buf_alloc: self.room.into(),
            fwd_cnt: self.forwarded.into(),
        }
    }

    /// Has the device do `work`, and counts its allocations.
    fn counted(&mut self, work: impl FnOnce(&mut VsockDevice, &Io<'_>)) {
        let io = Io::new(&self.queues, &self.port);
        self.allocated += allocation_counter::measure(|| work(&mut self.device, &io)).count_total;
    }

    fn process(&mut self, queue: u16) {
        self.counted(|device, io| {
            device.process(queue, io).unwrap();
        });
    }

    fn send_raw(&mut self, header: &Header, data: &[u8]) {
        let chain = self.tx.chain().readable(header.as_bytes());
        if data.is_empty() { chain } else { chain.readable(data) }.publish();
        self.process(TX);
        assert!(self.tx.take_used().is_some(), "the packet was taken");
    }

    fn send(&mut self, guest: u32, host: u32, op: Operation) {
        self.send_raw(&self.header(guest, host, op), &[]);
    }

    fn send_data(&mut self, guest: u32, host: u32, data: &[u8]) {
        let mut header = self.header(guest, host, Operation::RW);
        header.len = (data.len() as u32).into();
        self.send_raw(&header, data);
    }

    fn send_shutdown(&mut self, guest: u32, host: u32, flags: Shutdown) {
        let mut header = self.header(guest, host, Operation::SHUTDOWN);
        header.flags = flags.bits().into();
        self.send_raw(&header, &[]);
    }

    /// The next packet to the guest; none if there is none now.
    fn next(&mut self) -> Option<(Header, Vec<u8>)> {
        if self.rx.outstanding() == 0 {
            self.rx.chain().writable(44).writable(4096).publish();
        }
        // A socket may have news that the device asked for.
        while let Ok(packet) = self.port.wait(zx::Time::INFINITE_PAST) {
            let observed = match packet.contents() {
                zx::PacketContents::SignalOne(signal) => signal.observed(),
                _ => zx::Signals::NONE,
            };
            self.counted(|device, io| {
                device.signaled(packet.key() as u32, observed, io);
            });
        }
        self.process(RX);
        let used = self.rx.take_used()?;
        let header = Header::read_from_bytes(&used.data[..HEADER_SIZE]).unwrap();
        let data = used.data[HEADER_SIZE..used.len as usize].to_vec();
        assert_eq!(header.len.get() as usize, data.len());
        assert_eq!((header.dst_cid.get(), header.buf_alloc.get()), (u64::from(GUEST), BUF_ALLOC));
        Some((header, data))
    }

    fn expect(&mut self, op: Operation) -> Header {
        let (header, _) = self.next().unwrap_or_else(|| panic!("{op:?} is due"));
        assert_eq!(Operation(header.op.get()), op);
        header
    }

    fn wait_next(&mut self) -> (Header, Vec<u8>) {
        loop {
            if let Some(packet) = self.next() {
                return packet;
            }
            std::thread::yield_now();
        }
    }

    /// A connection that the guest made from `guest` to 8000; the client's end.
    fn accepted(&mut self, guest: u32) -> zx::Socket {
        self.send(guest, 8000, Operation::REQUEST);
        let request = self.accepts.try_recv().unwrap();
        assert_eq!((request.src_cid, request.src_port, request.port), (GUEST, guest, 8000));
        let (ours, theirs) = zx::Socket::create_stream();
        self.device.accepted(request.id, Ok(theirs), &Io::new(&self.queues, &self.port));
        let header = self.expect(Operation::RESPONSE);
        assert_eq!((header.src_port.get(), header.dst_port.get()), (8000, guest));
        ours
    }

    fn connect(&mut self, guest: u32) -> oneshot::Receiver<Result<zx::Socket, zx::Status>> {
        let (sender, receiver) = oneshot::channel();
        self.device.connect(guest, sender);
        receiver
    }
}

fn read_all(socket: &zx::Socket) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut piece = vec![0; 1 << 16];
    while let Ok(count) = socket.read(&mut piece) {
        bytes.extend(&piece[..count]);
    }
    bytes
}

#[test]
fn reserved_identifiers_are_refused() {
    for cid in [0, 1, 2, u32::MAX] {
        let status = VsockDevice::new(cid, mpsc::unbounded().0).unwrap_err();
        assert_eq!(status, zx::Status::INVALID_ARGS);
    }
}

#[test]
fn the_guest_connects_and_data_goes_both_ways() {
    let mut vsock = Vsock::new();
    let socket = vsock.accepted(1000);
    vsock.send_data(1000, 8000, b"ping");
    assert_eq!(read_all(&socket), b"ping");
    socket.write(b"pong").unwrap();
    let (header, data) = vsock.wait_next();
    assert_eq!((Operation(header.op.get()), &data[..]), (Operation::RW, &b"pong"[..]));
    assert_eq!(header.fwd_cnt.get(), 4);
}

#[test]
fn the_host_connects() {
    let mut vsock = Vsock::new();
    let mut answer = vsock.connect(22);
    let header = vsock.expect(Operation::REQUEST);
    assert_eq!((header.src_port.get(), header.dst_port.get()), (49152, 22));
    assert!(answer.try_recv().unwrap().is_none());
    vsock.send(22, 49152, Operation::RESPONSE);
    let socket = answer.try_recv().unwrap().unwrap().unwrap();
    vsock.send_data(22, 49152, b"SSH");
    assert_eq!(read_all(&socket), b"SSH");
}

#[test]
fn a_reset_refuses_the_host() {
    let mut vsock = Vsock::new();
    let mut answer = vsock.connect(22);
    vsock.expect(Operation::REQUEST);
    vsock.send(22, 49152, Operation::RST);
    assert_eq!(answer.try_recv().unwrap().unwrap(), Err(zx::Status::CONNECTION_REFUSED));
    assert!(vsock.next().is_none());
}

#[test]
fn a_guest_that_is_not_there_refuses() {
    let mut vsock = Vsock::new();
    let mut pending = vsock.connect(22);
    vsock.device.reset();
    assert_eq!(pending.try_recv().unwrap().unwrap(), Err(zx::Status::CONNECTION_REFUSED));
    let mut answer = vsock.connect(22);
    assert_eq!(answer.try_recv().unwrap().unwrap(), Err(zx::Status::CONNECTION_REFUSED));
}

#[test]
fn acceptors_can_refuse() {
    let mut vsock = Vsock::new();
    vsock.send(1000, 8000, Operation::REQUEST);
    let request = vsock.accepts.try_recv().unwrap();
    let io = Io::new(&vsock.queues, &vsock.port);
    vsock.device.accepted(request.id, Err(zx::Status::CONNECTION_REFUSED), &io);
    vsock.expect(Operation::RST);
    // The same ports can be tried again.
    vsock.accepted(1000);
}

#[test]
fn an_answer_for_a_connection_that_is_gone_closes_the_socket() {
    let mut vsock = Vsock::new();
    vsock.send(1000, 8000, Operation::REQUEST);
    let request = vsock.accepts.try_recv().unwrap();
    vsock.send(1000, 8000, Operation::RST);
    let (ours, theirs) = zx::Socket::create_stream();
    let io = Io::new(&vsock.queues, &vsock.port);
    vsock.device.accepted(request.id, Ok(theirs), &io);
    assert_eq!(ours.write(b"x"), Err(zx::Status::PEER_CLOSED));
    assert!(vsock.next().is_none());
}

#[test]
fn spurious_packets_are_reset() {
    let mut vsock = Vsock::new();
    for op in [1, 2, 4, 5, 6, 7, 0, 99] {
        vsock.send(1000, 9999, Operation(op));
        let header = vsock.expect(Operation::RST);
        assert_eq!((header.src_port.get(), header.dst_port.get()), (9999, 1000));
    }
    vsock.send(1000, 9999, Operation::RST);
    assert!(vsock.next().is_none(), "a reset is not answered");
    let mut other = vsock.header(1000, 8000, Operation::REQUEST);
    other.socket_type = 2.into();
    vsock.send_raw(&other, &[]);
    vsock.expect(Operation::RST);
    other.socket_type = 1.into();
    other.dst_cid = 77.into();
    vsock.send_raw(&other, &[]);
    assert_eq!(vsock.expect(Operation::RST).src_cid.get(), 77);
    assert!(vsock.accepts.try_recv().is_err());
}

#[test]
fn malformed_packets_are_harmless() {
    let mut vsock = Vsock::new();
    vsock.tx.chain().readable(&[1; 43]).publish();
    vsock.tx.chain().writable(64).publish();
    let mut forged = vsock.header(1000, 8000, Operation::REQUEST);
    forged.src_cid = 4.into();
    vsock.send_raw(&forged, &[]);
    assert!(vsock.next().is_none());

    let socket = vsock.accepted(1000);
    let mut long = vsock.header(1000, 8000, Operation::RW);
    long.len = 100.into();
    vsock.tx.take_all_used();
    vsock.send_raw(&long, b"short");
    vsock.expect(Operation::RST);
    assert_eq!(socket.read(&mut [0; 8]), Err(zx::Status::PEER_CLOSED));
    // The ports are in quarantine.
    vsock.send(1000, 8000, Operation::REQUEST);
    vsock.expect(Operation::RST);
}

#[test]
fn what_does_not_belong_into_a_connection_resets_it() {
    for op in [1, 2, 0, 50] {
        let mut vsock = Vsock::new();
        let socket = vsock.accepted(1000);
        vsock.send(1000, 8000, Operation(op));
        vsock.expect(Operation::RST);
        assert_eq!(socket.write(b"x"), Err(zx::Status::PEER_CLOSED));
    }
}

#[test]
fn the_guests_credit_bounds_what_it_gets() {
    let mut vsock = Vsock::new();
    vsock.room = 10;
    let socket = vsock.accepted(1000);
    socket.write(b"0123456789abcdef").unwrap();
    assert_eq!(vsock.wait_next().1, b"0123456789");
    assert!(vsock.next().is_none());
    vsock.forwarded = 4;
    vsock.send(1000, 8000, Operation::CREDIT_UPDATE);
    assert_eq!(vsock.wait_next().1, b"abcd");
    assert!(vsock.next().is_none());
}

#[test]
fn a_guest_that_ignores_credit_is_reset() {
    let mut vsock = Vsock::new();
    let socket = vsock.accepted(1000);
    let piece = vec![7; 64 << 10];
    for _ in 0..1000 {
        vsock.send_data(1000, 8000, &piece);
        if let Some((header, _)) = vsock.next()
            && Operation(header.op.get()) == Operation::RST
        {
            assert!(!read_all(&socket).is_empty(), "what was delivered stays");
            return;
        }
    }
    panic!("64 MB were taken from a client that does not read");
}

#[test]
fn a_client_that_reads_late_gets_all_and_the_guest_gets_credit() {
    let mut vsock = Vsock::new();
    let socket = vsock.accepted(1000);
    let data: Vec<u8> = (0..1u32 << 20).map(|i| (i / 5) as u8).collect();
    let (mut sent, mut forwarded) = (0usize, 0u32);
    let mut received = Vec::new();
    while received.len() < data.len() {
        let room = BUF_ALLOC as usize - (sent - forwarded as usize);
        let len = room.min(data.len() - sent).min(48 << 10);
        if len > 0 {
            vsock.send_data(1000, 8000, &data[sent..sent + len]);
            sent += len;
        } else {
            received.extend(read_all(&socket));
            vsock.send(1000, 8000, Operation::CREDIT_REQUEST);
        }
        while let Some((header, _)) = vsock.next() {
            assert_eq!(Operation(header.op.get()), Operation::CREDIT_UPDATE);
            forwarded = header.fwd_cnt.get();
        }
    }
    assert!(received == data);
}

#[test]
fn the_guest_closes() {
    let mut vsock = Vsock::new();
    let socket = vsock.accepted(1000);
    vsock.send_data(1000, 8000, b"last");
    vsock.send_shutdown(1000, 8000, Shutdown::all());
    vsock.expect(Operation::RST);
    assert_eq!(read_all(&socket), b"last");
    assert_eq!(socket.read(&mut [0; 8]), Err(zx::Status::PEER_CLOSED));
    // In order: the same ports work at once.
    vsock.accepted(1000);
}

#[test]
fn the_guest_closes_one_direction() {
    let mut vsock = Vsock::new();
    let socket = vsock.accepted(1000);
    vsock.send_data(1000, 8000, b"request");
    vsock.send_shutdown(1000, 8000, Shutdown::SEND);
    let mut buffer = [0; 16];
    assert_eq!(socket.read(&mut buffer), Ok(7));
    assert_eq!(socket.read(&mut buffer), Err(zx::Status::BAD_STATE));
    socket.write(b"response").unwrap();
    assert_eq!(vsock.wait_next().1, b"response");
    vsock.send_data(1000, 8000, b"more");
    vsock.expect(Operation::RST);
}

#[test]
fn the_client_closes() {
    let mut vsock = Vsock::new();
    let socket = vsock.accepted(1000);
    socket.write(b"bye").unwrap();
    drop(socket);
    assert_eq!(vsock.wait_next().1, b"bye");
    let (header, _) = vsock.wait_next();
    assert_eq!(Operation(header.op.get()), Operation::SHUTDOWN);
    assert_eq!(header.flags.get(), Shutdown::all().bits());
    assert!(vsock.device.deadline() < zx::Time::INFINITE);
    vsock.send(1000, 8000, Operation::RST);
    assert_eq!(vsock.device.deadline(), zx::Time::INFINITE);
    vsock.accepted(1000);
}

#[test]
fn the_client_closes_one_direction() {
    let mut vsock = Vsock::new();
    let socket = vsock.accepted(1000);
    socket.half_close().unwrap();
    let (header, _) = vsock.wait_next();
    assert_eq!(header.flags.get(), Shutdown::SEND.bits());
    vsock.send_data(1000, 8000, b"answer");
    assert_eq!(read_all(&socket), b"answer");
    vsock.send_shutdown(1000, 8000, Shutdown::all());
    vsock.expect(Operation::RST);
    assert_eq!(socket.write(b"x"), Err(zx::Status::BAD_STATE));
}

#[test]
fn a_guest_that_does_not_finish_is_reset() {
    let mut vsock = Vsock::new();
    drop(vsock.accepted(1000));
    assert_eq!(Operation(vsock.wait_next().0.op.get()), Operation::SHUTDOWN);
    while vsock.device.deadline() != zx::Time::INFINITE {
        let rest = vsock.device.deadline() - zx::Time::get_monotonic();
        std::thread::sleep(std::time::Duration::from_nanos(rest.into_nanos().max(0) as u64));
        vsock.device.deadline_passed(&Io::new(&vsock.queues, &vsock.port));
    }
    vsock.expect(Operation::RST);
    vsock.send(1000, 8000, Operation::REQUEST);
    vsock.expect(Operation::RST);
}

#[test]
fn control_packets_go_first() {
    let mut vsock = Vsock::new();
    let socket = vsock.accepted(1000);
    socket.write(b"data").unwrap();
    vsock.send(1, 2, Operation::RW);
    vsock.send(1000, 8000, Operation::CREDIT_REQUEST);
    vsock.expect(Operation::RST);
    vsock.expect(Operation::CREDIT_UPDATE);
    assert_eq!(vsock.wait_next().1, b"data");
}

#[test]
fn a_flood_without_receive_buffers_is_bounded() {
    let mut vsock = Vsock::new();
    let header = vsock.header(1, 2, Operation::RW);
    let mut stuck = false;
    for _ in 0..20_000 {
        vsock.tx.chain().readable(header.as_bytes()).publish();
        vsock.device.process(TX, &Io::new(&vsock.queues, &vsock.port)).unwrap();
        if vsock.tx.take_used().is_none() {
            stuck = true;
            break;
        }
    }
    assert!(stuck, "the device stops to read");
    while vsock.next().is_some() {}
    vsock.device.process(TX, &Io::new(&vsock.queues, &vsock.port)).unwrap();
    assert!(vsock.tx.take_used().is_some(), "it goes on when its packets are taken");
}

#[test]
fn connections_are_bounded() {
    let mut vsock = Vsock::new();
    let mut accepted = 0;
    for guest in 0..3000 {
        vsock.send(guest, 8000, Operation::REQUEST);
        accepted += u32::from(vsock.accepts.try_recv().is_ok());
        while vsock.next().is_some() {}
    }
    assert_eq!(accepted, 1024);
    let mut answer = vsock.connect(22);
    assert_eq!(answer.try_recv().unwrap().unwrap(), Err(zx::Status::NO_RESOURCES));
}

proptest! {
    #[test]
    fn a_hostile_driver_harms_nobody(choices in proptest::collection::vec(any::<u8>(), 0..400)) {
        let queues = [Some(hostile_queue(&choices)), Some(hostile_queue(&choices)), None];
        let port = Arc::new(zx::Port::create());
        let (sender, _accepts) = mpsc::unbounded();
        let mut device = VsockDevice::new(GUEST, sender).unwrap();
        device.ready(Features::empty(), &Io::new(&queues, &port));
        device.connect(1, oneshot::channel().0);
        for _ in 0..4 {
            for queue in [RX, TX] {
                let _ = device.process(queue, &Io::new(&queues, &port));
            }
        }
        device.reset();
    }
}

#[test]
fn packets_of_a_connection_allocate_nothing() {
    const PACKET: usize = 4096;
    let mut vsock = Vsock::new();
    let socket = vsock.accepted(1000);
    // The host's side has always more to send, so that it is not waited for.
    socket.write(&[9; 8 * PACKET]).unwrap();
    let data = [7; PACKET];
    let mut read = [0; PACKET];
    let mut received = 0;
    for round in 0..400 {
        if round == 100 {
            vsock.allocated = 0;
        }
        vsock.send_data(1000, 8000, &data);
        assert_eq!(socket.read(&mut read), Ok(PACKET));
        socket.write(&data).unwrap();
        // What comes without data is the guest's credit.
        let packet = std::iter::repeat_with(|| vsock.wait_next().1.len()).find(|len| *len > 0);
        received += packet.unwrap();
        vsock.forwarded = received as u32;
    }
    assert!(received > 300 * PACKET);
    assert_eq!(vsock.allocated, 0);
}
