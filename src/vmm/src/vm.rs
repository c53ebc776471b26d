//! A virtual machine without FIDL: guest, memory, platform, PCI and vCPUs put together, from system calls only.

use crate::arch::{self, Kernel, Platform, PlatformError};
use crate::bus::{Bus, BusConflict};
use crate::interrupt::InterruptController;
use crate::memory::{LayoutError, MemoryLayout, VmoMemory};
use crate::pci::{PciBus, PciError};
use crate::serial::SerialPort;
use crate::vcpu::{Ending, Outcome, VcpuContext, VcpuHandles, VcpuThreads};
use crate::virtio_pci::{
    DeviceConfig, DeviceEvents, NOTIFY_BAR_SIZE, REGISTERS_BAR_SIZE, VirtioBackend, VirtioIdentity,
    VirtioPciDevice,
};
use fuchsia_zircon::{self as zx, HandleBased};
use futures::channel::oneshot;
use std::ops::Range;
use std::sync::Arc;

/// What a machine is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VmConfig {
    /// vCPUs, at least one.
    pub cpus: u8,
    /// RAM in bytes, rounded up to pages.
    pub memory: u64,
}

/// Why a machine cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// The configuration is at fault.
    #[error("A guest has 1 to {max} vCPUs, not {cpus}")]
    Cpus {
        /// vCPUs asked for.
        cpus: u8,
        /// The architecture's limit.
        max: u8,
    },
    /// The configuration is at fault, or a device was placed in RAM.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The host refused a system call.
    #[error("{call}: {status}")]
    Host {
        /// Which call.
        call: &'static str,
        /// Its status.
        status: zx::Status,
    },
    /// Platform devices or kernel loading.
    #[error(transparent)]
    Platform(#[from] PlatformError),
    /// Two devices in one place; the VMM is at fault.
    #[error(transparent)]
    Bus(#[from] BusConflict),
    /// Too many devices for PCI.
    #[error(transparent)]
    Pci(#[from] PciError),
}

fn host(call: &'static str) -> impl FnOnce(zx::Status) -> VmError {
    move |status| VmError::Host { call, status }
}

/// A machine under construction.
pub struct VmBuilder {
    guest: zx::Guest,
    /// Keeps the mappings of guest-physical memory.
    address_space: zx::Vmar,
    memory: Arc<VmoMemory>,
    layout: MemoryLayout,
    cpus: u8,
    pci: Arc<PciBus>,
    mmio: Bus,
    bells: Vec<Range<u64>>,
    platform: Platform,
    handles: Arc<VcpuHandles>,
    ending: Arc<Ending>,
    outcome: oneshot::Receiver<Outcome>,
}

impl VmBuilder {
    /// Creates the guest and its memory, and the platform devices. `hypervisor` allows making guests, `vmex` executable
    /// memory.
    ///
    /// # Errors
    ///
    /// [`VmError`]
    pub fn new(
        hypervisor: &zx::Resource,
        vmex: &zx::Resource,
        config: VmConfig,
    ) -> Result<Self, VmError> {
        let space = Platform::ADDRESS_SPACE;
        if config.cpus == 0 || config.cpus > space.max_cpus {
            return Err(VmError::Cpus { cpus: config.cpus, max: space.max_cpus });
        }
        let layout = MemoryLayout::new(config.memory, space.restricted)?;
        let (guest, address_space) =
            zx::Guest::create(hypervisor).map_err(host("zx_guest_create"))?;
        let memory = map_memory(&address_space, vmex, &layout, space.firmware)?;
        let handles = Arc::new(VcpuHandles::new(config.cpus));
        let (ending, outcome) = Ending::new(handles.clone());
        let ending = Arc::new(ending);
        let pci = Arc::new(PciBus::new(space.pci_mmio));
        let mut mmio = Bus::default();
        let platform = Platform::new(handles.clone(), ending.clone(), pci.clone(), &mut mmio)?;
        Ok(Self {
            guest,
            address_space,
            memory: Arc::new(memory),
            layout,
            cpus: config.cpus,
            pci,
            mmio,
            bells: Vec::new(),
            platform,
            handles,
            ending,
            outcome,
        })
    }

    /// Guest memory.
    pub fn memory(&self) -> &Arc<VmoMemory> {
        &self.memory
    }

    /// The guest, for those who attach to it: devices and debuggers.
    pub fn guest(&self) -> &zx::Guest {
        &self.guest
    }

    /// Where RAM lies.
    pub fn layout(&self) -> &MemoryLayout {
        &self.layout
    }

    fn interrupts(&self) -> Arc<dyn InterruptController> {
        self.platform.interrupts()
    }

    /// The console UART.
    pub fn serial(&self) -> Arc<dyn SerialPort> {
        self.platform.serial()
    }

    /// Checks devices against RAM and installs their traps.
    ///
    /// # Errors
    ///
    /// [`VmError::Layout`] if a device overlaps RAM, [`VmError::Host`].
    pub fn install_traps(&self) -> Result<(), VmError> {
        for range in self.device_ranges() {
            self.layout.check_device(&range)?;
        }
        for (key, range) in self.mmio.ranges().enumerate() {
            let size = (range.end - range.start) as usize;
            self.guest
                .set_mem_trap(range.start, size, key as u64)
                .map_err(host("zx_guest_set_trap of memory"))?;
        }
        for (port, count) in self.platform.io_traps() {
            self.guest
                .set_io_trap(*port, *count, u64::from(*port))
                .map_err(host("zx_guest_set_trap of ports"))?;
        }
        Ok(())
    }

    fn device_ranges(&self) -> Vec<Range<u64>> {
        let mut ranges: Vec<_> = self.mmio.ranges().chain(self.bells.iter().cloned()).collect();
        ranges.sort_by_key(|range| range.start);
        ranges
    }

    /// Loads `kernel` and firmware tables.
    ///
    /// # Errors
    ///
    /// [`PlatformError`]
    pub fn load(&self, kernel: Kernel<'_>) -> Result<arch::Entry, PlatformError> {
        self.platform.load(
            self.memory.as_ref(),
            &self.layout,
            &self.device_ranges(),
            self.cpus,
            kernel,
        )
    }

    /// Finishes the machine, which [`Vm::start`] then starts at `entry`.
    pub fn build(self, entry: arch::Entry) -> Vm {
        let serial = self.platform.serial();
        let context = VcpuContext {
            guest: self.guest,
            memory: self.memory,
            mmio: self.mmio,
            platform: self.platform,
            handles: self.handles,
            ending: self.ending,
        };
        Vm {
            threads: VcpuThreads::new(context),
            serial,
            entry,
            outcome: Some(self.outcome),
            _address_space: self.address_space,
        }
    }
}

/// What the process behind a virtio device gets.
pub struct DeviceHandles {
    /// Guest-physical addresses of notifications, for its bell trap.
    pub trap: Range<u64>,
    /// The guest, with just the rights that setting a trap takes.
    pub guest: zx::Guest,
    /// By which it asks for interrupts, see [`DeviceEvents`].
    pub event: zx::Event,
    /// Guest memory; offsets are guest-physical addresses.
    pub vmo: zx::Vmo,
}

impl VmBuilder {
    /// Puts a virtio device into the next PCI slot. `backend` hears of its queues, `events` of its signals.
    ///
    /// # Errors
    ///
    /// [`VmError::Pci`], [`VmError::Bus`], [`VmError::Host`].
    pub fn add_virtio(
        &mut self,
        identity: &VirtioIdentity,
        config: DeviceConfig,
        backend: Box<dyn VirtioBackend>,
        events: &DeviceEvents,
    ) -> Result<(Arc<VirtioPciDevice>, DeviceHandles), VmError> {
        let controller = self.interrupts();
        let memory = self.memory.clone();
        let device = self.pci.add(&[REGISTERS_BAR_SIZE, NOTIFY_BAR_SIZE], |slot, bars| {
            // As many as were asked for, in their order.
            let bars = [bars[0], bars[1]];
            Arc::new(VirtioPciDevice::new(
                identity, config, slot, bars, controller, memory, backend,
            ))
        })?;
        self.mmio.insert(device.registers(), device.clone())?;
        self.bells.push(device.notify());
        let event = zx::Event::create();
        let duplicate = host("zx_handle_duplicate");
        let device_event =
            event.duplicate_handle(zx::Rights::TRANSFER | zx::Rights::SIGNAL).map_err(duplicate)?;
        events.add(event, device.clone()).map_err(host("zx_object_wait_async"))?;
        let handles = DeviceHandles {
            trap: device.notify(),
            guest: self
                .guest
                .duplicate_handle(zx::Rights::TRANSFER | zx::Rights::WRITE)
                .map_err(host("zx_handle_duplicate"))?,
            event: device_event,
            vmo: self
                .memory
                .vmo()
                .duplicate_handle(
                    zx::Rights::DUPLICATE
                        | zx::Rights::TRANSFER
                        | zx::Rights::READ
                        | zx::Rights::WRITE
                        | zx::Rights::MAP
                        | zx::Rights::GET_PROPERTY,
                )
                .map_err(host("zx_handle_duplicate"))?,
        };
        Ok((device, handles))
    }
}

/// Creates the VMO behind guest-physical memory and maps RAM and firmware ranges, each at its own address.
fn map_memory(
    address_space: &zx::Vmar,
    vmex: &zx::Resource,
    layout: &MemoryLayout,
    firmware: &[Range<u64>],
) -> Result<VmoMemory, VmError> {
    let end = firmware.iter().map(|range| range.end).max().unwrap_or(0).max(layout.end());
    let vmo = zx::Vmo::create(end).map_err(host("zx_vmo_create"))?;
    let vmo = vmo.replace_as_executable(vmex).map_err(host("zx_vmo_replace_as_executable"))?;
    let flags = zx::VmarFlags::PERM_READ
        | zx::VmarFlags::PERM_WRITE
        | zx::VmarFlags::PERM_EXECUTE
        | zx::VmarFlags::SPECIFIC
        | zx::VmarFlags::REQUIRE_NON_RESIZABLE;
    for range in layout.ram().iter().chain(firmware) {
        let length = (range.end - range.start) as usize;
        address_space
            .map(range.start as usize, &vmo, range.start, length, flags)
            .map_err(host("zx_vmar_map of guest memory"))?;
    }
    VmoMemory::new(vmo).map_err(host("zx_vmo_get_size"))
}

/// A machine.
pub struct Vm {
    threads: Arc<VcpuThreads>,
    serial: Arc<dyn SerialPort>,
    entry: arch::Entry,
    outcome: Option<oneshot::Receiver<Outcome>>,
    _address_space: zx::Vmar,
}

impl Vm {
    /// Starts the first vCPU and returns the machine's end, which comes once.
    pub fn start(&mut self) -> oneshot::Receiver<Outcome> {
        let outcome = self.outcome.take().unwrap_or_else(|| {
            // Started before: this receiver reports that it will never hear anything.
            oneshot::channel().1
        });
        self.threads.start(self.entry);
        outcome
    }

    /// What a vCPU did so far; `None` where the system does not count, or before it runs.
    pub fn vcpu_stats(&self, cpu: u32) -> Option<zx::VcpuStats> {
        self.threads.context().handles.stats(cpu)
    }

    /// Ends the machine with `outcome`, unless it is ending already.
    pub fn end(&self, outcome: Outcome) {
        self.threads.context().ending.end(outcome);
    }

    /// The console UART.
    pub fn serial(&self) -> &Arc<dyn SerialPort> {
        &self.serial
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        self.threads.join();
    }
}
