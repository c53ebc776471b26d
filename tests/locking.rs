//! Disk images that somebody uses already: refused with the file's name, the holder's and what to do; shared where nobody writes.
#![cfg(target_os = "linux")]

mod support;

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};
use support::{PATIENCE, PROMPT, Session, User};

/// The test guest with one disk of a MiB, `data/disk.img`, used like this.
fn with_disk(mode: &str) -> (User, PathBuf) {
    let user = User::with_package(&config(mode));
    let disk = user.data("debian").join("disk.img");
    File::create(&disk).unwrap().set_len(1 << 20).unwrap();
    (user, disk)
}

fn config(mode: &str) -> String {
    format!(
        r#"{{
            "linux": "data/vmlinuz", "ramdisk": "data/initramfs.cpio.gz", "cmdline": "console=ttyS0",
            "cpus": 1, "memory": "128M", "block": "data/disk.img,{mode}"
        }}"#
    )
}

/// Another user's home, or another manager's package, that has the same disk.
fn with_disk_of(disk: &PathBuf, mode: &str) -> User {
    let user = User::with_package(&config(mode));
    fs::hard_link(disk, user.data("debian").join("disk.img")).unwrap();
    user
}

/// Launches and leaves, and returns what a person is told; empty if it went well.
fn launch(user: &User, guest: &str) -> String {
    let launched = user.run(&["launch", guest, "--detach"]);
    match launched.status.code() {
        Some(0) => String::new(),
        Some(1) => String::from_utf8_lossy(&launched.stderr).into_owned(),
        _ => panic!("{launched:?}"),
    }
}

#[test]
fn a_disk_that_is_written_is_refused_to_the_guest_of_another_component_manager() {
    let (first, disk) = with_disk("rw,file");
    assert_eq!(launch(&first, "debian"), "");
    for mode in ["rw,file", "ro,file", "volatile,file"] {
        let second = with_disk_of(&disk, mode);
        let told = launch(&second, "debian");
        assert!(told.contains("data/disk.img") && told.contains("is in use by"), "{told}");
        assert!(told.contains(&format!("virtio_block (process {})", first.pid_of("virtio_block"))));
        assert!(told.contains("stop that"), "{told}");
    }
    // The lock goes with the guest.
    assert!(first.run(&["stop", "debian", "--force"]).status.success());
    assert_eq!(launch(&with_disk_of(&disk, "rw,file"), "debian"), "");
}

#[test]
fn a_disk_that_is_written_is_refused_to_another_manager_of_the_same_user() {
    let (user, disk) = with_disk("rw,file");
    let data = user.add_package("zircon", &config("rw,file"));
    fs::hard_link(&disk, data.join("disk.img")).unwrap();
    assert_eq!(launch(&user, "debian"), "");
    let told = launch(&user, "zircon");
    assert!(told.contains("data/disk.img") && told.contains("is in use by"), "{told}");
    assert_eq!(user.status(), "Running");
}

#[test]
fn those_who_only_read_share() {
    let (first, disk) = with_disk("ro,file");
    let second = with_disk_of(&disk, "volatile,file");
    let third = with_disk_of(&disk, "rw,file");
    assert_eq!(launch(&first, "debian"), "");
    assert_eq!(launch(&second, "debian"), "");
    let told = launch(&third, "debian");
    assert!(told.contains("data/disk.img") && told.contains("is in use by"), "{told}");
}

#[test]
fn the_lock_dies_with_a_component_manager_that_is_killed() {
    let (first, disk) = with_disk("rw,file");
    assert_eq!(launch(&first, "debian"), "");
    let all: Vec<u32> = first.processes().into_keys().collect();
    first.kill("-KILL", first.pid_of("component_manager"));
    support::wait_until("everything has gone", || {
        all.iter().all(|pid| support::process(*pid).is_none())
    });
    assert_eq!(launch(&with_disk_of(&disk, "rw,file"), "debian"), "");
}

#[test]
fn a_guest_can_be_launched_again_as_soon_as_it_was_stopped_or_its_vmm_killed() {
    let (user, _) = with_disk("rw,file");
    for _ in 0..3 {
        assert_eq!(launch(&user, "debian"), "");
        assert!(user.run(&["stop", "debian", "--force"]).status.success());
    }
    assert_eq!(launch(&user, "debian"), "");
    user.kill("-KILL", user.pid_of("vmm"));
    user.wait_for_status("VMM Unexpectedly Terminated");
    assert_eq!(launch(&user, "debian"), "");
}

/// A program of another maker that has an image open: QEMU's tool, waiting for commands.
struct QemuIo(Child);

impl QemuIo {
    fn open(image: &PathBuf, words: &[&str]) -> Option<Self> {
        let mut command = Command::new("qemu-io");
        command.args(["-f", "raw"]).args(words).arg(image);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = Self(command.spawn().ok()?);
        // It has its locks when somebody can be found who does.
        let begin = Instant::now();
        while component_manager::image_lock::holders(image).is_empty() {
            assert!(begin.elapsed() < PATIENCE);
            thread::sleep(Duration::from_millis(5));
        }
        Some(child)
    }
}

impl Drop for QemuIo {
    fn drop(&mut self) {
        let _ended = self.0.kill();
        let _reaped = self.0.wait();
    }
}

#[test]
fn qemu_and_its_tools_are_seen_and_see_us() {
    let (user, disk) = with_disk("rw,file");
    let Some(writer) = QemuIo::open(&disk, &[]) else { return };
    let told = launch(&user, "debian");
    assert!(told.contains(&format!("is in use by qemu-io (process {})", writer.0.id())), "{told}");
    drop(writer);
    assert_eq!(launch(&user, "debian"), "");
    let resize =
        Command::new("qemu-img").args(["resize", "-f", "raw"]).arg(&disk).arg("2M").output();
    let told = String::from_utf8(resize.unwrap().stderr).unwrap();
    assert!(told.contains("Is another process using the image"), "{told}");
}

#[test]
fn a_backing_file_is_shared_by_its_overlays_and_written_by_nobody() {
    let overlay = |user: &User, name: &str| {
        let mut command = Command::new("qemu-img");
        command.args(["create", "-q", "-f", "qcow2", "-b", "base.img", "-F", "raw", name]);
        command.current_dir(user.data("debian")).status().is_ok_and(|status| status.success())
    };
    let qcow = config("rw,qcow").replace("disk.img", "top.qcow2");
    let (first, base) = with_disk("rw,file");
    fs::rename(&base, base.with_file_name("base.img")).unwrap();
    let base = base.with_file_name("base.img");
    if !overlay(&first, "top.qcow2") {
        return;
    }
    fs::write(first.data("debian").join("guest.cfg"), &qcow).unwrap();
    let second = User::with_package(&qcow);
    fs::hard_link(&base, second.data("debian").join("base.img")).unwrap();
    assert!(overlay(&second, "top.qcow2"));
    let writer = User::with_package(&config("rw,file").replace("disk.img", "base.img"));
    fs::hard_link(&base, writer.data("debian").join("base.img")).unwrap();

    assert_eq!(launch(&first, "debian"), "");
    assert_eq!(launch(&second, "debian"), "");
    assert!(launch(&writer, "debian").contains("data/base.img"));
}

#[test]
fn the_package_of_a_guest_that_runs_is_neither_removed_nor_replaced() {
    let (user, disk) = with_disk("rw,file");
    let mut session = Session::new(&user, &["launch", "debian"]);
    session.expect(PROMPT);
    for words in [&["image", "remove", "debian"][..], &["image", "build", "debian", "--force"]] {
        let refused = user.run(words);
        assert_eq!(refused.status.code(), Some(1), "{refused:?}");
        let told = String::from_utf8(refused.stdout).unwrap();
        assert!(told.contains("disk.img is in use by"), "{told}");
        assert!(told.contains("`guest stop debian` first"), "{told}");
    }
    assert!(disk.exists());
    session.type_line("poweroff -f");
    assert_eq!(session.end(), Some(0));
    assert!(user.run(&["image", "remove", "debian"]).status.success());
    assert!(!disk.exists());
}
