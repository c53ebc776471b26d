//! The virtual machine monitor: the component behind `fuchsia.virtualization/GuestLifecycle`. It builds a machine around
//! a Zircon guest (memory, platform devices, PCI, ACPI), loads a kernel, runs the vCPUs, and connects each virtio
//! device, which is a component of its own, to PCI. What may enter is the machine as a guest sees it and its life
//! cycle; what a virtio device does is its component's, what vCPUs execute is the hypervisor's.
#![forbid(unsafe_code)]

pub mod arch;
pub mod bus;
pub mod controller;
pub mod interrupt;
pub mod loader;
pub mod memory;
pub mod pci;
pub mod serial;
pub mod vcpu;
pub mod virtio_pci;
pub mod vm;

use controller::{Controller, ControllerRequest, Environment};
use fidl::endpoints::ServerEnd;
use fidl_fuchsia_process_lifecycle::{LifecycleMarker, LifecycleRequestStream};
use fuchsia_component::server::ServiceFs;
use fuchsia_zircon::processargs::{HandleType, take_startup_handle};
use futures::StreamExt as _;
use futures::stream;

/// Runs the component: serves `GuestLifecycle` and `Guest` in its outgoing directory until the last client of the life
/// cycle is gone, or component manager asks it to end.
///
/// # Errors
///
/// If the component was started without an outgoing directory or without its framework.
pub async fn run() -> anyhow::Result<()> {
    let environment = Environment::from_namespace().await?;
    let mut services = ServiceFs::new_local();
    services
        .dir("svc")
        .add_fidl_service(ControllerRequest::Lifecycle)
        .add_fidl_service(ControllerRequest::Guest);
    services.take_and_serve_directory_handle()?;
    let stop = stop_requests().map(|_| ControllerRequest::Stop);
    Controller::new(environment).serve(stream::select(services, stop)).await;
    Ok(())
}

/// Component manager's requests to end. A runner that has none to pass on gives no channel.
fn stop_requests() -> impl stream::Stream {
    let handle = take_startup_handle(HandleType::Lifecycle.into());
    let requests = handle.map(|handle| -> LifecycleRequestStream {
        ServerEnd::<LifecycleMarker>::new(handle.into()).into_stream()
    });
    // A channel that closes asks for nothing.
    stream::iter(requests).flatten().filter(|request| futures::future::ready(request.is_ok()))
}
