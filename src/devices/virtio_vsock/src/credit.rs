//! Flow control in both directions (virtio 1.2 §5.10.6.3). All counters are modulo 2^32, as on the wire.

use crate::wire::Header;

/// Bytes that the guest may send ahead of what the host's socket has taken, for each connection.
pub(crate) const BUF_ALLOC: u32 = 128 << 10;

/// The guest sent more than it had credit for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CreditExceeded;

/// The credit of one connection.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Credit {
    /// From the guest.
    received: u32,
    /// Of those, what the host's socket has taken.
    forwarded: u32,
    /// `forwarded` as the guest last heard it.
    advertised: u32,
    /// To the guest.
    sent: u32,
    guest_alloc: u32,
    guest_forwarded: u32,
}

impl Credit {
    /// The credit that comes with a connection's first packet.
    pub(crate) fn new(header: &Header) -> Self {
        let mut credit = Self::default();
        credit.update(header);
        credit
    }

    /// Takes the guest's side from a packet.
    pub(crate) fn update(&mut self, header: &Header) {
        self.guest_alloc = header.buf_alloc.get();
        self.guest_forwarded = header.fwd_cnt.get();
    }

    /// Bytes that the guest has room for. None when its counters make no sense.
    pub(crate) fn available(&self) -> u32 {
        self.guest_alloc.saturating_sub(self.unacknowledged())
    }

    /// Bytes sent that the guest's program has not read, as far as is known.
    pub(crate) fn unacknowledged(&self) -> u32 {
        self.sent.wrapping_sub(self.guest_forwarded)
    }

    /// `len` bytes go to the guest.
    pub(crate) fn send(&mut self, len: u32) {
        self.sent = self.sent.wrapping_add(len);
    }

    /// `len` bytes came from the guest.
    pub(crate) fn receive(&mut self, len: u32) -> Result<(), CreditExceeded> {
        let buffered = self.received.wrapping_sub(self.forwarded);
        if len > BUF_ALLOC.saturating_sub(buffered) {
            return Err(CreditExceeded);
        }
        self.received = self.received.wrapping_add(len);
        Ok(())
    }

    /// `len` received bytes need no room any more.
    pub(crate) fn forward(&mut self, len: usize) {
        // Never more than were received, which fits.
        self.forwarded = self.forwarded.wrapping_add(len as u32);
    }

    /// Whether the guest has to hear of its credit without being asked, or it would run out.
    pub(crate) fn owes_update(&self) -> bool {
        self.forwarded.wrapping_sub(self.advertised) >= BUF_ALLOC / 2
    }

    /// `fwd_cnt` for a packet that is being sent.
    pub(crate) fn advertise(&mut self) -> u32 {
        self.advertised = self.forwarded;
        self.forwarded
    }
}
