//! Disks as a guest has them: formats and modes, and what each promises. What happens to them when processes die, and what
//! other programs find in their files, is in `durability.rs`.

use enclosed_guest::{EnclosedGuest, Package, environment};
use fidl_fuchsia_virtualization::{GuestConfig, GuestStatus};
use fuchsia_async as fasync;
use qcow::{CreateOptions, Image, MemoryFile, Mode, NoBacking};
use std::fs;
use std::path::Path;
use std::sync::Arc;

/// Bytes of each block in the tests of modes, and how many there are.
const BLOCK: u64 = 4096;
const BLOCKS: u64 = 32;
/// What image files hold that the guest is to read.
const PATTERN: u8 = 0x5a;

/// A guest with these disks, in order, whose files `prepare` makes in the package.
fn enclosed(disks: &[&str], prepare: impl Fn(&Path)) -> EnclosedGuest {
    let enclosed = EnclosedGuest::new(environment!(), Package::with_disks(disks));
    prepare(enclosed.data());
    enclosed
}

fn raw(directory: &Path, name: &str) {
    fs::write(directory.join(name), vec![PATTERN; (BLOCK * BLOCKS) as usize]).unwrap();
}

/// A qcow2 image whose first half has clusters with the pattern, and whose second half has none.
fn qcow(directory: &Path, name: &str) {
    let file = Arc::new(MemoryFile::default());
    Image::create(&*file, &CreateOptions::new(BLOCK * BLOCKS)).unwrap();
    let mut image = Image::open(file.clone(), Mode::ReadWrite, &mut NoBacking).unwrap();
    image.write_at(&vec![PATTERN; (BLOCK * BLOCKS / 2) as usize], 0).unwrap();
    image.flush().unwrap();
    drop(image);
    fs::write(directory.join(name), file.contents()).unwrap();
}

/// One block of an image of either format.
fn read_block(directory: &Path, name: &str, block: u64) -> Vec<u8> {
    let contents = fs::read(directory.join(name)).unwrap();
    let mut bytes = vec![0; BLOCK as usize];
    if name.starts_with("qcow") {
        let file = Arc::new(MemoryFile::new(contents));
        let mut image = Image::open(file, Mode::ReadOnly, &mut NoBacking).unwrap();
        image.read_at(&mut bytes, block * BLOCK).unwrap();
    } else {
        bytes.copy_from_slice(&contents[(block * BLOCK) as usize..][..BLOCK as usize]);
    }
    bytes
}

#[fasync::run_singlethreaded(test)]
async fn modes_and_formats() {
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
    let mut guest = enclosed.start(GuestConfig::default()).await;
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
    }
    for name in ["raw_rw", "qcow_rw"] {
        for block in [2, BLOCKS - 2] {
            let bytes = read_block(enclosed.data(), name, block);
            let expected = if block == 2 { 0 } else { b'w' };
            assert!(bytes.iter().all(|byte| *byte == expected), "{name}, block {block}");
        }
    }
    enclosed.destroy().await;
}
