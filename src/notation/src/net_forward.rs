//! Forwarded ports: `[tcp:|udp:][ADDRESS:]PORT:GUEST_PORT`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use fidl_fuchsia_net::{IpAddress, Ipv4Address, Ipv6Address};
use fidl_fuchsia_virtualization::{NetForward, NetForwardProtocol};

/// Reads `[tcp:|udp:][ADDRESS:]PORT:GUEST_PORT`: TCP, and the host's IPv4 loopback, unless it says otherwise. An IPv6
/// address is in brackets.
///
/// # Errors
/// Says what does not fit, and what would.
pub fn parse(text: &str) -> Result<NetForward, String> {
    let (protocol, rest) = match text.split_once(':') {
        Some(("tcp", rest)) => (NetForwardProtocol::Tcp, rest),
        Some(("udp", rest)) => (NetForwardProtocol::Udp, rest),
        _ => (NetForwardProtocol::Tcp, text),
    };
    let shape = || {
        format!(
            "{text:?} is not a forward: [tcp:|udp:][ADDRESS:]PORT:GUEST_PORT, as in tcp:127.0.0.1:8080:80"
        )
    };
    let (host, guest) = rest.rsplit_once(':').ok_or_else(shape)?;
    let (address, host) = match host.rsplit_once(':') {
        Some((address, port)) => (parse_address(address).ok_or_else(shape)?, port),
        None => (Ipv4Addr::LOCALHOST.into(), host),
    };
    let port = |word: &str| match word.parse() {
        Ok(0) | Err(_) => Err(format!("{word:?} in {text:?} is not a port: 1 to 65535")),
        Ok(port) => Ok(port),
    };
    let host_address = match address {
        IpAddr::V4(address) => IpAddress::Ipv4(Ipv4Address { addr: address.octets() }),
        IpAddr::V6(address) => IpAddress::Ipv6(Ipv6Address { addr: address.octets() }),
    };
    Ok(NetForward { protocol, host_address, host_port: port(host)?, guest_port: port(guest)? })
}

fn parse_address(text: &str) -> Option<IpAddr> {
    match text.strip_prefix('[') {
        Some(rest) => Some(IpAddr::V6(rest.strip_suffix(']')?.parse().ok()?)),
        None => Some(IpAddr::V4(text.parse().ok()?)),
    }
}

/// Where the host listens.
pub fn host(forward: &NetForward) -> SocketAddr {
    let address = match &forward.host_address {
        IpAddress::Ipv4(address) => IpAddr::from(address.addr),
        IpAddress::Ipv6(address) => IpAddr::from(address.addr),
    };
    SocketAddr::new(address, forward.host_port)
}

/// The text that [`parse`] reads this from.
pub fn format(forward: &NetForward) -> String {
    let protocol = match forward.protocol {
        NetForwardProtocol::Tcp => "tcp",
        NetForwardProtocol::Udp => "udp",
    };
    format!("{protocol}:{}:{}", host(forward), forward.guest_port)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_and_long_forms() {
        for (text, full) in [
            ("8080:80", "tcp:127.0.0.1:8080:80"),
            ("udp:53:53", "udp:127.0.0.1:53:53"),
            ("0.0.0.0:2222:22", "tcp:0.0.0.0:2222:22"),
            ("tcp:[::1]:8080:80", "tcp:[::1]:8080:80"),
            ("udp:192.0.2.1:1:65535", "udp:192.0.2.1:1:65535"),
        ] {
            assert_eq!(parse(text).as_ref().map(format), Ok(full.to_owned()), "{text}");
        }
    }

    #[test]
    fn mistakes_are_named() {
        for text in ["", "80", "tcp:80", "sctp:1:2", "localhost:80:80", "::1:80:80", "[::1:80:80"] {
            let error = parse(text).unwrap_err();
            assert!(error.contains("[tcp:|udp:][ADDRESS:]PORT:GUEST_PORT"), "{text}: {error}");
        }
        for (text, word) in [("0:80", "\"0\""), ("80:65536", "\"65536\""), ("80:-1", "\"-1\"")] {
            let error = parse(text).unwrap_err();
            assert!(error.starts_with(word) && error.contains("1 to 65535"), "{text}: {error}");
        }
    }
}
