//! What on the host could keep a guest from working well, in words for a person.

use crate::environment::Environment;
use fidl::endpoints::create_proxy;
use fidl_fuchsia_hardware_network::PortClass;
use fidl_fuchsia_memorypressure::Level;
use fidl_fuchsia_net_interfaces as finterfaces;
use fidl_fuchsia_virtualization::GuestDescriptor;
use fuchsia_async::TimeoutExt as _;
use fuchsia_zircon as zx;

/// A network stack that does not answer is a problem of its own.
const NETWORK_TIMEOUT: zx::Duration = zx::Duration::from_seconds(2);

/// How many of the host's online network ports there are of each kind that matters to a guest.
#[derive(Debug, Default, Copy, Clone, PartialEq, Eq)]
pub(crate) struct Ports {
    pub(crate) virtual_ports: usize,
    pub(crate) ethernet: usize,
    pub(crate) wlan_client: usize,
    pub(crate) bridge: usize,
}

/// What is wrong with a guest's network.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub(crate) enum NetworkProblem {
    QueryFailed,
    NoHostNetwork,
    MissingVirtualPorts,
    BridgeOverWifi,
    BridgeNotThereYet,
}

impl NetworkProblem {
    fn text(self) -> &'static str {
        match self {
            Self::QueryFailed => "Could not query the host's network status",
            Self::NoHostNetwork => {
                "The host has no network interface that is online, so the guest's network cannot work"
            }
            Self::MissingVirtualPorts => {
                "The guest's network device failed to start: the host has fewer virtual ports than the guest has devices"
            }
            Self::BridgeOverWifi => {
                "The guest is to be bridged, and the host is connected by WiFi only, over which bridging is impossible; \
                 connect the host by Ethernet"
            }
            Self::BridgeNotThereYet => {
                "The guest is to be bridged, and the host has no bridge; this can pass: try again in a moment"
            }
        }
    }
}

/// Everything that is known to be wrong, the network's first.
pub(crate) async fn detect(
    environment: &impl Environment,
    descriptor: Option<&GuestDescriptor>,
    level: Option<Level>,
) -> Vec<String> {
    let mut problems = Vec::new();
    let nets = descriptor.and_then(|d| d.networks.as_deref()).unwrap_or_default();
    if !nets.is_empty() {
        let bridged = nets.iter().any(|net| net.enable_bridge);
        let ports =
            count_ports(environment).on_timeout(zx::Time::after(NETWORK_TIMEOUT), || None).await;
        let problem = match ports {
            None => Some(NetworkProblem::QueryFailed),
            Some(ports) => network_problem(nets.len(), bridged, ports),
        };
        problems.extend(problem.map(|problem| problem.text().to_owned()));
    }
    problems.extend(memory_problem(level).map(str::to_owned));
    problems
}

pub(crate) fn network_problem(
    devices: usize,
    bridged: bool,
    ports: Ports,
) -> Option<NetworkProblem> {
    if ports.ethernet == 0 && ports.wlan_client == 0 {
        Some(NetworkProblem::NoHostNetwork)
    } else if ports.virtual_ports < devices {
        Some(NetworkProblem::MissingVirtualPorts)
    } else if bridged && ports.bridge == 0 {
        Some(match ports.ethernet {
            0 => NetworkProblem::BridgeOverWifi,
            _ => NetworkProblem::BridgeNotThereYet,
        })
    } else {
        None
    }
}

fn memory_problem(level: Option<Level>) -> Option<&'static str> {
    match level? {
        Level::Normal => None,
        Level::Warning => Some("The host is under moderate memory pressure"),
        Level::Critical => Some("The host is under severe memory pressure"),
    }
}

/// Counts the ports that are online, from the interfaces that exist when the watch begins.
async fn count_ports(environment: &impl Environment) -> Option<Ports> {
    let (watcher, server) = create_proxy::<finterfaces::WatcherMarker>();
    let state = environment.interfaces().ok()?;
    state.get_watcher(&finterfaces::WatcherOptions::default(), server).ok()?;
    let mut ports = Ports::default();
    loop {
        match watcher.watch().await.ok()? {
            finterfaces::Event::Existing(properties) => ports.count(&properties),
            finterfaces::Event::Idle(_) => return Some(ports),
            _ => {}
        }
    }
}

impl Ports {
    fn count(&mut self, properties: &finterfaces::Properties) {
        if properties.online != Some(true) {
            return;
        }
        let Some(finterfaces::PortClass::Device(class)) = properties.port_class else { return };
        match class {
            PortClass::Virtual => self.virtual_ports += 1,
            PortClass::Ethernet => self.ethernet += 1,
            PortClass::WlanClient => self.wlan_client += 1,
            PortClass::Bridge => self.bridge += 1,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_state_of_the_network_has_its_problem() {
        let none = Ports::default();
        let wired = Ports { ethernet: 1, virtual_ports: 1, ..none };
        let wireless = Ports { wlan_client: 1, virtual_ports: 1, ..none };
        for (devices, bridged, ports, problem) in [
            (1, true, none, Some(NetworkProblem::NoHostNetwork)),
            (1, true, Ports { virtual_ports: 1, ..none }, Some(NetworkProblem::NoHostNetwork)),
            (2, true, wired, Some(NetworkProblem::MissingVirtualPorts)),
            (1, true, wireless, Some(NetworkProblem::BridgeOverWifi)),
            (1, true, wired, Some(NetworkProblem::BridgeNotThereYet)),
            (1, true, Ports { wlan_client: 1, ..wired }, Some(NetworkProblem::BridgeNotThereYet)),
            (1, true, Ports { bridge: 1, ..wired }, None),
            (1, false, wired, None),
        ] {
            assert_eq!(network_problem(devices, bridged, ports), problem, "{ports:?}");
        }
    }

    #[test]
    fn ports_that_are_offline_or_the_hosts_own_do_not_count() {
        let properties = |online, port_class| finterfaces::Properties {
            online: Some(online),
            port_class: Some(port_class),
            ..Default::default()
        };
        let mut ports = Ports::default();
        ports.count(&properties(false, finterfaces::PortClass::Device(PortClass::Ethernet)));
        ports.count(&properties(true, finterfaces::PortClass::Loopback(finterfaces::Empty {})));
        assert_eq!(ports, Ports::default());
        ports.count(&properties(true, finterfaces::PortClass::Device(PortClass::Bridge)));
        assert_eq!(ports, Ports { bridge: 1, ..Ports::default() });
    }

    #[test]
    fn memory_pressure_is_told() {
        assert_eq!(memory_problem(None), None);
        assert_eq!(memory_problem(Some(Level::Normal)), None);
        assert!(memory_problem(Some(Level::Critical)).unwrap().contains("severe"));
    }
}
