//! Name service: the host's own name server under an address of the guest's network.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::address::DNS_PORT;

/// How long the resolver configuration is believed: a host that moves to another network changes it.
const BELIEVED: Duration = Duration::from_secs(5);

/// The host's name server.
#[derive(Debug)]
pub(super) struct Resolver {
    server: Option<SocketAddr>,
    read: Option<Instant>,
}

impl Resolver {
    /// The first name server of this machine's resolver configuration, as it is at each time.
    pub(super) fn of_host() -> Self {
        Self { server: host_name_server(), read: Some(Instant::now()) }
    }

    /// Always this one.
    #[cfg(test)]
    pub(super) fn fixed(server: Option<SocketAddr>) -> Self {
        Self { server, read: None }
    }

    pub(super) fn server(&mut self, now: Instant) -> Option<SocketAddr> {
        if self.read.is_some_and(|read| now.saturating_duration_since(read) > BELIEVED) {
            *self = Self { server: host_name_server(), read: Some(now) };
        }
        self.server
    }
}

fn host_name_server() -> Option<SocketAddr> {
    let text = std::fs::read_to_string("/etc/resolv.conf").ok()?;
    let server: IpAddr = text.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some("nameserver")).then(|| words.next()?.parse().ok()).flatten()
    })?;
    Some((server, DNS_PORT).into())
}

/// The answer to a DNS query when there is no name server: SERVFAIL (RFC 1035 §4.1.1).
pub(super) fn server_failure(query: &[u8]) -> Option<[u8; 12]> {
    const RESPONSE: u8 = 0x80;
    const KEPT: u8 = 0x79; // Opcode and RD.
    const RECURSION_AVAILABLE: u8 = 0x80;
    const SERVFAIL: u8 = 2;
    let [id_high, id_low, flags, _, ..] = *query.first_chunk::<12>()?;
    if flags & RESPONSE != 0 {
        return None;
    }
    // Without the question, of which a malformed one could not be copied.
    let mut reply = [0; 12];
    reply[..4].copy_from_slice(&[
        id_high,
        id_low,
        flags & KEPT | RESPONSE,
        RECURSION_AVAILABLE | SERVFAIL,
    ]);
    Some(reply)
}
