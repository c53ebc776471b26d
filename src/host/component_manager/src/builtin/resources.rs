//! The kernel's resources: `fuchsia.kernel.HypervisorResource` and `fuchsia.kernel.VmexResource`.

use super::Builtins;
use fidl::endpoints::ServerEnd;
use fidl_fuchsia_kernel as fkernel;
use fuchsia_async as fasync;
use fuchsia_zircon::{self as zx, linux, sys};
use futures::StreamExt;

impl Builtins {
    /// Adds the resources that a virtual machine monitor needs.
    #[must_use]
    pub fn with_system_resources(self) -> Self {
        self.with_protocol("fuchsia.kernel.HypervisorResource", |_, channel| {
            let server = ServerEnd::<fkernel::HypervisorResourceMarker>::new(channel);
            fasync::Task::local(async move {
                let mut requests = server.into_stream();
                while let Some(Ok(fkernel::HypervisorResourceRequest::Get { responder })) =
                    requests.next().await
                {
                    if !matches!(
                        resource(sys::ZX_RSRC_SYSTEM_HYPERVISOR_BASE)
                            .map(|resource| responder.send(resource)),
                        Ok(Ok(()))
                    ) {
                        return;
                    }
                }
            })
            .detach();
        })
        .with_protocol("fuchsia.kernel.VmexResource", |_, channel| {
            let server = ServerEnd::<fkernel::VmexResourceMarker>::new(channel);
            fasync::Task::local(async move {
                let mut requests = server.into_stream();
                while let Some(Ok(fkernel::VmexResourceRequest::Get { responder })) =
                    requests.next().await
                {
                    if !matches!(
                        resource(sys::ZX_RSRC_SYSTEM_VMEX_BASE)
                            .map(|resource| responder.send(resource)),
                        Ok(Ok(()))
                    ) {
                        return;
                    }
                }
            })
            .detach();
        })
    }
}

fn resource(base: u64) -> Result<zx::Resource, zx::Status> {
    linux::system_resource(base)
}
