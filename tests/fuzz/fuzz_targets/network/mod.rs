//! A host for the network stack's guest: sockets of this process that every frame leads to.

#![allow(dead_code, reason = "each target uses its part")]

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use virtio_net::stack::{Frame, GATEWAY, GATEWAY_V6, GUEST};

/// What the last TCP segment to the guest said.
struct Heard {
    host_port: [u8; 2],
    guest_port: [u8; 2],
    /// The sequence number that follows it.
    next: u32,
    /// The sequence number that it acknowledges up to.
    wanted: u32,
}

/// Where all of the guest's frames go.
pub struct Host {
    tcp: TcpListener,
    udp: UdpSocket,
    streams: Vec<TcpStream>,
    /// Where ports of the guest are reached.
    pub forwards: Vec<SocketAddr>,
    heard: Option<Heard>,
}

/// Most connections that are kept.
const MAX_STREAMS: usize = 8;

/// Whether the fuzzer wants a TCP segment to go on with what was heard: mostly.
fn packet_is_answer(ip: &[u8], is_v6: bool) -> bool {
    ip[if is_v6 { 2 } else { 4 }] & 3 != 0
}

impl Host {
    pub fn new() -> Self {
        let any = (Ipv4Addr::LOCALHOST, 0);
        let tcp = TcpListener::bind(any).expect("a listener");
        tcp.set_nonblocking(true).expect("a mode");
        let udp = UdpSocket::bind(any).expect("a socket");
        udp.set_nonblocking(true).expect("a mode");
        Self { tcp, udp, streams: Vec::new(), forwards: Vec::new(), heard: None }
    }

    /// Forgets the guest before a reset.
    pub fn reset(&mut self) {
        self.streams.clear();
        self.heard = None;
    }

    /// Looks at a frame to the guest, to be able to answer it.
    pub fn hear(&mut self, frame: &Frame<'_>) {
        let bytes = frame.parts().concat();
        self.heard = Heard::of(&bytes).or(self.heard.take());
    }

    /// Makes a frame one that is looked at, and keeps it in this process.
    pub fn fix(&self, frame: &mut [u8]) {
        let Some((ethernet, packet)) = frame.split_at_mut_checked(14) else { return };
        let is_v6 = ethernet[12] & 1 != 0;
        let header = if is_v6 { 40 } else { 20 };
        let packet_len = packet.len();
        if ethernet[12] & 0x70 == 0x70 {
            ethernet[12..].copy_from_slice(&[8, 6]);
            return;
        }
        let Some((ip, payload)) = packet.split_at_mut_checked(header) else { return };
        let protocol = if is_v6 { ip[6] } else { ip[9] } % 3;
        let (protocol, port) = match (protocol, is_v6) {
            (0, _) => (6, self.tcp.local_addr().expect("bound").port()),
            (1, _) => (17, self.udp.local_addr().expect("bound").port()),
            (_, false) => (1, 0),
            (_, true) => (58, 0),
        };
        let is_icmp = port == 0;
        // A segment of a connection that is there, which the fuzzer could not guess.
        if let (6, true, Some(heard), Some(tcp)) =
            (protocol, packet_is_answer(ip, is_v6), &self.heard, payload.first_chunk_mut::<13>())
        {
            tcp[..2].copy_from_slice(&heard.guest_port);
            tcp[2..4].copy_from_slice(&heard.host_port);
            let ahead = u32::from(tcp[7] >> 6);
            tcp[4..8].copy_from_slice(&(heard.wanted.wrapping_add(ahead)).to_be_bytes());
            let behind = u32::from(tcp[11] >> 6);
            tcp[8..12].copy_from_slice(&(heard.next.wrapping_sub(behind)).to_be_bytes());
            tcp[12] = 0x50;
        }
        // DHCP is for everybody.
        if protocol == 17 && !is_v6 && ip[1] & 1 != 0 {
            if let Some(to) = payload.get_mut(2..4) {
                to.copy_from_slice(&[0, 67]);
            }
        } else if !is_icmp && let Some(to) = payload.get_mut(2..4) {
            to.copy_from_slice(&port.to_be_bytes());
        }
        let len = payload.len() as u16;
        if let (17, Some(slot)) = (protocol, payload.get_mut(4..6)) {
            slot.copy_from_slice(&len.to_be_bytes());
        }
        if is_v6 {
            ethernet[12..].copy_from_slice(&[0x86, 0xdd]);
            ip[0] = 0x60;
            ip[4..6].copy_from_slice(&(payload.len() as u16).to_be_bytes());
            (ip[6], ip[7]) = (protocol, if ip[7] & 1 == 0 { 255 } else { 64 });
            if ip[1] & 3 != 0 {
                ip[8..24].copy_from_slice(&[0xfe, 0xc0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 15]);
            }
            ip[24..].copy_from_slice(&GATEWAY_V6.octets());
            if is_icmp {
                let mut pseudo = ip[8..].to_vec();
                pseudo.extend((payload.len() as u32).to_be_bytes());
                pseudo.extend([0, 0, 0, protocol]);
                put_sum(payload, 2, &pseudo);
            }
        } else {
            ethernet[12..].copy_from_slice(&[8, 0]);
            ip[0] = 0x45;
            ip[2..4].copy_from_slice(&(packet_len as u16).to_be_bytes());
            ip[6..8].copy_from_slice(&[0, 0]);
            ip[9] = protocol;
            ip[12..16].copy_from_slice(&GUEST.octets());
            ip[16..20].copy_from_slice(&GATEWAY.octets());
            put_sum(ip, 10, &[]);
            if is_icmp {
                put_sum(payload, 2, &[]);
            }
        }
    }

    /// Gives the host's sockets a moment.
    pub fn wait(&self) {
        std::thread::sleep(Duration::from_micros(300));
    }

    /// Does what programs of the host do, with `data`.
    pub fn act(&mut self, data: &[u8]) {
        if let Ok((stream, _)) = self.tcp.accept()
            && self.streams.len() < MAX_STREAMS
        {
            stream.set_nonblocking(true).expect("a mode");
            self.streams.push(stream);
        }
        let mut buffer = [0; 4096];
        for stream in &mut self.streams {
            // Peers may have gone.
            let _ = stream.write(data);
            let _ = stream.read(&mut buffer);
        }
        match data.first().map(|byte| byte & 7) {
            Some(7) => _ = self.streams.pop(),
            Some(6) if self.streams.len() < MAX_STREAMS => {
                if let Some(Ok(stream)) = self.forwards.first().map(TcpStream::connect) {
                    stream.set_nonblocking(true).expect("a mode");
                    self.streams.push(stream);
                }
            }
            _ => {}
        }
        if let Ok((_, from)) = self.udp.recv_from(&mut buffer) {
            let _ = self.udp.send_to(data, from);
        }
    }
}

impl Heard {
    fn of(frame: &[u8]) -> Option<Self> {
        let (ethernet, packet) = frame.split_at_checked(14)?;
        let (header, protocol) = match ethernet[12..] {
            [8, 0] => (20, *packet.get(9)?),
            [0x86, 0xdd] => (40, *packet.get(6)?),
            _ => return None,
        };
        let tcp = packet.get(header..).filter(|_| protocol == 6)?;
        let word = |at: usize| tcp.get(at..)?.first_chunk().map(|bytes| u32::from_be_bytes(*bytes));
        let flags = *tcp.get(13)?;
        let data = tcp.len().checked_sub(usize::from(tcp[12] >> 4) * 4)?;
        // SYN and FIN take a number.
        let len = data as u32 + u32::from(flags & 1) + u32::from(flags >> 1 & 1);
        let (host_port, guest_port) = (*tcp.first_chunk()?, *tcp.get(2..)?.first_chunk()?);
        Some(Self { host_port, guest_port, next: word(4)?.wrapping_add(len), wanted: word(8)? })
    }
}

/// Puts the checksum of `bytes`, and of `before`, at `at`.
fn put_sum(bytes: &mut [u8], at: usize, before: &[u8]) {
    let Some(slot) = bytes.get_mut(at..at + 2) else { return };
    slot.fill(0);
    let words = before.chunks(2).chain(bytes.chunks(2));
    let sum = words
        .map(|word| u64::from(u16::from_be_bytes([word[0], word.get(1).copied().unwrap_or(0)])))
        .sum::<u64>();
    let folded = (0..4).fold(sum, |sum, _| (sum >> 16) + (sum & 0xffff));
    bytes[at..at + 2].copy_from_slice(&(!(folded as u16)).to_be_bytes());
}
