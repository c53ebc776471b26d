//! Packets cost no allocation once a connection is under way.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;

use fuchsia_zircon as zx;
use futures::channel::mpsc;
use virtio_device::fake_queue::FakeDriver;
use virtio_device::{Device as _, Features, GuestMemory, Io, Queue, RING_FEATURES};
use virtio_vsock::{AcceptRequest, Header, Operation, RX, TX, VsockDevice};
use zerocopy::IntoBytes as _;

/// The system's allocator, with a count of what each thread asks it for.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: everything is the system allocator's; the count is a thread's own and allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const GUEST: u32 = 3;
const HOST_PORT: u32 = 8000;
const GUEST_PORT: u32 = 50000;
const PACKET: usize = 4096;

struct Vsock {
    device: VsockDevice,
    rx: FakeDriver,
    tx: FakeDriver,
    queues: [Option<Queue>; 3],
    port: Arc<zx::Port>,
    accepts: mpsc::UnboundedReceiver<AcceptRequest>,
    /// Bytes that the guest has read.
    forwarded: u32,
    /// What the device's own work has allocated.
    allocated: usize,
}

impl Vsock {
    fn new() -> Self {
        let memory = Arc::new(GuestMemory::anonymous(4 << 20));
        let rx = FakeDriver::new(&memory, 0..2 << 20, 64, RING_FEATURES);
        let tx = FakeDriver::new(&memory, 2 << 20..4 << 20, 64, RING_FEATURES);
        let queues = [Some(rx.queue()), Some(tx.queue()), None];
        let (sender, accepts) = mpsc::unbounded();
        let port = Arc::new(zx::Port::create());
        let mut device = VsockDevice::new(GUEST, sender).unwrap();
        device.listen(HOST_PORT).unwrap();
        device.ready(Features::empty(), &Io::new(&queues, &port));
        Self { device, rx, tx, queues, port, accepts, forwarded: 0, allocated: 0 }
    }

    fn process(&mut self, queue: u16) {
        let io = Io::new(&self.queues, &self.port);
        let before = ALLOCATIONS.get();
        self.device.process(queue, &io).unwrap();
        self.allocated += ALLOCATIONS.get() - before;
        // A worker takes the wake-ups; here they would pile up.
        while self.port.wait(zx::Time::INFINITE_PAST).is_ok() {}
    }

    fn send(&mut self, op: Operation, data: &[u8]) {
        let header = Header {
            src_cid: u64::from(GUEST).into(),
            dst_cid: 2.into(),
            src_port: GUEST_PORT.into(),
            dst_port: HOST_PORT.into(),
            len: (data.len() as u32).into(),
            socket_type: 1.into(),
            op: op.0.into(),
            flags: 0.into(),
            buf_alloc: (1 << 20).into(),
            fwd_cnt: self.forwarded.into(),
        };
        let chain = self.tx.chain().readable(header.as_bytes());
        if data.is_empty() { chain } else { chain.readable(data) }.publish();
        self.process(TX);
        assert!(self.tx.take_used().is_some(), "the packet was taken");
    }

    /// Gives the device room for packets; returns the bytes of data that came.
    fn receive(&mut self) -> usize {
        self.rx.chain().writable(44 + PACKET as u32).publish();
        self.process(RX);
        let Some(used) = self.rx.take_used() else { return 0 };
        used.len as usize - 44
    }
}

#[test]
fn packets_of_a_connection_allocate_nothing() {
    let mut vsock = Vsock::new();
    vsock.send(Operation::REQUEST, &[]);
    let request = vsock.accepts.try_recv().unwrap();
    let (client, theirs) = zx::Socket::create_stream();
    // The host's side has always more to send, so that it is not waited for.
    client.write(&[9; 8 * PACKET]).unwrap();
    vsock.device.accepted(request.id, Ok(theirs), &Io::new(&vsock.queues, &vsock.port));
    vsock.receive();
    let data = [7; PACKET];
    let mut read = [0; PACKET];
    for round in 0..400 {
        if round == 100 {
            vsock.allocated = 0;
        }
        vsock.send(Operation::RW, &data);
        assert_eq!(client.read(&mut read), Ok(PACKET));
        client.write(&data).unwrap();
        // What comes without data is the guest's credit.
        let received = std::iter::repeat_with(|| vsock.receive()).take(4).find(|len| *len > 0);
        vsock.forwarded = vsock.forwarded.wrapping_add(received.unwrap() as u32);
    }
    assert!(vsock.forwarded as usize > 300 * PACKET);
    assert_eq!(vsock.allocated, 0);
}
