//! What becomes of a package's configuration and a caller's: the merge, the defaults, the checks.

use fidl_fuchsia_net::MacAddress;
use fidl_fuchsia_virtualization::{GuestConfig, GuestDescriptor, NetSpec};
use notation::net_forward;
use std::collections::BTreeSet;

/// The address of the network device that `default_net` asks for: locally administered, under Google's OUI.
const DEFAULT_MAC: [u8; 6] = [0x02, 0x1a, 0x11, 0x00, 0x01, 0x00];

/// However large the host is, a guest leaves it this much or half of its memory.
const MAX_RESERVED_MEMORY: u64 = 3 << 30;

/// What the host has to give.
#[derive(Debug, Copy, Clone)]
pub(crate) struct HostResources {
    /// Physical memory in bytes.
    pub(crate) memory: u64,
    /// The number of CPUs.
    pub(crate) cpus: u32,
}

/// Why a merged configuration cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum ConfigError {
    #[error("two vsock listeners want port {0}")]
    DuplicateListener(u32),
    #[error("port {0} of the host is forwarded twice")]
    DuplicateForward(String),
    #[error("there are forwarded ports but no network device; default-net gives one")]
    ForwardsWithoutNet,
}

/// Puts the caller's configuration over the package's: single values replace, lists are appended.
pub(crate) fn merge(base: GuestConfig, over: GuestConfig) -> GuestConfig {
    GuestConfig {
        kernel_type: over.kernel_type.or(base.kernel_type),
        kernel: over.kernel.or(base.kernel),
        ramdisk: over.ramdisk.or(base.ramdisk),
        dtb_overlay: over.dtb_overlay.or(base.dtb_overlay),
        cmdline: over.cmdline.or(base.cmdline),
        cmdline_add: append(base.cmdline_add, over.cmdline_add),
        cpus: over.cpus.or(base.cpus),
        guest_memory: over.guest_memory.or(base.guest_memory),
        block_devices: append(base.block_devices, over.block_devices),
        net_devices: append(base.net_devices, over.net_devices),
        net_forwards: append(base.net_forwards, over.net_forwards),
        wayland_device: over.wayland_device.or(base.wayland_device),
        magma_device: over.magma_device.or(base.magma_device),
        default_net: over.default_net.or(base.default_net),
        virtio_balloon: over.virtio_balloon.or(base.virtio_balloon),
        virtio_console: over.virtio_console.or(base.virtio_console),
        virtio_gpu: over.virtio_gpu.or(base.virtio_gpu),
        virtio_rng: over.virtio_rng.or(base.virtio_rng),
        virtio_vsock: over.virtio_vsock.or(base.virtio_vsock),
        virtio_sound: over.virtio_sound.or(base.virtio_sound),
        virtio_sound_input: over.virtio_sound_input.or(base.virtio_sound_input),
        vsock_listeners: append(base.vsock_listeners, over.vsock_listeners),
        virtio_mem: over.virtio_mem.or(base.virtio_mem),
        virtio_mem_block_size: over.virtio_mem_block_size.or(base.virtio_mem_block_size),
        virtio_mem_region_size: over.virtio_mem_region_size.or(base.virtio_mem_region_size),
        virtio_mem_region_alignment: over
            .virtio_mem_region_alignment
            .or(base.virtio_mem_region_alignment),
        ..Default::default()
    }
}

fn append<T>(base: Option<Vec<T>>, over: Option<Vec<T>>) -> Option<Vec<T>> {
    match (base, over) {
        (Some(mut base), Some(over)) => {
            base.extend(over);
            Some(base)
        }
        (base, over) => base.or(over),
    }
}

/// Fills in what neither side said, and checks what only the whole can show.
pub(crate) fn finish(
    mut config: GuestConfig,
    host: HostResources,
) -> Result<GuestConfig, ConfigError> {
    config.guest_memory.get_or_insert_with(|| default_memory(host.memory));
    config.cpus.get_or_insert_with(|| u8::try_from(host.cpus).unwrap_or(u8::MAX));
    if config.default_net == Some(true) {
        config
            .net_devices
            .get_or_insert_default()
            .push(NetSpec { mac_address: MacAddress { octets: DEFAULT_MAC }, enable_bridge: true });
    }
    if let Some(words) = config.cmdline_add.take() {
        config.cmdline =
            Some(config.cmdline.into_iter().chain(words).collect::<Vec<_>>().join(" "));
    }
    let mut ports = BTreeSet::new();
    for listener in config.vsock_listeners.iter().flatten() {
        if !ports.insert(listener.port) {
            return Err(ConfigError::DuplicateListener(listener.port));
        }
    }
    check_forwards(&config)?;
    Ok(config)
}

fn check_forwards(config: &GuestConfig) -> Result<(), ConfigError> {
    let forwards = config.net_forwards.as_deref().unwrap_or_default();
    if !forwards.is_empty() && config.net_devices.as_ref().is_none_or(Vec::is_empty) {
        return Err(ConfigError::ForwardsWithoutNet);
    }
    let mut ports = BTreeSet::new();
    for forward in forwards {
        if !ports.insert((forward.protocol.into_primitive(), net_forward::host(forward))) {
            return Err(ConfigError::DuplicateForward(net_forward::host(forward).to_string()));
        }
    }
    Ok(())
}

/// All of the host's memory but half of it, or but 3 GiB where half is more; in whole pages.
fn default_memory(host: u64) -> u64 {
    (host - (host / 2).min(MAX_RESERVED_MEMORY)) & !0xfff
}

/// What the manager tells of a guest with this configuration.
pub(crate) fn describe(config: &GuestConfig) -> GuestDescriptor {
    GuestDescriptor {
        num_cpus: config.cpus,
        guest_memory: config.guest_memory,
        wayland: Some(config.wayland_device.is_some()),
        magma: Some(config.magma_device.is_some()),
        balloon: Some(config.virtio_balloon.unwrap_or(false)),
        console: Some(config.virtio_console.unwrap_or(false)),
        gpu: Some(config.virtio_gpu.unwrap_or(false)),
        rng: Some(config.virtio_rng.unwrap_or(false)),
        vsock: Some(config.virtio_vsock.unwrap_or(false)),
        sound: Some(config.virtio_sound.unwrap_or(false)),
        networks: Some(config.net_devices.clone().unwrap_or_default()),
        mem: Some(config.virtio_mem.unwrap_or(false)),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fidl_fuchsia_virtualization::{HostVsockAcceptorMarker, Listener};

    const HOST: HostResources = HostResources { memory: 16 << 30, cpus: 300 };

    fn strings(words: &[&str]) -> Option<Vec<String>> {
        Some(words.iter().map(|word| (*word).to_owned()).collect())
    }

    #[test]
    fn the_caller_replaces_values_and_appends_to_lists() {
        let base = GuestConfig {
            cpus: Some(1),
            virtio_rng: Some(true),
            cmdline_add: strings(&["a"]),
            ..Default::default()
        };
        let over = GuestConfig {
            cpus: Some(4),
            virtio_gpu: Some(false),
            cmdline_add: strings(&["b"]),
            ..Default::default()
        };
        let merged = merge(base, over);
        assert_eq!(merged.cpus, Some(4));
        assert_eq!((merged.virtio_rng, merged.virtio_gpu), (Some(true), Some(false)));
        assert_eq!(merged.cmdline_add, strings(&["a", "b"]));
    }

    #[test]
    fn words_are_added_to_the_command_line_once() {
        let config = GuestConfig {
            cmdline: Some("root=/dev/vda".to_owned()),
            cmdline_add: strings(&["quiet", "rw"]),
            ..Default::default()
        };
        let config = finish(config, HOST).unwrap();
        assert_eq!(config.cmdline.as_deref(), Some("root=/dev/vda quiet rw"));
        assert_eq!(config.cmdline_add, None);
        let only = GuestConfig { cmdline_add: strings(&["quiet"]), ..Default::default() };
        assert_eq!(finish(only, HOST).unwrap().cmdline.as_deref(), Some("quiet"));
    }

    #[test]
    fn memory_and_cpus_default_to_the_hosts_share() {
        let config = finish(GuestConfig::default(), HOST).unwrap();
        assert_eq!((config.guest_memory, config.cpus), (Some(13 << 30), Some(255)));
        assert_eq!(default_memory(4 << 30), 2 << 30);
        assert_eq!(default_memory(0), 0);
    }

    #[test]
    fn the_default_network_is_one_bridged_device() {
        let config = GuestConfig { default_net: Some(true), ..Default::default() };
        let nets = finish(config, HOST).unwrap().net_devices.unwrap();
        assert_eq!(nets.len(), 1);
        assert_eq!(nets[0].mac_address.octets, DEFAULT_MAC);
        assert!(nets[0].enable_bridge);
    }

    #[test]
    fn a_port_has_one_listener() {
        let listener = |port| {
            let (acceptor, _) = fidl::endpoints::create_endpoints::<HostVsockAcceptorMarker>();
            Listener { port, acceptor }
        };
        let config = |ports: &[u32]| GuestConfig {
            vsock_listeners: Some(ports.iter().copied().map(listener).collect()),
            ..Default::default()
        };
        assert!(finish(config(&[1, 2]), HOST).is_ok());
        assert_eq!(finish(config(&[5, 2, 5]), HOST), Err(ConfigError::DuplicateListener(5)));
    }

    #[test]
    fn forwards_need_a_network_and_ports_of_their_own() {
        let config = |default_net, forwards: &[&str]| GuestConfig {
            default_net: Some(default_net),
            net_forwards: Some(forwards.iter().map(|f| net_forward::parse(f).unwrap()).collect()),
            ..Default::default()
        };
        assert!(finish(config(true, &["80:80", "udp:80:80", "0.0.0.0:80:80"]), HOST).is_ok());
        assert!(finish(config(false, &[]), HOST).is_ok());
        assert_eq!(finish(config(false, &["80:80"]), HOST), Err(ConfigError::ForwardsWithoutNet));
        assert_eq!(
            finish(config(true, &["80:80", "80:81"]), HOST),
            Err(ConfigError::DuplicateForward("127.0.0.1:80".to_owned()))
        );
    }

    #[test]
    fn the_descriptor_says_what_the_configuration_does() {
        let config = GuestConfig { virtio_rng: Some(true), ..Default::default() };
        let descriptor = describe(&finish(config, HOST).unwrap());
        assert_eq!((descriptor.rng, descriptor.gpu), (Some(true), Some(false)));
        assert_eq!(descriptor.num_cpus, Some(255));
    }
}
