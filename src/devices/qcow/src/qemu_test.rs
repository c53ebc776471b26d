//! QEMU's own tool as the judge: images it made are read right, images written here pass its check.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use crate::backing::BackingOpener;
use crate::create::CreateOptions;
use crate::file::BlockFile;
use crate::image::{Image, Mode};
use crate::shared::SharedImage;

struct DiskFile(File);

impl BlockFile for DiskFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_exact_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_all_at(buf, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }
}

/// Opens backing files by their names in the test's folder.
struct InFolder(PathBuf);

impl BackingOpener for InFolder {
    fn open(
        &mut self,
        name: &str,
        _: Option<&str>,
    ) -> Result<Arc<dyn BlockFile>, Box<dyn std::error::Error + Send + Sync>> {
        Ok(Arc::new(DiskFile(File::open(self.0.join(name))?)))
    }
}

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Runs `qemu-img` in the folder.
    #[track_caller]
    fn qemu_img(&self, args: &[&str]) {
        let output = Command::new("qemu-img")
            .current_dir(self.0.path())
            .args(args)
            .output()
            .expect("qemu-img is needed for this test (Debian: qemu-utils)");
        assert!(
            output.status.success(),
            "qemu-img {args:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    fn open(&self, name: &str, mode: Mode) -> Image {
        let file = File::options()
            .read(true)
            .write(mode == Mode::ReadWrite)
            .open(self.path(name))
            .unwrap();
        Image::open(Arc::new(DiskFile(file)), mode, &mut InFolder(self.0.path().into())).unwrap()
    }

    fn create(&self, name: &str, options: &CreateOptions) {
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(self.path(name));
        Image::create(&DiskFile(file.unwrap()), options).unwrap();
    }

    fn write_raw(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.path(name), bytes).unwrap();
    }
}

/// Bytes that compress somewhat, with runs of zeroes, different in every cluster.
fn pattern(len: usize) -> Vec<u8> {
    (0..len)
        .map(|at| if at / 70_000 % 3 == 1 { 0 } else { ((at / 512) * 31 + at % 13) as u8 })
        .collect()
}

fn contents(image: &mut Image) -> Vec<u8> {
    let mut bytes = vec![0; image.size() as usize];
    image.read_at(&mut bytes, 0).unwrap();
    bytes
}

fn read_file(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap()
}

#[test]
fn images_of_every_kind_are_read() {
    let data = pattern(3 << 20);
    for options in [
        "compat=0.10",
        "compat=1.1",
        "cluster_size=512",
        "cluster_size=2M",
        "refcount_bits=1",
        "refcount_bits=64",
        "lazy_refcounts=on",
        "preallocation=metadata",
        "preallocation=full",
    ] {
        let folder = Folder::new();
        folder.write_raw("raw", &data);
        folder.qemu_img(&["convert", "-f", "raw", "-O", "qcow2", "-o", options, "raw", "image"]);
        assert!(contents(&mut folder.open("image", Mode::ReadOnly)) == data, "{options}");
    }
}

#[test]
fn compressed_images_are_read_and_overwritten() {
    let mut data = pattern(3 << 20);
    for options in ["compression_type=zlib", "compression_type=zstd", "cluster_size=4k"] {
        let folder = Folder::new();
        folder.write_raw("raw", &data);
        folder.qemu_img(&[
            "convert", "-c", "-f", "raw", "-O", "qcow2", "-o", options, "raw", "image",
        ]);
        let mut image = folder.open("image", Mode::ReadWrite);
        assert!(contents(&mut image) == data, "{options}");
        image.write_at(b"not compressed", 100_000).unwrap();
        data[100_000..100_014].copy_from_slice(b"not compressed");
        image.discard(1 << 20, 1 << 20).unwrap();
        data[1 << 20..2 << 20].fill(0);
        image.flush().unwrap();
        drop(image);
        folder.qemu_img(&["check", "-f", "qcow2", "image"]);
        folder.write_raw("raw", &data);
        folder.qemu_img(&["compare", "-f", "raw", "-F", "qcow2", "raw", "image"]);
    }
}

#[test]
fn chains_of_backing_files_are_read() {
    let folder = Folder::new();
    let mut data = pattern(1 << 20);
    folder.write_raw("base.raw", &data[..700_000]);
    folder.qemu_img(&["create", "-f", "qcow2", "-b", "base.raw", "-F", "raw", "middle", "1M"]);
    folder.qemu_img(&["create", "-f", "qcow2", "-b", "middle", "-F", "qcow2", "top", "1M"]);
    data[700_000..].fill(0);
    let mut image = folder.open("top", Mode::ReadWrite);
    assert!(contents(&mut image) == data);
    image.write_at(&[9; 1000], 65_000).unwrap();
    data[65_000..66_000].fill(9);
    image.write_zeroes(200_000, 300_000, true).unwrap();
    data[200_000..500_000].fill(0);
    image.flush().unwrap();
    drop(image);
    folder.qemu_img(&["check", "top"]);
    folder.qemu_img(&["convert", "-O", "raw", "top", "raw"]);
    assert!(read_file(&folder.path("raw")) == data);
}

#[test]
fn images_made_here_pass_the_check() {
    for cluster_bits in [9, 12, 16, 21] {
        let folder = Folder::new();
        let size = 9_000_000;
        folder.create("image", &CreateOptions { size, cluster_bits, backing: None });
        folder.qemu_img(&["check", "image"]);
        let mut image = folder.open("image", Mode::ReadWrite);
        let mut model = vec![0; size as usize];
        let mut seed = 1u64;
        for round in 0..200 {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let offset = (seed >> 20) % size;
            let len = (seed >> 44) % 200_000 % (size - offset);
            let range = offset as usize..(offset + len) as usize;
            match round % 5 {
                0 => {
                    image.write_zeroes(offset, len, round % 2 == 0).unwrap();
                    model[range].fill(0);
                }
                _ => {
                    image.write_at(&vec![round as u8; len as usize], offset).unwrap();
                    model[range].fill(round as u8);
                }
            }
            if round % 50 == 0 {
                image.flush().unwrap();
            }
        }
        image.flush().unwrap();
        drop(image);
        folder.qemu_img(&["check", "image"]);
        folder.write_raw("raw", &model);
        folder.qemu_img(&["compare", "-f", "raw", "-F", "qcow2", "raw", "image"]);
    }
}

#[test]
fn clusters_shared_with_a_snapshot_are_copied() {
    let folder = Folder::new();
    let data = pattern(1 << 20);
    folder.write_raw("raw", &data);
    folder.qemu_img(&["convert", "-f", "raw", "-O", "qcow2", "raw", "image"]);
    folder.qemu_img(&["snapshot", "-c", "before", "image"]);
    let mut image = folder.open("image", Mode::ReadWrite);
    image.write_at(&vec![7; 500_000], 1000).unwrap();
    image.discard(600_000, 300_000).unwrap();
    image.flush().unwrap();
    drop(image);
    folder.qemu_img(&["check", "image"]);
    folder.qemu_img(&["snapshot", "-a", "before", "image"]);
    folder.qemu_img(&["compare", "-f", "raw", "-F", "qcow2", "raw", "image"]);
}

const SECTOR: usize = 512;
const THREADS: usize = 4;

/// One queue's requests: it has the sectors whose number modulo [`THREADS`] is its own, and so shares clusters with all, and
/// some clusters for itself, which it may discard. Returns what its sectors are in the end.
fn use_disk(image: &SharedImage, thread: usize, start: &[u8]) -> Vec<u8> {
    const CLUSTER: usize = 1 << 16;
    let mut disk = start.to_vec();
    let shared = disk.len() / 2;
    let own = (disk.len() - shared) / THREADS / CLUSTER;
    let mut random = 0x9e37_79b9_7f4a_7c15_u64 ^ (thread as u64) << 32;
    let mut next = |below: usize| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        (random >> 16) as usize % below
    };
    for round in 0..600 {
        let sector = next(shared / SECTOR / THREADS) * THREADS + thread;
        let at = sector * SECTOR;
        match next(8) {
            0..=3 => {
                disk[at..at + SECTOR].fill((round % 255) as u8 + 1);
                image.write_at(&disk[at..at + SECTOR], at as u64).unwrap();
            }
            4 => {
                disk[at..at + SECTOR].fill(0);
                image.write_zeroes(at as u64, SECTOR as u64, true).unwrap();
            }
            5 => image.flush().unwrap(),
            6 => {
                let at = shared + (thread * own + next(own)) * CLUSTER;
                image.discard(at as u64, CLUSTER as u64).unwrap();
                disk[at..at + CLUSTER].fill(0);
                let from = at + next(CLUSTER / SECTOR) * SECTOR;
                disk[from..at + CLUSTER].fill((round % 255) as u8 + 1);
                image.write_at(&disk[from..at + CLUSTER], from as u64).unwrap();
            }
            _ => {
                let at = at.min(shared - 3 * CLUSTER);
                let mut read = vec![0; 3 * CLUSTER];
                image.read_at(&mut read, at as u64).unwrap();
                let ours = (0..read.len()).step_by(SECTOR);
                for from in ours.filter(|from| (at + from) / SECTOR % THREADS == thread) {
                    let is = &read[from..from + SECTOR];
                    assert!(is == &disk[at + from..at + from + SECTOR], "sector at {}", at + from);
                }
            }
        }
    }
    disk
}

#[test]
fn queues_that_read_write_and_discard_at_once_leave_a_sound_image() {
    let folder = Folder::new();
    let data = pattern(8 << 20);
    folder.write_raw("raw", &data);
    folder.qemu_img(&["convert", "-c", "-f", "raw", "-O", "qcow2", "raw", "base"]);
    folder.qemu_img(&["create", "-f", "qcow2", "-b", "base", "-F", "qcow2", "image"]);
    let image = SharedImage::new(folder.open("image", Mode::ReadWrite));
    let ends: Vec<_> = std::thread::scope(|scope| {
        let use_disk = |thread| {
            scope.spawn({
                let (image, data) = (&image, &data);
                move || use_disk(image, thread, data)
            })
        };
        let threads: Vec<_> = (0..THREADS).map(use_disk).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    image.flush().unwrap();
    drop(image);
    let mut expected = data;
    let (shared, whole) = (expected.len() / 2, expected.len());
    for (thread, end) in ends.iter().enumerate() {
        for at in (0..shared).step_by(SECTOR).filter(|at| at / SECTOR % THREADS == thread) {
            expected[at..at + SECTOR].copy_from_slice(&end[at..at + SECTOR]);
        }
        let own = (whole - shared) / THREADS;
        let range = shared + thread * own..shared + (thread + 1) * own;
        expected[range.clone()].copy_from_slice(&end[range]);
    }
    folder.qemu_img(&["check", "image"]);
    folder.write_raw("expected", &expected);
    folder.qemu_img(&["compare", "-f", "raw", "-F", "qcow2", "expected", "image"]);
}

#[test]
fn a_rebuilt_image_passes_the_check() {
    let folder = Folder::new();
    folder.write_raw("raw", &pattern(1 << 20));
    folder.qemu_img(&[
        "convert",
        "-f",
        "raw",
        "-O",
        "qcow2",
        "-o",
        "lazy_refcounts=on",
        "raw",
        "image",
    ]);
    // As a writer that was killed leaves it: dirty, refcounts of the first block unwritten.
    let mut bytes = read_file(&folder.path("image"));
    bytes[79] |= 1;
    let table = u64::from_be_bytes(bytes[48..56].try_into().unwrap()) as usize;
    let block = u64::from_be_bytes(bytes[table..table + 8].try_into().unwrap()) as usize;
    bytes[block + 8..block + 64].fill(0);
    folder.write_raw("image", &bytes);
    let mut image = folder.open("image", Mode::ReadWrite);
    image.write_at(&[1; 100_000], 0).unwrap();
    image.flush().unwrap();
    drop(image);
    folder.qemu_img(&["check", "image"]);
}
