//! The vsock device behind queues of any driver, among clients and acceptors that come and go as they like.
#![no_main]

mod driver;

use arbitrary::{Result, Unstructured};
use driver::{Request, Target};
use fuchsia_zircon as zx;
use futures::channel::{mpsc, oneshot};
use libfuzzer_sys::fuzz_target;
use virtio_device::{Features, Io, QueueSet};
use virtio_vsock::{AcceptRequest, Header, Operation, QUEUES, RX, TX, VsockDevice};
use zerocopy::{FromBytes as _, IntoBytes as _};

const GUEST: u32 = 3;
const HOST: u64 = 2;
const LISTENED: u32 = 8000;
/// Where the ports of the host's own connections start.
const EPHEMERAL: u32 = 49152;
const HEADER: usize = size_of::<Header>();
const REQUEST: u16 = Operation::REQUEST.0;
const RESPONSE: u16 = Operation::RESPONSE.0;
const RST: u16 = Operation::RST.0;
const SHUTDOWN: u16 = Operation::SHUTDOWN.0;
const RW: u16 = Operation::RW.0;
const CREDIT_UPDATE: u16 = Operation::CREDIT_UPDATE.0;
const CREDIT_REQUEST: u16 = Operation::CREDIT_REQUEST.0;

type Client = oneshot::Receiver<Result<zx::Socket, zx::Status>>;

struct Vsock {
    /// Ports of connections that either side has asked for: the guest's, the host's.
    known: Vec<(u32, u32)>,
    accepts: mpsc::UnboundedReceiver<AcceptRequest>,
    clients: Vec<Client>,
    sockets: Vec<zx::Socket>,
}

impl Target for Vsock {
    type Device = VsockDevice;
    const QUEUES: u16 = QUEUES;

    fn request(&mut self, queue: u16, input: &mut Unstructured<'_>) -> Result<Request> {
        if queue != TX {
            let sizes = [1, HEADER - 1, HEADER, HEADER + 1, HEADER + 100, HEADER + 4096];
            let writable = match input.int_in_range(0..=7)? {
                0u8 => 70_000,
                1 => *input.choose(&sizes)?,
                _ => HEADER + 4096,
            };
            return Ok(Request { readable: Vec::new(), writable });
        }
        let data = match input.int_in_range(0..=7)? {
            0u8 => vec![1; input.int_in_range(0..=70_000)?],
            1..=3 => driver::bytes(32, input)?,
            _ => Vec::new(),
        };
        let is_odd = input.ratio(1, 32)?;
        // Most packets belong to a connection that there is, or was.
        let (ports, op) = if self.known.is_empty() || input.ratio(1, 8)? {
            let host = if input.ratio(3, 4)? { LISTENED } else { EPHEMERAL };
            let ports = (
                u32::from(input.int_in_range(0..=3u8)?),
                host + u32::from(input.int_in_range(0..=3u8)?),
            );
            (ports, if input.ratio(7, 8)? { REQUEST } else { input.int_in_range(0..=8)? })
        } else {
            let weighted = [RESPONSE, RW, RW, RW, CREDIT_UPDATE, CREDIT_REQUEST, SHUTDOWN, RST];
            let op = if is_odd { input.int_in_range(0..=8)? } else { *input.choose(&weighted)? };
            (*input.choose(&self.known)?, op)
        };
        if op == REQUEST && !self.known.contains(&ports) {
            self.known.push(ports);
        }
        let counters = [1 << 16, 1 << 16, 1 << 20, 4096, 1, 0, u32::MAX];
        let header = Header {
            src_cid: if is_odd { input.arbitrary()? } else { u64::from(GUEST) }.into(),
            dst_cid: if input.ratio(1, 32)? { input.arbitrary()? } else { HOST }.into(),
            src_port: ports.0.into(),
            dst_port: ports.1.into(),
            len: if is_odd { input.arbitrary()? } else { data.len() as u32 }.into(),
            socket_type: if is_odd { input.int_in_range(0..=2)? } else { 1 }.into(),
            op: op.into(),
            flags: input.int_in_range(0..=4)?.into(),
            buf_alloc: (*input.choose(&counters)?).into(),
            fwd_cnt: if input.ratio(3, 4)? { 0 } else { *input.choose(&counters)? }.into(),
        };
        let mut readable = header.as_bytes().to_vec();
        readable.extend(data);
        if is_odd {
            readable.truncate(input.int_in_range(0..=readable.len())?);
        }
        Ok(Request { readable, writable: 0 })
    }

    fn host(
        &mut self,
        device: &mut VsockDevice,
        io: &Io<'_>,
        input: &mut Unstructured<'_>,
    ) -> Result<QueueSet> {
        for client in std::mem::take(&mut self.clients) {
            self.poll(client);
        }
        let index = match self.sockets.len() {
            0 => None,
            len => Some(input.choose_index(len)?),
        };
        let touched = match (input.int_in_range(0..=7)?, index) {
            (0..=1u8, _) => {
                let Ok(request) = self.accepts.try_recv() else { return Ok(QueueSet::EMPTY) };
                let answer = if input.ratio(1, 8)? {
                    Err(zx::Status::CONNECTION_REFUSED)
                } else {
                    let (ours, theirs) = zx::Socket::create_stream();
                    self.sockets.push(ours);
                    Ok(theirs)
                };
                device.accepted(request.id, answer, io)
            }
            (2, _) => {
                let (sender, client) = oneshot::channel();
                self.clients.push(client);
                device.connect(u32::from(input.int_in_range(0..=3u8)?), sender)
            }
            (3..=4, Some(index)) => {
                let len = if input.arbitrary()? { 8 } else { input.int_in_range(0..=300_000)? };
                // A full socket is a case, too.
                let _ = self.sockets[index].write(&vec![2; len]);
                QueueSet::EMPTY
            }
            (5, Some(index)) => {
                let len = if input.arbitrary()? { 8 } else { input.int_in_range(0..=300_000)? };
                let _ = self.sockets[index].read(&mut vec![0; len]);
                QueueSet::EMPTY
            }
            (6, Some(index)) => {
                let _ = self.sockets[index].half_close();
                QueueSet::EMPTY
            }
            (_, Some(index)) => {
                drop(self.sockets.swap_remove(index));
                QueueSet::EMPTY
            }
            (_, None) => QueueSet::EMPTY,
        };
        Ok(touched)
    }

    fn check(&mut self, queue: u16, _request: &[u8], answer: &[u8], room: usize) {
        assert!(queue == RX || (queue == TX && room == 0), "events are not sent");
        if answer.is_empty() {
            assert!(room <= HEADER || queue != RX, "a buffer came back empty");
            return;
        }
        let (header, data) = Header::read_from_prefix(answer).expect("a header");
        assert_eq!(header.len.get() as usize, data.len());
        assert_eq!(header.dst_cid.get(), u64::from(GUEST));
        assert!((REQUEST..=CREDIT_REQUEST).contains(&header.op.get()));
        assert!(data.is_empty() || header.op.get() == RW);
        if header.op.get() == REQUEST {
            self.known.push((header.dst_port.get(), header.src_port.get()));
        }
    }
}

impl Vsock {
    /// Takes a client's socket, if it has one by now.
    fn poll(&mut self, mut client: Client) {
        match client.try_recv() {
            Ok(Some(Ok(socket))) => self.sockets.push(socket),
            Ok(None) => self.clients.push(client),
            Ok(Some(Err(_))) => {}
            Err(oneshot::Canceled) => panic!("a client was forgotten"),
        }
    }
}

fuzz_target!(|choices: &[u8]| {
    let mut input = Unstructured::new(choices);
    let mut play = || -> Result<()> {
        let features = Features::from_bits_retain(input.arbitrary()?);
        let (sender, accepts) = mpsc::unbounded();
        let mut device = VsockDevice::new(GUEST, sender).expect("a guest's identifier");
        for port in [LISTENED, LISTENED + 1] {
            device.listen(port).expect("a free port");
        }
        let mut vsock =
            Vsock { known: Vec::new(), accepts, clients: Vec::new(), sockets: Vec::new() };
        driver::play(&mut vsock, device, features, &mut input)
    };
    // The input may end anywhere.
    let _ = play();
});
