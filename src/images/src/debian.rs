//! The `debian` package: bookworm with systemd, a shell on the console without a password, the archive's own kernel.

use crate::error::Error;
use crate::store::{Staging, Store};
use crate::{Progress, initramfs, tools};
use rustix::process::{Pid, Signal, geteuid, kill_process_group};
use std::collections::VecDeque;
use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

const STEPS: usize = 4;
/// How many of a failing tool's last lines go into the error.
const KEPT_LINES: usize = 20;
/// How often a running tool is looked at for a cancellation.
const CANCEL_POLL: Duration = Duration::from_millis(50);

/// Packages beyond Debian's minimal base: an init, what brings devices and the network up, what a person misses first.
const PACKAGES: &str = "systemd-sysv,udev,iproute2,netbase,kmod,dbus,busybox-static,ca-certificates,curl,\
                        iputils-ping,less,nano,procps,socat";

/// Runs in mmdebstrap's hook, with the new root as its first argument.
const CUSTOMIZE: &str = include_str!("debian_customize.sh");

/// The guest's side of `guest vsock-perf`, where Fuchsia's test guests have it.
const VSOCK_TEST_UTIL: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/virtio_vsock_test_util"));

const GUEST_CFG: &str = r#"{
    "linux": "data/vmlinuz",
    "ramdisk": "data/initrd.img",
    "cmdline": "root=/dev/vda rw console=ttyS0 systemd.log_target=kmsg swiotlb=noforce",
    "block": ["data/rootfs.img,rw,file"],
    "default-net": true,
    "virtio-balloon": true,
    "virtio-console": true,
    "virtio-rng": true,
    "virtio-vsock": true
}
"#;

/// What a person can choose about a build.
#[derive(Debug, Clone)]
pub struct BuildOptions {
    /// The root file system's size in bytes; the file is sparse, so only what is used counts. At least 512 MiB.
    pub root_bytes: u64,
    /// Packages to add to the root file system, by their Debian names.
    pub extra_packages: Vec<String>,
    /// Whether an existing package, and what its guest has written, may be replaced.
    pub replace: bool,
}

impl Default for BuildOptions {
    fn default() -> Self {
        Self { root_bytes: 4 << 30, extra_packages: Vec::new(), replace: false }
    }
}

/// Builds the `debian` package into `store` and returns its directory. Takes about a minute and 300 MB of downloads
/// and scratch space; needs no privilege beyond subordinate user ids.
///
/// # Errors
/// Every variant of [`Error`]; whatever happens, the store holds the old package or the new one, whole.
pub fn build(
    store: &Store,
    options: &BuildOptions,
    progress: &mut dyn Progress,
) -> Result<PathBuf, Error> {
    if store.contains("debian")? && !options.replace {
        return Err(Error::Exists("debian".to_owned()));
    }
    tools::require()?;
    let staging = store.stage("debian")?;
    let archive = staging.scratch().join("rootfs.tar");
    progress.step(1, STEPS, "Debian base system from the archive", 40);
    bootstrap(&staging, &archive, options, progress)?;
    progress.step(2, STEPS, "kernel and initramfs", 2);
    kernel_and_initramfs(&staging, &archive, progress)?;
    progress.step(3, STEPS, "root file system", 6);
    root_image(&staging, &archive, options.root_bytes.max(512 << 20), progress)?;
    progress.step(4, STEPS, "guest.cfg", 0);
    let config = staging.data().join("guest.cfg");
    fs::write(&config, GUEST_CFG).map_err(Error::io("write", config))?;
    staging.commit()
}

fn bootstrap(
    staging: &Staging,
    archive: &Path,
    options: &BuildOptions,
    progress: &mut dyn Progress,
) -> Result<(), Error> {
    let mut packages = PACKAGES.to_owned();
    for name in &options.extra_packages {
        packages.push(',');
        packages.push_str(name);
    }
    let test_util = staging.scratch().join("virtio_vsock_test_util");
    fs::write(&test_util, VSOCK_TEST_UTIL)
        .and_then(|()| fs::set_permissions(&test_util, Permissions::from_mode(0o755)))
        .map_err(Error::io("write", &test_util))?;
    let mut command = tool_of_ours("mmdebstrap");
    command
        .arg("--variant=minbase")
        .arg("--architectures=amd64")
        .arg(format!("--include={packages}"))
        .arg(r#"--aptopt=Acquire::Languages "none""#)
        .args(
            ["doc", "info", "locale", "man"]
                .map(|d| format!("--dpkgopt=path-exclude=/usr/share/{d}/*")),
        )
        .arg(format!("--customize-hook={CUSTOMIZE}"))
        .arg(format!("--customize-hook=copy-in '{}' /test_utils", test_util.display()))
        .args(["--format=tar", "bookworm"])
        .arg(archive);
    if geteuid().is_root() {
        // Beside the package, so that a build that was killed is cleared away with its staging directory. In a user
        // namespace the directory has to be open to other user ids, as the system's own is.
        command.env("TMPDIR", staging.scratch());
    }
    run("mmdebstrap", command, progress)
}

fn kernel_and_initramfs(
    staging: &Staging,
    archive: &Path,
    progress: &mut dyn Progress,
) -> Result<(), Error> {
    let boot = staging.scratch().join("boot");
    fs::create_dir(&boot).map_err(Error::io("create", &boot))?;
    let mut command = tool("tar");
    command.arg("--extract").arg("--file").arg(archive).arg("--directory").arg(&boot);
    command.args([
        "--no-same-owner",
        "--wildcards",
        "./boot/vmlinuz-*",
        "./usr/lib/modules/*",
        "./usr/bin/busybox",
    ]);
    run("tar", command, progress)?;
    let kernel = only_entry(&boot.join("boot"))?.ok_or(Error::Archive("kernel"))?;
    let target = staging.data().join("vmlinuz");
    fs::copy(&kernel, &target).map_err(Error::io("copy the kernel to", target))?;
    let modules = only_entry(&boot.join("usr/lib/modules"))?.ok_or(Error::Archive("modules"))?;
    initramfs::write(&staging.data().join("initrd.img"), &boot.join("usr/bin/busybox"), &modules)
}

/// The one entry of a directory, or none where there is not exactly one.
fn only_entry(directory: &Path) -> Result<Option<PathBuf>, Error> {
    let mut entries = fs::read_dir(directory).map_err(Error::io("read", directory))?;
    let first = entries.next().transpose().map_err(Error::io("read", directory))?;
    Ok(first.filter(|_| entries.next().is_none()).map(|entry| entry.path()))
}

fn root_image(
    staging: &Staging,
    archive: &Path,
    bytes: u64,
    progress: &mut dyn Progress,
) -> Result<(), Error> {
    let tree = staging.scratch().join("tree");
    let image = staging.data().join("rootfs.img");
    // One shell, because the tree's owners exist only inside the user namespace that unpacked it.
    // Device nodes cannot be made in there, and the guest's kernel makes its own.
    let script = r#"set -e
tree=$1
trap 'rm -rf "$tree"' EXIT
trap 'exit 1' HUP INT TERM
mkdir "$tree"
tar --extract --file "$2" --directory "$tree" --numeric-owner --xattrs --exclude './dev/*'
PATH=$PATH:/usr/sbin:/sbin
mke2fs -q -t ext4 -L debian -E root_owner=0:0 -d "$tree" "$3" "$4"
"#;
    let mut command = if geteuid().is_root() {
        tool_of_ours("sh")
    } else {
        let mut command = tool_of_ours("unshare");
        command.args(tools::AS_ROOT_OF_A_USER_NAMESPACE).arg("sh");
        command
    };
    command.args(["-c", script, "sh"]).arg(&tree).arg(archive).arg(&image);
    command.arg(format!("{}k", bytes >> 10));
    run("mke2fs", command, progress)?;
    let file = fs::File::open(&image).map_err(Error::io("open", &image))?;
    file.sync_all().map_err(Error::io("write", &image))
}

fn tool(program: &str) -> Command {
    Command::new(path_of(program))
}

fn path_of(program: &str) -> PathBuf {
    tools::find(program).unwrap_or_else(|| program.into())
}

const NAMESPACES: [&str; 5] = ["--mount", "--pid", "--fork", "--kill-child", "--mount-proc"];

/// Whether a tool can have mounts and processes of its own: as root, unless a container forbids it, which forbids all mounts.
fn has_namespaces() -> bool {
    let mut unshare = tool("unshare");
    unshare.args(NAMESPACES).arg("true").stderr(Stdio::null());
    geteuid().is_root() && unshare.status().is_ok_and(|status| status.success())
}

/// A tool that ends when this process does, however that ends. As root it has mounts and processes of its own, which end with it: a
/// build that is killed leaves neither, and no mount of the host's below what the next one clears away.
fn tool_of_ours(program: &str) -> Command {
    let mut command = tool("setpriv");
    if has_namespaces() {
        command.args(["--pdeathsig", "KILL", "--"]).arg(path_of("unshare")).args(NAMESPACES);
    } else {
        // So that it clears up, which nobody else may do who is not root in its user namespace.
        command.args(["--pdeathsig", "TERM", "--"]);
    }
    command.arg(path_of(program));
    command
}

/// Runs a tool to its end, handing its lines on, and ends it with everything it started when the person cancels. `name` is for errors.
fn run(name: &str, mut command: Command, progress: &mut dyn Progress) -> Result<(), Error> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let mut child = command.spawn().map_err(Error::io("run", name))?;
    let (sender, lines) = mpsc::channel();
    for stream in readers(&mut child) {
        let sender = sender.clone();
        thread::spawn(move || {
            // Not UTF-8 or closed early: the tool's status tells the rest.
            stream.lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
    }
    drop(sender);
    let mut kept = VecDeque::new();
    loop {
        if progress.canceled() {
            stop(&mut child);
            return Err(Error::Canceled);
        }
        match lines.recv_timeout(CANCEL_POLL) {
            Ok(line) => {
                if let Some(detail) = detail(&line) {
                    progress.detail(&detail);
                }
                if kept.len() == KEPT_LINES {
                    kept.pop_front();
                }
                kept.push_back(line);
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    let status = child.wait().map_err(Error::io("wait for", name))?;
    if status.success() {
        return Ok(());
    }
    let output = Vec::from(kept).join("\n");
    Err(Error::Tool { tool: name.to_owned(), status: status.to_string(), output })
}

/// What a person who waits learns from a tool's line: what is downloaded, unpacked or set up. Tools also print the text of their hooks
/// and what concerns themselves, which is nothing.
fn detail(line: &str) -> Option<String> {
    let mut words = line.split_whitespace();
    match words.next()? {
        // apt: the archive, the suite, the architecture, and the package; an index has no more than a suite and its name.
        kind if kind.starts_with("Get:") => {
            let name = words.nth(3)?;
            (!name.starts_with('[')).then(|| format!("downloading {name}"))
        }
        "Unpacking" => Some(format!("unpacking {}", words.next()?)),
        "Setting" if words.next()? == "up" => Some(format!("setting up {}", words.next()?)),
        // mmdebstrap's own steps; a hook is named by its text.
        "I:" if line.contains("-hook in shell") => Some("configuring the system".to_owned()),
        "I:" => Some(words.collect::<Vec<_>>().join(" ")),
        _ => None,
    }
}

fn readers(child: &mut Child) -> Vec<Box<dyn BufRead + Send>> {
    let mut readers: Vec<Box<dyn BufRead + Send>> = Vec::new();
    if let Some(stream) = child.stdout.take() {
        readers.push(Box::new(BufReader::new(stream)));
    }
    if let Some(stream) = child.stderr.take() {
        readers.push(Box::new(BufReader::new(stream)));
    }
    readers
}

/// Asks the tool's process group to end, so that it clears its own scratch files, and insists after five seconds.
fn stop(child: &mut Child) {
    let group = Pid::from_child(child);
    for signal in [Signal::TERM, Signal::KILL] {
        if kill_process_group(group, signal).is_err() {
            break;
        }
        for _ in 0..100 {
            if matches!(child.try_wait(), Ok(Some(_)) | Err(_)) {
                return;
            }
            thread::sleep(CANCEL_POLL);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[derive(Default)]
    struct Recorder {
        lines: Vec<String>,
        cancel: bool,
    }

    impl Progress for Recorder {
        fn step(&mut self, _: usize, _: usize, _: &str, _: u32) {}
        fn detail(&mut self, line: &str) {
            self.lines.push(line.to_owned());
        }
        fn canceled(&self) -> bool {
            self.cancel
        }
    }

    fn shell(script: &str) -> Command {
        let mut command = tool("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn lines_of_tools_become_words_for_a_person() {
        let cases = [
            ("Get:1 http://archive.example/debian bookworm InRelease [151 kB]", None),
            (
                "Get:12 http://archive.example/debian bookworm/main amd64 libc6 amd64 2.36-9 [2757 kB]",
                Some("downloading libc6"),
            ),
            ("Unpacking perl-base (5.36.0-7) ...", Some("unpacking perl-base")),
            ("Setting up systemd (252.39-1) ...", Some("setting up systemd")),
            (
                "I: chroot architecture amd64 is equal to the host's",
                Some("chroot architecture amd64 is equal to the host's"),
            ),
            (
                "I: running --customize-hook in shell: sh -c '# mmdebstrap's hook",
                Some("configuring the system"),
            ),
            ("in_root() { chroot \"$root\" \"$@\"; }", None),
            ("[Service]", None),
            ("", None),
        ];
        for (line, expected) in cases {
            assert_eq!(detail(line).as_deref(), expected, "{line}");
        }
    }

    #[test]
    fn a_failing_tool_is_named_with_its_last_lines() {
        let mut recorder = Recorder::default();
        let script = "echo 'Unpacking one (1) ...'; echo two >&2; exit 3";
        let error = run("sh", shell(script), &mut recorder).unwrap_err();
        let text = error.to_string();
        assert!(text.starts_with("sh failed (exit status: 3)"), "{text}");
        assert!(text.contains("one") && text.contains("two"), "{text}");
        assert_eq!(recorder.lines, ["unpacking one"]);
    }

    #[test]
    fn canceling_ends_the_tool_and_its_children() {
        let mut recorder = Recorder { cancel: true, ..Recorder::default() };
        let begin = Instant::now();
        let result = run("sh", shell("sleep 600 & sleep 600"), &mut recorder);
        assert!(matches!(result, Err(Error::Canceled)));
        assert!(begin.elapsed() < Duration::from_secs(300));
    }

    #[test]
    fn a_tool_of_ours_ends_with_us_and_its_mounts_with_it() {
        if !has_namespaces() {
            // There are no mounts then but in a user namespace, which has no others than its own.
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let (mounted, below) = (directory.path().join("mounted"), directory.path().join("below"));
        fs::create_dir(&below).unwrap();
        let script = format!(
            "mount -t tmpfs none {below} && touch {mounted} && sleep 600",
            below = below.display(),
            mounted = mounted.display()
        );
        // The thread that started the tool is gone before the tool is done.
        let child = thread::spawn(move || {
            let mut command = tool_of_ours("sh");
            let mut child = command.args(["-c", &script]).spawn().unwrap();
            while !mounted.exists() {
                assert!(child.try_wait().unwrap().is_none(), "the tool did not come to its mount");
                thread::sleep(CANCEL_POLL);
            }
            child
        });
        let status = child.join().unwrap().wait().unwrap();
        assert!(!status.success());
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        assert!(!mounts.contains(&*below.to_string_lossy()), "{mounts}");
    }

    #[test]
    fn an_existing_package_is_not_overwritten_unasked() {
        let root = tempfile::tempdir().unwrap();
        let store = Store::new(root.path());
        let staging = store.stage("debian").unwrap();
        fs::write(staging.data().join("guest.cfg"), "{}").unwrap();
        staging.commit().unwrap();
        let result = build(&store, &BuildOptions::default(), &mut Recorder::default());
        assert!(matches!(result, Err(Error::Exists(_))));
    }
}
