//! The router's side of neighbour discovery (RFC 4861) and of address configuration (RFC 4862, RFC 8106).

use std::net::Ipv6Addr;

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    EthernetAddress, Icmpv6Packet, Icmpv6Repr, NdiscNeighborFlags, NdiscRepr, RawHardwareAddress,
};

use super::MTU;
use super::address::{DNS_V6, GATEWAY_MAC, PREFIX_LEN, PREFIX_V6};

/// Hop limit of every message: one that a router has passed on is not believed (RFC 4861 §6.1, §7.1).
pub(super) const HOP_LIMIT: u8 = 255;

/// Seconds for which the router and its name server are good, unless advertised again.
const ROUTER_LIFETIME: u16 = 1800;
/// Seconds for which addresses of the prefix are good.
const PREFIX_LIFETIME: u32 = 86_400;

/// Appends a router advertisement (RFC 4861 §4.2): its checksum is left to [`super::wire::Path::icmp`].
pub(super) fn router_advertisement(message: &mut Vec<u8>) {
    const ROUTER_ADVERTISEMENT: u8 = 134;
    const CURRENT_HOP_LIMIT: u8 = 64;
    message.extend([ROUTER_ADVERTISEMENT, 0, 0, 0, CURRENT_HOP_LIMIT, 0]);
    message.extend(ROUTER_LIFETIME.to_be_bytes());
    message.extend([0; 8]); // Reachable and retransmission time: the guest's own.
    // Source link-layer address (§4.6.1).
    message.extend([1, 1]);
    message.extend(GATEWAY_MAC.as_bytes());
    // MTU (§4.6.4).
    message.extend([5, 1, 0, 0]);
    message.extend((MTU as u32).to_be_bytes());
    // Prefix information (§4.6.2): on-link, for autonomous configuration.
    message.extend([3, 4, PREFIX_LEN, 0xc0]);
    message.extend(PREFIX_LIFETIME.to_be_bytes());
    message.extend(PREFIX_LIFETIME.to_be_bytes());
    message.extend([0; 4]);
    message.extend(PREFIX_V6.octets());
    // Recursive DNS server (RFC 8106 §5.1).
    message.extend([25, 3, 0, 0]);
    message.extend(u32::from(ROUTER_LIFETIME).to_be_bytes());
    message.extend(DNS_V6.octets());
}

/// Appends the answer to a solicitation of `target`, which `mac` has; to nobody in particular unless `is_solicited`.
pub(super) fn neighbor_advertisement(
    target: Ipv6Addr,
    mac: EthernetAddress,
    is_solicited: bool,
    message: &mut Vec<u8>,
) {
    let mut flags = NdiscNeighborFlags::ROUTER | NdiscNeighborFlags::OVERRIDE;
    flags.set(NdiscNeighborFlags::SOLICITED, is_solicited);
    let repr = Icmpv6Repr::Ndisc(NdiscRepr::NeighborAdvert {
        flags,
        target_addr: target,
        lladdr: Some(RawHardwareAddress::from(mac)),
    });
    message.resize(repr.buffer_len(), 0);
    let mut packet = Icmpv6Packet::new_unchecked(message.as_mut_slice());
    // The checksum comes with the headers.
    repr.emit(&target, &target, &mut packet, &ChecksumCapabilities::ignored());
}
