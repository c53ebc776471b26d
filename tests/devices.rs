//! A guest with every device: its drivers have nothing to complain of, and when the process of a device dies the guest
//! sees a failed device and goes on. Only for the host, where processes are found by their names and killed.
#![cfg(target_os = "linux")]
#![expect(
    clippy::await_holding_lock,
    reason = "every test has a thread and an executor of its own"
)]

use enclosed_guest::{
    ComponentProcess, EnclosedGuest, GuestKernel, Package, RunningGuest, environment, eventually,
};
use fidl::endpoints::create_endpoints;
use fidl_fuchsia_virtualization::{
    BalloonControllerMarker, GuestConfig, GuestError, GuestStatus, HostVsockEndpointMarker,
};
use fuchsia_async as fasync;
use std::fs::File;
use std::sync::Mutex;

/// Processes are found by name, so there is one guest at a time.
static ONE_GUEST: Mutex<()> = Mutex::new(());

const ALL_DEVICES: &str = r#"{
    "linux": "data/vmlinuz", "ramdisk": "data/initramfs.cpio.gz", "cmdline": "console=ttyS0", "memory": "256M",
    "block": ["data/disk,rw,file"], "default-net": true, "virtio-balloon": true, "virtio-console": true,
    "virtio-rng": true, "virtio-vsock": true
}"#;

/// Linux' messages of priority warning and above that are about virtio, its devices, or what drives them.
const COMPLAINTS: &str = "dmesg -r | grep -iE \
    '^<[0-4]>.*(virtio|vd[a-z]|hvc|vsock|balloon|rng|eth0|blk|I/O error|irq|MSI|PCI|hung|stall)' || [ $? = 1 ]";

async fn start(cpus: u8) -> (EnclosedGuest, RunningGuest) {
    let enclosed =
        EnclosedGuest::new(environment!(), Package::with_config(GuestKernel::Linux, ALL_DEVICES));
    File::create(enclosed.data().join("disk")).unwrap().set_len(16 << 20).unwrap();
    let config = GuestConfig { cpus: Some(cpus), ..Default::default() };
    let guest = enclosed.start(config).await;
    (enclosed, guest)
}

async fn drivers_are_content(cpus: u8) {
    let _one = ONE_GUEST.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let (enclosed, mut guest) = start(cpus).await;
    let console = &mut guest.console;
    for driver in ["blk", "console", "rng", "balloon", "net"] {
        let bound =
            console.run(&format!("ls /sys/bus/virtio/drivers/virtio_{driver} | grep virtio")).await;
        assert!(!bound.is_empty(), "virtio_{driver} has no device");
    }
    console.run("ls /sys/bus/virtio/drivers/vmw_vsock_virtio_transport | grep virtio").await;
    // Something of each, before looking for complaints.
    console.run("dd if=/dev/vda of=/dev/null bs=64k iflag=direct").await;
    console.run("dd if=/dev/zero of=/dev/vda bs=64k count=16 oflag=direct conv=fsync").await;
    console.run("dd if=/dev/hwrng of=/dev/null bs=512 count=8").await;
    console.run("ip link set eth0 up").await;
    let negotiated = console.run("cat /sys/bus/virtio/devices/*/features").await;
    for features in negotiated.lines() {
        assert_eq!(&features[32..33], "1", "VERSION_1 in {features}");
        assert_eq!(&features[29..30], "1", "event index in {features}");
    }
    let interrupts = console.run("cat /proc/interrupts").await;
    assert!(interrupts.contains("virtio0"), "{interrupts}");
    assert_eq!(console.run(COMPLAINTS).await, "", "with {cpus} vCPUs");
    enclosed.destroy().await;
}

#[fasync::run_singlethreaded(test)]
async fn drivers_are_content_with_one_cpu() {
    drivers_are_content(1).await;
}

#[fasync::run_singlethreaded(test)]
async fn drivers_are_content_with_two_cpus() {
    drivers_are_content(2).await;
}

/// What Linux does with each device once its process is gone. None of it may be more than that device's own failure.
const USES: [(&str, &str); 6] = [
    ("virtio_rng", "dd if=/dev/hwrng of=/dev/null bs=16 count=1 2>&1 &"),
    ("virtio_balloon", "true"),
    ("virtio_vsock", "probe vsock connect 2 1234 < /dev/null 2>&1 &"),
    // Linux polls for the end of its output with interrupts off.
    ("virtio_console", "(echo lost > /dev/hvc0) & sleep 0.2"),
    ("virtio_net", "ip link set eth0 up; ping -c 1 -W 1 10.0.2.2 2>&1; true"),
    ("virtio_block", "! dd if=/dev/zero of=/dev/vda bs=4k count=1 oflag=direct 2>&1"),
];

#[fasync::run_singlethreaded(test)]
async fn any_device_can_die_and_the_guest_goes_on() {
    let _one = ONE_GUEST.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let (enclosed, mut guest) = start(1).await;
    for (index, (name, use_it)) in USES.into_iter().enumerate() {
        ComponentProcess::of(name).kill();
        // The client of the life cycle reads in the log which device it was.
        eventually(&format!("a report of the end of {name}"), async || {
            let logs = enclosed.logs();
            let report = logs
                .lines()
                .find(|line| line.contains(name) && line.contains("The process of a device ended"));
            report.map(|_| ())
        })
        .await;
        guest.console.run(use_it).await;
        let answer = guest.console.run(&format!("echo $((6 * {index}))")).await;
        assert_eq!(answer, format!("{}\n", 6 * index), "after the end of {name}");
    }
    assert_eq!(guest.console.run("dmesg | sed -nE '/BUG|Oops|lockup/p'").await, "");
    // The driver is told, lets go of the device, and is refused when it comes back.
    let console = &mut guest.console;
    console.run("cd /sys/bus/virtio/drivers/virtio_rng; echo virtio* > unbind").await;
    let driverless = "cd /sys/bus/virtio/devices; for d in *; do [ -e $d/driver ] || echo $d; done";
    let device = console.run(driverless).await;
    console
        .try_run(&format!("echo {} > /sys/bus/virtio/drivers/virtio_rng/bind", device.trim()))
        .await;
    assert_eq!(console.run(driverless).await, device, "a dead device was taken into use");
    assert_eq!(console.run("echo still here").await, "still here\n");

    let refused = Err(GuestError::FailedServiceConnect);
    let (_client, server) = create_endpoints::<BalloonControllerMarker>();
    assert_eq!(guest.guest.get_balloon_controller(server).await.unwrap(), refused);
    let (_client, server) = create_endpoints::<HostVsockEndpointMarker>();
    assert_eq!(guest.guest.get_host_vsock_endpoint(server).await.unwrap(), refused);

    // The end of the guest is its own.
    guest.console.write("poweroff -f\n").await;
    guest.console.wait_for_end().await;
    let info = enclosed.wait_for_status(GuestStatus::Stopped).await;
    assert_eq!(info.stop_error, None);
    enclosed.destroy().await;
}
