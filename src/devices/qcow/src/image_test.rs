//! Images made here, against a disk that is a plain vector, and across crashes.

use std::io;
use std::sync::{Arc, Mutex};

use proptest::prelude::*;

use crate::backing::NoBacking;
use crate::create::CreateOptions;
use crate::error::Error;
use crate::file::{BlockFile, MemoryFile};
use crate::header::BackingName;
use crate::image::{Image, Mode};

fn create(size: u64, cluster_bits: u32) -> Arc<MemoryFile> {
    let file = Arc::new(MemoryFile::default());
    Image::create(&*file, &CreateOptions { size, cluster_bits, backing: None }).unwrap();
    file
}

fn open(file: &Arc<MemoryFile>) -> Image {
    Image::open(file.clone(), Mode::ReadWrite, &mut NoBacking).unwrap()
}

fn contents(image: &mut Image) -> Vec<u8> {
    let mut bytes = vec![0xee; image.size() as usize];
    image.read_at(&mut bytes, 0).unwrap();
    bytes
}

/// Gives every image that is opened the same file.
struct Fixed(Arc<dyn BlockFile>);

impl crate::BackingOpener for Fixed {
    fn open(
        &mut self,
        _: &str,
        _: Option<&str>,
    ) -> Result<Arc<dyn BlockFile>, Box<dyn std::error::Error + Send + Sync>> {
        Ok(self.0.clone())
    }
}

#[test]
fn a_new_image_reads_as_zeroes() {
    let mut image = open(&create(1 << 20, 16));
    assert!(contents(&mut image).iter().all(|byte| *byte == 0));
    assert_eq!(image.size(), 1 << 20);
}

#[test]
fn ranges_beyond_the_disk_are_refused() {
    let mut image = open(&create(1000, 9));
    for (offset, len) in [(1000, 1), (999, 2), (u64::MAX, 1), (u64::MAX, 2)] {
        let mut buf = vec![0; len];
        assert!(matches!(image.read_at(&mut buf, offset), Err(Error::OutOfRange { .. })));
        assert!(matches!(image.write_at(&buf, offset), Err(Error::OutOfRange { .. })));
        assert!(matches!(image.discard(offset, len as u64), Err(Error::OutOfRange { .. })));
        assert!(matches!(
            image.write_zeroes(offset, len as u64, true),
            Err(Error::OutOfRange { .. })
        ));
    }
    image.read_at(&mut [], 1000).unwrap();
}

#[test]
fn an_image_opened_for_reading_is_never_written() {
    let file = create(4096, 9);
    let before = file.contents();
    let mut image = Image::open(file.clone(), Mode::ReadOnly, &mut NoBacking).unwrap();
    assert!(matches!(image.write_at(&[1], 0), Err(Error::ReadOnly)));
    assert!(matches!(image.discard(0, 4096), Err(Error::ReadOnly)));
    image.flush().unwrap();
    assert_eq!(file.contents(), before);
}

#[test]
fn an_overlay_shows_its_backing_file_until_written() {
    let below: Vec<u8> = (0..3000u32).map(|i| i as u8 | 1).collect();
    let file = Arc::new(MemoryFile::default());
    let backing = Some(("base".into(), "raw".into()));
    Image::create(&*file, &CreateOptions { size: 4096, cluster_bits: 9, backing }).unwrap();
    let base = Arc::new(MemoryFile::new(below.clone()));
    let mut image = Image::open(file.clone(), Mode::ReadWrite, &mut Fixed(base.clone())).unwrap();
    let mut expected = below.clone();
    expected.resize(4096, 0);
    assert_eq!(contents(&mut image), expected);

    image.write_at(b"hello", 700).unwrap();
    expected[700..705].copy_from_slice(b"hello");
    image.write_zeroes(1000, 600, true).unwrap();
    expected[1000..1600].fill(0);
    image.discard(2048, 512).unwrap();
    expected[2048..2560].fill(0);
    assert_eq!(contents(&mut image), expected);
    image.flush().unwrap();
    drop(image);

    let mut image = Image::open(file, Mode::ReadOnly, &mut Fixed(base.clone())).unwrap();
    assert_eq!(contents(&mut image), expected);
    assert_eq!(base.contents(), below, "the backing file is not written");
}

#[test]
fn backing_files_need_an_opener_and_a_format() {
    let file = Arc::new(MemoryFile::default());
    let backing = Some(("base".into(), "raw".into()));
    Image::create(&*file, &CreateOptions { size: 4096, cluster_bits: 9, backing }).unwrap();
    let error = Image::open(file, Mode::ReadOnly, &mut NoBacking).unwrap_err();
    assert!(matches!(error, Error::Backing { name, .. } if name == "base"));

    let file = Arc::new(MemoryFile::default());
    let backing = Some(("base".into(), "vmdk".into()));
    Image::create(&*file, &CreateOptions { size: 4096, cluster_bits: 9, backing }).unwrap();
    let error = Image::open(file.clone(), Mode::ReadOnly, &mut Fixed(file)).unwrap_err();
    assert!(matches!(error, Error::Backing { .. }));
}

#[test]
fn the_backing_files_name_is_in_the_front() {
    let file = MemoryFile::default();
    let backing = Some(("base.img".into(), "raw".into()));
    Image::create(&file, &CreateOptions { size: 1 << 30, cluster_bits: 16, backing }).unwrap();
    let name = BackingName::read(&file.contents()[..4096]).unwrap().unwrap();
    assert_eq!((&name.name[..], name.format.as_deref()), ("base.img", Some("raw")));
    assert_eq!(BackingName::read(&create(4096, 9).contents()).unwrap(), None);
    assert!(BackingName::read(b"not an image").is_err());
}

#[test]
fn a_loop_of_backing_files_ends() {
    let file = Arc::new(MemoryFile::default());
    let backing = Some(("itself".into(), "qcow2".into()));
    Image::create(&*file, &CreateOptions { size: 4096, cluster_bits: 9, backing }).unwrap();
    let error = Image::open(file.clone(), Mode::ReadOnly, &mut Fixed(file)).unwrap_err();
    assert!(matches!(error, Error::Malformed(crate::Malformed::ChainTooLong)));
}

#[test]
fn discarded_clusters_are_used_again() {
    let file = create(1 << 20, 12);
    let mut image = open(&file);
    image.write_at(&vec![1; 1 << 20], 0).unwrap();
    image.flush().unwrap();
    let full = file.contents().len();
    for round in 0..8 {
        image.discard(0, 1 << 20).unwrap();
        image.flush().unwrap();
        image.write_at(&vec![round; 1 << 20], 0).unwrap();
        image.flush().unwrap();
    }
    assert_eq!(file.contents().len(), full);
}

#[test]
fn the_refcount_table_grows() {
    // 512-byte clusters: a refcount block holds 256, the first table 64 blocks, so 8 MiB need a second table.
    let file = create(12 << 20, 9);
    let mut image = open(&file);
    let data: Vec<u8> = (0..12u32 << 20).map(|i| (i >> 9) as u8).collect();
    image.write_at(&data, 0).unwrap();
    image.flush().unwrap();
    drop(image);
    assert_eq!(contents(&mut open(&file)), data);
}

/// What a guest does to its disk.
#[derive(Debug, Clone)]
enum Op {
    Write { offset: u64, len: u64, byte: u8 },
    Zero { offset: u64, len: u64, unmap: bool },
    Discard { offset: u64, len: u64 },
    Flush,
    Reopen,
}

const SIZE: u64 = 60_000;

fn op() -> impl Strategy<Value = Op> {
    let range = || (0..SIZE, 0..9000u64).prop_map(|(offset, len)| (offset, len.min(SIZE - offset)));
    prop_oneof![
        6 => (range(), any::<u8>()).prop_map(|((offset, len), byte)| Op::Write { offset, len, byte }),
        2 => (range(), any::<bool>()).prop_map(|((offset, len), unmap)| Op::Zero { offset, len, unmap }),
        2 => range().prop_map(|(offset, len)| Op::Discard { offset, len }),
        1 => Just(Op::Flush),
        1 => Just(Op::Reopen),
    ]
}

/// Applies `op` to the model. A discarded cluster reads as zeroes, a discarded part of one as before.
fn apply(model: &mut [u8], op: &Op, cluster: u64) {
    let mut fill = |start: u64, end: u64, byte| {
        if start < end {
            model[start as usize..end as usize].fill(byte);
        }
    };
    match *op {
        Op::Write { offset, len, byte } => fill(offset, offset + len, byte),
        Op::Zero { offset, len, .. } => fill(offset, offset + len, 0),
        Op::Discard { offset, len } => {
            let end = offset + len;
            let end = if end == SIZE { end } else { end - end % cluster };
            fill(offset.next_multiple_of(cluster), end, 0);
        }
        Op::Flush | Op::Reopen => {}
    }
}

fn run(image: &mut Image, op: &Op) -> Result<(), Error> {
    match *op {
        Op::Write { offset, len, byte } => image.write_at(&vec![byte; len as usize], offset),
        Op::Zero { offset, len, unmap } => image.write_zeroes(offset, len, unmap),
        Op::Discard { offset, len } => image.discard(offset, len),
        Op::Flush | Op::Reopen => image.flush(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn an_image_behaves_as_a_plain_disk(
        ops in proptest::collection::vec(op(), 1..40),
        cluster_bits in 9..13u32,
        has_backing in any::<bool>(),
    ) {
        let file = Arc::new(MemoryFile::default());
        let backing = has_backing.then(|| ("base".into(), "raw".into()));
        Image::create(&*file, &CreateOptions { size: SIZE, cluster_bits, backing }).unwrap();
        let base = Arc::new(MemoryFile::new(vec![0x77; SIZE as usize / 2]));
        let reopen = || Image::open(file.clone(), Mode::ReadWrite, &mut Fixed(base.clone())).unwrap();
        let mut model = vec![0; SIZE as usize];
        if has_backing {
            model[..SIZE as usize / 2].fill(0x77);
        }
        let mut image = reopen();
        for op in &ops {
            run(&mut image, op).unwrap();
            apply(&mut model, op, 1 << cluster_bits);
            if matches!(op, Op::Reopen) {
                image = reopen();
            }
            prop_assert!(contents(&mut image) == model, "after {:?}", op);
        }
    }

    /// The power goes at some write. What the disk had at the last completed flush is there after it, except where
    /// later operations touched it.
    #[test]
    fn a_power_cut_leaves_what_was_flushed(
        ops in proptest::collection::vec(op(), 1..40),
        cut in 0..400usize,
        seed in any::<u64>(),
    ) {
        let file = Arc::new(PowerCut::new(create(SIZE, 9).contents()));
        let mut image = Image::open(file.clone(), Mode::ReadWrite, &mut NoBacking).unwrap();
        file.arm(cut);
        let mut model = vec![0u8; SIZE as usize];
        let mut flushed = model.clone();
        let mut touched = vec![false; SIZE as usize];
        for op in &ops {
            let mut mark = vec![1u8; SIZE as usize];
            apply(&mut mark, &match op.clone() {
                Op::Write { offset, len, .. } => Op::Write { offset, len, byte: 0 },
                other => other,
            }, 512);
            touched.iter_mut().zip(&mark).for_each(|(touched, mark)| *touched |= *mark == 0);
            if run(&mut image, op).is_err() {
                break;
            }
            apply(&mut model, op, 512);
            if matches!(op, Op::Flush | Op::Reopen) {
                flushed.clone_from(&model);
                touched.fill(false);
            }
        }
        drop(image);
        let survivor = Arc::new(MemoryFile::new(file.after_power_cut(seed)));
        let mut image = Image::open(survivor, Mode::ReadWrite, &mut NoBacking).unwrap();
        let found = contents(&mut image);
        for at in 0..SIZE as usize {
            prop_assert!(touched[at] || found[at] == flushed[at], "byte {} is {:#x}", at, found[at]);
        }
        // And it can be used on.
        image.write_at(&[0x42; 5000], 100).unwrap();
        image.flush().unwrap();
    }
}

/// A file whose writes since the last sync may or may not survive, and which fails from some write on.
struct PowerCut {
    state: Mutex<PowerCutState>,
}

struct PowerCutState {
    /// What survives for certain.
    durable: Vec<u8>,
    /// What a reader sees.
    current: Vec<u8>,
    /// Writes since the last sync, in order.
    pending: Vec<(u64, Vec<u8>)>,
    left: usize,
}

impl PowerCut {
    fn new(contents: Vec<u8>) -> Self {
        let state = PowerCutState {
            durable: contents.clone(),
            current: contents,
            pending: Vec::new(),
            left: usize::MAX,
        };
        Self { state: Mutex::new(state) }
    }

    fn arm(&self, writes: usize) {
        self.state.lock().unwrap().left = writes;
    }

    /// The durable bytes with some of the pending writes, chosen by `seed`.
    fn after_power_cut(&self, mut seed: u64) -> Vec<u8> {
        let state = self.state.lock().unwrap();
        let mut bytes = state.durable.clone();
        for (offset, data) in &state.pending {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            if seed >> 63 == 0 {
                write_into(&mut bytes, data, *offset);
            }
        }
        bytes
    }
}

fn write_into(bytes: &mut Vec<u8>, data: &[u8], offset: u64) {
    let end = offset as usize + data.len();
    if bytes.len() < end {
        bytes.resize(end, 0);
    }
    bytes[offset as usize..end].copy_from_slice(data);
}

impl BlockFile for PowerCut {
    fn len(&self) -> io::Result<u64> {
        Ok(self.state.lock().unwrap().current.len() as u64)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let state = self.state.lock().unwrap();
        let data = state.current.get(offset as usize..offset as usize + buf.len());
        buf.copy_from_slice(data.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let mut state = self.state.lock().unwrap();
        state.left = state.left.checked_sub(1).ok_or(io::ErrorKind::BrokenPipe)?;
        write_into(&mut state.current, buf, offset);
        state.pending.push((offset, buf.to_vec()));
        Ok(())
    }

    fn set_len(&self, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.state.lock().unwrap();
        if state.left == 0 {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        state.durable = state.current.clone();
        state.pending.clear();
        Ok(())
    }

    fn punch_hole(&self, offset: u64, len: u64) -> io::Result<()> {
        // The worst that "unspecified" allows.
        self.write_at(&vec![0xdd; len as usize], offset)
    }
}
