//! The virtio devices: what each looks like to the guest, and how its component is started.

use super::guest::{Balloon, ConnectVsock};
use super::process::{self, Commands, DeviceProcess, DeviceProtocol, ProcessError};
use crate::virtio_pci::{DeviceConfig, DeviceEvents, VirtioIdentity, VirtioPciDevice};
use crate::vm::{VmBuilder, VmError};
use fidl::endpoints::{DiscoverableProtocolMarker, Proxy};
use fidl_fuchsia_component::RealmProxy;
use fidl_fuchsia_virtualization::{
    BlockMode, BlockSpec, DEFAULT_GUEST_CID, GuestError, Listener, NetForward, NetSpec,
};
use fidl_fuchsia_virtualization_hardware as hardware;
use fuchsia_async as fasync;
use fuchsia_zircon as zx;
use futures::FutureExt as _;
use futures::channel::oneshot;
use futures::future::{LocalBoxFuture, Shared, join_all};
use std::cell::RefCell;
use std::sync::Arc;

/// Queue size of most devices.
const QUEUE_SIZE: u16 = 128;
/// Queue size of disks and network interfaces, which have more under way.
const LARGE_QUEUE_SIZE: u16 = 256;
/// Most queues of a disk: as many as the signals that tell queues apart.
const MAX_BLOCK_QUEUES: u8 = 4;
/// Sectors of a disk, in bytes (virtio 1.2 §5.2.4).
const SECTOR: u64 = 512;

/// Feature bits of virtio 1.2 §5.
mod feature {
    pub(super) const BALLOON_STATS_VQ: u64 = 1 << 1;
    pub(super) const BALLOON_DEFLATE_ON_OOM: u64 = 1 << 2;
    pub(super) const BALLOON_PAGE_REPORTING: u64 = 1 << 5;
    pub(super) const BLK_SEG_MAX: u64 = 1 << 2;
    pub(super) const BLK_RO: u64 = 1 << 5;
    pub(super) const BLK_BLK_SIZE: u64 = 1 << 6;
    pub(super) const BLK_FLUSH: u64 = 1 << 9;
    pub(super) const BLK_MQ: u64 = 1 << 12;
    pub(super) const BLK_DISCARD: u64 = 1 << 13;
    pub(super) const BLK_WRITE_ZEROES: u64 = 1 << 14;
    pub(super) const NET_CSUM: u64 = 1 << 0;
    pub(super) const NET_GUEST_CSUM: u64 = 1 << 1;
    pub(super) const NET_MAC: u64 = 1 << 5;
    pub(super) const NET_GUEST_TSO4: u64 = 1 << 7;
    pub(super) const NET_GUEST_TSO6: u64 = 1 << 8;
    pub(super) const NET_HOST_TSO4: u64 = 1 << 11;
    pub(super) const NET_HOST_TSO6: u64 = 1 << 12;
    pub(super) const NET_MRG_RXBUF: u64 = 1 << 15;
}

/// Offsets in the balloon's configuration (§5.5.4).
pub(super) mod balloon_config {
    /// Pages that the host wants.
    pub(in super::super) const NUM_PAGES: usize = 0;
    /// Pages that the guest has given.
    pub(in super::super) const ACTUAL: usize = 4;
}

/// Why a device is not there.
#[derive(Debug, thiserror::Error)]
pub(super) enum DeviceError {
    #[error(transparent)]
    Process(#[from] ProcessError),
    #[error(transparent)]
    Vm(#[from] VmError),
    #[error("Start: {0}")]
    Start(fidl::Error),
    #[error("Start: {0}")]
    StartStatus(zx::Status),
    #[error("Forward of port {port}: {status}")]
    Forward { port: u16, status: zx::Status },
    #[error("A disk of {capacity} bytes in blocks of {block_size} is impossible")]
    Disk { capacity: u64, block_size: u32 },
}

impl DeviceError {
    /// What the client of the lifecycle is told.
    pub(super) fn to_guest_error(&self) -> GuestError {
        match self {
            Self::Process(ProcessError::Realm(_)) => GuestError::FailedServiceConnect,
            Self::Process(_) | Self::Vm(_) | Self::Disk { .. } => {
                GuestError::DeviceInitializationFailure
            }
            Self::Start(_) | Self::StartStatus(_) | Self::Forward { .. } => {
                GuestError::DeviceStartFailure
            }
        }
    }
}

/// Says in the log which device failed and why, and what to tell the client.
fn failed(device: &str, error: &DeviceError) -> GuestError {
    tracing::error!(device, %error, "Could not make a device");
    error.to_guest_error()
}

/// The devices of a machine, as far as they were made.
#[derive(Default)]
pub(super) struct Devices {
    /// Their components.
    processes: RefCell<Vec<DeviceProcess>>,
    /// What passes commands to the components that have started.
    tasks: RefCell<Vec<fasync::Task<()>>>,
}

impl Devices {
    /// Stops talking to the components: vCPU threads that wait for one go on.
    pub(super) async fn disconnect(&mut self) {
        for task in self.tasks.get_mut().drain(..) {
            task.cancel().await;
        }
    }

    /// Destroys the components.
    pub(super) async fn destroy(mut self, realm: &RealmProxy) {
        self.disconnect().await;
        let processes = self.processes.into_inner();
        join_all(processes.into_iter().map(|process| process.destroy(realm))).await;
    }
}

/// The second half of making a device: its component. What fails is in the log, under the device's name.
pub(super) type Starting<'a, T> = LocalBoxFuture<'a, Result<T, GuestError>>;

/// Where the components of devices are created.
#[derive(Clone, Copy)]
pub(super) struct Launcher<'a> {
    pub(super) realm: &'a RealmProxy,
    /// Those made so far, also one that then failed.
    pub(super) devices: &'a Devices,
}

impl<'a> Launcher<'a> {
    /// Names the device in what the log says about `start`.
    fn starting<T>(
        name: String,
        start: impl Future<Output = Result<T, DeviceError>> + 'a,
    ) -> Starting<'a, T> {
        async move { start.await.map_err(|error| failed(&name, &error)) }.boxed_local()
    }

    /// Creates the component of a device of `kind`, and connects to its protocol.
    async fn launch<P: DiscoverableProtocolMarker>(
        self,
        kind: &str,
        name: String,
    ) -> Result<P::Proxy, DeviceError> {
        self.connect::<P>(DeviceProcess::create(self.realm, kind, name).await?)
    }

    /// Keeps `process`, and connects to its protocol.
    fn connect<P: DiscoverableProtocolMarker>(
        self,
        process: DeviceProcess,
    ) -> Result<P::Proxy, DeviceError> {
        let proxy = process.connect::<P>();
        self.devices.processes.borrow_mut().push(process);
        Ok(proxy?)
    }

    /// Connects a device to its component, which has started.
    fn finish<P: Proxy + DeviceProtocol + Clone + 'static>(
        self,
        proxy: P,
        commands: Commands,
        device: Arc<VirtioPciDevice>,
    ) {
        self.devices.tasks.borrow_mut().push(process::serve(proxy, commands, device));
    }
}

/// Puts devices on PCI, one after another, and returns for each what starts its component: those can run at once.
pub(super) struct DeviceBuilder<'a, 'b> {
    pub(super) launcher: Launcher<'a>,
    pub(super) vm: &'b mut VmBuilder,
    pub(super) events: &'b DeviceEvents,
    pub(super) cpus: u8,
}

/// A device on PCI whose component was not started yet.
struct Attached {
    device: Arc<VirtioPciDevice>,
    commands: Commands,
    start_info: hardware::StartInfo,
}

impl<'a> DeviceBuilder<'a, '_> {
    /// Puts a device on PCI, in the next slot, and prepares what its component gets.
    fn attach(
        &mut self,
        identity: &VirtioIdentity,
        config: DeviceConfig,
    ) -> Result<Attached, GuestError> {
        let (backend, commands) = process::remote_backend();
        let (device, handles) = self
            .vm
            .add_virtio(identity, config, Box::new(backend), self.events)
            .map_err(|error| failed(&identity.name, &error.into()))?;
        let start_info = hardware::StartInfo {
            trap: hardware::Trap {
                addr: handles.trap.start,
                size: handles.trap.end - handles.trap.start,
            },
            guest: Some(handles.guest),
            event: handles.event,
            vmo: handles.vmo,
        };
        Ok(Attached { device, commands, start_info })
    }

    /// Adds the balloon.
    pub(super) fn balloon(&mut self) -> Result<Starting<'a, Balloon>, GuestError> {
        let identity = VirtioIdentity {
            name: "virtio_balloon".to_owned(),
            device_id: 5,
            class: 0x05_0000,
            features: feature::BALLOON_STATS_VQ
                | feature::BALLOON_DEFLATE_ON_OOM
                | feature::BALLOON_PAGE_REPORTING,
            queue_sizes: vec![QUEUE_SIZE; 4],
            breaks_queues: false,
        };
        let config = DeviceConfig::read_only(vec![0; 8]).writable(balloon_config::ACTUAL, 4);
        let Attached { device, commands, start_info } = self.attach(&identity, config)?;
        let launcher = self.launcher;
        Ok(Launcher::starting(identity.name.clone(), async move {
            let name = identity.name;
            let proxy = launcher.launch::<hardware::VirtioBalloonMarker>("balloon", name).await?;
            proxy.start(start_info).await.map_err(DeviceError::Start)?;
            launcher.finish(proxy.clone(), commands, device.clone());
            Ok(Balloon { device, proxy })
        }))
    }

    /// Adds disk number `index`.
    pub(super) fn block(
        &mut self,
        index: usize,
        spec: BlockSpec,
    ) -> Result<Starting<'a, ()>, GuestError> {
        let queues = self.cpus.clamp(1, MAX_BLOCK_QUEUES);
        let read_only = if spec.mode == BlockMode::ReadOnly {
            feature::BLK_RO
        } else {
            feature::BLK_DISCARD | feature::BLK_WRITE_ZEROES
        };
        let identity = VirtioIdentity {
            name: format!("virtio_block_{index}"),
            device_id: 2,
            class: 0x01_8000,
            features: feature::BLK_SEG_MAX
                | feature::BLK_BLK_SIZE
                | feature::BLK_FLUSH
                | feature::BLK_MQ
                | read_only,
            queue_sizes: vec![LARGE_QUEUE_SIZE; usize::from(queues)],
            breaks_queues: true,
        };
        let config = DeviceConfig::read_only(vec![0; BLOCK_CONFIG_SIZE]);
        let Attached { device, commands, start_info } = self.attach(&identity, config)?;
        let launcher = self.launcher;
        Ok(Launcher::starting(identity.name.clone(), async move {
            let name = identity.name;
            let proxy = launcher.launch::<hardware::VirtioBlockMarker>("block", name).await?;
            let (capacity, block_size) =
                proxy.start(start_info, spec).await.map_err(DeviceError::Start)?;
            let blocks = block_size.is_power_of_two() && u64::from(block_size) >= SECTOR;
            if capacity % SECTOR != 0 || !blocks {
                return Err(DeviceError::Disk { capacity, block_size });
            }
            device.set_config(&block_config(capacity, block_size, queues));
            launcher.finish(proxy, commands, device);
            Ok(())
        }))
    }

    /// Adds the console, whose other end is `socket`'s peer.
    pub(super) fn console(&mut self, socket: zx::Socket) -> Result<Starting<'a, ()>, GuestError> {
        let identity = VirtioIdentity {
            name: "virtio_console".to_owned(),
            device_id: 3,
            class: 0x07_8000,
            features: 0,
            queue_sizes: vec![QUEUE_SIZE; 2],
            breaks_queues: true,
        };
        let Attached { device, commands, start_info } =
            self.attach(&identity, DeviceConfig::read_only(vec![0; CONSOLE_CONFIG_SIZE]))?;
        let launcher = self.launcher;
        Ok(Launcher::starting(identity.name.clone(), async move {
            let name = identity.name;
            let proxy = launcher.launch::<hardware::VirtioConsoleMarker>("console", name).await?;
            proxy.start(start_info, socket).await.map_err(DeviceError::Start)?;
            launcher.finish(proxy, commands, device);
            Ok(())
        }))
    }

    /// Adds the source of random numbers.
    pub(super) fn rng(&mut self) -> Result<Starting<'a, ()>, GuestError> {
        let identity = VirtioIdentity {
            name: "virtio_rng".to_owned(),
            device_id: 4,
            class: 0xff_0000,
            features: 0,
            queue_sizes: vec![QUEUE_SIZE],
            breaks_queues: false,
        };
        let Attached { device, commands, start_info } =
            self.attach(&identity, DeviceConfig::default())?;
        let launcher = self.launcher;
        Ok(Launcher::starting(identity.name.clone(), async move {
            let proxy = launcher.launch::<hardware::VirtioRngMarker>("rng", identity.name).await?;
            proxy.start(start_info).await.map_err(DeviceError::Start)?;
            launcher.finish(proxy, commands, device);
            Ok(())
        }))
    }

    /// Adds the vsock device with `listeners`, and returns what connects clients to it.
    pub(super) fn vsock(
        &mut self,
        listeners: Vec<Listener>,
    ) -> Result<Starting<'a, ConnectVsock>, GuestError> {
        let identity = VirtioIdentity {
            name: "virtio_vsock".to_owned(),
            device_id: 19,
            class: 0x02_8000,
            features: 0,
            queue_sizes: vec![QUEUE_SIZE; 3],
            breaks_queues: false,
        };
        // The guest's context ID (§5.10.4).
        let config = DeviceConfig::read_only(u64::from(DEFAULT_GUEST_CID).to_le_bytes().to_vec());
        let Attached { device, commands, start_info } = self.attach(&identity, config)?;
        let launcher = self.launcher;
        Ok(Launcher::starting(identity.name.clone(), async move {
            let process = DeviceProcess::create(launcher.realm, "vsock", identity.name).await?;
            let connector = process.vsock_connector(device.clone());
            let proxy = launcher.connect::<hardware::VirtioVsockMarker>(process)?;
            let started = proxy.start(start_info, DEFAULT_GUEST_CID, listeners).await;
            started
                .map_err(DeviceError::Start)?
                .map_err(|status| DeviceError::StartStatus(zx::Status::from_raw(status)))?;
            launcher.finish(proxy, commands, device);
            Ok(connector)
        }))
    }

    /// Adds network interface number `index`, with the host's ports that lead to it. One with a `turn` waits for that before
    /// it starts: a bridge can cut the host's own network, so it comes when nothing else can fail.
    pub(super) fn net(
        &mut self,
        index: usize,
        spec: NetSpec,
        forwards: Vec<NetForward>,
        turn: Option<Shared<oneshot::Receiver<()>>>,
    ) -> Result<Starting<'a, ()>, GuestError> {
        let identity = VirtioIdentity {
            name: format!("virtio_net_{index}"),
            device_id: 1,
            class: 0x02_0000,
            features: feature::NET_MAC
                | feature::NET_CSUM
                | feature::NET_GUEST_CSUM
                | feature::NET_GUEST_TSO4
                | feature::NET_GUEST_TSO6
                | feature::NET_HOST_TSO4
                | feature::NET_HOST_TSO6
                | feature::NET_MRG_RXBUF,
            queue_sizes: vec![LARGE_QUEUE_SIZE; 2],
            breaks_queues: false,
        };
        let config = DeviceConfig::read_only(spec.mac_address.octets.to_vec());
        let Attached { device, commands, start_info } = self.attach(&identity, config)?;
        let launcher = self.launcher;
        Ok(Launcher::starting(identity.name.clone(), async move {
            let proxy = launcher.launch::<hardware::VirtioNetMarker>("net", identity.name).await?;
            if let Some(turn) = turn
                && turn.await.is_err()
            {
                // Another device has failed, and that is told.
                return Ok(());
            }
            let started = proxy.start(start_info, &spec.mac_address, spec.enable_bridge).await;
            started
                .map_err(DeviceError::Start)?
                .map_err(|status| DeviceError::StartStatus(zx::Status::from_raw(status)))?;
            for forward in forwards {
                proxy.forward(&forward).await.map_err(DeviceError::Start)?.map_err(|status| {
                    let status = zx::Status::from_raw(status);
                    DeviceError::Forward { port: forward.host_port, status }
                })?;
            }
            launcher.finish(proxy, commands, device);
            Ok(())
        }))
    }
}

/// Size of `struct virtio_console_config` (§5.3.4), in bytes. Without features nothing in it means anything, but Linux
/// reads it at every change of configuration.
const CONSOLE_CONFIG_SIZE: usize = 12;
/// Size of `struct virtio_blk_config` up to write-zeroes, in bytes (§5.2.4).
const BLOCK_CONFIG_SIZE: usize = 60;
/// Segments of a request: a queue's descriptors but for header and status.
const BLOCK_SEGMENTS: u32 = LARGE_QUEUE_SIZE as u32 - 2;
/// Ranges of a discard or write-zeroes request that the component takes.
const BLOCK_RANGES: u32 = 32;
/// Sectors of such a range.
const BLOCK_RANGE_SECTORS: u32 = 1 << 21;

fn block_config(capacity: u64, block_size: u32, queues: u8) -> [u8; BLOCK_CONFIG_SIZE] {
    let mut config = [0; BLOCK_CONFIG_SIZE];
    let mut put =
        |offset: usize, bytes: &[u8]| config[offset..offset + bytes.len()].copy_from_slice(bytes);
    put(0, &(capacity / SECTOR).to_le_bytes());
    put(12, &BLOCK_SEGMENTS.to_le_bytes());
    put(20, &block_size.to_le_bytes());
    put(34, &u16::from(queues).to_le_bytes());
    put(36, &BLOCK_RANGE_SECTORS.to_le_bytes()); // max_discard_sectors
    put(40, &BLOCK_RANGES.to_le_bytes()); // max_discard_seg
    put(44, &(block_size / SECTOR as u32).to_le_bytes()); // discard_sector_alignment
    put(48, &BLOCK_RANGE_SECTORS.to_le_bytes()); // max_write_zeroes_sectors
    put(52, &BLOCK_RANGES.to_le_bytes()); // max_write_zeroes_seg
    put(56, &[1]); // write_zeroes_may_unmap
    config
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_configuration_follows_the_specification() {
        let config = block_config(1 << 30, 4096, 2);
        assert_eq!(config[..8], (1u64 << 21).to_le_bytes());
        assert_eq!(config[20..24], 4096u32.to_le_bytes());
        assert_eq!(config[34..36], [2, 0]);
        assert_eq!(config[44..48], 8u32.to_le_bytes());
        assert_eq!(config[56..], [1, 0, 0, 0]);
    }
}
