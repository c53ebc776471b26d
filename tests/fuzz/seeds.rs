//! Writes valid inputs for the targets that would not find one by themselves:
//! `cargo run --manifest-path tests/fuzz/Cargo.toml --bin seeds -- tests/fuzz/corpus`. Needs QEMU's `qemu-img` and
//! what Linux's kernels are packed with; what is missing has no seed.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use fidl::encoding::{Encoder, WireType};
use fidl_fuchsia_virtualization as fvirtualization;
use fidl_test_wire as wire;
use vmm::loader::zbi;

/// The tree that this belongs to.
const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

struct Corpus {
    directory: PathBuf,
}

impl Corpus {
    fn put(&self, target: &str, name: &str, bytes: &[u8]) {
        let directory = self.directory.join(target);
        std::fs::create_dir_all(&directory).expect("a directory for a target");
        std::fs::write(directory.join(name), bytes).expect("a seed");
    }
}

fn main() {
    let directory = std::env::args_os().nth(1).expect("where the corpora go").into();
    let corpus = Corpus { directory };
    texts(&corpus, "cml", &Path::new(ROOT).join("meta"), "cml");
    texts(&corpus, "fidl_source", &Path::new(ROOT).join("fidl"), "fidl");
    messages(&corpus);
    disks(&corpus);
    kernels(&corpus);
    boot_images(&corpus);
    frames(&corpus);
}

/// Every file below `directory` that ends in `.extension`.
fn texts(corpus: &Corpus, target: &str, directory: &Path, extension: &str) {
    for entry in std::fs::read_dir(directory).expect("sources").flatten() {
        let path = entry.path();
        if path.is_dir() {
            texts(corpus, target, &path, extension);
        } else if path.extension().is_some_and(|found| found == extension) {
            let parent = directory.file_name().unwrap_or_default().to_string_lossy();
            let name = format!("{parent}-{}", entry.file_name().to_string_lossy());
            corpus.put(target, &name, &std::fs::read(&path).expect("a source"));
        }
    }
}

/// Messages without handles, as `fidl_decode` numbers their types.
fn messages(corpus: &Corpus) {
    fn message<T: WireType<Owned = T>>(corpus: &Corpus, name: &str, which: u8, value: T) {
        let (bytes, handles) = Encoder::encode_all::<T>(value).expect("a valid value");
        assert!(handles.is_empty());
        corpus.put("fidl_decode", name, &[&[which, 0][..], &bytes].concat());
    }
    let config = fvirtualization::GuestConfig {
        kernel_type: Some(fvirtualization::KernelType::Linux),
        cmdline: Some("console=ttyS0".into()),
        cmdline_add: Some(vec!["a=b".into(), String::new()]),
        cpus: Some(2),
        guest_memory: Some(1 << 30),
        default_net: Some(true),
        virtio_balloon: Some(false),
        ..Default::default()
    };
    message(corpus, "guest_config", 0, config);
    let info = fvirtualization::GuestInfo {
        guest_status: Some(fvirtualization::GuestStatus::Running),
        uptime: Some(1),
        detected_problems: Some(vec!["It is slow".into()]),
        ..Default::default()
    };
    message(corpus, "guest_info", 1, info);
    let everything = wire::Everything {
        strict_enum: wire::StrictEnum::Plus,
        flexible_enum: wire::FlexibleEnum::from_primitive_allow_unknown(99),
        strict_bits: wire::StrictBits::empty(),
        flexible_bits: wire::FlexibleBits::from_bits_allow_unknown(0xff),
        numbers: NUMBERS,
        strings: wire::Strings {
            plain: "plain".into(),
            bounded: "b".into(),
            absent: Some("here".into()),
        },
        vectors: wire::Vectors {
            bytes: vec![1, 2, 3],
            words: vec![4, 5],
            strings: Some(vec!["six".into()]),
            flags: vec![true, false],
            nested: vec![vec![7], vec![]],
        },
        arrays: wire::Arrays {
            bytes: [1, 2, 3],
            smalls: [wire::Small { a: 1, b: 2 }, wire::Small { a: 3, b: 4 }],
            strings: ["x".into(), "y".into()],
        },
        node: Some(Box::new(wire::Node {
            value: 1,
            next: Some(Box::new(wire::Node { value: 2, next: None })),
        })),
        table: table(),
        strict_union: wire::StrictUnion::Numbers(NUMBERS),
        flexible_union: wire::FlexibleUnion::Small(wire::Small { a: 1, b: 2 }),
        absent_union: Some(Box::new(wire::StrictUnion::Text("text".into()))),
        tables: vec![table(), wire::Table::default()],
    };
    message(corpus, "everything", 7, everything);
}

const NUMBERS: wire::Numbers =
    wire::Numbers { b: true, i8: -1, u16: 2, i32: -3, u64: 4, f32: 5.0, u8: 6, f64: 7.0 };

fn table() -> wire::Table {
    wire::Table { small: Some(1), text: Some("t".into()), word: Some(9), ..Default::default() }
}

/// Images of each kind that `qemu-img` makes, small ones.
fn disks(corpus: &Corpus) {
    let directory = tempfile::tempdir().expect("a directory");
    let image = directory.path().join("image");
    let variants = [
        ("plain", "cluster_size=512"),
        ("version2", "compat=0.10,cluster_size=512"),
        ("wide", "cluster_size=2M"),
        ("refcount1", "refcount_bits=1,cluster_size=512"),
        ("refcount64", "refcount_bits=64,cluster_size=1k"),
        ("lazy", "lazy_refcounts=on,cluster_size=512"),
        ("extended", "extended_l2=on,cluster_size=16k"),
        ("zstd", "compression_type=zstd,cluster_size=512"),
        ("metadata", "preallocation=metadata,cluster_size=512"),
    ];
    for (name, options) in variants {
        let create = Command::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2", "-o", options])
            .args([image.as_os_str(), "64k".as_ref()])
            .stderr(Stdio::null())
            .status();
        let io = |command: &str| {
            let result = Command::new("qemu-io")
                .args(["-f", "qcow2", "-c", command])
                .arg(&image)
                .stdout(Stdio::null())
                .status();
            result.is_ok_and(|status| status.success())
        };
        if !create.is_ok_and(|status| status.success()) {
            continue;
        }
        if name != "wide" {
            io("write -P 0x5a 512 1024");
            io("write -z 4096 1024");
        }
        corpus.put("qcow2", name, &std::fs::read(&image).expect("the image"));
        if name == "plain" && io("write -c -P 0x11 8192 512") {
            corpus.put("qcow2", "compressed", &std::fs::read(&image).expect("the image"));
        }
    }
}

/// A small `vmlinux`, as it is and packed in each way that Linux is.
fn kernels(corpus: &Corpus) {
    const ADDRESS: u64 = 0x100_0000;
    let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
    elf.resize(64 + 56, 0);
    let mut put = |at: usize, value: u64, len: usize| {
        elf[at..at + len].copy_from_slice(&value.to_le_bytes()[..len]);
    };
    // Machine, entry, program headers; then the one: kind, offset, address, sizes in file and memory.
    for (at, value, len) in [(18, 62, 2), (24, ADDRESS, 8), (32, 64, 8), (54, 56, 2), (56, 1, 2)] {
        put(at, value, len);
    }
    for (at, value, len) in [(0, 1, 4), (8, 120, 8), (24, ADDRESS, 8), (32, 10, 8), (40, 4096, 8)] {
        put(64 + at, value, len);
    }
    elf.extend(b"startup_64");
    for (kind, name) in [(0, "vmlinux"), (1, "unpacked"), (2, "lz4")] {
        corpus.put("bzimage", name, &[&[kind, 1, 1, 1][..], &elf].concat());
    }
    for (packer, arguments) in [
        ("gzip", &["-c"][..]),
        ("bzip2", &["-c"]),
        ("lzma", &["-c"]),
        ("xz", &["-c", "--check=crc32"]),
        ("zstd", &["-c"]),
    ] {
        let child = Command::new(packer)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let Ok(mut child) = child else { continue };
        child.stdin.take().expect("piped").write_all(&elf).expect("a packer reads");
        let packed = child.wait_with_output().expect("a packer ends").stdout;
        corpus.put("bzimage", packer, &[&[1, 0, 0, 1][..], &packed].concat());
    }
}

fn boot_images(corpus: &Corpus) {
    let image = |items: &[(u32, &[u8])]| {
        let mut builder = zbi::Builder::default();
        for (kind, payload) in items {
            builder.push(*kind, 0, payload).expect("a small item");
        }
        builder.finish()
    };
    let code = [&0x50u64.to_le_bytes()[..], &0x1000u64.to_le_bytes(), b"code"].concat();
    let kernel = image(&[(zbi::item_type::KERNEL_X64, &code), (0x1234, b"rest")]);
    let ramdisk = image(&[(0x77, b"bootfs")]);
    corpus.put("zbi", "kernel", &[&[0, 5][..], &kernel].concat());
    let both = [&[(ramdisk.len() / 8) as u8, 5][..], &ramdisk, &kernel].concat();
    corpus.put("zbi", "ramdisk", &both);
}

/// The start of conversations, as `net_frames` reads them: what to do and a length before each frame.
fn frames(corpus: &Corpus) {
    let segment = |flags: u8, data: &[u8], is_answer: bool| {
        let mut frame = vec![0xff; 6];
        frame.extend([2, 0, 0, 0, 0, 1, 8, 0]);
        let mut ip = [0u8; 20];
        ip[4] = is_answer.into();
        let mut tcp = [0u8; 20];
        tcp[..2].copy_from_slice(&[0x10, 0]);
        (tcp[12], tcp[13], tcp[14], tcp[15]) = (0x50, flags, 0xff, 0xff);
        frame.extend(ip);
        frame.extend(tcp);
        frame.extend(data);
        let len = (frame.len() as u16).to_le_bytes();
        [&[0x01 | 0x02 | 0x04 | 0x20, len[0], len[1]][..], &frame].concat()
    };
    let (syn, ack, push, fin) = (2, 0x10, 0x18, 0x11);
    let talk = [
        segment(syn, b"", false),
        segment(ack, b"", true),
        segment(push, b"hello", true),
        segment(ack, b"", true),
        segment(fin, b"", true),
        segment(ack, b"", true),
    ];
    corpus.put("net_frames", "tcp", &[&[0][..], &talk.concat()].concat());
    corpus.put("net_frames", "tcp_offloads", &[&[7][..], &talk.concat()].concat());
    // A client of the host's that connects to a forwarded port: nothing but its wish, and then the guest's answers.
    let client = [0x02 | 0x04 | 0x20, 1, 0, 6];
    let answers = [
        &client[..],
        &segment(syn | ack, b"", true),
        &segment(push, b"welcome", true),
        &segment(fin, b"", true),
    ];
    corpus.put("net_frames", "forward", &[&[0][..], &answers.concat()].concat());
    for (name, kind) in [("ping6", 128), ("neighbor", 135)] {
        let mut frame = vec![0; 14 + 40 + 24];
        (frame[12], frame[14 + 6], frame[14 + 1], frame[54]) = (1, 2, 1, kind);
        frame[54 + 8..].copy_from_slice(&[0xfe, 0xc0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
        let len = frame.len() as u8;
        corpus.put("net_frames", name, &[&[0, 0x21, len, 0][..], &frame].concat());
    }
    let arp = [
        &[0xff; 6][..],
        &[2, 0, 0, 0, 0, 1, 0x70, 6, 0, 1, 8, 0, 6, 4, 0, 1],
        &[2, 0, 0, 0, 0, 1, 10, 0, 2, 15, 0, 0, 0, 0, 0, 0, 10, 0, 2, 2],
    ]
    .concat();
    corpus.put("net_frames", "arp", &[&[0, 1, arp.len() as u8, 0][..], &arp].concat());
    let mut discover = vec![0; 14 + 20 + 8 + 240];
    (discover[12], discover[14 + 1], discover[14 + 9]) = (8, 1, 1);
    discover[42..46].copy_from_slice(&[1, 1, 6, 0]);
    discover[42 + 236..].copy_from_slice(&[0x63, 0x82, 0x53, 0x63]);
    discover.extend([53, 1, 1, 255]);
    let len = (discover.len() as u16).to_le_bytes();
    corpus.put("net_frames", "dhcp", &[&[0, 1, len[0], len[1]][..], &discover].concat());
}
