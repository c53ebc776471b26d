//! TCP towards the guest (RFC 9293): the passive end of each connection that the guest opens, whose other end is a
//! host socket.
//!
//! The connection is accepted when the host's is, and ends in each direction when that side's does. Bytes are
//! acknowledged when they are in the buffer towards the host, whose free space is the window. A segment that comes out
//! of order is dropped and asked for again, and what the guest does not acknowledge in time is sent again from there:
//! the wire to the guest is a queue in memory, which neither reorders nor loses in the ordinary course.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::Shutdown;
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use smoltcp::wire::{TcpControl, TcpRepr, TcpSeqNumber};

use super::MTU;
use super::reactor::Readiness;

/// Bytes on the way to the host at most: the largest window without scaling.
const TO_HOST: usize = u16::MAX as usize;
/// Bytes on the way to the guest at most.
const TO_GUEST: usize = 64 << 10;
/// Largest segment in either direction, in bytes of payload.
const MSS: u16 = MTU as u16 - 40;
/// Segment size of a guest that names none (RFC 9293 §3.7.1).
const DEFAULT_MSS: u16 = 536;
/// Least segment size that is believed: smaller ones only cost.
const MIN_MSS: u16 = 64;
/// First retransmission timeout (RFC 6298 §2).
const INITIAL_TIMEOUT: Duration = Duration::from_secs(1);
/// Longest retransmission timeout.
const MAX_TIMEOUT: Duration = Duration::from_secs(60);
/// Retransmissions in a row before the guest is given up.
const MAX_RETRIES: u32 = 8;

/// What is to become of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It goes on, and may have a segment to send.
    Open,
    /// It is gone, without a word to the guest.
    Closed,
    /// It is gone, and the guest is to be told.
    Reset,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The host's connection is being made; the guest has no answer yet.
    Connecting,
    /// The host's connection is there; the guest has not acknowledged ours.
    SynReceived,
    Established,
}

/// One connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) stream: TcpStream,
    pub(super) token: usize,
    /// Whether the stack has it in its queue.
    pub(super) is_pending: bool,
    state: State,
    readable: bool,
    writable: bool,

    /// RCV.NXT.
    expected: u32,
    /// End of the window that the guest was told.
    window_end: u32,
    to_host: VecDeque<u8>,
    /// The guest has closed its direction.
    guest_closed: bool,
    /// The host was told so, after all data.
    host_told: bool,
    is_ack_due: bool,

    /// SND.UNA: the sequence number of the front of `to_guest`, or of our SYN.
    unacknowledged: u32,
    /// How much after it was sent: SND.NXT. A FIN counts one.
    sent: usize,
    /// How much after it was ever sent; more than `sent` while sending again.
    most_sent: usize,
    /// SND.WND.
    window: usize,
    /// Shift of the guest's windows (RFC 7323 §2); none if it does not scale.
    scale: Option<u8>,
    segment_size: usize,
    to_guest: VecDeque<u8>,
    /// The host has closed its direction.
    host_closed: bool,
    fin_acknowledged: bool,
    is_syn_due: bool,
    /// One byte is to go into a closed window (RFC 9293 §3.8.6.1).
    is_probe_due: bool,
    timer: Option<Instant>,
    timeout: Duration,
    retries: u32,
}

impl Connection {
    /// A connection that the guest opens with `syn`, while `stream` is connecting.
    pub(super) fn new(stream: TcpStream, token: usize, syn: &TcpRepr<'_>, initial: u32) -> Self {
        let expected = number(syn.seq_number).wrapping_add(1);
        Self {
            stream,
            token,
            is_pending: false,
            state: State::Connecting,
            readable: false,
            writable: false,
            expected,
            window_end: expected.wrapping_add(TO_HOST as u32),
            to_host: VecDeque::new(),
            guest_closed: false,
            host_told: false,
            is_ack_due: false,
            unacknowledged: initial,
            sent: 0,
            most_sent: 0,
            window: 0,
            // RFC 7323 §2.3: larger shifts are taken for 14.
            scale: syn.window_scale.map(|scale| scale.min(14)),
            segment_size: syn.max_seg_size.unwrap_or(DEFAULT_MSS).clamp(MIN_MSS, MSS).into(),
            to_guest: VecDeque::new(),
            host_closed: false,
            fin_acknowledged: false,
            is_syn_due: false,
            is_probe_due: false,
            timer: None,
            timeout: INITIAL_TIMEOUT,
            retries: 0,
        }
    }

    /// When [`Connection::timed_out`] is to be called.
    pub(super) fn timer(&self) -> Option<Instant> {
        self.timer
    }

    /// Whether both directions have ended and each side knows.
    pub(super) fn is_over(&self) -> bool {
        self.host_told && self.fin_acknowledged && !self.is_ack_due
    }

    /// The host's socket became ready.
    pub(super) fn ready(&mut self, ready: Readiness, now: Instant) -> Fate {
        self.readable |= ready.readable;
        self.writable |= ready.writable;
        if self.state == State::Connecting {
            if !matches!(self.stream.take_error(), Ok(None)) {
                return Fate::Reset;
            }
            if self.stream.peer_addr().is_err() {
                // Not yet.
                return Fate::Open;
            }
            if let Err(e) = self.stream.set_nodelay(true) {
                tracing::debug!(error = &e as &dyn std::error::Error, "Small segments may wait");
            }
            self.state = State::SynReceived;
            self.is_syn_due = true;
            self.timer = Some(now + self.timeout);
        }
        self.flush()
    }

    /// A segment of the guest's.
    pub(super) fn receive(&mut self, segment: &TcpRepr<'_>, now: Instant) -> Fate {
        let offset = self.expected.wrapping_sub(number(segment.seq_number));
        if segment.control == TcpControl::Rst {
            // RFC 5961 §3.2: one that does not fit exactly is asked about.
            self.is_ack_due |= offset != 0 && self.state == State::Established;
            return if offset == 0 { Fate::Closed } else { Fate::Open };
        }
        if self.state == State::Connecting {
            return Fate::Open;
        }
        if segment.control == TcpControl::Syn {
            // Ours was lost, or the guest has forgotten the connection and will reset it.
            self.is_syn_due |= self.state == State::SynReceived;
            self.is_ack_due |= self.state == State::Established;
            return Fate::Open;
        }
        let Some(acknowledged) = segment.ack_number else { return Fate::Open };
        if !self.acknowledge(number(acknowledged), now) {
            return if self.state == State::SynReceived { Fate::Reset } else { Fate::Open };
        }
        self.window = usize::from(segment.window_len) << self.scale.unwrap_or(0);
        self.accept(segment, offset);
        self.flush()
    }

    /// Takes note of an acknowledgement; whether it is one of what was sent.
    fn acknowledge(&mut self, number: u32, now: Instant) -> bool {
        let count = number.wrapping_sub(self.unacknowledged);
        if self.state == State::SynReceived {
            if count != 1 {
                return false;
            }
            self.state = State::Established;
            self.unacknowledged = number;
            self.is_syn_due = false;
            self.restart_timer(now);
            return true;
        }
        if count as usize > self.most_sent {
            // An old one is fine; one of what was not sent yet is answered (RFC 9293 §3.10.7.4).
            let is_old = (count as i32) < 0;
            self.is_ack_due |= !is_old;
            return is_old;
        }
        let count = count as usize;
        if count > 0 {
            let data = count.min(self.to_guest.len());
            self.to_guest.drain(..data);
            self.fin_acknowledged |= count > data;
            self.unacknowledged = number;
            self.sent = self.sent.saturating_sub(count);
            self.most_sent -= count;
            self.restart_timer(now);
        } else if self.most_sent == 0 {
            self.timer = None;
        }
        true
    }

    fn restart_timer(&mut self, now: Instant) {
        self.retries = 0;
        self.timeout = INITIAL_TIMEOUT;
        self.timer = (self.most_sent > 0).then(|| now + self.timeout);
    }

    /// Takes a segment's data and FIN as far as they are the next ones and fit.
    fn accept(&mut self, segment: &TcpRepr<'_>, offset: u32) {
        let is_fin = segment.control == TcpControl::Fin;
        self.is_ack_due |= offset != 0 || is_fin || !segment.payload.is_empty();
        // None when there is a gap before it, or nothing new in it.
        let Some(new) = segment.payload.get(offset as usize..) else { return };
        if self.guest_closed {
            return;
        }
        let fits = new.len().min(TO_HOST.saturating_sub(self.to_host.len()));
        self.to_host.extend(new.iter().take(fits));
        self.expected = self.expected.wrapping_add(fits as u32);
        if is_fin && fits == new.len() {
            self.guest_closed = true;
            self.expected = self.expected.wrapping_add(1);
        }
    }

    /// Gives the host what it takes.
    fn flush(&mut self) -> Fate {
        while self.writable && !self.to_host.is_empty() {
            match self.stream.write(self.to_host.as_slices().0) {
                Ok(count) => drop(self.to_host.drain(..count)),
                Err(e) if e.kind() == ErrorKind::WouldBlock => self.writable = false,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Fate::Reset,
            }
        }
        if self.guest_closed && self.to_host.is_empty() && !self.host_told {
            self.host_told = true;
            if let Err(e) = self.stream.shutdown(Shutdown::Write) {
                tracing::debug!(error = &e as &dyn std::error::Error, "The host has closed first");
            }
        }
        let told = self.window_end.wrapping_sub(self.expected) as usize;
        self.is_ack_due |= !self.guest_closed && self.free() >= told + TO_HOST / 2;
        Fate::Open
    }

    /// The window for the guest.
    fn free(&self) -> usize {
        TO_HOST.saturating_sub(self.to_host.len())
    }

    /// Takes from the host what it has and there is room for.
    fn fill(&mut self) -> Result<(), Fate> {
        let mut piece = [0; 16 << 10];
        while self.readable && !self.host_closed && self.to_guest.len() < TO_GUEST {
            let room = (TO_GUEST - self.to_guest.len()).min(piece.len());
            let Some(part) = piece.get_mut(..room) else { break };
            match self.stream.read(part) {
                Ok(0) => self.host_closed = true,
                Ok(count) => self.to_guest.extend(part.iter().take(count)),
                Err(e) if e.kind() == ErrorKind::WouldBlock => self.readable = false,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Err(Fate::Reset),
            }
        }
        Ok(())
    }

    /// The next segment for the guest, if there is one; its payload is appended to `payload`.
    ///
    /// # Errors
    /// The host's connection has failed.
    pub(super) fn next_segment(
        &mut self,
        from: u16,
        to: u16,
        payload: &mut Vec<u8>,
        now: Instant,
    ) -> Result<Option<TcpRepr<'static>>, Fate> {
        match self.state {
            State::Connecting => return Ok(None),
            State::SynReceived if !std::mem::take(&mut self.is_syn_due) => return Ok(None),
            State::SynReceived => {
                let syn = TcpRepr {
                    max_seg_size: Some(MSS),
                    window_scale: self.scale.map(|_| 0),
                    ..self.segment(from, to, TcpControl::Syn)
                };
                self.timer = Some(now + self.timeout);
                // Our SYN takes a number that `sent` does not count.
                return Ok(Some(syn));
            }
            State::Established => self.fill()?,
        }
        let unsent = self.to_guest.len().saturating_sub(self.sent);
        let room = self.window.saturating_sub(self.sent);
        let room = if std::mem::take(&mut self.is_probe_due) { room.max(1) } else { room };
        let count = unsent.min(room).min(self.segment_size);
        // A small segment only at the end, or when nothing else will open the window (RFC 9293 §3.8.6.2.1).
        let is_worthwhile = count == unsent || count == self.segment_size || self.sent == 0;
        let is_fin_due = self.host_closed
            && unsent == 0
            && self.sent == self.to_guest.len()
            && !self.fin_acknowledged;
        let segment = if count > 0 && is_worthwhile {
            payload.extend(self.to_guest.iter().skip(self.sent).take(count));
            let control = if count == unsent { TcpControl::Psh } else { TcpControl::None };
            let segment = self.segment(from, to, control);
            self.sent += count;
            segment
        } else if is_fin_due {
            let segment = self.segment(from, to, TcpControl::Fin);
            self.sent += 1;
            segment
        } else {
            if unsent > 0 && self.timer.is_none() {
                self.timer = Some(now + self.timeout);
            }
            return Ok(self.is_ack_due.then(|| self.segment(from, to, TcpControl::None)));
        };
        self.most_sent = self.most_sent.max(self.sent);
        self.timer.get_or_insert(now + self.timeout);
        Ok(Some(segment))
    }

    /// A segment at SND.NXT, which acknowledges everything.
    fn segment(&mut self, from: u16, to: u16, control: TcpControl) -> TcpRepr<'static> {
        self.is_ack_due = false;
        let window = self.free();
        self.window_end = self.expected.wrapping_add(window as u32);
        TcpRepr {
            src_port: from,
            dst_port: to,
            control,
            seq_number: seq(self.unacknowledged.wrapping_add(self.sent as u32)),
            ack_number: Some(seq(self.expected)),
            window_len: u16::try_from(window).unwrap_or(u16::MAX),
            window_scale: None,
            max_seg_size: None,
            sack_permitted: false,
            sack_ranges: [None; 3],
            timestamp: None,
            payload: &[],
        }
    }

    /// The segment that ends the connection.
    pub(super) fn reset(&self, from: u16, to: u16) -> TcpRepr<'static> {
        let next = match self.state {
            State::Connecting => 0,
            State::SynReceived => self.unacknowledged.wrapping_add(1),
            State::Established => self.unacknowledged.wrapping_add(self.most_sent as u32),
        };
        reset(from, to, next, Some(self.expected))
    }

    /// The timer has run out: sends again, or asks whether the window is still closed.
    pub(super) fn timed_out(&mut self, _now: Instant) -> Fate {
        self.timer = None;
        self.timeout = (self.timeout * 2).min(MAX_TIMEOUT);
        let is_closed_window = self.state == State::Established && self.window == 0;
        if is_closed_window {
            self.is_probe_due = true;
        } else {
            self.retries += 1;
        }
        if self.retries > MAX_RETRIES {
            return Fate::Reset;
        }
        self.is_syn_due |= self.state == State::SynReceived;
        self.sent = 0;
        Fate::Open
    }
}

/// The answer to a segment that belongs to no connection; none to a reset.
pub(super) fn refusal(segment: &TcpRepr<'_>) -> Option<TcpRepr<'static>> {
    let (from, to) = (segment.dst_port, segment.src_port);
    match segment.ack_number {
        _ if segment.control == TcpControl::Rst => None,
        Some(acknowledged) => Some(reset(from, to, number(acknowledged), None)),
        None => {
            let next = number(segment.seq_number).wrapping_add(segment.segment_len() as u32);
            Some(reset(from, to, 0, Some(next)))
        }
    }
}

fn reset(from: u16, to: u16, next: u32, expected: Option<u32>) -> TcpRepr<'static> {
    TcpRepr {
        src_port: from,
        dst_port: to,
        control: TcpControl::Rst,
        seq_number: seq(next),
        ack_number: expected.map(seq),
        window_len: 0,
        window_scale: None,
        max_seg_size: None,
        sack_permitted: false,
        sack_ranges: [None; 3],
        timestamp: None,
        payload: &[],
    }
}

fn number(seq: TcpSeqNumber) -> u32 {
    seq.0 as u32
}

fn seq(number: u32) -> TcpSeqNumber {
    TcpSeqNumber(number as i32)
}
