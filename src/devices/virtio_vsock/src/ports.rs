//! Which ports of the host are taken.

use std::collections::{HashSet, VecDeque};

use fuchsia_zircon as zx;

/// Ports for connections that the host makes (IANA's dynamic range, as on Fuchsia).
pub(crate) const EPHEMERAL: std::ops::RangeInclusive<u32> = 49152..=65535;
/// Seconds for which the ports of a connection that was not closed in order stay unused: packets of it may be on the
/// way.
const QUARANTINE: i64 = 10;
/// Most pairs in quarantine; then the oldest are let go early.
const MAX_QUARANTINED: usize = 4096;
/// Most ports that are listened on.
const MAX_LISTENERS: usize = 1 << 16;

/// A connection's ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Pair {
    pub(crate) host: u32,
    pub(crate) guest: u32,
}

/// The host's ports but for those of living connections.
#[derive(Debug, Default)]
pub(crate) struct Ports {
    listeners: HashSet<u32>,
    quarantine: VecDeque<(zx::Time, Pair)>,
    quarantined: HashSet<Pair>,
    /// Ephemeral ports handed out so far, modulo their number.
    handed_out: u32,
}

impl Ports {
    /// Takes a port for a listener.
    ///
    /// # Errors
    /// `ALREADY_BOUND` if it is taken, `NO_RESOURCES` when there are too many listeners.
    pub(crate) fn listen(&mut self, port: u32) -> Result<(), zx::Status> {
        if self.listeners.contains(&port) {
            return Err(zx::Status::ALREADY_BOUND);
        }
        if self.listeners.len() >= MAX_LISTENERS {
            return Err(zx::Status::NO_RESOURCES);
        }
        self.listeners.insert(port);
        Ok(())
    }

    pub(crate) fn has_listener(&self, port: u32) -> bool {
        self.listeners.contains(&port)
    }

    /// A host port for a connection to `guest`, of which `taken` says whether a connection has the pair.
    pub(crate) fn ephemeral(
        &mut self,
        guest: u32,
        now: zx::Time,
        taken: impl Fn(Pair) -> bool,
    ) -> Option<Pair> {
        let count = EPHEMERAL.end() - EPHEMERAL.start() + 1;
        for _ in 0..count {
            let host = EPHEMERAL.start() + self.handed_out;
            self.handed_out = (self.handed_out + 1) % count;
            let pair = Pair { host, guest };
            if !self.listeners.contains(&host) && !taken(pair) && !self.is_quarantined(pair, now) {
                return Some(pair);
            }
        }
        None
    }

    /// Keeps a pair unused for a while.
    pub(crate) fn quarantine(&mut self, pair: Pair, now: zx::Time) {
        if !self.quarantined.insert(pair) {
            return;
        }
        self.quarantine.push_back((now + zx::Duration::from_seconds(QUARANTINE), pair));
        if self.quarantine.len() > MAX_QUARANTINED {
            self.release_first();
        }
    }

    pub(crate) fn is_quarantined(&mut self, pair: Pair, now: zx::Time) -> bool {
        while self.quarantine.front().is_some_and(|(end, _)| *end <= now) {
            self.release_first();
        }
        self.quarantined.contains(&pair)
    }

    fn release_first(&mut self) {
        if let Some((_, pair)) = self.quarantine.pop_front() {
            self.quarantined.remove(&pair);
        }
    }

    /// Forgets what the guest before a reset has left.
    pub(crate) fn reset(&mut self) {
        self.quarantine.clear();
        self.quarantined.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: zx::Time = zx::Time::from_nanos(1);

    #[test]
    fn a_port_has_one_listener() {
        let mut ports = Ports::default();
        assert_eq!(ports.listen(8000), Ok(()));
        assert_eq!(ports.listen(8000), Err(zx::Status::ALREADY_BOUND));
        assert!(ports.has_listener(8000) && !ports.has_listener(8001));
    }

    #[test]
    fn ephemeral_ports_end() {
        let mut ports = Ports::default();
        let first = ports.ephemeral(80, NOW, |_| false);
        assert_eq!(first, Some(Pair { host: 49152, guest: 80 }));
        assert_eq!(
            ports.ephemeral(80, NOW, |pair| pair.host != 50000).map(|p| p.host),
            Some(50000)
        );
        for port in EPHEMERAL {
            ports.listen(port).unwrap();
        }
        assert_eq!(ports.ephemeral(80, NOW, |_| false), None);
    }

    #[test]
    fn a_quarantine_is_over_after_ten_seconds() {
        let mut ports = Ports::default();
        let pair = Pair { host: 49152, guest: 80 };
        ports.quarantine(pair, NOW);
        assert!(ports.is_quarantined(pair, NOW + zx::Duration::from_millis(9_999)));
        assert_eq!(ports.ephemeral(80, NOW, |_| false).map(|p| p.host), Some(49153));
        assert!(!ports.is_quarantined(pair, NOW + zx::Duration::from_seconds(10)));
    }

    #[test]
    fn a_guest_cannot_fill_the_quarantine() {
        let mut ports = Ports::default();
        for guest in 0..2 * MAX_QUARANTINED as u32 {
            ports.quarantine(Pair { host: 1, guest }, NOW);
        }
        assert_eq!(ports.quarantine.len(), MAX_QUARANTINED);
        assert_eq!(ports.quarantined.len(), MAX_QUARANTINED);
    }
}
