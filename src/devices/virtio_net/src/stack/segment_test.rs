//! Segments beyond the MTU, scaled windows, and lost segments: what smoltcp's guest does not do.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use smoltcp::wire::{
    EthernetFrame, IpProtocol, Ipv4Packet, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber,
};

use super::test_guest::{Guest, outgoing, pattern, tcp_frame};
use super::wire::checksums;
use super::{Capabilities, Frame, GATEWAY, GUEST, MAX_LARGE_FRAME, Offload};

/// A guest by hand, with one connection.
struct Peer {
    guest: Guest,
    host: TcpStream,
    segment: TcpRepr<'static>,
}

/// What a frame to the guest was.
struct Received {
    seq: u32,
    control: TcpControl,
    acknowledged: Option<u32>,
    window: u16,
    payload: Vec<u8>,
    offload: Offload,
}

impl Peer {
    fn new(capabilities: Capabilities) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut guest = Guest::new();
        guest.stack.start(capabilities, Instant::now());
        let segment = TcpRepr {
            src_port: 1000,
            dst_port: listener.local_addr().unwrap().port(),
            control: TcpControl::Syn,
            seq_number: TcpSeqNumber(100),
            ack_number: None,
            window_len: u16::MAX,
            window_scale: Some(7),
            max_seg_size: Some(1460),
            sack_permitted: false,
            sack_ranges: [None; 3],
            timestamp: None,
            payload: &[],
        };
        guest.stack.receive(&tcp_frame(outgoing(GATEWAY), &segment, &[]), false, Instant::now());
        let (host, _) = listener.accept().unwrap();
        let mut peer = Self { guest, host, segment };
        let answer = peer.wait();
        assert_eq!((answer.control, answer.acknowledged), (TcpControl::Syn, Some(101)));
        peer.segment = TcpRepr {
            control: TcpControl::None,
            seq_number: TcpSeqNumber(101),
            ack_number: Some(TcpSeqNumber(answer.seq.wrapping_add(1) as i32)),
            window_scale: None,
            max_seg_size: None,
            ..peer.segment
        };
        peer.send(&[]);
        peer
    }

    /// Sends a segment whose checksum is left to the network.
    fn send(&mut self, payload: &[u8]) {
        let mut frame = tcp_frame(outgoing(GATEWAY), &self.segment, payload);
        frame[34 + 16] ^= 0x55;
        self.guest.stack.receive(&frame, true, Instant::now());
        let seq = (self.segment.seq_number.0 as u32).wrapping_add(payload.len() as u32);
        self.segment.seq_number = TcpSeqNumber(seq as i32);
    }

    /// The next segment of the connection, if there is one now.
    fn next(&mut self, room: usize) -> Option<Received> {
        loop {
            let mut received = None;
            let mut deliver = |frame: &Frame<'_>| {
                assert!(frame.len() <= room);
                received = parse(frame);
            };
            if !self.guest.stack.next_frame(room, Instant::now(), &mut deliver) {
                return None;
            }
            // Otherwise it is the router's advertisement, which comes first.
            if received.is_some() {
                return received;
            }
        }
    }

    fn wait_in(&mut self, room: usize) -> Received {
        let give_up = Instant::now() + Duration::from_secs(120);
        loop {
            self.guest.stack.handle_events(Instant::now());
            if let Some(received) = self.next(room) {
                return received;
            }
            assert!(Instant::now() < give_up, "no segment comes");
            let _ = self.guest.ready.recv_timeout(Duration::from_millis(2));
        }
    }

    fn wait(&mut self) -> Received {
        self.wait_in(MAX_LARGE_FRAME)
    }
}

fn parse(frame: &Frame<'_>) -> Option<Received> {
    let bytes = frame.parts().concat();
    let ethernet = EthernetFrame::new_checked(&bytes).unwrap();
    let packet = Ipv4Packet::new_checked(ethernet.payload()).ok()?;
    if packet.version() != 4 || packet.next_header() != IpProtocol::Tcp {
        return None;
    }
    let tcp = TcpPacket::new_checked(packet.payload()).unwrap();
    let is_partial = frame.offload.checksum.is_some();
    let checksums = checksums(is_partial);
    let tcp = TcpRepr::parse(&tcp, &GATEWAY.into(), &GUEST.into(), &checksums).unwrap();
    Some(Received {
        seq: tcp.seq_number.0 as u32,
        control: tcp.control,
        acknowledged: tcp.ack_number.map(|ack| ack.0 as u32),
        window: tcp.window_len,
        payload: tcp.payload.to_vec(),
        offload: frame.offload,
    })
}

const ALL: Capabilities = Capabilities { checksum: true, tso4: true, tso6: true };

#[test]
fn a_large_segment_of_the_guest_arrives_whole_and_is_acknowledged_once() {
    let mut peer = Peer::new(ALL);
    let data = pattern(65_000);
    peer.send(&data);
    let mut received = vec![0; data.len()];
    peer.host.read_exact(&mut received).unwrap();
    assert!(received == data);
    let answer = loop {
        let answer = peer.wait();
        if answer.acknowledged == Some(101 + 65_000) {
            break answer;
        }
    };
    // 512 KiB in units of 16.
    assert_eq!(answer.window, 0x8000);
    assert!(peer.next(MAX_LARGE_FRAME).is_none());
}

#[test]
fn a_guest_that_can_cut_segments_gets_large_ones_of_whole_segments() {
    let mut peer = Peer::new(ALL);
    let data = pattern(400_000);
    let mut host = peer.host.try_clone().unwrap();
    let sent = data.clone();
    let writer = std::thread::spawn(move || host.write_all(&sent).unwrap());
    let (mut received, mut largest) = (Vec::new(), 0);
    while received.len() < data.len() {
        let segment = peer.wait();
        if segment.payload.is_empty() {
            continue;
        }
        largest = largest.max(segment.payload.len());
        assert!(segment.offload.checksum.is_some());
        assert_eq!(segment.offload.segmentation.is_some(), segment.payload.len() > 1460);
        received.extend(segment.payload);
    }
    writer.join().unwrap();
    assert!(received == data);
    assert!(largest > 60_000, "{largest}");
}

#[test]
fn the_room_of_the_guests_buffers_bounds_a_segment() {
    let mut peer = Peer::new(ALL);
    peer.host.write_all(&pattern(30_000)).unwrap();
    let mut received = 0;
    while received < 30_000 {
        let segment = peer.wait_in(9000);
        assert!(segment.payload.len() <= 9000 - 54);
        received += segment.payload.len();
    }
}

#[test]
fn three_duplicate_acknowledgements_send_a_lost_segment_again_at_once() {
    let mut peer = Peer::new(Capabilities::default());
    peer.host.write_all(&pattern(10_000)).unwrap();
    // What comes before the data is the window.
    let mut segments = std::iter::repeat_with(|| peer.wait_in(1514));
    let first = segments.find(|segment| !segment.payload.is_empty()).unwrap();
    let mut count = first.payload.len();
    while count < 10_000 {
        count += peer.wait_in(1514).payload.len();
    }
    for _ in 0..2 {
        peer.send(&[]);
        assert!(peer.next(1514).is_none());
    }
    peer.send(&[]);
    let again = peer.next(1514).unwrap();
    assert_eq!((again.seq, again.payload), (first.seq, first.payload));
    // More of them, from what comes twice now, change nothing.
    while peer.next(1514).is_some() {}
    for _ in 0..6 {
        peer.send(&[]);
    }
    assert!(peer.next(1514).is_none());
}

#[test]
fn a_guest_without_offloads_gets_segments_of_its_size() {
    let mut peer = Peer::new(Capabilities::default());
    peer.host.write_all(&pattern(20_000)).unwrap();
    let mut received = Vec::new();
    while received.len() < 20_000 {
        let segment = peer.wait();
        assert_eq!(segment.offload, Offload::default());
        assert!(segment.payload.len() <= 1460);
        received.extend(segment.payload);
    }
    assert!(received == pattern(20_000));
}
