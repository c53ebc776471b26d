//! Disks as a guest has them: formats and modes, what each promises, and what is left after everything was killed.
#![cfg(target_os = "linux")]
#![expect(
    clippy::await_holding_lock,
    reason = "every test has a thread and an executor of its own"
)]

use enclosed_guest::{
    ComponentProcess, EnclosedGuest, GuestKernel, Package, RunningGuest, environment, eventually,
};
use fidl_fuchsia_virtualization::{GuestConfig, GuestManagerMarker, GuestStatus};
use fuchsia_async as fasync;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Bytes of each block in the tests of modes, and how many there are.
const BLOCK: u64 = 4096;
const BLOCKS: u64 = 32;
/// The protocol of the guest's manager.
const MANAGER: &str = "fuchsia.virtualization.DebianGuestManager";
/// What image files hold that the guest is to read.
const PATTERN: u8 = 0x5a;

/// Processes are found by name, so there is one guest at a time.
fn one_guest() -> MutexGuard<'static, ()> {
    static ONE_GUEST: Mutex<()> = Mutex::new(());
    ONE_GUEST.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A guest with these disks, in order, whose files `prepare` makes in the package.
fn enclosed(disks: &[&str], prepare: impl Fn(&Path)) -> EnclosedGuest {
    let config = format!(
        r#"{{"linux": "data/vmlinuz", "ramdisk": "data/initramfs.cpio.gz", "cmdline": "console=ttyS0 quiet",
             "cpus": 2, "memory": "256M", "block": {disks:?} }}"#
    );
    let enclosed =
        EnclosedGuest::new(environment!(), Package::with_config(GuestKernel::Linux, &config));
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

fn raw(directory: &Path, name: &str) {
    fs::write(directory.join(name), vec![PATTERN; (BLOCK * BLOCKS) as usize]).unwrap();
}

/// A qcow2 image whose first half has clusters with the pattern, and whose second half has none.
fn qcow(directory: &Path, name: &str) {
    let half = BLOCK * BLOCKS / 2;
    fs::write(directory.join("half"), vec![PATTERN; half as usize]).unwrap();
    run("qemu-img", &["convert", "-q", "-f", "raw", "-O", "qcow2", "half", name], directory);
    run("qemu-img", &["resize", "-q", name, &(2 * half).to_string()], directory);
}

#[fasync::run_singlethreaded(test)]
async fn modes_and_formats() {
    let _one = one_guest();
    let names = ["raw_rw", "raw_ro", "raw_volatile", "qcow_ro", "qcow_volatile", "qcow_rw"];
    let disks = names.map(|name| {
        let (format, mode) = name.split_once('_').unwrap();
        format!("data/{name},{mode},{}", if format == "raw" { "file" } else { "qcow" })
    });
    let enclosed = enclosed(&disks.each_ref().map(String::as_str), |data| {
        for name in names {
            if name.starts_with("raw") { raw(data, name) } else { qcow(data, name) }
        }
    });
    let before = names.map(|name| fs::read(enclosed.data().join(name)).unwrap());
    let mut guest = start(&enclosed).await;
    let console = &mut guest.console;
    console.run("yes w | tr -d '\\n' | head -c 4096 > /tmp/block").await;
    for (name, disk) in names.iter().zip('a'..) {
        let disk = format!("vd{disk}");
        let queue = format!("/sys/block/{disk}/queue");
        assert_eq!(
            console.run(&format!("cat /sys/block/{disk}/serial")).await,
            format!("data/{name}")
        );
        let sectors = console.run(&format!("cat /sys/block/{disk}/size")).await;
        assert_eq!(sectors.trim(), (BLOCK * BLOCKS / 512).to_string());
        let is_read_only = name.ends_with("ro");
        let read_only = console.run(&format!("cat /sys/block/{disk}/ro")).await;
        assert_eq!(read_only, format!("{}\n", u8::from(is_read_only)), "{name}");
        let cache = console.run(&format!("cat {queue}/write_cache")).await;
        assert_eq!(cache, "write back\n", "a driver that flushes");
        let limits = console
            .run(&format!(
                "cd {queue}; cat logical_block_size discard_max_bytes write_zeroes_max_bytes"
            ))
            .await;
        let limits: Vec<u64> = limits.lines().map(|line| line.parse().unwrap()).collect();
        assert_eq!(limits[0], 512);
        assert_eq!(limits[1] > 0, !is_read_only, "{name}: discard");
        assert_eq!(limits[2] > 0, !is_read_only, "{name}: write zeroes");

        // Contents, also where an image has no cluster.
        let read = |block: u64| {
            format!(
                "dd if=/dev/{disk} bs=4k skip={block} count=1 iflag=direct 2>&- | od -An -tx1 -v | tr -d ' \\n' | head -c 8"
            )
        };
        assert_eq!(console.run(&read(1)).await, "5a5a5a5a", "{name}");
        let second_half = if name.starts_with("raw") { "5a5a5a5a" } else { "00000000" };
        assert_eq!(console.run(&read(BLOCKS - 1)).await, second_half, "{name}");

        // Writes, both to what an image has and to what it has not.
        for block in [2, BLOCKS - 2] {
            let write = format!(
                "dd if=/tmp/block of=/dev/{disk} bs=4k seek={block} oflag=direct conv=fsync,notrunc"
            );
            let (status, output) = console.try_run(&write).await;
            assert_eq!(status != 0, is_read_only, "{name}: {output}");
            let expected = match (is_read_only, block) {
                (false, _) => "77777777",
                (true, 2) => "5a5a5a5a",
                (true, _) => second_half,
            };
            assert_eq!(console.run(&read(block)).await, expected, "{name} {block}");
        }
        if !is_read_only {
            console
                .run(&format!("probe discard /dev/{disk} 0 4096; probe zero /dev/{disk} 8192 4096"))
                .await;
            assert_eq!(console.run(&read(2)).await, "00000000", "{name} after write-zeroes");
        }
        // Beyond the end is an error of the guest's own.
        console
            .run(&format!("! dd if=/dev/{disk} bs=4k skip={BLOCKS} count=1 iflag=direct | grep ."))
            .await;
    }
    guest.console.write("poweroff -f\n").await;
    guest.console.wait_for_end().await;
    enclosed.wait_for_status(GuestStatus::Stopped).await;
    for (name, before) in names.iter().zip(before) {
        let path = enclosed.data().join(name);
        let is_same = fs::read(&path).unwrap() == before;
        assert_eq!(is_same, !name.ends_with("rw"), "{name}");
        if name.starts_with("qcow") {
            run("qemu-img", &["check", "-q", name], enclosed.data());
        }
    }
    let written = File::open(enclosed.data().join("raw_rw")).unwrap();
    let mut block = [0; BLOCK as usize];
    written.read_exact_at(&mut block, (BLOCKS - 2) * BLOCK).unwrap();
    assert!(block.iter().all(|byte| *byte == b'w'));
    run("qemu-img", &["convert", "-f", "qcow2", "-O", "raw", "qcow_rw", "out"], enclosed.data());
    let out = File::open(enclosed.data().join("out")).unwrap();
    out.read_exact_at(&mut block, (BLOCKS - 2) * BLOCK).unwrap();
    assert!(block.iter().all(|byte| *byte == b'w'));
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
        let manager = enclosed.realm().connect_to_named_protocol::<GuestManagerMarker>(MANAGER);
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
