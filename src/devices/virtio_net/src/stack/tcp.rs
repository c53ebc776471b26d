//! TCP towards the guest (RFC 9293): one end of each connection, whose other end is a host socket.
//!
//! A connection that the guest opens is accepted when the host's is; one that the host opens, through a forward, is
//! opened to the guest in turn. It ends in each direction when that side's does. Bytes are acknowledged when they are
//! in the host's socket or in the buffer towards it, whose free space is the window. A segment that comes out of order
//! is dropped and asked for again, and what the guest does not acknowledge is sent again from there: the wire to the
//! guest is a queue in memory, which neither reorders nor loses in the ordinary course.

use std::io::{ErrorKind, Write as _};
use std::net::Shutdown;
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use smoltcp::wire::{TcpControl, TcpRepr, TcpSeqNumber};

use super::reactor::Readiness;
use super::tcp_buffer::Buffer;

/// Bytes under way in each direction at most, on a connection of which there are few.
const LARGE_BUFFER: usize = 512 << 10;
/// The same where there are many: the largest window without scaling.
const SMALL_BUFFER: usize = u16::MAX as usize;
/// Connections with large buffers.
const FEW: usize = 32;
/// Shift of our windows (RFC 7323 §2): enough for [`LARGE_BUFFER`].
const SCALE: u8 = 4;
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
/// Attempts to open a connection to the guest, one each [`INITIAL_TIMEOUT`]: it may be still booting.
const MAX_SYNS: u32 = 60;
/// Acknowledgements of the same in a row that mean a lost segment (RFC 5681 §3.2).
const DUPLICATES: u8 = 3;

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
    /// A host has connected; the guest has not answered ours.
    SynSent,
    Established,
}

/// The sizes that bound segments.
#[derive(Debug, Clone, Copy)]
pub(super) struct SegmentLimits {
    /// Largest segment of this network, in bytes of payload.
    pub(super) mss: u16,
    /// Largest payload of a frame that the guest cuts into segments itself; none if it does not.
    pub(super) offload: Option<usize>,
    /// Largest payload that there is room for now.
    pub(super) room: usize,
}

/// A segment to send: its payload is `len` bytes of the connection's from `offset`.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) repr: TcpRepr<'static>,
    pub(super) offset: usize,
    pub(super) len: usize,
}

/// One connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) stream: TcpStream,
    pub(super) token: usize,
    /// Whether the stack has it in its queue.
    pub(super) is_pending: bool,
    state: State,
    last_use: Instant,
    readable: bool,
    writable: bool,

    /// RCV.NXT.
    expected: u32,
    /// End of the window that the guest was told.
    window_end: u32,
    /// Shift of our windows.
    own_scale: u8,
    to_host: Buffer,
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
    segment_size: u16,
    to_guest: Buffer,
    /// The host has closed its direction.
    host_closed: bool,
    fin_acknowledged: bool,
    is_syn_due: bool,
    /// One byte is to go into a closed window (RFC 9293 §3.8.6.1).
    is_probe_due: bool,
    duplicates: u8,
    /// How much after `unacknowledged` is being sent again because of duplicates.
    recovering: usize,
    timer: Option<Instant>,
    timeout: Duration,
    retries: u32,
}

impl Connection {
    /// A connection that the guest opens with `syn`, while `stream` is connecting. `others` there are already.
    pub(super) fn passive(
        stream: TcpStream,
        token: usize,
        syn: &TcpRepr<'_>,
        initial: u32,
        others: usize,
        now: Instant,
    ) -> Self {
        let mut connection = Self::new(stream, token, State::Connecting, initial, others, now);
        connection.take_options(syn);
        connection
    }

    /// A connection to the guest, for `stream`, which a host has opened.
    pub(super) fn active(
        stream: TcpStream,
        token: usize,
        initial: u32,
        others: usize,
        now: Instant,
    ) -> Self {
        let mut connection = Self::new(stream, token, State::SynSent, initial, others, now);
        connection.own_scale = SCALE;
        connection.is_syn_due = true;
        connection.set_no_delay();
        connection
    }

    fn new(
        stream: TcpStream,
        token: usize,
        state: State,
        initial: u32,
        others: usize,
        now: Instant,
    ) -> Self {
        let capacity = if others < FEW { LARGE_BUFFER } else { SMALL_BUFFER };
        Self {
            stream,
            token,
            is_pending: false,
            state,
            last_use: now,
            readable: false,
            writable: false,
            expected: 0,
            window_end: 0,
            own_scale: 0,
            to_host: Buffer::new(capacity),
            guest_closed: false,
            host_told: false,
            is_ack_due: false,
            unacknowledged: initial,
            sent: 0,
            most_sent: 0,
            window: 0,
            scale: None,
            segment_size: DEFAULT_MSS,
            to_guest: Buffer::new(capacity),
            host_closed: false,
            fin_acknowledged: false,
            is_syn_due: false,
            is_probe_due: false,
            duplicates: 0,
            recovering: 0,
            timer: None,
            timeout: INITIAL_TIMEOUT,
            retries: 0,
        }
    }

    /// Takes note of what the guest's SYN says.
    fn take_options(&mut self, syn: &TcpRepr<'_>) {
        self.expected = number(syn.seq_number).wrapping_add(1);
        self.window_end = self.expected.wrapping_add(self.free().min(u16::MAX.into()) as u32);
        // RFC 7323 §2.3: larger shifts are taken for 14.
        self.scale = syn.window_scale.map(|scale| scale.min(14));
        self.own_scale = self.scale.map_or(0, |_| SCALE);
        self.segment_size = syn.max_seg_size.unwrap_or(DEFAULT_MSS).max(MIN_MSS);
    }

    fn set_no_delay(&self) {
        if let Err(e) = self.stream.set_nodelay(true) {
            tracing::debug!(error = &e as &dyn std::error::Error, "Small segments may wait");
        }
    }

    /// When [`Connection::timed_out`] is to be called.
    pub(super) fn timer(&self) -> Option<Instant> {
        self.timer
    }

    /// What makes room for new connections first: those that never came about, then those unused for longest.
    pub(super) fn usefulness(&self) -> (bool, Instant) {
        (self.state == State::Established, self.last_use)
    }

    /// Bytes of payload in a segment.
    pub(super) fn segment_size(&self, limits: SegmentLimits) -> usize {
        self.segment_size.min(limits.mss).into()
    }

    /// The payload of a segment.
    pub(super) fn payload(&self, segment: &Segment) -> [&[u8]; 2] {
        self.to_guest.slices(segment.offset, segment.len)
    }

    /// Whether both directions have ended and each side knows.
    pub(super) fn is_over(&self) -> bool {
        self.host_told && self.fin_acknowledged && !self.is_ack_due
    }

    /// Makes the host's end of a connection that goes a reset one, where its peer could take it for complete.
    pub(super) fn abort(&self) {
        if self.state == State::Connecting || self.is_over() {
            return;
        }
        if let Err(e) = socket2::SockRef::from(&self.stream).set_linger(Some(Duration::ZERO)) {
            tracing::debug!(error = &e as &dyn std::error::Error, "The host sees a plain end");
        }
    }

    /// The host's socket became ready.
    pub(super) fn ready(&mut self, ready: Readiness, now: Instant) -> Fate {
        self.last_use = now;
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
            self.set_no_delay();
            self.state = State::SynReceived;
            self.is_syn_due = true;
            self.timer = Some(now + self.timeout);
        }
        self.flush()
    }

    /// A segment of the guest's.
    pub(super) fn receive(&mut self, segment: &TcpRepr<'_>, now: Instant) -> Fate {
        self.last_use = now;
        if self.state == State::SynSent {
            return self.receive_answer(segment, now);
        }
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
        let window = usize::from(segment.window_len) << self.scale.unwrap_or(0);
        let is_bare = segment.payload.is_empty()
            && segment.control != TcpControl::Fin
            && window == self.window;
        if !self.acknowledge(number(acknowledged), is_bare, now) {
            return if self.state == State::SynReceived { Fate::Reset } else { Fate::Open };
        }
        self.window = window;
        if let Err(fate) = self.accept(segment, offset) {
            return fate;
        }
        self.flush()
    }

    /// The guest's answer to our SYN (RFC 9293 §3.10.7.3). Both opening at once is no case of ours.
    fn receive_answer(&mut self, segment: &TcpRepr<'_>, now: Instant) -> Fate {
        let ours = self.unacknowledged.wrapping_add(1);
        let is_answer = segment.ack_number.map(number) == Some(ours);
        match segment.control {
            TcpControl::Rst if is_answer => return Fate::Closed,
            TcpControl::Syn if is_answer => {}
            _ => return Fate::Open,
        }
        self.take_options(segment);
        self.window = segment.window_len.into();
        self.unacknowledged = ours;
        self.state = State::Established;
        self.is_syn_due = false;
        self.is_ack_due = true;
        self.restart_timer(now);
        self.flush()
    }

    /// Takes note of an acknowledgement; whether it is one of what was sent.
    fn acknowledge(&mut self, number: u32, is_bare: bool, now: Instant) -> bool {
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
            self.to_guest.discard(data);
            self.fin_acknowledged |= count > data;
            self.unacknowledged = number;
            self.sent = self.sent.saturating_sub(count);
            self.most_sent -= count;
            self.recovering = self.recovering.saturating_sub(count);
            self.duplicates = 0;
            self.restart_timer(now);
        } else if self.most_sent == 0 {
            self.timer = None;
        } else if is_bare {
            self.duplicates = self.duplicates.saturating_add(1);
            if self.duplicates == DUPLICATES && self.recovering == 0 {
                // Once for all that is under way: what is sent again may be duplicate itself.
                self.recovering = self.most_sent;
                self.sent = 0;
            }
        }
        true
    }

    fn restart_timer(&mut self, now: Instant) {
        self.retries = 0;
        self.timeout = INITIAL_TIMEOUT;
        self.timer = (self.most_sent > 0).then(|| now + self.timeout);
    }

    /// Takes a segment's data and FIN as far as they are the next ones and fit.
    fn accept(&mut self, segment: &TcpRepr<'_>, offset: u32) -> Result<(), Fate> {
        let is_fin = segment.control == TcpControl::Fin;
        self.is_ack_due |= offset != 0 || is_fin || !segment.payload.is_empty();
        // None when there is a gap before it, or nothing new in it.
        let Some(new) = segment.payload.get(offset as usize..) else { return Ok(()) };
        if self.guest_closed {
            return Ok(());
        }
        let Some(new) = new.get(..new.len().min(self.free())) else { return Ok(()) };
        let direct = self.write(new)?;
        let buffered = new.get(direct..).map_or(0, |rest| self.to_host.push(rest));
        let taken = direct + buffered;
        self.expected = self.expected.wrapping_add(taken as u32);
        if is_fin && offset as usize + taken == segment.payload.len() {
            self.guest_closed = true;
            self.expected = self.expected.wrapping_add(1);
        }
        Ok(())
    }

    /// Writes to the host what it takes at once, if nothing is before it; how much.
    fn write(&mut self, bytes: &[u8]) -> Result<usize, Fate> {
        let mut done = 0;
        while self.writable && self.to_host.is_empty() {
            let Some(rest @ [_, ..]) = bytes.get(done..) else { break };
            match self.stream.write(rest) {
                Ok(count) => done += count,
                Err(e) if e.kind() == ErrorKind::WouldBlock => self.writable = false,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Err(Fate::Reset),
            }
        }
        Ok(done)
    }

    /// Gives the host what it takes.
    fn flush(&mut self) -> Fate {
        while self.writable && !self.to_host.is_empty() {
            match self.to_host.write_to(&self.stream) {
                Ok(_) => {}
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
        if self.state == State::Established {
            let told = self.window_end.wrapping_sub(self.expected) as usize;
            self.is_ack_due |= !self.guest_closed && self.free() >= told + self.most_free() / 2;
        }
        Fate::Open
    }

    /// The window for the guest.
    fn free(&self) -> usize {
        self.to_host.free().min(self.most_free())
    }

    /// The largest window that the guest can be told.
    fn most_free(&self) -> usize {
        self.to_host.capacity().min(usize::from(u16::MAX) << self.own_scale)
    }

    /// Takes from the host what it has and there is room for.
    fn fill(&mut self) -> Result<(), Fate> {
        while self.readable && !self.host_closed && self.to_guest.free() > 0 {
            match self.to_guest.read_from(&self.stream) {
                Ok(0) => self.host_closed = true,
                Ok(_) => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => self.readable = false,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Err(Fate::Reset),
            }
        }
        Ok(())
    }

    /// The next segment for the guest, if there is one.
    ///
    /// # Errors
    /// The host's connection has failed.
    pub(super) fn next_segment(
        &mut self,
        from: u16,
        to: u16,
        limits: SegmentLimits,
        now: Instant,
    ) -> Result<Option<Segment>, Fate> {
        match self.state {
            State::Connecting => return Ok(None),
            State::SynReceived | State::SynSent if !std::mem::take(&mut self.is_syn_due) => {
                return Ok(None);
            }
            State::SynReceived | State::SynSent => {
                let scale = self.scale.is_some() || self.state == State::SynSent;
                let mut syn = self.segment(from, to, TcpControl::Syn, 0);
                syn.repr.max_seg_size = Some(limits.mss);
                syn.repr.window_scale = scale.then_some(SCALE);
                self.timer = Some(now + self.timeout);
                // Our SYN takes a number that `sent` does not count.
                return Ok(Some(syn));
            }
            State::Established => {}
        }
        let size = self.segment_size(limits);
        let most = limits.offload.unwrap_or(size).min(limits.room).max(1);
        // One read for many segments, not one for each acknowledgement.
        if self.to_guest.len().saturating_sub(self.sent) < most {
            self.fill()?;
        }
        let unsent = self.to_guest.len().saturating_sub(self.sent);
        let room = self.window.saturating_sub(self.sent);
        let room = if std::mem::take(&mut self.is_probe_due) { room.max(1) } else { room };
        let mut count = unsent.min(room).min(most);
        if size < count && count < unsent {
            // Whole segments, but at the end.
            count -= count % size;
        }
        // A small segment only at the end, or when nothing else will open the window (RFC 9293 §3.8.6.2.1).
        let is_worthwhile = count == unsent || count >= size.min(most) || self.sent == 0;
        let is_fin_due = self.host_closed
            && unsent == 0
            && self.sent == self.to_guest.len()
            && !self.fin_acknowledged;
        let segment = if count > 0 && is_worthwhile {
            let control = if count == unsent { TcpControl::Psh } else { TcpControl::None };
            let segment = self.segment(from, to, control, count);
            self.sent += count;
            segment
        } else if is_fin_due {
            let segment = self.segment(from, to, TcpControl::Fin, 0);
            self.sent += 1;
            segment
        } else {
            if unsent > 0 && self.timer.is_none() {
                self.timer = Some(now + self.timeout);
            }
            return Ok(self.is_ack_due.then(|| self.segment(from, to, TcpControl::None, 0)));
        };
        self.most_sent = self.most_sent.max(self.sent);
        self.timer.get_or_insert(now + self.timeout);
        Ok(Some(segment))
    }

    /// A segment of `len` bytes at SND.NXT, which acknowledges everything.
    fn segment(&mut self, from: u16, to: u16, control: TcpControl, len: usize) -> Segment {
        self.is_ack_due = false;
        // RFC 7323 §2.2: a SYN's window is not scaled.
        let scale = if control == TcpControl::Syn { 0 } else { self.own_scale };
        let window_len = u16::try_from(self.free() >> scale).unwrap_or(u16::MAX);
        self.window_end = self.expected.wrapping_add(u32::from(window_len) << scale);
        let acknowledged = (self.state != State::SynSent).then(|| seq(self.expected));
        let repr = TcpRepr {
            seq_number: seq(self.unacknowledged.wrapping_add(self.sent as u32)),
            ack_number: acknowledged,
            window_len,
            ..bare_segment(from, to, control)
        };
        Segment { repr, offset: self.sent, len }
    }

    /// The segment that ends the connection; none if the guest does not know of it.
    pub(super) fn reset(&self, from: u16, to: u16) -> Option<TcpRepr<'static>> {
        let next = match self.state {
            State::Connecting => 0,
            State::SynReceived => self.unacknowledged.wrapping_add(1),
            State::SynSent => return None,
            State::Established => self.unacknowledged.wrapping_add(self.most_sent as u32),
        };
        Some(reset(from, to, next, Some(self.expected)))
    }

    /// The timer has run out: sends again, or asks whether the window is still closed.
    pub(super) fn timed_out(&mut self, _now: Instant) -> Fate {
        self.timer = None;
        if self.state == State::SynSent {
            self.retries += 1;
            self.is_syn_due = true;
            return if self.retries > MAX_SYNS { Fate::Closed } else { Fate::Open };
        }
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
        self.recovering = 0;
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
    let bare = bare_segment(from, to, TcpControl::Rst);
    TcpRepr { seq_number: seq(next), ack_number: expected.map(seq), ..bare }
}

/// A segment without options, which acknowledges nothing and has no window.
pub(super) fn bare_segment(from: u16, to: u16, control: TcpControl) -> TcpRepr<'static> {
    TcpRepr {
        src_port: from,
        dst_port: to,
        control,
        seq_number: seq(0),
        ack_number: None,
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
