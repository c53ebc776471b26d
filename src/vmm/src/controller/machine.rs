//! A machine with its devices, from `Create` to its end.

use super::Environment;
use super::config::{DeviceSpecs, GuestSpec, KernelFiles};
use super::devices::{DeviceBuilder, DeviceError, Devices};
use super::guest::{self, Balloon, GuestServices};
use super::{files, serial};
use crate::arch::Kernel;
use crate::memory::LayoutError;
use crate::vcpu::Outcome;
use crate::virtio_pci::DeviceEvents;
use crate::vm::{Vm, VmBuilder, VmError};
use fidl::endpoints::{ControlHandle as _, ServerEnd};
use fidl_fuchsia_component::RealmProxy;
use fidl_fuchsia_virtualization::{
    GuestControlHandle, GuestError, GuestMarker, GuestRequestStream, KernelType,
};
use fuchsia_async as fasync;
use fuchsia_zircon as zx;
use futures::channel::oneshot;
use std::rc::Rc;

/// A machine.
pub(super) struct Machine {
    vm: Vm,
    devices: Devices,
    events: DeviceEvents,
    services: Rc<GuestServices>,
    serial: fasync::Task<()>,
    clients: Vec<GuestControlHandle>,
}

/// The reply to `Run` for a machine that ended with `outcome`.
pub(super) fn run_result(outcome: Outcome) -> Result<(), GuestError> {
    match outcome {
        Outcome::PowerOff | Outcome::Reset => Ok(()),
        Outcome::VcpuFailure { .. } => Err(GuestError::VcpuRuntimeFailure),
        Outcome::VcpuStartFailure { .. } => Err(GuestError::VcpuStartFailure),
        Outcome::ForcedHalt => Err(GuestError::ControllerForcedHalt),
    }
}

fn vm_error(error: &VmError) -> GuestError {
    tracing::error!(%error, "Could not build the machine");
    match error {
        VmError::Cpus { .. } => GuestError::BadConfig,
        VmError::Layout(LayoutError::DeviceOverlap { .. }) => GuestError::DeviceMemoryOverlap,
        VmError::Layout(_) | VmError::Host { .. } | VmError::Platform(_) => {
            GuestError::GuestInitializationFailure
        }
        VmError::Bus(_) | VmError::Pci(_) => GuestError::DeviceInitializationFailure,
    }
}

fn device_error(error: &DeviceError) -> GuestError {
    tracing::error!(%error, "Could not make a device");
    error.to_guest_error()
}

impl Machine {
    /// Builds the machine of `spec`: its devices' components run when this returns.
    ///
    /// # Errors
    ///
    /// What went wrong, for the client; the log has the details. Nothing is left behind.
    pub(super) async fn create(
        environment: &Environment,
        spec: GuestSpec,
    ) -> Result<Self, GuestError> {
        let events = DeviceEvents::new().map_err(|error| {
            tracing::error!(%error, "Could not start a thread");
            GuestError::InternalError
        })?;
        let mut devices = Devices::default();
        match Self::build(environment, spec, &events, &mut devices).await {
            Ok((vm, services, serial)) => Ok(Self {
                vm,
                devices,
                events,
                services: Rc::new(services),
                serial,
                clients: Vec::new(),
            }),
            Err(error) => {
                devices.destroy(&environment.realm).await;
                Err(error)
            }
        }
    }

    async fn build(
        environment: &Environment,
        spec: GuestSpec,
        events: &DeviceEvents,
        devices: &mut Devices,
    ) -> Result<(Vm, GuestServices, fasync::Task<()>), GuestError> {
        let vm = VmBuilder::new(&environment.hypervisor, &environment.vmex, spec.vm);
        let mut vm = vm.map_err(|error| vm_error(&error))?;
        let (serial, serial_guest) = zx::Socket::create_stream();
        let serial_task = fasync::Task::local(serial::pump(vm.serial(), serial_guest));
        let builder = DeviceBuilder {
            realm: &environment.realm,
            vm: &mut vm,
            events,
            cpus: spec.vm.cpus,
            devices,
        };
        let services = add_devices(builder, spec.devices, serial).await?;
        vm.install_traps().map_err(|error| vm_error(&error))?;
        let entry = load_kernel(&vm, spec.kernel).await?;
        Ok((vm.build(entry), services, serial_task))
    }

    /// Starts the machine and returns its end.
    pub(super) fn start(&mut self) -> oneshot::Receiver<Outcome> {
        self.vm.start()
    }

    /// Serves a `Guest` client that came through `Bind`.
    pub(super) fn bind(&mut self, guest: ServerEnd<GuestMarker>) {
        self.serve(guest.into_stream());
    }

    /// Serves a `Guest` client.
    pub(super) fn serve(&mut self, requests: GuestRequestStream) {
        use fidl::endpoints::RequestStream as _;
        self.clients.retain(|client| !client.is_closed());
        self.clients.push(requests.control_handle());
        fasync::Task::local(guest::serve(self.services.clone(), requests)).detach();
    }

    /// Takes the machine apart: tells `Guest` clients how it ended, stops vCPUs, and destroys the devices' components.
    pub(super) async fn destroy(self, realm: &RealmProxy, outcome: Outcome) {
        let epitaph =
            if run_result(outcome).is_ok() { zx::Status::OK } else { zx::Status::INTERNAL };
        for client in self.clients {
            client.shutdown_with_epitaph(epitaph);
        }
        let Self { vm, mut devices, events, services, serial, .. } = self;
        vm.end(outcome);
        drop(services);
        // vCPU threads may be waiting for a device; once it is disconnected they are not.
        devices.disconnect().await;
        fasync::unblock(move || drop((vm, events))).await;
        serial.cancel().await;
        devices.destroy(realm).await;
    }
}

/// Adds the devices in the order of their PCI slots. The network comes last, because a bridge can cut the host's own.
async fn add_devices(
    mut builder: DeviceBuilder<'_>,
    specs: DeviceSpecs,
    serial: zx::Socket,
) -> Result<GuestServices, GuestError> {
    let fail = |error: DeviceError| device_error(&error);
    let mut services = GuestServices { serial, console: None, balloon: None, vsock: None };
    if specs.balloon {
        let (device, proxy) = builder.balloon().await.map_err(fail)?;
        services.balloon = Some(Rc::new(Balloon { device, proxy }));
    }
    for (index, spec) in specs.block.into_iter().enumerate() {
        builder.block(index, spec).await.map_err(fail)?;
    }
    if specs.console {
        let (host, guest) = zx::Socket::create_stream();
        builder.console(guest).await.map_err(fail)?;
        services.console = Some(host);
    }
    if specs.rng {
        builder.rng().await.map_err(fail)?;
    }
    if let Some(listeners) = specs.vsock {
        services.vsock = builder.vsock(listeners).await.map_err(fail)?;
    }
    for (index, spec) in specs.net.iter().enumerate() {
        let forwards = if index == 0 { &specs.net_forwards[..] } else { &[] };
        builder.net(index, spec, forwards).await.map_err(fail)?;
    }
    Ok(services)
}

/// Reads the kernel's files and loads them.
async fn load_kernel(vm: &VmBuilder, files: KernelFiles) -> Result<crate::arch::Entry, GuestError> {
    let fail = |error: &dyn std::error::Error| {
        tracing::error!(%error, "Could not load the kernel");
        GuestError::KernelLoadFailure
    };
    let Some(kernel) = files.kernel else {
        tracing::error!("The guest configuration has no kernel");
        return Err(GuestError::KernelLoadFailure);
    };
    if files.kind == KernelType::Zircon && files.device_tree.is_some() {
        tracing::error!("A Zircon kernel takes no device tree overlay; the configuration has one");
        return Err(GuestError::KernelLoadFailure);
    }
    let read = async |file: Option<_>| match file {
        Some(file) => files::read(file).await.map(Some),
        None => Ok(None),
    };
    let image = files::read(kernel).await.map_err(|error| fail(&error))?;
    let ramdisk = read(files.ramdisk).await.map_err(|error| fail(&error))?;
    let device_tree = read(files.device_tree).await.map_err(|error| fail(&error))?;
    let (image, ramdisk, command_line) = (&image[..], ramdisk.as_deref(), &files.command_line[..]);
    let kernel = match files.kind {
        KernelType::Linux => {
            Kernel::Linux { image, ramdisk, device_tree: device_tree.as_deref(), command_line }
        }
        KernelType::Zircon => Kernel::Zircon { image, ramdisk, command_line },
    };
    vm.load(kernel).map_err(|error| fail(&error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::process::ProcessError;

    #[test]
    fn every_end_has_its_answer() {
        for (outcome, answer) in [
            (Outcome::PowerOff, Ok(())),
            (Outcome::Reset, Ok(())),
            (Outcome::VcpuFailure { cpu: 1 }, Err(GuestError::VcpuRuntimeFailure)),
            (
                Outcome::VcpuStartFailure { cpu: 1, status: zx::Status::NO_MEMORY },
                Err(GuestError::VcpuStartFailure),
            ),
            (Outcome::ForcedHalt, Err(GuestError::ControllerForcedHalt)),
        ] {
            assert_eq!(run_result(outcome), answer);
        }
    }

    #[test]
    fn every_failure_to_build_has_its_answer() {
        let overlap = LayoutError::DeviceOverlap { device: 0..1, ram: 0..2 };
        let host = VmError::Host { call: "zx_guest_create", status: zx::Status::ACCESS_DENIED };
        for (error, answer) in [
            (VmError::Cpus { cpus: 65, max: 64 }, GuestError::BadConfig),
            (VmError::Layout(overlap), GuestError::DeviceMemoryOverlap),
            (host, GuestError::GuestInitializationFailure),
        ] {
            assert_eq!(vm_error(&error), answer);
        }
        let gone = || fidl::Error::ClientChannelClosed {
            status: zx::Status::PEER_CLOSED,
            protocol_name: "fuchsia.virtualization.hardware.VirtioRng",
        };
        for (error, answer) in [
            (DeviceError::Start(gone()), GuestError::DeviceStartFailure),
            (DeviceError::StartStatus(zx::Status::INVALID_ARGS), GuestError::DeviceStartFailure),
            (
                DeviceError::Disk { capacity: 700, block_size: 512 },
                GuestError::DeviceInitializationFailure,
            ),
            (ProcessError::Realm(gone()).into(), GuestError::FailedServiceConnect),
        ] {
            assert_eq!(device_error(&error), answer);
        }
    }
}
