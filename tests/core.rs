//! The core suite: what any guest must be able to do. Its console, its CPUs, its memory, its clock and its random
//! numbers, on each kernel.

use enclosed_guest::{EnclosedGuest, GuestConsole, GuestKernel, environment};
use fidl_fuchsia_virtualization::{GuestConfig, GuestStatus};
use fuchsia_async as fasync;
use std::time::{SystemTime, UNIX_EPOCH};

/// More than fits below the devices, so that there is memory on both sides of them.
const MEMORY: u64 = (4 << 30) + (512 << 20);

fn enclosed(kernel: GuestKernel) -> EnclosedGuest {
    EnclosedGuest::new(environment!(), kernel)
}

async fn echo(console: &mut GuestConsole, text: &str) {
    let output = console.run(&format!("echo {text}")).await;
    assert_eq!(output, format!("{text}\n"));
}

async fn console_works(kernel: GuestKernel) {
    let enclosed = enclosed(kernel);
    let mut guest = enclosed.start(GuestConfig::default()).await;
    for index in 0..100 {
        echo(&mut guest.console, &format!("test{index}")).await;
    }
    // Much more than any FIFO, and not more than a terminal takes in a line.
    let long: String = (0..3800).map(|index| char::from(b'a' + (index % 26) as u8)).collect();
    echo(&mut guest.console, &long).await;
    enclosed.destroy().await;
}

#[fasync::run_singlethreaded(test)]
async fn the_console_works_on_zircon() {
    console_works(GuestKernel::Zircon).await;
}

#[fasync::run_singlethreaded(test)]
async fn the_console_works_on_linux() {
    console_works(GuestKernel::Linux).await;
}

#[fasync::run_singlethreaded(test)]
async fn zircon_understands_its_boot_image() {
    let enclosed = enclosed(GuestKernel::Zircon);
    let config = GuestConfig {
        cmdline_add: Some(vec!["guest.test=1".to_owned()]),
        cpus: Some(1),
        ..Default::default()
    };
    let mut guest = enclosed.start(config).await;
    let items = guest.console.run("items").await;
    for item in [
        r#"item CMDL, 34 bytes: command line "kernel.serial=legacy guest.test=1""#,
        "item KDRV, 8 bytes: 8250 UART at port 0x3f8, interrupt 4",
        "item RSDP, 8 bytes: ACPI root pointer at 0xe0000",
        "0x0000008000..0x0000080000 RAM",
        "0x00f8100000..0x00f8200000 reserved",
    ] {
        assert!(items.contains(item), "no {item:?} in:\n{items}");
    }
    assert!(guest.console.run("devices").await.contains("00:00.0 8086:29c0 class 060000"));
    enclosed.destroy().await;
}

#[fasync::run_singlethreaded(test)]
async fn zircon_uses_every_cpu_with_its_timer() {
    let enclosed = enclosed(GuestKernel::Zircon);
    let config = GuestConfig { cpus: Some(4), ..Default::default() };
    let mut guest = enclosed.start(config).await;
    // Atomic increments by all at once lose nothing.
    assert_eq!(guest.console.run("work 100000").await, "4 CPUs have counted to 400000\n");
    let slept = guest.console.run("sleep 350").await;
    let ticks: u32 = slept.split(' ').nth(1).unwrap().parse().unwrap();
    assert!(ticks > 0, "{slept}");
    let cpus = guest.console.run("cpus").await;
    for index in 0..4 {
        let line = cpus.lines().find(|line| line.starts_with(&format!("cpu {index}: ")));
        let line = line.unwrap_or_else(|| panic!("no CPU {index} in:\n{cpus}"));
        assert!(line.contains(&format!("apic id {index},")), "{line}");
        assert!(!line.contains(" 0 ticks"), "{line}");
        let called = if index == 0 { "0 calls" } else { "1 calls" };
        assert!(line.ends_with(called), "{line}");
    }
    // Input came by interrupts.
    assert!(!cpus.contains("uart: 0 interrupts"), "{cpus}");
    enclosed.destroy().await;
}

#[fasync::run_singlethreaded(test)]
async fn linux_uses_every_cpu() {
    let enclosed = enclosed(GuestKernel::Linux);
    let config = GuestConfig { cpus: Some(2), ..Default::default() };
    let mut guest = enclosed.start(config).await;
    assert_eq!(guest.console.run("grep -c ^processor /proc/cpuinfo").await, "2\n");
    assert_eq!(guest.console.run("taskset 2 sh -c 'echo on the second'").await, "on the second\n");
    let info = enclosed.info().await;
    assert_eq!(info.guest_status, Some(GuestStatus::Running));
    let descriptor = info.guest_descriptor.unwrap();
    assert_eq!((descriptor.num_cpus, descriptor.guest_memory), (Some(2), Some(256 << 20)));
    assert_eq!((descriptor.rng, descriptor.console), (Some(true), Some(false)));
    enclosed.destroy().await;
}

#[fasync::run_singlethreaded(test)]
async fn the_guest_has_the_memory_that_it_is_given() {
    let config = || GuestConfig { guest_memory: Some(MEMORY), cpus: Some(1), ..Default::default() };
    let zircon = enclosed(GuestKernel::Zircon);
    let mut guest = zircon.start(config()).await;
    let physmem = guest.console.run("physmem").await;
    let bytes: u64 = physmem.split(' ').next().unwrap().parse().unwrap();
    assert!(bytes.abs_diff(MEMORY) <= 1 << 20, "{physmem}");
    zircon.destroy().await;
    let linux = enclosed(GuestKernel::Linux);
    let mut guest = linux.start(config()).await;
    let total =
        guest.console.run("sed -n 's/^MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo").await;
    let total = total.trim().parse::<u64>().unwrap() << 10;
    assert!(total.abs_diff(MEMORY) <= 300 << 20, "{total}");
    linux.destroy().await;
}

#[fasync::run_singlethreaded(test)]
async fn the_guests_clock_is_the_hosts() {
    let enclosed = enclosed(GuestKernel::Linux);
    let mut guest = enclosed.start(GuestConfig::default()).await;
    let guest_time: u64 = guest.console.run("date +%s").await.trim().parse().unwrap();
    let host_time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    assert!(guest_time.abs_diff(host_time) < 300, "guest {guest_time}, host {host_time}");
    enclosed.destroy().await;
}

#[fasync::run_singlethreaded(test)]
async fn the_guest_gets_random_numbers() {
    let enclosed = enclosed(GuestKernel::Linux);
    let mut guest = enclosed.start(GuestConfig::default()).await;
    assert_eq!(
        guest.console.run("cat /sys/class/misc/hw_random/rng_current").await,
        "virtio_rng.0\n"
    );
    let mut read = async || guest.console.run("head -c 32 /dev/hwrng | od -An -tx1").await;
    let (first, second) = (read().await, read().await);
    assert_eq!(first.split_whitespace().count(), 32, "{first}");
    assert_ne!(first, second);
    enclosed.destroy().await;
}
