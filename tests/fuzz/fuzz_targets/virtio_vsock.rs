//! The vsock device behind queues of any driver, among clients and acceptors that come and go as they like.
#![no_main]

mod driver;

use arbitrary::{Result, Unstructured};
use driver::{Request, Target};
use fuchsia_zircon as zx;
use futures::channel::{mpsc, oneshot};
use libfuzzer_sys::fuzz_target;
use virtio_device::{Features, Io, QueueSet};
use virtio_vsock::{AcceptRequest, Header, QUEUES, RX, TX, VsockDevice};
use zerocopy::{FromBytes as _, IntoBytes as _};

const GUEST: u32 = 3;
const HOST: u64 = 2;
const LISTENED: u32 = 8000;
/// Where the ports of the host's own connections start.
const EPHEMERAL: u32 = 49152;
const HEADER: usize = size_of::<Header>();

type Client = oneshot::Receiver<Result<zx::Socket, zx::Status>>;

struct Vsock {
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
        let is_odd = input.ratio(1, 16)?;
        let host_port = if input.arbitrary()? { LISTENED } else { EPHEMERAL };
        let counters = [0, 1, 4096, 1 << 16, 1 << 20, u32::MAX];
        let header = Header {
            src_cid: if is_odd { input.arbitrary()? } else { u64::from(GUEST) }.into(),
            dst_cid: if input.ratio(1, 16)? { input.arbitrary()? } else { HOST }.into(),
            src_port: u32::from(input.int_in_range(0..=3u8)?).into(),
            dst_port: (host_port + u32::from(input.int_in_range(0..=3u8)?)).into(),
            len: if is_odd { input.arbitrary()? } else { data.len() as u32 }.into(),
            socket_type: if is_odd { input.int_in_range(0..=2)? } else { 1 }.into(),
            op: input.int_in_range(0..=8)?.into(),
            flags: input.int_in_range(0..=4)?.into(),
            buf_alloc: (*input.choose(&counters)?).into(),
            fwd_cnt: (*input.choose(&counters)?).into(),
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
                let answer = if input.ratio(1, 4)? {
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
        assert!((1..=7).contains(&header.op.get()));
        assert!(data.is_empty() || header.op.get() == 5);
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
        let mut vsock = Vsock { accepts, clients: Vec::new(), sockets: Vec::new() };
        driver::play(&mut vsock, device, features, &mut input)
    };
    // The input may end anywhere.
    let _ = play();
});
