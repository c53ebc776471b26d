//! Frames cost no allocation once a connection is under way.

use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fuchsia_zircon as zx;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    IpProtocol, Ipv4Packet, Ipv4Repr, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber,
};
use virtio_device::fake_queue::FakeDriver;
use virtio_device::{DescriptorFlags, Device as _, GuestMemory, Io, Queue, RING_FEATURES};
use virtio_net::offload::feature;
use virtio_net::stack::{GATEWAY, GUEST};
use virtio_net::{NetDevice, RX, TX};

/// Buffers for frames to the guest, and the bytes of each.
const BUFFERS: u64 = 128;
const BUFFER: u32 = 4096;

/// A guest with one connection to the host.
struct Guest {
    device: NetDevice,
    rx: FakeDriver,
    tx: FakeDriver,
    queues: [Option<Queue>; 2],
    port: Arc<zx::Port>,
    /// Where the buffer of each chain to the guest is, by its head.
    buffers: HashMap<u16, u64>,
    segment: TcpRepr<'static>,
    /// Bytes that came from the host.
    received: usize,
    /// What the device's own work has allocated.
    allocated: u64,
}

impl Guest {
    /// The guest, and the host's end of its connection.
    fn connected() -> (Self, TcpStream) {
        let memory = Arc::new(GuestMemory::anonymous(4 << 20));
        let rx = FakeDriver::new(&memory, 0..1 << 20, 256, RING_FEATURES);
        let tx = FakeDriver::new(&memory, 1 << 20..2 << 20, 256, RING_FEATURES);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let segment = TcpRepr {
            src_port: 1000,
            dst_port: listener.local_addr().unwrap().port(),
            control: TcpControl::Syn,
            seq_number: TcpSeqNumber(0),
            ack_number: None,
            window_len: u16::MAX,
            window_scale: Some(7),
            max_seg_size: Some(1460),
            sack_permitted: false,
            sack_ranges: [None; 3],
            timestamp: None,
            payload: &[],
        };
        let queues = [Some(rx.queue()), Some(tx.queue())];
        let mut guest = Self {
            device: NetDevice::new([2, 0, 0, 0, 0, 1]).unwrap(),
            rx,
            tx,
            queues,
            port: Arc::new(zx::Port::create()),
            buffers: HashMap::new(),
            segment,
            received: 0,
            allocated: 0,
        };
        for number in 0..BUFFERS {
            guest.publish((2 << 20) + number * u64::from(BUFFER));
        }
        let features = feature::CSUM
            | feature::GUEST_CSUM
            | feature::HOST_TSO4
            | feature::GUEST_TSO4
            | feature::MRG_RXBUF;
        guest.device.ready(features | RING_FEATURES, &Io::new(&guest.queues, &guest.port));
        guest.send(&[]);
        let (host, _) = listener.accept().unwrap();
        guest.poll_until(|guest| guest.segment.ack_number.is_some());
        let (control, seq_number) = (TcpControl::None, TcpSeqNumber(1));
        let (window_scale, max_seg_size) = (None, None);
        guest.segment =
            TcpRepr { control, seq_number, window_scale, max_seg_size, ..guest.segment };
        guest.send(&[]);
        (guest, host)
    }

    fn publish(&mut self, address: u64) {
        let head = self.rx.chain().raw(address, BUFFER, DescriptorFlags::WRITE).publish();
        self.buffers.insert(head, address);
    }

    /// Has the device do `work`, and counts its allocations.
    fn counted(&mut self, work: impl FnOnce(&mut NetDevice, &Io<'_>)) {
        let io = Io::new(&self.queues, &self.port);
        self.allocated += allocation_counter::measure(|| work(&mut self.device, &io)).count_total;
    }

    /// Sends a segment, whatever its size, with its checksum left to the device.
    fn send(&mut self, payload: &[u8]) {
        let len = self.segment.header_len() + payload.len();
        let mut frame = vec![0; 34 + self.segment.header_len()];
        frame[12..14].copy_from_slice(&[8, 0]);
        Ipv4Repr {
            src_addr: GUEST,
            dst_addr: GATEWAY,
            next_header: IpProtocol::Tcp,
            payload_len: len,
            hop_limit: 64,
        }
        .emit(&mut Ipv4Packet::new_unchecked(&mut frame[14..]), &ChecksumCapabilities::default());
        self.segment.emit(
            &mut TcpPacket::new_unchecked(&mut frame[34..]),
            &GUEST.into(),
            &GATEWAY.into(),
            &ChecksumCapabilities::ignored(),
        );
        let mut header = [1, 0, 54, 0, 0xb4, 5, 34, 0, 16, 0, 0, 0];
        header[1] = u8::from(payload.len() > 1460);
        let mut chain = self.tx.chain().readable(&header).readable(&frame);
        if !payload.is_empty() {
            chain = chain.readable(payload);
        }
        chain.publish();
        self.segment.seq_number += payload.len();
        self.counted(|device, io| {
            device.process(TX, io).unwrap();
        });
        self.tx.take_all_used();
        self.collect();
    }

    fn poll(&mut self) {
        self.counted(|device, io| {
            device.signaled(0, zx::Signals::NONE, io);
            device.process(RX, io).unwrap();
        });
        self.collect();
    }

    fn poll_until(&mut self, mut done: impl FnMut(&Self) -> bool) {
        let give_up = Instant::now() + Duration::from_secs(120);
        while !done(self) {
            assert!(Instant::now() < give_up, "nothing goes on");
            self.poll();
            std::thread::yield_now();
        }
    }

    /// Takes what came, and gives the buffers back.
    fn collect(&mut self) {
        let mut bytes = Vec::new();
        let mut buffers = 0;
        let used: Vec<_> = self.rx.take_all_used();
        // Before heads are used again.
        let addresses: Vec<_> = used.iter().map(|used| self.buffers[&used.head]).collect();
        for (used, address) in used.into_iter().zip(addresses) {
            if buffers == 0 {
                buffers = u16::from_le_bytes([used.data[10], used.data[11]]);
                bytes.clear();
            }
            bytes.extend_from_slice(&used.data[..used.len as usize]);
            self.publish(address);
            buffers -= 1;
            if buffers == 0 {
                self.take_frame(&bytes[12..]);
            }
        }
        assert_eq!(buffers, 0, "the buffers of a frame come together");
    }

    fn take_frame(&mut self, frame: &[u8]) {
        if frame[12..14] != [8, 0] {
            return;
        }
        let packet = TcpPacket::new_checked(&frame[34..]).unwrap();
        let checksums = ChecksumCapabilities::ignored();
        let tcp = TcpRepr::parse(&packet, &GATEWAY.into(), &GUEST.into(), &checksums).unwrap();
        assert_ne!(tcp.control, TcpControl::Rst);
        self.received += tcp.payload.len();
        self.segment.ack_number = Some(tcp.seq_number + tcp.segment_len());
    }
}

#[test]
fn segments_cost_no_allocation_in_either_direction() {
    const WARM: usize = 20;
    const ROUNDS: usize = 200;
    let (mut guest, mut host) = Guest::connected();
    let data = vec![0x5a; 60_000];
    let mut buffer = vec![0; data.len()];
    for round in 0..WARM + ROUNDS {
        if round == WARM {
            guest.allocated = 0;
        }
        guest.send(&data);
        guest.poll_until(|_| {
            host.set_nonblocking(true).unwrap();
            let available = host.peek(&mut buffer).is_ok_and(|len| len == data.len());
            host.set_nonblocking(false).unwrap();
            available
        });
        host.read_exact(&mut buffer).unwrap();
        assert!(buffer == data);

        let before = guest.received;
        host.write_all(&data).unwrap();
        guest.poll_until(|guest| guest.received == before + data.len());
        guest.send(&[]);
    }
    assert_eq!(guest.allocated, 0, "in {ROUNDS} rounds");
}
