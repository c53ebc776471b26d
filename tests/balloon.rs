//! The balloon: memory that the guest gives up is the host's again, and comes back to the guest when it wants it.

use enclosed_guest::{EnclosedGuest, GuestKernel, Package, environment, eventually};
use fidl::endpoints::create_proxy;
use fidl_fuchsia_virtualization::{BalloonControllerMarker, GuestConfig};
use fuchsia_async as fasync;
use fuchsia_zircon as zx;
use std::fs::File;

const MIB: u64 = 1 << 20;
/// A guest with a disk that fills its page cache.
const CONFIG: &str = r#"{
    "linux": "data/vmlinuz", "ramdisk": "data/initramfs.cpio.gz", "cmdline": "console=ttyS0 quiet", "cpus": 1,
    "memory": "256M", "block": ["data/disk,ro,file"], "virtio-balloon": true
}"#;
/// Fills memory in the guest with what does not compress, and lets go of it.
const FILL: &str =
    "mount -t tmpfs -o size=160m none /mnt; head -c 140000000 /dev/urandom > /mnt/fill";
/// `VIRTIO_BALLOON_S_MEMTOT` and `VIRTIO_BALLOON_S_AVAIL`.
const STATS: [u16; 2] = [5, 6];

/// One test, because the memory of all guests is looked at.
#[fasync::run_singlethreaded(test)]
async fn memory_goes_to_the_host_and_back() {
    let package = Package::with_config(GuestKernel::Linux, CONFIG);
    let enclosed = EnclosedGuest::new(environment!(), package);
    File::create(enclosed.data().join("disk")).unwrap().set_len(160 * MIB).unwrap();
    let mut guest = enclosed.start(GuestConfig::default()).await;
    let (balloon, server) = create_proxy::<BalloonControllerMarker>();
    assert_eq!(guest.guest.get_balloon_controller(server).await.unwrap(), Ok(()));
    assert_eq!(balloon.get_balloon_size().await.unwrap(), (0, 0));

    let (status, stats) = balloon.get_mem_stats().await.unwrap();
    assert_eq!(zx::Status::from_raw(status), zx::Status::OK);
    let stats = stats.unwrap();
    let stat = |tag| stats.iter().find(|stat| stat.tag == tag).map_or(0, |stat| stat.val);
    let [total, available] = STATS.map(stat);
    assert!((128 * MIB..256 * MIB).contains(&total), "{total} bytes in all");
    assert!((64 * MIB..=total).contains(&available), "{available} bytes available");

    // The balloon takes what the guest only keeps in case: its page cache.
    guest.console.run("cat /dev/vda > /dev/null").await;
    let full = enclosed.resident_memory().await;
    assert!(full > 140 * MIB, "{full} bytes resident");
    let pages = (150 * MIB / 4096) as u32;
    balloon.request_num_pages(pages).unwrap();
    eventually("the balloon's inflation", async || {
        (balloon.get_balloon_size().await.unwrap() == (pages, pages)).then_some(())
    })
    .await;
    let inflated = enclosed.resident_memory().await;
    assert!(inflated < full - 80 * MIB, "{full} bytes resident, then {inflated}");
    let left = guest.console.run("grep MemAvailable /proc/meminfo | tr -dc 0-9").await;
    let left = left.parse::<u64>().unwrap() << 10;
    assert!(left < available - 120 * MIB, "{available} bytes available, then {left}");

    balloon.request_num_pages(0).unwrap();
    eventually("the balloon's deflation", async || {
        (balloon.get_balloon_size().await.unwrap() == (0, 0)).then_some(())
    })
    .await;
    // The guest has the memory again, with what it writes there.
    guest.console.run(FILL).await;
    guest.console.run("sha256sum /mnt/fill > /tmp/sum; sha256sum -c /tmp/sum").await;
    let full = enclosed.resident_memory().await;
    assert!(full > 140 * MIB, "the memory did not come back: {full} bytes resident");

    // Free page reporting: what the guest frees is the host's without anybody's asking.
    guest.console.run("rm /mnt/fill").await;
    eventually("memory by free page reporting", async || {
        (enclosed.resident_memory().await < full - 100 * MIB).then_some(())
    })
    .await;

    // Deflation when the guest has no other memory: it asks for more than it could lend and live.
    balloon.request_num_pages((200 * MIB / 4096) as u32).unwrap();
    eventually("most of the inflation", async || {
        (balloon.get_balloon_size().await.unwrap().0 > (100 * MIB / 4096) as u32).then_some(())
    })
    .await;
    balloon.request_num_pages(0).unwrap();
    assert_eq!(guest.console.run("echo alive").await, "alive\n");
    enclosed.destroy().await;
}
