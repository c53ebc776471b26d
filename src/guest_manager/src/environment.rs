//! What the manager gets from its namespace, behind a trait so that tests put fakes beside it.

use fidl_fuchsia_memorypressure as fpressure;
use fidl_fuchsia_net_interfaces as finterfaces;
use fidl_fuchsia_virtualization as fvirt;
use fuchsia_component::client::connect_to_protocol;

/// The protocols that the manager uses.
pub(crate) trait Environment {
    /// A connection to the VMM's lifecycle; the VMM starts with it and ends with the last one.
    fn lifecycle(&self) -> anyhow::Result<fvirt::GuestLifecycleProxy>;
    /// A connection to the VMM's guest.
    fn guest(&self) -> anyhow::Result<fvirt::GuestProxy>;
    /// The provider of memory pressure levels.
    fn memory_pressure(&self) -> anyhow::Result<fpressure::ProviderProxy>;
    /// The state of the host's network interfaces.
    fn interfaces(&self) -> anyhow::Result<finterfaces::StateProxy>;
}

/// The component's own namespace.
#[derive(Debug)]
pub(crate) struct Namespace;

impl Environment for Namespace {
    fn lifecycle(&self) -> anyhow::Result<fvirt::GuestLifecycleProxy> {
        connect_to_protocol::<fvirt::GuestLifecycleMarker>()
    }

    fn guest(&self) -> anyhow::Result<fvirt::GuestProxy> {
        connect_to_protocol::<fvirt::GuestMarker>()
    }

    fn memory_pressure(&self) -> anyhow::Result<fpressure::ProviderProxy> {
        connect_to_protocol::<fpressure::ProviderMarker>()
    }

    fn interfaces(&self) -> anyhow::Result<finterfaces::StateProxy> {
        connect_to_protocol::<finterfaces::StateMarker>()
    }
}
