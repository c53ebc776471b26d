//! Disks as the host has them: what is left in their files after every process was killed, what QEMU's tools find there, and
//! what a discard gives back. Only for the host, whose processes, tools and files these are; the guest's view is in `block.rs`.
#![cfg(target_os = "linux")]
#![expect(
    clippy::await_holding_lock,
    reason = "every test has a thread and an executor of its own"
)]

use enclosed_guest::{
    ComponentProcess, EnclosedGuest, Package, RunningGuest, environment, eventually,
};
use fidl_fuchsia_virtualization::{GuestConfig, GuestStatus};
use fuchsia_async as fasync;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Bytes of each block of a small image, and how many there are.
const BLOCK: u64 = 4096;
const BLOCKS: u64 = 32;
/// What image files hold that the guest is to read.
const PATTERN: u8 = 0x5a;

/// Processes are found by name, so there is one guest at a time.
fn one_guest() -> MutexGuard<'static, ()> {
    static ONE_GUEST: Mutex<()> = Mutex::new(());
    ONE_GUEST.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A guest with these disks, in order, whose files `prepare` makes in the package.
fn enclosed(disks: &[&str], prepare: impl Fn(&Path)) -> EnclosedGuest {
    let enclosed = EnclosedGuest::new(environment!(), Package::with_disks(disks));
    prepare(enclosed.data());
    enclosed
}

async fn start(enclosed: &EnclosedGuest) -> RunningGuest {
    enclosed.start(GuestConfig::default()).await
}

fn run(program: &str, words: &[&str], directory: &Path) -> String {
    let output = Command::new(program).args(words).current_dir(directory).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program} {words:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// A qcow2 image whose first half has clusters with the pattern, and whose second half has none.
fn qcow(directory: &Path, name: &str) {
    let half = BLOCK * BLOCKS / 2;
    fs::write(directory.join("half"), vec![PATTERN; half as usize]).unwrap();
    run("qemu-img", &["convert", "-q", "-f", "raw", "-O", "qcow2", "half", name], directory);
    run("qemu-img", &["resize", "-q", name, &(2 * half).to_string()], directory);
}

#[fasync::run_singlethreaded(test)]
async fn qemu_and_the_guest_see_the_same_image() {
    let _one = one_guest();
    let enclosed = enclosed(&["data/disk,rw,qcow"], |data| qcow(data, "disk"));
    let mut guest = start(&enclosed).await;
    let console = &mut guest.console;
    let read = |block: u64| {
        format!(
            "dd if=/dev/vda bs=4k skip={block} count=1 iflag=direct 2>&- | od -An -tx1 -v | tr -d ' \\n' | head -c 8"
        )
    };
    assert_eq!(console.run(&read(1)).await, "5a5a5a5a");
    assert_eq!(console.run(&read(BLOCKS - 1)).await, "00000000");
    // One block of what the image has, and one of what it has not.
    console.run("yes w | tr -d '\\n' | head -c 4096 > /tmp/block").await;
    for block in [2, BLOCKS - 2] {
        let write = format!(
            "dd if=/tmp/block of=/dev/vda bs=4k seek={block} oflag=direct conv=fsync,notrunc"
        );
        console.run(&write).await;
    }
    guest.console.write("poweroff -f\n").await;
    guest.console.wait_for_end().await;
    enclosed.wait_for_status(GuestStatus::Stopped).await;
    run("qemu-img", &["check", "-q", "disk"], enclosed.data());
    run("qemu-img", &["convert", "-f", "qcow2", "-O", "raw", "disk", "out"], enclosed.data());
    let out = fs::read(enclosed.data().join("out")).unwrap();
    for (number, block) in out.chunks(BLOCK as usize).enumerate() {
        let expected = match number as u64 {
            number if number == 2 || number == BLOCKS - 2 => b'w',
            number if number < BLOCKS / 2 => PATTERN,
            _ => 0,
        };
        assert!(block.iter().all(|byte| *byte == expected), "block {number}");
    }
    enclosed.destroy().await;
}

#[fasync::run_singlethreaded(test)]
async fn discarded_blocks_are_the_hosts_again() {
    let _one = one_guest();
    let enclosed = enclosed(&["data/disk,rw,file"], |data| {
        fs::write(data.join("disk"), vec![PATTERN; 8 << 20]).unwrap();
    });
    let disk = enclosed.data().join("disk");
    let before = fs::metadata(&disk).unwrap().blocks();
    let mut guest = start(&enclosed).await;
    guest.console.run("probe discard /dev/vda 1048576 4194304; sync").await;
    let after = fs::metadata(&disk).unwrap().blocks();
    assert!(after <= before - (4 << 20) / 512, "{before} blocks, then {after}");
    enclosed.destroy().await;
}

/// Writes files in the guest, syncs, kills every process of it, and finds the files in the next boot.
async fn survives(disk: &str, prepare: impl Fn(&Path)) {
    let _one = one_guest();
    let mut enclosed = enclosed(&[disk], prepare);
    let mut guest = start(&enclosed).await;
    let console = &mut guest.console;
    console.run("mount -t ext4 /dev/vda /mnt").await;
    console
        .run("for i in 1 2 3 4 5 6 7 8; do head -c 500000 /dev/urandom > /mnt/file$i; done")
        .await;
    let sums = console.run("cd /mnt; sha256sum file* | tee sums; sync").await;
    // What is written from here on may be there or not.
    console.run("(while true; do head -c 100000 /dev/urandom > /mnt/later; done) &").await;
    for name in ["virtio_block", "vmm", "guest_manager"] {
        ComponentProcess::of(name).kill();
    }
    drop(guest);
    enclosed.manager = eventually("another manager", async || {
        let manager = enclosed.connect_to_manager();
        manager.get_info().await.ok().map(|_| manager)
    })
    .await;
    let mut guest = start(&enclosed).await;
    guest.console.run("mount -t ext4 /dev/vda /mnt").await;
    assert_eq!(guest.console.run("cd /mnt; sha256sum file*").await, sums);
    guest.console.run("cd /mnt; sha256sum -c sums; rm later; cd /; umount /mnt").await;
    enclosed.destroy().await;
}

fn file_system(directory: &Path, name: &str) {
    File::create(directory.join(name)).unwrap().set_len(64 << 20).unwrap();
    run("mke2fs", &["-q", "-t", "ext4", name], directory);
}

#[fasync::run_singlethreaded(test)]
async fn a_synced_file_survives_on_a_raw_disk() {
    survives("data/disk,rw,file", |data| file_system(data, "disk")).await;
}

#[fasync::run_singlethreaded(test)]
async fn a_synced_file_survives_on_an_overlay() {
    survives("data/overlay,rw,qcow", |data| {
        file_system(data, "base");
        run(
            "qemu-img",
            &["create", "-q", "-f", "qcow2", "-b", "base", "-F", "raw", "overlay"],
            data,
        );
    })
    .await;
}
