//! The component: `GuestLifecycle` and `Guest` over FIDL, and the devices' components.
//!
//! Of the answers that `GuestError` has for clients two have no cause here: RAM is laid out around the devices
//! (`DEVICE_MEMORY_OVERLAP`; it is still checked), and what the component publishes is the same for every guest
//! (`DUPLICATE_PUBLIC_SERVICES`).

mod config;
mod devices;
mod files;
mod guest;
mod lifecycle;
mod machine;
mod process;
mod serial;

pub use lifecycle::{Controller, ControllerRequest};

use fidl_fuchsia_component::RealmProxy;
use fuchsia_zircon::{self as zx, HandleBased};

/// What the controller has of the world: all of it from the component's namespace.
pub struct Environment {
    /// Where device components are created.
    pub realm: RealmProxy,
    /// Allows making guests.
    pub hypervisor: zx::Resource,
    /// Allows making memory executable.
    pub vmex: zx::Resource,
}

impl Environment {
    /// The component's own environment.
    ///
    /// # Errors
    ///
    /// If the framework's realm is missing from the namespace.
    pub async fn from_namespace() -> anyhow::Result<Self> {
        use fidl_fuchsia_kernel::{HypervisorResourceMarker, VmexResourceMarker};
        let realm = fuchsia_component::client::realm()?;
        let hypervisor = async {
            fuchsia_component::client::connect_to_protocol::<HypervisorResourceMarker>()?
                .get()
                .await
                .map_err(anyhow::Error::from)
        };
        let vmex = async {
            fuchsia_component::client::connect_to_protocol::<VmexResourceMarker>()?
                .get()
                .await
                .map_err(anyhow::Error::from)
        };
        Ok(Self {
            realm,
            hypervisor: hypervisor
                .await
                .unwrap_or_else(|error| without_resource("hypervisor", &error)),
            vmex: vmex.await.unwrap_or_else(|error| without_resource("executable memory", &error)),
        })
    }
}

/// A system whose kernel asks for no resource gives none; where it does ask, making the guest fails with ACCESS_DENIED.
fn without_resource(what: &str, error: &anyhow::Error) -> zx::Resource {
    tracing::debug!(%error, "No resource for {what}; going on without");
    zx::Resource::from_handle(zx::Handle::invalid())
}
