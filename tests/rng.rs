//! The source of random numbers, as a guest reads it.

use enclosed_guest::{EnclosedGuest, GuestKernel, environment};
use fidl_fuchsia_virtualization::GuestConfig;
use fuchsia_async as fasync;

#[fasync::run_singlethreaded(test)]
async fn random_numbers_do_not_repeat() {
    let enclosed = EnclosedGuest::new(environment!(), GuestKernel::Linux);
    let mut guest = enclosed.start(GuestConfig::default()).await;
    let console = &mut guest.console;
    let current = console.run("cat /sys/class/misc/hw_random/rng_current").await;
    assert!(current.starts_with("virtio_rng"), "{current}");
    let sums =
        console.run("for i in 1 2 3 4; do head -c 100000 /dev/hwrng | sha256sum; done").await;
    let mut sums: Vec<&str> = sums.lines().collect();
    sums.sort_unstable();
    sums.dedup();
    assert_eq!(sums.len(), 4, "{sums:?}");
    // Numbers from a kernel's generator do not shrink.
    let packed = console.run("head -c 100000 /dev/hwrng | gzip -9 | wc -c").await;
    assert!(packed.trim().parse::<u32>().unwrap() > 100_000, "{packed}");
    enclosed.destroy().await;
}
