//! Debian's kernels, the small one for clouds and the one for real machines, in a machine made of system calls only:
//! to a shell on the serial port, a thousand processes, archives whose checksums must match, a processor taken offline
//! and started again, 32-bit programs, and power-off.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

mod debugger;
mod image;
mod session;

use fuchsia_async as fasync;
use image::{CLOUD, DATA, GENERIC, Image, TREE_FILES};
use session::Session;

fn boot_and_work(image: &Image, cpus: u8) {
    fasync::LocalExecutor::new().run_singlethreaded(async {
        let mut session = Session::boot(image, cpus, "");
        session.expect(&format!("on {cpus} CPUs\r\n")).await;
        session.check("forks", "forks: 1000 ran, 1 counted").await;
        let before = session.vm.vcpu_stats(0).expect("a running vCPU has counters");
        assert!(before.io_exits > 0 && before.blocks > 0 && before.tlb_fills > 0, "{before:?}");
        let archive = |form| format!("archive: {form} status 0, {TREE_FILES} match\n");
        session.check("archives", &["gz", "bz2", "xz"].map(archive).concat()).await;
        session.check("programs", &format!("{}programs: status 0", DATA.1)).await;
        if cpus > 1 {
            session.check("offline", &"cpu1: 1, then 2, runs on 1\n".repeat(3)).await;
            session.check("forks", "forks: 1000 ran, 1 counted").await;
        }
        let after = session.vm.vcpu_stats(0).expect("a running vCPU has counters");
        assert!(after.io_exits > before.io_exits && after.blocks > before.blocks, "{after:?}");
        session.power_off().await;
    });
}

#[test]
fn the_cloud_kernel_works_on_one_vcpu() {
    boot_and_work(&CLOUD, 1);
}

#[test]
fn the_cloud_kernel_works_on_two_vcpus() {
    boot_and_work(&CLOUD, 2);
}

#[test]
fn the_generic_kernel_works_on_one_vcpu() {
    boot_and_work(&GENERIC, 1);
}

#[test]
fn the_generic_kernel_works_on_two_vcpus() {
    boot_and_work(&GENERIC, 2);
}
