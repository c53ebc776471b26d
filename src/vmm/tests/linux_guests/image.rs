//! What the guests are made of: Debian's kernels, and an initial RAM disk with the programs of the tests.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

/// A kernel and its initial RAM disk.
pub(crate) struct Image {
    pub(crate) kernel: Vec<u8>,
    pub(crate) ramdisk: Vec<u8>,
}

pub(crate) static CLOUD: LazyLock<Image> = LazyLock::new(|| build("linux-image-cloud-amd64"));
pub(crate) static GENERIC: LazyLock<Image> = LazyLock::new(|| build("linux-image-amd64"));
/// What becomes /data of the guests, and what its 64-bit program prints here.
pub(crate) static DATA: LazyLock<(PathBuf, String)> = LazyLock::new(guest_files);

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
pub(crate) const TREE_FILES: u64 = 40;

pub(crate) fn run(command: &mut Command) {
    let status = command.status().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(status.success(), "{command:?}: {status}");
}

pub(crate) fn work_directory(name: &str) -> PathBuf {
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
                    contents.extend_from_slice(&[noise as u8; 9][..noise as usize % 9 + 1]);
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
