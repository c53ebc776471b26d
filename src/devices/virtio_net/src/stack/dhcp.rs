//! The DHCP server (RFC 2131): one lease, the guest's.

use std::net::Ipv4Addr;

use smoltcp::wire::{DhcpFlags, DhcpMessageType, DhcpPacket, DhcpRepr};

use super::address::{DNS, GATEWAY, GUEST, NETMASK};

/// UDP port of servers.
pub(super) const SERVER_PORT: u16 = 67;
/// UDP port of clients.
pub(super) const CLIENT_PORT: u16 = 68;

/// Seconds that a lease is for: a day, as QEMU's.
const LEASE: u32 = 86_400;
/// Least length of a message (RFC 1542 §2.1); enough for the options that are sent.
const MESSAGE: usize = 300;

/// Options that are read (RFC 2132 §9).
mod option {
    pub(super) const REQUESTED_ADDRESS: u8 = 50;
    pub(super) const MESSAGE_TYPE: u8 = 53;
    pub(super) const SERVER: u8 = 54;
}

/// The server's answer to a client's message; none if it is no message or needs no answer.
pub(super) fn answer(message: &[u8]) -> Option<Vec<u8>> {
    let request = DhcpPacket::new_checked(message).ok()?;
    let find = |kind| request.options().find(|option| option.kind == kind).map(|o| o.data);
    let address = |kind| Some(Ipv4Addr::from(<[u8; 4]>::try_from(find(kind)?).ok()?));
    let [kind] = find(option::MESSAGE_TYPE)? else { return None };
    let message_type = match DhcpMessageType::from(*kind) {
        DhcpMessageType::Discover => DhcpMessageType::Offer,
        DhcpMessageType::Request => {
            if address(option::SERVER).is_some_and(|server| server != GATEWAY) {
                return None;
            }
            // RFC 2131 §4.3.2: in the option while selecting, in `ciaddr` while renewing.
            let wanted = address(option::REQUESTED_ADDRESS).unwrap_or(request.client_ip());
            if wanted == GUEST { DhcpMessageType::Ack } else { DhcpMessageType::Nak }
        }
        _ => return None,
    };
    let accepted = message_type != DhcpMessageType::Nak;
    let reply = DhcpRepr {
        message_type,
        transaction_id: request.transaction_id(),
        secs: 0,
        client_hardware_address: request.client_hardware_address(),
        client_ip: Ipv4Addr::UNSPECIFIED,
        your_ip: if accepted { GUEST } else { Ipv4Addr::UNSPECIFIED },
        server_ip: Ipv4Addr::UNSPECIFIED,
        router: accepted.then_some(GATEWAY),
        subnet_mask: accepted.then_some(NETMASK),
        relay_agent_ip: Ipv4Addr::UNSPECIFIED,
        broadcast: request.flags().contains(DhcpFlags::BROADCAST),
        requested_ip: None,
        client_identifier: None,
        server_identifier: Some(GATEWAY),
        parameter_request_list: None,
        dns_servers: accepted.then(|| [DNS].into_iter().collect()),
        max_size: None,
        lease_duration: accepted.then_some(LEASE),
        renew_duration: None,
        rebind_duration: None,
        additional_options: &[],
    };
    let mut buffer = vec![0; MESSAGE];
    reply.emit(&mut DhcpPacket::new_unchecked(buffer.as_mut_slice())).ok()?;
    Some(buffer)
}
