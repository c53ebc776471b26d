//! Debian's kernels, the small one for clouds and the one for real machines, in a machine made of system calls only:
//! to a shell on the serial port, a thousand processes, archives whose checksums must match, a processor taken offline
//! and started again, 32-bit programs, and power-off.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

use fuchsia_async::{self as fasync, TimeoutExt as _};
use fuchsia_zircon as zx;
use futures::channel::oneshot;
use futures::future::{Either, poll_fn, select};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, LazyLock};
use vmm::arch::Kernel;
use vmm::serial::SerialPort;
use vmm::vcpu::Outcome;
use vmm::vm::{Vm, VmBuilder, VmConfig};

/// Far beyond what any step takes: only a guest that hangs meets it.
const PATIENCE_SECONDS: i64 = 240;
const PROMPT: &str = "guest# ";

/// A kernel and its initial RAM disk.
struct Image {
    kernel: Vec<u8>,
    ramdisk: Vec<u8>,
}

static CLOUD: LazyLock<Image> = LazyLock::new(|| build("linux-image-cloud-amd64"));
static GENERIC: LazyLock<Image> = LazyLock::new(|| build("linux-image-amd64"));
/// What becomes /data of the guests, and what its 64-bit program prints here.
static DATA: LazyLock<(PathBuf, String)> = LazyLock::new(guest_files);

/// What the guests run, as /data/NAME.
const SCRIPTS: [(&str, &str); 4] = [
    (
        "forks",
        r#"
count() { sed -n 's/^processes //p' /proc/stat; }
before=$(count)
i=0
while [ $i -lt 1000 ] && /bin/busybox true; do i=$((i + 1)); done
after=$(count)
echo "forks: $i ran, $((after - before >= 1000)) counted"
"#,
    ),
    (
        "archives",
        r#"
cd /data
mkdir /tmp/gz /tmp/bz2 /tmp/xz
tar c tree | gzip > /tmp/tree.gz
tar c tree | bzip2 > /tmp/tree.bz2
gzip -dc /tmp/tree.gz | tar x -C /tmp/gz
bzip2 -dc /tmp/tree.bz2 | tar x -C /tmp/bz2
xz -dc tree.xz | tar x -C /tmp/xz
for form in gz bz2 xz; do
    cd /tmp/$form
    sha256sum -c /data/sums > /tmp/log 2>&1
    echo "archive: $form status $?, $(grep -c ': OK$' /tmp/log) match"
done
"#,
    ),
    (
        "offline",
        r#"
switch=/sys/devices/system/cpu/cpu1/online
for round in 1 2 3; do
    echo 0 > $switch
    off=$(grep -c ^processor /proc/cpuinfo)
    echo 1 > $switch
    on=$(grep -c ^processor /proc/cpuinfo)
    echo "cpu1: $off, then $on, runs on $(taskset 2 cut -d ' ' -f 39 /proc/self/stat)"
done
"#,
    ),
    ("programs", "/data/arithmetic\necho \"programs: status $?\"\n"),
];
const TREE_FILES: u64 = 40;

fn run(command: &mut Command) {
    let status = command.status().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(status.success(), "{command:?}: {status}");
}

fn work_directory(name: &str) -> PathBuf {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("guests").join(name);
    fs::create_dir_all(&directory).unwrap();
    directory
}

fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/guests").join(name)
}

fn build(package: &str) -> Image {
    let directory = work_directory(package);
    run(Command::new(source("build-initramfs.sh")).arg(&directory).arg(package).arg(&DATA.0));
    let read = |name: &str| fs::read(directory.join(name)).unwrap();
    Image { kernel: read("vmlinuz"), ramdisk: read("initramfs.cpio.gz") }
}

fn guest_files() -> (PathBuf, String) {
    let data = work_directory("data");
    for (name, script) in SCRIPTS {
        fs::write(data.join(name), script).unwrap();
    }
    write_tree(&data.join("tree"));
    let shell = "find tree -type f | sort | xargs sha256sum > sums && tar c tree | xz -1 > tree.xz";
    run(Command::new("sh").args(["-c", shell]).current_dir(&data));
    let native = work_directory("native").join("arithmetic");
    compile("-m64", &native);
    compile("-m32", &data.join("arithmetic"));
    let output = Command::new(native).output().unwrap();
    (data, String::from_utf8(output.stdout).unwrap())
}

/// Files of words, numbers and noise, the same in every run.
fn write_tree(tree: &Path) {
    fs::create_dir_all(tree).unwrap();
    let mut state = 1_u64;
    let mut next = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state >> 33
    };
    for file in 0..TREE_FILES {
        let mut contents = Vec::new();
        let size = next() % 120_000;
        while (contents.len() as u64) < size {
            match (file % 3, next()) {
                (0, word) => contents.extend(format!("word{} ", word % 700).bytes()),
                (1, number) => contents.extend(number.to_le_bytes()),
                (_, noise) => {
                    contents.extend_from_slice(&[noise as u8; 9][..noise as usize % 9 + 1])
                }
            }
        }
        fs::write(tree.join(format!("file{file}")), contents).unwrap();
    }
}

fn compile(width: &str, output: &Path) {
    let options = "-O1 -msse2 -mfpmath=sse -ffreestanding -fno-math-errno -fno-stack-protector \
                   -fno-pie -no-pie -nostdlib -static";
    let mut command = Command::new("gcc");
    command.arg(width).args(options.split_whitespace()).arg("-o").arg(output);
    run(command.arg(source("arithmetic.c")));
}

/// A running guest and what its console said.
struct Session {
    vm: Vm,
    serial: Arc<dyn SerialPort>,
    outcome: Option<oneshot::Receiver<Outcome>>,
    transcript: String,
    /// End of what was looked at.
    seen: usize,
}

impl Session {
    fn boot(image: &Image, cpus: u8) -> Session {
        use zx::sys::{ZX_RSRC_SYSTEM_HYPERVISOR_BASE, ZX_RSRC_SYSTEM_VMEX_BASE};
        let resource = |base| zx::linux::system_resource(base).unwrap();
        let (hypervisor, vmex) =
            (resource(ZX_RSRC_SYSTEM_HYPERVISOR_BASE), resource(ZX_RSRC_SYSTEM_VMEX_BASE));
        let config = VmConfig { cpus, memory: 512 << 20 };
        let builder = VmBuilder::new(&hypervisor, &vmex, config).unwrap();
        builder.install_traps().unwrap();
        let entry = builder
            .load(Kernel::Linux {
                image: &image.kernel,
                ramdisk: Some(&image.ramdisk),
                device_tree: None,
                command_line: "console=ttyS0 quiet panic=-1 guest.modules=off",
            })
            .unwrap();
        let mut vm = builder.build(entry);
        let outcome = Some(vm.start());
        let serial = vm.serial().clone();
        Session { vm, serial, outcome, transcript: String::new(), seen: 0 }
    }

    fn tail(&self) -> &str {
        let start = self.transcript.len().saturating_sub(4000);
        self.transcript.get(start..).unwrap_or(&self.transcript)
    }

    /// Waits for `text` on the console; gives what came before it.
    async fn expect(&mut self, text: &str) -> String {
        loop {
            if let Some(at) = self.transcript[self.seen..].find(text) {
                let before = self.transcript[self.seen..self.seen + at].to_owned();
                self.seen += at + text.len();
                return before;
            }
            let serial = self.serial.clone();
            let output = poll_fn(move |cx| serial.poll_output(cx));
            let deadline = fasync::Time::after(zx::Duration::from_seconds(PATIENCE_SECONDS));
            let output = output.on_timeout(deadline, Vec::new);
            let outcome = self.outcome.as_mut().expect("the guest runs");
            let bytes = match select(Box::pin(output), outcome).await {
                Either::Left((bytes, _)) => bytes,
                Either::Right((outcome, _)) => {
                    panic!("{outcome:?} before {text:?}:\n{}", self.tail())
                }
            };
            assert!(!bytes.is_empty(), "no {text:?} from the guest:\n{}", self.tail());
            // The guest's output is ASCII; what is not shows as a replacement character.
            self.transcript.push_str(&String::from_utf8_lossy(&bytes));
        }
    }

    /// Types a line at the prompt.
    async fn type_line(&mut self, line: &str) {
        self.expect(PROMPT).await;
        let line = format!("{line}\n");
        let mut rest = line.as_bytes();
        while !rest.is_empty() {
            let taken = poll_fn(|cx| self.serial.poll_input(cx, rest)).await;
            rest = &rest[taken..];
        }
    }

    /// Runs a script of /data and compares its lines of output.
    async fn check(&mut self, script: &str, expected: &str) {
        self.type_line(&format!("sh /data/{script}")).await;
        self.expect(&format!("/data/{script}\r\n")).await;
        for line in expected.lines() {
            let found = self.expect("\r\n").await;
            assert_eq!(found, line, "{script}:\n{}", self.tail());
        }
    }

    async fn power_off(mut self) {
        self.type_line("exit").await;
        let outcome = self.outcome.take().expect("the guest runs");
        let deadline = fasync::Time::after(zx::Duration::from_seconds(PATIENCE_SECONDS));
        let outcome =
            outcome.on_timeout(deadline, || panic!("no power-off:\n{}", self.tail())).await;
        assert_eq!(outcome, Ok(Outcome::PowerOff));
        drop(self.vm);
    }
}

fn boot_and_work(image: &Image, cpus: u8) {
    fasync::LocalExecutor::new().run_singlethreaded(async {
        let mut session = Session::boot(image, cpus);
        session.expect(&format!("on {cpus} CPUs\r\n")).await;
        session.check("forks", "forks: 1000 ran, 1 counted").await;
        let archive = |form| format!("archive: {form} status 0, {TREE_FILES} match\n");
        session.check("archives", &["gz", "bz2", "xz"].map(archive).concat()).await;
        session.check("programs", &format!("{}programs: status 0", DATA.1)).await;
        if cpus > 1 {
            session.check("offline", &"cpu1: 1, then 2, runs on 1\n".repeat(3)).await;
            session.check("forks", "forks: 1000 ran, 1 counted").await;
        }
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
