//! A machine with its devices, from `Create` to its end.

use super::Environment;
use super::config::{DeviceSpecs, GuestSpec, KernelFiles};
use super::devices::{DeviceBuilder, Devices, Launcher};
use super::files::{self, Contents};
use super::guest::{self, GuestServices};
use super::serial;
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
use futures::future::{OptionFuture, join, join_all};
use futures::{FutureExt as _, join};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

/// A machine.
pub(super) struct Machine {
    vm: Vm,
    devices: Devices,
    events: DeviceEvents,
    services: Rc<GuestServices>,
    serial: fasync::Task<()>,
    clients: Rc<Clients>,
}

/// The `Guest` clients that are to be told how the machine ended. One that is here has its channel open, so whoever serves
/// it takes it out again.
#[derive(Default)]
struct Clients {
    next: Cell<u64>,
    handles: RefCell<BTreeMap<u64, GuestControlHandle>>,
}

impl Clients {
    fn add(&self, client: GuestControlHandle) -> u64 {
        let id = self.next.replace(self.next.get() + 1);
        self.handles.borrow_mut().insert(id, client);
        id
    }

    fn remove(&self, id: u64) {
        self.handles.borrow_mut().remove(&id);
    }

    fn end(&self, epitaph: zx::Status) {
        for client in self.handles.take().into_values() {
            client.shutdown_with_epitaph(epitaph);
        }
    }
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
        let devices = Devices::default();
        match Self::build(environment, spec, &events, &devices).await {
            Ok((vm, services, serial)) => Ok(Self {
                vm,
                devices,
                events,
                services: Rc::new(services),
                serial,
                clients: Rc::default(),
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
        devices: &Devices,
    ) -> Result<(Vm, GuestServices, fasync::Task<()>), GuestError> {
        let vm = VmBuilder::new(&environment.hypervisor, &environment.vmex, spec.vm);
        let mut vm = vm.map_err(|error| vm_error(&error))?;
        let (serial, serial_guest) = zx::Socket::create_stream();
        let serial_task = fasync::Task::local(serial::pump(vm.serial(), serial_guest));
        let builder = DeviceBuilder {
            launcher: Launcher { realm: &environment.realm, devices },
            vm: &mut vm,
            events,
            cpus: spec.vm.cpus,
        };
        let starting = add_devices(builder, spec.devices, serial)?;
        vm.install_traps().map_err(|error| vm_error(&error))?;
        // The components start while the kernel is unpacked, which takes longer and so goes first. Both are seen to their
        // end: nothing of either is left behind.
        let (loaded, services) = join(load_kernel(vm, spec.kernel), starting).await;
        let services = services?;
        let (vm, entry) = loaded?;
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
        let (services, clients) = (self.services.clone(), self.clients.clone());
        let id = clients.add(requests.control_handle());
        fasync::Task::local(async move {
            guest::serve(services, requests).await;
            clients.remove(id);
        })
        .detach();
    }

    /// Takes the machine apart: tells `Guest` clients how it ended, stops vCPUs, and destroys the devices' components.
    pub(super) async fn destroy(self, realm: &RealmProxy, outcome: Outcome) {
        let epitaph =
            if run_result(outcome).is_ok() { zx::Status::OK } else { zx::Status::INTERNAL };
        self.clients.end(epitaph);
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

/// Puts the devices on PCI in the order of their slots, and returns what starts their components, all at once. It tells the
/// failure of the first slot that has one, after all others have started or failed.
fn add_devices<'a>(
    mut builder: DeviceBuilder<'a, '_>,
    specs: DeviceSpecs,
    serial: zx::Socket,
) -> Result<impl Future<Output = Result<GuestServices, GuestError>> + use<'a>, GuestError> {
    let balloon = specs.balloon.then(|| builder.balloon()).transpose()?;
    let mut disks = Vec::new();
    for (index, spec) in specs.block.into_iter().enumerate() {
        disks.push(builder.block(index, spec)?);
    }
    let (host_console, guest_console) = zx::Socket::create_stream();
    let console = specs.console.then(|| builder.console(guest_console)).transpose()?;
    let rng = specs.rng.then(|| builder.rng()).transpose()?;
    let vsock = specs.vsock.map(|listeners| builder.vsock(listeners)).transpose()?;
    let (mut networks, mut bridges) = (Vec::new(), Vec::new());
    let (others_started, others) = oneshot::channel();
    let others = others.shared();
    let mut forwards = specs.net_forwards;
    for (index, spec) in specs.net.into_iter().enumerate() {
        let is_bridge = spec.enable_bridge;
        let turn = is_bridge.then(|| others.clone());
        // All forwards lead to the first interface.
        let network = builder.net(index, spec, std::mem::take(&mut forwards), turn)?;
        if is_bridge { &mut bridges } else { &mut networks }.push(network);
    }
    let start_others = async move {
        let (balloon, disks, console, rng, vsock, networks) = join!(
            OptionFuture::from(balloon),
            join_all(disks),
            OptionFuture::from(console),
            OptionFuture::from(rng),
            OptionFuture::from(vsock),
            join_all(networks),
        );
        let balloon = balloon.transpose()?.map(Rc::new);
        disks.into_iter().collect::<Result<(), _>>()?;
        let console = console.transpose()?.map(|()| host_console);
        rng.transpose()?;
        let vsock = vsock.transpose()?;
        networks.into_iter().collect::<Result<(), _>>()?;
        // There may be no bridge.
        let _ = others_started.send(());
        Ok(GuestServices { serial, console, balloon, vsock })
    };
    Ok(async move {
        let (services, bridges) = join(start_others, join_all(bridges)).await;
        let services = services?;
        bridges.into_iter().collect::<Result<(), _>>()?;
        Ok(services)
    })
}

/// Reads the kernel's files and loads them, on a thread of its own.
async fn load_kernel(
    vm: VmBuilder,
    files: KernelFiles,
) -> Result<(VmBuilder, crate::arch::Entry), GuestError> {
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
    // All are asked for at once.
    let open = |file: Option<_>| OptionFuture::from(file.map(files::open));
    let (kernel, ramdisk, device_tree) =
        join!(files::open(kernel), open(files.ramdisk), open(files.device_tree));
    let kernel = kernel.map_err(|error| fail(&error))?;
    let ramdisk = ramdisk.transpose().map_err(|error| fail(&error))?;
    let device_tree = device_tree.transpose().map_err(|error| fail(&error))?;
    let (kind, command_line) = (files.kind, files.command_line);
    let load = move || {
        let read = |file: Option<Contents>| file.map(Contents::read).transpose();
        let image = kernel.read().map_err(|error| fail(&error))?;
        let ramdisk = read(ramdisk).map_err(|error| fail(&error))?;
        let device_tree = read(device_tree).map_err(|error| fail(&error))?;
        let (image, ramdisk, command_line) = (&image[..], ramdisk.as_deref(), &command_line[..]);
        let kernel = match kind {
            KernelType::Linux => {
                Kernel::Linux { image, ramdisk, device_tree: device_tree.as_deref(), command_line }
            }
            KernelType::Zircon => Kernel::Zircon { image, ramdisk, command_line },
        };
        let entry = vm.load(kernel).map_err(|error| fail(&error))?;
        Ok((vm, entry))
    };
    fasync::unblock(load).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::devices::DeviceError;
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
            assert_eq!(error.to_guest_error(), answer);
        }
    }
}
