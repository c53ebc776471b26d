//! The addresses of the guest's network, and what they stand for on the host's.
//!
//! They are those of QEMU's user network: 10.0.2.0/24 and fec0::/64, each with the router at 2 and a name server at 3.
//! The router's address also stands for the host's own loopback.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use smoltcp::wire::EthernetAddress;

/// The router, and the host's loopback.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
/// The name server.
pub const DNS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);
/// The guest.
pub const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
/// Mask of the guest's network.
pub const NETMASK: Ipv4Addr = Ipv4Addr::new(255, 255, 255, 0);
/// The prefix, of [`PREFIX_LEN`] bits, in which the guest makes its IPv6 addresses.
pub const PREFIX_V6: Ipv6Addr = Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 0);
/// Length of [`PREFIX_V6`] in bits.
pub const PREFIX_LEN: u8 = 64;
/// The router, and the host's loopback.
pub const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 2);
/// The name server.
pub const DNS_V6: Ipv6Addr = Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 3);
/// The router's address on the link, from which it advertises itself.
pub const ROUTER_LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2);

/// Every IPv6 node on the link (RFC 4291 §2.7.1).
pub(super) const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// The hardware address of [`ALL_NODES`] (RFC 2464 §7).
pub(super) const ALL_NODES_MAC: EthernetAddress = EthernetAddress([0x33, 0x33, 0, 0, 0, 1]);
/// The router's hardware address.
pub(super) const GATEWAY_MAC: EthernetAddress = EthernetAddress([0x52, 0x55, 10, 0, 2, 2]);
/// The name server's hardware address.
pub(super) const DNS_MAC: EthernetAddress = EthernetAddress([0x52, 0x55, 10, 0, 2, 3]);

/// UDP and TCP port of name servers.
pub(super) const DNS_PORT: u16 = 53;

/// Whether `ip` is the router's.
pub(super) fn is_gateway(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip == GATEWAY,
        IpAddr::V6(ip) => ip == GATEWAY_V6 || ip == ROUTER_LINK_LOCAL,
    }
}

/// Whether `ip` is the name server's.
pub(super) fn is_dns(ip: IpAddr) -> bool {
    ip == DNS || ip == DNS_V6
}

/// The hardware address of the router or the name server; none for other addresses.
pub(super) fn mac_of(ip: IpAddr) -> Option<EthernetAddress> {
    if is_dns(ip) { Some(DNS_MAC) } else { is_gateway(ip).then_some(GATEWAY_MAC) }
}

/// Whether the guest may send from `ip` to beyond its link.
pub(super) fn is_guest(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip == GUEST,
        IpAddr::V6(ip) => is_in_prefix(ip) && ip != GATEWAY_V6 && ip != DNS_V6,
    }
}

fn is_in_prefix(ip: Ipv6Addr) -> bool {
    ip.segments()[..4] == PREFIX_V6.segments()[..4]
}

/// Where on the host's networks an address of the guest's is; none if nowhere.
pub(super) fn translate(
    ip: IpAddr,
    port: u16,
    name_server: Option<SocketAddr>,
) -> Option<SocketAddr> {
    if is_dns(ip) {
        return name_server.filter(|_| port == DNS_PORT);
    }
    let ip: IpAddr = match ip {
        IpAddr::V4(GATEWAY) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V4(ip) => {
            let is_local = ip & NETMASK == GATEWAY & NETMASK;
            let is_nobody = ip.is_broadcast() || ip.is_unspecified();
            if is_local || is_nobody || ip.is_loopback() || ip.is_multicast() {
                return None;
            }
            ip.into()
        }
        IpAddr::V6(GATEWAY_V6) => Ipv6Addr::LOCALHOST.into(),
        IpAddr::V6(ip) => {
            let is_local = is_in_prefix(ip) || ip.is_unicast_link_local();
            let is_nobody = ip.is_unspecified() || ip.to_ipv4_mapped().is_some();
            if is_local || is_nobody || ip.is_loopback() || ip.is_multicast() {
                return None;
            }
            ip.into()
        }
    };
    Some((ip, port).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_loopback_is_reached_by_the_router_and_by_nothing_else() {
        let to = |text: &str| translate(text.parse().unwrap(), 80, None);
        assert_eq!(to("10.0.2.2"), "127.0.0.1:80".parse().ok());
        assert_eq!(to("fec0::2"), "[::1]:80".parse().ok());
        for nowhere in [
            "127.0.0.1",
            "10.0.2.4",
            "10.0.2.255",
            "255.255.255.255",
            "224.0.0.1",
            "0.0.0.0",
            "::1",
            "::",
            "::ffff:127.0.0.1",
            "fe80::2",
            "fec0::4",
            "ff02::1",
        ] {
            assert_eq!(to(nowhere), None, "{nowhere}");
        }
        assert_eq!(to("192.0.2.1"), "192.0.2.1:80".parse().ok());
        assert_eq!(to("2001:db8::1"), "[2001:db8::1]:80".parse().ok());
    }

    #[test]
    fn the_name_server_is_the_hosts() {
        let server = Some("192.0.2.53:53".parse().unwrap());
        for dns in [DNS.into(), DNS_V6.into()] {
            assert_eq!(translate(dns, 53, server), server);
            assert_eq!(translate(dns, 80, server), None);
            assert_eq!(translate(dns, 53, None), None);
        }
    }
}
