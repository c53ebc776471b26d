//! The network as a guest has it: its address from DHCP, the router, and IPv6 from the router's advertisement. What the
//! host's programs see of it is in `net_host.rs`.

use enclosed_guest::{EnclosedGuest, GuestKernel, Package, RunningGuest, environment};
use fidl_fuchsia_virtualization::GuestConfig;
use fuchsia_async as fasync;

const CONFIG: &str = r#"{
    "linux": "data/vmlinuz", "ramdisk": "data/initramfs.cpio.gz", "cmdline": "console=ttyS0 quiet",
    "cpus": 1, "memory": "256M", "virtio-rng": true, "default-net": true
}"#;

/// The DHCP client's script, which has its words in the environment.
const SCRIPT: &str = "printf '#!/bin/sh\\n[ \"$1\" = bound ] || exit 0\\nifconfig $interface $ip netmask $subnet\\n\
    route add default gw $router\\necho lease $ip $subnet $router $dns\\n' > /tmp/dhcp; chmod +x /tmp/dhcp";

/// Waits until the kernel has made its IPv6 address from the router's advertisement.
const AUTOCONFIGURED: &str = "until ip -6 addr show dev eth0 scope site | grep -v tentative | grep fec0::; do sleep 0.1; done";

async fn start() -> (EnclosedGuest, RunningGuest) {
    let package = Package::with_config(GuestKernel::Linux, CONFIG);
    let enclosed = EnclosedGuest::new(environment!(), package);
    let mut guest = enclosed.start(GuestConfig::default()).await;
    guest.console.run("ifconfig lo up; ifconfig eth0 up").await;
    (enclosed, guest)
}

#[fasync::run_singlethreaded(test)]
async fn the_guest_has_an_address_and_reaches_the_router() {
    let (enclosed, mut guest) = start().await;
    let console = &mut guest.console;
    console.run(SCRIPT).await;
    let lease = console.run("udhcpc -i eth0 -n -q -s /tmp/dhcp 2>&1").await;
    assert!(lease.contains("lease 10.0.2.15 255.255.255.0 10.0.2.2 10.0.2.3"), "{lease}");
    let pinged = console.run("ping -c 2 -W 20 10.0.2.2").await;
    assert!(pinged.contains("2 packets received, 0% packet loss"), "{pinged}");
    let configured = console.run(AUTOCONFIGURED).await;
    assert!(configured.contains("inet6 fec0::1a:11ff:fe00:100"), "{configured}");
    console.run("ping6 -c 2 -W 20 fec0::2").await;
    enclosed.destroy().await;
}

#[fasync::run_singlethreaded(test)]
async fn the_device_is_what_the_configuration_says() {
    let (enclosed, mut guest) = start().await;
    let console = &mut guest.console;
    assert_eq!(console.run("cat /sys/class/net/eth0/address").await, "02:1a:11:00:01:00\n");
    assert_eq!(console.run("cat /sys/class/net/eth0/operstate").await, "up\n");
    let complaints = "dmesg | sed -nE '/virtio_net.*(error|fail|bad)/p'";
    assert_eq!(console.run(complaints).await, "");
    enclosed.destroy().await;
}
