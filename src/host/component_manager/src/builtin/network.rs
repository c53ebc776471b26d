//! `fuchsia.net.interfaces.State`: the interfaces of this machine, from sysfs, procfs and netlink.

use fidl::endpoints::ServerEnd;
use fidl_fuchsia_hardware_network::PortClass;
use fidl_fuchsia_net as fnet;
use fidl_fuchsia_net_interfaces as finterfaces;
use fuchsia_async as fasync;
use fuchsia_zircon as zx;
use futures::StreamExt;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};

/// How often a watcher that waits for a change looks for one.
const PERIOD: zx::Duration = zx::Duration::from_seconds(2);

const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// `NLM_F_REQUEST | NLM_F_DUMP`
const DUMP: u16 = 0x301;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
/// `IFF_UP | IFF_RUNNING`
const ONLINE: u32 = 0x41;
const IFF_LOOPBACK: u32 = 0x8;

/// Where the figures are.
#[derive(Debug, Clone)]
pub struct Network {
    sys: PathBuf,
    proc: PathBuf,
}

/// An interface, as far as a watcher tells of it.
#[derive(Debug, Clone, PartialEq)]
struct Interface {
    name: String,
    online: bool,
    class: finterfaces::PortClass,
    default_v4: bool,
    default_v6: bool,
    addresses: Vec<fnet::Subnet>,
}

type Interfaces = BTreeMap<u64, Interface>;

impl Network {
    /// The state that `sys` and `proc`, mounted as their names say, tell of.
    #[must_use]
    pub fn new(sys: impl Into<PathBuf>, proc: impl Into<PathBuf>) -> Self {
        Self { sys: sys.into(), proc: proc.into() }
    }

    /// Serves a connection.
    pub fn serve(&self, server: ServerEnd<finterfaces::StateMarker>) {
        let network = self.clone();
        fasync::Task::local(async move {
            let mut requests = server.into_stream();
            while let Some(Ok(finterfaces::StateRequest::GetWatcher { watcher, .. })) =
                requests.next().await
            {
                fasync::Task::local(network.clone().watch(watcher)).detach();
            }
        })
        .detach();
    }

    /// What there is, then that this was all, then each change when it is asked for.
    async fn watch(self, server: ServerEnd<finterfaces::WatcherMarker>) {
        let mut known = self.read();
        let mut events: VecDeque<finterfaces::Event> = known
            .iter()
            .map(|(id, interface)| finterfaces::Event::Existing(properties(*id, interface)))
            .collect();
        events.push_back(finterfaces::Event::Idle(finterfaces::Empty {}));
        let mut requests = server.into_stream();
        while let Some(Ok(finterfaces::WatcherRequest::Watch { responder })) = requests.next().await
        {
            while events.is_empty() {
                let now = self.read();
                events.extend(changes(&known, &now));
                known = now;
                if events.is_empty() {
                    fasync::Timer::new(fasync::Time::after(PERIOD)).await;
                }
            }
            let Some(event) = events.pop_front() else { return };
            if responder.send(&event).is_err() {
                return;
            }
        }
    }

    fn read(&self) -> Interfaces {
        let addresses = addresses().unwrap_or_default();
        let v4 = default_routes_v4(&text(&self.proc.join("net/route")));
        let v6 = default_routes_v6(&text(&self.proc.join("net/ipv6_route")));
        let mut interfaces = Interfaces::new();
        for entry in std::fs::read_dir(self.sys.join("class/net")).into_iter().flatten().flatten() {
            let (path, Ok(name)) = (entry.path(), entry.file_name().into_string()) else {
                continue;
            };
            let Ok(id) = text(&path.join("ifindex")).trim().parse::<u64>() else { continue };
            let flags = text(&path.join("flags"));
            let flags = u32::from_str_radix(flags.trim().trim_start_matches("0x"), 16).unwrap_or(0);
            let interface = Interface {
                online: flags & ONLINE == ONLINE,
                class: class(&path, flags),
                default_v4: v4.contains(&name),
                default_v6: v6.contains(&name),
                addresses: addresses
                    .iter()
                    .filter(|(at, _)| *at == id)
                    .map(|(_, subnet)| subnet.clone())
                    .collect(),
                name,
            };
            interfaces.insert(id, interface);
        }
        interfaces
    }
}

fn text(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

fn class(path: &Path, flags: u32) -> finterfaces::PortClass {
    if flags & IFF_LOOPBACK != 0 {
        return finterfaces::PortClass::Loopback(finterfaces::Empty {});
    }
    let has = |name: &str| path.join(name).exists();
    finterfaces::PortClass::Device(if has("wireless") || has("phy80211") {
        PortClass::WlanClient
    } else if has("bridge") {
        PortClass::Bridge
    } else if has("device") {
        PortClass::Ethernet
    } else {
        // Neither hardware nor a bridge: made by software.
        PortClass::Virtual
    })
}

/// The interfaces with a default route, by `/proc/net/route`: name, destination, gateway, flags, ..., mask as the eighth column.
fn default_routes_v4(table: &str) -> Vec<String> {
    let line = |line: &str| -> Option<String> {
        let columns: Vec<_> = line.split_whitespace().collect();
        let zero = |index: usize| columns.get(index).is_some_and(|column| *column == "00000000");
        (zero(1) && zero(7)).then(|| columns.first().map(|name| (*name).to_owned()))?
    };
    table.lines().skip(1).filter_map(line).collect()
}

/// The same by `/proc/net/ipv6_route`: destination, prefix length, ..., flags, name. `lo` has one that leads nowhere.
fn default_routes_v6(table: &str) -> Vec<String> {
    let line = |line: &str| -> Option<String> {
        let columns: Vec<_> = line.split_whitespace().collect();
        let default =
            columns.first()?.bytes().all(|digit| digit == b'0') && *columns.get(1)? == "00";
        columns.get(9).filter(|name| default && **name != "lo").map(|name| (*name).to_owned())
    };
    table.lines().filter_map(line).collect()
}

/// Every address with the number of its interface, from the kernel.
fn addresses() -> Result<Vec<(u64, fnet::Subnet)>, rustix::io::Errno> {
    let socket = rustix::net::socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        // NETLINK_ROUTE is 0, the protocol by default.
        None,
    )?;
    let mut request = Vec::with_capacity(24);
    request.extend(24_u32.to_ne_bytes());
    request.extend(RTM_GETADDR.to_ne_bytes());
    request.extend(DUMP.to_ne_bytes());
    // Sequence, port, and a message that names no family.
    request.extend([0; 16]);
    rustix::net::send(&socket, &request, SendFlags::empty())?;
    let mut all = Vec::new();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let (length, _) = rustix::net::recv(&socket, buffer.as_mut_slice(), RecvFlags::empty())?;
        if length == 0 || !parse(buffer.get(..length).unwrap_or_default(), &mut all) {
            return Ok(all);
        }
    }
}

/// Takes the addresses out of one datagram; `false` after the last.
fn parse(mut messages: &[u8], into: &mut Vec<(u64, fnet::Subnet)>) -> bool {
    while let Some((header, _)) = messages.split_first_chunk::<16>() {
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let kind = u16::from_ne_bytes([header[4], header[5]]);
        let Some(body) = messages.get(16..length) else { return false };
        match kind {
            NLMSG_DONE | NLMSG_ERROR => return false,
            RTM_NEWADDR => into.extend(address(body)),
            _ => {}
        }
        messages = messages.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    true
}

/// `struct ifaddrmsg` and its attributes. Of two addresses the local one is ours, the other the peer's.
fn address(body: &[u8]) -> Option<(u64, fnet::Subnet)> {
    let (&[family, prefix_len, _, _, a, b, c, d], mut attributes) =
        body.split_first_chunk::<8>()?;
    let mut found: Option<&[u8]> = None;
    while let Some((&[low, high, kind_low, kind_high], _)) = attributes.split_first_chunk::<4>() {
        let length = usize::from(u16::from_ne_bytes([low, high]));
        let value = attributes.get(4..length)?;
        match u16::from_ne_bytes([kind_low, kind_high]) {
            IFA_LOCAL => found = Some(value),
            IFA_ADDRESS => found = found.or(Some(value)),
            _ => {}
        }
        attributes = attributes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    let addr = match family {
        AF_INET => fnet::IpAddress::Ipv4(fnet::Ipv4Address { addr: found?.try_into().ok()? }),
        AF_INET6 => fnet::IpAddress::Ipv6(fnet::Ipv6Address { addr: found?.try_into().ok()? }),
        _ => return None,
    };
    Some((u64::from(u32::from_ne_bytes([a, b, c, d])), fnet::Subnet { addr, prefix_len }))
}

fn properties(id: u64, interface: &Interface) -> finterfaces::Properties {
    let address = |subnet: &fnet::Subnet| finterfaces::Address {
        addr: Some(subnet.clone()),
        assignment_state: Some(finterfaces::AddressAssignmentState::Assigned),
        ..Default::default()
    };
    finterfaces::Properties {
        id: Some(id),
        name: Some(interface.name.clone()),
        online: Some(interface.online),
        port_class: Some(interface.class.clone()),
        has_default_ipv4_route: Some(interface.default_v4),
        has_default_ipv6_route: Some(interface.default_v6),
        addresses: Some(interface.addresses.iter().map(address).collect()),
        ..Default::default()
    }
}

fn changes(before: &Interfaces, now: &Interfaces) -> Vec<finterfaces::Event> {
    let mut events = Vec::new();
    for id in before.keys().filter(|id| !now.contains_key(id)) {
        events.push(finterfaces::Event::Removed(*id));
    }
    for (id, interface) in now {
        match before.get(id) {
            None => events.push(finterfaces::Event::Added(properties(*id, interface))),
            Some(old) if old != interface => {
                events.push(finterfaces::Event::Changed(properties(*id, interface)));
            }
            Some(_) => {}
        }
    }
    events
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(root: &Path, name: &str, files: &[(&str, &str)]) {
        let place = root.join("class/net").join(name);
        std::fs::create_dir_all(&place).unwrap();
        for (file, content) in files {
            std::fs::write(place.join(file), content).unwrap();
        }
    }

    #[test]
    fn interfaces_have_their_class_and_state() {
        let root = tempfile::tempdir().unwrap();
        add(root.path(), "lo", &[("ifindex", "1\n"), ("flags", "0x49\n")]);
        add(root.path(), "eth0", &[("ifindex", "2\n"), ("flags", "0x1043\n"), ("device", "")]);
        add(
            root.path(),
            "wlan0",
            &[("ifindex", "3\n"), ("flags", "0x1003\n"), ("device", ""), ("wireless", "")],
        );
        add(root.path(), "tap0", &[("ifindex", "4\n"), ("flags", "0x1003\n")]);
        add(root.path(), "bad", &[("ifindex", "no number")]);
        let interfaces = Network::new(root.path(), "/nonexistent").read();
        let seen: Vec<_> = interfaces
            .iter()
            .map(|(id, i)| (*id, i.name.as_str(), i.online, i.class.clone()))
            .collect();
        let device = finterfaces::PortClass::Device;
        assert_eq!(
            seen,
            [
                (1, "lo", true, finterfaces::PortClass::Loopback(finterfaces::Empty {})),
                (2, "eth0", true, device(PortClass::Ethernet)),
                (3, "wlan0", false, device(PortClass::WlanClient)),
                (4, "tap0", false, device(PortClass::Virtual)),
            ]
        );
        let fewer: Interfaces =
            interfaces.iter().filter(|(id, _)| **id != 4).map(|(id, i)| (*id, i.clone())).collect();
        assert_eq!(changes(&interfaces, &fewer), [finterfaces::Event::Removed(4)]);
        assert!(matches!(changes(&fewer, &interfaces).as_slice(), [finterfaces::Event::Added(_)]));
    }

    #[test]
    fn default_routes_are_told_from_others() {
        let v4 = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\neth0\t00000000\t010010AC\t0003\t0\t0\t0\t00000000\neth1\t001010AC\t00000000\t0001\t0\t0\t0\t00FFFFFF\n";
        assert_eq!(default_routes_v4(v4), ["eth0"]);
        let zeros = "0".repeat(32);
        let v6 = format!(
            "{zeros} 00 {zeros} 00 fe800000000000000000000000000001 00000400 00000001 00000000 00000003 eth0\n{zeros} 00 {zeros} 00 {zeros} ffffffff 00000001 00000000 00200200 lo\n"
        );
        assert_eq!(default_routes_v6(&v6), ["eth0"]);
        assert_eq!(default_routes_v4("x\n\n y"), Vec::<String>::new());
    }

    fn message(kind: u16, body: &[u8]) -> Vec<u8> {
        let mut bytes = (16 + body.len() as u32).to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend([0; 10]);
        bytes.extend(body);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn addresses_come_out_of_netlink_messages() {
        let mut body = vec![AF_INET, 24, 0, 0];
        body.extend(7_u32.to_ne_bytes());
        for (kind, last) in [(IFA_ADDRESS, 1), (IFA_LOCAL, 2)] {
            body.extend(8_u16.to_ne_bytes());
            body.extend(kind.to_ne_bytes());
            body.extend([10, 0, 0, last]);
        }
        let bytes = [message(RTM_NEWADDR, &body), message(NLMSG_DONE, &[0; 4])].concat();
        let mut found = Vec::new();
        assert!(!parse(&bytes, &mut found));
        let addr = fnet::IpAddress::Ipv4(fnet::Ipv4Address { addr: [10, 0, 0, 2] });
        assert_eq!(found, [(7, fnet::Subnet { addr, prefix_len: 24 })]);
        for length in 0..bytes.len() {
            let _more = parse(&bytes[..length], &mut found);
        }
        let mut zero_length = bytes.clone();
        zero_length[0] = 0;
        assert!(!parse(&zero_length, &mut found));
    }

    #[test]
    fn the_kernel_tells_this_machines_addresses() {
        let loopback = fnet::IpAddress::Ipv4(fnet::Ipv4Address { addr: [127, 0, 0, 1] });
        // A sandbox may forbid the question; it may not get a wrong answer.
        if let Ok(all) = addresses() {
            assert!(all.is_empty() || all.iter().any(|(_, subnet)| subnet.addr == loopback));
        }
    }
}
