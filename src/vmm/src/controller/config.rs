//! What a `GuestConfig` asks for, checked.

use crate::arch::Platform;
use crate::vm::VmConfig;
use fidl::endpoints::ClientEnd;
use fidl_fuchsia_io::FileMarker;
use fidl_fuchsia_virtualization::{
    BlockSpec, GuestConfig, GuestError, KernelType, Listener, NetForward, NetSpec,
};

/// The kernel and its files.
pub(super) struct KernelFiles {
    pub(super) kind: KernelType,
    pub(super) kernel: Option<ClientEnd<FileMarker>>,
    pub(super) ramdisk: Option<ClientEnd<FileMarker>>,
    pub(super) device_tree: Option<ClientEnd<FileMarker>>,
    pub(super) command_line: String,
}

/// The devices.
pub(super) struct DeviceSpecs {
    pub(super) balloon: bool,
    pub(super) block: Vec<BlockSpec>,
    pub(super) console: bool,
    pub(super) rng: bool,
    pub(super) vsock: Option<Vec<Listener>>,
    pub(super) net: Vec<NetSpec>,
    /// Ports that the first network device forwards.
    pub(super) net_forwards: Vec<NetForward>,
}

/// A checked configuration.
pub(super) struct GuestSpec {
    pub(super) vm: VmConfig,
    pub(super) kernel: KernelFiles,
    pub(super) devices: DeviceSpecs,
}

impl GuestSpec {
    /// Checks `config`.
    ///
    /// # Errors
    ///
    /// `BAD_CONFIG` if it lacks something or says something impossible, `DEVICE_INITIALIZATION_FAILURE` if it asks for a
    /// device that this VMM does not have.
    pub(super) fn new(config: GuestConfig) -> Result<Self, GuestError> {
        check_devices(&config)?;
        let missing = |what: &str| {
            tracing::error!("The guest configuration has no {what}");
            GuestError::BadConfig
        };
        let kind = config.kernel_type.ok_or_else(|| missing("kernel type"))?;
        let cpus = config.cpus.ok_or_else(|| missing("number of vCPUs"))?;
        let memory = config.guest_memory.ok_or_else(|| missing("memory size"))?;
        let max = Platform::ADDRESS_SPACE.max_cpus;
        if cpus == 0 || cpus > max || memory == 0 {
            tracing::error!(cpus, max, memory, "The guest configuration is impossible");
            return Err(GuestError::BadConfig);
        }
        let mut command_line = config.cmdline.unwrap_or_default();
        for word in config.cmdline_add.unwrap_or_default() {
            if !command_line.is_empty() {
                command_line.push(' ');
            }
            command_line.push_str(&word);
        }
        let vsock = config.virtio_vsock.unwrap_or(false);
        let net = config.net_devices.unwrap_or_default();
        let net_forwards = config.net_forwards.unwrap_or_default();
        if net.is_empty() && !net_forwards.is_empty() {
            return Err(missing("network device, but forwarded ports"));
        }
        Ok(Self {
            vm: VmConfig { cpus, memory },
            kernel: KernelFiles {
                kind,
                kernel: config.kernel,
                ramdisk: config.ramdisk,
                device_tree: config.dtb_overlay,
                command_line,
            },
            devices: DeviceSpecs {
                balloon: config.virtio_balloon.unwrap_or(false),
                block: config.block_devices.unwrap_or_default(),
                console: config.virtio_console.unwrap_or(false),
                rng: config.virtio_rng.unwrap_or(false),
                vsock: vsock.then(|| config.vsock_listeners.unwrap_or_default()),
                net,
                net_forwards,
            },
        })
    }
}

/// Refuses devices that there is no component for yet.
fn check_devices(config: &GuestConfig) -> Result<(), GuestError> {
    let absent = [
        ("gpu", config.virtio_gpu.unwrap_or(false)),
        ("sound", config.virtio_sound.unwrap_or(false)),
        ("mem", config.virtio_mem.unwrap_or(false)),
        ("wayland", config.wayland_device.is_some()),
        ("magma", config.magma_device.is_some()),
    ];
    match absent.iter().find(|(_, wanted)| *wanted) {
        None => Ok(()),
        Some((name, _)) => {
            tracing::error!(
                "The guest configuration asks for virtio-{name}, which this VMM does not have"
            );
            Err(GuestError::DeviceInitializationFailure)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> GuestConfig {
        GuestConfig {
            kernel_type: Some(KernelType::Linux),
            cpus: Some(2),
            guest_memory: Some(1 << 30),
            ..Default::default()
        }
    }

    fn error(config: GuestConfig) -> GuestError {
        GuestSpec::new(config).err().expect("the configuration is refused")
    }

    #[test]
    fn required_members() {
        assert!(GuestSpec::new(config()).is_ok());
        assert_eq!(error(GuestConfig { kernel_type: None, ..config() }), GuestError::BadConfig);
        assert_eq!(error(GuestConfig { cpus: None, ..config() }), GuestError::BadConfig);
        assert_eq!(error(GuestConfig { guest_memory: None, ..config() }), GuestError::BadConfig);
    }

    #[test]
    fn impossible_sizes() {
        assert_eq!(error(GuestConfig { cpus: Some(0), ..config() }), GuestError::BadConfig);
        assert_eq!(error(GuestConfig { cpus: Some(65), ..config() }), GuestError::BadConfig);
        assert_eq!(error(GuestConfig { guest_memory: Some(0), ..config() }), GuestError::BadConfig);
    }

    /// What `act` logs.
    fn logged(act: impl FnOnce()) -> String {
        let path = tempfile::NamedTempFile::new().unwrap();
        let subscriber =
            tracing_subscriber::fmt().with_ansi(false).with_writer(path.reopen().unwrap());
        tracing::subscriber::with_default(subscriber.finish(), act);
        std::fs::read_to_string(path.path()).unwrap()
    }

    #[test]
    fn devices_that_do_not_exist_are_refused_with_a_reason_in_the_log() {
        let wayland = fidl_fuchsia_virtualization::WaylandDevice { memory: 1 << 30, server: None };
        let magma = fidl_fuchsia_virtualization::MagmaDevice { memory: 1 << 30 };
        let sound =
            GuestConfig { virtio_sound: Some(true), virtio_sound_input: Some(true), ..config() };
        for (asks, name) in [
            (GuestConfig { virtio_gpu: Some(true), ..config() }, "virtio-gpu"),
            (sound, "virtio-sound"),
            (GuestConfig { virtio_mem: Some(true), ..config() }, "virtio-mem"),
            (GuestConfig { wayland_device: Some(wayland), ..config() }, "virtio-wayland"),
            (GuestConfig { magma_device: Some(magma), ..config() }, "virtio-magma"),
        ] {
            let log = logged(|| {
                assert_eq!(error(asks), GuestError::DeviceInitializationFailure, "{name}");
            });
            assert!(log.contains("ERROR") && log.contains(name), "{name}: {log}");
        }
        let declined = GuestConfig {
            virtio_gpu: Some(false),
            virtio_sound: Some(false),
            virtio_mem: Some(false),
            ..config()
        };
        assert!(GuestSpec::new(declined).is_ok());
    }

    #[test]
    fn command_line_is_joined() {
        let added = Some(vec!["b".to_owned(), "c".to_owned()]);
        let spec = GuestSpec::new(GuestConfig {
            cmdline: Some("a".to_owned()),
            cmdline_add: added.clone(),
            ..config()
        });
        assert_eq!(spec.ok().map(|spec| spec.kernel.command_line).as_deref(), Some("a b c"));
        let spec = GuestSpec::new(GuestConfig { cmdline_add: added, ..config() });
        assert_eq!(spec.ok().map(|spec| spec.kernel.command_line).as_deref(), Some("b c"));
    }

    #[test]
    fn forwards_without_a_network_are_refused() {
        use fidl_fuchsia_net::{IpAddress, Ipv4Address};
        let forward = NetForward {
            protocol: fidl_fuchsia_virtualization::NetForwardProtocol::Tcp,
            host_address: IpAddress::Ipv4(Ipv4Address { addr: [127, 0, 0, 1] }),
            host_port: 8080,
            guest_port: 80,
        };
        let forwards = Some(vec![forward]);
        assert_eq!(
            error(GuestConfig { net_forwards: forwards, ..config() }),
            GuestError::BadConfig
        );
    }

    #[test]
    fn listeners_without_vsock_are_dropped() {
        let spec = GuestSpec::new(GuestConfig { vsock_listeners: Some(Vec::new()), ..config() });
        assert!(spec.is_ok_and(|spec| spec.devices.vsock.is_none()));
    }
}
